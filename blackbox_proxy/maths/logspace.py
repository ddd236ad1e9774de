"""Sums of probabilities that are kept as logarithms."""

from __future__ import annotations

import numpy as np

from blackbox_proxy.types import Floats


def logsumexp(values: Floats) -> float:
    """log sum exp of a vector in float64; -inf for an empty one, or where nothing is possible."""
    top = float(np.max(values, initial=-np.inf))
    if not np.isfinite(top):
        return top
    return top + float(np.log(np.sum(np.exp(values - top))))
