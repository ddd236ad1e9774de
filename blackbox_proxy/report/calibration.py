"""Learned weights as a person looks at them: the weights, what they are worth on texts they were not fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from blackbox_proxy.calibration.asking import Plan
from blackbox_proxy.calibration.learning import Calibration, Compared
from blackbox_proxy.calibration.run import Told
from blackbox_proxy.prices import Prices
from blackbox_proxy.screen.tables import Table

_WAYS = {
    "scored": "each text is scored in one request",
    "along": "the base writes along each text: one request, and one after each token it would not have written",
    "choice": "each question takes one request of one token",
    "options": "each option is scored in one request",
}
_MEANS = {"q": "log q of the base", "tail": "where q is estimated", "rest": "everything on no list"}


class Watch:
    """What a calibration tells goes to `saw`."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("asking", total=None, figures="")

    def saw(self, told: Told) -> None:
        self._bar.update(self._task, total=told.total, completed=told.done, figures=f"{told.usage.api_calls} calls")


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Show how far it is, on a terminal; elsewhere nothing."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Watch(bar)


def plan_line(plan: Plan, prices: Prices | None) -> str:
    """What asking will take, at most."""
    usage = plan.usage
    cost = "" if prices is None else f", {prices.cost(usage):.4g} by --prices"
    return (
        f"At most {plan.requests} requests ({_WAYS[plan.way]}), {usage.prompt_tokens} prompt and "
        f"{usage.completion_tokens} output tokens{cost}; what the cache has is not asked again."
    )


def show(console: Console, found: Calibration) -> None:
    """The weights, the comparison, and what must be said."""
    console.print(_weights(found))
    choice = found.kind == "choice"
    what = ("questions", "the right options among all") if choice else ("texts", "the true token among the candidates")
    for title, systems in (
        (f"On {what[0]} that they were not fitted to: -log p of {what[1]}, nats", found.systems),
        ("On texts of another kind: -log p of what was right, nats", found.others),
    ):
        if systems:
            console.print(_systems(title, systems, found.confidence))
    for line in lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _weights(found: Calibration) -> Table:
    asked = f"{found.documents} questions"
    asked = asked if found.kind == "choice" else f"{found.places} places of {found.documents} documents"
    table = Table(title=f"Learned from {asked}, k = {found.shown}", box=SIMPLE_HEAD)
    for name in ("weight", "of", "value", f"{found.confidence:.0%} interval", "plain"):
        table.add_column(name, justify="left" if name in ("weight", "of") else "right")
    for name, value, plain in rows(found):
        low, high = found.intervals[name]
        what = _MEANS.get(name, f"log {name} of the {'expert' if name[0] == 'E' else 'anti-expert'}")
        table.add_row(f"w_{name}", what, f"{value:.3f}", f"{low:.3f} – {high:.3f}", f"{plain:g}")
    return table


def rows(found: Calibration) -> Iterator[tuple[str, float, float]]:
    """Each weight: its name, its value, and what it is in plain proxy-tuning with alpha 1."""
    weights = found.weights
    yield "q", weights.base, 1.0
    for i, (expert, antiexpert) in enumerate(zip(weights.experts, weights.antiexperts, strict=True)):
        number = "" if i == 0 else str(i + 1)
        yield f"E{number}", expert, 1.0
        if antiexpert is not None:
            yield f"A{number}", antiexpert, 1.0
    yield "tail", weights.tail, 0.0
    if "rest" in found.intervals:
        yield "rest", weights.rest, 0.0


def _systems(title: str, systems: tuple[Compared, ...], confidence: float) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD)
    interval = f"{confidence:.0%} interval"
    for name in ("", "nats", interval, "gain", interval, "p"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for each in systems:
        bounds = f"{each.low:.3f} – {each.high:.3f}"
        if each.name == "weights":
            table.add_row(each.name, f"{each.loss:.3f}", bounds, "", "", "")
        else:
            gains = f"{each.gain_low:+.3f} to {each.gain_high:+.3f}"
            table.add_row(each.name, f"{each.loss:.3f}", bounds, f"{each.gain:+.3f}", gains, f"{each.p:.3f}")
    return table


def lines(found: Calibration) -> Iterator[str]:
    """What must be said in words."""
    yield f"Best alpha {found.alpha:g}; pulled towards it with strength {found.strength:g}."
    if found.unlisted and found.kind == "choice":
        yield f"At {found.unlisted} questions, left out, the base shows no option, or nothing tells of the right one."
    elif found.unlisted:
        yield f"At {found.unlisted} places the true token was among no candidates: they say nothing of the weights."
    if found.tail is not None:
        spread, tail = found.weights.spread, found.tail
        yield (
            f"The hidden mass is spread with temperature {spread.temperature:g} and {spread.share:.0%} of the expert: "
            f"of the gain, that is {tail.gain:+.3f} nats ({tail.gain_low:+.3f} – {tail.gain_high:+.3f})."
        )
    if found.carries_over is False:
        lost = next(-each.gain for each in found.others if each.name == "alpha 1")
        yield f"They do not carry over: on the other texts they lose {lost:.3f} nats against alpha 1."
    if not found.better:
        yield "They are not better than alpha 1 and the best alpha beyond chance."


def record(found: Calibration) -> dict[str, Any]:
    """All of it as plain data."""
    learned = found.learned
    weights = {name: {"value": value, "interval": list(found.intervals[name])} for name, value, _ in rows(found)}
    return {
        "weights": weights,
        "rest": found.weights.rest,
        "spread": {"temperature": found.weights.spread.temperature, "share": found.weights.spread.share},
        "alpha": found.alpha,
        "strength": found.strength,
        "unlisted": found.unlisted,
        "calls": found.usage.api_calls,
        **learned.found,
        "for": dict(learned.models),
    }
