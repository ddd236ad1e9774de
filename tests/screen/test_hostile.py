"""A server that writes to the terminal: on a real one, only text and our own colours arrive; a pipe gets every byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evil import EVIL, SGR, check_harmless

from blackbox_proxy.screen.visible import escaped, shown

OnTerminal = Callable[..., tuple[int, str]]


def test_what_a_model_writes(on_terminal: OnTerminal, options: list[str]) -> None:
    for more in ([], ["--show"]):
        status, came = on_terminal("generate", "Say", "--base", "m", *options, "-n", "2", *more)
        assert status == 0, came
        assert "␛[2J␛]8;;http://evil.example" in check_harmless(came)
        assert "\\x9b31m" in came
        assert "[red]b[/red]:bomb:" in came  # no markup, no emoji


def test_json_on_a_terminal_is_the_same_value(on_terminal: OnTerminal, options: list[str]) -> None:
    status, came = on_terminal("generate", "Say", "--base", "m", *options, "-n", "2", "--json")
    assert status == 0, came
    assert SGR.search(came) is None
    assert json.loads(check_harmless(came))["text"] == EVIL * 2


def test_a_pipe_gets_every_byte(run: Callable[..., tuple[int, str, str]], options: list[str]) -> None:
    status, out, _ = run("generate", "Say", "--base", "m", *options, "-n", "2")
    assert (status, out) == (0, EVIL * 2 + "\n")
    status, out, _ = run("generate", "Say", "--base", "m", *options, "-n", "2", "--json")
    assert json.loads(out)["text"] == EVIL * 2


@pytest.mark.parametrize("model", ["refuses", "html"])
def test_error_lines(on_terminal: OnTerminal, options: list[str], model: str) -> None:
    for prompt in ("404", "502"):
        status, came = on_terminal("generate", prompt, "--base", model, *options, "-n", "2")
        assert status in (1, 2)
        assert "Error: " in check_harmless(came)


def test_choices_and_scores(on_terminal: OnTerminal, options: list[str], tmp_path: Path) -> None:
    asked = ("-o", "b", "-o", f"c{EVIL}".replace("\x00", ""))
    _, came = on_terminal("choose", "Which?", "--base", "m", *options, *asked)
    check_harmless(came)
    text = tmp_path / "text.txt"
    text.write_text(f"Some {EVIL}", encoding="utf-8")
    _, came = on_terminal("score", str(text), "--base", "m", *options)
    check_harmless(came)


def test_a_run(on_terminal: OnTerminal, options: list[str], tmp_path: Path) -> None:
    rows = [{"id": EVIL, "prompt": "Say"}, {"id": 2, "prompt": ""}, {"prompt": 5, EVIL: EVIL}]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for model in ("m", "refuses"):
        _, came = on_terminal(
            *("run", str(file), "-o", str(out), "--overwrite", "--skip-bad", "--base", model, *options, "-n", "2")
        )
        assert "rows done" in check_harmless(came, live=True)


def test_a_report(on_terminal: OnTerminal, options: list[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    assert on_terminal("generate", EVIL, "--base", "m", *options, "-n", "2", "--trace", str(trace))[0] == 0
    status, came = on_terminal("report", str(trace))
    assert status == 0
    assert "tokens" in check_harmless(came)


def test_a_probe(on_terminal: OnTerminal, evil_url: str, tmp_path: Path) -> None:
    asked = ("probe", "--model", "m", "--base-url", evil_url, "--api-key", "none", "-o", str(tmp_path / "found.json"))
    status, came = on_terminal(*asked)
    assert "owned_by" in check_harmless(came, live=True), came
    status, came = on_terminal(*asked, "--json")
    check_harmless(came, live=True)
    assert status == 0


def test_a_fault_of_ours_shows_its_trace(on_terminal: OnTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from blackbox_proxy.cli import dialects

    def fails() -> Any:
        raise RuntimeError(EVIL)

    monkeypatch.setattr(dialects, "Screen", fails)
    status, came = on_terminal("dialects")
    assert status == 1
    assert "RuntimeError: a␛[2J" in check_harmless(came)


def test_every_character_is_harmless_and_no_json_is_changed() -> None:
    every = "".join(map(chr, range(0x3000))) + "\ufeff\uffff\U000e0041\U0010ffff"
    check_harmless(shown(every).replace("\t", "").replace("\u200c", "").replace("\u200d", ""))
    assert json.loads(escaped(json.dumps(every, ensure_ascii=False))) == every
