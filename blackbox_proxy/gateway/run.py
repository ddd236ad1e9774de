"""The gateway, served until it is told to stop: then nobody new is let in, and what is being written may end in peace.

SIGTERM -> no new connections -> texts go on for `drain_seconds` -> the rest is broken off, with an error each -> exit 0
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from blackbox_proxy.door.limits import Limits
from blackbox_proxy.door.running import bind, make_server, needing_server
from blackbox_proxy.errors import InputError
from blackbox_proxy.gateway.engine import Model, models_of
from blackbox_proxy.gateway.prompts import Reader
from blackbox_proxy.protocols import Base

_LAST_WORDS = 5.0  # seconds in which errors reach their clients, after which connections are cut


@dataclass(frozen=True, kw_only=True)
class Operation:
    """How a gateway is run. host, port: where it listens. keys: a file of hashed keys, None where anybody may ask.
    active, waiting: requests decoded at a time, and in the queue. drain_seconds: that texts have to end in. limits: of
    clients. page: a page at /, for people. Raises InputError.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    active: int = 64
    waiting: int = 256
    drain_seconds: float = 30.0
    limits: Limits = field(default_factory=Limits)
    page: bool = True

    def __post_init__(self) -> None:
        if self.active < 1 or self.waiting < 0:
            raise InputError("there must be room for at least one request", hint="Leave it out for the default.")
        if not (math.isfinite(self.drain_seconds) and self.drain_seconds >= 0):
            raise InputError(f"drain_seconds must be at least 0, not {self.drain_seconds}")
        if self.keys is None and not is_loopback(self.host):
            raise InputError(
                f"{self.host} can be reached from elsewhere, and there are no keys",
                hint="Make one with `blackbox-proxy key NAME --keys keys.toml`, and give --keys keys.toml. Or listen "
                "on 127.0.0.1.",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches this address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def run_gateway(
    base: Base,
    models: Sequence[Model],
    reader: Reader,
    operation: Operation,
    *,
    announce: Callable[[str, int], None] | None = None,
) -> None:
    """Serve models over one base until interrupted or terminated; the base is closed then.

    announce: called with host and port once requests are answered. Raises InputError (port taken, extra not installed).
    """
    with needing_server():
        from blackbox_proxy.gateway.app import Porter, Room, create_gateway
        from blackbox_proxy.gateway.keys import Keys
    keys = None if operation.keys is None else Keys.read(operation.keys)
    porter = Porter(Room(active=operation.active, waiting=operation.waiting))
    with bind(operation.host, operation.port) as listener, _logged(), _ending_well():
        app = create_gateway(
            models_of(base, models, reader), porter, keys=keys, limits=operation.limits, page=operation.page
        )
        server = make_server(
            app,
            lambda: announce(*listener.getsockname()[:2]) if announce else None,
            operation.limits,
            patience=operation.drain_seconds + _LAST_WORDS,
            leaving=lambda: _leave(porter, operation.drain_seconds),
            left=base.aclose,
        )
        with suppress(KeyboardInterrupt):  # uvicorn has ended in good order and passes the signal on
            server.run(sockets=[listener])


def _leave(porter: Any, seconds: float) -> None:
    porter.end()
    asyncio.get_running_loop().call_later(seconds, porter.break_off)


@contextmanager
def _ending_well() -> Iterator[None]:
    """uvicorn raises SIGTERM anew once it has ended: that has been obeyed by then."""
    before: Any = None
    with suppress(ValueError):  # signals belong to the main thread
        before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _logged() -> Iterator[None]:
    """The gateway's own log as lines of JSON on standard error."""
    from blackbox_proxy.gateway.watch import JsonLines, log

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    level, propagates = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
