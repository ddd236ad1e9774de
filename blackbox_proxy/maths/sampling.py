"""How one token is chosen from log p: greedy, or drawn at a temperature from the top-p nucleus with explicit noise.

Every choice is independent of the order in which candidates are listed: ties go by `tie` and the noise by `keys`, which
the caller derives from the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.order import descending
from blackbox_proxy.types import Floats

TieBreak = Callable[[int], tuple[object, ...]]

_MIXING = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
"""The finaliser of SplitMix64 (Steele et al. 2014): neighbouring keys become unrelated numbers."""


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
        order = descending(probabilities)
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= sampling.top_p]] = 0.0
        probabilities = probabilities / probabilities.sum()
    return probabilities


def uniform(seed: int, place: int) -> float:
    """The one uniform number in [0, 1) that belongs to a place in a text: the same however the text was reached."""
    return float(np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, place], dtype=np.uint64))).random())


def request_seed(seed: int, place: int) -> int:
    """The seed, in [0, 2**31), of the request that continues a text at `place`.

    Another one for each place: servers start the same stream of random numbers from the same seed, and two drafts from
    the same stream would not be independent.
    """
    return int(_state(seed, place, 0) >> np.uint64(33))


def noise(seed: int, place: int, keys: NDArray[np.uint64]) -> Floats:
    """Standard Gumbel noise (c,), one number for each token that could stand at a place, told apart by `keys` (c,).

    It depends on seed, place and token alone, not on which other tokens are listed: whoever draws at this place, from
    whatever distribution, uses the same noise, so that two similar distributions mostly draw the same token.
    """
    start = _state(seed, place, 1)
    with np.errstate(over="ignore"):
        mixed = keys + start
        for shift, factor in _MIXING:
            mixed = (mixed ^ (mixed >> shift)) * factor
        mixed = mixed ^ (mixed >> np.uint64(31))
    return -np.log(-np.log((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54))


def _state(seed: int, place: int, use: int) -> np.uint64:
    words = [
        seed % 2**32,
        seed // 2**32 % 2**32,
        place,
        use,
    ]  # of fixed length: the sequence cannot tell 0 from nothing
    state: np.uint64 = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return state


def pick(weights: Floats, gumbel: Floats) -> int:
    """Index drawn from unnormalised probabilities (c,), not all 0: argmax of log weight + noise (Gumbel-max)."""
    with np.errstate(divide="ignore"):
        return int(np.argmax(np.log(weights) + gumbel))


def target(log_p: Floats, sampling: Sampling, tie: TieBreak) -> Floats:
    """`nucleus` (c,), of equal candidates at the cut keeping those that `tie` puts first."""
    order = ranked(log_p, tie)
    probabilities = np.empty(len(log_p))
    probabilities[order] = nucleus(log_p[order], sampling)
    return probabilities


def choose(log_p: Floats, sampling: Sampling, place: int, tie: TieBreak, keys: Callable[[], NDArray[np.uint64]]) -> int:
    """Index of the candidate that is chosen at `place` (tokens from the start of the text) from p alone.

    `tie(i)` orders equal candidates, `keys()` (c,) tells the noise of each token.
    """
    if sampling.temperature == 0.0:
        return greedy(log_p, tie)
    return pick(target(log_p, sampling, tie), noise(sampling.seed, place, keys()))


def greedy(log_p: Floats, tie: TieBreak) -> int:
    """Index of the most likely candidate; `tie(i)` orders equal ones."""
    best = np.flatnonzero(log_p == np.max(log_p))
    return int(best[0]) if len(best) == 1 else min((int(i) for i in best), key=tie)


def ranked(log_p: Floats, tie: TieBreak) -> NDArray[np.intp]:
    """Indices from the most likely on; equal ones by `tie`, so that the order of listing does not matter."""
    order = descending(log_p)
    values = log_p[order]
    repeated = np.flatnonzero((values[1:] == values[:-1]) & np.isfinite(values[1:]))
    for value in np.unique(values[repeated]):
        run = np.flatnonzero(values == value)
        order[run] = sorted((int(i) for i in order[run]), key=tie)
    return order
