"""The application that the commands of this package belong to, and how its errors are shown."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.screen.console import Screen, say, show_logs
from blackbox_proxy.version import __version__

app = typer.Typer(
    name="blackbox-proxy",
    help="Decode a language model behind an API as if it had been fine-tuned (proxy-tuning).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Entry point: errors of this package become one sentence and a hint on stderr, and a non-zero exit status."""
    # With another busy process on the machine, threads that spin while they wait slow small models down tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    show_logs("blackbox_proxy.api.tokenizer")
    try:
        app()
    except BlackboxError as error:
        console = Screen(stderr=True)
        console.print(f"Error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        if error.hint:
            console.print(f"Hint: {error.hint}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except Exception:  # a fault of this package, which may quote what a server sent
        say(traceback.format_exc(), err=True)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Decode a language model behind an API as if it had been fine-tuned (proxy-tuning)."""


def quiet_transformers() -> None:
    """No progress bars and no advice from transformers: what a command prints is its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
