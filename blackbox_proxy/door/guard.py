"""What stands before every route: ASGI middleware that refuses strangers and takes in bodies within limits.

    Door      whose page and by which name the server is called: before the key is looked at, before a byte is read
    Bodies    size and time of a body, and of all of them together; behind the key

A page in a browser on this machine can reach a server on loopback. It can be told by its `Origin`, which browsers put
on every POST, and, where it had its own name point here (DNS rebinding), by the `Host` it asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blackbox_proxy.door.limits import Limits
from blackbox_proxy.door.refusing import ApiError

_DRAINED = 16  # times the limit that is read and thrown away, so that the client comes to read why it was refused
_DRAIN_SECONDS = 2.0
_SHOWN = 200  # characters of what a client sent that go into an error


class Door:
    """403 to a foreign `Host` on loopback, or on any address once names are given, and to a foreign `Origin`."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._hosts, self._origins = limits.hosts, limits.origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await _answer(refusal, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if (self._hosts or _is_loopback(scope)) and not _knows(host, self._hosts):
            return ApiError(
                f"This server is not called {_short(host)}. (`--allow-host` adds names.)",
                status=403,
                code="host_not_allowed",
            )
        for origin in headers.getlist("origin"):
            own = origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
            if not (own or "*" in self._origins or origin.lower() in self._origins):
                return ApiError(
                    f"Pages of {_short(origin)} may not use this server. (`--allow-origin` adds pages.)",
                    status=403,
                    code="origin_not_allowed",
                )
        return None


def _is_loopback(scope: Scope) -> bool:
    """Whether the request came in at a loopback address of this machine."""
    try:
        return ip_address((scope.get("server") or ("",))[0]).is_loopback
    except ValueError:
        return False


def _knows(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names an address, localhost or one of `names`; none at all comes from no browser."""
    if "*" in names or not host:
        return True
    name = host.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.rpartition(":")[0] or name
    if name in names or host.lower() in names or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class Bodies:
    """Reads a body whole before the app is called, or answers 413 (too large), 408 (too slow), 503 (too many at once).

    The app gets it in one piece. A client that goes away while it sends is let go without a word.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._held = 0  # bytes of all bodies being read or answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body()
        try:
            try:
                came = await self._read(body, Headers(scope=scope), receive)
            except ApiError as error:
                self._held -= body.dropped()  # at once: others have a use for the room
                await _refuse_body(error, self._limits, scope, receive, send)
                return
            if came:
                await self._app(scope, body.then(receive), send)
        finally:
            self._held -= body.dropped()

    async def _read(self, body: _Body, headers: Headers, receive: Receive) -> bool:
        """Fill `body`; False if the client has gone away. Raises ApiError."""
        limits, declared = self._limits, headers.get("content-length", "")
        if declared.isdigit():
            self._check(int(declared[:20]), int(declared[:20]))
        elif "transfer-encoding" not in headers:
            return True
        try:
            async with asyncio.timeout(limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    part = message.get("body", b"")
                    body.add(part)
                    self._held += len(part)
                    self._check(body.size, 0)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(f"The body did not arrive within {limits.body_seconds:g} s.", status=408) from None
        return True

    def _check(self, size: int, coming: int) -> None:
        limits = self._limits
        if size > limits.body_bytes:
            raise ApiError(
                f"The body is larger than {limits.max_body:g} MiB, the most that this server takes.",
                status=413,
                code="request_too_large",
            )
        if self._held + coming > limits.bodies_bytes:
            raise ApiError(
                "The server has as many bodies in work as it takes. Try again later.", status=503, kind="server_error"
            )


class _Body:
    """The body of a request as it comes in, and the `receive` that hands it on once."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        self.size += len(part)
        self._parts.append(part)

    def dropped(self) -> int:
        """Forget the body; how many bytes it had."""
        size, self.size, self._parts = self.size, 0, []
        return size

    def then(self, receive: Receive) -> Receive:
        """The body in one piece, then whatever else comes: that the client has gone away."""
        if not self._parts:
            return receive

        async def handed() -> Message:
            if not self._parts:
                return await receive()
            whole = b"".join(self._parts)
            self._parts = []
            return {"type": "http.request", "body": whole, "more_body": False}

        return handed


async def _refuse_body(error: ApiError, limits: Limits, scope: Scope, receive: Receive, send: Send) -> None:
    """Say no to a body that is still on its way: the answer goes out first, then the rest is thrown away for a while,
    since a connection that is closed on unread bytes takes the answer with it.
    """

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            await send({**message, "more_body": True})
            if "expect" not in Headers(scope=scope) and error.status != 408:
                await _drain(receive, _DRAINED * limits.body_bytes)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await send(message)

    retry = {"retry-after": "1"} if error.status == 503 else {}
    await JSONResponse(error.body, error.status, {"connection": "close"} | retry)(scope, receive, sent)


async def _drain(receive: Receive, most: int) -> None:
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _answer(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(error.body, error.status)(scope, receive, send)


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
