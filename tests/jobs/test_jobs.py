"""Bulk runs: what is asked and kept, what is checked before anything is spent, and what is said of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from bulk import Fake, numbered, results, rows_file
from rich.console import Console

from blackbox_proxy.errors import InputError
from blackbox_proxy.jobs import JobReport, estimate_job, run_job
from blackbox_proxy.jobs.inputs import row_seed
from blackbox_proxy.prices import Prices
from blackbox_proxy.report.progress import figures, job_line, watching
from blackbox_proxy.types import Usage

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
    '"id" is text or a whole number, not 1.0': '{"prompt": "a", "id": 1.0}',
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
    with pytest.raises(InputError, match=r"^18 of the rows in .*line 1: .* UTF-8.*line 10: .*; and 8 more$"):
        run_job(Fake(), source, out)
    report = run_job(Fake(), source, out, skip_bad=True)
    assert (report.total, report.done, report.bad, len(report.bad_rows)) == (1, 1, 18, 10)
    assert results(out)[0]["index"] == 18
    assert results(out)[0]["seed"] == row_seed(0, 18)


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


def test_progress_shows_speed_calls_money_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal is shown no bars
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
