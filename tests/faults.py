"""A bad network: a TCP proxy in front of a real server that breaks answers, by script or by seed, and counts them.

    with Faulty("127.0.0.1", 8000, Script([Fault("reset", at=90)])) as bad:
        open_base("big", base_url=bad.url)

Requests are read whole and passed on over a connection of their own; the answer's bytes come back as they arrive, up to
the place where the fault strikes. Connections to the client are kept alive, as the server would keep them.

What is left out: bytes sent twice. TCP does not do that, and a gateway that repeated a whole event could not be told
from a model that writes the same token twice, because the events of these APIs are not numbered.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Self

_HEAD_END = b"\r\n\r\n"
_PAGE = b"<html><head><title>Gateway</title></head><body>Please stand by.</body></html>"
_LAST = b"0\r\n\r\n"
_ERROR = b'{"error": {"message": "upstream is down", "code": 502}}'
_EVENT = b'data: {"error": {"message": "the engine died", "type": "server_error", "code": 500}}\n\n'

BEFORE = ("rejected", "dropped", "status", "page")
"""Kinds that the server never sees: the connection is reset at the request's head, or closed after the request; an
error status or a page comes from the gateway. (Nothing listening at all: do not enter the proxy.)"""

BROKEN = ("reset", "closed", "cut", "event", "stall", "type")
"""Kinds that lose what the server has written: the connection is reset or closed at some byte, the body ends in good
order but too early, is or turns into an error, stops for longer than anybody waits, or is said to be something else
(which does no harm to a whole answer)."""

HARMLESS = ("delay", "drip")
"""Kinds that lose nothing: the answer comes late, or byte by byte."""


@dataclass(frozen=True)
class Fault:
    """kind: see above. at: the byte of the answer, headers included, at which it strikes (0: before any); of the kinds
    that only make sense inside of a body, the byte of the body. status, headers: of an answer that the server never
    saw. seconds: of a delay or a stall.
    """

    kind: str
    at: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Script:
    """These faults, one per request in the order of their arrival (None: no fault), then none."""

    def __init__(self, faults: Iterable[Fault | None]) -> None:
        self._faults = list(faults)

    def __call__(self) -> Fault | None:
        return self._faults.pop(0) if self._faults else None


_SHARES: dict[str, float] = {
    **{"status": 40, "rejected": 12, "dropped": 12, "page": 6, "reset": 8, "closed": 8, "cut": 6, "event": 5},
    **{"type": 3, "delay": 3, "drip": 1, "stall": 0.3},  # the last cost time
}


class Storm:
    """Faults drawn by seed. rate: of requests that meet one. stall: seconds; longer than the client's timeout.

    Waits that are asked for are milliseconds. Stalls cost as long as the client's timeout, so they are rare.
    """

    def __init__(self, seed: int, rate: float, stall: float) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self._stall = stall

    def __call__(self) -> Fault | None:
        draw = self._random
        if draw.random() >= self._rate:
            return None
        (kind,) = draw.choices(list(_SHARES), list(_SHARES.values()))
        at = draw.choice((0, draw.randrange(200), draw.randrange(200, 1500), draw.randrange(1500, 6000)))
        seconds = self._stall if kind == "stall" else draw.random() * 0.005
        status, headers = draw.choice(_refusals())
        return Fault(kind, at, status, headers, seconds)


def _refusals() -> list[tuple[int, dict[str, str]]]:
    """What gateways and providers say when it is too much, with waits of milliseconds."""
    return [
        (408, {}),
        (409, {}),
        (429, {"retry-after": "0.003"}),
        (429, {"retry-after-ms": "3"}),
        (429, {"x-ratelimit-reset-requests": "2ms", "x-ratelimit-reset-tokens": "0s"}),
        (429, {"x-ratelimit-reset-tokens": "3ms", "x-ratelimit-remaining-tokens": "0"}),
        (429, {"retry-after": formatdate(usegmt=True), "date": formatdate(usegmt=True)}),
        (500, {}),
        (502, {"content-type": "text/html"}),
        (503, {"retry-after": "0"}),
        (529, {"x-should-retry": "true"}),
        (400, {"x-should-retry": "true", "retry-after-ms": "1"}),
    ]


class Faulty:
    """The proxy, in a thread of its own; nothing listens at `url` before it is entered.

    next_fault: asked once for each request.

    faults: how many of each kind have struck (an answer may end before its fault does). asked: requests that came in.
    passed: those that went on to the server. broken: those of them whose answers a fault has broken. lost: the tokens
    (prompt, completion) that the server reported in broken whole answers. at_stake: the most that asking again for what
    was broken can cost: prompts, sent as ids, and what was to be written.
    """

    def __init__(self, host: str, port: int, next_fault: Callable[[], Fault | None]) -> None:
        self._server = (host, port)
        self._next = next_fault
        self.faults: Counter[str] = Counter()
        self.asked = self.passed = self.broken = 0
        self.lost = [0, 0]
        self.at_stake = 0
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listening: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, sock=self._socket, backlog=512)

    async def _stop(self) -> None:
        assert self._listening is not None
        self._listening.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    # -- one client -----------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass  # the proxy ends
        finally:
            self._open.discard(task)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        try:
            head = await reader.readuntil(_HEAD_END)
        except asyncio.IncompleteReadError:
            return False
        self.asked += 1
        fault = self._next()
        if fault is not None and fault.kind == "rejected":
            self.faults["rejected"] += 1
            _reset(writer)
            return False
        body = await reader.readexactly(_length(head))
        if fault is not None and fault.kind in BEFORE:
            self.faults[fault.kind] += 1
            return await _without_server(fault, writer)
        if fault is not None and fault.kind == "delay":
            self.faults["delay"] += 1
            await asyncio.sleep(fault.seconds)
        self.passed += 1
        upstream, request = await asyncio.open_connection(*self._server)
        try:
            request.write(re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)[:-2] + b"connection: close\r\n\r\n" + body)
            return await self._answer(_Answer(upstream, body), fault, reader, writer)
        finally:
            request.close()
            with suppress(OSError):
                await request.wait_closed()

    async def _answer(
        self, answer: _Answer, fault: Fault | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Bring the answer to the client, up to the fault; whether the connection goes on."""
        await answer.begin()
        kind = fault.kind if fault is not None else ""
        if kind == "drip":
            self.faults["drip"] += 1
            return await _bring(answer.parts(), writer, reader, slowly=True)
        if kind == "type":
            self._strike(kind, answer, harmless=not answer.streamed)
            answer.head = re.sub(rb"(?i)\r\ncontent-type: [^\r]*", b"\r\ncontent-type: text/plain", answer.head)
        if fault is None or kind not in BROKEN or kind == "type":
            return await _bring(answer.parts(), writer, reader)
        if not answer.streamed:
            return await self._break_whole(answer, fault, reader, writer)
        inside = kind in ("cut", "event")
        at = fault.at + (len(answer.head) if inside else 0)
        if not await _bring(answer.parts(at, cut=kind != "event", framed=inside), writer, reader):
            return False
        if not answer.reached(at):
            return True  # it had ended before
        self._strike(kind, answer)
        if not inside:
            await _end(fault, reader, writer)
            return False
        writer.write((_chunk(_EVENT) if kind == "event" else b"") + _LAST)
        await writer.drain()
        return True

    async def _break_whole(
        self, answer: _Answer, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """A whole answer is waited for, so that what it cost is known, and then broken."""
        body = await answer.body()
        self._strike(fault.kind, answer)
        with suppress(ValueError):
            usage = json.loads(body)["usage"]
            self.lost[0] += usage["prompt_tokens"]
            self.lost[1] += usage["completion_tokens"]
        if fault.kind in ("cut", "event"):
            body = body[: fault.at % len(body)] if fault.kind == "cut" else _ERROR
            writer.write(re.sub(rb"(?i)content-length: \d+", b"content-length: %d" % len(body), answer.head) + body)
            await writer.drain()
            return True
        whole = answer.head + body
        writer.write(whole[: fault.at % len(whole)])
        await writer.drain()
        await _end(fault, reader, writer)
        return False

    def _strike(self, kind: str, answer: _Answer, *, harmless: bool = False) -> None:
        self.faults[kind] += 1
        if not harmless:
            self.broken += 1
            self.at_stake += len(answer.request["prompt"]) + int(answer.request["max_tokens"])


async def _bring(
    parts: AsyncIterator[bytes], writer: asyncio.StreamWriter, reader: asyncio.StreamReader, *, slowly: bool = False
) -> bool:
    """Bytes as they come. False if the client has left meanwhile; then the server is left, too."""
    async for part in parts:
        for piece in [part[i : i + 1] for i in range(len(part))] if slowly else [part]:
            writer.write(piece)
            await writer.drain()
            if slowly:
                await asyncio.sleep(0)
            if reader.at_eof() or reader.exception() is not None:
                return False
    return True


class _Answer:
    """What the server answers to a request, head first; streamed: its body comes in chunks, each of them an event."""

    def __init__(self, reader: asyncio.StreamReader, request: bytes) -> None:
        self._reader = reader
        self.request = json.loads(request)
        self.head = b""
        self.streamed = False
        self._gone = 0

    async def begin(self) -> None:
        head = await self._reader.readuntil(_HEAD_END)
        self.head = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)
        self.streamed = b"content-length" not in head.lower()

    async def body(self) -> bytes:
        return await self._reader.readexactly(_length(self.head))

    def reached(self, at: int) -> bool:
        return self._gone >= at

    async def parts(self, until: int | None = None, *, cut: bool = True, framed: bool = False) -> AsyncIterator[bytes]:
        """The head and the body as they arrive, until that many bytes have gone.

        cut: end at that very byte, else with its part. framed: what is cut is still a chunk.
        """
        part = self.head
        while part:
            before, self._gone = self._gone, self._gone + len(part)
            if until is not None and self._gone >= until:
                if cut:
                    part = _chunk(part.partition(b"\r\n")[2][: until - before]) if framed else part[: until - before]
                if part and not (framed and part == _LAST):
                    yield part
                return
            yield part
            part = b"" if part == _LAST else await self._next()

    async def _next(self) -> bytes:
        if not self.streamed:
            return await self._reader.read(65536)
        size = await self._reader.readline()
        return size + await self._reader.readexactly(int(size, 16) + 2)


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content) if content else b""


async def _without_server(fault: Fault, writer: asyncio.StreamWriter) -> bool:
    if fault.kind == "dropped":
        return False
    status, kind, body = fault.status, "application/json", b'{"error": {"message": "not now"}}'
    if fault.kind == "page":
        status, kind, body = 200, "text/html", _PAGE
    headers = {"content-type": kind, **fault.headers, "content-length": str(len(body))}
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join(lines).encode() + _HEAD_END + body)
    await writer.drain()
    return True


async def _end(fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if fault.kind == "stall":
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(1), fault.seconds)  # until the client leaves
    elif fault.kind == "reset":
        _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0
