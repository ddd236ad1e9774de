"""The equation, and the base's unseen tail. Arrays in, arrays out; natural logarithms throughout.

    log p(c | x)  =  log q(c | x)  +  sum_i alpha_i * ( log E_i(c | x) - log A_i(c | x) )  -  log Z(x)

with q = base, E = expert, A = anti-expert, c in the candidate set (proxy-tuning, Liu et al. 2024, arXiv 2401.08565,
section 2; several experts as in DExperts, Liu et al. 2021, arXiv 2105.03023, section 2). With learned weights each
term has a factor of its own (weights.py).

The API shows q for its top k only. What it hides, r = max(0, 1 - sum q), is given to tokens outside the top k by one
of three policies (`tail`), none of which lets an unseen token rank above a seen one before the pair has spoken. Where
the base can be asked about tokens by name ("ask"), those that could matter are, and the rest is estimated by backoff.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.maths.weights import PLAIN_SPREAD, Spread, Weights
from blackbox_proxy.types import Floats, Scores, TailPolicy

Alpha = float | Callable[[int], float]
"""A number, or a schedule: a function of the place in the text (tokens from 0)."""

Bools = NDArray[np.bool_]

ROUNDING = 1e-6  # less hidden mass than this is rounding (of float32, or of the decimals an API prints), not a tail


@dataclass(frozen=True, slots=True)
class Equation:
    """The equation as a tuner has it. alphas: one for each pair. tail: what is done about tokens that the base does not
    show; tail_size: how many of them an expert may propose. weights: learned ones, in the place of the alphas; those
    that are plain proxy-tuning become its alphas, and are computed as such. Raises InputError.
    """

    alphas: tuple[Alpha, ...] = (1.0,)
    tail: TailPolicy = "backoff"
    tail_size: int = 32
    weights: Weights | None = None

    def __post_init__(self) -> None:
        self.at(0)
        if self.tail not in get_args(TailPolicy):
            raise InputError(
                f"unknown tail policy {self.tail!r}", hint=f"Use one of {', '.join(get_args(TailPolicy))}."
            )
        if self.tail_size < 0:
            raise InputError(f"tail_size must be at least 0, not {self.tail_size}", hint="Leave it out for 32.")
        if self.weights is not None and (plain := self.weights.alphas) is not None:
            object.__setattr__(self, "alphas", plain)
            object.__setattr__(self, "weights", None)

    def at(self, place: int) -> tuple[float, ...]:
        """The weight of each pair at a place in the text. Raises InputError if one is no finite number."""
        return tuple(alpha_at(alpha, place) for alpha in self.alphas)

    def with_alpha(self, alpha: Alpha) -> Equation:
        """Plain proxy-tuning with this weight for every pair."""
        return replace(self, alphas=(alpha,) * len(self.alphas), weights=None)

    def with_weights(self, weights: Weights) -> Equation:
        """The same with learned weights."""
        return replace(self, alphas=(1.0,) * len(weights.experts), weights=weights)

    def of_first(self) -> Equation:
        """What of it is about the first pair."""
        weights = None if self.weights is None else self.weights.of_first()
        return replace(self, alphas=self.alphas[:1], weights=weights)

    @property
    def spread(self) -> Spread:
        """How the hidden mass is spread."""
        return PLAIN_SPREAD if self.weights is None else self.weights.spread

    def log_p(self, log_q: Floats, scores: Sequence[Scores], place: int, shown: int) -> Floats:
        """log p over the candidates, (c,); `scores`: of each pair. shown: how many candidates, from the first, have a q
        that the base told.
        """
        return self.log_ps(log_q, scores, [place], np.arange(len(log_q)) < shown, Parts.of([len(log_q)]))

    def log_ps(
        self, log_q: Floats, scores: Sequence[Scores], places: Sequence[int], told: Bools, parts: Parts
    ) -> Floats:
        """The same at many places, (n,), each a part. told (n,): whether the base told a candidate's q."""
        if self.weights is not None:
            return normalise(self.weights.log_weights(log_q, scores, told), parts)
        alphas = zip(*(self.at(place) for place in places), strict=True)
        offsets = [each.offset for each in scores]
        return combine(log_q, offsets, [_everywhere(values, parts) for values in alphas], parts)

    def shift(self, scores: Sequence[Scores], place: int) -> Floats:
        """What the pairs add to log q, (c,) nats; where weights are learned, it is not a matter of addition."""
        assert self.weights is None, "learned weights have a factor for q, too"
        alphas, total = self.at(place), np.zeros(len(scores[0].offset))
        for each, alpha in zip(scores, alphas, strict=True):
            if alpha != 0.0:
                total += alpha * each.offset
        return total

    def factors(self, place: int) -> tuple[float, float, float] | None:
        """(w_q, w_E, w_A) of a hidden token whose q is spread as the one pair's untuned model would; None otherwise."""
        if len(self.alphas) > 1 or self.tail not in ("backoff", "ask") or self.spread != PLAIN_SPREAD:
            return None
        if self.weights is None:
            (alpha,) = self.at(place)
            return 1.0, alpha, alpha
        (antiexpert,) = self.weights.antiexperts
        return None if antiexpert is None else (self.weights.base, self.weights.experts[0], antiexpert)

    def error(self, scores: Sequence[Scores], place: int) -> Floats:
        """By how much the pairs' part of log p may be off either way, (c,) nats: sum_i |alpha_i| error_i."""
        return self.errors(scores, [place], Parts.of([len(scores[0].error)]))

    def errors(self, scores: Sequence[Scores], places: Sequence[int], parts: Parts) -> Floats:
        """The same at many places, (n,), each a part."""
        if self.weights is not None:
            return self.weights.error(scores)
        total = np.zeros(len(scores[0].error))
        alphas = zip(*(self.at(place) for place in places), strict=True)
        for each, values in zip(scores, alphas, strict=True):
            total += _times(np.abs(_everywhere(values, parts)), each.error)
        return total


