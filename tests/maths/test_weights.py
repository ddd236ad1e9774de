"""Learned weights: plain where they are plain, each term by hand, and how errors add up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from blackbox_proxy import Spread, Weights
from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.equation import Equation, combine, normalise, tail, unlisted_mass
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.types import Floats, How, Scores

finite = st.floats(-30, 0, allow_nan=False)
rows = st.integers(1, 8).flatmap(lambda n: st.tuples(*(arrays(np.float64, n, elements=finite) for _ in range(3))))
BOTH = Weights(0.4, (0.8,), (-0.2,), 0.3, -0.5)


def scores(expert: Floats, antiexpert: Floats, error: float = 0.0, apart: float = 0.0) -> Scores:
    known = np.isfinite(expert) & np.isfinite(antiexpert)
    offset = np.where(known, expert, 0.0) - np.where(known, antiexpert, 0.0)
    n = len(offset)
    exact: How = "exact"
    return Scores(expert, antiexpert, offset, (exact,) * n, np.full(n, error), np.full(n, apart))


@given(rows, st.floats(-3, 3))
def test_law_11_one_alpha_alpha_nothing_is_plain_proxy_tuning(row: tuple[Floats, ...], alpha: float) -> None:
    log_q, expert, antiexpert = row
    equation = Equation(weights=Weights(1.0, (alpha,), (alpha,)))
    assert (equation.alphas, equation.weights) == ((alpha,), None)
    found = equation.log_p(log_q, [scores(expert, antiexpert)], 0, len(log_q))
    assert np.array_equal(found, combine(log_q, [expert - antiexpert], [alpha])), "byte for byte"


@given(rows, st.floats(-3, 3))
def test_weights_next_to_plain_ones_are_next_to_it(row: tuple[Floats, ...], alpha: float) -> None:
    """The learned arithmetic meets the plain one."""
    log_q, expert, antiexpert = row
    weights = Weights(1.0, (alpha,), (alpha,), rest=1e-9)
    equation = Equation(weights=weights)
    assert equation.weights is weights
    found = equation.log_p(log_q, [scores(expert, antiexpert)], 0, len(log_q))
    assert np.allclose(found, combine(log_q, [expert - antiexpert], [alpha]), atol=1e-9)


def test_each_term_by_hand() -> None:
    log_q, expert, antiexpert = np.log([0.5, 0.2, 0.1]), np.log([0.1, 0.6, 0.2]), np.log([0.3, 0.3, 0.1])
    weights = Weights(0.5, (0.8,), (0.2,), tail=-0.25)
    terms = weights.terms(log_q, [scores(expert, antiexpert)], np.arange(3) < 2)
    assert list(terms) == ["q", "E", "A", "tail"]
    assert terms["q"][0] == pytest.approx(0.5 * math.log(0.5))
    assert terms["E"][1] == pytest.approx(0.8 * math.log(0.6))
    assert terms["A"][2] == pytest.approx(-0.2 * math.log(0.1))
    assert terms["tail"].tolist() == [0.0, 0.0, -0.25]
    found = Equation(weights=weights).log_p(log_q, [scores(expert, antiexpert)], 7, 2)
    assert np.allclose(found, normalise(0.5 * log_q + 0.8 * expert - 0.2 * antiexpert + [0.0, 0.0, -0.25]))


def test_two_pairs_one_of_them_without_an_antiexpert() -> None:
    log_q, one, two = np.log([0.5, 0.5]), np.log([0.1, 0.9]), np.log([0.7, 0.3])
    weights = Weights(0.5, (0.8, 0.3), (0.2, None))
    lone = Scores(two, np.zeros(2), two, ("exact",) * 2)
    terms = weights.terms(log_q, [scores(one, one), lone], np.ones(2, dtype=np.bool_))
    assert list(terms) == ["q", "E", "A", "E2", "tail"]
    assert np.allclose(terms["E2"], 0.3 * two)
    assert weights.of_first() == Weights(0.5, (0.8,), (0.2,))


def test_a_token_of_which_the_pair_knows_nothing_keeps_the_bases_own() -> None:
    log_q = np.log([0.5, 0.2])
    unknown = scores(np.array([-1.0, -np.inf]), np.array([-2.0, -3.0]))
    terms = Weights(0.5, (0.8,), (0.8,), rest=1.0).terms(log_q, [unknown], np.ones(2, dtype=np.bool_))
    assert terms["E"][1] + terms["A"][1] == pytest.approx(0.0), "as in plain proxy-tuning"
    assert np.isfinite(Weights(0.5, (0.8,), (-0.2,)).log_weights(log_q, [unknown], np.ones(2, dtype=np.bool_))).all()


def test_what_two_masses_share_cancels_only_as_far_as_their_weights_do() -> None:
    n = scores(np.zeros(1), np.zeros(1), error=0.1, apart=2.0)
    for expert, antiexpert, bar in ((1.0, 1.0, 0.1), (0.8, 0.2, 0.2 * 0.1 + 0.6 * 2.0), (0.8, -0.2, 2.0)):
        weights = Weights(0.5, (expert,), (antiexpert,))
        assert weights.error([n])[0] == pytest.approx(bar)
        assert Equation(weights=weights).error([n], 0)[0] == pytest.approx(bar)


@pytest.mark.parametrize("weights", [{"base": -0.1}, {"tail": math.nan}, {"experts": (math.inf,)}, {"experts": ()}])
def test_weights_that_are_none_are_refused(weights: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        Weights(**weights)  # type: ignore[arg-type]
    assert caught.value.hint


@pytest.mark.parametrize(("temperature", "share"), [(0.0, 0.0), (1.0, 1.5), (math.nan, 0.0)])
def test_a_spread_that_is_none_is_refused(temperature: float, share: float) -> None:
    with pytest.raises(InputError):
        Spread(temperature, share)


def test_the_tail_is_spread_as_was_learned() -> None:
    expert, antiexpert = np.log([0.6, 0.1]), np.log([0.2, 0.1])
    assert np.allclose(np.exp(Spread(1.0, 0.25).log_mass(expert, antiexpert)), [0.3, 0.1])
    assert np.array_equal(Spread().log_mass(expert, antiexpert), antiexpert)
    assert np.array_equal(Spread(share=1.0).log_mass(expert, antiexpert), expert)
    log_q, shown, beyond = np.log([0.5, 0.3]), np.log([0.3, 0.3]), np.log([0.1, 0.05])
    plain = np.exp(tail(log_q, shown, beyond, "backoff"))
    assert np.allclose(plain, 0.2 * np.array([0.25, 0.125]))
    assert np.allclose(np.exp(tail(log_q, shown, beyond, "backoff", temperature=2.0)), 0.2 * np.sqrt([0.25, 0.125]))


def test_everything_unlisted_is_one_event_with_a_number_of_its_own() -> None:
    listed = scores(np.log([0.6, 0.2]), np.log([0.3, 0.3]))
    expected = 0.4 * math.log(0.1) + 0.8 * math.log(0.2) + 0.2 * math.log(0.4) - 0.5
    assert BOTH.log_rest(0.1, [listed]) == pytest.approx(expected)
    assert BOTH.log_rest(0.0, [listed]) == -math.inf
    assert replace(BOTH, rest=0.5).log_rest(0.1, [listed]) == pytest.approx(expected + 1.0)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4, 4.0])
def test_what_is_on_no_list_keeps_its_share_whatever_the_tail_hands_out(temperature: float) -> None:
    log_q, log_a = np.log([0.5, 0.2]), np.log([0.4, 0.2, 0.1, 0.1, 0.05])
    spread = np.concatenate([log_q, tail(log_q, log_a[:2], log_a[2:], "backoff", None, temperature)])
    least = 0.3 * 0.15 / 0.4  # of what the base hides, the share that A leaves to others
    found = unlisted_mass(spread, log_a, 2)
    assert found >= least - 1e-12
    assert found == pytest.approx(max(least, 1.0 - math.exp(logsumexp(spread))))
    assert (math.exp(logsumexp(spread)) > 1.0) == (temperature == 4.0), "more than there is"
    nothing = np.append(np.log([0.5, 0.5]), spread[2:])
    assert unlisted_mass(nothing, log_a, 2) == 0.0
