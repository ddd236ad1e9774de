"""Sorting by digits, and a part of it, say what sorting by comparison says."""

from __future__ import annotations

import numpy as np
import pytest

from blackbox_proxy.maths.order import descending, largest


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("count", [0, 1, 100, 4096, 50_001])
def test_high_to_low_and_equal_ones_as_they_come(kind: type[np.floating], count: int) -> None:
    rng = np.random.default_rng(count)
    values = (rng.normal(size=count) * 10.0 ** rng.integers(-6, 3, size=count)).astype(kind)
    for value in (0.0, -0.0, np.inf, -np.inf, float(np.finfo(kind).smallest_subnormal), -1.5):
        values[rng.integers(0, max(count, 1), size=count // 10)] = value  # many of each
    found = descending(values)
    assert sorted(found.tolist()) == list(range(count))
    assert (values[found][:-1] >= values[found][1:]).all()
    equal = values[found][:-1] == values[found][1:]
    assert (np.diff(found)[equal] > 0).all()


@pytest.mark.parametrize("count", [1, 8, 128])
def test_the_largest_are_the_first_of_that_order(count: int) -> None:
    rng = np.random.default_rng(count)
    for size in (1, 7, 30, 600, 5000):
        values = np.round(rng.normal(size=size), 1)  # many equal ones
        values[rng.integers(0, size, size // 5)] = -np.inf
        assert largest(values, count).tolist() == descending(values)[:count].tolist()
