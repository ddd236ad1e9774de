"""What the ids of a vocabulary spell, and all that follows from that alone."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]


def range_of(keys: Sequence[bytes], prefix: bytes) -> tuple[int, int]:
    """Where the sorted `keys` that begin with `prefix` start and end."""
    low = bisect_left(keys, prefix)
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return low, len(keys)
    return low, bisect_left(keys, stem[:-1] + bytes([stem[-1] + 1]), low)


class Sorted:
    """Byte strings in order, so that all those beginning with a prefix are one range."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self.keys = sorted(dict.fromkeys(keys))  # which is quick where they are in order already

    def longest(self, text: bytes) -> bytes | None:
        """The longest key that `text` begins with."""
        best, low, high = None, 0, len(self.keys)
        for end in range(1, len(text) + 1):
            prefix = text[:end]
            low = bisect_left(self.keys, prefix, low, high)
            if low == high or not self.keys[low].startswith(prefix):
                break
            if self.keys[low] == prefix:
                best = prefix
        return best

    def following(self, text: bytes) -> frozenset[bytes]:
        """The single bytes with which keys that begin with `text`, and are longer, go on."""
        low, high = range_of(self.keys, text)
        found: set[bytes] = set()
        while low < high:
            byte = self.keys[low][len(text) : len(text) + 1]
            if byte:
                found.add(byte)
            low = range_of(self.keys, text + byte)[1] if byte else low + 1
        return frozenset(found)

    def extensions(self, text: bytes) -> list[bytes]:
        low, high = range_of(self.keys, text)
        shortest: list[bytes] = []
        for key in self.keys[low:high]:
            rest = key[len(text) :]
            if rest and not (shortest and rest.startswith(shortest[-1])):
                shortest.append(rest)
        return shortest


class Table:
    """Id -> bytes for V ids: b"" adds no text, None means nothing. `rare`: ids that another of the same bytes goes
    before.

    What is slow to find out is `arrays`; made `of` such arrays, a table has it at once.
    """

    def __init__(self, spelling: Iterable[bytes | None], rare: Iterable[int] = ()) -> None:
        self.spelling = tuple(spelling)
        self.rare = frozenset(rare)

    @classmethod
    def of(cls, arrays: Arrays) -> Table:
        """Raises ValueError, KeyError for arrays that are no table's."""
        table = cls(split(arrays["bytes"], arrays["lengths"]), arrays["rare"].tolist())
        order, joined = arrays["order"], arrays["joined"]
        ordinary = np.flatnonzero(arrays["lengths"] > 0)
        if joined.shape != (256, 32) or not np.array_equal(np.sort(order), ordinary):
            raise ValueError("these arrays do not belong together")
        table.order = order.astype(np.int64)
        table.joined = np.unpackbits(joined.astype(np.uint8), axis=1).astype(np.bool_)
        table.fingerprint = bytes(arrays["fingerprint"].astype(np.uint8)).hex()
        return table

    @property
    def arrays(self) -> Arrays:
        everything, lengths = joined_up(self.spelling)
        return {
            "bytes": everything,
            "lengths": lengths,
            "rare": np.array(sorted(self.rare), dtype=np.int64),
            "order": self.order.astype(np.int32),
            "joined": np.packbits(self.joined, axis=1),
            "fingerprint": np.frombuffer(bytes.fromhex(self.fingerprint), dtype=np.uint8),
        }

    @cached_property
    def order(self) -> Ids:
        """The ids that spell something, in the order of their bytes."""
        ordinary = [index for index, spelling in enumerate(self.spelling) if spelling]
        return np.array(sorted(ordinary, key=self.spelling.__getitem__), dtype=np.int64)  # type: ignore[arg-type]

    @cached_property
    def in_order(self) -> list[bytes]:
        """What those ids spell, in that order."""
        return [self.spelling[index] or b"" for index in self.order.tolist()]

    @cached_property
    def sorted(self) -> Sorted:
        return Sorted(self.in_order)

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for index, spelling in enumerate(self.spelling):
            if spelling and (spelling not in found or found[spelling] in self.rare):
                found[spelling] = index
        return found

    @cached_property
    def longest(self) -> int:
        """Length in bytes of the longest token."""
        return max((len(spelling) for spelling in self.spelling if spelling), default=0)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of id -> bytes over the ordinary tokens."""
        digest = hashlib.sha256()
        for index, spelling in enumerate(self.spelling):
            if spelling:
                digest.update(b"%d:%d:" % (index, len(spelling)) + spelling)
        return digest.hexdigest()

    @cached_property
    def joined(self) -> NDArray[np.bool_]:
        """(256, 256): whether some token contains byte a followed by byte b."""
        joined = np.zeros((256, 256), dtype=np.bool_)
        everything, lengths = joined_up([spelling for spelling in self.spelling if spelling and len(spelling) > 1])
        last = np.cumsum(lengths, dtype=np.int64) - 1
        inside = np.ones(max(len(everything) - 1, 0), dtype=np.bool_)
        inside[last[:-1]] = False
        joined[everything[:-1][inside], everything[1:][inside]] = True
        return joined


def joined_up(texts: Sequence[bytes | None]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Texts as one row of bytes and the length of each, -1 for None."""
    lengths = np.array([-1 if text is None else len(text) for text in texts], dtype=np.int32)
    return np.frombuffer(b"".join(text for text in texts if text), dtype=np.uint8), lengths


def split(everything: NDArray[np.uint8], lengths: NDArray[np.int32]) -> list[bytes | None]:
    """The texts of such a row. Raises ValueError where the lengths are not its own."""
    if everything.ndim != 1 or lengths.ndim != 1 or np.maximum(lengths, 0).sum() != len(everything):
        raise ValueError("the lengths are not those of the bytes")
    row = everything.astype(np.uint8).tobytes()
    ends = np.cumsum(np.maximum(lengths, 0), dtype=np.int64).tolist()
    known: list[bytes | None] = [
        None if length < 0 else row[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)
    ]
    return known
