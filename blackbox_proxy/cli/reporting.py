"""The command that looks at kept traces: `report`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blackbox_proxy.cli.app import app
from blackbox_proxy.cli.options import PriceOptions
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.errors import InputError
from blackbox_proxy.prices import Prices, prices_of
from blackbox_proxy.screen.console import Screen, say_json

if TYPE_CHECKING:
    from blackbox_proxy.report.overview import Overview
    from blackbox_proxy.trace import Trace


@app.command()
@takes(PriceOptions)
def report(
    traces: Annotated[list[Path], typer.Argument(help="What --trace wrote; the first one is shown in full.")],
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a page to this file.")] = None,
    parts: PriceOptions,
    candidates: Annotated[int, typer.Option(help="Candidates on the page for each token.")] = 8,
    tokens: Annotated[int, typer.Option(help="Show texts on the page up to so many tokens together.")] = 3000,
    as_json: Annotated[bool, typer.Option("--json", help="The analyses as one JSON object, for programs.")] = False,
) -> None:
    """See what the proxy did to a text, token by token, from a trace.

    Printed in short, or with -o as one HTML page that needs no network: every token coloured by how far it was moved
    and with its candidates, which tokens change most, calls and cost along the text, what another alpha would have
    changed, and whether the base showed enough. More traces, of other alphas, become points of that curve.

    The page holds the prompts and the texts in full, as the trace does.

    Examples:

        blackbox-proxy generate "Once upon a time" --trace trace.jsonl …

        blackbox-proxy report trace.jsonl -o report.html --prices 1.5e-6,1.5e-6,2e-6

        blackbox-proxy report alpha-1.jsonl alpha-0.5.jsonl alpha-2.jsonl -o report.html
    """
    if candidates < 1 or tokens < 1:
        raise InputError("--candidates and --tokens must be at least 1", hint="Leave them out for 8 and 3000.")
    from blackbox_proxy.report import html, overview, short
    from blackbox_proxy.trace import read_trace

    read = [(str(path), read_trace(path)) for path in traces]
    found = overview.overview(read, _prices(parts.prices, read[0][1]))
    if as_json:
        say_json(_plain(found))
    if output is not None:
        page = html.page(found, candidates=candidates, tokens=tokens).encode("utf-8", "replace")
        try:
            output.write_bytes(page)
        except OSError as error:
            raise InputError(f"{output} cannot be written: {error}", hint="Name another file.") from error
        written = f"{output}: {len(page) / 1000:.0f} kB, {found.summary.texts} texts, {found.summary.tokens} tokens"
        Screen(stderr=True).print(written, markup=False, highlight=False, soft_wrap=True)
    elif not as_json:
        short.show(Screen(), found)


def _prices(given: Prices | None, trace: Trace) -> Prices | None:
    """Those given, else those that the texts were decoded with, else none."""
    kept = trace.settings.get("prices")
    return given or (prices_of(kept) if isinstance(kept, str) else None)


def _plain(found: Overview) -> dict[str, Any]:
    """The analyses without the texts; what could not be measured is null."""
    names = ("kinds", "positions", "sides", "sweep", "runs")
    parts = {name: [asdict(one) for one in getattr(found, name)] for name in names}
    plain: dict[str, Any] = _finite({"summary": asdict(found.summary), **parts})
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
