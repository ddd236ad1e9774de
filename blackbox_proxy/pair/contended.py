"""The masses of a few tokens at one position, summed beyond the row after x: what estimated.py cannot leave open.

What bridges the end of x ("Yor" and "k" are written " York") is written at nodes before it. Those that the tail's own
spelling passes are known, so their share is part of every estimate (`Bridges`):

    R'(c | x)  =  ( R(c | x)  +  sum over nodes before x of  p(node) / p(x) * p(what completes x and c | node) ) / Z
    Z          =  1  +  the same sum over all that bridges the end of x

For a contended token the local tokenizer's own spelling of tail + c is followed (`ways`): where that leaves the tail's,
where it writes c in pieces, and what goes on from c to a longer token of the base. What begins with c may be cut
otherwise than c itself ("B" and "uc", but "Bu" and "chenau"), so the spellings of its beginnings are followed as well
where a model may be on them. Ways that the local tokenizer would not write itself are left out; alignment.py has them
all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from blackbox_proxy.aligning.alignment import Alignment
from blackbox_proxy.aligning.tree import Path
from blackbox_proxy.aligning.writing import Nodes, nodes_of, written
from blackbox_proxy.maths.order import largest
from blackbox_proxy.models.outputs import Outputs
from blackbox_proxy.text.vocabulary import Ids
from blackbox_proxy.types import Floats

TOP = 128  # ids of a node that are looked at one by one, the likeliest first
_MORE = 1024  # where those leave a mass that moves what goes on, so many are
_REST = 0.03  # of a node's distribution: a mass that moves it
_LEAST = 1e-5  # of a node's distribution: an id below it does not move a mass
_LOG_LEAST = math.log(_LEAST)
_ROUNDED = 1.0 - 1e-6  # the least of those that are looked at is among them
_ENTERED = 0.01  # of the mass of x: a beginning with less is not where a token is completed
_RARE = 1e-4  # of the mass of x: a token with less may be written mostly across its end; then it is of the token's mass
_UNLIKELY = 1e-7  # of the mass of x: no token is taken to have less
_ALWAYS = 8  # ids that are looked at however unlikely they are: what one model never writes may be the other's word

Entered = Callable[[Path, bytes, bool], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How a token is written after the tail: its path from where the tail starts; passed: the nodes on the way, its end
    not among them, with the text at each, and other nodes at which the token may be completed: blanks at its end are
    cut otherwise once a word follows ("    " is "   " and " def"), and a word's beginning otherwise once the word goes
    on. goes_on: whether it is on the way to a longer token of the base. nodes: where something has to be known, at each
    place on the way, and behind what may go on. entrances: those that only a word's beginning leads to.
    """

    token: bytes
    path: Path
    passed: tuple[tuple[Path, bytes], ...]
    goes_on: bool
    nodes: tuple[Path, ...]
    entrances: frozenset[Path] = frozenset()


def ways(alignment: Alignment, tail: bytes, tokens: Sequence[bytes], entered: Entered | None = None) -> list[Way]:
    """The ways of these tokens; of one that the local vocabulary cannot spell there is none. entered: whether a model
    may be at a node that only the beginnings of a token lead to, inside the token or before it; those are left out
    where nothing is known of it.
    """
    found = []
    for (_, token), how in written(alignment, [(tail, token) for token in tokens]).items():
        if how.path is None:
            continue
        beside = dict(how.beside)
        begun = {} if entered is None else _entrances(alignment, tail, token, how.begun, entered)
        entrances = frozenset(begun.keys() - beside.keys())
        passed = (*how.before, *(beside | begun).items())
        nodes = tuple(node for node, _ in passed)
        found.append(Way(token, how.path, passed, how.goes_on, (*nodes, how.path) if how.goes_on else nodes, entrances))
    return found


def _entrances(
    alignment: Alignment, tail: bytes, token: bytes, begun: Sequence[Nodes], entered: Entered
) -> dict[Path, bytes]:
    """Nodes off the path of a token, and the texts there, which the usual spellings of its beginnings lead to. What is
    completed at one must not count with the token of the base that it begins as well: so only those that a token ends
    at, which leaves what goes on from there to others.
    """
    found = dict[Path, bytes]()
    for chain in begun:
        for node, text in chain:
            inside = len(text) > len(tail)
            if node not in found and not (entered(node, token, inside) and _ends_there(alignment, tail, node, text)):
                break  # nor at those behind it
            found[node] = text
    return found


