"""How sure a comparison is: intervals for what was measured, and paired tests of two systems on the same rows.

numpy and the standard library only; each function says its source, and is tested against published values. Two systems
that answered the same questions are always compared in pairs: the spread between questions, which they share, is then
no noise. All p values are two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from blackbox_proxy.errors import InputError
from blackbox_proxy.types import Floats

_CHUNK = 1 << 22  # resampled values in memory at a time


@dataclass(frozen=True, slots=True)
class PairedT:
    """Student's t of paired differences a - b: t > 0 where a is larger on average; df = pairs - 1; p in [0, 1]."""

    t: float
    df: int
    p: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """b: rows that only the first system got right; c: only the second; p of so unequal a split if both are alike."""

    b: int
    c: int
    p: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927; Newcombe 1998, method 3), without continuity correction.

    Unlike the share ± 2 standard errors it stays within [0, 1] and holds for small n. n = 0 says nothing: (0, 1).
    Raises InputError for more successes than trials.
    """
    if not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n} trials is not possible", hint="Count successes among the n.")
    z = NormalDist().inv_cdf(0.5 + _checked(confidence) / 2)
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    # At the ends the two terms are equal but for rounding.
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def paired_t_test(a: ArrayLike, b: ArrayLike) -> PairedT:
    """Student's paired t-test of the mean of a - b (Student 1908), a and b of shape (n,) in the same order.

    With fewer than two pairs nothing can be said (t = 0, df = 0, p = 1). Where all differences are equal and not 0,
    t is infinite and p = 0: the test then says more than so regular a sample can, and an exact test is the better one.
    Raises InputError for unequal lengths or values that are not finite.
    """
    differences = _pairs(a, b)
    n = len(differences)
    if n < 2:
        return PairedT(0.0, 0, 1.0)
    mean = float(np.mean(differences))
    # Differences that are equal but for rounding have no spread of their own.
    spread = 0.0 if np.ptp(differences) <= 1e-12 * abs(mean) else float(np.std(differences, ddof=1))
    if spread == 0.0:
        return PairedT(0.0, n - 1, 1.0) if mean == 0.0 else PairedT(math.copysign(math.inf, mean), n - 1, 0.0)
    t = mean / (spread / math.sqrt(n))
    return PairedT(t, n - 1, t_two_sided(t, n - 1))


def t_two_sided(t: float, df: float) -> float:
    """P(|T| >= |t|) for Student's t with df > 0 degrees of freedom: I_x(df/2, 1/2) at x = df / (df + t²)."""
    if not math.isfinite(t):
        return 0.0
    if t * t < df:  # x near 1 would lose what tells it from 1
        return 1.0 - incomplete_beta(0.5, df / 2, t * t / (df + t * t))
    return incomplete_beta(df / 2, 0.5, df / (df + t * t))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), a and b > 0, to about 1e-14.

    Its continued fraction (Abramowitz & Stegun 26.5.8) by Lentz's method; on the side of the mean where that converges
    fast, else through I_x(a, b) = 1 - I_{1-x}(b, a) (26.5.2).
    """
    if not (a > 0 and b > 0 and 0 <= x <= 1):
        raise ValueError(f"I_x(a, b) is not defined for a = {a}, b = {b}, x = {x}")
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    return math.exp(log_front) * _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny, precision = 1e-300, 1e-15
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    # It needs about sqrt(max(a, b)) terms.
    for m in range(1, 200 + 10 * math.isqrt(int(max(a, b)) + 1)):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 + term * d
            c = 1.0 + term / c
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1.0) < precision:
            break
    return value


def mcnemar(a: Sequence[bool] | ArrayLike, b: Sequence[bool] | ArrayLike) -> McNemar:
    """McNemar's test of two systems' right and wrong answers, shape (n,), in its exact binomial form.

    Only rows where one is right and the other wrong tell the two apart; were both alike, each such row would be a fair
    coin (McNemar 1947). No mid-p and no chi-square approximation: right for few rows too. Raises InputError.
    """
    one, other = (np.asarray(values, dtype=bool) for values in (a, b))
    _same_length(len(one), len(other))
    only_a, only_b = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    n = only_a + only_b
    # Whole numbers until the last division: exact for any number of rows. ways: n over i, each from the one before.
    ways = tail = 1
    for i in range(1, min(only_a, only_b) + 1):
        ways = ways * (n - i + 1) // i
        tail += ways
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))


def bootstrap_interval(
    values: ArrayLike,
    seed: int = 0,
    confidence: float = 0.95,
    draws: int = 2000,
    *,
    weights: ArrayLike | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, shape (n,) (Efron & Tibshirani 1993, section 13.3).

    For a paired comparison give the differences. weights: of each value, shape (n,); the interval is then that of the
    weighted mean, rows being drawn with their weights (bits per byte of a corpus: values per text, weights its bytes).
    The same seed gives the same interval. Raises InputError for no values, or values that are not finite.
    """
    edge = (1 - _checked(confidence)) / 2
    low, high = np.quantile(bootstrap_means(values, seed, draws, weights=weights), [edge, 1 - edge])
    return float(low), float(high)


def bootstrap_p(values: ArrayLike, seed: int = 0, draws: int = 2000, *, weights: ArrayLike | None = None) -> float:
    """Two-sided bootstrap p of the mean difference being 0: twice the share of resampled means on the other side of 0,
    counting the sample itself (Davison & Hinkley 1997, section 4.4); never below 1 / (draws + 1).
    """
    means = bootstrap_means(values, seed, draws, weights=weights)
    beyond = min(int(np.sum(means <= 0.0)), int(np.sum(means >= 0.0)))
    return min(1.0, 2 * (1 + beyond) / (draws + 1))


def bootstrap_means(values: ArrayLike, seed: int = 0, draws: int = 2000, *, weights: ArrayLike | None = None) -> Floats:
    """The (weighted) mean of each of `draws` samples with replacement, shape (draws,)."""
    found = _finite(values)
    n = len(found)
    if n == 0:
        raise InputError("there is nothing to resample", hint="Give at least one value.")
    if draws < 1:
        raise InputError(f"draws must be at least 1, not {draws}", hint="2000 is usual.")
    weight = np.ones(n) if weights is None else _finite(weights)
    _same_length(n, len(weight))
    if not (np.all(weight >= 0) and np.sum(weight) > 0):
        raise InputError("weights must not be negative, nor all 0", hint="Give the size of each row.")
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    at_a_time = max(1, _CHUNK // n)
    for start in range(0, draws, at_a_time):
        picked = rng.integers(0, n, size=(min(at_a_time, draws - start), n))
        drawn = weight[picked]
        total = drawn.sum(axis=1)
        # A sample of rows without any weight says nothing; it counts as the mean of all.
        whole = float(np.average(found, weights=weight))
        means[start : start + len(picked)] = np.where(
            total > 0, (found[picked] * drawn).sum(axis=1) / np.where(total > 0, total, 1.0), whole
        )
    return means


def _pairs(a: ArrayLike, b: ArrayLike) -> Floats:
    one, other = _finite(a), _finite(b)
    _same_length(len(one), len(other))
    return one - other


def _finite(values: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.all(np.isfinite(found)):
        raise InputError("values must be a list of finite numbers", hint="Leave out rows without a value, in pairs.")
    return found


def _same_length(one: int, other: int) -> None:
    if one != other:
        raise InputError(f"{one} values cannot be paired with {other}", hint="Give both systems' values row by row.")


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, not {confidence}", hint="0.95 is usual.")
    return confidence
