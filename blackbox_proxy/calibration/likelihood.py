"""The loss of weights over many places: -log of what p gives to what was right, nats.

    loss(w)  =  sum over places  m * ( log sum over candidates exp(x w)  -  log sum over right ones exp(x w) )

x (d,) are a candidate's terms. With one right candidate a place it is convex in w: a log-linear model. m: how often a
place counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.types import Floats


class Table(Protocol):
    """What weights (d,) are fitted to: places, or questions, p of them."""

    @property
    def count(self) -> int:
        """How many, p."""
        ...

    @property
    def documents(self) -> NDArray[np.intp]:
        """Which document each is of, (p,)."""
        ...

    def only(self, documents: Sequence[int]) -> Self:
        """Those of some documents."""
        ...

    def losses(self, weights: Floats) -> Floats:
        """Of each, (p,) nats."""
        ...

    def loss(self, weights: Floats, counts: Floats | None = None) -> tuple[float, Floats, Floats]:
        """The sum, its gradient (d,) and its matrix of second derivatives (d, d). counts (p,): how often each one
        counts.
        """
        ...

    def gradients(self, weights: Floats, documents: int) -> Floats:
        """The gradient of each document's loss, (documents, d)."""
        ...

    def swept(self, plain: Sequence[Floats]) -> Floats:
        """The losses of plain proxy-tuning at each of `ALPHAS`, (p, a); plain: the weights that say the same."""
        ...

    def alone(self, expert: Floats) -> Floats:
        """Those of the first expert by itself, (p,); expert: the weights that say the same."""
        ...


@dataclass(frozen=True)
class Terms:
    """All candidates of all places in one table: x (n, d), a part of it each place; right (n,): which of them are;
    documents (p,): which text each place is of. x lies column by column: so sums over its rows take a quarter of the
    time.
    """

    x: Floats
    parts: Parts
    right: NDArray[np.bool_]
    documents: NDArray[np.intp]

    @classmethod
    def of(cls, places: Sequence[tuple[Floats, NDArray[np.bool_], int]]) -> Terms:
        """From the terms (c, d), the right ones (c,) and the document of each place; all have at least one that is
        right.
        """
        return cls(
            np.concatenate([x.T for x, _, _ in places], axis=1).T,
            Parts.of([len(x) for x, _, _ in places]),
            np.concatenate([right for _, right, _ in places]),
            np.array([document for _, _, document in places], dtype=np.intp),
        )

    @property
    def count(self) -> int:
        """Places."""
        return len(self.documents)

    @cached_property
    def _right_rows(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.right)

    @cached_property
    def _right_parts(self) -> Parts:
        return self.parts.only(self.right)

    def only(self, documents: Sequence[int]) -> Terms:
        """The places of some documents."""
        kept = np.isin(self.documents, documents)
        rows = self.parts.each(kept)
        parts = Parts.of(self.parts.sizes[kept])
        return Terms(self.x.T.compress(rows, axis=1).T, parts, self.right[rows], self.documents[kept])

    def losses(self, weights: Floats) -> Floats:
        """Of each place, (p,) nats."""
        values = self.x @ weights
        chosen = values[self._right_rows]
        return self.parts.log_sums(values) - self._right_parts.log_sums(chosen)

    def loss(self, weights: Floats, counts: Floats | None = None) -> tuple[float, Floats, Floats]:
        """The sum, its gradient (d,) and its matrix of second derivatives (d, d). counts (p,): how often each place
        counts.
        """
        counts = np.ones(self.count) if counts is None else counts
        values, rows = self.x @ weights, self._right_rows
        every = moments(self.x, values, self.parts, counts)
        if len(rows) == self.count:  # one a place: nothing to sum over
            return every[0] - float(counts @ values[rows]), every[1] - counts @ self.x[rows], every[2]
        chosen = moments(self.x[rows], values[rows], self._right_parts, counts)
        return every[0] - chosen[0], every[1] - chosen[1], every[2] - chosen[2]

    def swept(self, plain: Sequence[Floats]) -> Floats:
        """The losses under each of some weights, (p, a)."""
        return np.stack([self.losses(weights) for weights in plain], axis=1)

    def alone(self, expert: Floats) -> Floats:
        """The losses under the expert's weights, (p,)."""
        return self.losses(expert)

    def gradients(self, weights: Floats, documents: int) -> Floats:
        """The gradient of each document's loss, (documents, d)."""
        total = np.zeros((documents, self.x.shape[1]))
        np.add.at(total, self.documents, self.slopes(weights))
        return total

    def slopes(self, weights: Floats) -> Floats:
        """The gradient of each place's loss, (p, d)."""
        values, rows = self.x @ weights, self._right_rows
        every = means(self.x, values, self.parts)
        own: Floats = every - means(self.x[rows], values[rows], self._right_parts)
        return own


# -- sums over the rows of each place ---------------------------------------------------------------------------------


def means(x: Floats, values: Floats, parts: Parts) -> Floats:
    """The mean of x (n, d) in each place, (p, d), rows counting with their share of it."""
    _, share = parts.shares(values)
    found: Floats = np.add.reduceat(share * x.T, parts.starts, axis=1).T
    return found


def moments(x: Floats, values: Floats, parts: Parts, counts: Floats) -> tuple[float, Floats, Floats]:
    """Over all places, each as often as `counts` (p,) says: their log sums, their means (d,) and covariances (d, d)."""
    sums, share = parts.shares(values)
    columns = x.T
    weighted = share * columns
    means = np.add.reduceat(weighted, parts.starts, axis=1)
    weighted *= parts.each(counts)
    squares = np.empty((len(columns), len(columns)))
    for i in range(len(columns)):  # as one product of matrices, of which d is so small, it takes three times as long
        squares[i, : i + 1] = squares[: i + 1, i] = columns[: i + 1] @ weighted[i]
    return float(counts @ sums), means @ counts, squares - (means * counts) @ means.T
