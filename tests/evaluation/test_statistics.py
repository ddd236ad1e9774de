"""Statistics against published values: tables of Student's t, Student's own sleep data, Newcombe's intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_means,
    bootstrap_p,
    incomplete_beta,
    mcnemar,
    paired_t_test,
    t_two_sided,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_at_its_ends() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0
    narrow, wide = wilson_interval(50, 100, 0.5), wilson_interval(50, 100, 0.99)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("df", "t", "p"),
    [  # the usual table of two-sided critical values
        (1, 12.706, 0.05),
        (1, 63.657, 0.01),
        (2, 4.303, 0.05),
        (5, 2.571, 0.05),
        (10, 2.228, 0.05),
        (10, 3.169, 0.01),
        (10, 4.587, 0.001),
        (30, 2.042, 0.05),
        (120, 1.980, 0.05),
        (120, 1.289, 0.20),
        (1000, 3.300, 0.001),
    ],
)
def test_t_distribution_as_tabulated(df: int, t: float, p: float) -> None:
    assert t_two_sided(t, df) == pytest.approx(p, rel=2e-3)
    assert t_two_sided(-t, df) == t_two_sided(t, df)


def test_t_distribution_where_it_is_known_in_closed_form() -> None:
    for t in (1e-6, 0.01, 0.3, 1.0, 2.5, 40.0, 1e4):
        assert t_two_sided(t, 1) == pytest.approx(2 / math.pi * math.atan2(1, t), rel=1e-11)
        # 1 - t / sqrt(2 + t²), written without cancellation
        root = math.sqrt(2 + t * t)
        assert t_two_sided(t, 2) == pytest.approx(2 / (root * (root + t)), rel=1e-11)
    assert t_two_sided(0.0, 7) == 1.0
    assert t_two_sided(math.inf, 7) == 0.0
    for t in (0.5, 1.96, 4.0):  # with many degrees of freedom, the normal distribution
        assert t_two_sided(t, 1e9) == pytest.approx(math.erfc(t / math.sqrt(2)), rel=1e-6)


def test_incomplete_beta_is_the_binomial_tail() -> None:
    for n, k, x in [(10, 3, 0.2), (25, 20, 0.7), (400, 210, 0.5), (5, 5, 0.9)]:
        tail = sum(math.comb(n, i) * x**i * (1 - x) ** (n - i) for i in range(k, n + 1))  # A&S 26.5.24
        assert incomplete_beta(k, n - k + 1, x) == pytest.approx(tail, rel=1e-10)
    assert (incomplete_beta(2, 3, 0.0), incomplete_beta(2, 3, 1.0)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="not defined"):
        incomplete_beta(0, 1, 0.5)


def test_paired_t_test_on_students_sleep_data() -> None:
    dextro = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    laevo = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_t_test(dextro, laevo)
    assert found.t == pytest.approx(-4.0621, abs=5e-5)
    assert found.df == 9
    assert found.p == pytest.approx(0.002833, abs=5e-7)  # as R's t.test(…, paired = TRUE) prints it


def test_paired_t_test_without_spread() -> None:
    assert paired_t_test([1.0], [0.0]).p == 1.0
    assert paired_t_test([], []).p == 1.0
    assert paired_t_test([1, 0, 1], [1, 0, 1]) == paired_t_test([0, 0, 0], [0, 0, 0])
    same = paired_t_test([0.3, 0.5, 0.7], [0.2, 0.4, 0.6])
    assert (same.t, same.p) == (math.inf, 0.0)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 32),
        (6, 0, 2 / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),  # 0.109375
        (15, 5, 0.041389465),  # binom.test(5, 20) in R: 0.04139
        (4000, 4200, 0.0278),  # near the chi-square with continuity correction
    ],
)
def test_mcnemar_is_the_fair_coin(only_a: int, only_b: int, p: float) -> None:
    a = [True] * only_a + [False] * only_b + [True, False, True]
    b = [False] * only_a + [True] * only_b + [True, False, True]
    found = mcnemar(a, b)
    assert (found.b, found.c) == (only_a, only_b)
    assert found.p == pytest.approx(p, rel=1e-2 if only_a > 1000 else 1e-6)
    assert mcnemar(b, a).p == found.p


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(2.0, 1.0, 400)
    low, high = bootstrap_interval(values)
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    assert low == pytest.approx(float(np.mean(values)) - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(float(np.mean(values)) + 1.96 * error, abs=0.2 * error)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    assert bootstrap_interval(values, confidence=0.5)[0] > low
    assert bootstrap_interval([4.0, 4.0]) == (4.0, 4.0)


def test_bootstrap_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        low, high = bootstrap_interval(rng.exponential(1.0, 60), seed=seed, draws=400)
        covered += low <= 1.0 <= high
    assert 0.87 < covered / 300 < 0.98


def test_bootstrap_weights_give_the_ratio_of_sums() -> None:
    bits, size = np.array([8.0, 30.0, 3.0]), np.array([4.0, 10.0, 2.0])
    means = bootstrap_means(bits / size, weights=size, draws=4000)
    picked = np.random.default_rng(0).integers(0, 3, size=(4000, 3))
    assert means == pytest.approx(bits[picked].sum(axis=1) / size[picked].sum(axis=1))
    assert np.all(np.isfinite(bootstrap_means([1.0, 2.0], weights=[0.0, 1.0])))


def test_bootstrap_p_knows_a_difference_from_none() -> None:
    rng = np.random.default_rng(1)
    assert bootstrap_p(rng.normal(0.0, 1.0, 100) - 0.02) > 0.1
    assert bootstrap_p(rng.normal(1.0, 1.0, 100)) == pytest.approx(2 / 2001)
    assert bootstrap_p([0.0, 0.0]) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(1, 2, 1.0),
        lambda: paired_t_test([1, 2], [1]),
        lambda: paired_t_test([1, math.nan], [1, 2]),
        lambda: mcnemar([True], []),
        lambda: bootstrap_interval([]),
        lambda: bootstrap_interval([1.0], draws=0),
        lambda: bootstrap_interval([1.0, 2.0], weights=[1.0]),
        lambda: bootstrap_interval([1.0], weights=[0.0]),
        lambda: bootstrap_interval([math.inf]),
    ],
)
def test_what_cannot_be_computed_is_said(call: object) -> None:
    with pytest.raises(InputError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.hint
