"""What a server knows of its clients besides their requests: who may be answered when, and what came of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from blackbox_proxy.serve.engine import Event
from blackbox_proxy.serve.requests import Order


class Gate:
    """Stands between the routes and the engines. This one lets everybody in and looks at nothing."""

    @asynccontextmanager
    async def admitted(self, request: Request, order: Order) -> AsyncIterator[None]:
        """Entered before the first token of a checked request is written, left after its last. Raises ApiError."""
        yield

    def ordered(self, request: Request, model: str, order: Order) -> None:
        """A request of this model has been read and checked."""

    def saw(self, request: Request, event: Event) -> None:
        """Something of the answer is ready to be sent."""

    def failed(self, request: Request, error: Exception) -> None:
        """The answer is, or ends with, an error."""
