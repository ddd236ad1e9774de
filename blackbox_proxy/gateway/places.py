"""Who may decode now, who waits, and who is sent away: a bounded queue whose places go round the callers.

    async with places.taken("alice"): ...

A free place goes to the caller who has the fewest; of several, to the one who was last given one longest ago. So a
caller with a thousand requests leaves one with a single request waiting for no longer than one of the thousand takes.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from blackbox_proxy.door.refusing import ApiError

_WEIGHT = 0.1  # of the last request in the running mean of how long they take
_LONGEST_WAIT = 120.0  # seconds that a client is told to wait at most


class Places:
    """At most `active` requests at a time, at most `waiting` more in the queue. Belongs to one event loop."""

    def __init__(self, active: int, waiting: int) -> None:
        self._most_active = active
        self._most_waiting = waiting
        self._active: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._given = 0  # places so far
        self._last: dict[str, int] = {}  # the number of the one that a caller was given last
        self._seconds = 1.0  # that a request holds its place, a running mean

    @property
    def active(self) -> int:
        return self._active.total()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def taken(self, caller: str) -> AsyncIterator[None]:
        """A place, once it is this caller's turn. Raises ApiError (429) at once where the queue is full."""
        await self._take(caller)
        start = monotonic()
        try:
            yield
        finally:
            self._seconds += _WEIGHT * (monotonic() - start - self._seconds)
            self._give(caller)

    def retry_after(self) -> int:
        """Seconds until there may be room in the queue."""
        wait = self._seconds * (self.waiting + 1) / self._most_active
        return max(1, math.ceil(min(wait, _LONGEST_WAIT)))

    async def _take(self, caller: str) -> None:
        if self.active < self._most_active:
            self._place(caller)
            return
        if self.waiting >= self._most_waiting:
            raise ApiError(
                f"The server writes {self.active} texts and {self.waiting} wait. Try again later.",
                status=429,
                kind="server_error",
                code="queue_full",
                headers={"retry-after": str(self.retry_after())},
            )
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._give(caller)  # the place came when nobody wanted it any more
            else:
                self._forget(caller, mine)
            raise

    def _give(self, caller: str) -> None:
        """A place is free: the next one in turn has it."""
        self._active[caller] -= 1
        if not self._active[caller]:
            del self._active[caller]
        if not self._waiting or self.active >= self._most_active:
            return
        following = min(self._waiting, key=lambda name: (self._active[name], self._last.get(name, 0)))
        first = self._waiting[following][0]
        self._forget(following, first)
        self._place(following)
        first.set_result(None)

    def _place(self, caller: str) -> None:
        self._given += 1
        self._active[caller] += 1
        self._last[caller] = self._given

    def _forget(self, caller: str, one: asyncio.Future[None]) -> None:
        queue = self._waiting[caller]
        queue.remove(one)
        if not queue:
            del self._waiting[caller]
