"""The Starlette app: OpenAI's routes over any `Engine`.

    POST /v1/completions, /v1/chat/completions      whole or streamed
    GET  /v1/models, /v1/models/{name}, /health
    POST /generate                                  where SGLang is emulated
    GET  /stats                                     what was asked of this server: {"requests", "active", …}

One request's texts are written one after the other, requests side by side. A client that goes away stops its text at
the next token, streamed or not. `middleware` is the place for what looks at whole requests, such as a log; an emulated
network needs to know the tokens and is an engine (network.py).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from blackbox_proxy.errors import BlackboxError
from blackbox_proxy.serve import wire
from blackbox_proxy.serve.emulated import adapt, ordered
from blackbox_proxy.serve.emulation import Emulation
from blackbox_proxy.serve.engine import Engine, Event, Placed, TextWanted
from blackbox_proxy.serve.guard import Bodies, Door
from blackbox_proxy.serve.limits import Limits
from blackbox_proxy.serve.native import generated, read_generate
from blackbox_proxy.serve.requests import Order, parse, read_chat, read_completion
from blackbox_proxy.serve.wire import ApiError, Head, Json
from blackbox_proxy.types import FinishReason, Usage

_log = logging.getLogger(__name__)


@dataclass
class Stats:
    """Counts since the start. `requests`: generation requests that came in; `refused`: those of them answered with an
    error before anything was generated; `active`: texts being written now; tokens: read and written.
    """

    requests: int = 0
    refused: int = 0
    active: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def create_app(
    engine: Engine,
    *,
    api_key: str | None = None,
    middleware: Sequence[Middleware] = (),
    stats: Stats | None = None,
    emulation: Emulation | None = None,
    limits: Limits | None = None,
) -> Starlette:
    """The app. api_key: what clients must send, None for no check (of /v1 only). stats: counted into, if given.
    emulation: how another server behaves, in place of this one. limits: of requests; `make_server` has those of
    connections.
    """
    emulation, limits = emulation or Emulation(), limits or Limits()
    service = _Service(engine, stats or Stats(), emulation, limits)
    layers = [*middleware, Middleware(Door, limits=limits)]
    if limits.origins:
        layers.append(
            Middleware(CORSMiddleware, allow_origins=sorted(limits.origins), allow_methods=["*"], allow_headers=["*"])
        )
    if api_key:
        layers.append(Middleware(_KeyCheck, api_key=api_key, header=emulation.key_header))
    layers.append(Middleware(Bodies, limits=limits))
    routes = [Route("/health", service.health), Route("/stats", service.show_stats)]
    for root in emulation.roots:
        routes += [
            Route(f"{root}/completions", service.completions, methods=["POST"]),
            Route(f"{root}/chat/completions", service.chat, methods=["POST"]),
            Route(f"{root}/models", service.models),
            Route(f"{root}/models/{{name:path}}", service.model),
        ]
    if emulation.native is not None:
        routes.append(Route(emulation.native, service.generate, methods=["POST"]))
    return Starlette(
        routes=routes,
        middleware=layers,
        exception_handlers={ApiError: _refuse, HTTPException: _no_route},
    )


class _Service:
    def __init__(self, engine: Engine, stats: Stats, emulation: Emulation, limits: Limits) -> None:
        self._engine = engine
        self._stats = stats
        self._emulation = emulation
        self._limits = limits
        # Long bodies take seconds to read and cut into tokens: beside the event loop, and one after the other.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="requests")
        self._created = int(time.time())

    async def completions(self, request: Request) -> Response:
        return await self._serve(request, chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._serve(request, chat=True)

    async def models(self, request: Request) -> Response:
        return JSONResponse(
            wire.models(self._engine.name, self._created, self._engine.context, self._emulation.owned_by)
        )

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._engine.name:
            raise ApiError(f"The model '{name}' does not exist.", status=404, param="model", code="model_not_found")
        return JSONResponse(wire.model_json(name, self._created, self._engine.context, self._emulation.owned_by))

    async def health(self, request: Request) -> Response:
        return Response()

    async def show_stats(self, request: Request) -> Response:
        return JSONResponse(asdict(self._stats))

    # -- generation -----------------------------------------------------------------------------------------------

    async def _serve(self, request: Request, chat: bool) -> Response:
        self._stats.requests += 1
        try:
            order = await self._read(request, partial(self._order, chat=chat))
        except Exception as error:
            self._stats.refused += 1
            raise self._failure(error) from error
        head = Head(("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex, int(time.time()), self._engine.name)
        if order.stream:
            return EventSourceResponse(self._chunks(order, head), sep="\n")
        try:
            return JSONResponse(await self._whole(request, order, head))
        except Exception as error:
            raise self._failure(error) from error

    async def _read(self, request: Request, read: Callable[[Any], Order]) -> Order:
        """The order of a request, which the engine has agreed to."""
        raw = await request.body()

        def checked() -> Order:
            order = read(parse(raw))
            for wanted in order.texts[:: order.n]:  # the choices of a prompt differ in their seeds alone
                self._engine.check(wanted)
            return order

        return await asyncio.get_running_loop().run_in_executor(self._reading, checked)

    def _order(self, body: Any, chat: bool) -> Order:
        emulation = self._emulation
        most = emulation.chat_k if chat else emulation.completions_k
        limit = self._engine.top_logprobs if most is None else min(self._engine.top_logprobs, most)
        adapted, name = adapt(body, emulation, chat=chat), self._engine.name
        if chat:
            order = read_chat(adapted, name, limit)
        else:
            order = read_completion(adapted, name, limit, self._limits.max_prompts)
        return ordered(order, body, emulation)

    def _native_order(self, body: Any) -> Order:
        order = read_generate(body, self._engine.name, self._engine.top_logprobs)
        return ordered(order, body, replace(self._emulation, echo="scored"))

    async def generate(self, request: Request) -> Response:
        """SGLang's own route."""
        self._stats.requests += 1
        try:
            order = await self._read(request, self._native_order)
            [wanted] = order.texts
            text, entries, usage = "", list[Placed](), Usage()
            finish: FinishReason | None = None
            prompt_ids: tuple[int, ...] = ()
            async with aclosing(self._events(order, 0, wanted)) as events:
                async for event in events:
                    generated_here = event.prompt_ids is None or not wanted.echo
                    text += event.text if generated_here else ""
                    entries += event.entries
                    usage += event.usage
                    finish, prompt_ids = event.finish_reason, event.prompt_ids or prompt_ids
            return JSONResponse(generated(text, entries, finish, usage, order, prompt_ids))
        except Exception as error:
            raise self._failure(error) from error

    async def _whole(self, request: Request, order: Order, head: Head) -> Json:
        style, choices, usage = order.style, [], Usage()
        prompt_ids: tuple[int, ...] | None = None
        for index, wanted in enumerate(order.texts):
            text, entries = order.begun, list[Placed]()
            finish: FinishReason | None = None
            async with aclosing(self._events(order, index, wanted)) as events:
                async for event in events:
                    text += event.text
                    entries += event.entries
                    finish = event.finish_reason
                    usage += event.usage
                    prompt_ids = prompt_ids if event.prompt_ids is None else event.prompt_ids
                    if await request.is_disconnected():
                        raise ApiError("The client has gone away.", status=499)
            choices.append(wire.choice(index, text, entries, finish, style, prompt_ids))
        return wire.response(head, choices, usage, style, prompt_ids)

    async def _chunks(self, order: Order, head: Head) -> AsyncIterator[str]:
        usage, include = Usage(), order.include_usage
        try:
            for index, wanted in enumerate(order.texts):
                first = True
                async with aclosing(self._events(order, index, wanted)) as events:
                    async for event in events:
                        usage += event.usage
                        if first and order.begun:
                            event = replace(event, text=order.begun + event.text)
                        for choice in _parts(index, event, order, first):
                            part = wire.chunk(
                                head,
                                [choice],
                                order.style,
                                prompt_ids=event.prompt_ids,
                                usage=usage if order.continuous_usage else None,
                                include_usage=include,
                            )
                            yield json.dumps(part)
                        first = False
            if include:
                yield json.dumps(wire.chunk(head, [], order.style, usage=usage, include_usage=True))
            yield "[DONE]"
        except Exception as error:  # the status has been sent: all that is left is an event
            yield json.dumps(self._failure(error).body)

    async def _events(self, order: Order, index: int, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        """The engine's events, counted. The prompt of n choices is read, and counted, once."""
        self._stats.active += 1
        try:
            async with aclosing(self._engine.complete(wanted)) as events:
                async for event in events:
                    if index % order.n:
                        event = replace(event, usage=replace(event.usage, prompt_tokens=0))
                    self._stats.prompt_tokens += event.usage.prompt_tokens
                    self._stats.completion_tokens += event.usage.completion_tokens
                    yield event
        finally:
            self._stats.active -= 1

    def _failure(self, error: Exception) -> ApiError:
        if not isinstance(error, (ApiError, BlackboxError)):
            _log.error("a request failed", exc_info=error)
        return wire.api_error(error, self._engine.context)


def _parts(index: int, event: Event, order: Order, first: bool) -> list[Json]:
    """The choices, one for each chunk, that an event becomes."""
    style = order.style
    told = bool(event.text or wire.listed(event.entries, style))
    parts = []
    if not style.chat:
        if told or first:
            parts.append(wire.choice(index, event.text, event.entries, None, style, event.prompt_ids))
        if event.finish_reason is not None:
            parts.append(wire.choice(index, "", (), event.finish_reason, style))
        return parts
    if first:
        parts.append(wire.delta(index, None, (), None, style, first=True))
    if told:
        parts.append(wire.delta(index, event.text, event.entries, None, style, first=False))
    if event.finish_reason is not None:
        parts.append(wire.delta(index, None, (), event.finish_reason, style, first=False))
    return parts


# -- errors and the key -------------------------------------------------------------------------------------------


async def _refuse(request: Request, error: Exception) -> Response:
    answer = wire.api_error(error)
    return JSONResponse(answer.body, answer.status)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    where = f"{request.method} {request.url.path}"
    message = f"Invalid URL ({where})" if status == 404 else f"Not allowed: {where}"
    return JSONResponse(ApiError(message).body, status)


class _KeyCheck:
    """Refuses requests that do not bring the key, in its header if it has one of its own; not of the open routes."""

    def __init__(self, app: ASGIApp, api_key: str, header: str | None = None) -> None:
        self._app = app
        self._header = (header or "authorization").encode()
        self._expected = (api_key if header else f"Bearer {api_key}").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in ("/health", "/stats"):
            given = next((value for name, value in scope["headers"] if name == self._header), b"")
            if not hmac.compare_digest(given, self._expected):
                error = ApiError("Incorrect API key provided.", status=401, code="invalid_api_key")
                await JSONResponse(error.body, error.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)
