"""What of an evaluation runs on Ray: tasks checked, and every system's answer to them.

An answer travels as the bytes of its object: both ends are this package in the same version.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow

from blackbox_proxy import tuner as tuners
from blackbox_proxy.cluster.engine import rebuilt
from blackbox_proxy.cluster.rows import LINES, Kept, Member, error_of, placed, settle
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.evaluation.run import Comparison, cached
from blackbox_proxy.evaluation.systems import Answered, Panel, System
from blackbox_proxy.evaluation.tasks import Kind, Task, kinds_of, task_of
from blackbox_proxy.opening import Setup
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.version import __version__

_FOUND = pyarrow.schema([("found", pyarrow.binary())])


@dataclass(frozen=True, kw_only=True)
class Bench:
    """An evaluation, as its workers know it. ceiling: the model that runs beside the base, by its name. starts, end:
    as of a `rows.Job`.
    """

    setup: Setup
    compared: Comparison
    starts: Mapping[str, int]
    end: int | None = None
    skip_bad: bool = False
    concurrency: int = 8
    version: str = __version__
    begun_in: str = field(default_factory=os.getcwd)

    def panel(self, tuner: ProxyTuner, kept: AsyncExitStack) -> Panel:
        """All systems. A base without a cache has one until `kept` is closed."""
        compared = self.compared
        if isinstance(compared.ceiling, str):
            compared = replace(compared, ceiling=self.setup.run_here(compared.ceiling))
        base = tuners.run(kept.enter_async_context(cached(tuner.base)))
        return compared.panel(tuner, base)

    def tasks(self, batch: Any, panel: Panel) -> Iterator[tuple[int, Task | str]]:
        """The tasks of a block by their indices, or why they cannot be used."""
        for index, place, record, reason in placed(batch, self.starts, self.end, named=True):
            try:
                if reason is not None:
                    raise InputError(reason)
                task = task_of(record, index, place)
                panel.check(task)
                yield index, task
            except InputError as error:
                yield index, f"{place}: {error}"


@dataclass(frozen=True, slots=True)
class Looked:
    """What checking tasks found: how many there are and of which kinds, the bad ones, and the systems that answer."""

    good: int
    kinds: tuple[Kind, ...]
    bad: tuple[tuple[int, str], ...]
    systems: tuple[System, ...]


class Looker:
    """Checks tasks with the models, and sends nothing."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._kept = AsyncExitStack()  # as long as this process lives
        self._error: BlackboxError | None = None
        try:
            settle(bench.version, bench.begun_in)
            self._panel = bench.panel(bench.setup.open(), self._kept)
        except BlackboxError as error:
            self._error = error

    def __call__(self, batch: Any) -> Any:
        looked = error_of(self._error) if self._error else self._looked(batch)
        return pyarrow.Table.from_pylist([{"found": pickle.dumps(looked)}], schema=_FOUND)

    def _looked(self, batch: Any) -> Looked:
        found = list(self._bench.tasks(batch, self._panel))
        tasks = [task for _, task in found if isinstance(task, Task)]
        bad = tuple((index, task) for index, task in found if isinstance(task, str))
        return Looked(len(tasks), kinds_of(tasks), bad, self._panel.systems)


def unpacked(told: bytes) -> Looked:
    """What a `Looker` has found. Raises what it was kept by."""
    found: Looked | tuple[str, str, str] = pickle.loads(told)
    if isinstance(found, tuple):
        raise rebuilt(*found)
    return found


class Judge:
    """Has every system answer tasks, several at a time."""

    def __init__(self, bench: Bench, desk: Any) -> None:
        self._bench = bench
        self._member = Member(bench.setup, desk)
        self._kept = AsyncExitStack()
        with self._member.telling():
            settle(bench.version, bench.begun_in)
            self._panel = bench.panel(self._member.open(), self._kept)

    def __call__(self, batch: Any) -> Any:
        with self._member.telling():
            found = [task for _, task in self._bench.tasks(batch, self._panel)]
            tasks: Sequence[Task] = [task for task in found if isinstance(task, Task)]
            if len(tasks) < len(found) and not self._bench.skip_bad:
                raise InputError("the tasks have changed while they were asked", hint="Run it again.")
            lines = tuners.run(self._member.lines(tasks, lambda task: task.index, self._one, self._bench.concurrency))
        return pyarrow.Table.from_pylist(
            [{"index": index, "line": line} for index, line in lines.items()], schema=LINES
        )

    async def _one(self, task: Task) -> Kept:
        found = await self._panel.answer(task)
        return Kept("", bool(found.errors), line_of(found), 0, found.usage)


def line_of(answered: Answered) -> bytes:
    """What the desk keeps of a task."""
    record = {"index": answered.task.index, "digest": "", "tokens": 0, "usage": asdict(answered.usage)}
    failed = {"error": None} if answered.errors else {}
    kept = base64.b64encode(pickle.dumps(answered)).decode()
    return json.dumps(record | failed | {"answered": kept}).encode() + b"\n"


def answered_in(line: bytes) -> Answered:
    """The same again."""
    found: Answered = pickle.loads(base64.b64decode(json.loads(line)["answered"]))
    return found
