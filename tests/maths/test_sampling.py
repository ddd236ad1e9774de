"""How one token is chosen: greedy, the nucleus, the distribution of draws, independence of the order of listing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.sampling import Sampling, choose, noise, nucleus, request_seed, uniform

P = np.array([0.5, 0.25, 0.15, 0.1])


def keys(*values: int) -> Callable[[], np.ndarray]:
    return lambda: np.array(values, dtype=np.uint64)


def by_index(i: int) -> tuple[object, ...]:
    return (i,)


def test_greedy_takes_the_likeliest_and_settles_ties_by_the_token() -> None:
    names = ["b", "a", "c"]
    log_p = np.log([0.4, 0.4, 0.2])
    assert choose(log_p, Sampling(), 0, lambda i: (names[i],), keys(0, 1, 2)) == 1


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
    """Chi-square over 4,000 draws, three degrees of freedom at most: 16.27 is exceeded once in a thousand."""
    sampling = Sampling(temperature, top_p, seed=7)
    draws = np.bincount(
        [choose(np.log(P), sampling, place, by_index, keys(4, 9, 17, 40000)) for place in range(4_000)], minlength=4
    )
    expected = nucleus(np.log(P), sampling) * 4_000
    assert np.all(draws[expected == 0] == 0)
    seen = expected > 0
    assert float((((draws - expected) ** 2)[seen] / expected[seen]).sum()) < 16.27


@given(st.permutations(range(5)), st.integers(0, 50))
def test_the_order_of_listing_does_not_matter(order: list[int], place: int) -> None:
    p = np.array([0.3, 0.3, 0.2, 0.1, 0.1])
    sampling = Sampling(0.9, 0.95, seed=3)
    plain = choose(np.log(p), sampling, place, by_index, keys(*range(5)))
    shuffled = choose(np.log(p[order]), sampling, place, lambda i: (order[i],), keys(*order))
    assert order[shuffled] == plain


def test_a_place_has_its_own_number_whatever_came_before() -> None:
    assert uniform(5, 3) == uniform(5, 3)
    assert len({uniform(seed, place) for seed in (-1, 0, 1) for place in range(50)}) == 150


def test_whoever_draws_at_a_place_mostly_draws_the_same_token() -> None:
    """Two distributions at distance d agree at least (1 - d) / (1 + d) of the time, whatever else is listed."""
    other = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    sampling = Sampling(1.0, 1.0, seed=1)
    one = [choose(np.log(P), sampling, place, by_index, keys(1, 2, 3, 4)) for place in range(2000)]
    two = [choose(np.log(other), sampling, place, by_index, keys(1, 2, 3, 4, 5)) for place in range(2000)]
    assert np.mean(np.array(one) == np.array(two)) > 0.9 / 1.1 - 0.03


def test_noise_is_gumbel_and_belongs_to_the_token() -> None:
    values = np.concatenate([noise(3, place, np.arange(500, dtype=np.uint64)) for place in range(40)])
    assert np.isfinite(values).all()
    assert values.mean() == pytest.approx(0.5772, abs=0.03)
    assert values.var() == pytest.approx(math.pi**2 / 6, abs=0.07)
    assert noise(3, 5, np.array([8, 2], dtype=np.uint64))[1] == noise(3, 5, np.array([2], dtype=np.uint64))[0]


def test_every_request_has_a_seed_of_its_own() -> None:
    seeds = {request_seed(seed, place) for seed in (-1, 0, 1, 2**40) for place in range(500)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("bad", [{"temperature": -0.1}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_bad_settings_are_refused_with_a_hint(bad: dict[str, float]) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**bad)  # type: ignore[arg-type]
    assert caught.value.hint