def _everywhere(values: Sequence[float], parts: Parts) -> Floats:
    """A number of each place for all candidates there, (n,); of one that is everywhere the same just that, ()."""
    numbers = np.array(values, dtype=np.float64)
    return numbers[0] if len(set(values)) == 1 else parts.each(numbers)


def _times(factor: Floats, values: Floats) -> Floats:
    """The product, (c,); a factor of 0 leaves out whatever there is."""
    if factor.ndim == 0:
        return factor * values if factor != 0.0 else np.zeros(len(values))
    with np.errstate(invalid="ignore"):
        return np.where(factor == 0.0, 0.0, factor * values)


def alpha_at(alpha: Alpha, place: int) -> float:
    """alpha at a place in the text. Raises InputError if it is no finite number."""
    value = float(alpha(place) if callable(alpha) else alpha)
    if not math.isfinite(value):
        raise InputError(
            f"alpha must be a finite number, not {value}", hint="1 is plain proxy-tuning, 0 the base itself."
        )
    return value


def normalise(log_weights: Floats, parts: Parts | None = None) -> Floats:
    """Log weights (c,) -> log probabilities (c,); with `parts` of each part by itself."""
    parts = Parts.of([len(log_weights)]) if parts is None else parts
    return log_weights - parts.each(parts.log_sums(log_weights))


def combine(
    log_q: Floats, offsets: Sequence[Floats], alphas: Sequence[float | Floats], parts: Parts | None = None
) -> Floats:
    """log p over the candidates, shape (c,): the equation above.

    `log_q` (c,) may be unnormalised; `offsets[i]` (c,) are log E_i - log A_i (log E_i where there is no anti-expert);
    constants added to any of them change nothing. alpha_i = 0 leaves pair i out, whatever its offsets are. With
    `parts` each of them is a place of its own, and alpha_i may differ between them, (c,).
    """
    score = np.array(log_q, dtype=np.float64)
    for offset, alpha in zip(offsets, alphas, strict=True):
        score += _times(np.asarray(alpha, dtype=np.float64), offset)
    return normalise(score, parts)


def covered_mass(log_q: Floats) -> float:
    """The share of the base's probability that its candidates show; at most 1 (rounding can make their sum exceed
    it).
    """
    return min(1.0, float(np.exp(logsumexp(log_q))))


def hidden_mass(log_q: Floats) -> float:
    """r = max(0, 1 - sum q): what the base did not show."""
    return hidden_by(covered_mass(log_q))


def hidden_by(covered: float) -> float:
    """The same where the sum of q is known."""
    hidden = 1.0 - covered
    return hidden if hidden > ROUNDING else 0.0


def hidden_masses(sums: Floats) -> Floats:
    """The same at many places, (p,)."""
    hidden = 1.0 - np.minimum(sums, 1.0)
    return np.where(hidden > ROUNDING, hidden, 0.0)


