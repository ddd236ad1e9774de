"""Which candidates will be summed, guessed before anything is read: their nodes go along with the first pass.

A second pass costs a pass of each model, however few nodes it reads, and a few nodes more in the first cost little. A
lone position seldom needs one, and among many positions one always does, so this is for drafts of a middle length.
Only q is known here: what is read and not needed changes no score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blackbox_proxy.aligning.crossing import Crossing, Relations
from blackbox_proxy.pair.estimates import GOES_ON, IN_PIECES
from blackbox_proxy.types import Position, Token

_LOOKED_AT = 6  # candidates of a position, the likeliest
_ONE_IN = 2  # positions of a draft for each token that is read ahead
_LENGTHS = range(4, 17)  # positions of a draft for which it pays, measured by `bench --near`
_CLOSE = 1.0  # nats: how much the pair may bring two candidates nearer to each other


def read_ahead(positions: Sequence[Position], crossings: Sequence[Crossing]) -> list[list[bytes]]:
    """For each position the tokens that contend in all likelihood and are known only with nodes of their own; of all
    the draft those that are nearest to being chosen.
    """
    wanted: list[list[bytes]] = [[] for _ in positions]
    if len(positions) not in _LENGTHS:
        return wanted
    found: list[tuple[float, int, bytes]] = []
    for j, (position, crossing) in enumerate(zip(positions, crossings, strict=False)):
        found += [(gap, j, text) for gap, text in _contending(position, crossing)]
    for _, j, text in sorted(found)[: len(positions) // _ONE_IN]:
        wanted[j].append(text)
    return wanted


def _contending(position: Position, crossing: Crossing) -> list[tuple[float, bytes]]:
    """How far each is from being certain to contend, nats, and the token."""
    shown: list[tuple[float, Token]] = [
        (float(value), token)
        for value, token in zip(position.logprobs[:_LOOKED_AT], position.tokens[:_LOOKED_AT], strict=True)
        if token.bytes and not token.end and np.isfinite(value)
    ]
    if len(shown) < 2:
        return []
    texts = [token.bytes or b"" for _, token in shown]
    bars = [_bar(relation) for relation in crossing.of(texts)]
    best = max(range(len(shown)), key=lambda i: shown[i][0])
    gaps = [shown[best][0] - value - bar - bars[best] for (value, _), bar in zip(shown, bars, strict=True)]
    nearest = min((gap for i, gap in enumerate(gaps) if i != best), default=np.inf)
    gaps[best] = nearest  # it is summed with whatever contends with it
    return [(gap, text) for gap, bar, text in zip(gaps, bars, texts, strict=True) if bar > 0.0 and gap < _CLOSE]


def _bar(relation: Relations) -> float:
    if relation.blanks > 1 or not len(relation.covering):
        return IN_PIECES
    return GOES_ON if relation.goes_on else 0.0
