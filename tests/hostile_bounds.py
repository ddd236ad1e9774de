"""What a hostile server may cost: time and memory, measured; and which texts are right."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hostile_kinds import TEXT, TOKENS
from raw_server import RawServer

LIMIT = 1.0  # seconds, of a request with its retries
MORE = 2.0
MEMORY = 300_000_000
ASKED = len(TEXT.split())


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def bounded(server: RawServer, beside: float = 0.0) -> Iterator[None]:
    """Measures time and memory of what is done inside. beside: seconds for what has nothing to do with the server."""
    idle = most = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.monotonic()
    try:
        yield
    finally:
        took = time.monotonic() - began
        done.set()
        watcher.join()
    assert most - idle <= MEMORY, f"{(most - idle) / 1e6:.0f} MB"
    went_on = len({seen.body for seen in server.seen})  # requests that go on from something are other requests
    assert took <= LIMIT * max(1, went_on) + MORE + beside, f"{took:.1f} s"


def right(text: str) -> bool:
    """The beginning of the right text, or what is chosen where the likeliest token cannot be issued back."""
    return "".join(TOKENS).startswith(text) or text == " zz" * ASKED
