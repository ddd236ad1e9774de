"""Bulk runs: what is checked before, what is kept through kill -9 and Ctrl-C, and what going on with it costs."""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from blackbox_proxy import cli
from blackbox_proxy.errors import AccessDenied, BlackboxError, InputError, ServerFailed
from blackbox_proxy.jobs import JobReport, arun_job, estimate_job, run_job
from blackbox_proxy.jobs.inputs import row_seed
from blackbox_proxy.prices import Prices
from blackbox_proxy.report.progress import figures, job_line, watching
from blackbox_proxy.types import Generation, Usage


class Fake:
    """A tuner that answers at once, in any order. `fails`: prompt -> error; `holds`: prompts that never end."""

    def __init__(self, fails: dict[str, BlackboxError] | None = None, holds: set[str] | None = None) -> None:
        self.asked: list[str] = []
        self.fails = fails or {}
        self.holds = holds or set()
        self.active = self.most_active = 0
        self._random = random.Random(1)

    async def agenerate(self, prompt: Any, **options: Any) -> Generation:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        self.asked.append(text)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            for _ in range(self._random.randrange(1, 5)):
                await asyncio.sleep(0)
            if text in self.holds:
                await asyncio.Event().wait()
            if text in self.fails:
                raise self.fails[text]
            said = f"{text}|{options['seed']}|{options['max_tokens']}|{options['stop']}"
            return Generation(said, (), "stop", Usage(1, 2, 3), "backoff")
        finally:
            self.active -= 1


def rows_file(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def numbered(path: Path, count: int) -> Path:
    return rows_file(path, *({"prompt": f"p{i}", "id": f"r{i}", "kind": i % 3} for i in range(count)))


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- what is asked, and what is kept -----------------------------------------------------------------------------------


def test_rows_become_lines_in_order_with_options_of_their_own(tmp_path: Path) -> None:
    source = rows_file(
        tmp_path / "in.jsonl",
        {"prompt": "a", "id": 7, "topic": ["x", {"y": None}]},
        "",
        {"messages": [{"role": "user", "content": "b"}], "max_tokens": 3, "stop": "S", "temperature": 1, "seed": 5},
        {"prompt": "c\n{é}", "temperature": 0.5, "seed": None, "stop": ["T", "U"]},
    )
    seen: list[JobReport] = []
    report = run_job(Fake(), source, tmp_path / "out.jsonl", max_tokens=9, seed=3, observe=seen.append)
    a, b, c = results(tmp_path / "out.jsonl")
    assert a["text"] == "a|None|9|[]"
    assert (a["id"], a["input"], a["finish_reason"], a["usage"]["api_calls"]) == (
        7,
        {"topic": ["x", {"y": None}]},
        "stop",
        1,
    )
    assert (b["text"], b["seed"], b["id"]) == ("b|5|3|['S']", 5, None)
    assert c["text"] == f"c\n{{é}}|{row_seed(3, 2)}|9|['T', 'U']"
    assert (report.total, report.done, report.failed, report.usage) == (3, 3, 0, Usage(3, 6, 9))
    assert [state.done for state in seen][-1] == 3
    assert not (tmp_path / "out.jsonl.waiting").exists()


def test_csv_parquet_and_python_rows_give_the_same_lines(tmp_path: Path) -> None:
    rows = [
        {"prompt": 'one, "two"\nthree', "id": "a", "max_tokens": 4, "topic": "x"},
        {"prompt": "two", "id": "b", "temperature": 1.0, "topic": "y"},
    ]
    run_job(Fake(), rows, tmp_path / "python.jsonl")
    (tmp_path / "in.csv").write_text(
        '\ufeffprompt,id,max_tokens,temperature,topic\n"one, ""two""\nthree",a,4,,x\ntwo,b,,1.0,y\n', "utf-8"
    )
    run_job(Fake(), tmp_path / "in.csv", tmp_path / "csv.jsonl")
    assert (tmp_path / "csv.jsonl").read_text() == (tmp_path / "python.jsonl").read_text()
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        (tmp_path / "in.parquet").write_bytes(b"PAR1")
        with pytest.raises(InputError, match="pyarrow") as caught:
            run_job(Fake(), tmp_path / "in.parquet", tmp_path / "parquet.jsonl")
        assert "bulk" in caught.value.hint
        return
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, _schema(pyarrow)), tmp_path / "in.parquet")
    run_job(Fake(), tmp_path / "in.parquet", tmp_path / "parquet.jsonl")
    assert (tmp_path / "parquet.jsonl").read_text() == (tmp_path / "python.jsonl").read_text()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InputError, match=r"bad\.parquet"):
        run_job(Fake(), tmp_path / "bad.parquet", tmp_path / "x.jsonl")


