"""The equation and the tail: laws 1 and 2, and each policy against its formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from blackbox_proxy.maths.equation import combine, covered_mass, hidden_mass, mixture, normalise, tail

finite = st.floats(-30, 0, allow_nan=False)
rows = st.integers(1, 8).flatmap(lambda n: st.tuples(*(arrays(np.float64, n, elements=finite) for _ in range(3))))


@given(rows)
def test_alpha_zero_gives_the_base_itself(row: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    log_q, expert, antiexpert = row
    assert np.array_equal(combine(log_q, [expert - antiexpert], [0.0]), normalise(log_q))


@given(rows, st.floats(-5, 5))
def test_an_expert_that_equals_its_antiexpert_changes_nothing(row: tuple[np.ndarray, ...], alpha: float) -> None:
    log_q, expert, _ = row
    assert np.array_equal(combine(log_q, [expert - expert], [alpha]), normalise(log_q))


@given(rows, st.floats(-3, 3), st.floats(-50, 50), st.floats(-50, 50))
def test_constants_change_nothing(row: tuple[np.ndarray, ...], alpha: float, one: float, other: float) -> None:
    log_q, expert, antiexpert = row
    plain = combine(log_q, [expert - antiexpert], [alpha])
    assert np.allclose(combine(log_q + one, [expert + other - antiexpert], [alpha]), plain, atol=1e-9)
    assert np.exp(plain).sum() == pytest.approx(1.0)


@given(rows, st.floats(-3, 3), st.randoms(use_true_random=False))
def test_order_changes_nothing(row: tuple[np.ndarray, ...], alpha: float, random: object) -> None:
    log_q, expert, antiexpert = row
    order = np.arange(len(log_q))
    random.shuffle(order)  # type: ignore[attr-defined]
    plain = combine(log_q, [expert - antiexpert], [alpha])
    shuffled = combine(log_q[order], [(expert - antiexpert)[order]], [alpha])
    assert np.allclose(shuffled, plain[order], atol=1e-12)


def test_several_experts_add_up() -> None:
    log_q = np.log([0.5, 0.3, 0.2])
    one, two = np.array([1.0, 0.0, -1.0]), np.array([0.0, 2.0, 0.0])
    expected = normalise(log_q + 0.5 * one - 0.25 * two)
    assert np.allclose(combine(log_q, [one, two], [0.5, -0.25]), expected)


def test_mass_is_clipped_where_rounding_exceeds_one() -> None:
    log_q = np.log([0.7, 0.3000001])
    assert covered_mass(log_q) == 1.0
    assert hidden_mass(log_q) == 0.0
    assert np.array_equal(tail(log_q, np.log([0.5, 0.4]), np.log([0.1]), "backoff"), [-np.inf])


LOG_Q = np.log([0.6, 0.3])  # hides 0.1
LOG_A = np.log([0.5, 0.1])  # leaves 0.4 to what the base does not show


@pytest.mark.parametrize(
    ("policy", "log_a_tail", "expected"),
    [
        ("truncate", [0.2, 0.1], [0.0, 0.0]),
        ("floor", [0.2, 0.1], [0.05, 0.05]),
        ("backoff", [0.2, 0.1], [0.1 * 0.2 / 0.4, 0.1 * 0.1 / 0.4]),
        ("backoff", [0.4], [0.1]),
    ],
)
def test_tail_policies(policy: str, log_a_tail: list[float], expected: list[float]) -> None:
    found = tail(LOG_Q, LOG_A, np.log(log_a_tail), policy)  # type: ignore[arg-type]
    assert np.allclose(np.exp(found), expected)


@pytest.mark.parametrize("policy", ["floor", "backoff"])
def test_no_unseen_token_is_likelier_than_a_seen_one(policy: str) -> None:
    log_q = np.log([0.5, 0.01])  # hides 0.49, but its least candidate has 0.01
    found = tail(log_q, np.log([0.1, 0.1]), np.log([0.7, 0.1]), policy)  # type: ignore[arg-type]
    assert np.all(found <= np.log(0.01) + 1e-12)


def test_at_alpha_one_the_tail_is_the_experts() -> None:
    log_a_tail, log_e_tail = np.log([0.2, 0.1]), np.log([0.05, 0.3])
    score = tail(LOG_Q, LOG_A, log_a_tail, "backoff") + (log_e_tail - log_a_tail)
    assert np.allclose(np.exp(score), 0.1 * np.array([0.05, 0.3]) / 0.4)


def test_unscored_candidates_do_not_spoil_the_tail() -> None:
    found = tail(LOG_Q, np.array([np.log(0.5), -np.inf]), np.log([0.2]), "backoff")
    assert np.allclose(np.exp(found), 0.1 * 0.2 / 0.5)


def test_mixture_is_the_mean_of_distributions() -> None:
    one, two = np.log([0.2, 0.8]), np.log([0.4, 0.6])
    assert np.allclose(np.exp(mixture([one, two])), [0.3, 0.7])
    assert np.array_equal(mixture([np.array([-np.inf]), np.array([-np.inf])]), [-np.inf])
