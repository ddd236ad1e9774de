"""An evaluation on Ray, from the machine that begins it: `evaluate_on_cluster`.

Tasks are checked first, by workers that send nothing. All systems answer a task at one worker, so that they share what
was asked. The figures are made here, of all rows, as they are in a local run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from blackbox_proxy.cluster.desk import Told
from blackbox_proxy.cluster.engine import Engine, started
from blackbox_proxy.cluster.passes import Passes, end_of, plainly
from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.run import Comparison, Evaluation, Progress
from blackbox_proxy.evaluation.tasks import check_bad
from blackbox_proxy.opening import Setup


def evaluate_on_cluster(
    setup: Setup,
    tasks: Sequence[str | Path],
    engine: Engine | None = None,
    *,
    concurrency: int = 8,
    limit: int | None = None,
    skip_bad: bool = False,
    observe: Callable[[Progress], None] | None = None,
    **compared: Any,
) -> Evaluation:
    """Ask every system every task, on the machines of a cluster, and compare them.

    setup: what the workers open. tasks: .jsonl files, or folders of them, where every machine reaches them (paths as
    Ray takes them). concurrency: tasks of each worker at a time. The rest is as in `evaluate`; a ceiling is a name.

    Raises InputError before anything is spent, and what no further row would survive.
    """
    engine = engine or Engine()
    engine.check()
    setup.budget()
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1 row, not {limit}", hint="Leave it out for all.")
    plan = Comparison(**compared)
    plan.check(concurrency)
    with started(engine) as ray, plainly():
        from blackbox_proxy.cluster.tasks import Bench, Judge, Looked, Looker, answered_in, unpacked

        passes = Passes(ray, engine, tasks)
        bench = Bench(
            setup=Setup(settings=setup.settings, api_key=setup.api_key),
            compared=plan,
            starts=passes.starts(),
            end=None if limit is None or skip_bad else limit,
            skip_bad=skip_bad,
            concurrency=concurrency,
        )

        def looked() -> list[Looked]:
            return [unpacked(row["found"]) for row in passes.blocks(Looker, bench, least=1).iter_rows()]

        found = looked()
        if limit is not None and skip_bad and sum(each.good for each in found) > limit:
            bench = replace(bench, end=end_of(limit, [index for each in found for index, _ in each.bad]))
            found = looked()
        bad = [reason for _, reason in sorted(each for part in found for each in part.bad)]
        check_bad(bad, skip_bad)
        total = sum(each.good for each in found)
        if total == 0:
            raise InputError(f"there are no tasks in {passes.name}", hint="See `blackbox-proxy eval --help`.")
        plan.swept(sorted({kind for each in found for kind in each.kinds}))

        def saw(told: Told) -> None:
            if observe is not None:
                observe(Progress(total, told.done + told.failed, told.failed, told.usage))

        start = time.perf_counter()
        with (
            tempfile.TemporaryDirectory(prefix="blackbox-proxy-eval-") as folder,
            passes.desk(Path(folder), setup, saw) as desk,
        ):
            lines = {row["index"]: row["line"] for row in passes.blocks(Judge, bench, desk).iter_rows()}
        seconds = time.perf_counter() - start
    rows = [answered_in(lines[index]) for index in sorted(lines)]
    return plan.evaluation(found[0].systems, rows, bad, seconds)
