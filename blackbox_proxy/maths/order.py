"""Vectors as wide as a vocabulary in order, without comparing their values one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONG = 4096  # values from which on it pays


def descending(values: NDArray[np.floating]) -> NDArray[np.intp]:
    """The order (n,) that takes values (n,), float32 or float64 and none of them NaN, from high to low, equal ones as
    they come.

    By digits of 16 bits, the last first (numpy sorts those by counting): as the bits of -value, read as a whole number,
    order values once negative ones are turned round.
    """
    if len(values) < _LONG or values.dtype not in (np.float32, np.float64):
        return np.argsort(-values, kind="stable")
    size = 8 * values.itemsize
    bits: Any = (0.0 - values).view(np.uint32 if size == 32 else np.uint64)  # 0 - x and not -x: of 0 there is one
    keys = np.where(bits >> (size - 1) > 0, ~bits, bits | np.array(2 ** (size - 1), bits.dtype))
    order = np.arange(len(values))
    for place in range(0, size, 16):
        digits = (keys >> place).astype(np.uint16)[order]
        order = order[np.argsort(digits, kind="stable")]
    return order


def largest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """The first `count` of that order, (min(count, n),), for values none of which is NaN."""
    if len(values) > 4 * count:
        least = np.partition(values, -count)[-count]
        among = np.flatnonzero(values >= least)
        return among[np.argsort(-values[among], kind="stable")][:count]
    return np.argsort(-values, kind="stable")[:count]
