"""Sums of probabilities that are kept as logarithms."""

from __future__ import annotations

import math

import numpy as np

from blackbox_proxy.types import Floats


def logsumexp(values: Floats) -> float:
    """log sum exp of a vector in float64; -inf for an empty one, or where nothing is possible."""
    top = float(values.max()) if len(values) else -math.inf
    if not math.isfinite(top):
        return top
    return top + math.log(float(np.exp(values - top).sum()))
