"""An event loop on a thread of its own: how callers without a loop use what is async inside."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
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
