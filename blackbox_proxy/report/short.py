"""A report in the terminal: the text in colours, and the page's figures in a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from rich.console import Console, RenderableType
from rich.text import Text

from blackbox_proxy.analysis import Group as Places
from blackbox_proxy.report import terminal
from blackbox_proxy.report.numbers import money, num, percent, signed
from blackbox_proxy.report.overview import Overview, View
from blackbox_proxy.report.sections import advice
from blackbox_proxy.screen.tables import Table
from blackbox_proxy.screen.visible import quoted, visible

_TEXTS = 3  # texts that are printed
_MOVED = 6
_LEVELS = " ▁▂▃▄▅▆▇█"
_WIDTH = 60  # signs of a line along a text


def show(console: Console, overview: Overview) -> None:
    """Print it; the page has the candidates."""
    for part in _parts(overview):
        console.print(part, highlight=False)


def _parts(overview: Overview) -> Iterator[RenderableType]:
    summary = overview.summary
    for view in overview.views[:_TEXTS]:
        yield Text(f"Text {view.number}: {view.summary.tokens} tokens", style="bold")
        yield _coloured(view)
        yield _along(view)
        yield ""
    if len(overview.views) > _TEXTS:
        yield Text(f"… and {len(overview.views) - _TEXTS} more texts, counted below\n", style="dim")
    yield terminal.legend()
    yield ""
    whole, usage = summary.overall, summary.usage
    cost = f", cost {money(summary.cost)}" if summary.cost is not None else ""
    yield Text(
        f"{summary.tokens} tokens: {percent(whole.changed)} changed, {percent(whole.beyond)} from beyond what the base "
        f"showed; p is {num(whole.distance)} from q on average\n"
        f"{usage.api_calls} API calls ({summary.calls_per_token:.2f} per token){cost}; {percent(summary.drafted)} of "
        f"tokens accepted from a draft; the base showed {percent(summary.covered_mass)} of its probability"
    )
    for line in advice(overview):
        yield Text(f"! {line}", style="yellow")
    yield ""
    for title, name, groups in (
        ("By kind of token", "kind", overview.kinds),
        ("By place in the text", "token", overview.positions),
        ("In equations", "side", overview.sides),
    ):
        if groups:
            yield _groups(title, name, groups)
            yield ""
    raised = ", ".join(
        f"{quoted(one.token, end=one.end)} {signed(one.shift)} (×{one.count})" for one in overview.moved[:_MOVED]
    )
    if raised:
        yield Text.assemble(("Raised most: ", "bold"), raised, "\n")
    if overview.sweep:
        yield _alphas(overview)


def _coloured(view: View) -> Text:
    text = Text()
    for place, step in zip(view.places, view.steps, strict=True):
        shown = "" if place.end else visible(place.token, breaks=True).replace("⏎\n", "\n")
        text.append(shown, style=terminal.step_style(step) or None)
    return text


def _along(view: View) -> Table:
    """Two lines of blocks: how far each stretch of the text was moved, and how much the base showed of it."""
    some = [place for place in view.places if place.chosen is not None]
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_row(Text("distance", style="dim"), _blocks([place.distance for place in some]))
    table.add_row(Text("covered", style="dim"), _blocks([place.covered_mass for place in some]))
    return table


def _blocks(values: list[float]) -> str:
    """Values from 0 to 1 as a line of blocks, each the mean of its stretch."""
    count = min(len(values), _WIDTH)
    edges = [len(values) * i // count for i in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    return "".join(_LEVELS[min(8, int(8 * mean + 0.5))] for mean in means)


def _groups(title: str, name: str, groups: Iterable[Places]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(name)
    for column in ("tokens", "distance", "shift", "changed"):
        table.add_column(column, justify="right")
    for one in groups:
        table.add_row(one.name, str(one.tokens), num(one.distance), signed(one.shift), percent(one.changed))
    return table


def _alphas(overview: Overview) -> Table:
    """The curve at a few alphas, and the traces that were really decoded."""
    alpha = overview.trace.alpha
    table = Table(
        title="Another alpha, along the text as it stands",
        title_justify="left",
        caption="decoded: traces given here" if len(overview.runs) > 1 else None,
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("alpha" if alpha is not None else "× alpha")
    for column in ("changed", "as the text", "distance"):
        table.add_column(column, justify="right")
    for point in overview.sweep[::4]:
        table.add_row(
            f"{point.scale * (alpha or 1.0):g}", percent(point.changed), percent(point.kept), num(point.distance)
        )
    if len(overview.runs) > 1:
        for run in overview.runs:
            whole, named = run.summary.overall, "?" if run.alpha is None else f"{run.alpha:g}"
            table.add_row(f"{named} decoded", percent(whole.changed), "", num(whole.distance))
    return table
