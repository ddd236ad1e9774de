"""The loss of weights over many places: -log of what p gives to what was right, nats.

    loss(w)  =  sum over places  m * ( log sum over candidates exp(x w)  -  log sum over right ones exp(x w) )

x (d,) are a candidate's terms. With one right candidate a place it is convex in w: a log-linear model. m: how often a
place counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.types import Floats


@dataclass(frozen=True)
class Terms:
    """All candidates of all places in one table: x (n, d), place by place; starts (p,): the first row of each place;
    right (n,): which of them are; documents (p,): which text each place is of.
    """

    x: Floats
    starts: NDArray[np.intp]
    right: NDArray[np.bool_]
    documents: NDArray[np.intp]

    @classmethod
    def of(cls, places: Sequence[tuple[Floats, NDArray[np.bool_], int]]) -> Terms:
        """From the terms (c, d), the right ones (c,) and the document of each place; all have at least one that is
        right.
        """
        sizes = [len(x) for x, _, _ in places]
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.intp)
        return cls(
            np.concatenate([x for x, _, _ in places]),
            starts,
            np.concatenate([right for _, right, _ in places]),
            np.array([document for _, _, document in places], dtype=np.intp),
        )

    @property
    def count(self) -> int:
        """Places."""
        return len(self.starts)

    @cached_property
    def _sizes(self) -> NDArray[np.intp]:
        return np.diff(np.append(self.starts, len(self.x)))

    @cached_property
    def _right_rows(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.right)

    @cached_property
    def _right_starts(self) -> NDArray[np.intp]:
        counts = np.add.reduceat(self.right.astype(np.intp), self.starts)
        return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.intp)

    def only(self, documents: Sequence[int]) -> Terms:
        """The places of some documents."""
        kept = np.isin(self.documents, documents)
        rows = np.repeat(kept, self._sizes)
        sizes = self._sizes[kept]
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.intp)
        return Terms(self.x[rows], starts, self.right[rows], self.documents[kept])

    def losses(self, weights: Floats) -> Floats:
        """Of each place, (p,) nats."""
        values = self.x @ weights
        chosen = values[self._right_rows]
        return _log_sums(values, self.starts) - _log_sums(chosen, self._right_starts)

    def loss(self, weights: Floats, counts: Floats | None = None) -> tuple[float, Floats, Floats]:
        """The sum, its gradient (d,) and its matrix of second derivatives (d, d). counts (p,): how often each place
        counts.
        """
        counts = np.ones(self.count) if counts is None else counts
        every = _moments(self.x, self.x @ weights, self.starts, counts)
        rows = self._right_rows
        chosen = _moments(self.x[rows], (self.x @ weights)[rows], self._right_starts, counts)
        return every[0] - chosen[0], every[1] - chosen[1], every[2] - chosen[2]

    def gradients(self, weights: Floats, documents: int) -> Floats:
        """The gradient of each document's loss, (documents, d)."""
        every = _means(self.x, self.x @ weights, self.starts)
        rows = self._right_rows
        own = every - _means(self.x[rows], (self.x @ weights)[rows], self._right_starts)
        total = np.zeros((documents, self.x.shape[1]))
        np.add.at(total, self.documents, own)
        return total


def _log_sums(values: Floats, starts: NDArray[np.intp]) -> Floats:
    top = np.maximum.reduceat(values, starts)
    sizes = np.diff(np.append(starts, len(values)))
    found: Floats = top + np.log(np.add.reduceat(np.exp(values - np.repeat(top, sizes)), starts))
    return found


def _shares(values: Floats, starts: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """The log sum of each place, (p,), and each row's share of it, (n,)."""
    sums = _log_sums(values, starts)
    sizes = np.diff(np.append(starts, len(values)))
    return sums, np.exp(values - np.repeat(sums, sizes))


def _means(x: Floats, values: Floats, starts: NDArray[np.intp]) -> Floats:
    _, shares = _shares(values, starts)
    found: Floats = np.add.reduceat(shares[:, None] * x, starts, axis=0)
    return found


def _moments(x: Floats, values: Floats, starts: NDArray[np.intp], counts: Floats) -> tuple[float, Floats, Floats]:
    sums, shares = _shares(values, starts)
    weighted = shares[:, None] * x
    means = np.add.reduceat(weighted, starts, axis=0)
    sizes = np.diff(np.append(starts, len(values)))
    squares = (weighted * np.repeat(counts, sizes)[:, None]).T @ x
    return float(counts @ sums), counts @ means, squares - (means * counts[:, None]).T @ means
