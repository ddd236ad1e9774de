"""Parts of one long array, each of them a place of a text: the same arithmetic for all places in one go.

What comes out of a part hangs on its own values alone and never on what stands beside it (`reduceat` adds up each part
by itself), so that p is the same, to the last bit, however many places are reckoned at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.types import Floats

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """p parts of an array (n,), one behind the other: sizes (p,), each at least 1; starts (p,): their first values."""

    sizes: NDArray[np.intp]
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, sizes: Sequence[int] | NDArray[np.intp]) -> Parts:
        """Parts of these sizes."""
        counts = np.asarray(sizes, dtype=np.intp)
        return cls(counts, np.cumsum(counts) - counts)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Where each begins and ends."""
        return [(start, start + size) for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True)]

    def each(self, values: NDArray[T]) -> NDArray[T]:
        """What belongs to the parts, (p,), for each of their values, (n,)."""
        return np.repeat(values, self.sizes)

    def split(self, values: NDArray[T]) -> list[NDArray[T]]:
        """What belongs to each part, of (n, …)."""
        return [values[start:end] for start, end in self.bounds]

    def owners(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Which part these indices of the array are in."""
        return np.searchsorted(self.starts, indices, side="right") - 1

    def only(self, kept: NDArray[np.bool_]) -> Parts:
        """The same parts of what is kept, (n,), of which each has at least one value."""
        return Parts.of(self.counts(kept))

    def counts(self, which: NDArray[np.bool_]) -> NDArray[np.intp]:
        """How many there are in each part, (p,)."""
        found: NDArray[np.intp] = np.add.reduceat(which.astype(np.intp), self.starts)
        return found

    def sums(self, values: Floats) -> Floats:
        """The sum of each part, (p,)."""
        found: Floats = np.add.reduceat(values, self.starts)
        return found

    def most(self, values: Floats) -> Floats:
        """The largest value of each part, (p,)."""
        found: Floats = np.maximum.reduceat(values, self.starts)
        return found

    def best(self, values: Floats) -> NDArray[np.intp]:
        """Where the first of the largest values of each part is, (p,)."""
        places = np.where(values == self.each(self.most(values)), np.arange(len(values)), len(values))
        found: NDArray[np.intp] = np.minimum.reduceat(places, self.starts)
        return found

    def shares(self, values: Floats) -> tuple[Floats, Floats]:
        """log of the sum of exp(values) of each part, (p,), and each value's share of it, (n,). All are finite."""
        top = self.most(values)
        share = np.exp(values - self.each(top))
        total = self.sums(share)
        share /= self.each(total)
        return top + np.log(total), share

    def log_sums(self, values: Floats) -> Floats:
        """log of the sum of exp(values) of each part, (p,); -inf where nothing is possible."""
        top = self.most(values)
        top = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            found: Floats = top + np.log(self.sums(np.exp(values - self.each(top))))
        return found
