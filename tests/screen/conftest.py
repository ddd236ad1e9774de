"""A terminal of this process's own: what a command draws on it, as the bytes that arrive."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator

import pytest
from evil import hostile
from starlette.applications import Starlette
from starlette.routing import Route

from blackbox_proxy.door.running import serve_in_thread

OnTerminal = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def evil_url() -> Iterator[str]:
    with serve_in_thread(Starlette(routes=[Route("/{path:path}", hostile, methods=["GET", "POST"])])) as url:
        yield f"{url}/v1"


@pytest.fixture
def options(evil_url: str, models: dict[str, str]) -> list[str]:
    return [
        *("--base-url", evil_url, "--api-key", "none", "--no-stream", "--no-local-drafts", "--no-cache"),
        *("--max-retry-seconds", "2", "--device", "cpu"),
        *("--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"]),
    ]


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> OnTerminal:
    """Run the command with both its outputs on a pseudo-terminal of a given width: exit status, what arrived."""
    from blackbox_proxy import cli

    def call(*arguments: str, columns: int = 80) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        modes = termios.tcgetattr(theirs)
        modes[1] &= ~termios.OPOST  # bytes as they are
        termios.tcsetattr(theirs, termios.TCSANOW, modes)
        came = bytearray()
        reader = threading.Thread(target=_read, args=(ours, came), daemon=True)
        reader.start()
        monkeypatch.setattr(sys, "argv", ["blackbox-proxy", *arguments])
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm-256color")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        with os.fdopen(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            patch.setattr(sys, "stderr", terminal)
            with pytest.raises(SystemExit) as ended:
                cli.main()
            for thread in threading.enumerate():  # none may draw on a terminal that the command has left
                if type(thread).__name__ == "_RefreshThread":
                    thread.join(5)
                    assert not thread.is_alive()
        reader.join(10)
        os.close(ours)
        return int(ended.value.code or 0), came.decode("utf-8")

    return call


def _read(ours: int, came: bytearray) -> None:
    try:
        while part := os.read(ours, 1 << 16):
            came += part
    except OSError:  # the other end has been closed
        pass
