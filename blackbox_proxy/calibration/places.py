"""One place of a text: what base and pair say of each candidate there, and which of them was right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.decoding.weigh import Weighed, log_spread
from blackbox_proxy.maths.equation import tail, unlisted_mass
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
    def listed(self) -> bool:
        """Whether what was right is among the candidates."""
        return bool((self.right & self.among & np.isfinite(self.log_q)).any())

    def spread_anew(self, spread: Spread, policy: TailPolicy, pairs: Sequence[Pair]) -> Floats:
        """log q with the hidden mass spread otherwise, (c,)."""
        if spread == PLAIN_SPREAD or self.shown == len(self.log_q) or policy not in ("backoff", "ask"):
            return self.log_q
        told = self.log_q[: self.shown]
        listed = log_spread(pairs, [scores.disjoint for scores in self.scores], spread)[: self.shown]
        beyond = log_spread(pairs, self.scores, spread)[self.shown :]
        rest = tail(told, listed, beyond, "backoff", None, spread.temperature)
        return np.concatenate([told, rest])


def terms(place: Place, log_q: Floats, has_antiexperts: Sequence[bool]) -> Floats:
    """What the weights multiply, (c, d): log q, log E and -log A of each pair, whether log q is estimated."""
    columns = [log_q]
    for scores, has in zip(place.scores, has_antiexperts, strict=True):
        log_e, log_a = known_masses(log_q, scores, has)
        columns += [log_e, -log_a] if has else [log_e]
    columns.append((np.arange(len(log_q)) >= place.shown).astype(np.float64))
    return np.stack(columns, axis=1)


def unlisted(place: Place, log_q: Floats, pairs: Sequence[Pair]) -> float:
    """The share of q that is on no list."""
    return unlisted_mass(log_q, log_spread(pairs, [scores.disjoint for scores in place.scores]), place.shown)


def rest_terms(place: Place, log_q: Floats, pairs: Sequence[Pair]) -> Floats | None:
    """What the weights multiply of everything that is on no list, (d + 1,): as `terms`, and a one for its own weight
    (see `Weights.log_rest`); None where there is nothing.
    """
    hidden = unlisted(place, log_q, pairs)
    if hidden <= 0.0:
        return None
    found = [math.log(hidden)]
    for pair, scores in zip(pairs, place.scores, strict=True):
        found.append(log_rest(scores.own[0]))
        if pair.has_antiexpert:
            found.append(-log_rest(scores.own[1]))
    return np.array([*found, 0.0, 1.0])
