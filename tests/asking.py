"""Prompts for whole runs, and the ways of asking that must all lead to the same text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from toys import Always

from blackbox_proxy import Drafting, ProxyTuner, TransformersPair
from blackbox_proxy.decoding.pace import Pace
from blackbox_proxy.types import Generation

STARTS = ("The mayor", "New York", "def area", "日本", "In 2023", "naïve 👩‍💻", "'don", "  two", "3.50 €", "she")
PROMPTS = [f"{a} {b}" for a, b in itertools.product(STARTS, ("of", "12", "ba", "the theory", "Zürich"))]
FIXED = (1, 2, 3, 8, 32, 64)


def ways() -> dict[str, Drafting | Pace]:
    return {
        **{str(n): Drafting.fixed(n) for n in FIXED},
        "stream": Drafting(local=False),
        "adaptive": Drafting(stream=False, local=False),
        "cost": Drafting(stream=False, local=False, minimise="cost"),
        "local": Always(5, 3, False),
        "local, streamed": Always(5, 100, True),
        "by itself": Drafting(),
    }


def tuner(base: Any, pair: TransformersPair, way: Drafting | Pace) -> ProxyTuner:
    made = ProxyTuner(base, pair, draft=way if isinstance(way, Drafting) else None)
    if isinstance(way, Pace):
        made._pace = way
    return made


def bytes_of(generations: Sequence[Generation]) -> list[tuple[bytes, ...]]:
    return [(*(step.token for step in g.steps), g.finish_reason.encode()) for g in generations]
