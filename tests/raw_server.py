"""A server that writes whatever bytes it is told to, over real TCP: what no framework would let it say."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Asked:
    """One request, as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Out:
    """Where an answer is written. `gone`: the client has hung up."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: str = "200 OK", **headers: str) -> None:
        """A head without a length: the body ends where the connection does."""
        fields = {"content-type": "application/json", **{n.replace("_", "-"): v for n, v in headers.items()}}
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items()), "connection: close"]
        await self.raw("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"))

    async def whole(self, body: bytes, status: str = "200 OK", **headers: str) -> None:
        await self.head(status, content_length=str(len(body)), **headers)
        await self.raw(body)

    async def event(self, value: object) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        await self.raw(f"data: {text}\n\n".encode("utf-8", "surrogatepass"))


Kind = Callable[[Asked, Out], Awaitable[None]]


@dataclass
class RawServer:
    """Answers every request by its `kind`, and remembers what came."""

    kind: Kind
    url: str = ""
    seen: list[Asked] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ", 2)
            headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            asked = Asked(method, path, headers, body)
            self.seen.append(asked)
            await self.kind(asked, Out(writer))
        with suppress(Exception):
            writer.close()
            await writer.wait_closed()


@contextmanager
def raw_server(kind: Kind, prefix: str = "/v1") -> Iterator[RawServer]:
    """A `RawServer` on a port of its own, on a thread of its own."""
    server, loop = RawServer(kind), asyncio.new_event_loop()
    started = threading.Event()

    async def run() -> None:
        listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}{prefix}"
        started.set()
        async with listening:
            await stop.wait()
        for writer in server.writers:
            writer.transport.abort()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
