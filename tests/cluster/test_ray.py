"""Bulk runs on a Ray cluster of this machine: the local run's lines, whoever is killed meanwhile."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bulk import numbered, rows_file
from clusters import Runs, lines_in, processes, wait_for, without_cost

from blackbox_proxy.cluster.formats import decoded

ON_RAY = ["--engine", "ray", "--address", "local", "--workers", "2", "--worker-cpus", "0.4", "--rows-per-part", "6"]

pytestmark = pytest.mark.ray


def test_a_folder_of_files_gives_the_lines_of_the_local_run(runs: Runs) -> None:
    first: list[Any] = [{"prompt": f"p{i}", "id": i, "temperature": i % 2, "n": [i, None, "ü"]} for i in range(9)]
    first += ["{not a row", {"prompt": "REFUSED", "id": "failing"}, {"prompt": "p" * 3000, "id": "too long"}]
    second = [{"prompt": f"q{i}", "id": f"r{i}", "kind": f"x,{i}"} for i in range(7)]
    folder, out = runs.folder / "in", runs.folder / "out"
    folder.mkdir()
    rows_file(folder / "a.jsonl", *first)
    with (folder / "b.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "id", "kind"])
        writer.writeheader()
        writer.writerows(second)
    given = ["--skip-bad", "--seed", "3"]
    local = runs.local(rows_file(runs.folder / "all.jsonl", *first, *second), *given)
    assert len(local) == 17
    undisturbed = runs.requests
    arguments: list[str | Path] = ["run", folder, "-o", out, *runs.given, "--no-cache", *ON_RAY]
    status, _, told = runs(*arguments, "--seed", "3")
    assert (status, "2 of the rows" in told, "a.jsonl line 10" in told, "Nothing was sent" in told) == (2,) + (
        True,
    ) * 3
    assert runs.requests == undisturbed
    status, _, told = runs(*arguments, *given)
    assert status == 1, told  # one failed
    assert "16 rows done, 1 failed, 2 bad rows left out" in told
    assert lines_in(out) == local
    assert runs.requests == 2 * undisturbed
    assert [line["error"]["class"] for line in local if "error" in line] == ["BadRequest"]
    status, _, told = runs(*arguments, *given)
    assert (status, "holds results" in told, "--resume" in told) == (2, True, True)
    status, _, told = runs(*arguments, *given, "--resume", "--alpha", "0.5")
    assert (status, "other settings for a.jsonl line 1 (index 0)" in told) == (2, True), told
    status, _, told = runs(*arguments, *given, "--resume")
    assert (status, "17 were there before (1 of them failures)" in told) == (0, True), told
    assert runs.requests == 2 * undisturbed
    status, _, told = runs(*arguments, *given, "--resume", "--retry-failed", "--limit", "20")
    assert (status, "0 rows done, 1 failed, 16 were there before" in told) == (1, True), told
    assert lines_in(out) == local


def test_what_keeps_workers_from_running_is_told_in_a_sentence(runs: Runs) -> None:
    source, out = numbered(runs.folder / "in.jsonl", 4), runs.folder / "out"
    status, _, told = runs("run", source, "-o", out, *runs.given, "--expert", "./nowhere", "--no-cache", *ON_RAY)
    assert (status, "there is no folder ./nowhere" in told, "Traceback" in told) == (1, True, False), told
    assert runs.requests == 0


def test_a_dry_run_says_what_a_local_one_does_and_leaves_nothing(runs: Runs) -> None:
    source, out = numbered(runs.folder / "in.jsonl", 6), runs.folder / "out"
    status, local, _ = runs("run", source, "-o", runs.folder / "x.jsonl", *runs.given, "--dry-run")
    assert (status, "Bounds for 6 rows" in local) == (0, True)
    status, said, told = runs("run", source, "-o", out, *runs.given, "--dry-run", *ON_RAY)
    assert (status, said) == (0, local), told
    assert (out.exists(), runs.requests) == (False, 0)
    arguments: list[str | Path] = ["run", source, "-o", out, *runs.given, "--no-cache", *ON_RAY]
    status, _, told = runs(*arguments, "--limit", "5", "--format", "parquet")
    assert status == 0, told
    parts = [decoded(place.read_bytes(), "parquet") for place in out.glob("part-*.parquet")]
    assert [json.loads(line) for lines in parts for line in lines] == runs.local(source)[:5]


def test_a_budget_is_one_for_all_and_a_run_that_it_ended_goes_on(runs: Runs) -> None:
    source, out = numbered(runs.folder / "in.jsonl", 40), runs.folder / "out"
    local, undisturbed = runs.local(source), runs.requests
    arguments: list[str | Path] = [
        "run",
        source,
        "-o",
        out,
        *runs.given,
        "--cache",
        "--cache-file",
        runs.folder / "cache",
        *ON_RAY,
    ]
    status, _, told = runs(*arguments, "--max-calls", "60")
    spent = runs.requests - undisturbed
    assert (status, "the budget of 60 calls" in told) == (1, True), told
    assert 50 <= spent <= 60
    status, _, told = runs(*arguments, "--resume")
    assert status == 0, told
    assert without_cost(lines_in(out)) == without_cost(local)
    assert runs.requests - undisturbed <= undisturbed + 2 * 4  # what was under way when the first error came


def check_a_kill(runs: Runs, kind: str, rows: int, seed: int, after: int, *more: str) -> None:
    """With one process killed amid a run, the lines are those of the local one, and what was lost was under way."""
    moments = random.Random(seed)
    source, out = numbered(runs.folder / "in.jsonl", rows), runs.folder / "out"
    local, undisturbed = runs.local(source), runs.requests
    cache: list[str | Path] = ["--cache", "--cache-file", runs.folder / "cache"]
    run = runs.begin("run", source, "-o", out, *runs.given, *cache, *ON_RAY, *more)
    wait_for(lambda: run.poll() is not None or runs.requests >= undisturbed + after, 1200)
    killed = moments.choice(processes(kind, runs.folder))
    os.kill(killed, signal.SIGKILL)
    _, told = run.communicate(timeout=1200)
    assert run.returncode == 0, told
    assert without_cost(lines_in(out)) == without_cost(local)
    spent = runs.requests - undisturbed
    print(f"{kind} killed: {rows} rows, {spent} requests, {undisturbed} undisturbed")
    assert spent <= undisturbed + 4  # a worker asks for four rows at a time


@pytest.mark.parametrize("kind", ["MapBatches(Worker)", "Desk"])
def test_a_killed_process_costs_what_was_under_way(runs: Runs, kind: str) -> None:
    check_a_kill(runs, kind, 40, 1, 70)


@pytest.mark.slow
def test_two_thousand_rows_with_a_worker_killed_at_random(runs: Runs) -> None:
    after = random.Random(2).randrange(500, 6000)
    check_a_kill(runs, "MapBatches(Worker)", 2000, 2, after, "--rows-per-part", "50")


def test_a_killed_driver_goes_on(runs: Runs) -> None:
    source, out = numbered(runs.folder / "in.jsonl", 40), runs.folder / "out"
    local, undisturbed = runs.local(source), runs.requests
    arguments: list[str | Path] = [
        "run",
        source,
        "-o",
        out,
        *runs.given,
        "--cache",
        "--cache-file",
        runs.folder / "cache",
        *ON_RAY,
    ]
    run = runs.begin(*arguments)
    wait_for(lambda: run.poll() is not None or runs.requests >= undisturbed + 70)
    run.kill()
    run.communicate()
    wait_for(lambda: not processes("", runs.folder))
    kept = [json.loads(line) for line in next((out / "_state").glob("journal-*")).read_text().splitlines()]
    assert len(kept) >= 8
    status, _, told = runs(*arguments, "--resume")
    assert status == 0, told
    assert f"{len(kept)} were there before" in told
    assert without_cost(lines_in(out)) == without_cost(local)
    assert runs.requests - undisturbed <= undisturbed + 2 * 4


def test_four_workers_stay_below_a_limit_and_use_it(runs: Runs) -> None:
    source = numbered(runs.folder / "in.jsonl", 64)
    ray = [*ON_RAY[:-4], "--worker-cpus", "0.2", "--rows-per-part", "4", "--workers", "4"]
    limit = ["--requests-per-minute", "120"]
    status, _, told = runs("run", source, "-o", runs.folder / "out", *runs.given, "--no-cache", *ray, *limit)
    assert status == 0, told
    times = runs.times
    assert len(times) >= 240
    most = max(sum(begun <= time < begun + 60.0 for time in times) for begun in times)
    # A window's worth after each of the first 120 comes the one that it makes room for: 60 s later, at best.
    used = 60.0 * 120 / sum(later - time for time, later in zip(times[:120], times[120:240], strict=True))
    print(f"{len(times)} requests of 4 workers, at most {most} of 120 in 60 s, {used:.1%} used")
    assert most <= 120
    assert used >= 0.9


def test_a_killed_node_costs_what_it_had_begun(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of three: the run is begun on the head, workers are on the others, each with a cache of its own."""
    script = Path(__file__).parent / "nodes.py"
    source, out = numbered(runs.folder / "in.jsonl", 40), runs.folder / "out"
    local, undisturbed = runs.local(source), runs.requests
    given = ["run", source, "-o", out, *runs.given, *ON_RAY, "--address", "auto"]
    runs.env = {"BLACKBOX_PROXY_CACHE": "1"}
    nodes = runs.begin_script(script, str(runs.folder), *map(str, given))
    wait_for(lambda: nodes.poll() is not None or runs.requests >= undisturbed + 70)
    nodes.send_signal(signal.SIGUSR1)  # it kills a node
    try:
        said, told = nodes.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        os.killpg(nodes.pid, signal.SIGKILL)
        raise
    assert nodes.returncode == 0, told
    assert "killed" in said
    assert without_cost(lines_in(out)) == without_cost(local)
    most = max(line["usage"]["api_calls"] for line in local)
    spent = runs.requests - undisturbed
    print(f"node killed: {spent} requests, {undisturbed} undisturbed, at most {most} a row")
    assert spent <= undisturbed + 4 * most  # its cache is gone with it
