"""Threads for what the models do: the loop goes on with its other texts meanwhile.

Who no longer waits, cancelled, stops the work at its next checkpoint (background.py).

asyncio's own pool has few threads on a small machine, and only texts that wait at the same time can be scored in one
pass; so there are more than texts are usually decoded at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, TypeVar

from blackbox_proxy.background import stoppable

T = TypeVar("T")

_THREADS = 128


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "blackbox-proxy-score")


def start(work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """Begin `work(*arguments)` on a thread."""
    return asyncio.get_running_loop().run_in_executor(_pool(), partial(work, *arguments))


async def on_thread(work: Callable[..., T], *arguments: object) -> T:
    """`work(*arguments)`, waited for without blocking the loop."""
    return await waited(*_begun(work, *arguments))


def _begun(work: Callable[..., T], *arguments: object) -> tuple[asyncio.Future[T], threading.Event]:
    stop = threading.Event()
    return start(partial(stoppable, work, *arguments, stop=stop)), stop


async def waited(begun: asyncio.Future[T], stop: threading.Event) -> T:
    """The result of what was begun; it is stopped if nobody waits for it any more."""
    try:
        return await asyncio.shield(begun)
    except asyncio.CancelledError:
        stop.set()
        begun.add_done_callback(_heard)
        raise


def _heard(begun: asyncio.Future[Any]) -> None:
    if not begun.cancelled():
        begun.exception()


class Turns:
    """Work on threads that must not overlap: a session's calls. It takes turns, and none is left behind."""

    def __init__(self) -> None:
        self._work: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """`work(*arguments)`, once what was begun before has ended."""
        await self.idle()
        begun, stop = _begun(work, *arguments)
        self._work = begun
        return await waited(begun, stop)

    def begin(self, work: Callable[..., object], *arguments: object) -> None:
        """Begin what nobody waits for, where nothing else is under way. What goes wrong in it is not told."""
        self._work = start(work, *arguments)

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        if self._work is not None and not self._work.done():
            await asyncio.wait([self._work])
        if self._work is not None and not self._work.cancelled():
            self._work.exception()
