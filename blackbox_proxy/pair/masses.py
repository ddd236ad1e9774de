"""The log masses of events at one position under one model: sums over the paths that `Alignment` lays out."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.aligning.alignment import Alignment, Nodes
from blackbox_proxy.aligning.tree import Path
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.text.vocabulary import Ids


class Masses:
    """The log masses of events at one position under one model.

    `rows` (m, V) float32 are the log probabilities after each of the m nodes; `ends` the local ids that end a text;
    `hidden` (m,) what stands in a row for each id that the model did not show (see `Shown`).
    """

    def __init__(
        self,
        alignment: Alignment,
        nodes: Nodes,
        rows: Sequence[NDArray[np.float32]],
        ends: Ids,
        hidden: Sequence[float],
    ) -> None:
        self.alignment = alignment
        self._hidden = hidden
        self.nodes = nodes
        self._ends = ends
        self._index = {path: i for i, path in enumerate(nodes.paths)}
        self._by_text: dict[bytes, list[int]] = {}
        for i, text in enumerate(nodes.texts):
            self._by_text.setdefault(text, []).append(i)
        self._rows = list(rows)
        self._path = [0.0] * len(nodes.paths)
        children: dict[int, list[int]] = {}
        for i, path in enumerate(nodes.paths):
            if path:
                parent = self._index[path[:-1]]
                self._path[i] = self._path[parent] + float(rows[parent][path[-1]])
                children.setdefault(parent, []).append(path[-1])
        for parent, tokens in children.items():  # a node's mass is handed on: it is no leaf of its parent
            row = rows[parent].copy()
            row[tokens] = -np.inf
            self._rows[parent] = row
        beyond = [i for i in range(len(nodes.paths)) if nodes.after(i)]
        self._owned: dict[bytes, list[int]] = {}  # token -> nodes at which it is written and is what F says
        self._written: dict[bytes, list[int]] = {}  # text -> nodes at which it is written and F says otherwise
        for i, own in zip(beyond, alignment.base.first([nodes.after(i) for i in beyond]), strict=True):
            self._owned.setdefault(own, []).append(i)
            after = nodes.after(i)
            for end in range(1, len(after) + 1):
                if after[:end] != own:
                    self._written.setdefault(after[:end], []).append(i)
        self._at_x = self._by_text.get(nodes.tail, [])
        self.log_prefix = self._prefix()

    def _gather(self, index: int, ids: Ids | NDArray[np.bool_]) -> NDArray[np.float64]:
        return self._rows[index][ids].astype(np.float64) + self._path[index]

    def _prefix(self) -> float:
        """log P(x from the start of the tail): the mass of all paths that write the tail, whatever follows."""
        if not self.nodes.tail:
            return 0.0
        parts = [np.array([self._path[i] for i in self._at_x])]
        for i, path in enumerate(self.nodes.paths):
            missing = self.nodes.missing(i)
            if missing:
                ids = self.alignment.local.beginning_with(missing)
                exact = self.alignment.local.id_of(missing)
                parts.append(self._gather(i, ids[ids != exact] if exact is not None else ids))
            elif self.nodes.after(i) and self.nodes.missing(self._index[path[:-1]]):
                parts.append(np.array([self._path[i]]))
        return _total(parts)

    def event(self, token: bytes) -> float:
        """log M(token | x); -inf where no path of the computed nodes leads to it."""
        if not self.alignment.tabled:
            return self._event_by_ranges(token)
        code = self.alignment.code(token)
        mass = float(self._tabled[code]) if code < len(self._tabled) else 0.0
        return math.log(mass) - self.log_prefix if mass > 0.0 else -math.inf

    def knows(self, paths: Set[Path]) -> bool:
        """Whether these are all among the nodes."""
        return paths <= self._index.keys()

    def event_by(self, token: bytes, paths: Set[Path]) -> float:
        """The same with no nodes but these, which are closed under their beginnings: what it would be had nothing else
        been asked for here.
        """
        among = [i for i, path in enumerate(self.nodes.paths) if path in paths]
        if self.alignment.tabled:
            code = self.alignment.code(token)
            parts = [self._gather(i, np.flatnonzero(self._tables[i] == code)) for i in among]
        else:
            own = set(among)
            parts = [values for i, values in self._parts_by_ranges(token) if i in own]
        ended = [i for i in self._owned.get(token, ()) if self.nodes.paths[i] not in paths]
        parts.append(np.array([self._path[i] for i in ended if self.nodes.paths[i][:-1] in paths]))
        return _total(parts) - self.log_prefix

    @cached_property
    def _tables(self) -> list[Ids]:
        places = range(len(self.nodes.paths))
        return [self.alignment.table(self.nodes.missing(i), self.nodes.after(i)) for i in places]

    @cached_property
    def _tabled(self) -> NDArray[np.float64]:
        """The masses of all events, by code."""
        tables = self._tables
        total = np.zeros(self.alignment.codes)
        for i, table in enumerate(tables):
            real = np.flatnonzero(table >= 0)
            if len(real):
                total += np.bincount(table[real], np.exp(self._gather(i, real)), minlength=len(total))
        return total

    def _event_by_ranges(self, token: bytes) -> float:
        return _total([values for _, values in self._parts_by_ranges(token)]) - self.log_prefix

    def _parts_by_ranges(self, token: bytes) -> list[tuple[int, NDArray[np.float64]]]:
        """What leads to an event, node by node."""
        tail, parts = self.nodes.tail, list[tuple[int, NDArray[np.float64]]]()
        text = tail + token
        for end in range(len(text)):
            for i in self._by_text.get(text[:end], ()):
                ids = self.alignment.leading_to(self.nodes.missing(i), self.nodes.after(i), token)
                parts.append((i, self._gather(i, ids)))
        for i in self._owned.get(token, ()):
            staying = self.alignment.staying(self.nodes.after(i), self._rows[i])
            parts.append((i, self._gather(i, staying)))
        for i in self._written.get(token, ()):
            parts.append((i, self._gather(i, self.alignment.leading_to(b"", self.nodes.after(i), token))))
        return parts

    def end(self) -> float:
        """log mass of the end of the text; -inf where the local vocabulary cannot write x."""
        return _total([self._gather(i, self._ends) for i in self._at_x]) - self.log_prefix

    def along(self, path: Path) -> float:
        """log mass of the part of `path` that was computed: its tokens up to one past the last node on it."""
        end = 0
        while end < len(path) and path[: end + 1] in self._index:
            end += 1
        mass = self._path[self._index[path[:end]]]
        if end < len(path):
            mass += float(self._rows[self._index[path[:end]]][path[end]])
        return mass - self.log_prefix

    def leaves(self, least: float, count: int) -> list[tuple[bytes, float]]:
        """The texts after x, with their log masses, of the `count` heaviest paths that end with a mass of at least
        `least`.
        """
        found: list[tuple[bytes, float]] = []
        spelling = self.alignment.local.spelling
        for i in range(len(self.nodes.paths)):
            missing, after = self.nodes.missing(i), self.nodes.after(i)
            if self._path[i] - self.log_prefix < math.log(least):
                continue
            row = self._rows[i] + np.float32(self._path[i] - self.log_prefix)
            ids = np.flatnonzero((row >= math.log(least)) & (self._rows[i] != np.float32(self._hidden[i])))
            ids = ids[np.argsort(-row[ids], kind="stable")][:count]
            texts = [(spelling[int(index)] or b"") for index in ids]
            found += [
                (after + text[len(missing) :], float(row[index]))
                for text, index in zip(texts, ids, strict=True)
                if len(text) > len(missing) and text.startswith(missing)
            ]
        return sorted(found, key=lambda pair: -pair[1])[:count]


def _total(parts: Sequence[NDArray[np.float64]]) -> float:
    return logsumexp(np.concatenate(parts)) if parts else -np.inf
