"""The commands around a trace: `generate --trace`, `run --trace`, `report`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from steps import ODD, Elements, Run, hostile_page, page_of, text_of

from blackbox_proxy import analysis
from blackbox_proxy.trace import TraceFile, read_trace


def test_generate_keeps_a_trace_and_report_shows_it(
    run: Run, tmp_path: Path, models: dict[str, str], hosted: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key")
    pair = ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"]
    api = ["--base", "big", "--base-url", hosted(5), "--dialect", "vllm", "--tokenizer", models["base"]]
    traces = []
    for alpha in ("1", "0.5"):
        traces.append(str(tmp_path / f"{alpha}.jsonl"))
        asked = ["generate", "The mayor of", *api, *pair, "-n", "24", "--alpha", alpha, "--trace", traces[-1]]
        status, out, _ = run(*asked, "--prices", "1,1,2")
        assert status == 0
        (text,) = read_trace(traces[-1]).texts
        assert (text.prompt, text.text.rstrip("\n"), len(text.steps)) == ("The mayor of", out.rstrip("\n"), 24)
        kept = Path(traces[-1]).read_text()
        assert "sk-secret-key" not in kept
        assert hosted(5) not in kept
    status, _, err = run(*asked)
    assert (status, "exists already" in err) == (2, True)

    status, out, err = run("report", traces[0])
    assert status == 0
    assert "24 tokens" in out
    assert "By kind of token" in out
    assert "cost" in out

    page = tmp_path / "report.html"
    status, out, err = run("report", *traces, "-o", str(page))
    assert (status, out) == (0, "")
    assert f"{page}: " in err.replace("\n", "")
    found = Elements(page.read_text("utf-8"))
    assert sum(tag == "span" and "tabindex" in given for tag, given in found.tags) == 24
    assert len([1 for tag, given in found.tags if tag == "path" and "dot" in str(given.get("class"))]) == 2
    status, out, _ = run("report", *traces, "--json")
    figures = json.loads(out)
    assert figures["summary"]["tokens"] == 24
    assert [one["alpha"] for one in figures["runs"]] == [1.0, 0.5]
    used = next(point for point in figures["sweep"] if point["scale"] == 1.0)
    assert used["changed"] == pytest.approx(figures["summary"]["overall"]["changed"])


def test_a_json_generation_is_traced_too_and_a_failed_one_leaves_no_file(
    run: Run, tmp_path: Path, models: dict[str, str]
) -> None:
    pair = ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"]
    path = tmp_path / "t.jsonl"
    status, _, _ = run("generate", "a", "--local", "--base", "./nowhere", *pair, "--trace", str(path))
    assert (status, path.exists()) == (1, False)
    options = ["--local", "--base", models["base"], *pair, "-n", "4", "--json", "--trace", str(path)]
    status, out, _ = run("generate", "New York", *options)
    assert (status, read_trace(path).texts[0].text) == (0, json.loads(out)["text"])


def test_a_bulk_run_keeps_a_trace_and_goes_on_with_it(run: Run, tmp_path: Path, models: dict[str, str]) -> None:
    pair = ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"]
    rows, out, trace = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "t.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"New York {i}"}) + "\n" for i in range(3)))
    asked = ["run", str(rows), "-o", str(out), "--local", "--base", models["base"], *pair, "-n", "4", "--trace"]
    assert run(*asked, str(trace), "--limit", "2")[0] == 0
    assert run(*asked, str(trace), "--resume")[0] == 0
    assert {text.prompt for text in read_trace(trace).texts} == {f"New York {i}" for i in range(3)}
    assert "3 texts" in run("report", str(trace), "-o", str(tmp_path / "r.html"))[2]


BAD: dict[str, tuple[list[str], str]] = {
    "nowhere": (["nowhere.jsonl"], "nowhere.jsonl"),
    "prices": (["TRACE", "--prices", "much"], "--prices"),
    "candidates": (["TRACE", "--candidates", "0"], "at least 1"),
    "no folder": (["TRACE", "-o", "nowhere/r.html"], "cannot be written"),
    "no texts": (["EMPTY"], "has no texts"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_what_goes_wrong_is_said_with_a_hint(arguments: list[str], said: str, run: Run, tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl") as file:
        file.add("a", ODD)
    (tmp_path / "e.jsonl").write_text('{"format": "blackbox-proxy trace", "version": 1}\n')
    named = {"TRACE": str(tmp_path / "t.jsonl"), "EMPTY": str(tmp_path / "e.jsonl")}
    status, _, err = run("report", *(named.get(one, one) for one in arguments))
    assert (status, said in err, "Hint:" in err, "Traceback" in err) == (2, True, True, False)


def test_the_terminal_obeys_no_token(run: Run, tmp_path: Path) -> None:
    _, texts = hostile_page()
    with TraceFile(tmp_path / "t.jsonl", {"alpha": 1.0}) as file:
        for text in texts:
            file.add(text.prompt, text.steps)
    status, out, _ = run("report", str(tmp_path / "t.jsonl"))
    assert status == 0
    assert not set("\x00\x1b\r\u202e\u2066\u2028") & set(out)
    assert "[31m" in out  # as text, after a sign for what began it


def test_a_text_that_ended_unseen_at_once_can_be_looked_at(run: Run, tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl") as file:
        file.add("a", ODD[-1:])
    assert run("report", str(tmp_path / "t.jsonl"))[0] == 0
    _, out, _ = run("report", str(tmp_path / "t.jsonl"), "--json")
    assert json.loads(out, parse_constant=pytest.fail)["summary"]["covered_mass"] is None
    page = page_of(text_of(ODD[-1:]))
    assert "without showing candidates" in page
    assert not re.search(r"\bnan\b", page)
    assert math.isnan(analysis.summarise([analysis.measure(ODD[-1:])]).covered_mass)
