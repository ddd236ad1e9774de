"""A bulk run on Ray, from the machine that begins it: `run_on_cluster`.

All rows are checked first, by workers that send nothing; then they are asked. A killed worker or machine costs the
requests that were under way there: what it had answered is in the journal, and whoever does its rows again finds it. A
run whose beginner is killed goes on with what parts and journal hold.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from blackbox_proxy.cluster.desk import Desk, Terms, Told
from blackbox_proxy.cluster.engine import Engine, at_heart, installed, rebuilt, started
from blackbox_proxy.cluster.folder import Folder
from blackbox_proxy.cluster.formats import Format
from blackbox_proxy.cluster.journal import Journal
from blackbox_proxy.cluster.manifest import Held, Manifest
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.jobs.estimate import Estimate
from blackbox_proxy.jobs.inputs import Defaults, reader_of
from blackbox_proxy.jobs.outputs import locked
from blackbox_proxy.jobs.run import JobReport
from blackbox_proxy.opening import Setup

_SHOWN = 10  # bad rows that an error names
_LOOK_SECONDS = 0.5
_FEW = 0.1  # CPUs of what reads and writes


def run_on_cluster(
    setup: Setup,
    source: str | Path,
    out: str | Path,
    engine: Engine | None = None,
    *,
    kind: Format = "jsonl",
    concurrency: int = 8,
    resume: bool = False,
    retry_failed: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
    fail_fast: bool = False,
    skip_bad: bool = False,
    dry_run: bool = False,
    observe: Callable[[JobReport], None] | None = None,
    **decoding: Any,
) -> JobReport | Estimate:
    """Decode every row of `source` into a line of a part in the folder `out`. The lines are those of `run_job`.

    setup: what the workers open. source: a .jsonl, .csv or .parquet file or a folder of them, out: a folder, both where
    every machine of the cluster reaches them (paths as Ray and pyarrow take them). kind: of the parts. concurrency:
    rows of each worker at a time. dry_run: check the rows and give an `Estimate`. The rest is as in `run_job`.

    Raises InputError before anything is spent, and what no further row would survive; what is done stays.
    """
    engine = engine or Engine()
    engine.check()
    _check(concurrency, limit, resume, retry_failed, overwrite)
    Defaults(**decoding)
    setup.budget()
    manifest = Manifest(Folder(str(out)), kind)
    installed()
    start = time.monotonic()
    with _state(manifest.folder, kept=not dry_run) as state:
        manifest.check(resume=resume, overwrite=overwrite)
        if resume and not dry_run:
            _fold(state, manifest, engine.rows_per_part)
        held = manifest.held(retry_failed=retry_failed) if resume else {}
        with started(engine) as ray, _plainly():
            from blackbox_proxy.cluster import rows

            run = _Run(ray, engine, _absolute(source), held)
            job = rows.Job(
                setup=Setup(settings=setup.settings, api_key=setup.api_key),
                manifest=manifest,
                decoding=decoding,
                starts=run.starts(),
                end=None if limit is None or skip_bad else limit,
                skip_bad=skip_bad,
                fail_fast=fail_fast,
                concurrency=concurrency,
            )
            job, found = run.checked(job, limit)
            if dry_run:
                estimate: Estimate = found.bounds.estimate(found.held, len(found.bad), found.counted_by)
                return estimate
            if resume:
                manifest.mend(retry_failed=retry_failed)
            else:
                manifest.clear()
                _forget(state)
            report = JobReport(
                found.good,
                skipped=found.held,
                bad=len(found.bad),
                bad_rows=tuple(f"{place}: {reason}" for _, place, reason in found.bad[:_SHOWN]),
                failed_before=found.failed,
            )
            if observe is not None:
                observe(report)
            if found.good > found.held:
                report = run.answered(job, state, _Watch(report, start, observe), setup)
        _forget(state)
        return report


def _absolute(source: str | Path) -> str:
    return str(source) if "://" in str(source) else str(Path(source).absolute())


# -- before ------------------------------------------------------------------------------------------------------------


def _check(concurrency: int, limit: int | None, resume: bool, retry_failed: bool, overwrite: bool) -> None:
    if concurrency < 1:
        raise InputError(f"concurrency must be at least 1, not {concurrency}", hint="Leave it out for 8.")
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1 row, not {limit}", hint="Leave it out for all.")
    if retry_failed and not resume:
        raise InputError("failures are asked again only when a run goes on", hint="Give --resume with --retry-failed.")
    if resume and overwrite:
        raise InputError("a run is either gone on with or overwritten", hint="Give --resume or --overwrite, not both.")


@contextmanager
def _state(folder: Folder, *, kept: bool) -> Iterator[Path]:
    """The folder on this machine for what a run must know when it is begun again; nobody else writes there meanwhile.
    kept: else it goes, if there was none.
    """
    here = folder.here
    if here is not None and not here.parent.is_dir():
        raise InputError(f"there is no folder {here.parent}", hint="Make it first, or write elsewhere.")
    if here is not None and here.exists() and not here.is_dir():
        raise InputError(f"{here} is a file", hint="With --engine ray, name a folder: results are written in parts.")
    name = hashlib.sha256(folder.place.encode()).hexdigest()[:16]
    state = user_state_path("blackbox-proxy") / "runs" / name if here is None else here / "_state"
    made = [path for path in (state, state.parent) if not path.exists()]
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / "lock").open("ab", buffering=0)
    except OSError as error:
        raise InputError(f"{state} cannot be written: {error.strerror}", hint="Write elsewhere.") from error
    with locked(lock, folder.here or state):
        yield state
        if not kept and state in made:
            (state / "lock").unlink()
            with suppress(OSError):
                for path in made:
                    path.rmdir()


def _fold(state: Path, manifest: Manifest, rows_per_part: int) -> None:
    """What an earlier run had answered and not written becomes parts."""
    held = manifest.held()
    for place in sorted(state.glob("journal-*")):
        journal = Journal(place)
        lines = list(journal.have(index for index in journal.rows() if index not in held).values())
        for first in range(0, len(lines), rows_per_part):
            manifest.add(lines[first : first + rows_per_part])
        journal.close()
        held |= manifest.held() if lines else {}
    _forget(state)


def _forget(state: Path) -> None:
    for place in (*state.glob("journal-*"), *state.glob("budget-*")):
        place.unlink()


@contextmanager
def _plainly() -> Iterator[None]:
    """Of an error of Ray's that is about one of this package, that one."""
    try:
        yield
    except BlackboxError as error:
        raise at_heart(error) or error from None
    except Exception as error:
        found = at_heart(error)
        if found is None:
            raise
        raise found from error