def _schema(pyarrow: Any) -> Any:
    text, number, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    kinds = {"prompt": text, "id": text, "max_tokens": number, "temperature": real, "topic": text}
    return pyarrow.schema(list(kinds.items()))


def test_as_completed_and_shuffled_runs_have_the_same_lines_in_other_orders(tmp_path: Path) -> None:
    source = numbered(tmp_path / "in.jsonl", 50)
    ways: dict[str, dict[str, Any]] = {"ordered": {}, "completed": {"ordered": False}, "shuffled": {"shuffle": 4}}
    lines = {}
    for way, options in ways.items():
        tuner = Fake()
        run_job(tuner, source, tmp_path / f"{way}.jsonl", temperature=1.0, **options)
        lines[way] = (tmp_path / f"{way}.jsonl").read_text().splitlines()
        assert tuner.most_active == 8
    assert [json.loads(line)["index"] for line in lines["ordered"]] == list(range(50))
    assert sorted(lines["ordered"]) == sorted(lines["completed"]) == sorted(lines["shuffled"])
    assert lines["ordered"] != lines["completed"]
    run_job(Fake(), source, tmp_path / "some.jsonl", temperature=1.0, shuffle=4, limit=6)
    assert (tmp_path / "some.jsonl").read_text().splitlines() == lines["shuffled"][:6] != lines["ordered"][:6]
    run_job(Fake(), source, tmp_path / "first.jsonl", temperature=1.0, limit=6)
    assert (tmp_path / "first.jsonl").read_text().splitlines() == lines["ordered"][:6]
    report = run_job(Fake(), source, tmp_path / "first.jsonl", temperature=1.0, resume=True)
    assert (report.skipped, report.done) == (6, 44)
    assert (tmp_path / "first.jsonl").read_text().splitlines() == lines["ordered"]


# -- before anything is spent ------------------------------------------------------------------------------------------

BAD_ROWS = {
    "not JSON": '{"prompt": "a"',
    "a row is an object": "[1]",
    "neither": '{"text": "a"}',
    "both": '{"prompt": "a", "messages": []}',
    "at least one character": '{"prompt": ""}',
    "at least one message": '{"messages": []}',
    '"role" and "content"': '{"messages": [{"role": "user"}]}',
    "max_tokens must be at least 1": '{"prompt": "a", "max_tokens": 0}',
    "max_tokens must be a whole number": '{"prompt": "a", "max_tokens": "many"}',
    "temperature": '{"prompt": "a", "temperature": -1}',
    "top_p": '{"prompt": "a", "top_p": 0}',
    "seed": '{"prompt": "a", "seed": 1.5}',
    "stop": '{"prompt": "a", "stop": [""]}',
    '"id"': '{"prompt": "a", "id": [1]}',
    "no NaN": '{"prompt": "a", "x": NaN}',
    "half a character": '{"prompt": "\\ud83d"}',
}


def test_bad_rows_are_named_before_anything_is_sent_or_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for reason, line in BAD_ROWS.items():
        tuner = Fake()
        source = rows_file(tmp_path / "in.jsonl", {"prompt": "fine"}, line)
        with pytest.raises(InputError) as caught:
            run_job(tuner, source, out)
        assert f"line 2: {reason}" in str(caught.value) or (
            "line 2: " in str(caught.value) and reason in str(caught.value)
        )
        assert caught.value.hint
        assert not tuner.asked
        assert not out.exists()
    source = rows_file(tmp_path / "in.jsonl", *BAD_ROWS.values(), {"prompt": "fine", "temperature": 1.0})
    source.write_bytes(b"\xff\xfe\n" + source.read_bytes())
    with pytest.raises(InputError, match=r"^17 of the rows in .*line 1: .* UTF-8.*line 10: .*; and 7 more$"):
        run_job(Fake(), source, out)
    report = run_job(Fake(), source, out, skip_bad=True)
    assert (report.total, report.done, report.bad, len(report.bad_rows)) == (1, 1, 17, 10)
    assert results(out)[0]["index"] == 17
    assert results(out)[0]["seed"] == row_seed(0, 17)


