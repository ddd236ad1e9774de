"""What a base sends while nobody waits for it: a task reads the parts of a draft, the verifier takes what is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from blackbox_proxy.types import Draft, Usage, joined


class Arrivals:
    """The parts of one draft, read in the background. The verifier never falls behind: it takes all that has arrived.

    saw: called as each part arrives, with it and the number of positions so far.
    """

    def __init__(self, parts: AsyncGenerator[Draft, None], saw: Callable[[Draft, int], None]) -> None:
        self._parts = parts
        self._saw = saw
        self._waiting: list[Draft] = []
        self._ended = False
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        count = 0
        try:
            async with aclosing(self._parts) as parts:
                async for part in parts:
                    count += len(part.positions)
                    self._saw(part, count)
                    self._waiting.append(part)
                    self._news.set()
        finally:
            self._ended = True
            self._news.set()

    async def take(self) -> Draft | None:
        """All that has arrived since the last time, as one part; waits for the first; None once it has ended.

        Raises what the base raised, after all that arrived before.
        """
        while not (self._waiting or self._ended):
            self._news.clear()
            await self._news.wait()
        if self._waiting:
            return self._joined()
        await self._task
        return None

    async def close(self) -> Usage:
        """Stop the base and the reading; what the parts that nobody took have cost."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # of a draft that is no longer wanted: nobody needs to hear of it
        return self._joined().usage

    def _joined(self) -> Draft:
        parts, self._waiting = self._waiting, []
        return joined(parts)
