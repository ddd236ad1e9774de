"""The Starlette app: OpenAI's routes over any `Engine`.

    POST /v1/completions, /v1/chat/completions      whole or streamed
    GET  /v1/models, /v1/models/{name}, /health
    POST /tokenize, and where the tokenizer is from  as the emulated server tells it
    POST /generate                                  where SGLang is emulated
    GET  /stats                                     what was asked of this server: {"requests", "active", …}

One request's texts are written one after the other, requests side by side (answering.py). A client that goes away stops
its text at once, streamed or not. `middleware` is the place for what looks at whole requests, such as a log; an
emulated network needs to know the tokens and is an engine (network.py).
"""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from blackbox_proxy.door.guard import Bodies, Door
from blackbox_proxy.door.limits import Limits
from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.serve import wire
from blackbox_proxy.serve.answering import Answer, refusal, told
from blackbox_proxy.serve.answering import Stats as Stats
from blackbox_proxy.serve.emulated import adapt, ordered
from blackbox_proxy.serve.emulation import Emulation
from blackbox_proxy.serve.engine import Engine, Placed
from blackbox_proxy.serve.gate import Gate
from blackbox_proxy.serve.native import generated, read_generate
from blackbox_proxy.serve.requests import Order, own_fields, parse, read_chat, read_completion, refuse_unknown
from blackbox_proxy.serve.tokenizing import source_of, telling_routes
from blackbox_proxy.serve.wire import Head, Json
from blackbox_proxy.types import FinishReason, Usage


def create_app(
    engines: Engine | Sequence[Engine],
    *,
    api_key: str | None = None,
    middleware: Sequence[Middleware] = (),
    behind: Sequence[Middleware] = (),
    stats: Stats | None = None,
    emulation: Emulation | None = None,
    limits: Limits | None = None,
    gate: Gate | None = None,
    strict: bool = False,
    routes: Sequence[Route] = (),
) -> Starlette:
    """The app; of several engines a request names one. api_key: what clients must send, None for no check (of /v1
    only). middleware, behind: around everything, and where the key has been looked at. stats: counted into, if given.
    emulation: how another server behaves, in place of this one. limits: of requests; `make_server` has those of
    connections. gate: who is answered when. strict: fields that nobody knows are refused. routes: others, which come
    first.
    """
    emulation, limits = emulation or Emulation(), limits or Limits()
    found = list(engines) if isinstance(engines, Sequence) else [engines]
    service = _Service(found, stats or Stats(), emulation, limits, gate or Gate(), strict)
    layers = [*middleware, Middleware(Door, limits=limits)]
    if limits.origins:
        layers.append(
            Middleware(CORSMiddleware, allow_origins=sorted(limits.origins), allow_methods=["*"], allow_headers=["*"])
        )
    if api_key:
        layers.append(Middleware(_KeyCheck, api_key=api_key, header=emulation.key_header))
    layers += [*behind, Middleware(Bodies, limits=limits)]
    every = [*routes, *telling_routes(found, emulation.telling)]
    every += [Route("/health", service.health), Route("/stats", service.show_stats)]
    for root in emulation.roots:
        every += [
            Route(f"{root}/completions", service.completions, methods=["POST"]),
            Route(f"{root}/chat/completions", service.chat, methods=["POST"]),
            Route(f"{root}/models", service.models),
            Route(f"{root}/models/{{name:path}}", service.model),
        ]
    if emulation.native is not None:
        every.append(Route(emulation.native, service.generate, methods=["POST"]))
    return Starlette(
        routes=every,
        middleware=layers,
        exception_handlers={ApiError: _refuse, HTTPException: _no_route},
    )


