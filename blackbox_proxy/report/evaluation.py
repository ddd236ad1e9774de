"""An evaluation as a person looks at it: tables in the terminal and in Markdown, the curve of a sweep, plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from blackbox_proxy.evaluation.compare import Difference, Result, Table
from blackbox_proxy.evaluation.run import Evaluation, Progress
from blackbox_proxy.evaluation.sweep import Sweep
from blackbox_proxy.evaluation.systems import Answered, Outcome
from blackbox_proxy.screen.tables import Table as Drawn
from blackbox_proxy.types import Usage

_TITLES = {
    "choice": "Multiple choice: accuracy in %",
    "question": "Questions: exact match in %",
    "text": "Given text: bits per byte (less is better)",
}
_BAR = 28  # characters of the longest bar of a curve


class Watch:
    """What an evaluation tells goes to `saw`."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("checking the rows", total=None, figures="")

    def saw(self, told: Progress) -> None:
        figures = f"{told.usage.api_calls} calls" + (f", {told.failed} with errors" if told.failed else "")
        self._bar.update(self._task, description="asking", total=told.total, completed=told.done, figures=figures)


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Show how far an evaluation is, on a terminal; elsewhere nothing."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Watch(bar)


def show(console: Console, evaluation: Evaluation) -> None:
    """Tables, warnings, the curve of a sweep, and what it took."""
    for table in evaluation.tables:
        console.print(drawn(_title(table), quality(table, evaluation.confidence), [_style(r) for r in table.results]))
        costs = expense(table)
        # One request a row serves all alphas alike: only where they went their own ways there is something to tell.
        if costs[1] and (evaluation.sweep is None or table.kind == "question"):
            console.print(drawn("", costs, [None] * len(costs[1])))
        for warning in table.warnings:
            console.print(f"! {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if evaluation.sweep is not None:
        console.print(curve(evaluation.sweep), markup=False, highlight=False, soft_wrap=True)
        for line in (sweep_line(evaluation.sweep), *evaluation.sweep.notes):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for problem in problems(evaluation):
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    for line in (spent_line(evaluation), legend(evaluation)):
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


# -- the table --------------------------------------------------------------------------------------------------------


Columns = tuple[list[str], list[list[str]]]
"""Heads and rows of a table."""


def drawn(title: str, columns: Columns, styles: Sequence[str | None]) -> Drawn:
    """A table for the terminal."""
    made = Drawn(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False, padding=(0, 1))
    heads, lines = columns
    for place, head in enumerate(heads):
        made.add_column(head, justify="left" if place == 0 else "right")
    for line, style in zip(lines, styles, strict=True):
        made.add_row(*line, style=style)
    return made


def _style(result: Result) -> str | None:
    difference = result.to_base
    if result.system.role != "tuned" or difference is None or not difference.significant:
        return None
    return "green" if difference.value > 0 else "red"


def _title(table: Table) -> str:
    dropped = f", {table.dropped} left out for errors" if table.dropped else ""
    return f"{_TITLES[table.kind]}; {table.rows} rows{dropped}"


def quality(table: Table, confidence: float) -> Columns:
    """How good each system is."""
    shares = table.metric != "bits_per_byte"
    number = _percent if shares else _bits
    results = table.results
    sure = f"({confidence * 100:g} %)"
    return _kept(
        [
            ("system", [result.system.title for result in results]),
            (f"{table.metric.replace('_', ' ')} {sure}", [_figure(result, number) for result in results]),
            (f"better than base {sure}", [_gain(result.to_base, number) for result in results]),
            ("t-test p", [_p(d.t.p) if (d := result.to_base) and d.t else "" for result in results]),
            (
                "McNemar p" if shares else "bootstrap p",
                [_p(result.to_base.p) if result.to_base else "" for result in results],
            ),
            ("gap closed", [_closed(result.gap_closed) for result in results]),
            ("abstained", [str(result.abstained or "") for result in results]),
            ("errors", [str(result.errors or "") for result in results]),
        ]
    )


def expense(table: Table) -> Columns:
    """What each system that asks the base takes; every other one runs here."""
    results = [result for result in table.results if result.system.asks]
    return _kept(
        [
            ("what it took", [result.system.title for result in results]),
            ("calls alone", [str(result.requests or "") for result in results]),
            ("per token", [_ratio(result.requests_per_token) for result in results]),
            ("calls here", [str(result.usage.api_calls) for result in results]),
            ("prompt tokens", [str(result.usage.prompt_tokens) for result in results]),
            ("output tokens", [str(result.usage.completion_tokens) for result in results]),
            ("cost", [_money(result.cost) for result in results]),
        ]
    )


def _kept(columns: Sequence[tuple[str, list[str]]]) -> Columns:
    """Without columns that are empty throughout."""
    kept = [(head, cells) for head, cells in columns if any(cells)]
    return [head for head, _ in kept], [list(line) for line in zip(*(cells for _, cells in kept), strict=True)]


def _figure(result: Result, number: Any) -> str:
    return f"{number(result.value)} ({number(result.low)}–{number(result.high)})"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _bits(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _gain(difference: Difference | None, number: Any) -> str:
    if difference is None:
        return ""
    value, low, high = (_signed(number(part)) for part in (difference.value, difference.low, difference.high))
    return f"{value} ({low} to {high})"


def _signed(number: str) -> str:
    return number.replace("-", "−") if number.startswith("-") else f"+{number}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _closed(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _money(cost: float | None) -> str:
    return "" if cost is None else f"{cost:.4g}"


def legend(evaluation: Evaluation) -> str:
    """How to read the tables."""
    lines = [
        "All systems are compared on the same rows. better than base: difference on the same rows with its bootstrap "
        "interval; p values are not corrected for comparing several systems. calls alone: what the system needs by "
        "itself from an empty cache; calls here, tokens and cost: what was spent on it in this run, where everything "
        "that a system above it had asked was there already."
    ]
    if any(result.system.role in ("expert", "antiexpert") for table in evaluation.tables for result in table.results):
        lines.append("Expert and anti-expert run here and cost no calls.")
    return " ".join(lines)


def spent_line(evaluation: Evaluation) -> str:
    """What the whole run took."""
    usage = evaluation.usage
    cost = "" if evaluation.prices is None else f", cost {evaluation.prices.cost(usage):.4g}"
    cached = f", {usage.cached_positions} positions from the cache" if usage.cached_positions else ""
    retries = f", {usage.retries} retries" if usage.retries else ""
    return (
        f"{len(evaluation.rows)} rows in {evaluation.seconds:.1f} s; {usage.api_calls} API calls, "
        f"{usage.prompt_tokens} prompt + {usage.completion_tokens} output tokens billed{cost}{cached}{retries}"
    )


def problems(evaluation: Evaluation) -> list[str]:
    """What went wrong or was left out, in words."""
    found = [f"left out: {row}" for row in evaluation.bad]
    for table in evaluation.tables:
        found += [f"error on {count} of the rows: {reason}" for reason, count in table.reasons.items()]
    return found


# -- the sweep --------------------------------------------------------------------------------------------------------


def curve(sweep: Sweep) -> str:
    """The metric over alpha, a bar each from the worst value to the best; the picked one is marked."""
    shares = sweep.metric != "bits_per_byte"
    number = _percent if shares else _bits
    finite = [point.value for point in sweep.points if math.isfinite(point.value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    lines = [f"{'alpha':>7}  {sweep.metric.replace('_', ' ')}"]
    for point in sweep.points:
        filled = 1 + round((_BAR - 1) * _share(point.value, low, high)) if math.isfinite(point.value) else 0
        mark = "  ← best" if point == sweep.best else ""
        interval = f"({number(point.low)}–{number(point.high)})"
        lines.append(f"{point.alpha:7g}  {number(point.value):>7} {'█' * filled:<{_BAR}} {interval}{mark}")
    return "\n".join(lines)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 1.0


def sweep_line(sweep: Sweep) -> str:
    """What the sweep picked and what it took."""
    took = f"{sweep.requests} calls for {len(sweep.points)} alphas"
    took += (
        f", {sweep.relative_requests:.2f} times the {sweep.single} of one alpha by itself"
        if sweep.requests
        else " (everything came from the cache)"
    )
    return f"Picked alpha {sweep.best.alpha:g} by {sweep.metric.replace('_', ' ')}; {took}."


# -- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(evaluation: Evaluation) -> str:
    """Everything that is printed, as Markdown."""
    parts: list[str] = []
    for table in evaluation.tables:
        parts.append(f"**{_title(table)}**")
        for heads, lines in (quality(table, evaluation.confidence), expense(table)):
            if lines:
                rule = [":--", *("--:" for _ in heads[1:])]
                parts.append("\n".join(_line(cells) for cells in (heads, rule, *lines)))
        parts += ["- " + warning.replace("<", "\\<") for warning in table.warnings]
    if evaluation.sweep is not None:
        parts.append("```\n" + curve(evaluation.sweep) + "\n```")
        parts.append(" ".join([sweep_line(evaluation.sweep), *evaluation.sweep.notes]))
    parts.append(legend(evaluation))
    parts.append(spent_line(evaluation))
    parts += [f"- {problem}" for problem in problems(evaluation)]
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# -- plain data -------------------------------------------------------------------------------------------------------


def record(evaluation: Evaluation, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything as plain data for JSON; numbers that are not finite are null. settings: what it was run with."""
    found = {
        "settings": settings or {},
        "confidence": evaluation.confidence,
        "tables": [_table(table) for table in evaluation.tables],
        "sweep": None if evaluation.sweep is None else _sweep(evaluation.sweep),
        "usage": asdict(evaluation.usage),
        "cost": None if evaluation.prices is None else evaluation.prices.cost(evaluation.usage),
        "seconds": evaluation.seconds,
        "bad_rows": list(evaluation.bad),
        "rows": [_row(row) for row in evaluation.rows],
    }
    cleaned: dict[str, Any] = _finite(found)
    return cleaned


def _table(table: Table) -> dict[str, Any]:
    return {
        "kind": table.kind,
        "metric": table.metric,
        "rows": table.rows,
        "dropped": table.dropped,
        "reasons": dict(table.reasons),
        "ceiling": table.ceiling,
        "systems": [
            {"system": result.system.key, "title": result.system.title, **asdict(result)}
            | {"system": result.system.key}
            for result in table.results
        ],
        "warnings": list(table.warnings),
    }


def _sweep(sweep: Sweep) -> dict[str, Any]:
    return {**asdict(sweep), "relative_requests": sweep.relative_requests}


def _row(row: Answered) -> dict[str, Any]:
    task = row.task
    return {
        "place": task.place,
        "id": task.id,
        "kind": task.kind,
        "options": [option.strip() for option in task.options],
        "right": [task.options[place].strip() for place in task.right] or list(task.answers),
        "systems": {key: _outcome(outcome) for key, outcome in row.outcomes.items()},
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    """Without what is empty, but the value, and an end of the text in place of an option."""
    found = {name: value for name, value in asdict(outcome).items() if value not in ("", 0, (), False, None)}
    if outcome.instead is not None:
        found["instead"] = outcome.instead
    found.pop("usage")
    spent = {name: count for name, count in asdict(outcome.usage).items() if count}
    return {"value": outcome.value, **found, **({"usage": spent} if outcome.usage != Usage() else {})}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
