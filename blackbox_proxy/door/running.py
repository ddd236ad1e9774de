"""An app that answers: a socket, a uvicorn server that keeps limits, and such a server in a thread."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from blackbox_proxy.door.limits import Limits
from blackbox_proxy.errors import InputError, ServerFailed

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@contextmanager
def needing_server() -> Iterator[None]:
    """Around imports of what serving needs. Raises InputError where the extra is not installed."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"serving needs the package {error.name}, which is not installed",
            hint="pip install 'blackbox-proxy[server]'",
        ) from error


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: nobody connects before there is an answer. Raises InputError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # a port whose last connections are still closing is free
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="Another program may be using this port; 0 takes a free one.",
        ) from error


def make_server(
    app: ASGIApp,
    on_ready: Callable[[], None],
    limits: Limits | None = None,
    *,
    patience: float = 1.0,
    leaving: Callable[[], None] | None = None,
    left: Callable[[], Awaitable[None]] | None = None,
) -> Any:
    """A uvicorn server that calls back once it answers requests; run it with `run(sockets=[…])`.

    limits: those of connections are kept here, those of requests by the app. patience: seconds that requests get to end
    in, once it is told to stop. leaving, left: called in its event loop when it begins to stop, and when no request is
    left.
    """
    import uvicorn

    from blackbox_proxy.door.connections import guarded_protocol

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if leaving is not None:
                leaving()
            await super().shutdown(sockets)
            if left is not None:
                await left()

    config = uvicorn.Config(
        app,
        http=guarded_protocol(limits or Limits()),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=math.ceil(patience),
    )
    return Server(config)


@contextmanager
def serve_in_thread(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, limits: Limits | None = None, **how: Any
) -> Iterator[str]:
    """Serve an app from a thread of this process; gives its URL, without /v1. limits, how: see `make_server`."""
    ready = threading.Event()
    with bind(host, port) as listener:
        server = make_server(app, ready.set, limits, **how)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        address = listener.getsockname()
        deadline = time.monotonic() + 30
        while not ready.wait(0.1):
            if not thread.is_alive() or time.monotonic() > deadline:
                raise ServerFailed("the server did not start")
        try:
            yield f"http://{address[0]}:{address[1]}"
        finally:
            server.should_exit = True
            thread.join()
