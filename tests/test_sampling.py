"""How one token is chosen: greedy, the nucleus, the distribution of draws, independence of the order of listing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackbox_proxy.errors import InputError
from blackbox_proxy.sampling import Sampling, choose, nucleus, uniform

P = np.array([0.5, 0.25, 0.15, 0.1])


def by_index(i: int) -> tuple[object, ...]:
    return (i,)


def test_greedy_takes_the_likeliest_and_settles_ties_by_the_token() -> None:
    names = ["b", "a", "c"]
    log_p = np.log([0.4, 0.4, 0.2])
    assert choose(log_p, Sampling(), 0, lambda i: (names[i],)) == 1


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, P),
        (0.5, 1.0, P**2 / (P**2).sum()),
        (1.0, 0.75, [2 / 3, 1 / 3, 0, 0]),
        (1.0, 0.76, np.array([0.5, 0.25, 0.15, 0]) / 0.9),
        (1.0, 0.01, [1, 0, 0, 0]),
    ],
)
def test_nucleus(temperature: float, top_p: float, expected: list[float]) -> None:
    assert np.allclose(nucleus(np.log(P), Sampling(temperature, top_p)), expected)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.9), (0.7, 0.9)])
def test_draws_follow_the_nucleus(temperature: float, top_p: float) -> None:
    """Chi-square over 20,000 draws, three degrees of freedom at most: 16.27 is exceeded once in a thousand."""
    sampling = Sampling(temperature, top_p, seed=7)
    draws = np.bincount([choose(np.log(P), sampling, place, by_index) for place in range(20_000)], minlength=4)
    expected = nucleus(np.log(P), sampling) * 20_000
    assert np.all(draws[expected == 0] == 0)
    seen = expected > 0
    assert float((((draws - expected) ** 2)[seen] / expected[seen]).sum()) < 16.27


@given(st.permutations(range(5)), st.integers(0, 50))
def test_the_order_of_listing_does_not_matter(order: list[int], place: int) -> None:
    p = np.array([0.3, 0.3, 0.2, 0.1, 0.1])
    sampling = Sampling(0.9, 0.95, seed=3)
    plain = choose(np.log(p), sampling, place, by_index)
    shuffled = choose(np.log(p[order]), sampling, place, lambda i: (order[i],))
    assert order[shuffled] == plain


def test_a_place_has_its_own_number_whatever_came_before() -> None:
    assert uniform(5, 3) == uniform(5, 3)
    assert len({uniform(seed, place) for seed in (-1, 0, 1) for place in range(50)}) == 150


@pytest.mark.parametrize("bad", [{"temperature": -0.1}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_bad_settings_are_refused_with_a_hint(bad: dict[str, float]) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**bad)  # type: ignore[arg-type]
    assert caught.value.hint
