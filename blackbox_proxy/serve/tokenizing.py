"""What an engine tells of its tokenizer, in the routes and words of the server that is emulated."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackbox_proxy.dialects.table import LIST, Telling
from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.serve.answering import told
from blackbox_proxy.serve.engine import Cutting, Engine
from blackbox_proxy.serve.requests import parse
from blackbox_proxy.serve.wire import Json


def _cutting(engines: Sequence[Engine], telling: Telling | None) -> dict[str, Cutting]:
    if telling is None:
        return {}
    return {engine.name: engine for engine in engines if isinstance(engine, Cutting) and engine.source}


def source_of(engine: Engine, telling: Telling | None) -> Json:
    """What the list of models says of it."""
    found = _cutting([engine], telling).get(engine.name)
    if telling is None or found is None or telling.route != LIST:
        return {}
    return {name: found.source if name == telling.names[0] else None for name in telling.names}


def telling_routes(engines: Sequence[Engine], telling: Telling | None) -> list[Route]:
    """The routes, for the engines that tell theirs; a body names one of several."""
    found = _cutting(engines, telling)
    if telling is None or not found:
        return []
    first = next(iter(found.values()))
    reading = ThreadPoolExecutor(1, thread_name_prefix="tokenizing")  # beside the event loop, and one after the other

    def ids_of(raw: bytes) -> tuple[int, ...]:
        body = parse(raw)
        text = body.get(telling.text) if isinstance(body, Mapping) else None
        if not isinstance(body, Mapping) or not isinstance(text, str):
            raise ApiError(f"'{telling.text}' must be text.", param=telling.text)
        name = body.get("model")
        return (found.get(name, first) if isinstance(name, str) else first).cut(text)

    async def cut(request: Request) -> Response:
        try:
            ids = await asyncio.get_running_loop().run_in_executor(reading, ids_of, await request.body())
        except Exception as error:
            raise told(error) from error
        return JSONResponse({"count": len(ids), "tokens": list(ids)})

    async def named(request: Request) -> Response:
        return JSONResponse(dict.fromkeys(telling.names, first.source))

    routes = [Route(telling.cut, cut, methods=["POST"])]
    return routes if telling.route == LIST else [*routes, Route(telling.route, named)]
