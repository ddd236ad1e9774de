"""A server that answers as it is told, over real HTTP, and bases that ask it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.opening import open_base

Answer = Response | dict[str, Any] | Callable[[dict[str, Any]], Any]


class Server:
    """Answers the requests with `answers` in turn, the last one again and again; remembers what was sent."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.sent: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def handle(self, request: Request) -> Response:
        self.sent.append(json.loads(await request.body()))
        self.paths.append(request.url.path)
        self.headers.append(dict(request.headers))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer) and not isinstance(answer, Response):
            answer = await answer(self.sent[-1])
        return answer if isinstance(answer, Response) else JSONResponse(answer)


class Asking:
    """Opens bases on the server, whose waiting between attempts takes no time and is written down in `slept`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.slept: list[float] = []

    def __call__(self, model: str = "m", **arguments: Any) -> OpenAIBase:
        # Its answers are looked at, not gone on from: they count as far as they go.
        base = open_base(model, **{"base_url": self.server.url, "trust_drafts": True, "tokenizer": None, **arguments})

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        base._sleep = sleep  # type: ignore[assignment]
        return base


@contextmanager
def running() -> Iterator[Server]:
    """A `Server` on a port of its own."""
    server = Server()
    listening = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    app = Starlette(routes=[Route("/{path:path}", server.handle, methods=["POST"])])
    loop = uvicorn.Server(
        uvicorn.Config(app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=loop.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not loop.started:
        time.sleep(0.005)
    yield server
    loop.should_exit = True
    thread.join(timeout=10)
    listening.close()
