"""Weights from places: maximum likelihood, pulled towards plain proxy-tuning as hard as other texts than those fitted
call for.

Newton's method on a handful of parameters. Whatever is chosen (alpha, the strength of the pull, the tail's spread) is
chosen on the documents that are fitted, so that `crossed` can say what the others think of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from blackbox_proxy.calibration.likelihood import Table
from blackbox_proxy.calibration.places import ALPHAS
from blackbox_proxy.maths.weights import PLAIN_SPREAD, Spread
from blackbox_proxy.types import Floats

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
SHARES = (0.25, 0.5, 0.75, 1.0)
TEMPERATURES = (0.7, 1.4, 2.0)
_FOLDS = 5
_ROUNDS = 50
_ENOUGH = 1e-4  # nats in all: a step that promises less is the last
_WORTH = 2.0  # nats in all: less does not pay for a parameter (Akaike)

Spreads = Callable[[Spread], Table]
"""All places, or questions, with the hidden mass spread in this way."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """weights (d,) as in the table; alpha: the best of `ALPHAS`, towards which they were pulled, with this strength."""

    weights: Floats
    alpha: float
    strength: float
    spread: Spread = PLAIN_SPREAD


@dataclass(frozen=True, slots=True)
class Learner:
    """How weights are learned. has_antiexperts: of each pair; learns_tail: whether there is a tail to be spread;
    learns_rest: whether the table has a column, its last, for what is on no list.
    """

    spreads: Spreads
    has_antiexperts: tuple[bool, ...]
    learns_tail: bool
    learns_rest: bool = False
    _learned: dict[tuple[int, ...], Fitted] = field(default_factory=dict, init=False, repr=False, compare=False)
    _swept: list[Floats] = field(default_factory=list, init=False, repr=False, compare=False)

    def plain(self, alpha: float) -> Floats:
        """(1, alpha, alpha, 0), (d,)."""
        pairs = [[alpha, alpha] if has else [alpha] for has in self.has_antiexperts]
        return np.array([1.0, *(weight for pair in pairs for weight in pair), 0.0, *[0.0] * self.learns_rest])

    def swept(self, every: Table) -> Floats:
        """The losses of plain proxy-tuning at each of `ALPHAS`, (p, a). every: with the tail as it is."""
        if not self._swept:
            self._swept.append(every.swept([self.plain(alpha) for alpha in ALPHAS]))
        return self._swept[0]

    def best_alpha(self, every: Table, documents: Sequence[int]) -> float:
        """Of `ALPHAS`, by the loss of these documents; of equally good ones the smallest."""
        losses = self.swept(every)[np.isin(every.documents, documents)].sum(axis=0).tolist()
        return min((round(loss, 9), alpha) for loss, alpha in zip(losses, ALPHAS, strict=True))[1]

    def learn(self, documents: Sequence[int], *, tail: bool = True) -> Fitted:
        """From these documents alone. tail: whether the spread may be learned, too."""
        fitted = self._plainly_spread(documents)
        if not (tail and self.learns_tail):
            return fitted
        alpha, strength, pull = fitted.alpha, fitted.strength, self.plain(fitted.alpha)
        terms = self.spreads(PLAIN_SPREAD).only(documents)
        least = float(terms.losses(fitted.weights).sum())
        for numbers in ([{"share": share} for share in SHARES], [{"temperature": t} for t in TEMPERATURES]):
            for number in numbers:
                spread = replace(fitted.spread, **number)
                other = self.spreads(spread).only(documents)
                weights = fit(other, pull, strength, start=fitted.weights)
                loss = float(other.losses(weights).sum())
                if loss < least - _WORTH:
                    least, fitted = loss, Fitted(weights, alpha, strength, spread)
        return fitted

    def _plainly_spread(self, documents: Sequence[int]) -> Fitted:
        """Learned with the tail as it is, once for the same documents: `crossed` wants it with and without."""
        known = tuple(documents)
        if known not in self._learned:
            every = self.spreads(PLAIN_SPREAD)
            terms, alpha = every.only(documents), self.best_alpha(every, documents)
            pull = self.plain(alpha)
            strength = _best_strength(terms, documents, pull)
            self._learned[known] = Fitted(fit(terms, pull, strength), alpha, strength)
        return self._learned[known]

    def crossed(self, documents: Sequence[int], tail: bool) -> tuple[Floats, Floats]:
        """The losses of all places, (p,), under weights, and under the best alpha, that were learned without their
        document.
        """
        every = self.spreads(PLAIN_SPREAD)
        learned, swept = np.zeros(every.count), np.zeros(every.count)
        for left_out in folds(documents):
            fitted = self.learn([d for d in documents if d not in left_out], tail=tail)
            here = np.isin(every.documents, left_out)
            learned[here] = self.spreads(fitted.spread).only(left_out).losses(fitted.weights)
            swept[here] = self.swept(every)[here, ALPHAS.index(fitted.alpha)]
        return learned, swept


def folds(documents: Sequence[int], count: int = _FOLDS) -> list[list[int]]:
    """Every document in one of them, those that follow each other in different ones."""
    count = min(count, len(documents))
    return [list(documents[i::count]) for i in range(count)]


def _best_strength(terms: Table, documents: Sequence[int], pull: Floats) -> float:
    """That whose weights do best on documents they were not fitted to."""
    if len(documents) < 2:
        return STRENGTHS[-1]
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for left_out in folds(documents, 3):
        rest = terms.only([d for d in documents if d not in left_out])
        own = terms.only(left_out)
        if rest.count == 0 or own.count == 0:
            continue
        strengths = STRENGTHS[::-1]
        for strength, weights in zip(strengths, fits(rest, pull, strengths), strict=True):
            losses[strength] += float(own.losses(weights).sum())
    return min(STRENGTHS, key=lambda strength: (losses[strength], -strength))


def fit(
    terms: Table, pull: Floats, strength: float, *, counts: Floats | None = None, start: Floats | None = None
) -> Floats:
    """The weights (d,) of the least loss + strength / 2 |w - pull|²; the base's is at least 0."""
    return fits(terms, pull, [strength], counts=counts, start=start)[0]


