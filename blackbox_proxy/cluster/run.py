"""A bulk run on Ray, from the machine that begins it: `run_on_cluster`.

All rows are checked first, by workers that send nothing; then they are asked. A killed worker or machine costs the
requests that were under way there: what it had answered is in the journal, and whoever does its rows again finds it. A
run whose beginner is killed goes on with what parts and journal hold.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from blackbox_proxy.cluster.desk import Told
from blackbox_proxy.cluster.engine import Engine, installed, started
from blackbox_proxy.cluster.folder import Folder
from blackbox_proxy.cluster.formats import Format
from blackbox_proxy.cluster.journal import Journal
from blackbox_proxy.cluster.manifest import Held, Manifest
from blackbox_proxy.cluster.passes import Passes, end_of, plainly
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.jobs.estimate import Estimate
from blackbox_proxy.jobs.inputs import Defaults
from blackbox_proxy.jobs.outputs import locked
from blackbox_proxy.jobs.run import JobReport
from blackbox_proxy.opening import Setup

_SHOWN = 10  # bad rows that an error names


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
        if not (resume or overwrite) and any(place.stat().st_size for place in state.glob("journal-*")):
            raise InputError(
                f"{manifest.folder} holds what a run had answered that was broken off",
                hint="Go on with it by --resume, or --overwrite it.",
            )
        if resume and not dry_run:
            _fold(state, manifest, engine.rows_per_part)
        held = manifest.held(retry_failed=retry_failed) if resume else {}
        with started(engine) as ray, plainly():
            passes = Passes(ray, engine, [source])
            run = _Run(passes, held)
            job = passes.rows.Job(
                setup=Setup(settings=setup.settings, api_key=setup.api_key),
                manifest=manifest,
                decoding=decoding,
                starts=passes.starts(),
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


# -- on the cluster ----------------------------------------------------------------------------------------------------


class _Run:
    """The passes of a bulk run. held: what the parts have."""

    def __init__(self, passes: Passes, held: dict[int, Held]) -> None:
        self._passes = passes
        self._held = [passes.ray.put(held)]
        self._most_held = max(held, default=-1)

    def checked(self, job: Any, limit: int | None) -> tuple[Any, Any]:
        """The job with the models' settings and its end, and what was found. Raises InputError for bad rows that are
        not to be skipped, and for results of something else.
        """
        found = self._check(job)
        complete = limit is None
        if limit is not None and job.skip_bad and found.good > limit:
            job = replace(job, end=end_of(limit, [index for index, *_ in found.bad]))
            found = self._check(job)
        if found.bad and not job.skip_bad:
            named = "; ".join(f"{place}: {reason}" for _, place, reason in found.bad[:_SHOWN])
            more = f"; and {len(found.bad) - _SHOWN} more" if len(found.bad) > _SHOWN else ""
            raise InputError(
                f"{len(found.bad)} of the rows in {self._passes.name} cannot be used: {named}{more}",
                hint="Repair them, or leave them out with --skip-bad. Nothing was sent.",
            )
        if found.good == 0:
            raise InputError(f"{self._passes.name} has no rows", hint='Give one {"prompt": "…"} a line.')
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
        found = self._passes.rows.Checked()
        for row in self._passes.blocks(self._passes.rows.Checker, job, self._held, least=1).iter_rows():
            found = found.joined(self._passes.rows.unpacked(row["found"]))
        found.bad.sort()
        found.other.sort()
        return found

    def answered(self, job: Any, state: Path, watch: _Watch, setup: Setup) -> JobReport:
        """Ask for all that is left, and write it in parts."""
        passes = self._passes
        with passes.desk(state, setup, watch.saw) as desk:
            passes.write(passes.blocks(passes.rows.Worker, job, self._held, desk), passes.rows.Parts(job.manifest))
        missing = watch.report.total - len(job.manifest.held())  # type: ignore[operator]
        if missing > 0 and job.end is None:
            raise BlackboxError(
                f"{missing} rows were answered and are in no part of {job.manifest.folder}",
                hint="Look whether every machine writes to the same folder; --resume asks for them again.",
            )
        return watch.report


class _Watch:
    """Tells how far a run is."""

    def __init__(self, report: JobReport, start: float, observe: Callable[[JobReport], None] | None) -> None:
        self.report = report
        self._start = start
        self._observe = observe

    def saw(self, told: Told) -> None:
        seconds = time.monotonic() - self._start
        self.report = replace(
            self.report, done=told.done, failed=told.failed, tokens=told.tokens, usage=told.usage, seconds=seconds
        )
        if self._observe is not None:
            self._observe(self.report)
