"""The loop of a bulk run: check every row, then ask for one after the other, several at a time, and keep each result.

Nothing is spent before all rows are checked. Memory does not grow with the input: rows are read as they are needed,
results are written as they come, and in input order no row is begun more than a bounded window ahead of the oldest
that is not finished.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from blackbox_proxy import tuner as tuners
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.jobs.inputs import OPTIONS, Bad, Defaults, InputRow, Source, read_rows, source_name
from blackbox_proxy.jobs.outputs import Output
from blackbox_proxy.jobs.row import HOPELESS, Generates, answer, reason_against
from blackbox_proxy.jobs.shuffled import Shuffled
from blackbox_proxy.types import Prompt, Step, Usage

_AHEAD = 8  # rows in hand per worker, in input order
_SHOWN = 10  # bad rows that an error names
_SYNC_SECONDS = 1.0
_PATIENCE = 30.0  # seconds that an interrupted run has to put its files in order


class Keeps(Protocol):
    """Where the steps of a run's texts are kept, beside its results; a `TraceFile` is one."""

    def retain(self, done: Callable[[int], bool]) -> None:
        """Leave out what there is of rows that are not done: they are asked again."""
        ...

    def add(
        self,
        prompt: Prompt,
        steps: Sequence[Step],
        *,
        id: Any = None,
        row: int | None = None,
        error: BaseException | str | None = None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class JobReport:
    """How far a run is. total: rows that it is about, None until they are counted; done and failed: asked by this run;
    skipped: results that were there before; bad: rows left out (`bad_rows`: the first of them, in words). tokens,
    usage and seconds are those of this run; failed_before: of the skipped ones, those that are failures.
    """

    total: int | None = None
    done: int = 0
    failed: int = 0
    skipped: int = 0
    bad: int = 0
    tokens: int = 0
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    bad_rows: tuple[str, ...] = ()
    failed_before: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows a run is about, and in which order."""

    limit: int | None = None
    shuffle: int | None = None
    skip_bad: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What checking all rows found: how many there are, how many are bad, and how to read the good ones (again)."""

    total: int
    bad: int
    bad_rows: tuple[str, ...]
    rows: Callable[[], Iterator[InputRow]]


async def arun_job(
    tuner: Generates,
    source: Source,
    out: Path | str,
    *,
    concurrency: int = 8,
    ordered: bool = True,
    resume: bool = False,
    retry_failed: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
    shuffle: int | None = None,
    fail_fast: bool = False,
    skip_bad: bool = False,
    settings: Mapping[str, Any] | None = None,
    keep: Keeps | None = None,
    observe: Callable[[JobReport], None] | None = None,
    **decoding: Any,
) -> JobReport:
    """Decode every row of `source` into a JSON line of `out`, at most `concurrency` at a time.

    source: a .jsonl, .csv or .parquet file, or a sequence of prompts or rows. Rows are {"prompt": text} or {"messages":
    […]}, with "id" and options of their own if they have some; other fields come back under "input". ordered: lines in
    the order of the rows, else as they are finished. resume: go on with what is in `out`; nothing that is there is
    asked again, but with `retry_failed` failures are. limit: the first rows only; shuffle: in an order drawn from this
    seed. fail_fast: the first failure is raised, else a failure is a line with its reason. skip_bad: leave out rows
    that cannot be used, which are an error otherwise. settings: what texts depend on besides prompt and options, so
    that results of other settings are not gone on with; the tuner's own by default. keep: gets every text with its
    steps, each row once. observe: is told after every row.
    decoding: max_tokens, temperature, top_p, stop as in `agenerate`; seed (0 by default): of which a sampled row
    without one gets its own, so that a resumed run gives the same texts.

    Raises InputError before anything is spent, and what no further row would survive (`HOPELESS`); what is done stays.
    """
    _check_numbers(concurrency, limit)
    if retry_failed and not resume:
        raise InputError("failures are asked again only when a run goes on", hint="Give --resume with --retry-failed.")
    if resume and overwrite:
        raise InputError("a run is either gone on with or overwritten", hint="Give --resume or --overwrite, not both.")
    defaults = defaults_for(tuner, settings, decoding)
    choice = Choice(limit, shuffle, skip_bad)
    stopped = threading.Event()

    def prepare(open_files: ExitStack) -> tuple[Output, Found]:
        path = Path(out)
        if isinstance(source, (str, Path)) and path.exists() and Path(source).exists() and path.samefile(source):
            raise InputError(f"{path} is the input", hint="Write the results to another file.")
        output = Output(path, resume=resume, overwrite=overwrite, retry_failed=retry_failed, ordered=ordered)
        open_files.callback(output.close)
        checked = survey(tuner, source, output if resume else None, defaults, choice, stopped=stopped)
        return output, open_files.enter_context(checked)

    with ExitStack() as open_files:
        preparing = asyncio.ensure_future(asyncio.to_thread(prepare, open_files))
        try:
            output, found = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            stopped.set()
            await asyncio.gather(preparing, return_exceptions=True)  # a thread ends by itself only
            raise
        output.open()
        if keep is not None:
            keep.retain(output.done)
        return await _Job(tuner, output, found, concurrency, ordered, fail_fast, keep, observe).run()


def run_job(tuner: Generates, source: Source, out: Path | str, **options: Any) -> JobReport:
    """`arun_job` for callers without a loop. Ctrl-C leaves the files in order before it is raised."""
    ended = threading.Event()

    async def job() -> JobReport:
        try:
            return await arun_job(tuner, source, out, **options)
        finally:
            ended.set()

    try:
        return tuners.run(job())
    except KeyboardInterrupt:
        ended.wait(_PATIENCE)
        raise


def defaults_for(tuner: Generates, settings: Mapping[str, Any] | None, decoding: Mapping[str, Any]) -> Defaults:
    """The options of rows that have none, and what else their texts depend on."""
    unknown = sorted(decoding.keys() - set(OPTIONS))
    if unknown:
        raise TypeError(f"unknown options: {', '.join(unknown)}")
    given = {name: value for name, value in decoding.items() if value is not None}
    return Defaults(**given, run=_settings_of(tuner) if settings is None else settings)


def _settings_of(tuner: Generates) -> dict[str, Any]:
    """What a tuner says of itself that its texts depend on, in a form that is the same in the next process."""
    pairs = [repr(pair) if " at 0x" not in repr(pair) else type(pair).__name__ for pair in getattr(tuner, "pairs", ())]
    equation = getattr(tuner, "equation", None)
    said = {} if equation is None else {field.name: getattr(equation, field.name) for field in fields(equation)}
    alphas = [a if isinstance(a, (int, float)) else getattr(a, "__qualname__", "") for a in said.get("alphas", ())]
    base = getattr(getattr(tuner, "base", None), "name", "")
    weights = said.get("weights")
    learned = {"alphas": alphas, "weights": None if weights is None else asdict(weights)}
    return said | {"base": base, "pairs": pairs, **learned, "steer": getattr(tuner, "steer", "")}


def _check_numbers(concurrency: int, limit: int | None) -> None:
    if concurrency < 1:
        raise InputError(f"concurrency must be at least 1, not {concurrency}", hint="Leave it out for 8.")
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1 row, not {limit}", hint="Leave it out for all.")


# -- before ------------------------------------------------------------------------------------------------------------


@contextmanager
def survey(
    tuner: Generates,
    source: Source,
    output: Output | None,
    defaults: Defaults,
    choice: Choice,
    left: Callable[[InputRow], None] | None = None,
    stopped: threading.Event | None = None,
) -> Iterator[Found]:
    """Check all rows that a run is about, and what `output` has of them; `left` sees those that it has not.

    Raises InputError that names the bad rows, unless they are to be skipped. A shuffled source is kept row by row in a
    temporary file, to be read in any order.
    """
    _check_numbers(1, choice.limit)
    with Shuffled(choice.shuffle) as shuffled:
        total = bad = seen = 0
        named: list[str] = []

        def rows() -> Iterator[InputRow]:
            if choice.shuffle is not None:
                yield from shuffled.rows(choice.limit)
                return
            count = 0
            for row in read_rows(source, defaults):
                if count == choice.limit:
                    return
                if isinstance(row, InputRow) and (not choice.skip_bad or reason_against(tuner, row) is None):
                    count += 1
                    yield row
                elif not choice.skip_bad:
                    raise InputError(f"{source_name(source)} has changed while it was run", hint="Run it again.")

        complete = True
        for row in read_rows(source, defaults):
            if choice.shuffle is None and total == choice.limit:
                complete = False
                break
            if stopped is not None and stopped.is_set():
                break
            seen += 1
            reason = row.reason if isinstance(row, Bad) else reason_against(tuner, row)
            if reason is not None:
                bad += 1
                if len(named) < _SHOWN:
                    named.append(f"{row.place}: {reason}")
            elif isinstance(row, InputRow):
                total += 1
                shuffled.add(row)
                if choice.shuffle is None:
                    _tell(row, output, left)
        if bad and not choice.skip_bad:
            more = f"; and {bad - len(named)} more" if bad > len(named) else ""
            raise InputError(
                f"{bad} of the rows in {source_name(source)} cannot be used: {'; '.join(named)}{more}",
                hint="Repair them, or leave them out with --skip-bad. Nothing was sent.",
            )
        if total == 0:
            raise InputError(f"{source_name(source)} has no rows", hint='Give one {"prompt": "…"} a line.')
        if choice.shuffle is not None:
            total = min(total, choice.limit or total)
            for row in shuffled.rows(choice.limit):
                _tell(row, output, left)
        if complete and output is not None:
            output.check_rows(seen)
        yield Found(total, bad, tuple(named), rows)


def _tell(row: InputRow, output: Output | None, left: Callable[[InputRow], None] | None) -> None:
    if (output is None or not output.has(row)) and left is not None:
        left(row)


# -- while it runs -----------------------------------------------------------------------------------------------------


class _Job:
    """One run: workers that share the rows, the output, and the figures."""

    def __init__(
        self,
        tuner: Generates,
        output: Output,
        found: Found,
        concurrency: int,
        ordered: bool,
        fail_fast: bool,
        keep: Keeps | None,
        observe: Callable[[JobReport], None] | None,
    ) -> None:
        self._tuner = tuner
        self._output = output
        self._concurrency = concurrency
        self._ordered = ordered
        self._fail_fast = fail_fast
        self._keep = keep
        self._observe = observe
        self._start = time.monotonic()
        self._moved = asyncio.Event()
        self._rows = found.rows()
        self.report = JobReport(found.total, bad=found.bad, bad_rows=found.bad_rows, failed_before=output.failures)

    async def run(self) -> JobReport:
        todo = self._todo()
        tasks = [asyncio.create_task(self._work(todo)) for _ in range(self._concurrency)]
        ticks = asyncio.create_task(self._tick())
        try:
            finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in finished:
                task.result()
        finally:
            for task in (*tasks, ticks):
                task.cancel()
            await asyncio.gather(*tasks, ticks, return_exceptions=True)
            self._tell()
        return self.report

    def _todo(self) -> Iterator[tuple[int, InputRow]]:
        """The rows without a result, each with its turn in the file."""
        turn = 0
        for row in self._rows:
            if self._output.has(row):
                with self._moving():
                    turn += self._output.expect(turn, row)
                self._tell(skipped=1)
            else:
                yield turn, row
                turn += 1

    async def _work(self, todo: Iterator[tuple[int, InputRow]]) -> None:
        for turn, row in todo:
            while self._ordered and turn - self._output.moved >= self._concurrency * _AHEAD:
                await self._moved.wait()
            await self._one(turn, row)

    async def _one(self, turn: int, row: InputRow) -> None:
        try:
            found = await answer(self._tuner, row)
        except HOPELESS as error:
            self._trace(row, error.steps, error)
            raise
        try:
            self._trace(row, found.steps, found.error)
        finally:
            self._put(turn, row, found.line)
        self._tell(done=not found.error, failed=bool(found.error), tokens=len(found.steps), usage=found.usage)
        if found.error and self._fail_fast:
            raise found.error

    def _trace(self, row: InputRow, steps: Sequence[Step], error: BlackboxError | None = None) -> None:
        """Before the result: a row whose result is there is never asked again."""
        if self._keep is not None and steps:
            self._keep.add(row.prompt, steps, id=row.id, row=row.index, error=error)

    def _put(self, turn: int, row: InputRow, line: bytes) -> None:
        with self._moving():
            self._output.put(turn, row, line)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Wake those who wait for the window when the file has moved on."""
        before = self._output.moved
        yield
        if self._output.moved != before:
            self._moved.set()
            self._moved = asyncio.Event()

    def _tell(
        self, *, done: int = 0, failed: int = 0, skipped: int = 0, tokens: int = 0, usage: Usage | None = None
    ) -> None:
        old = self.report
        self.report = replace(
            old,
            done=old.done + done,
            failed=old.failed + failed,
            skipped=old.skipped + skipped,
            tokens=old.tokens + tokens,
            usage=old.usage + usage if usage else old.usage,
            seconds=time.monotonic() - self._start,
        )
        if self._observe is not None:
            self._observe(self.report)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            self._output.sync()
