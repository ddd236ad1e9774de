"""Learned weights: the equation with a factor of its own for each of its terms, fitted to a few texts (calibration/).

    log p(c | x)  =  w_q log q  +  sum_i ( w_Ei log E_i - w_Ai log A_i )  +  w_t [q of c is estimated]  -  log Z(x)

(1, alpha, alpha, 0) is plain proxy-tuning. A log-linear mixture, convex in its weights, as CombLM's is of whole
distributions of one vocabulary (Ormazabal et al. 2023, arXiv 2305.16876, section 3). The hidden mass is spread by two
numbers more (`Spread`). Natural logarithms throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.types import Floats, Scores

_LEAST = 1e-6  # a rest of a model's mass below this is rounding


@dataclass(frozen=True, slots=True)
class Spread:
    """How hidden mass is spread over tokens that the base does not show: as ((1 - share) A + share E) ^ (1 /
    temperature). The default is the backoff tail, A itself. Raises InputError.
    """

    temperature: float = 1.0
    share: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0.0 and 0.0 <= self.share <= 1.0):
            raise InputError(
                f"a tail's temperature must be above 0 and its share of the expert within 0 and 1, not "
                f"{self.temperature} and {self.share}",
                hint="1 and 0 are the backoff tail.",
            )

    def log_mass(self, log_expert: Floats, log_antiexpert: Floats) -> Floats:
        """The mixture before its temperature, (c,) nats."""
        if self.share == 0.0:
            return log_antiexpert
        if self.share == 1.0:
            return log_expert
        mixed: Floats = np.logaddexp(
            math.log1p(-self.share) + log_antiexpert, math.log(self.share) + log_expert, dtype=np.float64
        )
        return mixed


PLAIN_SPREAD = Spread()


@dataclass(frozen=True, slots=True)
class Weights:
    """A factor for each term. experts, antiexperts: one for each pair; None where a pair has no anti-expert. tail: nats
    added where log q is estimated. rest: nats added to everything that is on no list, where p is normalised over the
    whole vocabulary (`over_everything`). spread: of the hidden mass.

    Raises InputError for what is no finite number, and for a base that counts for less than nothing.
    """

    base: float = 1.0
    experts: tuple[float, ...] = (1.0,)
    antiexperts: tuple[float | None, ...] = (1.0,)
    tail: float = 0.0
    rest: float = 0.0
    spread: Spread = field(default_factory=Spread)

    def __post_init__(self) -> None:
        numbers = (self.base, *self.experts, *(w for w in self.antiexperts if w is not None), self.tail, self.rest)
        if not all(map(math.isfinite, numbers)) or self.base < 0.0:
            raise InputError(
                f"weights must be finite numbers, and the base's at least 0: {numbers}",
                hint="(1, 1, 1, 0) is plain proxy-tuning.",
            )
        if not self.experts or len(self.experts) != len(self.antiexperts):
            raise InputError(
                f"weights of {len(self.experts)} experts and {len(self.antiexperts)} anti-experts",
                hint="Give one of each for every pair.",
            )

    def of_first(self) -> Weights:
        """What of them is about the first pair."""
        return replace(self, experts=self.experts[:1], antiexperts=self.antiexperts[:1])

    @property
    def alphas(self) -> tuple[float, ...] | None:
        """The alphas of plain proxy-tuning that these weights are; None where they are something else."""
        alike = all(a is None or a == e for e, a in zip(self.experts, self.antiexperts, strict=True))
        rest = (self.base, self.tail, self.rest, self.spread)
        return self.experts if alike and rest == (1.0, 0.0, 0.0, PLAIN_SPREAD) else None

    def terms(self, log_q: Floats, scores: Sequence[Scores], told: NDArray[np.bool_]) -> dict[str, Floats]:
        """What each term adds to log p + log Z, (c,) nats. told (c,): whether the base told a candidate's q."""
        found = {"q": self.base * log_q}
        for i, (each, expert, antiexpert) in enumerate(zip(scores, self.experts, self.antiexperts, strict=True)):
            name = "" if i == 0 else str(i + 1)
            log_e, log_a = known_masses(log_q, each, antiexpert is not None)
            found[f"E{name}"] = expert * log_e
            if antiexpert is not None:
                found[f"A{name}"] = -antiexpert * log_a
        found["tail"] = np.where(told, 0.0, self.tail)
        return found

    def log_weights(self, log_q: Floats, scores: Sequence[Scores], told: NDArray[np.bool_]) -> Floats:
        """log p up to a constant, (c,)."""
        terms = self.terms(log_q, scores, told)
        total = np.zeros(len(log_q))
        for term in terms.values():
            total = total + term
        return total

    def log_rest(self, hidden: float, scores: Sequence[Scores]) -> float:
        """The same of everything that is not listed, as one event; hidden: its share of q."""
        return float(self.log_rests(np.array([hidden]), scores, Parts.of([scores[0].own.shape[1]]))[0])

    def log_rests(self, hidden: Floats, scores: Sequence[Scores], parts: Parts) -> Floats:
        """The same at many places, (p,)."""
        with np.errstate(divide="ignore"):
            total: Floats = np.where(hidden > 0.0, self.base * np.log(hidden) + self.rest, -np.inf)
        for each, expert, antiexpert in zip(scores, self.experts, self.antiexperts, strict=True):
            total = total + expert * log_rests(each.own[0], parts)
            if antiexpert is not None:
                total = total - antiexpert * log_rests(each.own[1], parts)
        return total

    def error(self, scores: Sequence[Scores]) -> Floats:
        """By how much log p may be off either way, (c,) nats: what two masses have in common cancels as far as their
        weights are the same, the rest of each weight stands for a mass alone.
        """
        total = np.zeros(len(scores[0].error))
        for each, expert, antiexpert in zip(scores, self.experts, self.antiexperts, strict=True):
            both = 0.0 if antiexpert is None else min(abs(expert), abs(antiexpert)) if expert * antiexpert > 0 else 0.0
            alone = abs(expert) if antiexpert is None else abs(expert) + abs(antiexpert) - 2.0 * both
            if both:
                total += both * each.error
            if alone:
                total += alone * (each.error if antiexpert is None else each.apart)
        return total


def known_masses(log_q: Floats, scores: Scores, has_antiexpert: bool) -> tuple[Floats, Floats]:
    """log E and log A of each candidate, (c,). One of which a pair knows nothing counts as one on which both agree with
    the base: at equal weights it keeps the base's own, as in plain proxy-tuning.
    """
    if not has_antiexpert:
        return scores.offset, np.zeros(len(scores.offset))
    known = np.isfinite(scores.log_expert) & np.isfinite(scores.log_antiexpert)
    if known.all():
        return scores.log_expert, scores.log_antiexpert
    return np.where(known, scores.log_expert, log_q), np.where(known, scores.log_antiexpert, log_q)


def log_rest(own: Floats) -> float:
    """log (1 - sum) of masses that do not overlap, no log, not less than rounding."""
    return float(log_rests(own, Parts.of([len(own)]))[0])


def log_rests(own: Floats, parts: Parts) -> Floats:
    """The same at many places, (p,)."""
    found: Floats = np.log(np.maximum(1.0 - parts.sums(own), _LEAST))
    return found