def unlisted_mass(log_q: Floats, log_a: Floats, shown: int) -> float:
    """The share of q that is on no list, (c,) candidates of which the base told the first `shown`. Estimates may hand
    out all that it hides, and more where a temperature makes them larger; but what is left is no less than the share of
    it that the anti-expert, log_a (c,), gives to what is on no list.
    """
    told = np.arange(len(log_q)) < shown
    return float(unlisted_masses(log_q, log_a, told, Parts.of([len(log_q)]))[0])


def unlisted_masses(log_q: Floats, log_a: Floats, told: Bools, parts: Parts) -> Floats:
    """The same at many places, (p,); of the candidates, (n,), the base told those that are `told` (n,)."""
    q, a = np.exp(log_q), np.where(np.isfinite(log_a), np.exp(log_a), 0.0)
    outside = uncovered(a, parts) / uncovered(np.where(told, a, 0.0), parts)
    share = hidden_masses(parts.sums(np.where(told, q, 0.0))) * np.minimum(1.0, outside)
    found: Floats = np.maximum(hidden_masses(parts.sums(q)), share)
    return found


def uncovered(masses: Floats, parts: Parts) -> Floats:
    """A(not C), what a model gives everything but some events, whose masses are (n,), at many places, (p,); not less
    than rounding.
    """
    found: Floats = np.maximum(1.0 - parts.sums(masses), ROUNDING)
    return found


def tail(
    log_q: Floats,
    log_a: Floats,
    log_a_tail: Floats,
    policy: TailPolicy,
    cap: float | None = None,
    temperature: float = 1.0,
) -> Floats:
    """Estimated log q, shape (t,), of t tokens that the base did not show.

    log_q (k,): the base's log probabilities of its candidates C. log_a (k,), log_a_tail (t,): the anti-expert's of
    the same candidates and of the t tokens. -inf everywhere under "truncate" or when nothing is hidden.

    - "floor": r / t each.
    - "backoff", "ask": r * A(c) / A(not C): the hidden mass, spread as the anti-expert would spread it over what C does
      not cover. At alpha = 1 the tuned score of c then is r * E(c) / A(not C). A learned `temperature` (`Spread`)
      makes that r * (A(c) / A(not C)) ^ (1 / temperature).

    All are capped at `cap`, min over C of q: the base would have shown a likelier token. It is given where C also holds
    tokens that were asked for by name.
    """
    if len(log_a_tail) == 0:
        return np.empty(0)
    cap = float(np.min(log_q, initial=0.0)) if cap is None else cap
    all_a = np.concatenate([log_a, log_a_tail])
    told = np.arange(len(all_a)) < len(log_a)
    hidden = np.array([hidden_mass(log_q)])
    return tails(hidden, all_a, told, Parts.of([len(all_a)]), policy, np.array([cap]), temperature)[~told]


def tails(
    hidden: Floats,
    log_a: Floats,
    told: Bools,
    parts: Parts,
    policy: TailPolicy,
    cap: Floats,
    temperature: float = 1.0,
) -> Floats:
    """The same at many places: the estimates, (n,), of the tokens that are not `told` (n,), whose log_a (n,) is among
    that of the others; what the others get means nothing. hidden (p,): r of each place; cap (p,).
    """
    if policy == "truncate":
        return np.full(len(log_a), -np.inf)
    with np.errstate(divide="ignore"):
        log_hidden = np.log(hidden)
    if policy == "floor":
        counts = np.maximum(parts.counts(~told), 1)
        return parts.each(np.minimum(log_hidden - np.log(counts), cap))
    masses = np.exp(log_a)
    left = uncovered(np.where(told, masses, 0.0), parts)
    outside = np.log(np.maximum(left, parts.sums(np.where(told, 0.0, masses))))
    spread = log_a - parts.each(outside)
    if temperature != 1.0:
        spread = spread / temperature
    found: Floats = np.minimum(parts.each(log_hidden) + spread, parts.each(cap))
    return found


def mixture(rows: Sequence[Floats]) -> Floats:
    """log of the mean of several distributions over the same tokens, shape (c,): the spread of the tail with several
    pairs.
    """
    if len(rows) == 1:
        return rows[0]
    stacked = np.stack(rows)
    top = np.max(stacked, axis=0)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        result: Floats = safe + np.log(np.mean(np.exp(stacked - safe), axis=0))
    return result
