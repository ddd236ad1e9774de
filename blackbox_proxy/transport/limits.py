"""Requests and tokens per minute, and requests at a time: given, or learned from what the API says of its limits.

One `Limiter` is shared by all generations of a process that ask one API with one key. Whoever comes first goes first; a
waiting request can be cancelled; time comes from a clock that tests can set. `Admits` is what it is to those who ask:
the limiter of many processes (cluster/limits.py) is another.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from blackbox_proxy.errors import InputError

_MINUTE = 60.0
_at_turn: ContextVar[Callable[[], None] | None] = ContextVar("at_turn", default=None)


@contextmanager
def at_turn(tell: Callable[[], None]) -> Iterator[None]:
    """`tell` is called when a request that is made inside gets its turn: the wait for that is not the API's."""
    before = _at_turn.set(tell)
    try:
        yield
    finally:
        _at_turn.reset(before)


def tell_turn() -> None:
    """The request that is made here has got its turn."""
    if (tell := _at_turn.get()) is not None:
        tell()


class Admits(Protocol):
    """What lets requests go, one after the other."""

    def request(self, tokens: int) -> AbstractAsyncContextManager[Callable[[int], None]]:
        """As `Limiter.request`."""
        ...

    def learn(self, headers: Mapping[str, str]) -> None:
        """As `Limiter.learn`."""
        ...


@dataclass(slots=True)
class Place:
    """What one request was let go with, tokens, and what of it it did not need, once it has told."""

    tokens: int
    unused: int = 0

    def used(self, count: int) -> None:
        """It really had so many tokens."""
        self.unused = max(0, self.tokens - count)


@dataclass(slots=True)
class _Bucket:
    """Fills at `rate` per second up to `size`, one minute's worth; may be overdrawn by one large request."""

    size: float
    level: float
    filled: float  # when `level` was true

    @property
    def rate(self) -> float:
        return self.size / _MINUTE

    def fill(self, now: float) -> None:
        self.level = min(self.size, self.level + max(0.0, now - self.filled) * self.rate)
        self.filled = now

    def wait(self, wanted: float) -> float:
        """Seconds until `wanted` is there; a request larger than the bucket waits until it is full."""
        return max(0.0, (min(wanted, self.size) - self.level) / self.rate)


@dataclass(eq=False)
class _Ticket:
    loop: asyncio.AbstractEventLoop
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Limiter:
    """Admits requests one after the other. Safe for threads and for several event loops.

    requests_per_minute, tokens_per_minute (prompt and output): None is no limit until the API names one.
    max_concurrency: requests at a time.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_concurrency: int | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        given = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        for name, value in {**given, "max_concurrency": max_concurrency}.items():
            if value is not None and not value > 0:
                raise InputError(f"{name} must be positive, not {value}", hint="Leave it out for no limit.")
        self._now = now
        self._sleep = sleep
        self._buckets = {
            name: _Bucket(float(value), float(value), now()) for name, value in given.items() if value is not None
        }
        self._given = frozenset(self._buckets)
        self._places = max_concurrency
        self._waiting: deque[_Ticket] = deque()
        self._lock = threading.Lock()

    @property
    def limits(self) -> dict[str, float]:
        """Requests and tokens per minute, as far as they are known."""
        return {name: bucket.size for name, bucket in self._buckets.items()}

    @asynccontextmanager
    async def request(self, tokens: int) -> AsyncIterator[Callable[[int], None]]:
        """Wait for the turn of a request of at most `tokens` tokens, and hold its place while it runs.

        Gives a function to call with the tokens it really had: the rest is given back.
        """
        await self._admit(tokens)
        tell_turn()
        place = Place(tokens)
        try:
            yield place.used
        finally:
            self._leave(place.unused)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take over the limits that an answer's headers name (`x-ratelimit-limit-…`, per minute) and what is left of
        them; given limits stay as they are.
        """
        told = told_limits(headers)
        with self._lock:
            for name, (limit, left) in told.items():
                if name in self._given:
                    continue
                bucket = self._buckets.setdefault(name, _Bucket(limit, limit, self._now()))
                bucket.fill(self._now())
                bucket.size = limit
                bucket.level = min(limit, bucket.level if left is None else min(bucket.level, left))

    # -- turns ----------------------------------------------------------------------------------------------------

    async def _admit(self, tokens: int) -> None:
        ticket = _Ticket(asyncio.get_running_loop())
        with self._lock:
            self._waiting.append(ticket)
        try:
            while True:
                with self._lock:
                    ticket.turn.clear()
                    seconds = self._seconds(ticket, tokens)
                    if seconds == 0.0:
                        self._take(tokens)
                        return
                if seconds is None:
                    await ticket.turn.wait()
                else:
                    await self._sleep(seconds)
        finally:
            with self._lock:
                self._waiting.remove(ticket)
                self._call_first()

    def _seconds(self, ticket: _Ticket, tokens: int) -> float | None:
        """How long until this one may go; None: until it is called."""
        if self._waiting[0] is not ticket or self._places == 0:
            return None
        waits = [0.0]
        for name, bucket in self._buckets.items():
            bucket.fill(self._now())
            waits.append(bucket.wait(1.0 if name == "requests_per_minute" else float(tokens)))
        return max(waits)

    def _take(self, tokens: int) -> None:
        for name, bucket in self._buckets.items():
            bucket.level -= 1.0 if name == "requests_per_minute" else float(tokens)
        if self._places is not None:
            self._places -= 1

    def _leave(self, unused: int) -> None:
        with self._lock:
            if self._places is not None:
                self._places += 1
            bucket = self._buckets.get("tokens_per_minute")
            if bucket is not None:
                bucket.level = min(bucket.size, bucket.level + unused)
            self._call_first()

    def _call_first(self) -> None:
        if self._waiting:
            first = self._waiting[0]
            if not first.loop.is_closed():
                first.loop.call_soon_threadsafe(first.turn.set)


def told_limits(headers: Mapping[str, str]) -> dict[str, tuple[float, float | None]]:
    """What an answer's headers say of requests and tokens per minute: the limit, and what is left of it, if told."""
    told = {}
    for kind in ("requests", "tokens"):
        limit = _number(headers.get(f"x-ratelimit-limit-{kind}"))
        if limit is not None:
            told[f"{kind}_per_minute"] = limit, _number(headers.get(f"x-ratelimit-remaining-{kind}"), least=0.0)
    return told


def _number(text: str | None, least: float = 1e-9) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value >= least else None
