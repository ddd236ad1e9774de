"""`OpenAIBase.stream` over real HTTP: what arrives when, what it costs, and every way a stream can fail."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from functools import reduce
from operator import add
from typing import Any

import pytest
from api_answers import entry, legacy
from api_server import Asking, Server
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.dialects.table import DIALECTS, Dialect
from blackbox_proxy.errors import BadRequest, BadResponse, BlackboxError, ConnectionFailed, NoLogprobs, ServerFailed
from blackbox_proxy.protocols import Abilities, Ask
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Prefix, Token, Usage

KEY = "sk-very-secret-1234"
DONE = b"data: [DONE]\n\n"
THE = Token(256, b" the", " the")
WHOLE = legacy((" the", -0.1, {" the": -0.1, " a": -2.5}), (" cat", -0.2, {" cat": -0.2}), text=" the cat")


def sse(*events: Any, done: bool = True) -> bytes:
    return b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events) + (DONE if done else b"")


def chunk(*tokens: str, finish: str | None = None, usage: Any = None) -> dict[str, Any]:
    body: dict[str, Any] = legacy(
        *((t, -0.1, {t: -0.1, "!": -3.0}) for t in tokens), text="".join(tokens), finish=finish
    )
    del body["usage"]
    return body | ({"usage": usage} if usage else {})


def counted(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    details = {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}
    return {"prompt_tokens": prompt, "completion_tokens": completion, **details}


def events(*parts: Any, done: bool = True) -> Response:
    return Response(sse(*parts, done=done), media_type="text/event-stream")


def broken(*parts: Any) -> Any:
    """A stream whose connection breaks after these chunks."""

    async def answer(sent: dict[str, Any]) -> Response:
        headers = {"content-length": "100000", "content-type": "text/event-stream"}
        return Response(sse(*parts, done=False), headers=headers)

    logging.getLogger("uvicorn.error").disabled = True  # it reports the short body, rightly
    return answer


PATIENCE = {"stalled": 0.25}  # seconds, where waiting is the point


def patience(failure: Any) -> float:
    return PATIENCE.get(getattr(failure, "__name__", ""), 30.0)


def stalled(*parts: Any) -> Any:
    async def answer(sent: dict[str, Any]) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield sse(*parts, done=False)
            await asyncio.sleep(0.6)

        return StreamingResponse(body(), media_type="text/event-stream")

    answer.__name__ = "stalled"
    return answer


async def parts_of(base: OpenAIBase, prefix: Prefix | None = None, n: int = 4, **more: Any) -> list[Draft]:
    try:
        return [part async for part in base.stream(Ask(prefix or Prefix("Hi"), n, **more))]
    finally:
        await base.aclose()


def told(parts: list[Draft]) -> list[list[bytes | None]]:
    return [[position.token.bytes for position in part.positions] for part in parts]


def total(parts: list[Draft]) -> Usage:
    return reduce(add, (part.usage for part in parts))


# -- the plain way ----------------------------------------------------------------------------------------------------


async def test_completions_arrive_in_parts(server: Server, asking: Asking) -> None:
    server.answers = [
        events(chunk(" the"), chunk(" a", " b"), chunk(finish="length"), {"choices": [], "usage": counted(7, 3, 2)})
    ]
    parts = await parts_of(asking(), temperature=1.0, seed=3)
    assert told(parts) == [[b" the"], [b" a", b" b"], []]
    assert [part.finish for part in parts] == [None, None, "length"]
    assert parts[0].usage == Usage(api_calls=1, prompt_tokens=1, completion_tokens=1)  # "Hi" is 2 bytes
    assert parts[1].usage == Usage(completion_tokens=2)
    assert parts[2].usage == Usage(prompt_tokens=6, cached_prompt_tokens=2)
    assert total(parts) == Usage(1, 7, 3, cached_prompt_tokens=2)
    assert server.sent == [
        {"model": "m", "prompt": "Hi", "max_tokens": 4, "logprobs": 5, "temperature": 1.0, "top_p": 1.0, "seed": 3}
        | {"stream": True, "stream_options": {"include_usage": True}}
    ]


async def test_usage_that_is_told_all_the_time(server: Server, asking: Asking) -> None:
    server.answers = [
        events(
            chunk(" the", usage=counted(9, 1)),
            chunk(" cat", usage=counted(9, 3)),
            chunk(finish="stop", usage=counted(9, 4)),
        )
    ]
    parts = await parts_of(asking(dialect="vllm"))
    assert [part.usage for part in parts] == [Usage(1, 9, 1), Usage(0, 0, 1), Usage(0, 0, 2)]
    assert server.sent[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


async def test_prompts_are_counted_where_the_tokenizer_is_known(
    server: Server, asking: Asking, vocabulary: Vocabulary
) -> None:
    server.answers = [events(chunk(" cat", finish="length"))]
    spoken: list[dict[str, Any]] = [{}, {"dialect": Dialect("textual", None, None)}]
    for options in spoken:
        parts = await parts_of(asking(tokenizer=vocabulary, **options), Prefix("Hi the", (THE,)))
        assert total(parts) == Usage(1, 3, 1)
    parts = await parts_of(asking(api="chat", dialect="vllm"), Prefix([{"role": "user", "content": "x" * 41}]))
    assert total(parts).prompt_tokens == 10


async def test_chat_in_parts(server: Server, asking: Asking) -> None:
    def delta(content: str | None, finish: str | None = None, role: bool = False) -> dict[str, Any]:
        item = entry(content or "", -0.1) | {"top_logprobs": [entry(content or "", -0.1)]}
        written = {"role": "assistant", "content": ""} if role else {"content": content} if content else {}
        logprobs = {"content": [item]} if content else None
        return {"choices": [{"delta": written, "logprobs": logprobs, "finish_reason": finish}]}

    server.answers = [events(delta(None, role=True), delta("Hi"), delta(" you"), delta(None, "stop"))]
    parts = await parts_of(asking(api="chat"))
    assert told(parts) == [[b"Hi"], [b" you"], []]
    assert parts[-1].finish == "stop"
    assert server.paths == ["/v1/chat/completions"]


async def test_an_immediate_end(server: Server, asking: Asking) -> None:
    server.answers = [events(chunk(), chunk(finish="stop"), {"choices": [], "usage": counted(4, 1)})]
    (part,) = await parts_of(asking())
    assert (part.positions, part.finish, part.usage) == ((), "stop", Usage(1, 4, 1))


async def test_the_first_part_does_not_wait_for_the_second(server: Server, asking: Asking) -> None:
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def answer(sent: dict[str, Any]) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield sse(chunk(" the"), done=False)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
            yield sse(chunk(" cat", finish="length"))

        return StreamingResponse(body(), media_type="text/event-stream")

    server.answers = [answer]
    found = []
    base = asking()
    async for part in base.stream(Ask(Prefix("Hi"), 2)):
        found += told([part])
        go_on.set()
    assert found == [[b" the"], [b" cat"], []]
    await base.aclose()


async def test_k_is_lowered_for_streams_as_for_drafts(server: Server, asking: Asking) -> None:
    refusal = JSONResponse({"error": {"message": "logprobs: Expected a value <= 3, but got 5"}}, 400)
    server.answers = [refusal, events(chunk(" the", finish="length"))]
    base = asking()
    assert total(await parts_of(base)).retries == 1
    assert base.settings.top_logprobs == 3


# -- servers that do not stream ---------------------------------------------------------------------------------------


async def test_an_answer_in_one_piece(server: Server, asking: Asking) -> None:
    server.answers = [WHOLE]
    base = asking()
    assert base.abilities.streams
    for _ in range(2):
        (part,) = await parts_of(base)
        assert (told([part]), part.finish, part.usage) == ([[b" the", b" cat"]], "length", Usage(1, 3, 2))
        assert not base.abilities.streams
    assert [sent.get("stream") for sent in server.sent] == [True, None]


async def test_a_stream_without_log_probabilities(server: Server, asking: Asking) -> None:
    server.answers = [stalled({"choices": [{"text": " the", "logprobs": None}]}), WHOLE]
    base = asking()
    (part,) = await parts_of(base)
    assert told([part]) == [[b" the", b" cat"]]
    assert part.usage == Usage(2, 1 + 3, 2)
    assert not base.abilities.streams
    server.answers = [{"choices": [{"text": "Hi", "finish_reason": "stop"}]}]
    with pytest.raises(NoLogprobs):
        await parts_of(asking())


@pytest.mark.parametrize("message", ["stream is not supported with logprobs", "Unknown field: stream_options"])
async def test_a_refusal_of_the_stream(server: Server, asking: Asking, message: str) -> None:
    server.answers = [JSONResponse({"error": {"message": message}}, 400), WHOLE]
    base = asking()
    (part,) = await parts_of(base)
    assert part.usage == Usage(1, 3, 2, retries=1)
    assert not base.abilities.streams
    server.answers = [JSONResponse({"error": {"message": "temperature is too high"}}, 400)]
    with pytest.raises(BadRequest, match="temperature"):
        await parts_of(asking())


async def test_a_dialect_that_does_not_stream(server: Server, asking: Asking) -> None:
    server.answers = [WHOLE]
    (part,) = await parts_of(asking(dialect=Dialect("slow", 5, 5, streams=False)))
    assert len(part.positions) == 2
    assert "stream" not in server.sent[0]


# -- failures ---------------------------------------------------------------------------------------------------------


def no_json(*parts: Any) -> Response:
    return Response(sse(*parts, done=False) + b"data: {oops\n\n", media_type="text/event-stream")


FAILED = {"error": {"message": "the engine died", "code": 500}}
GOOD = events(chunk(" the"), chunk(" cat", finish="length"))


@pytest.mark.parametrize(
    "failure",
    [
        broken(),
        broken(chunk()),
        events(FAILED),
        events(chunk(), {"error": {"message": "overloaded"}}),
        events(chunk(), done=False),
        events(),
        stalled(chunk()),
        JSONResponse({"error": {"message": "no"}}, 503),
        HTMLResponse("<html>gateway"),
        Response(sse(chunk(" the")), media_type="text/plain"),
        no_json(chunk()),
    ],
)
async def test_failures_before_the_first_position_are_repeated(server: Server, asking: Asking, failure: Any) -> None:
    server.answers = [failure, failure, GOOD]
    parts = await parts_of(asking(timeout=patience(failure)))
    assert told(parts) == [[b" the"], [b" cat"], []]
    assert (parts[0].usage.retries, total(parts).retries, total(parts).api_calls) == (2, 2, 1)
    server.answers = [failure]
    with pytest.raises((ConnectionFailed, ServerFailed, BadResponse)):
        await parts_of(asking(timeout=patience(failure), max_attempts=2))
    assert len(server.sent) == 5


@pytest.mark.parametrize(
    "failure",
    [
        broken(chunk(" the"), chunk(" cat")),
        stalled(chunk(" the"), chunk(" cat")),
        events(chunk(" the"), chunk(" cat"), FAILED),
        events(chunk(" the"), chunk(" cat"), {"error": {"message": "no", "code": 400}}),
        events(chunk(" the"), chunk(" cat"), done=False),
        no_json(chunk(" the"), chunk(" cat")),
        broken(chunk(" the"), chunk(" cat"), chunk("</s>")),  # the end, or written? nobody knows
    ],
)
async def test_later_failures_end_the_draft(server: Server, asking: Asking, failure: Any) -> None:
    server.answers = [failure]
    parts = await parts_of(asking(timeout=patience(failure)))
    assert told(parts) == [[b" the"], [b" cat"], []]
    assert parts[-1].finish is None
    assert total(parts) == Usage(1, 1, 2, retries=1)
    assert len(server.sent) == 1


@pytest.mark.parametrize("failure", [broken, lambda *chunks: events(*chunks, done=False)])
async def test_what_is_complete_has_not_failed(server: Server, asking: Asking, failure: Any) -> None:
    server.answers = [failure(chunk(" the"), chunk(" cat", finish="stop"))]
    parts = await parts_of(asking())
    assert (parts[-1].finish, total(parts).retries) == ("stop", 0)
    server.answers = [failure(chunk(" the"), chunk(" cat"))]  # as many as were asked for
    parts = await parts_of(asking(), n=2)
    assert (parts[-1].finish, total(parts).retries) == (None, 0)


@pytest.mark.parametrize("failure", [broken, lambda *chunks: events(*chunks, done=False)])
async def test_what_is_in_doubt_has(server: Server, asking: Asking, failure: Any) -> None:
    """As many as were asked for, but whether the last is the end or written, only the finish would have told."""
    server.answers = [failure(chunk(" the"), chunk("</s>"))]
    parts = await parts_of(asking(), n=2)
    assert told(parts) == [[b" the"], []]
    assert (parts[-1].finish, total(parts).retries) == (None, 1)


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (events(chunk(" the"), "gateway"), BadResponse, "not a completion"),
        (events(chunk(" the"), {"choices": [{"text": "a", "logprobs": {"tokens": ["a"]}}]}), BadResponse, "malformed"),
        (events(*[chunk(" the")] * 9), BadResponse, "5 tokens where 4"),
        (events({"error": {"message": f"no {KEY}", "code": 400}}), BadRequest, "api key"),
    ],
)
async def test_what_is_no_stream(
    server: Server, asking: Asking, answer: Response, kind: type[BlackboxError], says: str
) -> None:
    server.answers = [answer]
    with pytest.raises(kind, match=says) as caught:
        await parts_of(asking(api_key=KEY))
    assert caught.value.hint
    assert KEY not in str(caught.value)
    assert len(server.sent) == 1


async def test_an_endless_server_is_left(server: Server, asking: Asking) -> None:
    left = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def endless(sent: dict[str, Any]) -> Response:
        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield sse(chunk(" the"), done=False)
                    await asyncio.sleep(0.005)
            finally:
                loop.call_soon_threadsafe(left.set)

        return StreamingResponse(body(), media_type="text/event-stream")

    server.answers = [endless]
    base = asking()
    with pytest.raises(BadResponse, match="3 tokens where 2"):
        await parts_of(base, n=2)
    await asyncio.wait_for(left.wait(), 2)
    left.clear()
    stream = base.stream(Ask(Prefix("Hi"), 1000))
    await anext(stream)
    await stream.aclose()
    await asyncio.wait_for(left.wait(), 2)
    left.clear()

    async def read() -> None:
        async for _ in base.stream(Ask(Prefix("Hi"), 1000)):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(left.wait(), 2)
    await base.aclose()


# -- abilities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "api", "expected"),
    [
        ("openai", "completions", Abilities(streams=True)),
        ("openai", "chat", Abilities(streams=True)),
        ("vllm", "completions", Abilities(streams=True, scores=True, reveals=1)),
        ("vllm", "chat", Abilities(streams=True)),
        ("host", "completions", Abilities(streams=True, scores=True, streams_scored=True, reveals=1)),
        (Dialect("own", 5, 5, streams=False, draws=False), "completions", Abilities(draws=False)),
    ],
)
def test_abilities(asking: Asking, dialect: Any, api: str, expected: Abilities) -> None:
    assert asking(dialect=dialect, api=api).abilities == expected


@pytest.mark.parametrize(
    ("dialect", "extra", "draws"),
    [
        ("openai", {}, True),
        ("openai", {"user": "me", "logit_bias": {}, "presence_penalty": 0, "top_k": None}, True),
        ("openai", {"logit_bias": {"5": -100}}, False),
        ("vllm", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1}, True),
        ("vllm", {"top_k": 20}, False),
        ("vllm", {"top_k": None}, False),  # the server's own default, which the dialect keeps away
        ("vllm", {"repetition_penalty": 1.1}, False),
        ("vllm", {"allowed_token_ids": [1, 2]}, False),
        ("vllm", {"xtc_probability": 0.1}, False),
    ],
)
def test_bent_sampling(asking: Asking, dialect: str, extra: dict[str, Any], draws: bool) -> None:
    assert asking(dialect=dialect, extra_body=extra).abilities.draws is draws


def test_the_host_speaks_like_vllm() -> None:
    host, vllm = DIALECTS["host"], DIALECTS["vllm"]
    assert (host.echo_last, host.echo_streams, vllm.echo_last, vllm.echo_streams) == ("echo_last", True, None, False)
    assert (host.echo, host.prefix, host.usage_stream) == (vllm.echo, vllm.prefix, vllm.usage_stream)
