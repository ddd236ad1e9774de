"""Secrets that are planted everywhere, and a server that repeats all that it was sent: no command shows one of them.

Not on either output, not in any file that it writes, not in what any logger says at DEBUG. All commands in all kinds of
answers are `pytest -m hostile`; some are in every run.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_answers import legacy
from raw_server import Asked, Kind, Out, raw_server

KEY, PASSWORD = "sk-planted-0123456789", "hunter2-planted-password"
QUERY, PAIR_KEY = "qk-planted-9876543210", "pk-planted-5555555555"
PLANTED = (KEY, PASSWORD, QUERY, PAIR_KEY, base64.b64encode(f"me:{PASSWORD}".encode()).decode())
Command = Callable[..., tuple[int, str, str]]


def hits(text: str) -> list[str]:
    """The secrets in a text, however they are spelled in it."""
    return [secret for secret in PLANTED if secret in text or secret in text.replace("\\", "").replace("%2D", "-")]


# -- what repeats -----------------------------------------------------------------------------------------------------


def repeated(asked: Asked) -> str:
    told = asked.headers.get("authorization", "").removeprefix("Bearer ").removeprefix("Basic ")
    return f"{told} {asked.path} {asked.headers} {asked.body.decode('utf-8', 'replace')}"


def refusing(status: str, **headers: str) -> Kind:
    async def answer(asked: Asked, out: Out) -> None:
        said = repeated(asked)
        body = {"error": {"message": said, "type": said, "code": said, "param": said}}
        await out.whole(json.dumps(body).encode(), status, x_request_id=said[:200].replace("\n", " "), **headers)

    return answer


async def page(asked: Asked, out: Out) -> None:
    await out.whole(f"<html>{repeated(asked)}".encode(), content_type="text/html")


async def cut(asked: Asked, out: Out) -> None:
    await out.whole(json.dumps({"choices": [repeated(asked)]}).encode()[:-3])


async def event(asked: Asked, out: Out) -> None:
    await out.head(content_type="text/event-stream")
    await out.event({"error": {"message": repeated(asked)}})


async def moved(asked: Asked, out: Out) -> None:
    await out.whole(b"", "307 Moved", location=f"http://127.0.0.1:9/v1?all={repeated(asked).replace(' ', '+')}")


async def answering(asked: Asked, out: Out) -> None:
    """A good answer, which is made of what was sent."""
    told = asked.headers.get("authorization", "").removeprefix("Bearer ").removeprefix("Basic ")
    secrets = [told, *re.findall(r"[?&]\w+=([^&]+)", asked.path)]
    if asked.method == "GET":
        await out.whole(json.dumps({"data": [{"id": "m", "owned_by": told, "root": f"/{told}"}]}).encode())
        return
    sent = json.loads(asked.body)
    if sent.get("echo"):
        await refusing("400 No")(asked, out)
        return
    n, k = sent.get("max_tokens") or 1, max(sent.get("logprobs") or 1, 1)
    listed = {f" {secret}": -0.5 - i for i, secret in enumerate(secrets[:k])} | {" b": -3.0}
    rows = [(f" {secrets[0]}", -0.5, listed)] * n
    body = legacy(*rows, text=f" {secrets[0]}" * n) | {"id": told, "model": told, "system_fingerprint": told}
    await out.whole(json.dumps(body).encode(), x_request_id=told)


KINDS: dict[str, Kind] = {
    "400": refusing("400 No"),
    "401": refusing("401 No"),
    "429": refusing("429 Slowly", retry_after="0"),
    "500": refusing("500 Broken"),
    "page": page,
    "cut": cut,
    "event": event,
    "moved": moved,
    "answer": answering,
}


# -- who is asked -----------------------------------------------------------------------------------------------------

COMMANDS: dict[str, list[str]] = {
    "generate": ["Say", "PAIR", "-n", "2", "--trace", "OUT/trace.jsonl", "--show"],
    "run": ["OUT/rows.jsonl", "PAIR", "-o", "OUT/results.jsonl", "-n", "2", "--trace", "OUT/trace.jsonl"],
    "chat": ["PAIR", "-n", "2"],
    "choose": ["Which?", "PAIR", "-o", "a", "-o", "b"],
    "score": ["OUT/text.txt", "PAIR"],
    "eval": ["OUT/tasks.jsonl", "PAIR", "-o", "OUT/eval.json", "--markdown", "OUT/table.md"],
    "fit": ["Say", "PAIR", "--tokens", "4", "-n", "2"],
    "calibrate": ["OUT/texts.jsonl", "PAIR", "-o", "OUT/weights.json"],
    "tune": ["SMALL", "OUT/texts.jsonl", "-o", "OUT/expert", "--through", "--steps", "1"],
    "probe": ["-o", "OUT/found.json", "--max-calls", "6"],
    "doctor": ["Say", "PAIR", "--texts", "1"],
    "config check": ["PAIR", "--online"],
    "config show": ["PAIR"],
}
"""Commands that are told of the base's API, and their arguments."""

