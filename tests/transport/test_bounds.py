"""An answer has an end: in bytes, by what was asked for, and in time, by the tokens that it brings."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from functools import cache
from typing import Any

import httpx2
import pytest
from api_answers import legacy
from raw_server import Asked, Kind, Out, raw_server

from blackbox_proxy.base.opening import open_base
from blackbox_proxy.errors import BadResponse, BaseError
from blackbox_proxy.protocols import Ask
from blackbox_proxy.transport.bounds import FRAME, Bounded, longest_answer
from blackbox_proxy.types import Draft, Prefix

THE = legacy((" the", -0.1, {" the": -0.1, " a": -3.0}), text=" the", finish=None)


async def asked(kind: Kind, *, stream: bool = False, n: int = 4, **options: Any) -> list[Draft]:
    with raw_server(kind) as server:
        base = open_base("m", base_url=server.url, **{"tokenizer": None, "max_attempts": 1, "timeout": 1.0, **options})
        try:
            if stream:
                return [part async for part in base.stream(Ask(Prefix("Hi"), n))]
            return [await base.draft(Ask(Prefix("Hi"), n))]
        finally:
            await base.aclose()


async def packed(asked: Asked, out: Out) -> None:
    assert asked.headers["accept-encoding"] == "gzip"
    await out.whole(gzip.compress(json.dumps(THE).encode()), content_encoding="gzip")


@cache
def many_blanks() -> bytes:
    return gzip.compress(b" " * 50_000_000)


async def bomb(asked: Asked, out: Out) -> None:
    await out.whole(many_blanks(), content_encoding="gzip")


async def endless(asked: Asked, out: Out) -> None:
    await out.head()
    while True:
        await out.raw(b" " * 65_536)


async def not_packed(asked: Asked, out: Out) -> None:
    await out.whole(json.dumps(THE).encode(), content_encoding="gzip")


async def oddly_packed(asked: Asked, out: Out) -> None:
    await out.whole(gzip.compress(gzip.compress(b"{}")), content_encoding="gzip, gzip")


async def test_a_packed_answer_is_read() -> None:
    (draft,) = await asked(packed, n=1)
    assert draft.positions[0].token.text == " the"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "said"), [(bomb, "more than"), (endless, "more than"), (not_packed, "gzip"), (oddly_packed, "not asked")]
)
async def test_a_body_without_end_is_not_read(kind: Kind, said: str, stream: bool) -> None:
    many_blanks()  # takes as long as the client waits, on a busy machine
    with pytest.raises(BaseError, match=said) as caught:
        await asked(kind, stream=stream)
    assert caught.value.hint


async def test_a_packed_body_is_never_unfolded_whole() -> None:
    pieces: list[int] = []

    async def body() -> Any:
        yield gzip.compress(bytes(50_000_000))

    class Stream(httpx2.AsyncByteStream):
        def __aiter__(self) -> Any:
            return body()

    async def read() -> None:
        async for piece in Bounded(Stream(), 1_000_000, "http://host", packed=True):
            pieces.append(len(piece))  # noqa: PERF401

    with pytest.raises(BadResponse):
        await read()
    assert max(pieces) <= 65_536
    assert sum(pieces) <= 1_000_000


@pytest.mark.parametrize(
    ("arguments", "most"),
    [
        ({"prompt": "Hi", "max_tokens": 16, "logprobs": 5}, 2 * FRAME),
        ({"prompt": [1] * 1000, "max_tokens": 1, "logprobs": 5}, 2 * FRAME),
        ({"prompt": [1] * 1000, "max_tokens": 1, "logprobs": 5, "extra_body": {"echo": True}}, 8 * FRAME),
        ({"messages": [], "max_tokens": 100, "logprobs": True, "top_logprobs": 20}, 4 * FRAME),
    ],
)
def test_the_bound_follows_from_what_is_asked(arguments: dict[str, Any], most: int) -> None:
    assert FRAME < longest_answer(arguments) < most
    assert longest_answer(arguments) < longest_answer({**arguments, "max_tokens": 1000})


async def awake(asked: Asked, out: Out) -> None:
    await out.head(content_type="text/event-stream")
    await out.event(THE)
    await out.event(THE)
    while True:
        await out.raw(b": keep-alive\n\n")
        await asyncio.sleep(0.02)


async def empty(asked: Asked, out: Out) -> None:
    await out.head(content_type="text/event-stream")
    await out.event(THE)
    await out.event(THE)
    while True:
        await out.event({"choices": []})
        await asyncio.sleep(0)


async def mostly_text(asked: Asked, out: Out) -> None:
    await out.head(content_type="text/event-stream")
    await out.event(THE)
    await out.event(THE)
    while True:
        await out.event({"choices": [{"text": "", "logprobs": None}]})
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", [awake, empty, mostly_text])
async def test_a_stream_that_brings_no_token_has_stalled(kind: Kind) -> None:
    began = time.monotonic()
    parts = await asked(kind, stream=True, timeout=0.3)
    assert time.monotonic() - began < 2.5
    assert sum(len(part.positions) for part in parts) >= 1
    assert parts[-1].usage.retries == 1
    assert parts[-1].finish is None
