"""All systems on all tasks, several rows at a time: `evaluate`.

Nothing is spent before every row is checked. What was asked once is asked no more within a run: bases without a cache
get one for its length. With a cache of the user's, a run that was stopped goes on where it was when it is begun again.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from blackbox_proxy import tuner as tuners
from blackbox_proxy.answers import choices
from blackbox_proxy.background import side_by_side
from blackbox_proxy.base.cache.base import CachedBase
from blackbox_proxy.base.cache.store import Store
from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.decoding.text import Limits
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.evaluation.compare import Table, table_of, warnings_of
from blackbox_proxy.evaluation.sweep import Sweep, sweep_of
from blackbox_proxy.evaluation.systems import ROLES, Answered, Panel, Role, System, Way
from blackbox_proxy.evaluation.tasks import METRICS, Kind, Metric, Source, Task, kinds_of, read_tasks
from blackbox_proxy.maths.equation import alpha_at
from blackbox_proxy.prices import Prices
from blackbox_proxy.protocols import Base
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Usage

_HINT = f"Use some of {', '.join(ROLES)}."


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is: rows done of all, those of them with an error, and what was spent."""

    total: int
    done: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was found. tables: one for each kind of task; rows: every task with every outcome; bad: rows of
    the file that were left out, in words; usage: what was spent in all.
    """

    tables: tuple[Table, ...]
    rows: tuple[Answered, ...]
    bad: tuple[str, ...]
    usage: Usage
    seconds: float
    confidence: float
    prices: Prices | None = None
    sweep: Sweep | None = None

    @property
    def failed(self) -> int:
        """Rows that at least one system has no result for."""
        return sum(bool(row.errors) for row in self.rows)

    def table(self, kind: Kind) -> Table:
        """The table of one kind of task. KeyError where there was none."""
        return {table.kind: table for table in self.tables}[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared and how its figures are made: the arguments of `aevaluate` of these names. Can be sent to other
    machines where the ceiling is no open model.
    """

    alphas: Sequence[float] | None = None
    systems: Sequence[Role] | None = None
    ceiling: str | Path | TransformersBase | None = None
    ceiling_value: float | None = None
    sweep: Sequence[float] | None = None
    metric: Metric | None = None
    max_tokens: int = 32
    stop: str | Sequence[str] = ("\n",)
    rule: choices.Rule | None = None
    prices: Prices | None = None
    confidence: float = 0.95
    seed: int = 0

    def check(self, concurrency: int) -> None:
        """Raise InputError for what cannot be, whatever the models."""
        if concurrency < 1:
            raise InputError(f"concurrency must be at least 1, not {concurrency}", hint="Leave it out for 8.")
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, not {self.max_tokens}", hint="Leave it out for 32.")
        if not 0 < self.confidence < 1:
            raise InputError(
                f"confidence must lie between 0 and 1, not {self.confidence}", hint="Leave it out for 0.95."
            )
        if not all(self._stops):
            raise InputError("a stop string is empty", hint="Leave out stop for the end of the line.")

    @property
    def _stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def wanted(self, tuner: ProxyTuner) -> list[System]:
        """The lines of the table, in its order. Raises InputError for what is no system or no alpha."""
        alphas = self.alphas if self.sweep is None else self.sweep
        found = _systems(tuner, alphas, self.systems, self.sweep is not None)
        return found if self.ceiling is None else [*found, System("ceiling")]

    def panel(self, tuner: ProxyTuner, base: Base) -> Panel:
        """All systems, with the models open. Raises InputError."""
        ceiling = self.ceiling
        if ceiling is not None and not isinstance(ceiling, TransformersBase):
            ceiling = TransformersBase(ceiling)
        way = Way(tuner, Limits(self.max_tokens, self._stops), self.rule or choices.Rule())
        return Panel(base, self.wanted(tuner), way, ceiling)

    def swept(self, kinds: Sequence[Kind]) -> Kind | None:
        """The kind of task that a sweep goes by. Raises InputError where that is not clear."""
        return _swept_kind(kinds, self.metric, self.ceiling_value, self.sweep is not None)

    def evaluation(
        self, wanted: Sequence[System], rows: Sequence[Answered], bad: Sequence[str], seconds: float
    ) -> Evaluation:
        """The figures of all rows that were answered, in their order. Raises BlackboxError where none has a result."""
        if all(row.errors for row in rows):
            reason = next(iter(rows[0].errors.values()))
            raise BlackboxError(
                f"no row has a result from every system; of {rows[0].task.place}: {reason}",
                hint="Leave out the system that fails, or repair what the reason says.",
            )
        kinds = kinds_of(row.task for row in rows)
        tables = tuple(
            table_of(
                kind,
                rows,
                wanted,
                ceiling_value=self.ceiling_value,
                prices=self.prices,
                confidence=self.confidence,
                seed=self.seed,
            )
            for kind in kinds
        )
        usage = sum((row.usage for row in rows), Usage())
        chosen = None
        swept = self.swept(kinds)
        if swept is not None:
            spent = sum((row.usage for row in rows if row.task.kind == swept), Usage())
            chosen = sweep_of(next(table for table in tables if table.kind == swept), spent.api_calls)
            alpha = chosen.best.alpha
            tables = tuple(replace(table, warnings=tuple(warnings_of(table, alpha))) for table in tables)
        return Evaluation(tables, tuple(rows), tuple(bad), usage, seconds, self.confidence, self.prices, chosen)


