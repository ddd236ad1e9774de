"""What a report is about: traces with their analyses, put together once for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from blackbox_proxy import analysis
from blackbox_proxy.analysis import Course, Group, Moved, Place, Summary, SweepPoint
from blackbox_proxy.errors import InputError
from blackbox_proxy.prices import Prices
from blackbox_proxy.trace import Trace, TracedText
from blackbox_proxy.types import Step


@dataclass(frozen=True, slots=True)
class View:
    """One text, measured."""

    number: int
    text: TracedText
    places: tuple[Place, ...] = field(repr=False)
    summary: Summary
    course: Course = field(repr=False)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.text.steps


@dataclass(frozen=True, slots=True)
class Run:
    """One trace among several: what it is called, its alpha, all its texts in one line."""

    name: str
    alpha: float | None
    summary: Summary


@dataclass(frozen=True, slots=True)
class Overview:
    """A report: the first trace in full, and every trace in one line (`runs`)."""

    name: str
    trace: Trace
    views: tuple[View, ...]
    summary: Summary
    kinds: tuple[Group, ...]
    positions: tuple[Group, ...]
    sides: tuple[Group, ...]
    moved: tuple[Moved, ...]
    sweep: tuple[SweepPoint, ...]
    runs: tuple[Run, ...]

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.trace.settings)


def overview(traces: Sequence[tuple[str, Trace]], prices: Prices | None = None) -> Overview:
    """Look at named traces, the first one in full. Raises InputError where that has no text."""
    name, first = traces[0]
    if not first.texts:
        raise InputError(f"{name} has no texts", hint="Decode one with --trace; a run that failed leaves none.")
    views = tuple(_view(number, text, prices) for number, text in enumerate(first.texts, 1))
    every = [view.places for view in views]
    places = [place for some in every for place in some]
    summary = analysis.summarise(every, prices)
    others = (Run(name, trace.alpha, _summary(trace, prices)) for name, trace in traces[1:])
    return Overview(
        name=name,
        trace=first,
        views=views,
        summary=summary,
        kinds=analysis.by_kind(places),
        positions=analysis.by_position(places),
        sides=analysis.by_side(places),
        moved=analysis.most_moved(every),
        sweep=analysis.sweep((step for view in views for step in view.steps), alpha=first.alpha),
        runs=(Run(name, first.alpha, summary), *others),
    )


def _view(number: int, text: TracedText, prices: Prices | None) -> View:
    places = _measured(text)
    return View(number, text, places, analysis.summarise([places], prices), analysis.course(places, prices))


def _summary(trace: Trace, prices: Prices | None) -> Summary:
    return analysis.summarise([_measured(text) for text in trace.texts], prices)


def _measured(text: TracedText) -> tuple[Place, ...]:
    prompt = text.prompt if isinstance(text.prompt, str) else ""
    return analysis.measure(text.steps, prompt, text.text)
