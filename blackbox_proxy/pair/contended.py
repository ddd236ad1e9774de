"""The masses of a few tokens at one position, summed beyond the row after x: what estimated.py cannot leave open.

For a token c the local tokenizer's own spelling of tail + c is followed (`ways`): where it bridges the end of x (" Yor"
and "k" are written " York"), where it writes c in pieces, and what goes on from c to a longer token of the base.
Relative to the mass of the path that spells x,

    M(c)  =  R(c | x)  -  what goes on from c's own node  +  what completes c from the other nodes on its way

and everything at this position is divided by 1 + what bridges the end of x. Ways that the local tokenizer would not
write itself are left out; alignment.py has them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from blackbox_proxy.pair.alignment import Alignment
from blackbox_proxy.pair.tree import Path
from blackbox_proxy.text.vocabulary import Ids
from blackbox_proxy.types import Floats

_LEAST = 1e-5  # of a node's distribution: an id below it does not move a mass
_MOST = 512  # ids of a node that are looked at one by one, the likeliest first


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How a token is written after the tail: its path from where the tail starts, and the text at each of its nodes."""

    token: bytes
    path: Path
    texts: tuple[bytes, ...]

    @property
    def nodes(self) -> list[Path]:
        return [self.path[:end] for end in range(len(self.path) + 1)]


def ways(alignment: Alignment, tail: bytes, tokens: Sequence[bytes]) -> list[Way]:
    """The ways of these tokens; of one that the local vocabulary cannot spell there is none."""
    found = []
    spelling = alignment.local.spelling
    for token, path in zip(tokens, alignment.canonicals([tail + token for token in tokens]), strict=True):
        if path is None:
            continue
        texts = [b""]
        for index in path:
            texts.append(texts[-1] + (spelling[index] or b""))
        found.append(Way(token, path, tuple(texts)))
    return found


class Contended:
    """Log masses of contended tokens at one position under one model, on the scale of the row after x.

    rows: the log probabilities (V,) after each node that is known, by path; at_x: the path that spells the tail.
    """

    def __init__(self, alignment: Alignment, tail: bytes, at_x: Path, rows: Mapping[Path, Floats]) -> None:
        self._alignment = alignment
        self._tail = tail
        self._at_x = at_x
        self._rows = rows
        self._log_x = self._log_path(at_x)
        self._bridges: dict[Path, float] = {}

    def _log_path(self, path: Path) -> float:
        return float(sum(self._rows[path[:end]][path[end]] for end in range(len(path))))

    def mass(self, way: Way, covering: Ids) -> float:
        """The mass of a token, not below 0; `covering` are the ids of R."""
        tail, local = self._tail, self._alignment.local
        at_x = self._rows[self._at_x]
        total = float(np.exp(at_x[covering]).sum())
        own = self._goes_on(way.token, way.path)
        if way.path[: len(self._at_x)] == self._at_x and len(way.path) == len(self._at_x) + 1:
            return max(total - math.exp(at_x[way.path[-1]]) * own, 0.0)
        for path, text in zip(way.nodes[:-1], way.texts[:-1], strict=True):
            if path == self._at_x:
                continue
            missing, after = tail[len(text) :], text[len(tail) :]
            if len(text) < len(tail):
                self._bridges[path] = self._bridge(path, missing)
            ids = local.beginning_with(missing + way.token[len(after) :])
            completing = self._leading(path, ids, missing, after, way.token)
            scale = math.exp(self._log_path(path) - self._log_x)
            exactly = way.path[len(path)] if len(path) + 1 == len(way.path) else -1
            for index, probability in completing:
                total += scale * probability * (1.0 - own if index == exactly else 1.0)
        return total

    def normaliser(self) -> float:
        """1 + what bridges the end of x, relative to the mass of the path that spells x."""
        return 1.0 + sum(self._bridges.values())

    def _bridge(self, path: Path, missing: bytes) -> float:
        local = self._alignment.local
        ids = local.beginning_with(missing)
        exact = local.id_of(missing)
        ids = ids[ids != exact] if exact is not None else ids
        own = float(np.exp(self._rows[path][ids]).sum()) if len(ids) else 0.0
        return own * math.exp(self._log_path(path) - self._log_x)

    def _leading(self, path: Path, ids: Ids, missing: bytes, after: bytes, token: bytes) -> list[tuple[int, float]]:
        """Of these ids those that make `token` the first one, with their probability."""
        likely = self._likely(path, ids)
        spelling = self._alignment.local.spelling
        firsts = self._alignment.base.first([after + (spelling[i] or b"")[len(missing) :] for i in likely])
        row = self._rows[path]
        return [(i, math.exp(row[i])) for i, first in zip(likely, firsts, strict=True) if first == token]

    def _goes_on(self, token: bytes, path: Path) -> float:
        """The share of what follows the token at its own node that makes a longer token of the base of it."""
        row = self._rows.get(path)
        if row is None:
            return 0.0
        likely = self._likely(path, np.arange(len(row)))
        spelling = self._alignment.local.spelling
        written = [i for i in likely if spelling[i]]
        firsts = self._alignment.base.first([token + (spelling[i] or b"") for i in written])
        return float(sum(math.exp(row[i]) for i, first in zip(written, firsts, strict=True) if first != token))

    def _likely(self, path: Path, ids: Ids) -> list[int]:
        values = self._rows[path][ids]
        likely = np.flatnonzero(values > math.log(_LEAST))
        if len(likely) > _MOST:
            likely = likely[np.argsort(-values[likely], kind="stable")[:_MOST]]
        return [int(i) for i in ids[likely]]
