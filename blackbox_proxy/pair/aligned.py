"""Base and pair spell differently, or the base's spelling is unknown: candidates are events, scored over a tree."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from blackbox_proxy.pair.alignment import BUDGET, Alignment, Nodes
from blackbox_proxy.pair.masses import Masses
from blackbox_proxy.pair.protocol import Row
from blackbox_proxy.pair.side import Rows, Side, columns, scores_of, with_end
from blackbox_proxy.pair.tree import Path, TokenTree
from blackbox_proxy.types import How, Position, Scores, Token
from blackbox_proxy.vocabulary import Cutter, LearnedVocabulary

_HEAVY = 0.01  # mass from which on a path is followed until it has decided its event
_FOLLOWED = 16  # such paths per model and round
_ROUNDS = 8  # tokens that a path is followed at most
_LEAST = 1e-6  # mass below which nothing is proposed


class AlignedSession:
    """Scores candidates of a base with another (or an unknown) vocabulary as events."""

    def __init__(self, sides: Sequence[Side], alignment: Alignment, lock: threading.Lock) -> None:
        self._sides = sides
        self._alignment = alignment
        self._lock = lock

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        drafted = [position.token for position in positions]
        unknown = [j for j, token in enumerate(drafted) if token.bytes is None]
        positions = positions[: unknown[0] + 1] if unknown else positions  # what follows unknown bytes cannot be scored
        if isinstance(self._alignment.base, LearnedVocabulary):
            return [
                _LearningRow(self, self._alignment.base, (*issued, *drafted[:j]), position)
                for j, position in enumerate(positions)
            ]
        return self.score_all(issued, positions)

    def score_all(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        """`score` with the base's vocabulary as it is known now."""
        drafted = [position.token for position in positions]
        candidates = [_spellings(position.tokens[:BUDGET]) for position in positions]
        with self._lock:
            self._alignment.refresh()
            plans: dict[bytes, list[tuple[Path, Nodes]]] = {}
            views: list[list[_View]] = []
            for side in self._sides:
                read, rest = side.text_after(issued)
                if rest not in plans:  # both models usually stand at the same text and share one tree
                    plans[rest] = self._lay_out(side, rest, drafted, candidates)
                places = [_View(side, (*read, *root), nodes) for root, nodes in plans[rest]]
                _run(side, read, [(root, view) for (root, _), view in zip(plans[rest], places, strict=True)])
                views.append(places)
        rows = [
            _AlignedRow([column[j] for column in views], self._alignment, self._lock) for j in range(len(positions))
        ]
        return list(rows)

    def _lay_out(
        self, side: Side, rest: bytes, drafted: Sequence[Token], candidates: Sequence[Sequence[bytes]]
    ) -> list[tuple[Path, Nodes]]:
        """For each position the place where its own tail starts, as a path from the trunk, and its nodes from there."""
        laid = []
        root: Path = ()
        for j, tokens in enumerate(candidates):
            if j > 0:
                rest += drafted[j - 1].bytes or b""
            settled, rest = side.settle(rest)
            root += tuple(settled)
            laid.append((root, self._alignment.nodes(rest, tokens)))
        return laid

    def close(self) -> None:
        self._sides = ()


@dataclass(slots=True, eq=False)
class _View:
    """One position in one model: the ids up to the place where its tail starts, its nodes, and their rows once they
    are run.
    """

    side: Side
    read: tuple[int, ...]
    nodes: Nodes
    rows: list[Rows] = field(default_factory=list)


def _run(side: Side, read: Sequence[int], views: Sequence[tuple[Path, _View]]) -> None:
    """One forward pass over the nodes of all these positions."""
    tree = TokenTree()
    places = [[tree.add(root + path) for path in view.nodes.paths] for root, view in views]
    rows = columns(side.trunk.branch(read, tree.parents, tree.tokens))
    for (_, view), found in zip(views, places, strict=True):
        view.rows = [rows[i] for i in found]


def _spellings(tokens: Sequence[Token]) -> list[bytes]:
    """The candidates that are text: neither end, nor special, nor of unknown bytes."""
    return [token.bytes for token in tokens if token.bytes and not token.end]


