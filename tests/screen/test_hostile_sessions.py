"""The same server, met by commands that stay: `chat` and `serve`; and what `key` says of names and files of others."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from evil import EVIL, check_harmless

from blackbox_proxy.chat import terminal

OnTerminal = Callable[..., tuple[int, str]]
WRONG = ("/alpha x", f"/no{EVIL}", f"/save {EVIL}", f"/save /nowhere/{EVIL[-20:]}")
ASKING = ("Say", "/why", "/why 2", "/base", "//x")
TYPED = (*ASKING, *WRONG, "/alpha 0.5", "/help")


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody at a terminal."""

    class Keyboard:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Keyboard())
    monkeypatch.setattr(terminal, "typed_lines", lambda: iter(TYPED))


@pytest.mark.usefixtures("typing")
@pytest.mark.parametrize("model", ["m", "refuses"])
def test_a_conversation(on_terminal: OnTerminal, options: list[str], model: str) -> None:
    status, came = on_terminal("chat", "--base", model, *options, "-n", "2")
    assert status == 0, came
    plain = check_harmless(came)
    assert "␛[2J␛]8;;http://evil.example" in plain  # in what is written, or in why it is not
    assert plain.count("Error: ") == len(WRONG) + (0 if model == "m" else len(ASKING)), plain


def test_a_key(on_terminal: OnTerminal, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    for name, content in (
        (EVIL.replace("\x00", ""), ""),
        ("me", f'"{EVIL[-8:]}" = 1'),
        ("me", f"x = {EVIL!r}\n[{EVIL}"),
    ):
        keys.write_text(content, encoding="utf-8")
        status, came = on_terminal("key", name, "--keys", str(keys))
        assert status == 2
        assert "Error: " in check_harmless(came)
    keys.write_text("")
    status, came = on_terminal("key", "me", "--keys", str(keys))
    assert (status, bool(re.fullmatch(r"bbp-[\w-]{43}\n", check_harmless(came)))) == (0, True)


@contextmanager
def on_a_terminal_of_its_own(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int, bytearray]]:
    """A command as a process whose three files are a terminal: the process, our end, and what has arrived."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    surroundings = {**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "blackbox_proxy", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=surroundings,
        start_new_session=True,
    )
    os.close(theirs)
    came = bytearray()

    def read() -> None:
        with suppress(OSError):  # the other end has been closed
            while part := os.read(ours, 1 << 16):
                came.extend(part)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield process, ours, came
        assert process.wait(60) == 0, came.decode("utf-8", "replace")
        reader.join(10)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def until(came: bytearray, pattern: bytes, process: subprocess.Popen[bytes], start: int = 0) -> int:
    """Wait until a pattern has arrived behind a place; where that ends."""
    end, sought = time.monotonic() + 60, re.compile(pattern, re.DOTALL)
    while not (found := sought.search(bytes(came), start)):
        assert process.poll() is None, came.decode("utf-8", "replace")
        assert time.monotonic() < end, came.decode("utf-8", "replace")
        time.sleep(0.02)
    return found.end()


@pytest.mark.hostile
def test_a_server_and_its_callers(options: list[str], evil_url: str, tmp_path: Path) -> None:
    """What the base answers and what callers send is in the log of `serve`, as JSON without a control character."""
    wanted = ["serve", "--base", "m", *[word for word in options if word != "--no-stream"], "--port", "0"]
    with on_a_terminal_of_its_own(*wanted) as (process, _, came):
        until(came, rb"at http://\S+/v1\S*\n|at http://\S+/v1;", process)
        url = re.findall(r"at (http://\S+)/v1", came.decode("utf-8"))[0]
        for body in (
            {"model": "tuned", "prompt": "Say", "max_tokens": 2},
            {"model": "m", "prompt": EVIL, "max_tokens": 1, "user": EVIL},
            {"model": EVIL, "prompt": "Say"},
            {"model": "tuned", "messages": EVIL},
        ):
            _post(f"{url}/v1/completions", body)
        host, port = url.removeprefix("http://").split(":")
        for line in (f"GET /v1/{EVIL[:40]} HTTP/1.1", f"{EVIL[:20]} / HTTP/1.1", "GET /%1b%5b2J%9b HTTP/1.1"):
            with socket.create_connection((host, int(port)), 10) as raw:
                raw.sendall(f"{line}\r\nhost: {host}\r\nuser-agent: {EVIL[:30]}\r\nconnection: close\r\n\r\n".encode())
                with suppress(OSError):
                    raw.settimeout(5)
                    raw.recv(1000)
        process.send_signal(signal.SIGTERM)
    plain = check_harmless(came.decode("utf-8"))
    assert [json.loads(line) for line in plain.splitlines() if line.startswith("{")]


def _post(url: str, body: Any) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        error.close()


@pytest.mark.hostile
def test_a_conversation_that_is_typed(options: list[str]) -> None:
    """With the line editor, which draws in ways of its own: nothing of the server's arrives among that."""
    shows = {b"Say": rb"a\xe2\x90\x9b\[2J", b"/why": rb"candidate", b"/base": rb"a\xe2\x90\x9b\[2J"}
    with on_a_terminal_of_its_own("chat", "--base", "m", *options, "-n", "2") as (process, ours, came):
        place = until(came, rb"\x1b\[0m>.*\x1b\[\?25h", process)
        for line, pattern in shows.items():
            os.write(ours, line + b"\r")
            place = until(came, pattern, process, place)
            place = until(came, rb"\x1b\[0m>.*\x1b\[\?25h", process, place)
        os.write(ours, b"\x04")
    text = came.decode("utf-8")
    assert "\x1b[2J" not in text
    drawn = re.sub(r"\x1b\[[?>]?[0-9;]*[A-Za-ln-z]|\x1b[=>]|[\r\b]", "", text)
    check_harmless(drawn)
