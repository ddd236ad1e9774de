"""Work on other threads: an event loop of its own for callers without one, and work that can be told to stop.

A thread cannot be ended from outside. What runs long on one asks, at its `checkpoint`s, whether anybody still waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """One loop for all that is run on it: clients and their connections stay with it. It starts with the first use.

    What runs on it must not wait for something else that runs on it: that takes a second one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._starting = threading.Lock()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for it."""
        with self._starting:
            loop = self._loop
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name=self._name, daemon=True).start()
        return loop


def apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own, on a thread of its own: a loop that runs here does not matter."""
    done: list[T] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            done.append(asyncio.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


async def side_by_side(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """`work()` so many times at once, until each has ended. An error in one ends all, and nothing goes on behind it."""
    workers = [asyncio.create_task(work()) for _ in range(count)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


class Stopped(Exception):
    """Raised by a `checkpoint` of work that nobody waits for any more. Seen by nobody."""


_here = threading.local()


def stoppable(work: Callable[..., T], *arguments: object, stop: threading.Event) -> T:
    """`work(*arguments)`, whose checkpoints on this thread end it once `stop` is set."""
    before = getattr(_here, "stop", None)
    _here.stop = stop
    try:
        checkpoint()
        return work(*arguments)
    finally:
        _here.stop = before


def checkpoint() -> None:
    """Raise Stopped where the work of this thread is to end. Costs next to nothing."""
    stop = getattr(_here, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped
