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
from blackbox_proxy.pair.outputs import Outputs
from blackbox_proxy.pair.tree import Path
from blackbox_proxy.text.vocabulary import Ids
from blackbox_proxy.types import Floats

TOP = 128  # ids of a node that are looked at one by one, the likeliest first
_LEAST = 1e-5  # of a node's distribution: an id below it does not move a mass
_LOG_LEAST = math.log(_LEAST)


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How a token is written after the tail: its path from where the tail starts, and the text at each of its nodes."""

    token: bytes
    path: Path
    texts: tuple[bytes, ...]

    @property
    def nodes(self) -> list[Path]:
        """Where something has to be known: at each place on the way, and behind the token."""
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

    places: what the model says after each node that is known, by path; at_x: the path that spells the tail.
    """

    def __init__(
        self, alignment: Alignment, tail: bytes, at_x: Path, places: Mapping[Path, tuple[Outputs, int]]
    ) -> None:
        self._alignment = alignment
        self._tail = tail
        self._at_x = at_x
        self._places = places
        self._bridges: dict[Path, float] = {}

    def mass(self, way: Way, covered: float) -> float:
        """The mass of a token, not below 0; `covered` is its R."""
        at_x, path = self._at_x, way.path
        if len(path) == len(at_x) + 1 and path[:-1] == at_x:  # the usual case: one local token
            own = float(self._probability(at_x, [path[-1]])[0])
            return max(covered - own * self._goes_on(way), 0.0)
        total, log_x = covered, self._log_path(at_x)
        for end, text in enumerate(way.texts[:-1]):
            node = path[:end]
            if node == at_x:
                continue
            missing, after = self._tail[len(text) :], text[len(self._tail) :]
            scale = math.exp(self._log_path(node) - log_x)
            if missing:
                self._bridges[node] = scale * self._bridge(node, missing)
            whole = end + 1 == len(path)
            for index, probability in self._completing(node, missing, after, way.token):
                kept = 1.0 - self._goes_on(way) if whole and index == path[end] else 1.0
                total += scale * probability * kept
        return total

    def normaliser(self) -> float:
        """1 + what bridges the end of x, relative to the mass of the path that spells x."""
        return 1.0 + sum(self._bridges.values())

    def _log_path(self, path: Path) -> float:
        steps = (float(self._probability(path[:end], [path[end]])[0]) for end in range(len(path)))
        return math.fsum(math.log(max(step, 1e-300)) for step in steps)

    def _probability(self, path: Path, ids: Sequence[int] | Ids) -> Floats:
        outputs, place = self._places[path]
        found: Floats = np.exp(outputs.gather(np.full(len(ids), place), np.asarray(ids, dtype=np.int64)))
        return found

    def _bridge(self, path: Path, missing: bytes) -> float:
        """What a node writes across the end of x."""
        local = self._alignment.local
        ids = local.beginning_with(missing)
        exact = local.id_of(missing)
        return float(self._probability(path, ids[ids != exact] if exact is not None else ids).sum())

    def _completing(self, path: Path, missing: bytes, after: bytes, token: bytes) -> list[tuple[int, float]]:
        """The ids that, at this node, complete x and make `token` the base's first one, with their probability."""
        ids = self._alignment.local.beginning_with(missing + token[len(after) :])
        found = self._probability(path, ids)
        likely = np.flatnonzero(found > _LEAST)
        if len(likely) > TOP:
            likely = likely[np.argsort(-found[likely], kind="stable")[:TOP]]
        spelling = self._alignment.local.spelling
        texts = [after + (spelling[int(ids[i])] or b"")[len(missing) :] for i in likely]
        firsts = self._alignment.base.first(texts)
        return [(int(ids[i]), float(found[i])) for i, first in zip(likely, firsts, strict=True) if first == token]

    def _goes_on(self, way: Way) -> float:
        """The share of what follows a token at its own node that makes a longer token of the base of it."""
        outputs, place = self._places[way.path]
        ids, values = outputs.top(place, TOP)
        spelling, longer = self._alignment.local.spelling, self._alignment.longer
        likely = [
            (text, value)
            for text, value in ((spelling[int(i)], value) for i, value in zip(ids, values, strict=True))
            if text and value > _LOG_LEAST and longer(way.token + text[:1])
        ]
        firsts = self._alignment.base.first([way.token + text for text, _ in likely])
        return float(sum(math.exp(v) for (_, v), first in zip(likely, firsts, strict=True) if first != way.token))