def _ends_there(alignment: Alignment, tail: bytes, node: Path, text: bytes) -> bool:
    """Whether what a node has written after the tail is a token of the base, usually spelled so; or nothing is."""
    after = text[len(tail) :]
    return not after or (alignment.canonical(text) == node and alignment.base.first([after]) == [after])


class Going(NamedTuple):
    """The shares of what follows a text that make a longer token of the base of it: by that token, and by the text so
    far where it takes more than one local token.
    """

    whole: dict[bytes, float]
    onward: dict[bytes, float]

    @property
    def share(self) -> float:
        return min(math.fsum([*self.whole.values(), *self.onward.values()]), 1.0)


_STAYS = Going({}, {})


class Bridges:
    """One position under one model: what the nodes before the end of x write across it, and the rows after its nodes.

    places: what the model says after each node that is known, by path; at_x: the path that spells the tail; beside:
    the path that leaves its last blank to the word that follows.
    """

    def __init__(
        self,
        alignment: Alignment,
        tail: bytes,
        at_x: Path,
        places: Mapping[Path, tuple[Outputs, int]],
        beside: Path | None = None,
    ) -> None:
        self._alignment = alignment
        self._places = places
        self.at_x = at_x
        self._logs: dict[Path, float] = {(): 0.0}
        self._scales: dict[Path, float] = {}
        self._going: dict[Path, Going] = {}
        self._looked: dict[Path, tuple[Ids, Floats]] = {}
        self._log_x = self.log_path(at_x)
        self._before: list[tuple[Path, bytes, float]] = []  # node, what of x is missing there, its mass by that of x
        self.total = 0.0
        before = nodes_of(alignment, at_x)[:-1]
        before += [] if beside is None else [at for at in nodes_of(alignment, beside) if at[0] != at_x[: len(at[0])]]
        self.known = {node for node, _ in before} | {at_x}  # whose part in the masses R and these bridges have
        for node, text in before:
            missing = tail[len(text) :]
            scale = self.scale(node)
            share = scale * self.across(node, missing)
            if share > _LEAST:
                self._before.append((node, missing, scale))
                self.total += share

    def masses(self, tokens: Sequence[bytes]) -> Floats:
        """What the nodes before the end of x add to the mass of each token, (c,)."""
        total = np.zeros(len(tokens))
        for node, missing, scale in self._before:
            sets = [self._completing(node, missing, b"", token) for token in tokens]
            places = np.repeat(np.arange(len(sets)), [len(ids) for ids in sets])
            if len(places):
                values = self.probability(node, np.concatenate(sets))
                total += scale * np.bincount(places, values, len(tokens))
        return total

    def likely(self, count: int) -> list[tuple[bytes, float]]:
        """Tokens that are written across the end of x, with log masses: the `count` likeliest ways at each node."""
        spelling, found = self._alignment.local.spelling, []
        for node, missing, scale in self._before:
            ids = self._alignment.local.beginning_with(missing)
            values = self.probability(node, ids)
            best = largest(values, count)
            texts = [((spelling[int(ids[i])] or b"")[len(missing) :], float(values[i])) for i in best]
            texts = [(text, value) for text, value in texts if text and value > _LEAST]
            firsts = self._alignment.base.first([text for text, _ in texts])
            found += [(first, math.log(scale * value)) for first, (_, value) in zip(firsts, texts, strict=True)]
        return found

    def scale(self, node: Path) -> float:
        """The mass of a node, by that of the path that spells x."""
        found = self._scales.get(node)
        if found is None:
            found = self._scales[node] = math.exp(min(self.log_path(node) - self._log_x, 700.0))
        return found

    def log_path(self, path: Path) -> float:
        found = self._logs.get(path)
        if found is None:
            found = self._logs[path] = self.log_path(path[:-1]) + math.log(max(self.step(path), 1e-300))
        return found

    def started(self, path: Path) -> float:
        """The mass, by that of x, of as much of a path as is known, and one token more: no less than all of it has."""
        end = 0
        while end < len(path) and path[: end + 1] in self._places:
            end += 1
        mass = self.scale(path[:end])
        return mass if end == len(path) else mass * self.step(path[: end + 1])

    def step(self, path: Path) -> float:
        """The probability of the last id of a path after the others."""
        outputs, place = self._places[path[:-1]]
        return math.exp(outputs.at(place, path[-1]))

    def entered(self, node: Path, mass: float) -> bool:
        """Whether a node has a mass that is worth a look, as far as is known, for a token of this mass by that of x."""
        return self.started(node) > _ENTERED * (max(mass, _UNLIKELY) if mass < _RARE else 1.0)

    def probability(self, path: Path, ids: Sequence[int] | Ids) -> Floats:
        outputs, place = self._places[path]
        found: Floats = np.exp(outputs.gather(place, np.asarray(ids, dtype=np.int64)))
        return found

    def across(self, path: Path, missing: bytes) -> float:
        """The share of what a node writes that goes across the end of x."""
        local = self._alignment.local
        ids = local.beginning_with(missing)
        exact = local.id_of(missing)
        return float(self.probability(path, ids[ids != exact] if exact is not None else ids).sum())

    def completing(self, path: Path, missing: bytes, after: bytes, token: bytes, likely: bool = False) -> float:
        """The probability that this node completes x and makes `token` the base's first one; likely: by the ids that
        count as what goes on from there, and no others.
        """
        ids = self._completing(path, missing, after, token)
        if not len(ids):
            return 0.0
        least = self._looked_at(path)[1][-1:].min(initial=1.0) * _ROUNDED if likely else 0.0
        if len(ids) == 1:  # as mostly
            value = self.step((*path, int(ids[0])))
            return value if value >= least else 0.0
        values = self.probability(path, ids)
        return float(values[values >= least].sum())

    def _completing(self, path: Path, missing: bytes, after: bytes, token: bytes) -> Ids:
        found = self._alignment.completing(missing, after, token)
        if found is not None:
            return found
        ids = self._alignment.local.beginning_with(missing + token[len(after) :])  # so many: the likely ones are cut
        values = self.probability(path, ids)
        order = largest(values, TOP)
        likely = ids[order[: max(_ALWAYS, int(np.count_nonzero(values[order] > _LEAST)))]]
        return self._alignment.making(likely, missing, after, token)

    def _looked_at(self, path: Path) -> tuple[Ids, Floats]:
        """The ids after a node that are looked at one by one, and their probabilities."""
        found = self._looked.get(path)
        if found is not None:
            return found
        outputs, place = self._places[path]
        for count in (TOP, _MORE):
            ids, values = outputs.top(place, count)
            values = np.exp(values[values > _LOG_LEAST])
            if values.sum() > 1.0 - _REST:
                break
        found = self._looked[path] = ids[: len(values)], values
        return found

    def going(self, way: Way) -> Going:
        """What follows a token at its own node and makes a longer token of the base of it, or is on its way there."""
        found = self._going.get(way.path)
        if found is None:
            found = self._going[way.path] = self._goes(way)
        return found

    def _goes(self, way: Way) -> Going:
        if not way.goes_on:
            return _STAYS
        ids, values = self._looked_at(way.path)
        among = self._alignment.going_on(way.token, ids)
        if not among.any():
            return _STAYS
        whole, onward = dict[bytes, float](), dict[bytes, float]()
        shares = values[among].tolist()
        spelling, base = self._alignment.local.spelling, self._alignment.base
        likely = [(way.token + (spelling[i] or b""), p) for i, p in zip(ids[among].tolist(), shares, strict=True)]
        cut, *firsts = base.first([way.token, *(text for text, _ in likely)])
        for (text, p), first in zip(likely, firsts, strict=True):
            if first != cut:
                whole[first] = whole.get(first, 0.0) + p
            elif self._alignment.may_go_on(text):  # " Y" is cut as " " and "Y", and goes on to " Yvette"
                onward[text] = onward.get(text, 0.0) + p
        return Going(whole, onward)


def contended_mass(
    bridges: Bridges, tail: bytes, way: Way, estimate: float, others: dict[Path, float], behind: dict[Path, float]
) -> float:
    """The mass of a token by that of x. estimate: R + what `bridges` add. others: receives what nodes off
    the tail's own spelling write across the end of x; behind: what is completed at each node behind it.
    """
    total = estimate
    for node, text in way.passed:
        if node not in bridges.known:
            missing, after = tail[len(text) :], text[len(tail) :]
            scale = bridges.scale(node)
            if missing:
                others[node] = scale * bridges.across(node, missing)
            completed = scale * bridges.completing(node, missing, after, way.token, node in way.entrances)
            total += completed
            if after:
                behind[node] = behind.get(node, 0.0) + completed
    if way.goes_on and (share := bridges.going(way).share):
        total -= bridges.scale(way.path[:-1]) * bridges.step(way.path) * share
    return max(total, _LEAST * estimate)  # what all goes on elsewhere has no mass that could be told from rounding
