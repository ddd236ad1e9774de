"""An order, answered: the engine's events as one JSON or as a stream of server-sent events.

All of an answer is written in the task of its request, which ends when the client goes away: whatever the engine waits
for then, a token, the far side or its turn, is cancelled. Nothing is sent before the first event is there, so that what
goes wrong until then has a status of its own; later on, an error is an event of the stream.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.errors import BlackboxError
from blackbox_proxy.serve import wire
from blackbox_proxy.serve.engine import Engine, Event, Placed, TextWanted
from blackbox_proxy.serve.gate import Gate
from blackbox_proxy.serve.requests import Order
from blackbox_proxy.serve.wire import Head, Json
from blackbox_proxy.types import FinishReason, Usage

_log = logging.getLogger(__name__)

_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


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


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a checked request, an ASGI app that runs once. Its texts are written one after the other."""

    request: Request
    order: Order
    head: Head
    engine: Engine
    gate: Gate
    stats: Stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_there(receive, lambda: self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.order.stream:
            try:
                answer = JSONResponse(await self._whole())
            except Exception as error:
                answer = refusal(self.failure(error))
            await answer(scope, receive, send)
            return
        async with aclosing(self._chunks()) as chunks:
            try:
                first = await anext(chunks)
            except Exception as error:
                await refusal(self.failure(error))(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
            await _send_event(send, first)
            try:
                async for chunk in chunks:
                    await _send_event(send, chunk)
            except Exception as error:  # the status has been sent: all that is left is an event
                await _send_event(send, json.dumps(self.failure(error).body))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def failure(self, error: Exception) -> ApiError:
        """An error as the client is told it."""
        self.gate.failed(self.request, error)
        return told(error, self.engine.context)

    async def _whole(self) -> Json:
        order = self.order
        style, choices, usage = order.style, [], Usage()
        upstream: Usage | None = None
        prompt_ids: tuple[int, ...] | None = None
        async with self.gate.admitted(self.request, order):
            for index, wanted in enumerate(order.texts):
                text, entries = order.begun, list[Placed]()
                finish: FinishReason | None = None
                async with aclosing(self._events(index, wanted)) as events:
                    async for event in events:
                        text += event.text
                        entries += event.entries
                        finish = event.finish_reason
                        usage += event.usage
                        upstream = plus(upstream, event.upstream)
                        prompt_ids = prompt_ids if event.prompt_ids is None else event.prompt_ids
                choices.append(wire.choice(index, text, entries, finish, style, prompt_ids))
        return wire.response(self.head, choices, usage, style, prompt_ids, upstream)

    async def _chunks(self) -> AsyncGenerator[str, None]:
        order, usage, include = self.order, Usage(), self.order.include_usage
        upstream: Usage | None = None
        async with self.gate.admitted(self.request, order):
            for index, wanted in enumerate(order.texts):
                first = True
                async with aclosing(self._events(index, wanted)) as events:
                    async for event in events:
                        usage += event.usage
                        upstream = plus(upstream, event.upstream)
                        if first and order.begun:
                            event = replace(event, text=order.begun + event.text)
                        for choice in parts(index, event, order, first):
                            part = wire.chunk(
                                self.head,
                                [choice],
                                order.style,
                                prompt_ids=event.prompt_ids,
                                usage=usage if order.continuous_usage else None,
                                include_usage=include,
                                upstream=upstream,
                            )
                            yield json.dumps(part)
                        first = False
        if include:
            yield json.dumps(wire.chunk(self.head, [], order.style, usage=usage, include_usage=True, upstream=upstream))
        yield "[DONE]"

    async def _events(self, index: int, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        """The engine's events, counted. The prompt of n choices is read, and counted, once."""
        self.stats.active += 1
        try:
            async with aclosing(self.engine.complete(wanted)) as events:
                async for event in events:
                    if index % self.order.n:
                        event = replace(event, usage=replace(event.usage, prompt_tokens=0))
                    self.stats.prompt_tokens += event.usage.prompt_tokens
                    self.stats.completion_tokens += event.usage.completion_tokens
                    self.gate.saw(self.request, event)
                    yield event
        finally:
            self.stats.active -= 1


async def while_there(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Do some work as long as the client is there. Raises what the work raises."""
    failed: Exception | None = None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            await work()
        except Exception as error:
            failed = error
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed


def told(error: Exception, context: int | None = None) -> ApiError:
    """An error as a client is told it; one that is nobody's plan is in the log, too."""
    if not isinstance(error, (ApiError, BlackboxError)):
        _log.error("a request failed", exc_info=error)
    return wire.api_error(error, context)


def refusal(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


def plus(before: Usage | None, more: Usage | None) -> Usage | None:
    """What has been billed by now; None where nobody bills."""
    return before if more is None else more if before is None else before + more


async def _send_event(send: Send, data: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


def parts(index: int, event: Event, order: Order, first: bool) -> list[Json]:
    """The choices, one for each chunk, that an event becomes."""
    style = order.style
    told = bool(event.text or wire.listed(event.entries, style))
    found = []
    if not style.chat:
        if told or first:
            found.append(wire.choice(index, event.text, event.entries, None, style, event.prompt_ids))
        if event.finish_reason is not None:
            found.append(wire.choice(index, "", (), event.finish_reason, style))
        return found
    if first:
        found.append(wire.delta(index, None, (), None, style, first=True))
    if told:
        found.append(wire.delta(index, event.text, event.entries, None, style, first=False))
    if event.finish_reason is not None:
        found.append(wire.delta(index, None, (), event.finish_reason, style, first=False))
    return found
