"""How numbers are written in reports."""

from __future__ import annotations

import math

_NOTHING = 1e-12  # less is rounding


def num(value: float) -> str:
    """A probability: three decimals, or its order of magnitude where they would all be 0."""
    if math.isnan(value):
        return "–"
    if value < _NOTHING or value >= 0.0005:
        return f"{value:.3f}" if _NOTHING <= value < 0.9995 else f"{value:.0f}"
    return f"{value:.0e}".replace("e-0", "e-")


def signed(value: float) -> str:
    """A difference of probabilities."""
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def percent(share: float) -> str:
    """A share in whole per cent; a tenth where it is small."""
    if math.isnan(share):
        return "–"
    return f"{share:.0%}" if share >= 0.0995 or share == 0.0 else f"{share:.1%}"


def money(cost: float) -> str:
    return f"{cost:.3g}"
