"""Commands about settings: `config init`, `config check`, `config show`; and `doctor`, which tries them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from blackbox_proxy.checks.finding import Finding
from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.options import AsJson, DecodingOptions
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.config.writing import commented, in_effect, plain
from blackbox_proxy.errors import InputError
from blackbox_proxy.screen.console import Screen, say, say_json

USUAL = Path("proxy.toml")
_STYLES = {"ok": "green", "warns": "yellow", "fails": "bold red"}

configs = typer.Typer(help="Write a file with settings, check it, show what is in effect.", no_args_is_help=True)
app.add_typer(configs, name="config")


class FileOptions(DecodingOptions):
    """Everything that can be set; where no file is given, the one in this folder."""

    wanted: ClassVar[tuple[str, ...]] = (*DecodingOptions.wanted, "serve")
    usual: ClassVar[Path | None] = USUAL


class NewOptions(FileOptions):
    """The settings that a new file begins with."""

    reads: ClassVar[bool] = False


@configs.command("init")
@takes(NewOptions)
def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = USUAL,
    *,
    parts: NewOptions,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")] = False,
) -> None:
    """Write a file with every setting, each explained: those given are in effect, the others comments.

    Examples:

        blackbox-proxy config init

        blackbox-proxy config init --base big --base-url http://localhost:8000/v1 --dialect vllm \\
            --expert ./small-tuned --antiexpert ./small
    """
    text = commented(parts.given, file.parent)
    try:
        with file.open("w" if overwrite else "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise InputError(f"{file} is there already", hint="Name another file, or give --overwrite.") from None
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}", hint="Name another file.") from None
    say(f"{file} is written. Look through it, then: blackbox-proxy config check --config {file}")


@configs.command("check")
@takes(FileOptions)
def check(
    *,
    parts: FileOptions,
    online: Annotated[bool, typer.Option("--online", help="Ask the base for one token, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether settings are right: names, numbers, folders, keys. Sends nothing without --online.

    The file is proxy.toml in this folder by default. The exit status is 1 where something fails.

    Examples:

        blackbox-proxy config check --config proxy.toml --online
    """
    quiet_transformers()
    from blackbox_proxy.checks.live import ask_the_base
    from blackbox_proxy.checks.settings import check_settings

    findings = list(check_settings(parts))
    if online and not any(found.level == "fails" and found.what == "base" for found in findings):
        findings += ask_the_base(parts)
    tell(findings, as_json=as_json)


@configs.command("show")
@takes(FileOptions)
def show(*, parts: FileOptions, as_json: AsJson = False) -> None:
    """Print the settings in effect: the file's, with the environment's and the options' over them. No key is shown.

    Examples:

        blackbox-proxy config show --config proxy.toml --alpha 0.5
    """
    if as_json:
        say_json(plain(parts.settings))
        return
    for line in in_effect(parts.settings).splitlines():
        say(line)


@app.command()
@takes(FileOptions)
def doctor(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts like those to be asked.")] = None,
    *,
    parts: FileOptions,
    texts: Annotated[int, typer.Option(help="How many texts the estimate of calls and cost is about.")] = 100,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Probe an endpoint that was not probed yet: some 20 requests.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Look at everything that must work, in one go: versions, settings, folders, the base, the pair's fit, the cost.

    Each check says ok, warns or fails, and what to do. What hangs on a check that fails is left out. The base is asked
    for some dozens of tokens; an endpoint that was never probed is probed. The exit status is 1 where something fails.

    Examples:

        blackbox-proxy doctor --config proxy.toml

        blackbox-proxy doctor "The mayor said" --base big --base-url http://localhost:8000/v1 --dialect vllm \\
            --expert ./small-tuned --antiexpert ./small
    """
    quiet_transformers()
    from blackbox_proxy.checks.live import Examination, examine

    if texts < 1:
        raise InputError("--texts must be at least 1", hint="Leave it out for 100.")
    usual = Examination(texts=texts, probe=Examination.probe if probe else 0)
    tell(examine(parts, replace(usual, prompts=prompts) if prompts else usual), as_json=as_json)
    if not as_json:
        again = shlex.join(word for word in sys.argv[1:] if word not in ("doctor", *(prompts or ())))
        again = again or f"--config {USUAL}"
        say(f'next:  blackbox-proxy generate "{(prompts or ["Once upon a time"])[0]}" {again} --show')


def tell(findings: Iterable[Finding], *, as_json: bool) -> None:
    """Print what was found, as it comes; end with status 1 where something fails."""
    console, seen = Screen(), []
    for found in findings:
        seen.append(found)
        if not as_json:
            style = _STYLES[found.level]
            console.print(f"{found.level:5s}  {found.what}: {found.text}", style=style, highlight=False, soft_wrap=True)
            if found.hint:
                console.print(f"       {found.hint}", highlight=False, soft_wrap=True)
    if as_json:
        say_json([{"level": f.level, "what": f.what, "text": f.text, "hint": f.hint} for f in seen])
    if any(found.level == "fails" for found in seen):
        raise typer.Exit(1)