def fits(
    terms: Table,
    pull: Floats,
    strengths: Sequence[float],
    *,
    counts: Floats | None = None,
    start: Floats | None = None,
) -> list[Floats]:
    """The same for several strengths, each from where the one before it ended."""
    found = []
    at = _Evaluated.at(pull if start is None else start, terms, counts)
    for strength in strengths:
        free = np.ones(len(pull), dtype=np.bool_)
        weights, at = _newton(terms, pull, strength, counts, at, free)
        if weights[0] < 0.0:
            free[0] = False
            held = _Evaluated.at(np.where(free, weights, 0.0), terms, counts)
            weights, at = _newton(terms, pull, strength, counts, held, free)
        found.append(weights)
    return found


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """Weights (d,) and the loss there with its derivatives, see `Table.loss`."""

    weights: Floats
    loss: tuple[float, Floats, Floats]

    @classmethod
    def at(cls, weights: Floats, terms: Table, counts: Floats | None) -> _Evaluated:
        return cls(weights, terms.loss(weights, counts))

    def pulled(self, pull: Floats, strength: float) -> tuple[float, Floats, Floats]:
        """The same with the pull."""
        value, gradient, curvature = self.loss
        away, eye = self.weights - pull, strength * np.eye(len(pull))
        return value + 0.5 * strength * float(away @ away), gradient + strength * away, curvature + eye


def _newton(
    terms: Table, pull: Floats, strength: float, counts: Floats | None, at: _Evaluated, free: np.ndarray
) -> tuple[Floats, _Evaluated]:
    """The weights, and others so near to them that the last step was not tried. at: where to begin."""
    value, gradient, curvature = at.pulled(pull, strength)
    step = np.zeros(len(pull))
    for _ in range(_ROUNDS):
        step[free] = _descent(curvature[np.ix_(free, free)], gradient[free])
        slope = float(gradient @ step)
        if slope > -_ENOUGH:
            return at.weights + step, at
        size = 1.0
        while size > 1e-6:
            longer = _Evaluated.at(at.weights + size * step, terms, counts)
            found = longer.pulled(pull, strength)
            if found[0] <= value + 1e-4 * size * slope:
                break
            size /= 2.0
        else:
            break
        at, (value, gradient, curvature) = longer, found
    return at.weights, at


def _descent(curvature: Floats, gradient: Floats) -> Floats:
    """Newton's step; where the loss is not convex (several right candidates a place) along |curvature|."""
    values, vectors = np.linalg.eigh(curvature)
    values = np.maximum(np.abs(values), 1e-9)
    step: Floats = -(vectors @ ((vectors.T @ gradient) / values))
    return step


def spread_of_weights(
    terms: Table, fitted: Fitted, documents: int, draws: int = 2000, seed: int = 0, confidence: float = 0.95
) -> list[tuple[float, float]]:
    """An interval for each weight: the bootstrap over documents, each sample's weights by one step of Newton's method
    from those of all (Davison & Hinkley 1997, section 2.7.4).
    """
    _, _, curvature = terms.loss(fitted.weights)
    own = terms.gradients(fitted.weights, documents)
    inverse = np.linalg.inv(curvature + fitted.strength * np.eye(len(fitted.weights)))
    rng = np.random.default_rng(seed)
    present = np.flatnonzero(np.bincount(terms.documents, minlength=documents))
    drawn = rng.multinomial(len(present), np.full(len(present), 1.0 / len(present)), size=draws) - 1.0
    moved = fitted.weights - drawn @ own[present] @ inverse
    beyond = (1.0 - confidence) / 2.0
    low, high = np.quantile(moved, [beyond, 1.0 - beyond], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def rest_weight(listed: Floats, rest: Floats, is_rest: np.ndarray, pull: float = 1.0) -> float:
    """The number added to everything that is on no list: logistic regression with nothing but a constant. listed, rest
    (p,): log weights of the candidates together and of the rest; is_rest (p,): what was right.
    """
    real = np.isfinite(rest)
    away, right = (rest - listed)[real], is_rest[real].astype(np.float64)
    found = 0.0
    for _ in range(_ROUNDS):
        share = 1.0 / (1.0 + np.exp(-np.clip(away + found, -60.0, 60.0)))
        step = (float(np.sum(right - share)) - pull * found) / (float(np.sum(share * (1.0 - share))) + pull)
        found += max(-2.0, min(2.0, step))
        if abs(step) < 1e-9:
            break
    return found
