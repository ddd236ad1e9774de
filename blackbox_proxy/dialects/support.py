"""What works with which server, a table made from the dialects: pure, for `blackbox-proxy dialects` and README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blackbox_proxy.dialects.table import DIALECTS, Api, Dialect

HEADER = (
    "Dialect",
    "API",
    "Top k",
    "Prefix sent as",
    "Candidates known by",
    "Streams",
    "Scores given text",
    "Names tokens",
    "Bias",
    "Log probabilities",
    "What works",
    "Evidence",
)

_AFTER = {None: "not known", "nothing": "the model's own", "bias": "after bias", "temperature": "after temperature"}


def rows() -> Iterator[tuple[str, ...]]:
    """A row for each API of each dialect, in the order of `HEADER`."""
    for dialect in DIALECTS.values():
        for api in dialect.apis:
            yield _row(dialect, api)


def _row(dialect: Dialect, api: Api) -> tuple[str, ...]:
    k = dialect.limit(api)
    ids = api == "completions" and dialect.prefix == "ids"
    echo = api == "completions" and dialect.echo is not None
    return (
        dialect.name,
        api,
        "the server's limit" if k is None else str(k),
        _prefix(dialect, api),
        "id" if dialect.ids_out or dialect.ids_shown else "text",
        _mark(dialect.streams),
        ("also in a stream" if dialect.echo_streams else "yes") if echo else "no",
        f"up to {dialect.named_limit}" if dialect.named is not None else "no",
        f"up to {dialect.bias_keys}" if dialect.bias_keys else "no",
        _AFTER[dialect.shown_after],
        _works(dialect, api, ids=ids),
        dialect.evidence,
    )


def _prefix(dialect: Dialect, api: Api) -> str:
    if not dialect.continues(api):
        return "cannot"
    return "ids" if api == "completions" and dialect.prefix == "ids" else "text"


def _works(dialect: Dialect, api: Api, *, ids: bool) -> str:
    if not dialect.continues(api):
        return "single tokens, choose"
    sampled = "" if dialect.draws else "; sampling token by token"
    if not dialect.tells_parts:
        return f"exact where no token ends inside a character{sampled}"
    return f"{'exact' if ids else 'exact at whole characters'}{sampled}"


def _mark(value: bool) -> str:
    return "yes" if value else "no"


def markdown() -> str:
    """The table for a README, without a line end behind it."""
    lines = [HEADER, tuple("---" for _ in HEADER), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text() -> str:
    """The same in aligned columns."""
    lines: list[Sequence[str]] = [HEADER, *rows()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
