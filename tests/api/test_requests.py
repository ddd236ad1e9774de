"""What each dialect sends, byte for byte, as requests.json has it: a change of the code that asks changes none of it.

`python tests/api/test_requests.py` (from the root, with tests/ on PYTHONPATH) writes the file anew: after a dialect was
added or changed on purpose, and then the difference is what is to be looked at.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_answers import make_vocabulary

from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.opening import open_base
from blackbox_proxy.dialects.table import DIALECTS, Dialect
from blackbox_proxy.errors import BlackboxError
from blackbox_proxy.protocols import Ask
from blackbox_proxy.types import END, Prefix, Prompt, Token

DATA = Path(__file__).with_name("requests.json")

THE, CAT = Token(256, b" the", " the"), Token(257, b" cat", " cat")
PART = Token(259, b"\xf0\x9f", "\ufffd")
SPACE = Token(32, b" ", " ")
CHAT: Prompt = [{"role": "system", "content": "B"}, {"role": "user", "content": "Hé"}]
BEGUN: Prompt = [*CHAT, {"role": "assistant", "content": "S"}]

Answer = Callable[[int], httpx2.Response]
Question = Callable[[OpenAIBase], Awaitable[object]]
_CLIENTS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}


def refused(words: str = "no") -> Answer:
    return lambda _: httpx2.Response(400, json={"error": {"message": words}})


def nothing(count: int) -> httpx2.Response:
    """Where a server holds back what it wrote; whatever is asked after that is refused."""
    choice = {"text": "", "message": {"content": ""}, "finish_reason": "length", "logprobs": None}
    return refused()(count) if count else httpx2.Response(200, json={"choices": [choice], "meta_info": {}})


def nothing_streamed(count: int) -> httpx2.Response:
    choice = {"text": "", "delta": {"content": ""}, "finish_reason": "length"}
    event = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
    return (
        refused()(count) if count else httpx2.Response(200, text=event, headers={"content-type": "text/event-stream"})
    )


def draft(prompt: Prompt, *tokens: Token, n: int = 4, **more: Any) -> Question:
    return lambda base: base.draft(Ask(Prefix(prompt, tokens), n, **more))


def streamed(*tokens: Token, **more: Any) -> Question:
    async def ask(base: OpenAIBase) -> None:
        async with aclosing(base.stream(Ask(Prefix("Hi", tokens), 4, **more))) as parts:
            async for _ in parts:
                pass

    return ask


def revealed(base: OpenAIBase) -> Awaitable[object]:
    several = [THE, END] if base.abilities.reveals > 1 else [THE]
    return base.reveal(Prefix("Hi", (CAT,)), several)


def steered(base: OpenAIBase) -> Awaitable[object]:
    return base.steer(Prefix("Hi", (THE,)), {CAT: 2.5, END: -200.0}, temperature=0.5, top_p=0.9, seed=7)


SITUATIONS: dict[str, tuple[Question, dict[str, Any], Answer]] = {
    "first": (draft("Hi"), {}, refused()),
    "first, messages": (draft(CHAT), {}, refused()),
    "first, an answer was begun": (draft(BEGUN), {}, refused()),
    "first, ids": (draft((258, 256)), {}, refused()),
    "first, chat template": (draft(CHAT), {"rendering": "chat"}, refused()),
    "continued": (draft("Hi", THE, CAT), {}, refused()),
    "continued inside a character": (draft("Hi", THE, PART), {}, refused()),
    "continued after a space": (draft("Hi", THE, SPACE), {}, refused()),
    "continued, an answer was begun": (draft(BEGUN, THE), {}, refused()),
    "given": (draft("Hi", CAT, given=(THE, CAT)), {}, refused()),
    "given, the last not to be sent": (draft("Hi", given=(THE, END)), {}, refused()),
    "given, streamed": (streamed(given=(THE,)), {}, refused()),
    "revealed": (revealed, {}, refused()),
    "steered": (steered, {}, refused()),
    "steered where no log probabilities are to be had": (steered, {}, refused("logprobs are not supported")),
    "streamed": (streamed(THE), {}, refused()),
    "streamed to a server that does not": (streamed(THE), {}, refused("stream must be false")),
    "sampled": (draft("Hi", temperature=1.0, seed=7), {}, refused()),
    "sampled, streamed": (streamed(temperature=1.0, seed=7), {}, refused()),
    "further fields": (draft("Hi"), {"extra_body": {"user": "me", "top_k": 3}, "top_logprobs": 2}, refused()),
    "fewer candidates than asked for": (draft("Hi"), {}, refused("logprobs must be at most 3")),
    "held back": (draft("Hi", CAT), {}, nothing),
    "held back, streamed": (streamed(CAT), {}, nothing_streamed),
}
"""What is asked, how the base was opened, and the answer to each request (by how many came before it)."""

UNKNOWN = ("first", "first, messages", "continued", "given", "revealed", "steered")
"""What is also asked of a base whose tokenizer is unknown."""


class Wire:
    """In place of the network: remembers what is sent and answers as it is told."""

    def __init__(self) -> None:
        self.sent: list[httpx2.Request] = []
        self.answer = refused()

    async def take(self, _: object, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.sent.append(request)
        response = self.answer(len(self.sent) - 1)
        response.request = request
        return response


def requests_of(dialect: Dialect, wire: Wire) -> dict[str, Any]:
    """API and tokenizer -> URL, own headers, and the body of each situation (a list of several, or the error)."""
    found: dict[str, Any] = {}
    for api in dialect.apis:
        found[api] = asked(dialect, wire, list(SITUATIONS), api=api, tokenizer=make_vocabulary(bos=True))
        found[f"{api}, no tokenizer"] = asked(dialect, wire, list(UNKNOWN), api=api)
    return found


def asked(dialect: Dialect, wire: Wire, situations: list[str], **options: Any) -> dict[str, Any]:
    where: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    bodies: dict[str, Any] = {}
    for name in situations:
        question, more, wire.answer = SITUATIONS[name]
        wire.sent = []
        error = asyncio.run(once(dialect, question, {**options, **more}))
        where |= {(str(request.url), own_headers(request)) for request in wire.sent}
        texts = [request.content.decode() for request in wire.sent]
        bodies[name] = error if not texts else texts[0] if len(texts) == 1 else texts
    ((url, headers),) = where
    return {"url": url, "headers": dict(headers), "bodies": bodies}


def own_headers(request: httpx2.Request) -> tuple[tuple[str, str], ...]:
    """The headers that are not those of every client."""
    names = {name.lower() for name in request.headers} - _CLIENTS
    return tuple((name, request.headers[name]) for name in sorted(names) if not name.startswith("x-stainless"))


async def once(dialect: Dialect, question: Question, options: dict[str, Any]) -> str:
    """Asks once; the name of the error that came of it."""
    url = dialect.home or (f"https://me.{dialect.hosts[0]}" if dialect.hosts else "http://127.0.0.1:9/v1")
    try:
        base = open_base(
            "m", base_url=url, api_key="k", dialect=dialect, max_attempts=1, **{"tokenizer": None, **options}
        )
        try:
            await question(base)
        finally:
            await base.aclose()
    except BlackboxError as error:
        return type(error).__name__
    return ""


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return caught(monkeypatch)


def caught(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)  # slow, and nobody is met
    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", lambda _, request: wire.take(_, request))
    return wire


@pytest.mark.parametrize("name", DIALECTS)
def test_the_requests_of_a_dialect_stay_the_same(name: str, wire: Wire) -> None:
    assert requests_of(DIALECTS[name], wire) == json.loads(DATA.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        found = {name: requests_of(dialect, caught(patch)) for name, dialect in DIALECTS.items()}
    DATA.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
