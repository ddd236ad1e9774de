"""What runs on Ray: files read into rows, rows checked, asked by workers, and their lines written in parts.

The rows, their checks and their answers are those of jobs/. A row travels as JSON, with the file and the number that it
has there, so that no reader of tables makes anything else of it.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import pyarrow
import ray
from ray.data import Datasink
from ray.data.datasource import FileBasedDatasource

from blackbox_proxy import tuner as tuners
from blackbox_proxy.background import side_by_side
from blackbox_proxy.cluster.budget import SharedBudget
from blackbox_proxy.cluster.engine import rebuilt
from blackbox_proxy.cluster.limits import SharedLimiter
from blackbox_proxy.cluster.manifest import Held, Manifest
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.jobs.estimate import Bounds, counter_of
from blackbox_proxy.jobs.inputs import Bad, Defaults, InputRow, checked_row, records_in
from blackbox_proxy.jobs.row import answer, reason_against
from blackbox_proxy.opening import Setup
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Usage
from blackbox_proxy.version import __version__

T = TypeVar("T")

_ROWS = pyarrow.schema(
    [
        ("file", pyarrow.string()),
        ("number", pyarrow.int64()),
        ("place", pyarrow.string()),
        ("record", pyarrow.string()),
        ("reason", pyarrow.string()),
    ]
)
LINES = pyarrow.schema([("index", pyarrow.int64()), ("line", pyarrow.binary())])
FOUND = pyarrow.schema([("found", pyarrow.string())])
_AT_ONCE = 1024  # rows that are read into one block
_OTHER_MODELS = "the workers do not agree on the models: one has found another tokenizer of the base"
_NAME_IT = "Name it with --tokenizer, in a place that every machine reads."


class Rows(FileBasedDatasource):  # type: ignore[misc]
    """The rows of files as jobs/ reads them."""

    def _open_input_source(self, filesystem: Any, path: str, **_: Any) -> Any:
        return filesystem.open_input_file(path)

    def _read_stream(self, f: Any, path: str) -> Iterator[Any]:
        rows: list[dict[str, Any]] = []
        suffix = posixpath.splitext(path)[1]
        for number, (place, record) in enumerate(records_in(io.BufferedReader(f), suffix, path)):
            row: dict[str, Any] = {"file": path, "number": number, "place": place, "record": None, "reason": None}
            try:
                row["record"] = json.dumps(record() if callable(record) else record, default=str)
            except InputError as error:
                row["reason"] = str(error)
            rows.append(row)
            if len(rows) == _AT_ONCE:
                yield pyarrow.Table.from_pylist(rows, schema=_ROWS)
                rows = []
        if rows:
            yield pyarrow.Table.from_pylist(rows, schema=_ROWS)


def counted(batch: Any) -> Any:
    """How many rows of each file a block has."""
    files = Counter(batch.column("file").to_pylist())
    return pyarrow.table({"file": list(files), "rows": list(files.values())})


def placed(
    batch: Any, starts: Mapping[str, int], end: int | None, *, named: bool
) -> Iterator[tuple[int, str, Any, str | None]]:
    """The rows of a block up to `end`: index, place in words (with the file's name if that is wished for), the record,
    and why there is none.
    """
    for row in batch.to_pylist():
        index = starts[row["file"]] + row["number"]
        if end is None or index < end:
            place = f"{posixpath.basename(row['file'])} {row['place']}" if named else row["place"]
            yield index, place, None if row["record"] is None else json.loads(row["record"]), row["reason"]


def settle(version: str, folder: str) -> None:
    """Be where the run was begun, if there is such a folder: names of models may be paths from there. Raises InputError
    where this machine has another version of this package.
    """
    with suppress(OSError):
        os.chdir(folder)
    if version != __version__:
        raise InputError(
            f"a machine of the cluster has blackbox-proxy {__version__}, and the run was begun by {version}",
            hint="Install the same version on all of them.",
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run, as its workers know it.

    starts: the index of the first row of each file. end: the index behind the last row that it is about, None for all.
    decoding: the options of rows that have none. settings: what texts depend on, once that is known; version: of this
    package; begun_in: the folder. manifest: where results go.
    """

    setup: Setup
    manifest: Manifest
    decoding: Mapping[str, Any]
    starts: Mapping[str, int]
    end: int | None = None
    skip_bad: bool = False
    fail_fast: bool = False
    concurrency: int = 8
    settings: Mapping[str, Any] | None = None
    version: str = __version__
    begun_in: str = field(default_factory=os.getcwd)

    def defaults(self, tuner: ProxyTuner) -> Defaults:
        """What holds for rows that say nothing else. Raises InputError where the models are not those of the check."""
        found = json.loads(json.dumps(self.setup.what_decides_the_text(tuner.base.vocabulary), default=str))
        if self.settings is not None and found != self.settings:
            raise InputError(_OTHER_MODELS, hint=_NAME_IT)
        return Defaults(**self.decoding, run=found)

    def rows(self, batch: Any, defaults: Defaults) -> Iterator[InputRow | Bad]:
        """The rows of a block, as far as the run is about them."""
        for index, place, record, reason in placed(batch, self.starts, self.end, named=len(self.starts) > 1):
            yield Bad(index, place, reason) if reason else checked_row(index, place, record, defaults)

    def check_here(self) -> None:
        """Raise InputError where this machine cannot be one of the run."""
        settle(self.version, self.begun_in)
        here = self.manifest.folder.here
        if here is not None and not (here / "_state").is_dir():
            raise InputError(
                f"{here} is not the same folder on every machine of the cluster",
                hint="Write to a folder that they share, or to a URL (s3://…).",
            )


@dataclass(slots=True)
class Checked:
    """What checking rows found. bad: index, place and reason; other: rows whose result in the parts is that of
    something else, with whether the prompt is the same; held, failed: rows that the parts have, and of them failures.
    """

    good: int = 0
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    other: list[tuple[int, str, bool]] = field(default_factory=list)
    held: int = 0
    failed: int = 0
    bounds: Bounds = field(default_factory=Bounds)
    counted_by: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def joined(self, other: Checked) -> Checked:
        """Both. Raises InputError where the workers found different models."""
        if self.settings and self.settings != other.settings:
            raise InputError(_OTHER_MODELS, hint=_NAME_IT)
        return Checked(
            self.good + other.good,
            self.bad + other.bad,
            self.other + other.other,
            self.held + other.held,
            self.failed + other.failed,
            self.bounds + other.bounds,
            other.counted_by,
            other.settings,
        )


def error_of(error: BlackboxError) -> tuple[str, str, str]:
    """What `engine.rebuilt` makes it from again."""
    return type(error).__name__, str(error), error.hint


class Checker:
    """Checks rows with the models, and sends nothing. held: what the parts have (a reference in a list).

    Of an error that keeps it from being one it tells like of what it finds: Ray would make a text of it.
    """

    def __init__(self, job: Job, held: Sequence[Any]) -> None:
        self._error: BlackboxError | None = None
        try:
            job.check_here()
            self._job = job
            self._held: Mapping[int, Held] = ray.get(held[0])
            self._tuner = job.setup.open()
            self._defaults = job.defaults(self._tuner)
            self._counted_by, self._count = counter_of(self._tuner)
        except BlackboxError as error:
            self._error = error

    def __call__(self, batch: Any) -> Any:
        told = json.dumps({"error": error_of(self._error)}) if self._error else self._looked(batch)
        return pyarrow.Table.from_pylist([{"found": told}], schema=FOUND)

    def _looked(self, batch: Any) -> str:
        found = Checked(counted_by=self._counted_by, settings=self._defaults.run)
        for row in self._job.rows(batch, self._defaults):
            reason = row.reason if isinstance(row, Bad) else reason_against(self._tuner, row)
            if reason is not None:
                found.bad.append((row.index, row.place, reason))
            elif isinstance(row, InputRow):
                found.good += 1
                self._look(row, found)
        return _packed(found)

    def _look(self, row: InputRow, found: Checked) -> None:
        held = self._held.get(row.index)
        if held is None:
            found.bounds.add(self._count(row), int(row.options["max_tokens"]))
        elif held.digest != row.digest:
            same = held.digest.partition("-")[0] == row.digest.partition("-")[0]
            found.other.append((row.index, row.place, same))
        else:
            found.held += 1
            found.failed += held.failed


def _packed(found: Checked) -> str:
    bounds = found.bounds
    told = {name: getattr(found, name) for name in ("good", "bad", "other", "held", "failed", "counted_by", "settings")}
    return json.dumps(told | {"bounds": [bounds.rows, bounds.prompts, bounds.outputs, bounds.again]}, default=str)


def unpacked(told: str) -> Checked:
    """What a `Checker` has found. Raises what it was kept by."""
    found = json.loads(told)
    if "error" in found:
        raise rebuilt(*found["error"])
    return Checked(**(found | {"bounds": Bounds(*found["bounds"])}))


class Reached:
    """The desk from a worker (see `limits.Asks`)."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def ask(self, name: str, *arguments: Any) -> Any:
        """What its method of this name answers. It is asked again where it had to be begun again."""
        try:
            return await getattr(self._actor, name).remote(*arguments)
        except ray.exceptions.RayError as error:
            raise BlackboxError(
                f"the desk of the run is not reached: {type(error).__name__}", hint="--resume goes on with the run."
            ) from error

    def tell(self, name: str, *arguments: Any) -> None:
        getattr(self._actor, name).remote(*arguments)


class Kept(NamedTuple):
    """What the desk keeps of a row: see `Desk.put`. error: what ended it, where the run is to end with it."""

    digest: str
    failed: bool
    line: bytes
    tokens: int
    usage: Usage
    error: BlackboxError | None = None


class Member:
    """What answers on one machine: the desk, and a tuner within the limits and the budget of all."""

    def __init__(self, setup: Setup, desk: Any) -> None:
        self.desk = Reached(desk)
        self._setup = setup

    def open(self) -> ProxyTuner:
        """The tuner. Raises InputError."""
        pays = None if self._setup.budget() is None else SharedBudget(self.desk, uuid.uuid4().hex)
        return self._setup.open(limiter=SharedLimiter(self.desk), pays=pays)

    async def lines(
        self, rows: Sequence[T], index: Callable[[T], int], one: Callable[[T], Awaitable[Kept]], concurrency: int
    ) -> dict[int, bytes]:
        """A line for every row: of those that another worker has answered before it died, the one it had."""
        lines: dict[int, bytes] = await self.desk.ask("have", [index(row) for row in rows])
        todo = iter([row for row in rows if index(row) not in lines])

        async def work() -> None:
            for row in todo:
                kept = await one(row)
                await self.desk.ask("put", index(row), *kept[:-1])
                lines[index(row)] = kept.line
                if kept.error is not None:
                    raise kept.error

        await side_by_side(work, min(concurrency, len(rows)))
        return lines

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Of an error of this package the desk is told before Ray makes a text of it."""
        try:
            yield
        except BlackboxError as error:
            tuners.run(self.desk.ask("stop", *error_of(error)))
            raise


class Worker:
    """Holds one tuner and answers rows, several at a time."""

    def __init__(self, job: Job, held: Sequence[Any], desk: Any) -> None:
        self._job = job
        self._member = Member(job.setup, desk)
        with self._member.telling():
            job.check_here()
            self._held: Mapping[int, Held] = ray.get(held[0])
            self._tuner = self._member.open()
            self._defaults = job.defaults(self._tuner)

    def __call__(self, batch: Any) -> Any:
        with self._member.telling():
            rows = [row for row in self._job.rows(batch, self._defaults) if self._wanted(row)]
            todo = [row for row in rows if isinstance(row, InputRow)]
            lines = tuners.run(self._member.lines(todo, lambda row: row.index, self._one, self._job.concurrency))
        return pyarrow.Table.from_pylist(
            [{"index": index, "line": line} for index, line in sorted(lines.items())], schema=LINES
        )

    def _wanted(self, row: InputRow | Bad) -> bool:
        if row.index in self._held:
            return False
        if isinstance(row, InputRow) and (not self._job.skip_bad or reason_against(self._tuner, row) is None):
            return True
        if self._job.skip_bad:
            return False
        raise InputError("the input has changed while it was run", hint="Run it again.")

    async def _one(self, row: InputRow) -> Kept:
        found = await answer(self._tuner, row)
        failed = found.error is not None
        ends = found.error if self._job.fail_fast else None
        return Kept(row.digest, failed, found.line, len(found.steps), found.usage, ends)


class Parts(Datasink[list[str]]):  # type: ignore[misc]
    """Lines into parts, each entered in the manifest once it is written."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[str]:
        lines = [line for block in blocks for line in block.column("line").to_pylist()]
        return [self._manifest.add(lines)] if lines else []