def test_prompts_that_do_not_fit_a_model_are_bad_rows(tmp_path: Path) -> None:
    class Short(Fake):
        pairs = ()

        class base:
            name = "short"

            @staticmethod
            def check(prompt: str, max_tokens: int) -> None:
                if len(prompt) + max_tokens > 300:
                    raise InputError("it does not fit the window")

    source = rows_file(tmp_path / "in.jsonl", {"prompt": "a"}, {"prompt": "a" * 60}, {"prompt": "a", "max_tokens": 400})
    with pytest.raises(InputError, match=r"2 of the rows.*line 2: it does not fit the window; line 3"):
        run_job(Short(), source, tmp_path / "out.jsonl")
    assert run_job(Short(), source, tmp_path / "out.jsonl", skip_bad=True).done == 1


def test_files_that_cannot_be_used_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    (tmp_path / "text.txt").write_text("a")
    (tmp_path / "none.jsonl").write_text("\n\n")
    (tmp_path / "none.csv").write_text("question\na\n")
    (tmp_path / "there.jsonl").write_text("precious")
    tuner = Fake()
    cases: list[tuple[Any, Path, dict[str, Any], str]] = [
        (tmp_path / "no.jsonl", out, {}, "No such file"),
        (tmp_path / "text.txt", out, {}, "no kind of file"),
        (tmp_path / "none.jsonl", out, {}, "no rows"),
        (tmp_path / "none.csv", out, {}, "no column"),
        (source, tmp_path / "no" / "out.jsonl", {}, "no folder"),
        (source, tmp_path, {}, "is a folder"),
        (source, tmp_path / "there.jsonl", {}, "exists already"),
        (source, tmp_path / "there.jsonl", {"resume": True}, "not a file of results"),
        (source, source, {"overwrite": True}, "is the input"),
        (source, out, {"retry_failed": True}, "goes on"),
        (source, out, {"resume": True, "overwrite": True}, "either"),
        (source, out, {"concurrency": 0}, "concurrency"),
        (source, out, {"limit": 0}, "limit"),
        (source, out, {"temperature": -1.0}, "temperature"),
        ([{"prompt": 3}], out, {}, "row 1"),
    ]
    for rows, path, options, message in cases:
        with pytest.raises(InputError, match=message):
            run_job(tuner, rows, path, **options)
    assert not tuner.asked
    assert not out.exists()
    assert (tmp_path / "there.jsonl").read_text() == "precious"
    with pytest.raises(InputError):  # what is overwritten is there until the rows are known to be good
        run_job(tuner, [""], tmp_path / "there.jsonl", overwrite=True)
    assert (tmp_path / "there.jsonl").read_text() == "precious"
    assert run_job(tuner, source, tmp_path / "there.jsonl", overwrite=True).done == 3
    with pytest.raises(TypeError, match="colour"):
        run_job(tuner, source, out, colour=1)


def test_an_estimate_bounds_the_cost_and_asks_nothing(tmp_path: Path) -> None:
    tuner = Fake()
    rows: list[str | dict[str, Any]] = ["a" * 40, {"prompt": "b" * 20, "max_tokens": 3}]
    found = estimate_job(tuner, rows, max_tokens=2)
    assert (found.rows, found.prompt_tokens, found.output_tokens) == (2, 15, 5)
    assert found.per_text == Usage(2, 15, 5)
    assert found.per_token == Usage(5, 10 + 11 + 5 + 6 + 7, 5)
    assert "characters" in found.counted_by
    run_job(Fake(), rows, tmp_path / "out.jsonl", max_tokens=2, limit=1)
    found = estimate_job(tuner, rows, tmp_path / "out.jsonl", max_tokens=2, resume=True)
    assert (found.rows, found.skipped, found.prompt_tokens) == (1, 1, 5)
    assert not tuner.asked