# -- on the cluster ----------------------------------------------------------------------------------------------------


class _Run:
    """The passes over the rows. held: what the parts have."""

    def __init__(self, ray: Any, engine: Engine, source: str, held: dict[int, Held]) -> None:
        from blackbox_proxy.cluster import rows

        self._ray = ray
        self._rows = rows
        self._engine = engine
        self._source = source
        self._held = [ray.put(held)]
        self._most_held = max(held, default=-1)
        try:
            self._paths = sorted(rows.Rows(source)._paths())
        except (OSError, ValueError) as error:
            raise InputError(
                f"the rows cannot be read from {source}: {error}", hint="Give a file or a folder of them."
            ) from error
        for path in self._paths:
            reader_of(Path(path).suffix, path)

    def _read(self) -> Any:
        # A file is one block: Ray would cut it by its size in bytes, and rows_per_part is what it is to be cut by.
        rows = self._rows.Rows(self._source)
        return self._ray.data.read_datasource(rows, num_cpus=_FEW, override_num_blocks=len(self._paths))

    def _blocks(self, least: int, kind: type, *arguments: Any) -> Any:
        """The rows, a part of them at a time, through actors of this class: `least` of them, and more if that helps."""
        from ray.data import ActorPoolStrategy

        engine = self._engine
        return (
            self._read()
            .repartition(target_num_rows_per_block=engine.rows_per_part)
            .map_batches(
                kind,
                fn_constructor_args=arguments,
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=least, max_size=engine.workers),
                num_cpus=engine.worker_cpus,
                num_gpus=engine.worker_gpus or None,
            )
        )

    def starts(self) -> dict[str, int]:
        """The index of the first row of each file, in the order of their names."""
        counts: Counter[str] = Counter(dict.fromkeys(self._paths, 0))
        if len(self._paths) > 1:
            counted = self._read().map_batches(
                self._rows.counted, batch_format="pyarrow", batch_size=None, num_cpus=_FEW
            )
            for row in counted.iter_rows():
                counts[row["file"]] += row["rows"]
        starts, index = {}, 0
        for path in self._paths:
            starts[path] = index
            index += counts[path]
        return starts

    def checked(self, job: Any, limit: int | None) -> tuple[Any, Any]:
        """The job with the models' settings and its end, and what was found. Raises InputError for bad rows that are
        not to be skipped, and for results of something else.
        """
        found = self._check(job)
        complete = limit is None
        if limit is not None and job.skip_bad and found.good > limit:
            job = replace(job, end=_end_of(limit, [index for index, *_ in found.bad]))
            found = self._check(job)
        if found.bad and not job.skip_bad:
            named = "; ".join(f"{place}: {reason}" for _, place, reason in found.bad[:_SHOWN])
            more = f"; and {len(found.bad) - _SHOWN} more" if len(found.bad) > _SHOWN else ""
            raise InputError(
                f"{len(found.bad)} of the rows in {self._source} cannot be used: {named}{more}",
                hint="Repair them, or leave them out with --skip-bad. Nothing was sent.",
            )
        if found.good == 0:
            raise InputError(f"{self._source} has no rows", hint='Give one {"prompt": "…"} a line.')
        if found.other:
            index, place, same = found.other[0]
            raise InputError(
                f"{job.manifest.folder} holds the result of {'other settings' if same else 'another prompt'} for "
                f"{place} (index {index})",
                hint="Go on with the same input and the same settings, or write to another folder.",
            )
        rows = found.good + len(found.bad)
        if complete and self._most_held >= rows:
            raise InputError(
                f"{job.manifest.folder} holds the result of index {self._most_held}, but the input has {rows} rows",
                hint="Go on with the same input, or write to another folder.",
            )
        return replace(job, settings=found.settings), found

    def _check(self, job: Any) -> Any:
        found = self._rows.Checked()
        for row in self._blocks(1, self._rows.Checker, job, self._held).iter_rows():
            found = found.joined(self._rows.unpacked(row["found"]))
        found.bad.sort()
        found.other.sort()
        return found

    def answered(self, job: Any, state: Path, watch: _Watch, setup: Setup) -> JobReport:
        """Ask for all that is left, and write it in parts."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        told = setup.settings
        budget = told.budget
        terms = Terms(
            limits=told.limits.model_dump(include={"requests_per_minute", "tokens_per_minute"}),
            budget={
                "max_calls": budget.max_calls,
                "max_tokens_billed": budget.max_tokens_billed,
                "max_cost": budget.max_cost,
                "prices": setup.prices,
            },
        )
        name = uuid.uuid4().hex[:12]
        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        desk = (
            self._ray.remote(Desk)
            .options(
                name=f"blackbox-proxy-{name}",
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=here,
            )
            .remote(state, name, terms)
        )
        with watch.looking(lambda: self._ray.get(desk.told.remote(), timeout=30.0)):
            try:
                blocks = self._blocks(self._engine.workers, self._rows.Worker, job, self._held, desk)
                blocks.write_datasink(self._rows.Parts(job.manifest), ray_remote_args={"num_cpus": _FEW})
            except Exception as error:
                stopped = self._ray.get(desk.stopped.remote(), timeout=30.0)
                if stopped is None:
                    raise
                raise rebuilt(*stopped) from error
        self._ray.get(desk.close.remote(), timeout=30.0)
        self._ray.kill(desk)
        missing = watch.report.total - len(job.manifest.held())  # type: ignore[operator]
        if missing > 0 and job.end is None:
            raise BlackboxError(
                f"{missing} rows were answered and are in no part of {job.manifest.folder}",
                hint="Look whether every machine writes to the same folder; --resume asks for them again.",
            )
        return watch.report


def _end_of(limit: int, bad: Sequence[int]) -> int:
    """The index behind the last of the first `limit` rows that are not bad."""
    end = limit
    for index in sorted(bad):
        end += index < end
    return end


class _Watch:
    """Looks from time to time how far a run is, and tells."""

    def __init__(self, report: JobReport, start: float, observe: Callable[[JobReport], None] | None) -> None:
        self.report = report
        self._start = start
        self._observe = observe

    @contextmanager
    def looking(self, look: Callable[[], Told]) -> Iterator[None]:
        """While this is open, and once more at its end."""
        ended = threading.Event()

        def again() -> None:
            while not ended.wait(_LOOK_SECONDS):
                with suppress(Exception):  # the desk is being begun again
                    self._saw(look())

        thread = threading.Thread(target=again, name="watching", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(60)
            with suppress(Exception):
                self._saw(look())

    def _saw(self, told: Told) -> None:
        seconds = time.monotonic() - self._start
        self.report = replace(
            self.report, done=told.done, failed=told.failed, tokens=told.tokens, usage=told.usage, seconds=seconds
        )
        if self._observe is not None:
            self._observe(self.report)
