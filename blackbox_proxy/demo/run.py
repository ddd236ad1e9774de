"""The demo from end to end: build the world, serve its base as a black box, ask every system the same, print the table.

The base answers from a process of its own, over HTTP, with the top 5 log probabilities and nothing else; "full
vocabulary" and the directly tuned base are what only a demo can show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from blackbox_proxy.demo.evaluate import KINDS, Figures, Task, gap_closed, row_of, tasks
from blackbox_proxy.demo.models import DemoModels, demo_models
from blackbox_proxy.demo.systems import BlackBox, answering_in_another_process, answers
from blackbox_proxy.demo.world import reports
from blackbox_proxy.screen.tables import Table

if TYPE_CHECKING:
    from blackbox_proxy.types import Generation, TailPolicy

SYSTEMS = {
    "base": "base",
    "expert": "expert alone",
    "truncate": "proxy, top 5, truncate",
    "backoff": "proxy, top 5, backoff",
    "full": "proxy, full vocabulary",
    "direct": "base tuned directly",
}
_BENCH_REPORTS = 16
_TITLES = {
    "base": "the black box before the news",
    "direct": "black box and news: tuned directly",
    "antiexpert": "small model before the news",
    "expert": "small model and news: the expert",
}


def bench_models(console: Console, cache: Path | None) -> tuple[tuple[str, str, str], list[str]]:
    """Base, expert and anti-expert of the demo, and the headlines of reports that no model has seen."""
    models = _built(console, cache)
    prompts = [report.prompt for report in reports(models.world, "test", count=_BENCH_REPORTS)]
    return (str(models.base), str(models.expert), str(models.antiexpert)), prompts


def run_demo(console: Console, *, cache: Path | None = None) -> list[Figures]:
    """Everything that `blackbox-proxy demo` does; the rows of its table. Raises ModelUnavailable, BaseError."""
    models = _built(console, cache)
    todo = tasks(models.world)
    with answering_in_another_process(models, todo) as others, BlackBox(models) as black_box, _bar(console) as progress:
        bar = progress.add_task("asking all systems", total=len(SYSTEMS))
        found = {"base": black_box.alone(todo)}
        progress.advance(bar)
        tails: tuple[TailPolicy, ...] = ("truncate", "backoff")
        tuned: dict[str, list[Generation]] = {}
        for tail in tails:
            tuned[tail] = black_box.tuned(todo, tail)
            found[tail] = answers(tuned[tail])
            progress.advance(bar)
        for name, answered in others.items():
            found[name] = answered.result()
            progress.advance(bar)
    rows = {key: row_of(title, models.world, todo, found[key]) for key, title in SYSTEMS.items()}
    console.print(table(rows, todo))
    _show_one(console, tuned["backoff"], todo, rows["base"])
    return list(rows.values())


def _built(console: Console, cache: Path | None) -> DemoModels:
    with _bar(console) as progress:
        bars = {}

        def told(stage: str, done: float) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(_TITLES[stage], total=1.0)
            progress.update(bars[stage], completed=done)

        return demo_models(cache, progress=told)


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress


def table(rows: Mapping[str, Figures], todo: Sequence[Task]) -> Table:
    """The rows as the terminal shows them: percentages, share of the gap closed, API calls per token."""
    base, ceiling = rows["base"], rows["direct"]
    made = Table(
        title="Right after the news, in %: questions about facts that changed and that did not, reports about a town",
        caption="gap closed: on changed facts, from the base to the base tuned directly (which only a demo can do)",
        title_justify="left",
        caption_justify="left",
    )
    made.add_column("system")
    for kind, title in (("changed", "changed"), ("unchanged", "unchanged"), ("free", "reports")):
        made.add_column(f"{title}\n({sum(task.kind == kind for task in todo)})", justify="right")
    made.add_column("gap\nclosed", justify="right")
    made.add_column("API calls\nper token", justify="right")
    for key, row in rows.items():
        closed = None if key in ("base", "direct") else gap_closed(row, base, ceiling, "changed")
        made.add_row(
            row.name,
            *(f"{100 * row.scores[kind]:.0f}" for kind in KINDS),
            "" if closed is None else f"{100 * closed:.0f} %",
            f"{row.calls_per_token:.2f}" if key in ("base", "truncate", "backoff") else "",
            style="bold" if key == "backoff" else None,
        )
    return made


def _show_one(console: Console, generations: Sequence[Generation], todo: Sequence[Task], base: Figures) -> None:
    """The report that the proxy changed most: what the black box writes, and what becomes of it, changes in colour."""
    from blackbox_proxy.report.terminal import coloured, cost_line, legend

    reports = [place for place, task in enumerate(todo) if task.kind == "free"]
    place = max(reports, key=lambda place: sum(step.changed for step in generations[place].steps))
    steps = list(generations[place].steps)
    console.print(Text(f"\n{todo[place].prompt.strip()}", style="bold"))
    console.print(Text("black box    ", style="dim") + Text(base.answers[place].text.strip()), highlight=False)
    console.print(Text("proxy-tuned  ", style="dim") + coloured(steps), highlight=False)
    console.print(legend())
    console.print(Text(cost_line(steps), style="dim"))