async def aevaluate(
    tuner: ProxyTuner,
    source: Source,
    *,
    alphas: Sequence[float] | None = None,
    systems: Sequence[Role] | None = None,
    ceiling: str | Path | TransformersBase | None = None,
    ceiling_value: float | None = None,
    sweep: Sequence[float] | None = None,
    metric: Metric | None = None,
    max_tokens: int = 32,
    stop: str | Sequence[str] = ("\n",),
    rule: choices.Rule | None = None,
    concurrency: int = 8,
    limit: int | None = None,
    skip_bad: bool = False,
    prices: Prices | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    observe: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Ask every system every task and compare them.

    tuner: what is compared, with all its settings; alphas: of the proxy-tuned systems, the tuner's own by default; its
    learned weights are one line more. systems: some of "base", "expert", "antiexpert", "tuned" (all that there are by
    default). ceiling: the base tuned directly, a model that runs here; ceiling_value: its figure, where only that is
    known. sweep: alphas to choose from by `metric` (which need not be given where all tasks are of one kind), in place
    of `alphas`.
    max_tokens, stop: of answers in text, for tasks that have none of their own. rule: of multiple choice (see
    `choices`). concurrency: rows at a time. limit: the first rows only. skip_bad: leave out rows that cannot be used.
    prices: of one token. confidence: of the intervals, and of what is called significant. seed: of the bootstrap.
    observe: is told after each row.

    Raises InputError before anything is spent; what no further row would survive; and the first row's error where
    every row has one.
    """
    compared = Comparison(
        alphas=alphas,
        systems=systems,
        ceiling=ceiling,
        ceiling_value=ceiling_value,
        sweep=sweep,
        metric=metric,
        max_tokens=max_tokens,
        stop=stop,
        rule=rule,
        prices=prices,
        confidence=confidence,
        seed=seed,
    )
    compared.check(concurrency)
    if ceiling is not None and not isinstance(ceiling, TransformersBase):
        compared = replace(compared, ceiling=TransformersBase(ceiling))
    wanted = compared.wanted(tuner)
    async with cached(tuner.base) as base:
        panel = compared.panel(tuner, base)
        tasks = await asyncio.to_thread(read_tasks, source, skip_bad=skip_bad, check=panel.check, limit=limit)
        compared.swept(tasks.kinds)
        start = time.perf_counter()
        rows = await _answer(panel, tasks.rows, concurrency, observe)
        seconds = time.perf_counter() - start
    return compared.evaluation(wanted, rows, tasks.bad, seconds)


def evaluate(tuner: ProxyTuner, source: Source, **options: Any) -> Evaluation:
    """`aevaluate` for callers without a loop."""
    return tuners.run(aevaluate(tuner, source, **options))


# -- before -----------------------------------------------------------------------------------------------------------


def _systems(
    tuner: ProxyTuner, alphas: Sequence[float] | None, roles: Sequence[Role] | None, sweep: bool
) -> list[System]:
    has_antiexpert = tuner.pairs[0].has_antiexpert
    given = roles if roles is not None else [role for role in ROLES if role != "antiexpert" or has_antiexpert]
    unknown = [role for role in given if role not in ROLES]
    if unknown or not given:
        raise InputError(f"unknown system {unknown[0]!r}" if unknown else "there are no systems", hint=_HINT)
    if alphas is None:
        own = [alpha for alpha in tuner.equation.alphas if not callable(alpha)]
        if not own:
            raise InputError("a schedule cannot be compared", hint="Give alphas.")
        alphas = own[:1]
    values = sorted({alpha_at(alpha, 0) for alpha in alphas})
    if sweep and "tuned" not in given:
        raise InputError("a sweep is about the tuned system", hint="Leave it among the systems.")
    found = [System(role) for role in ROLES if role in given and role != "tuned"]
    if "tuned" in given:
        if not values:
            raise InputError("there is no alpha", hint="Give at least one, or leave tuned out of the systems.")
        found += [System("tuned", alpha) for alpha in values]
        if tuner.equation.weights is not None:
            found.append(System("tuned", weights=tuner.equation.weights))
    return found


def _swept_kind(found: Sequence[Kind], metric: Metric | None, ceiling_value: float | None, sweep: bool) -> Kind | None:
    kinds = {METRICS[kind]: kind for kind in found}
    if ceiling_value is not None and (len(kinds) > 1 or not math.isfinite(ceiling_value)):
        raise InputError(
            "a ceiling's value is one finite number, for tasks of one kind",
            hint=f"This file has {', '.join(kinds)}: split it, or give the ceiling as a model.",
        )
    if metric is not None and metric not in get_args(Metric):
        raise InputError(f"unknown metric {metric!r}", hint=f"Use one of {', '.join(get_args(Metric))}.")
    if metric is not None and metric not in kinds:
        raise InputError(f"no task is measured by {metric}", hint=f"These are: {', '.join(kinds)}.")
    if not sweep:
        return None
    if metric is None and len(kinds) > 1:
        raise InputError(
            f"tasks are measured by {' and '.join(kinds)}: which is to be the best?", hint="Give --metric."
        )
    return kinds[metric] if metric is not None else next(iter(kinds.values()))


@asynccontextmanager
async def cached(base: Base) -> AsyncIterator[Base]:
    """The base; one behind an API with a cache for the length of the run, if it has none."""
    inner: Any = base
    while isinstance(inner, BaseAround) and not isinstance(inner, CachedBase):
        inner = inner.base
    if isinstance(inner, (CachedBase, TransformersBase)):
        yield base
        return
    with tempfile.TemporaryDirectory(prefix="blackbox-proxy-eval-") as folder:
        store = Store(Path(folder) / "cache")
        try:
            yield CachedBase(base, store)
        finally:
            await asyncio.to_thread(store.close)


# -- while it runs ----------------------------------------------------------------------------------------------------


async def _answer(
    panel: Panel, tasks: Sequence[Task], concurrency: int, observe: Callable[[Progress], None] | None
) -> list[Answered]:
    """Every task's row, in order."""
    found: dict[int, Answered] = {}
    todo = iter(enumerate(tasks))
    told = Progress(len(tasks))

    async def work() -> None:
        nonlocal told
        for place, task in todo:
            row = await panel.answer(task)
            found[place] = row
            told = Progress(told.total, told.done + 1, told.failed + bool(row.errors), told.usage + row.usage)
            if observe is not None:
                observe(told)

    if observe is not None:
        observe(told)
    await side_by_side(work, min(concurrency, len(tasks)))
    return [found[place] for place in range(len(tasks))]
