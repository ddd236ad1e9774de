"""Accept and residual: what is kept follows p exactly, whatever the draft's distribution and wherever C ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackbox_proxy.maths.speculate import accepts, overlap, residual


def distribution(weights: list[int]) -> np.ndarray:
    return np.array(weights, dtype=float) / sum(weights)


weights = st.lists(st.integers(0, 20), min_size=6, max_size=6).filter(lambda w: sum(w) > 0)


@given(weights, weights, st.integers(0, 6), st.floats(0.2, 1.0))
def test_what_is_kept_follows_p(p_weights: list[int], q_weights: list[int], shown: int, mass: float) -> None:
    """Summed over all drafts: those within C (mass `mass` of q), and those outside, which are never accepted."""
    p, q = distribution(p_weights), mass * distribution(q_weights)
    accepted = np.where(np.arange(6) < shown, np.minimum(p, q), 0.0)
    assert overlap(p, q, shown) == pytest.approx(accepted.sum())
    rest = residual(p, q, shown)
    assert np.all(rest >= 0.0)
    left = 1.0 - accepted.sum()
    assert rest.sum() == pytest.approx(left)
    kept = accepted + left * (rest / rest.sum() if rest.sum() > 0 else 0.0)
    assert np.allclose(kept, p)


@pytest.mark.parametrize(
    ("p", "q", "u", "kept"),
    [(0.5, 0.25, 0.999, True), (0.25, 0.5, 0.49, True), (0.25, 0.5, 0.5, False), (0.0, 0.5, 0.0, False)],
)
def test_a_draft_is_kept_with_probability_p_over_q(p: float, q: float, u: float, kept: bool) -> None:
    assert accepts(p, q, u) is kept
