"""The demo from end to end: build the world, serve its base as a black box, ask every system the same, print the table.

The base answers from a process of its own, over HTTP, with the top 5 log probabilities and nothing else; "full
vocabulary" and the directly tuned base are what only a demo can show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .evaluate import KINDS, Answer, Row, Task, gap_closed, row_of, tasks
from .models import DemoModels, demo_models

if TYPE_CHECKING:
    from blackbox_proxy.base.protocol import Base
    from blackbox_proxy.tuner import ProxyTuner
    from blackbox_proxy.types import Generation

TOP_LOGPROBS = 5
_LONGEST = 96  # tokens of an answer
_TITLES = {
    "base": "the black box before the news",
    "direct": "black box and news: tuned directly",
    "antiexpert": "small model before the news",
    "expert": "small model and news: the expert",
}


def run_demo(console: Console, *, cache: Path | None = None) -> list[Row]:
    """Everything that `blackbox-proxy demo` does; the rows of its table. Raises ModelUnavailable, BaseError."""
    from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, open_base
    from blackbox_proxy.serve.process import HostProcess
    from blackbox_proxy.tuner import run

    models = _built(console, cache)
    todo = tasks(models.world)
    with HostProcess(models.base, top_logprobs=TOP_LOGPROBS, served_model_name="black-box", threads=1) as host:
        black_box = open_base(
            "black-box",
            base_url=host.base_url,
            dialect="vllm",
            tokenizer=str(models.base),
            top_logprobs=TOP_LOGPROBS,
        )
        full = TransformersBase(models.base, device="cpu")
        pair = TransformersPair(str(models.expert), str(models.antiexpert), device="cpu")
        tuned: list[Generation] = []
        systems: list[tuple[str, Callable[[], list[Answer]]]] = [
            ("base", lambda: _alone(black_box, todo)),
            ("expert alone", lambda: _alone(TransformersBase(models.expert, device="cpu"), todo)),
            ("proxy, top 5, truncate", lambda: _tuned(ProxyTuner(black_box, pair, tail="truncate"), todo, [])),
            ("proxy, top 5, backoff", lambda: _tuned(ProxyTuner(black_box, pair, tail="backoff"), todo, tuned)),
            ("proxy, full vocabulary", lambda: _tuned(ProxyTuner(full, pair), todo, [])),
            ("base tuned directly", lambda: _alone(TransformersBase(models.direct, device="cpu"), todo)),
        ]
        rows: list[Row] = []
        with _bar(console) as progress:
            task = progress.add_task("asking", total=len(systems))
            for name, ask in systems:
                progress.update(task, description=name)
                rows.append(row_of(name, models.world, todo, ask()))
                progress.advance(task)
        console.print(table(rows, todo))
        _show_one(console, tuned, todo, rows[0])
        run(black_box.aclose())
    return rows


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


def _alone(base: Base, todo: Sequence[Task]) -> list[Answer]:
    """A model's own greedy answers: one draft each."""
    from blackbox_proxy.tuner import run
    from blackbox_proxy.types import Prefix

    async def one(task: Task) -> Answer:
        draft = await base.draft(Prefix(task.prompt), _LONGEST)
        tokens = [position.token for position in draft.positions]
        text = b"".join(token.bytes or b"" for token in tokens if not token.end).decode("utf-8", "ignore")
        return Answer(text, draft.usage.api_calls, len(tokens))

    async def everything() -> list[Answer]:
        limit = asyncio.Semaphore(4)

        async def within(task: Task) -> Answer:
            async with limit:
                return await one(task)

        return list(await asyncio.gather(*(within(task) for task in todo)))

    return run(everything())


def _tuned(tuner: ProxyTuner, todo: Sequence[Task], kept: list[Generation]) -> list[Answer]:
    """The tuned answers; the generations themselves are added to `kept`."""
    prompts = [task.prompt for task in todo]
    kept += tuner.generate_batch(prompts, max_tokens=_LONGEST, concurrency=4)
    return [Answer(g.text, g.usage.api_calls, len(g.steps)) for g in kept]


def table(rows: Sequence[Row], todo: Sequence[Task]) -> Table:
    """The rows as the terminal shows them: percentages, share of the gap closed, API calls per token."""
    base, ceiling = rows[0], rows[-1]
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
    for row in rows:
        closed = gap_closed(row, base, ceiling, "changed")
        own = row in (base, ceiling)
        over_http = row is base or "top 5" in row.name
        made.add_row(
            row.name,
            *(f"{100 * row.scores[kind]:.0f}" for kind in KINDS),
            "" if own or closed is None else f"{100 * closed:.0f} %",
            f"{row.calls_per_token:.2f}" if over_http else "",
            style="bold" if "backoff" in row.name else None,
        )
    return made


def _show_one(console: Console, generations: Sequence[Generation], todo: Sequence[Task], base: Row) -> None:
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
