"""What a server may do to a client, as a table: each kind answers a completion in a way of its own.

`GOOD` are odd and harmless: the text must come out right. `BAD` must end in an error of this package, or in a text that
is a beginning of the right one. All but `NEVER_STREAMED` answer streamed and whole requests alike.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Mapping
from typing import Any

from raw_server import Asked, Kind, Out

PROMPT = "The mayor of"
TOKENS = (" New", " York", " said", " on", " 12", " March", " 2023", " that")
TEXT = "".join(TOKENS[:4])
SECRET = "sk-planted-0123456789abcdef"
_STREAM = "text/event-stream"


def rows(asked: Asked) -> list[dict[str, Any]]:
    """The good answer, token by token: goes on from what was sent."""
    sent = asked.json
    done = str(sent["prompt"])[len(PROMPT) :]
    first = next(i for i in range(len(TOKENS) + 1) if "".join(TOKENS[:i]) == done)
    return [choice(token) for token in TOKENS[first : first + int(sent["max_tokens"])]]


def choice(token: Any, logprob: Any = -0.1, top: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """One choice with one token."""
    found = {token: logprob, " zz": -3.0} if top is None else top
    columns = {"tokens": [token], "token_logprobs": [logprob], "top_logprobs": [found]}
    return {"index": 0, "text": token, "logprobs": columns, "finish_reason": None, **more}


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {
        name: [value for part in parts for value in part["logprobs"][name]]
        for name in ("tokens", "token_logprobs", "top_logprobs")
    }
    text = "".join(part["text"] for part in parts)
    return {"choices": [{"index": 0, "text": text, "logprobs": columns, "finish_reason": "length"}]}


async def good(asked: Asked, out: Out) -> None:
    parts = rows(asked)
    if not asked.json.get("stream"):
        await out.whole(json.dumps(joined(parts)).encode())
        return
    await out.head(content_type=_STREAM)
    for part in parts:
        await out.event({"choices": [part]})
    await out.event({"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]})
    await out.event("[DONE]")


# -- ways of making kinds ---------------------------------------------------------------------------------------------


def raw(data: bytes) -> Kind:
    """These bytes, and the end."""

    async def kind(asked: Asked, out: Out) -> None:
        await out.raw(data)

    return kind


def endless(head: bytes, again: bytes, pause: float = 0.0) -> Kind:
    async def kind(asked: Asked, out: Out) -> None:
        await out.raw(head)
        while True:
            await out.raw(again)
            await asyncio.sleep(pause)

    return kind


def whole(body: bytes, status: str = "200 OK", **headers: str) -> Kind:
    async def kind(asked: Asked, out: Out) -> None:
        await out.whole(body, status, **headers)

    return kind


def answer(made: Callable[[Asked], object]) -> Kind:
    """A body, or one event, of this JSON."""

    async def kind(asked: Asked, out: Out) -> None:
        value = made(asked)
        text = value if isinstance(value, str) else json.dumps(value)
        if asked.json.get("stream"):
            await out.head(content_type=_STREAM)
            await out.event(text)
        else:
            await out.whole(text.encode("utf-8", "surrogatepass"))

    return kind


def spoilt(spoil: Callable[[dict[str, Any]], Any]) -> Kind:
    """The good answer, changed."""
    return answer(lambda asked: spoil(joined(rows(asked))))


def one(*arguments: Any, **fields: Any) -> Kind:
    return answer(lambda asked: {"choices": [choice(*arguments, **fields)]})


def after_one(again: bytes, pause: float = 0.0) -> Kind:
    """Streams two good tokens, then this for ever; a whole answer is cut."""

    async def kind(asked: Asked, out: Out) -> None:
        if not asked.json.get("stream"):
            await out.whole(json.dumps(joined(rows(asked))).encode()[:-9])
            return
        await out.head(content_type=_STREAM)
        for part in rows(asked)[:2]:
            await out.event({"choices": [part]})
        while True:
            await out.raw(again)
            await asyncio.sleep(pause)

    return kind


def to(where: str, status: str = "307 Moved") -> Kind:
    return whole(b"", status, location=where)


async def byte_by_byte(asked: Asked, out: Out) -> None:
    body = json.dumps(joined(rows(asked))).encode()
    await out.head(content_length=str(len(body)))
    for i in range(len(body)):
        await out.raw(body[i : i + 1])
        await asyncio.sleep(0.2)


async def slowly(asked: Asked, out: Out) -> None:
    await out.head(content_type=_STREAM if asked.json.get("stream") else "application/json")
    if not asked.json.get("stream"):
        await asyncio.sleep(0.2)
        await out.raw(json.dumps(joined(rows(asked))).encode())
        return
    for part in rows(asked):
        for _ in range(3):
            await out.raw(b": keep-alive\n\n")
            await asyncio.sleep(0.02)
        await out.event({"choices": [part]})
    await out.event("[DONE]")


async def in_small_chunks(asked: Asked, out: Out) -> None:
    body = json.dumps(joined(rows(asked))).encode()
    await out.head(transfer_encoding="chunked")
    await out.raw(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")


async def packed(asked: Asked, out: Out) -> None:
    await out.whole(gzip.compress(json.dumps(joined(rows(asked))).encode()), content_encoding="gzip")


async def odd_lines(asked: Asked, out: Out) -> None:
    if not asked.json.get("stream"):
        await out.whole(b"\xef\xbb\xbf" + json.dumps(joined(rows(asked))).encode() + b"\r\n\r\n")
        return
    await out.head(content_type=f"{_STREAM}; charset=utf-8")
    for part in rows(asked):
        data = json.dumps({"choices": [part]})
        await out.raw(f"event: message\r\nid: 1\r\nretry: 5\r\ndata: {data}\r\n\r\n".encode())
    await out.raw(b"data: [DONE]\r\n\r\n")


async def hangs(asked: Asked, out: Out) -> None:
    await asyncio.sleep(60)


async def hangs_in_the_body(asked: Asked, out: Out) -> None:
    await out.head(content_length="500")
    await out.raw(b'{"choices": [')
    await asyncio.sleep(60)


_OK = b"HTTP/1.1 200 OK\r\n"
_JSON = _OK + b"content-type: application/json\r\n"
_EVENTS = _OK + b"content-type: text/event-stream\r\n\r\n"
_DEEP = "[" * 200_000


def _with(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda body: {**body, **fields}


def _columns(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    def change(body: dict[str, Any]) -> dict[str, Any]:
        body["choices"][0]["logprobs"].update(fields)
        return body

    return change


GOOD: dict[str, Kind] = {
    "good": good,
    "awake": slowly,
    "small chunks": in_small_chunks,
    "packed": packed,
    "odd lines": odd_lines,
    "usage is nonsense": spoilt(_with(usage={"prompt_tokens": "many", "completion_tokens": -1})),
    "further fields": spoilt(_with(**{f"x{i}": [None] * 20 for i in range(200)})),
    "offsets are nonsense": spoilt(_columns(text_offset=["a"] * 99)),
}

BAD: dict[str, Kind] = {
    # the head
    "nothing at all": raw(b""),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "TLS": raw(bytes.fromhex("15030100020228")),
    "a head without end": endless(_OK, b"x-filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"),
    "one header without end": endless(_OK + b"x: ", b"a" * 65_536),
    "for ever continue": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a head by bytes": endless(b"H", b"", 0.1),
    "hangs": hangs,
    "status 999": raw(b"HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n"),
    "status 204": raw(b"HTTP/1.1 204 None\r\n\r\n"),
    "switching protocols": raw(b"HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    "a length below zero": raw(_JSON + b"content-length: -5\r\n\r\n{}"),
    "two lengths": raw(_JSON + b"content-length: 2\r\ncontent-length: 9\r\n\r\n{}"),
    "less than its length": raw(_JSON + b"content-length: 500\r\n\r\n{}"),
    "a length without end": raw(_JSON + b"content-length: " + b"9" * 5000 + b"\r\n\r\n{}"),
    "no chunk": raw(_JSON + b"transfer-encoding: chunked\r\n\r\nzz\r\n"),
    "a chunk of all": endless(_JSON + b"transfer-encoding: chunked\r\n\r\nffffffffff\r\n", b" " * 65_536),
    "chunks without end": endless(_JSON + b"transfer-encoding: chunked\r\n\r\n", b"4\r\n    \r\n" * 5000),
    "a chunk's name without end": endless(_JSON + b"transfer-encoding: chunked\r\n\r\n1;", b"a" * 65_536),
    # elsewhere
    "sent elsewhere": to("https://evil.example/v1/completions"),
    "sent in a circle": to("/v1/completions"),
    "sent to a file": to("file:///etc/passwd"),
    "sent nowhere": to("http://[::1"),
    # refusals
    "refused with the key": whole(json.dumps({"error": {"message": f"bad {SECRET}"}}).encode(), "401 No"),
    "wait for years": whole(b"{}", "429 Busy", retry_after="1000000000"),
    "wait for nan": whole(b"{}", "429 Busy", retry_after="nan"),
    "wait till then": whole(b"{}", "503 Busy", retry_after="Fri, 31 Dec 9999 23:59:59 GMT"),
    "try again for ever": whole(b"{}", "400 No", x_should_retry="true"),
    "a failure without end": endless(b"HTTP/1.1 500 No\r\n\r\n", b"a" * 65_536),
    "a page": whole(b"<html>" + b"<p>" * 2000, "502 Bad", content_type="text/html"),
    "no money": whole(b'{"error": "insufficient_quota"}', "429 No"),
    "an error that is a list": whole(b'{"error": [[[]]]}', "400 No"),
    # packed
    "a bomb": whole(gzip.compress(bytes(200_000_000)), content_encoding="gzip"),
    "a bomb of errors": whole(gzip.compress(bytes(200_000_000)), "400 No", content_encoding="gzip"),
    "packed twice": whole(gzip.compress(gzip.compress(bytes(100_000_000))), content_encoding="gzip, gzip"),
    "not packed": whole(b"{}", content_encoding="gzip"),
    "packed by brotli": whole(b"\x0b\x01\x80{}\x03", content_encoding="br"),
    "packed by zstd": whole(b"\x28\xb5\x2f\xfd", content_encoding="zstd"),
    "half a packet": whole(gzip.compress(b'{"choices": []}')[:-12], content_encoding="gzip"),
    # bodies
    "a body without end": endless(_JSON + b"\r\n", b" " * 65_536),
    "a body by bytes": byte_by_byte,
    "hangs in the body": hangs_in_the_body,
    "an empty body": whole(b""),
    "a page for an answer": whole(b"<html>hello", content_type="text/html"),
    "null": answer(lambda _: None),
    "a list": answer(lambda _: [1, 2]),
    "a number": answer(lambda _: 7),
    "brackets": answer(lambda _: _DEEP),
    "braces": answer(lambda _: '{"a":' * 100_000),
    "a number without end": answer(lambda _: '{"choices": ' + "9" * 100_000 + "}"),
    "no UTF-8": whole(b'{"choices": "\xff\xfe"}'),
    "NUL": whole(bytes(5000)),
    "UTF-16": whole('{"choices": []}'.encode("utf-16")),
    "many lists": answer(lambda _: {"choices": [[]] * 200_000}),
    # answers
    "no choices": answer(lambda _: {"object": "text_completion"}),
    "choices are none": answer(lambda _: {"choices": []}),
    "choices are words": answer(lambda _: {"choices": ["yes"]}),
    "an error inside": answer(lambda _: {"error": {"message": SECRET, "code": 500}}),
    "log probabilities are a list": answer(lambda _: {"choices": [{"text": " a", "logprobs": [1]}]}),
    "no log probabilities": answer(lambda _: {"choices": [{"text": " a", "finish_reason": "stop"}]}),
    "columns of other lengths": spoilt(_columns(token_logprobs=[-0.1] * 99)),
    "no candidates": one(" a", -0.1, {}),
    "NaN": one(" New", float("nan")),
    "infinity": one(" New", float("inf")),
    "likelier than certain": one(" New", 3.0),
    "NaN beside it": one(" New", -0.1, {" New": -0.1, " a": float("nan")}),
    "a log probability of words": one(" New", "high"),
    "a token of megabytes": one("a" * 10_000_000),
    "a token too long": one("a" * 100_000),
    "a token of blanks": one(" " * 1025),
    "many candidates": one(" New", -0.1, {f" {i}": -9.0 for i in range(9000)}),
    "more than was asked for": answer(lambda _: joined([choice(" New") for _ in range(500)])),
    "tokens that are none": spoilt(_columns(tokens=[None] * 4)),
    "half a character": one("\ud83d"),
    "an odd character": one("\ufffd"),
    # streams
    "comments for ever": endless(_EVENTS, b": hello\n\n", 0.01),
    "a comment without end": endless(_EVENTS + b": ", b"a" * 65_536),
    "a line without end": endless(_EVENTS + b"data: ", b"a" * 65_536),
    "an event without end": endless(_EVENTS, b"data: [\n" * 5000),
    "nothing but events": endless(_EVENTS, b'data: {"choices":[]}\n\n' * 50, 0.01),
    "events of nothing": endless(_EVENTS, b"data: null\n\n" * 50, 0.01),
    "only done": raw(_EVENTS + b"data: [DONE]\n\n"),
    "an event of rubbish": raw(_EVENTS + b"data: {{{{\n\n"),
    "an event of half a character": raw(_EVENTS + b'data: {"a": "\xc3\n\n'),
    "stays awake": after_one(b": keep-alive\n\n", 0.01),
    "goes on without tokens": after_one(b'data: {"choices":[]}\n\n', 0.01),
    "goes on with nothing": after_one(b'data: {"choices":[{"text":"","logprobs":null}]}\n\n', 0.01),
    "then hangs": after_one(b"", 0.2),
    "then fails": after_one(b'data: {"error":{"message":"no"}}\n\n', 0.01),
    "then rubbish": after_one(b"data: }\n\n", 0.01),
    "then a line without end": after_one(b"data: " + b"a" * 65_536),
}
