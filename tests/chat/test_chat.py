"""A conversation: through a pipe, on a terminal, and as an object."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blackbox_proxy import ProxyTuner, TransformersPair
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.chat.conversation import Conversation
from blackbox_proxy.errors import InputError

Run = Callable[..., tuple[int, str, str]]
READY = "\x1b[?2004h"  # the line editor takes keys
ARGUMENTS = {"max_tokens": 8, "temperature": 0.0, "top_p": 1.0, "stop": ()}


@pytest.fixture
def options(hosted: Callable[[int], str], models: dict[str, str]) -> list[str]:
    return [
        *("--base", "big", "--base-url", hosted(5), "--dialect", "vllm", "--tokenizer", models["base"], "-n", "8"),
        *("--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"),
    ]


@pytest.fixture
def say(run: Run, options: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def told(*lines: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run("chat", *options)

    return told


@pytest.fixture
def conversation(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> Callable[..., Conversation]:
    return lambda **how: Conversation(ProxyTuner(api_base(), pairs("digits")), ARGUMENTS, plain=True, **how)


def test_a_pipe_gets_the_replies_and_nothing_else(say: Callable[..., tuple[int, str, str]], run: Run,
                                                  options: list[str]) -> None:  # fmt: skip
    asked = "User: The mayor of\nAssistant:"
    status, out, err = say("The mayor of", "/why", "/alpha", "", "/help")
    expected = run("generate", asked, *options, "--stop", "\nUser:")[1]
    assert (status, out) == (0, expected)
    assert "\x1b" not in out + err
    assert "API calls" in err
    assert "candidate" in err
    assert "alpha is 1" in err


def test_commands_change_what_follows(
    say: Callable[..., tuple[int, str, str]], run: Run, options: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    status, out, _ = say("//etc", "/base", "/alpha 0", "/reset", "//etc", f"/save {file}")
    assert status == 0
    asked = ["User: /etc\nAssistant:", *options, "--stop", "\nUser:"]
    tuned, base = run("generate", *asked)[1], run("generate", *asked, "--alpha", "0")[1]
    assert tuned != base
    assert out == tuned + base + base
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert saved["messages"][0]["content"] == "/etc"
    assert saved["turns"] == [{"alphas": [0.0], "changed": 0}]
    assert saved["usage"]["api_calls"] > 0
    assert saved["settings"]["base"] == "big"
    assert "127.0.0.1" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/frobnicate", "no command /frobnicate"),
        ("/why", "nothing was said"),
        ("/base", "nothing was said"),
        ("/alpha much", "'much' is no number"),
        ("/alpha 1 2", "1 pairs but 2 alphas"),
        ("/save", "no file"),
        ("/save /nowhere/at/all", "cannot be written"),
    ],
)
def test_the_first_mistake_ends_a_pipe(line: str, expected: str, say: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = say(line, "never reached")
    assert (status, out) == (2, "")
    assert expected in err
    assert "Hint: " in err


def test_a_conversation_goes_on_from_what_was_said(conversation: Callable[..., Conversation]) -> None:
    talk = conversation()
    first = "".join(step.text for step in talk.ask("The mayor of"))
    assert [message["content"] for message in talk.messages()] == ["The mayor of", first.strip()]
    list(talk.ask("And?"))
    asked = talk._prompt("then")
    assert asked == "\n".join(
        [f"User: The mayor of\nAssistant: {first.strip()}", f"User: And?\nAssistant: {talk.turns[1].reply.strip()}",
         "User: then\nAssistant:"]
    )  # fmt: skip
    before = talk.record()
    list(talk.ask_base())
    assert talk.record() == before, "what the base says is no part of it"
    with pytest.raises(InputError):
        talk.step(9)


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came(conversation: Callable[..., Conversation]) -> None:
    talk = conversation()
    steps = talk.ask("The mayor of")
    next(steps)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert [len(turn.steps) for turn in talk.turns] == [2]


def test_on_a_terminal_replies_are_coloured_and_a_mistake_ends_nothing(options: list[str]) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-m", "blackbox_proxy", "chat", *options]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    came = ""

    def until(what: str, *, seconds: float = 60.0) -> str:
        nonlocal came
        end = time.monotonic() + seconds
        while what not in came:
            assert time.monotonic() < end, came
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            came += os.read(ours, 1 << 16).decode("utf-8", "replace")
        seen, _, came = came.partition(what)
        return seen

    try:
        until("/help tells the commands")
        until(READY)
        os.write(ours, b"The mayor of\r")
        reply = until("output tokens")
        assert re.search(r"\x1b\[1;3[35]m", reply), "changed tokens are coloured"
        until(READY)
        os.write(ours, b"/frobnicate\r")
        until("no command /frobnicate")
        until(READY)
        os.write(ours, b"/why\r")
        assert "anti-expert" in until("tuned")
        until(READY)
        os.write(ours, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