class _Service:
    def __init__(
        self, engines: Sequence[Engine], stats: Stats, emulation: Emulation, limits: Limits, gate: Gate, strict: bool
    ) -> None:
        self._engines = {engine.name: engine for engine in engines}
        self._first = engines[0]
        self._stats = stats
        self._emulation = emulation
        self._limits = limits
        self._gate = gate
        self._strict = strict
        # Long bodies take seconds to read and cut into tokens: beside the event loop, and one after the other.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="requests")
        self._created = int(time.time())

    async def completions(self, request: Request) -> ASGIApp:
        return await self._serve(request, chat=False)

    async def chat(self, request: Request) -> ASGIApp:
        return await self._serve(request, chat=True)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(engine) for engine in self._engines.values()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._engines:
            raise ApiError(f"The model '{name}' does not exist.", status=404, param="model", code="model_not_found")
        return JSONResponse(self._described(self._engines[name]))

    def _described(self, engine: Engine) -> Json:
        entry = wire.model_json(engine.name, self._created, engine.context, self._emulation.owned_by)
        return entry | source_of(engine, self._emulation.telling) | dict(engine.about)

    async def health(self, request: Request) -> Response:
        return Response()

    async def show_stats(self, request: Request) -> Response:
        return JSONResponse(asdict(self._stats) | {"processor_ms": round(1e3 * time.process_time())})

    # -- generation -----------------------------------------------------------------------------------------------

    async def _serve(self, request: Request, chat: bool) -> ASGIApp:
        self._stats.requests += 1
        try:
            engine, order = await self._read(request, partial(self._order, chat=chat))
        except Exception as error:
            self._stats.refused += 1
            self._gate.failed(request, error)
            raise told(error) from error
        self._gate.ordered(request, engine.name, order)
        head = Head(("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex, int(time.time()), engine.name)
        return Answer(request, order, head, engine, self._gate, self._stats)

    async def _read(self, request: Request, read: Callable[[Any, Engine], Order]) -> tuple[Engine, Order]:
        """The order of a request, and the engine that has agreed to it. Raises ApiError."""
        raw = await request.body()

        def checked() -> tuple[Engine, Order]:
            body = parse(raw)
            engine = self._asked(body)
            try:
                order = read(body, engine)
                for wanted in order.texts[:: order.n]:  # the choices of a prompt differ in their seeds alone
                    engine.check(wanted)
            except Exception as error:
                raise told(error, engine.context) from error
            return engine, order

        return await asyncio.get_running_loop().run_in_executor(self._reading, checked)

    def _asked(self, body: Any) -> Engine:
        """The engine that a body names; the first where it names none, which will say so."""
        name = body.get("model") if isinstance(body, Mapping) else None
        return self._engines.get(name, self._first) if isinstance(name, str) else self._first

    def _order(self, body: Any, engine: Engine, *, chat: bool) -> Order:
        emulation = self._emulation
        most = emulation.chat_k if chat else emulation.completions_k
        limit = engine.top_logprobs if most is None else min(engine.top_logprobs, most)
        if self._strict:
            refuse_unknown(body, engine.own_fields, chat=chat)
        adapted = adapt(body, emulation, chat=chat)
        if chat:
            order = read_chat(adapted, engine.name, limit)
        else:
            order = read_completion(adapted, engine.name, limit, self._limits.max_prompts)
        return ordered(own_fields(order, body, engine.own_fields), body, emulation)

    def _native_order(self, body: Any, engine: Engine) -> Order:
        order = read_generate(body, engine.name, engine.top_logprobs)
        return ordered(order, body, replace(self._emulation, echo="scored"))

    async def generate(self, request: Request) -> Response:
        """SGLang's own route."""
        self._stats.requests += 1
        try:
            _, order = await self._read(request, self._native_order)
            [wanted] = order.texts
            text, entries, usage = "", list[Placed](), Usage()
            finish: FinishReason | None = None
            prompt_ids: tuple[int, ...] = ()
            async with aclosing(self._first.complete(wanted)) as events:
                async for event in events:
                    generated_here = event.prompt_ids is None or not wanted.echo
                    text += event.text if generated_here else ""
                    entries += event.entries
                    usage += event.usage
                    finish, prompt_ids = event.finish_reason, event.prompt_ids or prompt_ids
            return JSONResponse(generated(text, entries, finish, usage, order, prompt_ids))
        except Exception as error:
            raise told(error) from error


# -- errors and the key -------------------------------------------------------------------------------------------


async def _refuse(request: Request, error: Exception) -> Response:
    return refusal(wire.api_error(error))


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
