"""One place of a text: what base and pair say of each candidate there, and which of them was right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.decoding.weigh import log_spread
from blackbox_proxy.decoding.weighed import Weighed
from blackbox_proxy.maths.equation import hidden_masses, tails, unlisted_mass, unlisted_masses
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.maths.weights import PLAIN_SPREAD, Spread, known_masses, log_rest
from blackbox_proxy.protocols import Pair
from blackbox_proxy.types import Floats, Scores, TailPolicy

ALPHAS = tuple(i / 8 for i in range(17))
"""Those of plain proxy-tuning that weights are compared with."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """log_q (c,), nats; of the first `shown` the base told it. scores: of each pair. right (c,): what stood in the
    text, or is a form of the right answer; nothing is right where that was among no candidates. among (c,): what is
    compared: everything, or the forms of a question's options.
    """

    log_q: Floats
    shown: int
    scores: Sequence[Scores]
    right: NDArray[np.bool_]
    among: NDArray[np.bool_]

    @classmethod
    def of_token(cls, weighed: Weighed, index: int | None) -> Place:
        """A place of a text; index: of the candidate that stood there."""
        count = len(weighed.tokens)
        right = np.arange(count) == (-1 if index is None else index)
        return cls(weighed.log_q, weighed.shown, weighed.scores, right, np.ones(count, dtype=np.bool_))

    @property
    def told(self) -> NDArray[np.bool_]:
        """Whether the base told a candidate's log q, (c,)."""
        return np.arange(len(self.log_q)) < self.shown

    @property
    def listed(self) -> bool:
        """Whether what was right is among the candidates."""
        return bool((self.right & self.among & np.isfinite(self.log_q)).any())


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """The candidates of many places under one another, each place a part: one array operation is for all of them.

    log_q (n,), nats; told (n,): whether the base told it. scores: of each pair.
    """

    log_q: Floats
    told: NDArray[np.bool_]
    scores: Sequence[Scores]
    parts: Parts

    @classmethod
    def of(cls, places: Sequence[Place]) -> Places:
        """At least one."""
        return cls(
            np.concatenate([place.log_q for place in places]),
            np.concatenate([place.told for place in places]),
            [first.then(*more) for first, *more in zip(*(place.scores for place in places), strict=True)],
            Parts.of([len(place.log_q) for place in places]),
        )

    def spread_anew(self, spread: Spread, policy: TailPolicy, pairs: Sequence[Pair]) -> Floats:
        """log q with the hidden mass spread otherwise, (n,)."""
        if spread == PLAIN_SPREAD or self.told.all() or policy not in ("backoff", "ask"):
            return self.log_q
        told, parts = self.told, self.parts
        hidden = hidden_masses(parts.sums(np.where(told, np.exp(self.log_q), 0.0)))
        own = log_spread(pairs, [scores.disjoint for scores in self.scores], spread)
        log_a = np.where(told, own, log_spread(pairs, self.scores, spread))
        cap = -parts.most(np.where(told, -self.log_q, 0.0))
        return np.where(told, self.log_q, tails(hidden, log_a, told, parts, "backoff", cap, spread.temperature))

    def unlisted(self, log_q: Floats, pairs: Sequence[Pair]) -> Floats:
        """The share of q that is on no list, (p,)."""
        own = log_spread(pairs, [scores.disjoint for scores in self.scores])
        return unlisted_masses(log_q, own, self.told, self.parts)

    def terms(self, log_q: Floats, has_antiexperts: Sequence[bool]) -> Floats:
        """What the weights multiply, (n, d): log q, log E and -log A of each pair, whether log q is estimated."""
        columns = [log_q]
        for scores, has in zip(self.scores, has_antiexperts, strict=True):
            log_e, log_a = known_masses(log_q, scores, has)
            columns += [log_e, -log_a] if has else [log_e]
        columns.append((~self.told).astype(np.float64))
        return np.stack(columns).T  # column by column, as `likelihood.Terms` wants it


def rest_terms(place: Place, log_q: Floats, pairs: Sequence[Pair]) -> Floats | None:
    """What the weights multiply of everything that is on no list, (d + 1,): as `terms`, and a one for its own weight
    (see `Weights.log_rest`); None where there is nothing.
    """
    hidden = unlisted_mass(log_q, log_spread(pairs, [scores.disjoint for scores in place.scores]), place.shown)
    if hidden <= 0.0:
        return None
    found = [math.log(hidden)]
    for pair, scores in zip(pairs, place.scores, strict=True):
        found.append(log_rest(scores.own[0]))
        if pair.has_antiexpert:
            found.append(-log_rest(scores.own[1]))
    return np.array([*found, 0.0, 1.0])
