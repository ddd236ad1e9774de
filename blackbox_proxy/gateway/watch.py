"""What is known of every request while it is answered, for logs and metrics: never a prompt, a text or a key.

    Watched      middleware, outermost: gives the request an id and a `Record`, and writes its line when it has ended
    Record       what one request was and cost

A line is JSON: time, request_id, caller, method, path, status, model, stream, seconds, first_token_seconds, tokens,
what was billed upstream, and the kind of failure, if there was one.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.gateway.metrics import Metrics
from blackbox_proxy.serve.engine import Event
from blackbox_proxy.serve.requests import Order
from blackbox_proxy.types import Usage

log = logging.getLogger("blackbox_proxy.gateway")

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ANYBODY = "anybody"  # the caller where nobody needs a key


@dataclass(slots=True)
class Record:
    """One request. Times are monotonic seconds."""

    id: str
    start: float = field(default_factory=monotonic)
    model: str = ""
    stream: bool = False
    status: int = 0
    usage: Usage = field(default_factory=Usage)
    upstream: Usage = field(default_factory=Usage)
    first: float | None = None
    last: float | None = None
    failure: str = ""

    def ordered(self, model: str, order: Order) -> None:
        self.model, self.stream = model, order.stream

    def saw(self, event: Event) -> float | None:
        """Seconds since the last token, or since the request came in; None where the event has no token."""
        self.usage += event.usage
        self.upstream += event.upstream or Usage()
        if event.usage.completion_tokens == 0:
            return None
        now = monotonic()
        since, self.last = now - (self.last or self.start), now
        if self.first is None:
            self.first = now - self.start
        return since

    def failed(self, error: BaseException) -> None:
        self.failure = type(error).__name__

    def line(self, scope: Scope) -> dict[str, Any]:
        """What is logged."""
        line: dict[str, Any] = {
            "time": _now(),
            "request_id": self.id,
            "caller": caller_in(scope),
            "method": scope["method"],
            "path": scope["path"],
            "status": self.status or None,
            "seconds": round(monotonic() - self.start, 4),
        }
        if self.model:
            line |= {
                "model": self.model,
                "stream": self.stream,
                "first_token_seconds": None if self.first is None else round(self.first, 4),
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
                "upstream_calls": self.upstream.api_calls,
                "upstream_prompt_tokens": self.upstream.prompt_tokens,
                "upstream_completion_tokens": self.upstream.completion_tokens,
            }
        return line | ({"failure": self.failure} if self.failure else {})


def record_of(request: Request) -> Record:
    found: Record = request.scope["state"]["record"]
    return found


def caller_in(scope: Scope) -> str:
    """Whose request it is."""
    return str(scope.get("state", {}).get("caller", ANYBODY))


class Watched:
    """Middleware around everything. An id that the client sends (`x-request-id`) is kept if it is a plain one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        record = Record(given if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}")
        scope.setdefault("state", {})["record"] = record

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except BaseException as error:
            record.failure = record.failure or type(error).__name__
            raise
        finally:
            if not record.status and not record.failure:
                record.failure = "ClientGone"
            self._metrics.ended(record.model, record.status, monotonic() - record.start)
            log.info("request", extra={"line": record.line(scope)})


def note(record: Record, error: Exception) -> None:
    """A failure that is not the client's own, and that the client is told in general, is in the log as it was said."""
    cause = error.__cause__ if isinstance(error.__cause__, BlackboxError) else error
    record.failed(cause)
    if isinstance(cause, BlackboxError) and not isinstance(cause, InputError):
        said = {"request_id": record.id, "failure": type(cause).__name__, "said": str(cause), "hint": cause.hint}
        log.warning("failure", extra={"line": {"time": _now()} | said})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class JsonLines(logging.Formatter):
    """A log record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "line", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)
