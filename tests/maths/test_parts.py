"""Many places at once: what is reckoned of each is what is reckoned of it alone, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackbox_proxy.maths.equation import Equation, combine, hidden_mass, hidden_masses, normalise, tail, tails
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.maths.weights import Weights
from blackbox_proxy.types import Floats, How, Scores, TailPolicy

sizes = st.lists(st.integers(1, 70), min_size=1, max_size=9)


def drawn(counts: list[int], seed: int) -> Floats:
    return np.random.default_rng(seed).normal(-6.0, 4.0, sum(counts))


@given(sizes, st.integers(0, 99))
def test_a_part_hangs_on_itself_alone(counts: list[int], seed: int) -> None:
    parts, values = Parts.of(counts), drawn(counts, seed)
    alone = parts.split(values)
    assert [len(part) for part in alone] == counts
    one = [Parts.of([count]) for count in counts]
    for name in ("sums", "most", "log_sums"):
        together = getattr(parts, name)(values)
        assert together.tolist() == [getattr(p, name)(part)[0] for p, part in zip(one, alone, strict=True)]
    assert parts.log_sums(values) == pytest.approx([logsumexp(part) for part in alone])
    assert np.array_equal(normalise(values, parts), np.concatenate([normalise(part) for part in alone]))
    assert parts.owners(np.arange(len(values))).tolist() == parts.each(np.arange(len(counts))).tolist()


def test_where_nothing_is_possible_nothing_is_added_up() -> None:
    parts = Parts.of([2, 1, 3])
    values = np.array([-np.inf, -np.inf, 0.5, -np.inf, 1.0, 1.0])
    assert parts.log_sums(values) == pytest.approx([-np.inf, 0.5, 1.0 + np.log(2.0)])
    assert parts.counts(np.isfinite(values)).tolist() == [0, 1, 2]
    assert Parts.of([2, 1, 3]).only(np.array([True, False, True, False, True, True])).sizes.tolist() == [1, 1, 2]


@pytest.mark.parametrize("policy", ["truncate", "floor", "backoff"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 12)), min_size=1, max_size=6), st.integers(0, 99))
def test_the_tails_of_many_places_are_those_of_each(
    policy: TailPolicy, temperature: float, counts: list[tuple[int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    log_q = [np.log(rng.dirichlet(np.ones(k + 1))[:k]) for k, _ in counts]  # the last is hidden
    log_a = [np.log(rng.dirichlet(np.ones(k + t + 1))[: k + t]) for k, t in counts]
    told = np.concatenate([np.arange(k + t) < k for k, t in counts])
    hidden = hidden_masses(np.array([np.exp(each).sum() for each in log_q]))
    assert hidden == pytest.approx([hidden_mass(each) for each in log_q])
    cap = np.array([each.min() for each in log_q])
    parts = Parts.of([k + t for k, t in counts])
    found = tails(hidden, np.concatenate(log_a), told, parts, policy, cap, temperature)[~told]
    alone = [
        tail(q, a[:k], a[k:], policy, temperature=temperature)
        for q, a, (k, _) in zip(log_q, log_a, counts, strict=True)
    ]
    assert np.allclose(found, np.concatenate(alone), atol=1e-12)


@pytest.mark.parametrize(
    "equation",
    [
        Equation((0.5,)),
        Equation((lambda place: 0.0 if place % 2 else 1.0 / (1 + place),)),  # a schedule, of which 0 leaves a pair out
        Equation(weights=Weights(0.4, (0.8,), (0.2,), tail=-0.3)),
    ],
)
def test_log_p_and_its_bars_at_many_places_are_those_of_each(equation: Equation) -> None:
    counts, rng = [3, 1, 20, 7], np.random.default_rng(2)
    parts, total = Parts.of(counts), sum(counts)
    log_q, expert, antiexpert = (rng.normal(-3.0, 2.0, total) for _ in range(3))
    error = rng.uniform(0.0, 1.0, total)
    offset = expert - antiexpert
    if equation.weights is None and equation.at(1) == (0.0,):
        error[0] = offset[1] = np.inf  # which counts for nothing at the first of the places
    exact: How = "exact"
    scores = Scores(expert, antiexpert, offset, (exact,) * total, error)
    told = np.concatenate([np.arange(count) < max(1, count - 2) for count in counts])
    places = [1, 2, 3, 4]
    log_p = parts.split(equation.log_ps(log_q, [scores], places, told, parts))
    bars = parts.split(equation.errors([scores], places, parts))
    for i, (start, end) in enumerate(parts.bounds):
        own = scores.only(slice(start, end))
        shown = int(told[start:end].sum())
        assert np.array_equal(log_p[i], equation.log_p(log_q[start:end], [own], places[i], shown))
        assert np.array_equal(bars[i], equation.error([own], places[i]))
    if equation.weights is None:
        (alpha,) = equation.at(2)
        assert np.allclose(log_p[1], combine(log_q[3:4], [offset[3:4]], [alpha]))
