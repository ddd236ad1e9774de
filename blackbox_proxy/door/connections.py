"""Limits of connections, below HTTP: uvicorn's protocol with a clock for clients that do not come to the point.

A client that opens a connection and says nothing, sends a header letter by letter, or does not read its answer holds a
place until one of these clocks runs out. (While a request is being answered, the server itself is what takes time.)
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from blackbox_proxy.door.limits import Limits

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n\r\n%s"
)
_BODY = (
    b'{"error": {"message": "The server has as many connections as it takes. Try again later.", '
    b'"type": "server_error", "param": null, "code": null}}'
)


def guarded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=…)`."""

    class Guarded(H11Protocol):
        _clock: asyncio.TimerHandle | None = None  # until a header is complete
        _writing: asyncio.TimerHandle | None = None  # until the client reads on

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.write(_FULL % (len(_BODY), _BODY))
                transport.close()
                return
            self._wait_for_header()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            self._wait_for_header()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait_for_header()

        def connection_lost(self, exc: Exception | None) -> None:
            for clock in (self._clock, self._writing):
                if clock is not None:
                    clock.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writing = self.loop.call_later(limits.send_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _wait_for_header(self) -> None:
            """One clock runs while no request is being answered, from the last answer on; bytes do not set it back."""
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering and self._clock is not None:
                self._clock.cancel()
                self._clock = None
            elif not answering and self._clock is None:
                self._clock = self.loop.call_later(limits.header_seconds, self._too_late)

        def _too_late(self) -> None:
            self._clock = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()

    return Guarded
