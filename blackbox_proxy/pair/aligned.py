"""Base and pair spell differently, or the base's spelling is unknown: candidates are events, scored over a tree."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from blackbox_proxy.aligning.alignment import BUDGET, Alignment, Nodes
from blackbox_proxy.aligning.learned import Bases
from blackbox_proxy.aligning.tree import Path, TokenTree
from blackbox_proxy.background import checkpoint
from blackbox_proxy.models.outputs import Outputs, Rows
from blackbox_proxy.pair.masses import Masses
from blackbox_proxy.pair.side import Side, scores_of, side_by_side, until_unknown, with_end
from blackbox_proxy.protocols import Row
from blackbox_proxy.text.vocabulary import Cutter
from blackbox_proxy.types import How, Position, Scores, Token

_HEAVY = 0.01  # mass from which on a path is followed until it has decided its event
_FOLLOWED = 16  # such paths per model and round
_ROUNDS = 8  # tokens that a path is followed at most
_LEAST = 1e-6  # mass below which nothing is proposed
_SAME = 2e-5  # nats: a mass that other candidates' nodes move by more is an estimate of the event's


class AlignedSession:
    """Scores candidates of a base with another (or an unknown) vocabulary as events."""

    def __init__(
        self,
        sides: Sequence[Side],
        bases: Bases,
        lock: threading.Lock,
        running: AbstractContextManager[object],
    ) -> None:
        self._sides = sides
        self._bases = bases
        self.lock = lock  # of what the alignment remembers
        self._running = running  # of the models

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        positions = until_unknown(positions)
        drafted = [position.token for position in positions]
        candidates = [_spellings(position.tokens[:BUDGET]) for position in positions]
        views: list[list[_View]] = []
        with self.lock:
            alignments = self._bases.alignments(issued, positions)
            plans: dict[bytes, list[tuple[Path, Nodes]]] = {}
            for side in self._sides:
                read, rest = side.text_after(issued)
                if rest not in plans:  # both models usually stand at the same text and share one tree
                    plans[rest] = self._lay_out(side, rest, drafted, candidates, alignments)
                own = zip(plans[rest], alignments, strict=True)
                views.append([_View(side, alignment, tuple(read), root, nodes) for (root, nodes), alignment in own])
        self.run(views)
        if any(view.partial for places in views for view in places):
            with self.lock:
                for j, tokens in enumerate(candidates):
                    for places in views:
                        places[j].name(tokens)
            self.run(views, named=True)
        return [_AlignedRow(self, alignment, [own[j] for own in views]) for j, alignment in enumerate(alignments)]

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        """Ask models that show only some ids about tokens that they were not asked about."""
        for row, tokens in wanted:
            assert isinstance(row, _AlignedRow)
            unnamed = row.unnamed(_spellings(tokens))
            if unnamed:
                row.sum(self.extended(row.views, (), unnamed))

    def extended(self, views: Sequence[_View], undecided: Iterable[bytes], tokens: Iterable[bytes]) -> list[Masses]:
        """The masses at one position, after one more pass over the nodes for these texts and tokens as well."""
        for view in views:  # the way to this place is read for good, by now
            view.read, view.root = (*view.read, *view.root), ()
        self.plan(views, undecided, tokens)
        self.run([[view] for view in views], named=any(view.partial for view in views))
        return self.summed(views)

    def summed(self, views: Sequence[_View]) -> list[Masses]:
        return [Masses(view.alignment, view.nodes, view.rows, view.side.ends, view.hidden) for view in views]

    def run(self, views: Sequence[Sequence[_View]], named: bool = False) -> None:
        """One pass of each model over the nodes of its views; with `named`, for what they name, too."""
        with self._running:
            side_by_side([places[0].side for places in views], lambda i: _run(views[i], named))

    def plan(self, views: Sequence[_View], undecided: Iterable[bytes], tokens: Iterable[bytes]) -> None:
        """Add the nodes for these texts (`refined`) and these tokens (`reaching`)."""
        with self.lock:
            for view in views:
                view.nodes = view.alignment.refined(view.nodes, undecided)
                if tokens:
                    view.nodes = view.alignment.reaching(view.nodes, tokens)
                    view.name(tokens)

    def _lay_out(
        self,
        side: Side,
        rest: bytes,
        drafted: Sequence[Token],
        candidates: Sequence[Sequence[bytes]],
        alignments: Sequence[Alignment],
    ) -> list[tuple[Path, Nodes]]:
        """For each position the place where its own tail starts, as a path from the trunk, and its nodes from there."""
        laid = []
        root: Path = ()
        for j, tokens in enumerate(candidates):
            checkpoint()
            if j > 0:
                rest += drafted[j - 1].bytes or b""
            settled, rest = side.settle(rest)
            root += tuple(settled)
            laid.append((root, alignments[j].nodes(rest, tokens)))
        return laid

    def read(self, issued: Sequence[Token]) -> None:
        for side in self._sides:
            side.text.read(side.text_after(issued)[0])

    def close(self) -> None:
        for side in self._sides:
            side.text.close()
        self._sides = ()


@dataclass(slots=True, eq=False)
class _View:
    """One position in one model: the ids that are read for good, the path from there to the place where its tail
    starts, its nodes from that, and their rows once they are run.

    `asked`: path of a node -> the ids there of which the model's own word is wanted. `tokens`: those they stand for.
    """

    side: Side
    alignment: Alignment
    read: tuple[int, ...]
    root: Path
    nodes: Nodes
    rows: list[Rows] = field(default_factory=list)
    hidden: list[float] = field(default_factory=list)
    asked: dict[Path, set[int]] = field(default_factory=dict)
    tokens: set[bytes] = field(default_factory=set)

    @property
    def partial(self) -> bool:
        """Whether some row leaves out ids."""
        return any(map(math.isfinite, self.hidden))

    def name(self, tokens: Iterable[bytes]) -> None:
        """Want the last id of the usual spelling of each of these tokens of the base, and the ends."""
        tail = self.nodes.tail
        for path, text in zip(self.nodes.paths, self.nodes.texts, strict=True):
            if text == tail:
                self.asked.setdefault(path, set()).update(self.side.ends.tolist())
        for token in tokens:
            self.tokens.add(token)
            usual = self.alignment.canonical(tail + token)
            if usual:
                self.asked.setdefault(usual[:-1], set()).add(usual[-1])


def _run(views: Sequence[_View], named: bool = False) -> None:
    """One pass over the nodes of all these positions of one model."""
    if len(views) > 1 and named:
        _branch(views, named)  # asks for everything at once; then each row has what its own position wants, no more
        for view in views:
            _run([view], named)
        return
    shown, places = _branch(views, named)
    for view, found in zip(views, places, strict=True):
        view.rows = [shown.row(i) for i in found]
        view.hidden = [float(shown.hidden[i]) for i in found]


def _branch(views: Sequence[_View], named: bool) -> tuple[Outputs, list[list[int]]]:
    """What a model shows at the nodes of these positions, and the rows of each."""
    tree = TokenTree()
    places = [[tree.add(view.root + path) for path in view.nodes.paths] for view in views]
    wanted: dict[int, set[int]] = {}
    for view, found in zip(views, places, strict=True):
        for path, row in zip(view.nodes.paths, found, strict=True):
            if path in view.asked:
                wanted.setdefault(row, set()).update(view.asked[path])
    for parent, token in zip(tree.parents, tree.tokens, strict=True):  # what the mass of a node hangs on
        wanted.setdefault(parent + 1, set()).add(token)
    text = views[0].side.text
    return text.branch(views[0].read, tree.parents, tree.tokens, wanted if named else None), places


def _spellings(tokens: Sequence[Token]) -> list[bytes]:
    """The candidates that are text: neither end, nor special, nor of unknown bytes."""
    return [token.bytes for token in tokens if token.bytes and not token.end]


class _AlignedRow:
    limit: int | None = 128

    def __init__(self, session: AlignedSession, alignment: Alignment, views: Sequence[_View]) -> None:
        self.views = views
        self._session = session
        self._alignment = alignment
        self._partial = any(view.partial for view in views)
        self._followed: list[bytes] = []
        self._proposed: dict[tuple[int, int], list[Token]] = {}

    @cached_property
    def _masses(self) -> list[Masses]:
        """Masses under each model, once no path of weight is left that has not decided its event.

        Most positions need no more than the pass that scored them. Further ones are run here where a model is about to
        write something that the base did not show: it is followed until the base's first token of it is known.
        """
        seen: set[bytes] = set()
        self.sum(self._session.summed(self.views))
        for _ in range(_ROUNDS):
            checkpoint()
            leaves = [text for found in self._masses for text, _ in found.leaves(_HEAVY, _FOLLOWED)]
            undecided = [text for text in dict.fromkeys(leaves) if text not in seen and self._alignment.goes_on(text)]
            if not undecided:
                break
            seen.update(undecided)
            self._followed += undecided
            self.sum(self._session.extended(self.views, undecided, ()))
        return self._masses

    def sum(self, masses: list[Masses]) -> None:
        self._masses = masses
        self._known: dict[bytes, tuple[list[float], How]] = {}

    def unnamed(self, tokens: Iterable[bytes]) -> list[bytes]:
        """Those that models which show only some ids were not asked about."""
        return [token for token in dict.fromkeys(tokens) if self._partial and token not in self.views[0].tokens]

    def score(self, tokens: Sequence[Token]) -> Scores:
        found = [self._score(token) for token in tokens]
        columns = [np.array([values[i] for values, _ in found]) for i in range(len(self._masses))]
        unnamed = set(self.unnamed(_spellings(tokens)))
        unasked = np.array([not token.end and token.bytes in unnamed for token in tokens], dtype=np.bool_)
        return scores_of(columns, [how for _, how in found], np.where(unasked, np.inf, 0.0))

    def _score(self, token: Token) -> tuple[list[float], How]:
        nothing: tuple[list[float], How] = ([-np.inf] * len(self._masses), "neutral")
        if token.end:
            values = [masses.end() for masses in self._masses]
            return (values, self._whole) if all(map(math.isfinite, values)) else nothing
        if not token.bytes:
            return nothing
        if token.bytes not in self._known:
            values = [masses.event(token.bytes) for masses in self._masses]
            how = self._whole if self._partial or self._settled(token.bytes, values) else "estimated"
            if not all(map(math.isfinite, values)):
                values, how = [self._along(masses, token.bytes) for masses in self._masses], "prefix"
            self._known[token.bytes] = (values, how) if all(map(math.isfinite, values)) else nothing
        return self._known[token.bytes]

    def _settled(self, token: bytes, values: Sequence[float]) -> bool:
        """Whether the masses are the same whatever else is asked for at this place: all nodes of the token are known,
        and those of others change nothing.
        """
        for masses, value in zip(self._masses, values, strict=True):
            with self._session.lock:
                usual = self._alignment.canonical(masses.nodes.tail + token)
                if usual is None or not masses.knows({usual[:-1]}):
                    return False  # found without its other ways, of which there may be many
                own = self._alignment.own_paths(masses.nodes.tail, token)
                if not masses.knows(own):
                    return False
                alone = masses.event_by(token, own | self._followed_paths(masses.nodes.tail))
            if not abs(alone - value) <= _SAME:
                return False
        return True

    def _followed_paths(self, tail: bytes) -> frozenset[Path]:
        return frozenset(self._alignment.refined(Nodes(tail, (), ()), self._followed).paths)

    @property
    def _whole(self) -> How:
        """What a mass is that was summed over rows: with some ids left out, an estimate went into it."""
        return "prefix" if self._partial else "exact"

    def _along(self, masses: Masses, token: bytes) -> float:
        path = self._alignment.canonical(masses.nodes.tail + token)
        return masses.along(path) if path else -np.inf

    def propose(self, count: int, model: int = 0) -> list[Token]:
        if (count, model) not in self._proposed:  # asked again for every alpha; what is refined later changes none
            self._proposed[count, model] = self._propose(count, model)
        return self._proposed[count, model]

    def _propose(self, count: int, model: int) -> list[Token]:
        masses = self._masses[min(model, len(self._masses) - 1)]
        leaves = masses.leaves(_LEAST, 2 * count)
        texts = [(text, mass) for text, mass in leaves if not self._alignment.goes_on(text)]
        firsts = self._alignment.base.first([text for text, _ in texts])
        found: dict[bytes, float] = {}
        for first, (_, mass) in zip(firsts, texts, strict=True):
            found[first] = float(np.logaddexp(found.get(first, -np.inf), mass))
        ordered = sorted(found, key=lambda first: -found[first])[:count]
        base: Cutter = self._alignment.base
        log_masses = np.array([found[first] for first in ordered])
        return with_end([base.token(first) for first in ordered], log_masses, masses.end(), count)
