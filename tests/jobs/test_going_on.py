"""Going on with a bulk run: what is kept when it ends too early, what is asked again, and how much memory it takes."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path

import pytest
from bulk import Fake, numbered, results

from blackbox_proxy.errors import AccessDenied, BlackboxError, InputError, ServerFailed
from blackbox_proxy.jobs import arun_job, run_job


def test_results_of_something_else_are_not_gone_on_with(tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    run_job(Fake(), source, out, settings={"alpha": 1.0})
    before = out.read_bytes()
    tuner = Fake()
    for options in ({"max_tokens": 3}, {"temperature": 1.0}, {"stop": "x"}):
        with pytest.raises(InputError, match=r"other settings for line 1 \(index 0\)") as caught:
            run_job(tuner, source, out, resume=True, settings={"alpha": 1.0}, **options)
        assert "same settings" in caught.value.hint
    with pytest.raises(InputError, match="other settings"):
        run_job(tuner, source, out, resume=True, settings={"alpha": 0.5})
    for rows in ([{"prompt": "other", "id": "r0"}], [{"prompt": "p0", "id": "other"}]):
        with pytest.raises(InputError, match="another prompt"):
            run_job(tuner, rows, out, resume=True, settings={"alpha": 1.0})
    with pytest.raises(InputError, match="the input has 4 rows"):
        run_job(tuner, numbered(tmp_path / "four.jsonl", 4), out, resume=True, settings={"alpha": 1.0})
    assert not tuner.asked
    assert out.read_bytes() == before
    seeded = {"resume": True, "settings": {"alpha": 1.0}, "seed": 9}  # a greedy text has no seed
    assert run_job(tuner, source, out, **seeded).skipped == 5


def test_a_torn_last_line_is_cut_off_wherever_it_tore(tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    run_job(Fake(), source, out, temperature=1.0)
    whole = out.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(ends[1], ends[2], 7):
        out.write_bytes(whole[:cut])
        tuner = Fake()
        report = run_job(tuner, source, out, temperature=1.0, resume=True)
        assert (report.skipped, tuner.asked) == (2, ["p2", "p3"])
        assert out.read_bytes() == whole
    out.write_bytes(whole[: ends[2]] + bytes(100))  # what a power cut may leave
    assert run_job(Fake(), source, out, temperature=1.0, resume=True).skipped == 3
    assert out.read_bytes() == whole
    out.write_bytes(whole[: ends[0]] + whole[ends[0] + 5 :])
    with pytest.raises(InputError, match="not a file of results"):
        run_job(Fake(), source, out, temperature=1.0, resume=True)


def test_what_waits_for_its_turn_survives(tmp_path: Path) -> None:
    """The first row hangs: the others are finished, within the window, but not in the file yet."""
    source, out = numbered(tmp_path / "in.jsonl", 100), tmp_path / "out.jsonl"
    run_job(Fake(), source, tmp_path / "whole.jsonl")
    held = Fake(holds={"p0"})

    async def some_time() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await arun_job(held, source, out, concurrency=2)

    asyncio.run(some_time())
    assert len(held.asked) == 2 * 8  # the window
    assert out.read_bytes() == b""
    tuner = Fake()
    report = run_job(tuner, source, out, concurrency=2, resume=True)
    assert (report.skipped, report.done) == (15, 85)
    assert not set(tuner.asked) & set(held.asked[1:])
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"

    async def both() -> None:
        first = asyncio.create_task(arun_job(Fake(holds={"p0"}), source, out))
        await asyncio.sleep(0.3)
        with pytest.raises(InputError, match="another run"):
            await arun_job(Fake(), source, out, resume=True)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    asyncio.run(both())
    assert run_job(Fake(), source, out, resume=True).total == 3


@pytest.mark.parametrize("ordered", [True, False])
def test_failures_are_lines_and_are_asked_again(ordered: bool, tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 30), tmp_path / "out.jsonl"
    run_job(Fake(), source, tmp_path / "whole.jsonl")
    broken: dict[str, BlackboxError] = {f"p{i}": ServerFailed("the server failed", "Wait.") for i in (4, 17)}
    report = run_job(Fake(broken), source, out, ordered=ordered)
    assert (report.done, report.failed) == (28, 2)
    failed = next(line for line in results(out) if line["index"] == 4)
    reason = {"class": "ServerFailed", "message": "the server failed", "hint": "Wait.", "retryable": True}
    assert (failed["error"], failed["id"], failed["input"]) == (reason, "r4", {"kind": 1})
    report = run_job(Fake(), source, out, ordered=ordered, resume=True)
    assert (report.skipped, report.done, report.failed_before) == (30, 0, 2)
    tuner = Fake({"p17": ServerFailed("again")})
    report = run_job(tuner, source, out, ordered=ordered, resume=True, retry_failed=True)
    assert (sorted(tuner.asked), report.done, report.failed, report.skipped) == (["p17", "p4"], 1, 1, 28)
    run_job(Fake(), source, out, ordered=ordered, resume=True, retry_failed=True)
    whole = (tmp_path / "whole.jsonl").read_text().splitlines()
    found = out.read_text().splitlines()
    assert (found if ordered else sorted(found)) == (whole if ordered else sorted(whole))
    assert not (tmp_path / "out.jsonl.waiting").exists()


def test_the_first_failure_or_a_hopeless_one_ends_the_run(tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 200), tmp_path / "out.jsonl"
    tuner = Fake({"p20": ServerFailed("broken")})
    with pytest.raises(ServerFailed, match="broken"):
        run_job(tuner, source, out, fail_fast=True)
    assert len(tuner.asked) < 60
    again = Fake()
    run_job(again, source, out, resume=True, retry_failed=True)
    assert [line["index"] for line in results(out)] == list(range(200))
    assert "p20" in again.asked
    assert len(tuner.asked) + len(again.asked) <= 200 + 1 + 8
    tuner = Fake({"p20": AccessDenied("wrong key")})
    with pytest.raises(AccessDenied):
        run_job(tuner, source, tmp_path / "denied.jsonl")
    assert len(tuner.asked) < 60
    assert run_job(Fake(), source, tmp_path / "denied.jsonl", resume=True).failed == 0
    assert (tmp_path / "denied.jsonl").read_bytes() == out.read_bytes()


def test_the_waiting_file_is_written_anew_when_most_of_it_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blackbox_proxy.jobs.outputs._MOST_DEAD", 300)
    source, out = numbered(tmp_path / "in.jsonl", 300), tmp_path / "out.jsonl"
    sizes = []
    run_job(Fake(), source, out, observe=lambda _: sizes.append((tmp_path / "out.jsonl.waiting").stat().st_size))
    assert [line["index"] for line in results(out)] == list(range(300))
    assert max(sizes) < 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def flat(tmp_path: Path, count: int, ordered: bool) -> tuple[int, int]:
    source = tmp_path / "in.jsonl"
    with source.open("w") as rows:
        for i in range(count):
            rows.write(json.dumps({"prompt": f"{i} " + "x" * 2000}) + "\n")
    tuner = Fake()
    tuner.asked = Forgetful()
    seen: list[int] = []
    run_job(
        tuner,
        source,
        tmp_path / "out.jsonl",
        ordered=ordered,
        overwrite=True,
        observe=lambda r: seen.append(resident()) if r.done in (count // 10, count) else None,
    )
    return seen[0], seen[-1]


class Forgetful(list[str]):
    def append(self, _: str) -> None: ...


@pytest.mark.parametrize("ordered", [True, False])
def test_memory_stays_flat(ordered: bool, tmp_path: Path) -> None:
    """10 MB of prompts, twice that of results."""
    start, end = flat(tmp_path, 5000, ordered)
    assert end - start < 3 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [True, False])
def test_memory_stays_flat_over_100_000_rows(ordered: bool, tmp_path: Path) -> None:
    start, end = flat(tmp_path, 100_000, ordered)
    print(f"\nordered={ordered}: {start / 2**20:.1f} MiB after 10,000 rows, {end / 2**20:.1f} MiB after 100,000")
    assert end - start < 5 * 2**20