class _LearningRow:
    """A row of a base whose vocabulary is learned. It is scored when it is looked at, and learned from only then.

    What is known at a place is so what the places before it on the way to it have shown, never what a draft showed
    that came to nothing: the text is the same for every draft. The price is a forward pass for each position.
    """

    limit: int | None = 128

    def __init__(
        self, session: AlignedSession, learned: LearnedVocabulary, issued: Sequence[Token], position: Position
    ) -> None:
        self._session = session
        self._learned = learned
        self._issued = issued
        self._position = position

    @cached_property
    def _row(self) -> Row:
        self._learned.learn([token.bytes for token in (*self._issued, *self._position.tokens) if token.bytes])
        return self._session.score_all(self._issued, [self._position])[0]

    def score(self, tokens: Sequence[Token]) -> Scores:
        return self._row.score(tokens)

    def propose(self, count: int) -> list[Token]:
        return self._row.propose(count)


class _AlignedRow:
    limit: int | None = 128

    def __init__(self, views: Sequence[_View], alignment: Alignment, lock: threading.Lock) -> None:
        self._views = views
        self._alignment = alignment
        self._lock = lock
        self._known: dict[bytes, tuple[list[float], How]] = {}

    @cached_property
    def _masses(self) -> list[Masses]:
        """Masses under each model, once no path of weight is left that has not decided its event.

        Most positions need no more than the pass that scored them. Further ones are run here where a model is about to
        write something that the base did not show: it is followed until the base's first token of it is known.
        """
        seen: set[bytes] = set()
        for _ in range(_ROUNDS):
            masses = [Masses(self._alignment, view.nodes, view.rows, view.side.ends) for view in self._views]
            leaves = [text for found in masses for text, _ in found.leaves(_HEAVY, _FOLLOWED)]
            undecided = [text for text in dict.fromkeys(leaves) if text not in seen and self._alignment.goes_on(text)]
            if not undecided:
                break
            seen.update(undecided)
            with self._lock:
                for view in self._views:
                    view.nodes = self._alignment.refined(view.nodes, undecided)
                    _run(view.side, view.read, [((), view)])
        return masses

    def score(self, tokens: Sequence[Token]) -> Scores:
        found = [self._score(token) for token in tokens]
        columns = [np.array([values[i] for values, _ in found]) for i in range(len(self._masses))]
        return scores_of(columns, [how for _, how in found])

    def _score(self, token: Token) -> tuple[list[float], How]:
        nothing: tuple[list[float], How] = ([-np.inf] * len(self._masses), "neutral")
        if token.end:
            values = [masses.end() for masses in self._masses]
            return (values, "exact") if all(map(math.isfinite, values)) else nothing
        if not token.bytes:
            return nothing
        if token.bytes not in self._known:
            values = [masses.event(token.bytes) for masses in self._masses]
            how: How = "exact"
            if not all(map(math.isfinite, values)):
                values, how = [self._along(masses, token.bytes) for masses in self._masses], "prefix"
            self._known[token.bytes] = (values, how) if all(map(math.isfinite, values)) else nothing
        return self._known[token.bytes]

    def _along(self, masses: Masses, token: bytes) -> float:
        path = self._alignment.canonical(masses.nodes.tail + token)
        return masses.along(path) if path else -np.inf

    def propose(self, count: int) -> list[Token]:
        leaves = self._masses[0].leaves(_LEAST, 2 * count)
        texts = [(text, mass) for text, mass in leaves if not self._alignment.goes_on(text)]
        firsts = self._alignment.base.first([text for text, _ in texts])
        found: dict[bytes, float] = {}
        for first, (_, mass) in zip(firsts, texts, strict=True):
            found[first] = float(np.logaddexp(found.get(first, -np.inf), mass))
        ordered = sorted(found.items(), key=lambda item: -item[1])[:count]
        base: Cutter = self._alignment.base
        return with_end([(base.token(spelling), mass) for spelling, mass in ordered], self._masses[0].end(), count)
