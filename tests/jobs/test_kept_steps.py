"""A run with a trace: each row stands in it once, however often it was tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bulk import Fake, numbered, results
from steps import step

from blackbox_proxy.errors import AccessDenied, BlackboxError, ServerFailed
from blackbox_proxy.jobs import run_job
from blackbox_proxy.trace import TraceFile, read_trace
from blackbox_proxy.types import Generation, Usage


class Steps(Fake):
    """Texts of one step; what fails has written one as well."""

    async def agenerate(self, prompt: Any, **options: Any) -> Generation:
        try:
            found = await super().agenerate(prompt, **options)
        except BlackboxError as error:
            error.steps = (step(b"begun"),)
            raise
        return Generation(found.text, (step(found.text.encode(), finish_reason="stop"),), "stop", Usage(), "backoff")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    return numbered(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl", tmp_path / "trace.jsonl"


def traced(files: tuple[Path, Path, Path], tuner: Fake, *, resume: bool = False, **options: Any) -> None:
    source, out, trace = files
    with TraceFile(trace, append=resume) as keep:
        run_job(tuner, source, out, keep=keep, resume=resume, **options)


def rows(trace: Path) -> list[tuple[Any, bool]]:
    return sorted((text.id, text.error is None) for text in read_trace(trace).texts)


WHOLE = [(f"r{i}", True) for i in range(6)]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_row_that_failed_and_was_tried_again_stands_there_once(files: tuple[Path, Path, Path], ordered: bool) -> None:
    traced(files, Steps(fails={"p1": ServerFailed("no"), "p4": ServerFailed("no")}), ordered=ordered)
    assert rows(files[2]) == [(name, name not in ("r1", "r4")) for name, _ in WHOLE]
    traced(files, Steps(), resume=True, ordered=ordered)  # the failures stay
    assert rows(files[2]) == [(name, name not in ("r1", "r4")) for name, _ in WHOLE]
    traced(files, Steps(fails={"p4": ServerFailed("no")}), resume=True, retry_failed=True, ordered=ordered)
    assert rows(files[2]) == [(name, name != "r4") for name, _ in WHOLE]
    traced(files, Steps(), resume=True, retry_failed=True, ordered=ordered)
    assert rows(files[2]) == WHOLE


def test_so_does_the_row_that_ended_a_run(files: tuple[Path, Path, Path]) -> None:
    with pytest.raises(AccessDenied):
        traced(files, Steps(fails={"p2": AccessDenied("no")}), concurrency=1)
    assert rows(files[2])[-1] == ("r2", False)
    traced(files, Steps(), resume=True)
    assert rows(files[2]) == WHOLE


def test_and_one_whose_result_was_lost_in_a_power_cut(files: tuple[Path, Path, Path]) -> None:
    traced(files, Steps())
    out = files[1].read_bytes()
    files[1].write_bytes(out[: len(out) * 2 // 3])
    traced(files, Steps(), resume=True)
    assert (rows(files[2]), len(results(files[1]))) == (WHOLE, 6)


def test_what_was_paid_for_is_kept_where_the_trace_cannot_be_written(files: tuple[Path, Path, Path]) -> None:
    class Full(TraceFile):
        def add(self, *_: Any, **__: Any) -> None:
            raise ServerFailed("the disk is full")

    with Full(files[2]) as keep, pytest.raises(ServerFailed):
        run_job(Steps(), files[0], files[1], keep=keep, concurrency=1)
    assert [line["id"] for line in results(files[1])] == ["r0"]
