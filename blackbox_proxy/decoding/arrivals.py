"""What a base sends while nobody waits for it: a task reads the parts of a draft, the loop takes what is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from blackbox_proxy.types import Draft, FinishReason, Position, Usage, joined


class Arrivals:
    """One draft as it arrives, read in the background. Nobody falls behind: `more` takes all that has arrived.

    waiting: positions that are not taken yet; local: how many of them, from the first, are the local draft's.
    count: positions that have arrived. finish, reason, cut: see `Draft`.
    saw: called as each part arrives, with it and the number of positions so far.
    """

    def __init__(self, parts: AsyncGenerator[Draft, None], saw: Callable[[Draft, int], None]) -> None:
        self.waiting: list[Position] = []
        self.local = 0
        self.count = 0
        self.finish: FinishReason | None = None
        self.reason: str | None = None
        self.cut = False
        self._parts = parts
        self._saw = saw
        self._arrived: list[Draft] = []
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
                    self._arrived.append(part)
                    self._news.set()
        finally:
            self._ended = True
            self._news.set()

    async def more(self) -> Draft | None:
        """All that has arrived since the last time, as one part; waits for the first; None once it has ended.

        Raises what the base raised, after all that arrived before.
        """
        while not (self._arrived or self._ended):
            self._news.clear()
            await self._news.wait()
        if not self._arrived:
            await self._task
            return None
        part = self._joined()
        self.waiting += part.positions
        self.local += part.given
        self.count += len(part.positions)
        self.finish, self.reason, self.cut = part.finish, part.reason, self.cut or part.cut
        return part

    def took(self, count: int) -> None:
        """The first so many positions are part of the text."""
        del self.waiting[:count]
        self.local = max(0, self.local - count)

    @property
    def goes_on(self) -> bool:
        """Whether a longer draft could go on from the last position."""
        return not (self.ended or self.cut)

    @property
    def ended(self) -> bool:
        """Whether the text ends after the last position."""
        return self.finish not in (None, "length")

    def broke(self, asked: int) -> bool:
        """Whether it ended before `asked` positions for no reason."""
        return self.finish is None and not self.cut and self.count < asked

    async def close(self) -> Usage:
        """Stop the base and the reading; what the parts that nobody took have cost."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # of a draft that is no longer wanted: nobody needs to hear of it
        return self._joined().usage

    def _joined(self) -> Draft:
        parts, self._arrived = self._arrived, []
        return joined(parts)