SCORING = ("score", "calibrate", "tune")  # which asks for given text
WITHOUT = {
    "host": "sends nothing",
    "demo": "asks its own host",
    "bench": "asks its own host",
    "dialects": "asks nobody",
    "key": "prints a key, once",
    "report": "reads what others wrote",
    "cache": "reads what others wrote",
    "config": "its parts are asked above",
    "serve": "below, as a process",
}
SOME = {("generate", "400"), ("generate", "answer"), ("probe", "401"), ("config show", "page")}
ALL = ("400", "answer")  # kinds that every command meets; of the others each meets some
_CASES = [
    pytest.param(command, kind, marks=() if (command, kind) in SOME else pytest.mark.hostile)
    for i, command in enumerate(COMMANDS)
    for j, kind in enumerate(KINDS)
    if (kind == "page" if command == "config show" else kind in ALL or (i + j) % 4 == 0 or (command, kind) in SOME)
]


def test_no_command_is_forgotten() -> None:
    from typer.main import get_command

    from blackbox_proxy.cli.app import app

    there: Any = get_command(app)
    assert {name.partition(" ")[0] for name in COMMANDS} | set(WITHOUT) == set(there.commands)


@pytest.fixture
def everything_logged() -> Iterator[Callable[[], str]]:
    """What all loggers say at DEBUG, tracebacks included."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for name in levels:
        if name.partition(".")[0] in ("openai", "httpx2", "httpcore2", "asyncio", "blackbox_proxy"):
            logging.getLogger(name).setLevel(logging.DEBUG)
    yield said.getvalue
    root.removeHandler(handler)
    root.setLevel(before)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    rows = [{"prompt": "Say"}, {"prompt": "Tell"}]
    texts = [{"prompt": f"The mayor {i}", "text": " said so."} for i in range(4)]
    tasks = [{"question": "Who?", "choices": ["a", "b"], "answer": 0}, {"question": "Who?", "answer": "me"}]
    for name, lines in (("rows", rows), ("texts", texts), ("tasks", tasks)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "text.txt").write_text("The mayor said so.")
    return tmp_path


def written(folder: Path) -> Iterator[tuple[str, str]]:
    for file in folder.rglob("*"):
        if file.is_file():
            yield str(file), file.name + file.read_bytes().decode("utf-8", "replace")


@pytest.mark.parametrize(("command", "kind"), _CASES)
def test_no_command_shows_what_it_sends(
    command: str,
    kind: str,
    out: Path,
    models: dict[str, str],
    run: Command,
    everything_logged: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BLACKBOX_PROXY_PROBES", str(out / "probes"))
    monkeypatch.setenv("BLACKBOX_PROXY_PAIR_KEY", PAIR_KEY)
    pair = ["--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device", "cpu"]
    meant = {"PAIR": pair, "SMALL": [models["same-antiexpert"]]}
    arguments = [part.replace("OUT", str(out)) for word in COMMANDS[command] for part in meant.get(word, [word])]
    named = "--model" if command == "probe" else "--base"
    base = [named, "m", "--dialect", "host" if command in SCORING else "auto" if kind == "answer" else "openai"]
    if command not in ("probe", "config show"):
        base += ["--max-retry-seconds", "2"]
        base += [] if command == "tune" else ["--cache", "--cache-file", str(out / "cache.db")]
    with raw_server(KINDS[kind]) as server:
        ways = {
            "a key and a query": ({"OPENAI_API_KEY": KEY}, f"{server.url}?sig={QUERY}"),
            "a password": ({"OPENAI_API_KEY": ""}, server.url.replace("//", f"//me:{PASSWORD}@")),
        }
        for variables, url in ways.values():
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("OPENAI_BASE_URL", url)
            monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n/base\n/why\n"))
            code, said, err = run(*command.split(), *arguments, *base)
            assert "Traceback" not in err, err
            assert code in (0, 1, 2), err
            assert hits(said + err) == [], (code, said, err)
            for file in ("results.jsonl", "eval.json", "trace.jsonl", "weights.json"):
                if (out / file).exists():
                    assert hits((out / file).read_text()) == []
                    (out / file).unlink()
        asked = [seen.headers.get("authorization", "") + seen.path for seen in server.seen]
        if command != "config show":  # they were sent, so that they could have been shown
            assert any(KEY in one for one in asked), (code, said, err)
            assert any(QUERY in one for one in asked)
            assert any(PLANTED[-1] in one for one in asked)
    assert [line for line in everything_logged().splitlines() if hits(line)] == []
    assert [name for name, text in written(out) if hits(text)] == []


@pytest.mark.hostile
def test_serve_shows_nobody_what_it_sends(out: Path, models: dict[str, str]) -> None:
    """A process of its own with every logger at DEBUG, asked by a caller with a key of its own."""
    from blackbox_proxy.gateway.keys import new_key

    caller, kinds = new_key("me", out / "keys.toml"), ["400"]
    loud = "import logging\nlogging.basicConfig(level=logging.DEBUG)\nfrom blackbox_proxy.cli import main\nmain()\n"

    async def of_now(asked: Asked, answer: Out) -> None:
        await KINDS[kinds[-1]](asked, answer)

    log, shown = out / "log", list[str]()
    with raw_server(of_now) as server, log.open("wb") as to:
        command = [sys.executable, "-c", loud, "serve", "--base", "m", "--dialect", "openai", "--port", "0"]
        command += ["--keys", str(out / "keys.toml"), "--expert", models["same-expert"], "--device", "cpu"]
        command += ["--antiexpert", models["same-antiexpert"], "--max-retry-seconds", "1", "--no-cache"]
        surroundings = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{server.url}?sig={QUERY}"}
        process = subprocess.Popen(command, stdout=to, stderr=to, env=surroundings)
        while not (found := re.search(r"at (http://\S+)/v1", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        for kind in ("400", "page", "event", "moved", "answer"):
            kinds.append(kind)
            shown += [_asked(found[1] + path, body, caller) for path, body in CALLS]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert any(KEY in seen.headers.get("authorization", "") for seen in server.seen)
    logged = log.read_text()
    assert "DEBUG" in logged
    for secret in (KEY, QUERY, caller):
        assert [line for line in logged.splitlines() if secret in line] == []
        assert [text for text in shown if secret in text] == []
    assert caller not in (out / "keys.toml").read_text()


CALLS: list[tuple[str, Any]] = [
    ("/v1/models", None),
    ("/v1/completions", {"model": "tuned", "prompt": "Say", "max_tokens": 2, "logprobs": 2}),
    ("/v1/completions", {"model": "m", "prompt": "Say", "max_tokens": 2, "stream": True}),
    ("/v1/chat/completions", {"model": "tuned", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}),
    ("/v1/completions", {"model": "nobody", "prompt": "Say"}),
    ("/metrics", None),
]


def _asked(url: str, body: Any, key: str) -> str:
    """What a caller gets: headers and body."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return f"{answer.headers} {answer.read().decode()}"
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.headers} {error.read().decode()}"