# -- going on ----------------------------------------------------------------------------------------------------------


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


def test_progress_shows_speed_calls_money_and_failures() -> None:
    report = JobReport(10, 3, 1, 2, tokens=40, usage=Usage(8, 100, 50, retries=1), seconds=2.0, failed_before=1, bad=4)
    shown = "20.0 tokens/s, 0.20 calls/token, cost 200, 1 failed"
    assert figures(report, Prices(1.0, 1.0, 2.0)) == shown
    terminal, plain = (Console(file=io.StringIO(), force_terminal=there, width=150) for there in (True, False))
    for console in (terminal, plain):
        with watching(console, Prices(1.0, 1.0, 2.0)) as watch:
            watch.saw(JobReport(10, skipped=2))
            watch.saw(report)
        assert watch.last == report
    drawn, nothing = terminal.file.getvalue(), plain.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in drawn for word in ("6/10", shown, "left"))
    assert nothing == ""
    said = job_line(report)
    assert said.startswith("3 rows done, 1 failed, 2 were there before (1 of them failures), 4 bad rows left out; ")
    assert said.endswith("40 tokens in 2.0 s; 8 API calls, 100 prompt + 50 output tokens billed, 1 retries")


# -- the command -------------------------------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`blackbox-proxy run …` in this process: exit status, standard output, standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["blackbox-proxy", "run", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def in_process(arguments: list[str]) -> None:
    """`blackbox-proxy run …` as the whole of a process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
    sys.argv = ["blackbox-proxy", "run", *arguments]
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    cli.main()


_PROCESSES = multiprocessing.get_context("forkserver")
_HEAVY = ("base.openai", "jobs", "pair.transformers", "report.progress")
_PROCESSES.set_forkserver_preload(
    [*(f"blackbox_proxy.{name}" for name in _HEAVY), "transformers.models.llama.modeling_llama"]
)


def begin(arguments: list[str]) -> BaseProcess:
    """A process of its own that has imported everything already, so that many can be begun."""
    process = _PROCESSES.Process(target=in_process, args=(arguments,))
    process.start()
    return process


@contextmanager
def counting(models: dict[str, str]) -> Iterator[tuple[list[str], Callable[[], int]]]:
    """A host with a small delay: the options of a run against it, and how many requests it has counted."""
    from blackbox_proxy.serve.host import open_engine
    from blackbox_proxy.serve.process import serve_in_thread
    from blackbox_proxy.serve.routes import Stats, create_app

    stats = Stats()
    engine = open_engine(models["base"], top_logprobs=5, served_model_name="big", device="cpu", first_token=0.03)
    with serve_in_thread(create_app(engine, stats=stats)) as url:
        yield options(models, f"{url}/v1"), lambda: stats.requests


def options(models: dict[str, str], url: str) -> list[str]:
    base = [
        "--base",
        "big",
        "--base-url",
        url,
        "--dialect",
        "host",
        "--tokenizer",
        models["base"],
        "--top-logprobs",
        "5",
    ]
    pair = ["--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device", "cpu"]
    return [*base, *pair, "-n", "6", "--draft", "4", "--concurrency", "4"]


def killed(arguments: list[str], out: Path, seconds: float, *, after: int) -> None:
    """Begin a run and kill it when it has written `after` more lines and so many seconds more have passed."""
    before = out.read_bytes().count(b"\n") if out.exists() else 0
    process = begin(arguments)
    try:
        while process.is_alive() and (not out.exists() or out.read_bytes().count(b"\n") < before + after):
            time.sleep(0.005)
        time.sleep(seconds)
    finally:
        process.kill()  # SIGKILL
        process.join()


def test_a_run_through_the_command(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    with counting(models) as (given, requests):
        arguments = [source, "-o", out, *given, "--no-cache", "--prices", "1,1,2"]
        status, said, _ = command(*arguments, "--dry-run")
        assert (status, requests(), out.exists()) == (0, 0, False)
        assert all(word in said for word in ("Bounds for 6 rows", "one request per text", "cost", "vocabulary"))
        status, said, told = command(*arguments)
        assert (status, said) == (0, "")
        assert "6 rows done, 0 failed" in told
        lines = results(out)
        assert [line["id"] for line in lines] == [f"r{i}" for i in range(6)]
        assert sum(line["usage"]["api_calls"] for line in lines) == requests()
        assert f"{requests()} API calls" in told
        plain = (
            "cost " + f"{sum(u['prompt_tokens'] + 2 * u['completion_tokens'] for u in (x['usage'] for x in lines)):.4g}"
        )
        assert plain in told
        status, _, told = command(*arguments)
        assert (status, "exists already" in told, "--resume" in told) == (2, True, True)
        status, _, told = command(*arguments, "--resume", "--alpha", "0.5")
        assert (status, "other settings" in told) == (2, True)
        before = requests()
        status, _, told = command(*arguments, "--resume")
        assert (status, requests() - before, "6 were there before" in told) == (0, 0, True)


def check_kills(
    command: Command, given: list[str], requests: Callable[[], int], tmp_path: Path, rows: int, kills: int, seed: int
) -> None:
    """Killed again and again and gone on with, the file is that of an undisturbed run, and hardly any call was lost.

    Without a cache a kill costs what each worker had asked for its row; with one, the requests under way.
    """
    moments = random.Random(seed)
    source = numbered(tmp_path / "in.jsonl", rows)
    assert command(source, "-o", tmp_path / "whole.jsonl", *given, "--no-cache")[0] == 0
    undisturbed, whole = requests(), (tmp_path / "whole.jsonl").read_bytes()
    most = max(line["usage"]["api_calls"] for line in results(tmp_path / "whole.jsonl"))
    ways = {"plain": (["--no-cache"], most), "cached": (["--cache", "--cache-file", str(tmp_path / "cache.db")], 1)}
    counts = []  # printed at the end: the command's own output is captured
    for way, (cache, lost) in ways.items():
        out = tmp_path / f"{way}.jsonl"
        arguments = [str(source), "-o", str(out), *given, *cache, "--resume"]
        before = requests()
        for kill in range(kills):
            killed(arguments, out, moments.uniform(0.0, 0.15), after=moments.choice((0, 1, 1, 2)))
            if kill == 0 and out.exists():
                out.write_bytes(out.read_bytes() + b'{"index": 0, "id": "r')  # as if it had torn
        status, _, told = command(*arguments)
        assert status == 0, told
        if way == "plain":
            assert out.read_bytes() == whole
        else:
            shown = [{**line, "usage": None} for line in results(out)]
            assert shown == [{**line, "usage": None} for line in results(tmp_path / "whole.jsonl")]
        spent = requests() - before
        counts.append(f"{way}: {kills} kills, {spent} requests, {undisturbed} undisturbed")
        assert undisturbed <= spent <= undisturbed + kills * 4 * lost
    print("", *counts, sep="\n")


@pytest.mark.slow
def test_a_killed_run_goes_on(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    with counting(models) as (given, requests):
        check_kills(command, given, requests, tmp_path, rows=10, kills=2, seed=1)


@pytest.mark.slow
def test_fifty_kills(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    from blackbox_proxy.serve.process import HostProcess

    with HostProcess(models["base"], served_model_name="big", device="cpu", first_token=0.03, threads=1) as host:
        given = options(models, host.base_url)
        check_kills(command, given, lambda: host.stats()["requests"], tmp_path, rows=120, kills=50, seed=2)


def test_ctrl_c_keeps_what_is_done(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 400), tmp_path / "out.jsonl"  # more than are done by then
    with counting(models) as (given, _):
        arguments = [str(source), "-o", str(out), *given, "--no-cache"]
        process = begin(arguments)
        while process.is_alive() and (not out.exists() or out.read_bytes().count(b"\n") < 3):
            time.sleep(0.005)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(20)
        assert process.exitcode == 130
        done = results(out)
        assert 3 <= len(done) < 400
        limit = str(len(done) + 4)
        status, _, told = command(*arguments, "--resume", "--limit", limit)
        assert (status, f"{limit} rows" in told or "were there before" in told) == (0, True)
        assert [line["index"] for line in results(out)][: len(done)] == [line["index"] for line in done]
