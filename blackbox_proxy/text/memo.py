"""Results that are remembered by many threads at once: `Memo`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(Generic[K, V]):
    """About `limit` results by key, the recently used ones; None is no result. Safe for threads, and without a lock.

    What is new goes into the young half. Once that is full it becomes the old half, and what was old is forgotten;
    a result that is found there is young again. A reader holds what it has found, so nothing is lost under its hands;
    threads that turn the halves over at the same moment only forget more than they had to.
    """

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.keep(key, found)
        return found

    def find(self, keys: Iterable[K]) -> list[V | None]:
        """The result of each key, None where there is none."""
        keys = list(keys)
        found: list[V | None] = list(map(self._young.get, keys))
        if None in found:
            return [self.get(key) if result is None else result for key, result in zip(keys, found, strict=True)]
        return found

    def keep(self, key: K, value: V) -> V:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = value
        return value

    def clear(self) -> None:
        self._young, self._old = {}, {}
