"""Evaluations on a Ray cluster of this machine: the local run's figures, row by row."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
from bulk import rows_file
from clusters import Runs, processes, wait_for

from blackbox_proxy.evaluation.systems import Answered, Outcome
from blackbox_proxy.evaluation.tasks import task_of
from blackbox_proxy.types import Usage

ON_RAY = ["--engine", "ray", "--address", "local", "--workers", "2", "--worker-cpus", "0.4", "--rows-per-part", "4"]
COMPARED = ["--alpha", "0.5", "--alpha", "1", "--max-tokens", "4"]


def tasks(count: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for i in range(count):
        made += [
            {"question": f"Who won number {i}?", "choices": ["New York", "Newark", "the other"], "answer": i % 3},
            {"prompt": f"Number {i} of New", "answer": "York"},
            {"prompt": f"There were {i}", "text": " 20 of 2000."},
        ]
    return made


def test_an_answer_comes_back_from_its_line() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from blackbox_proxy.cluster.tasks import answered_in, line_of

    task = task_of({"prompt": "x", "answer": "ü"}, 7, "tasks.jsonl line 8")
    for error in ("", "ServerFailed: it broke"):
        answered = Answered(task, {"base": Outcome(None if error else 1.0, "ü\n", usage=Usage(2, 3), error=error)})
        line = line_of(answered)
        assert line.startswith(b'{"index": 7, ')
        assert line.count(b"\n") == 1
        assert answered_in(line) == answered
        assert ("error" in json.loads(line)) == bool(error)


@pytest.mark.ray
def test_an_evaluation_gives_the_figures_of_the_local_one_with_a_worker_killed(runs: Runs) -> None:
    given = [option for option in runs.given if option not in ("-n", "6")] + COMPARED
    first = rows_file(runs.folder / "a.jsonl", *tasks(6), "{no task")
    second = rows_file(runs.folder / "b.jsonl", *tasks(2), {"prompt": "REFUSED", "answer": "x"})
    files, whole = [first, second], runs.folder / "local.json"
    status, _, told = runs("eval", *files, *given, "--no-cache", "--skip-bad", "-o", whole)
    assert status == 1, told  # a row has an error
    undisturbed, out = runs.requests, runs.folder / "ray.json"
    cache: list[Any] = ["--cache", "--cache-file", runs.folder / "cache"]
    run = runs.begin("eval", *files, *given, *cache, "--skip-bad", "-o", out, *ON_RAY)
    wait_for(lambda: run.poll() is not None or runs.requests >= undisturbed + undisturbed // 3)
    os.kill(processes("MapBatches(Judge)", runs.folder)[0], signal.SIGKILL)
    _, told = run.communicate(timeout=500)
    assert run.returncode == 1, told
    local, ray = json.loads(whole.read_text()), json.loads(out.read_text())
    assert len(local["rows"]) == 25
    assert [table["kind"] for table in ray["tables"]] == ["choice", "question", "text"]
    for asked, here in zip(spentless(ray["rows"]), spentless(local["rows"]), strict=True):
        assert asked == here
    assert ray["bad_rows"] == local["bad_rows"]
    assert figures(ray["tables"]) == figures(local["tables"])
    spent = runs.requests - undisturbed
    print(f"evaluation, a worker killed: {spent} requests, {undisturbed} undisturbed")
    assert spent <= undisturbed + 4


def spentless(rows: list[dict[str, Any]]) -> Any:
    """Without what was spent, which depends on what was asked before, and the last digits of a sum, which depend on
    what was summed beside it.
    """
    rounded = json.loads(json.dumps(rows), parse_float=lambda figure: round(float(figure), 3))
    return json.loads(json.dumps(rounded), object_hook=lambda each: {k: v for k, v in each.items() if k != "usage"})


def figures(tables: list[dict[str, Any]]) -> Any:
    wanted = ("system", "value", "low", "high", "right", "errors", "requests")
    return spentless([{name: line[name] for name in wanted} for table in tables for line in table["systems"]])
