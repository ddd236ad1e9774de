"""Options that several commands share. The groups are put into a command by `takes` (sharing.py): which settings each
has as options is said here, what they are in `blackbox_proxy/config/tables.py`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import typer

from blackbox_proxy.cli.sharing import Options
from blackbox_proxy.errors import InputError


class BaseOptions(Options):
    """Where the base is, how it is asked, and what it may cost."""

    wanted: ClassVar[tuple[str, ...]] = ("base", "limits", "budget", "cache", "compute")


class TunerOptions(BaseOptions):
    """The base, the pairs, and how they are put together."""

    wanted: ClassVar[tuple[str, ...]] = (*BaseOptions.wanted, "pairs", "equation", "drafting")


class DecodingOptions(TunerOptions):
    """The same, and one text."""

    wanted: ClassVar[tuple[str, ...]] = (*TunerOptions.wanted, "decoding")


class ServeOptions(TunerOptions):
    """The same, and a server that offers it."""

    wanted: ClassVar[tuple[str, ...]] = (*TunerOptions.wanted, "serve")


class PriceOptions(Options):
    """What tokens cost."""

    wanted: ClassVar[tuple[str, ...]] = ("budget.prices",)


class CacheOptions(Options):
    """Where the answers are kept."""

    wanted: ClassVar[tuple[str, ...]] = ("cache.file",)


# -- answers, rows and what is printed --------------------------------------------------------------------------------

TextTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens of each text.")]
Missing = Annotated[str, typer.Option(help="Answers that the base does not show: backoff, floor, exclude or ask.")]
Normalise = Annotated[
    str, typer.Option(help="Divide answers of several tokens by their length: none, tokens or bytes.")
]
Concurrency = Annotated[int, typer.Option(help="Rows to ask at a time.")]
Limit = Annotated[int | None, typer.Option(help="The first so many rows only.")]
EngineName = Annotated[str, typer.Option("--engine", help="Where rows are asked: local (here) or ray (a cluster).")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


def checked_engine(name: str) -> str:
    """The engine's name. Raises InputError where there is none of it."""
    if name not in ("local", "ray"):
        raise InputError(f"unknown engine {name!r}", hint="Use local or ray.")
    return name
