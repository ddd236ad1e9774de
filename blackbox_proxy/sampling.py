"""How one token is chosen from log p: greedy, or drawn at a temperature from the top-p nucleus with an explicit
generator.

Every choice is independent of the order in which candidates are listed: ties go by `ranks`, which the caller derives
from the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.errors import InputError
from blackbox_proxy.types import Floats

TieBreak = Callable[[int], tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy; otherwise p^(1/temperature), cut to the smallest set with mass top_p. seed: any int."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature >= 0.0):
            raise InputError(
                f"temperature must be a number of at least 0, not {self.temperature}", hint="0 is greedy decoding."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p must lie in (0, 1], not {self.top_p}", hint="1 keeps every candidate.")


def nucleus(log_p: Floats, sampling: Sampling) -> Floats:
    """The probabilities (c,) that a draw at temperature > 0 is made from.

    p^(1/temperature), cut to the smallest set of likeliest candidates with mass top_p (Holtzman et al. 2020, arXiv
    1904.09751); of several equals at the cut, the ones listed first are kept.
    """
    probabilities: Floats = np.exp((log_p - np.max(log_p)) / sampling.temperature)
    probabilities = probabilities / probabilities.sum()
    if sampling.top_p < 1.0:
        order = np.argsort(-probabilities, kind="stable")
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= sampling.top_p]] = 0.0
        probabilities = probabilities / probabilities.sum()
    return probabilities


def uniform(seed: int, place: int) -> float:
    """The one uniform number in [0, 1) that belongs to a place in a text: the same however the text was reached."""
    return float(np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, place], dtype=np.uint64))).random())


def choose(log_p: Floats, sampling: Sampling, place: int, tie: TieBreak) -> int:
    """Index of the chosen candidate at `place`, in tokens from the start of the text; `tie(i)` orders equal ones."""
    if sampling.temperature == 0.0:
        best = np.flatnonzero(log_p == np.max(log_p))
        return int(best[0]) if len(best) == 1 else min((int(i) for i in best), key=tie)
    order = ranked(log_p, tie)
    total = np.cumsum(nucleus(log_p[order], sampling))
    found = int(np.searchsorted(total, uniform(sampling.seed, place) * total[-1], side="right"))
    return int(order[min(found, int(np.searchsorted(total, total[-1])))])


def ranked(log_p: Floats, tie: TieBreak) -> NDArray[np.intp]:
    """Indices from the most likely on; equal ones by `tie`, so that the order of listing does not matter."""
    order = np.argsort(-log_p, kind="stable")
    values = log_p[order]
    repeated = np.flatnonzero((values[1:] == values[:-1]) & np.isfinite(values[1:]))
    for value in np.unique(values[repeated]):
        run = np.flatnonzero(values == value)
        order[run] = sorted((int(i) for i in order[run]), key=tie)
    return order
