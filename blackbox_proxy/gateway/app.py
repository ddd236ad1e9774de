"""The gateway's app: the routes of `serve` over tuned engines, with a queue, keys, metrics and a door that closes.

GET /health         it runs                   open
GET /ready          it takes requests         open; 503 once it is ending
GET /metrics        Prometheus                behind the key, where there are keys
GET /openapi.json   the routes, described     behind the key, where there are keys
GET /               the page that shows two models side by side (page.py), if wanted; open, what it asks is not
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackbox_proxy.door.limits import Limits
from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.gateway.keys import KeyCheck, Keys
from blackbox_proxy.gateway.metrics import CONTENT_TYPE, Metrics
from blackbox_proxy.gateway.page import page_routes
from blackbox_proxy.gateway.places import Places
from blackbox_proxy.gateway.watch import Watched, caller_in, note, record_of
from blackbox_proxy.serve.description import describe
from blackbox_proxy.serve.emulation import Emulation
from blackbox_proxy.serve.engine import Engine, Event
from blackbox_proxy.serve.gate import Gate
from blackbox_proxy.serve.requests import Order
from blackbox_proxy.serve.routes import create_app
from blackbox_proxy.serve.wire import Json
from blackbox_proxy.types import Usage
from blackbox_proxy.version import __version__

OWNER = "blackbox_proxy_serve"  # by which the dialect "serve" is known

_OWN_FIELDS: dict[str, Json] = {
    "alpha": {"type": "number", "description": "Within what the operator allows (`--alpha-range`)."},
    "tail": {"type": "string", "description": "The model's own policy, or one that the operator allows (`--tails`)."},
    "steps": {"type": "integer", "description": "Candidates of each token that `logprobs.steps` tells about."},
}
_OTHERS = {
    "/health": "It runs",
    "/ready": "Whether it takes requests",
    "/metrics": "Counts and times, for Prometheus",
    "/openapi.json": "This description",
}


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many a gateway serves. active: requests decoded at a time; waiting: requests in the queue."""

    active: int = 64
    waiting: int = 256


class Porter(Gate):
    """Who is answered when: a queue, what is counted, and the end. `Gate` has what the routes tell it."""

    def __init__(self, room: Room) -> None:
        self.places = Places(room.active, room.waiting)
        self.metrics = Metrics(self.places)
        self.ending = False
        self._open: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def admitted(self, request: Request, order: Order) -> AsyncIterator[None]:
        if self.ending:
            raise _closing()
        try:
            async with (
                asyncio.timeout(None) as open_until,
                self._counted(open_until),
                self.places.taken(caller_in(request.scope)),
            ):
                yield
        except TimeoutError:
            if not open_until.expired():
                raise
            raise _closing() from None

    @asynccontextmanager
    async def _counted(self, one: asyncio.Timeout) -> AsyncIterator[None]:
        self._open.add(one)
        try:
            yield
        finally:
            self._open.discard(one)

    def ordered(self, request: Request, model: str, order: Order) -> None:
        record_of(request).ordered(model, order)

    def saw(self, request: Request, event: Event) -> None:
        record = record_of(request)
        begun = record.first is not None
        since = record.saw(event)
        self.metrics.saw(record.model, event.usage, event.upstream or Usage(), since, first=not begun)

    def failed(self, request: Request, error: Exception) -> None:
        note(record_of(request), error)

    def end(self) -> None:
        """Nobody new is let in."""
        self.ending = True

    def break_off(self) -> None:
        """End what is still being written, each with an error for its client. In the event loop's thread."""
        self.ending = True
        now = asyncio.get_running_loop().time()
        for one in list(self._open):
            one.reschedule(now)


def _closing() -> ApiError:
    return ApiError(
        "The server is being stopped.",
        status=503,
        kind="server_error",
        code="shutting_down",
        headers={"retry-after": "5"},
    )


def create_gateway(
    engines: Sequence[Engine],
    porter: Porter,
    *,
    keys: Keys | None = None,
    limits: Limits | None = None,
    page: bool = False,
) -> Starlette:
    """The app. keys: None where anybody may use it. page: it has a page at /."""

    async def ready(request: Request) -> Response:
        body = {"ready": not porter.ending, "models": [engine.name for engine in engines]}
        return JSONResponse(body, 503 if porter.ending else 200)

    async def metrics(request: Request) -> Response:
        return Response(porter.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    names: Json = {"type": "string", "enum": [engine.name for engine in engines]}
    described = describe(__version__, {"model": names, **_OWN_FIELDS}, _OTHERS)
    more = [Route("/ready", ready), Route("/metrics", metrics), Route("/openapi.json", openapi)]
    return create_app(
        engines,
        middleware=[Middleware(Watched, metrics=porter.metrics)],
        behind=[] if keys is None else [Middleware(KeyCheck, keys=keys)],
        emulation=Emulation(owned_by=OWNER),
        gate=porter,
        limits=limits,
        strict=True,
        routes=[*more, *(page_routes() if page else ())],
    )
