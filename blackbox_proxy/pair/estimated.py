"""Base and pair spell differently: every candidate is estimated from the row after the text, and what could matter is
summed.

One pass of each model over the draft gives the row after each of its places. From it come, for all positions at once,
the mass of every candidate (crossing.R) and how far its offset may be off (`Scores.error`): by what could be written in
pieces (a share `_PIECES` of the tokens that begin the candidate), and by what usually goes on from it. Who weighs them
asks for the exact mass of those that could change a choice (`refine`), for all positions of a draft at once: that is
the second pass, over new nodes only, and mostly there is nothing to read in it. What comes out depends on the text and
on what is refined there, never on the draft or on what was asked before.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.pair.alignment import Alignment
from blackbox_proxy.pair.contended import TOP, Bridges, Way, contended_mass, ways
from blackbox_proxy.pair.crossing import Crossing, Relations
from blackbox_proxy.pair.outputs import Outputs
from blackbox_proxy.pair.side import Side, scores_of, until_unknown, with_end
from blackbox_proxy.pair.tree import Path, TokenTree
from blackbox_proxy.protocols import Row
from blackbox_proxy.text.vocabulary import Ids, LearnedVocabulary, Vocabulary, utf8_prefix
from blackbox_proxy.types import Floats, How, Position, Scores, Token

_PIECES = 0.01  # of the mass of shorter tokens that begin a candidate: what may be written on to it against the habit
# How far an offset may be off, nats. Measured on Gemma 3's candidates within 3 nats of the best, under SmolLM2 and a
# tuned copy, against the best one's: 0.00 at 90 % where nothing goes on from a token, 0.05 (at most 0.26) where
# something does, 0.58 (at most 0.92) across the end of x.
_ENDS = 0.02
_GOES_ON = 0.2
_ACROSS = 0.7
_IN_PIECES = 1.5  # nats: of a candidate that no local token covers, known by the first of its pieces
_LEAST = 1e-6  # mass below which nothing is proposed
_PROPOSED = 64  # tokens of a place that are proposed and estimated with its candidates: what a tail usually takes


class Bases:
    """What is known of the base at each place: always the same, or what its candidates have shown on the way there."""

    def __init__(self, local: Vocabulary, known: tuple[Crossing, Alignment] | None) -> None:
        self._local = local
        self._known = known
        self._shown: dict[int, tuple[bytes, ...]] = {}  # way to a place -> the candidates there

    def at(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[tuple[Crossing, Alignment]]:
        """For each position of a draft after these tokens."""
        if self._known is not None:
            return [self._known] * len(positions)
        way, spellings = 0, list[bytes]()
        for token in issued:
            spellings += self._shown.get(way, ())
            spellings += _bytes([token])
            way = hash((way, token.key))
        found = []
        for position in positions:
            if len(position.tokens):
                self._shown[way] = tuple(_bytes(position.tokens))
            spellings += self._shown.get(way, ())
            learned = LearnedVocabulary()
            learned.learn(spellings)
            alignment = Alignment(self._local, learned)
            found.append((Crossing(alignment), alignment))
            spellings += _bytes([position.token])
            way = hash((way, position.token.key))
        return found


def _bytes(tokens: Sequence[Token | None]) -> list[bytes]:
    return [token.bytes for token in tokens if token is not None and token.bytes]


class _Estimate(NamedTuple):
    """Log masses of a token under each model, by that of x; how far their difference may be off, nats; whether they are
    sums, or only what the first of the token's pieces has.
    """

    masses: tuple[float, ...]
    error: float
    summed: bool


@dataclass(slots=True, eq=False)
class _View:
    """One position in one model: where its tail starts, as a path from what is read, the tail, and its usual spelling
    (None where the vocabulary cannot write it). `places`: node -> what the model says there. `ways`: what is summed.
    """

    root: Path
    tail: bytes
    at_x: Path | None
    places: dict[Path, tuple[Outputs, int]] = field(default_factory=dict)
    ways: dict[bytes, Way] = field(default_factory=dict)

    @property
    def after_x(self) -> tuple[Outputs, int]:
        """What the model says after x; behind a tail that it cannot write, after what is before that."""
        return self.places[self.at_x or ()]


class _Pass:
    """What one model has said of one draft."""

    def __init__(self, read: list[int], views: Sequence[_View]) -> None:
        self._read = read
        self._chain = views[-1].root + (views[-1].at_x or ())
        self._tree = TokenTree()
        self._tree.add(self._chain)
        for view in views:
            self._tree.add(view.root + (view.at_x or ()))
        self._outputs: Outputs | None = None

    def run(self, side: Side, views: Sequence[_View]) -> None:
        """Over the draft: what the model says at each node of each position."""
        outputs = self._outputs = side.text.branch(self._read, self._tree.parents, self._tree.tokens)
        for view in views:
            at_x = view.at_x or ()
            for end in range(len(at_x) + 1):
                view.places[at_x[:end]] = (outputs, self._tree.add(view.root + at_x[:end]))

    def run_more(self, side: Side, views: Sequence[_View]) -> int:
        """Over the nodes of the views' ways that are not known yet; how many there were. They hang on the draft's own
        path, which is not read again.
        """
        assert self._outputs is not None
        tree = TokenTree(self._chain)
        new: list[tuple[_View, Path]] = []
        for view in views:
            for path in dict.fromkeys(node for way in view.ways.values() for node in way.nodes):
                if path in view.places:
                    continue
                known = self._tree.row(view.root + path)
                if known is None:
                    new.append((view, path))
                    tree.add(view.root + path)
                else:
                    view.places[path] = (self._outputs, known)
        if new:
            outputs = side.text.more([*self._read, *self._chain], tree.parents, tree.tokens)
            for view, path in new:
                view.places[path] = (outputs, tree.add(view.root + path) - 1)
        return len(tree)


class EstimatedSession:
    """Scores candidates of a base with another (or an unknown) vocabulary."""

    def __init__(self, sides: Sequence[Side], bases: Bases, lock: threading.Lock) -> None:
        self._sides = sides
        self._bases = bases
        self.lock = lock  # of what the alignment remembers
        self._passes: list[_Pass] = []
        self.nodes = 0  # that were read beyond the drafts' own paths

    def read(self, issued: Sequence[Token]) -> None:
        for side in self._sides:
            read, rest = side.text_after(issued)
            (path,) = side.model.vocabulary.encode([rest[: utf8_prefix(rest)]])
            side.text.read([*read, *path])

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        positions = until_unknown(positions)
        drafted = [position.token for position in positions]
        with self.lock:
            known = self._bases.at(issued, positions)
            laid: dict[bytes, list[tuple[Path, bytes, Path | None]]] = {}
            views: list[list[_View]] = []
            self._passes = []
            for side in self._sides:
                read, rest = side.text_after(issued)
                if rest not in laid:  # both models usually stand at the same text
                    laid[rest] = _lay_out(side, known, rest, [token.bytes or b"" for token in drafted])
                views.append([_View(*place) for place in laid[rest]])
                self._passes.append(_Pass(list(read), views[-1]))
        for side, one, own in zip(self._sides, self._passes, views, strict=True):
            one.run(side, own)
        rows = [
            EstimatedRow(self, crossing, alignment, [own[j] for own in views], [side.ends for side in self._sides])
            for j, (crossing, alignment) in enumerate(known[: len(positions)])
        ]
        estimate(
            [
                (row, [*position.tokens[: row.limit or None], *row.propose(_PROPOSED)])
                for row, position in zip(rows, positions, strict=True)
            ]
        )
        return list(rows)

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        """Sum the masses of these tokens, in one pass of each model over all nodes that are new."""
        asked = [(row, tokens) for row, tokens in wanted if isinstance(row, EstimatedRow)]
        with self.lock:
            for row, tokens in asked:
                row.lay_out([token.bytes for token in tokens if token.bytes and not token.end])
        for i, (side, one) in enumerate(zip(self._sides, self._passes, strict=True)):
            self.nodes += one.run_more(side, [row.views[i] for row, _ in asked])
        with self.lock:
            for row, _ in asked:
                row.sum_up()

    def close(self) -> None:
        for side in self._sides:
            side.text.close()
        self._sides = ()


def _lay_out(
    side: Side, known: Sequence[tuple[Crossing, Alignment]], rest: bytes, drafted: Sequence[bytes]
) -> list[tuple[Path, bytes, Path | None]]:
    """For each position the place where its own tail starts, as a path from what is read, the tail, its spelling."""
    tails: list[tuple[Path, bytes]] = []
    root: Path = ()
    for j in range(len(known)):
        if j > 0:
            rest += drafted[j - 1]
        settled, rest = side.settle(rest)
        root += tuple(settled)
        tails.append((root, rest))
    paths = known[0][1].canonicals([tail for _, tail in tails])
    return [(root, tail, path) for (root, tail), path in zip(tails, paths, strict=True)]


class EstimatedRow:
    """A position's candidates under both models. Scoring is arithmetic over what has been read."""

    limit: int | None = 128

    def __init__(
        self,
        session: EstimatedSession,
        crossing: Crossing,
        alignment: Alignment,
        views: Sequence[_View],
        ends: Sequence[Ids],
    ) -> None:
        self.views = views
        self.crossing = crossing
        self.lock = session.lock
        self._alignment = alignment
        self._ends = ends
        self._known: dict[bytes, _Estimate] = {}
        self._exact: dict[bytes, tuple[float, ...]] = {}
        self.bridges = [Bridges(alignment, view.tail, view.at_x or (), view.places) for view in views]
        self._shift = tuple(-math.log(1.0 + bridges.total) for bridges in self.bridges)
        self._bridged = any(bridges.total for bridges in self.bridges)
        self._proposed: dict[int, tuple[int, list[Token]]] = {}
        self._wanted: list[bytes] = []
        self._log_end: list[float] | None = None
        self._spelled = all(view.at_x is not None for view in views)

    # -- arithmetic -----------------------------------------------------------------------------------------------

    def score(self, tokens: Sequence[Token]) -> Scores:
        estimate([(self, tokens)])
        sides = len(self.views)
        columns = np.full((sides, len(tokens)), -np.inf)
        error = np.zeros(len(tokens))
        how: list[How] = []
        for i, token in enumerate(tokens):
            kind: How = "neutral"
            if not self._spelled:
                pass
            elif token.end:
                columns[:, i], kind = self._end(), "exact"
            elif token.bytes in self._exact:
                columns[:, i], kind = self._exact[token.bytes or b""], "exact"
            elif token.bytes in self._known:
                estimated = self._known[token.bytes or b""]
                columns[:, i], kind = np.array(estimated.masses) + self._shift, "estimated"
                error[i] = estimated.error
            how.append(kind)
        return scores_of(list(columns), how, error)

    def _end(self) -> list[float]:
        if self._log_end is None:
            self._log_end = []
            for view, ends in zip(self.views, self._ends, strict=True):
                outputs, place = view.after_x
                values = outputs.gather(np.full(len(ends), place), ends)
                self._log_end.append(float(np.logaddexp.reduce(values)) if len(values) else -np.inf)
        return [value + shift for value, shift in zip(self._log_end, self._shift, strict=True)]

    def missing(self, tokens: Sequence[Token]) -> list[bytes]:
        """Those of these tokens that have not been estimated yet."""
        known, exact = self._known, self._exact
        spelled = [token.bytes for token in tokens if token.bytes and not token.end]
        return list(dict.fromkeys(text for text in spelled if text not in known and text not in exact))

    def keep(self, token: bytes, estimate: _Estimate) -> None:
        self._known[token] = estimate

    def suspects(self, token: bytes) -> bytes | None:
        """The text of tail and token, if something is written across the end of x, and this token can be part of it."""
        tail = self.views[0].tail
        return tail + token if self._bridged and self._alignment.local.joins(tail[-1], token[0]) else None

    def leaves_tail(self, text: bytes) -> bool:
        """Whether the usual spelling of tail and token is another than the tail's, with more behind it."""
        at_x = self.views[0].at_x or ()
        return (self._alignment.canonical(text) or ())[: len(at_x)] != at_x

    @property
    def alignment(self) -> Alignment:
        return self._alignment

    def propose(self, count: int, model: int = 0) -> list[Token]:
        model = min(model, len(self.views) - 1)
        if not self._spelled:
            return []
        most, found = self._proposed.get(model, (0, []))
        if most < count:
            found = self._propose(max(count, _PROPOSED), model)
            self._proposed[model] = (max(count, _PROPOSED), found)
        return found[:count]

    def _propose(self, count: int, model: int) -> list[Token]:
        outputs, place = self.views[model].after_x
        ids, values = outputs.top(place, max(count, TOP))
        likely = values > np.log(_LEAST)
        firsts = self.crossing.first(ids[likely].tolist())
        found: dict[bytes, float] = {}
        for first, value in zip(firsts, values[likely].tolist(), strict=True):
            if first:
                found[first] = float(np.logaddexp(found.get(first, -np.inf), value))
        for first, value in self.bridges[model].likely(TOP):
            found[first] = float(np.logaddexp(found.get(first, -np.inf), value))
        found = {token: value + self._shift[model] for token, value in found.items()}
        found |= {token: masses[model] for token, masses in self._exact.items()}
        ordered = sorted(found.items(), key=lambda item: -item[1])[:count]
        proposed = [(self.crossing.base.token(token), mass) for token, mass in ordered if np.isfinite(mass)]
        return with_end(proposed, self._end()[model], count)

    # -- sums -----------------------------------------------------------------------------------------------------

    def lay_out(self, tokens: Sequence[bytes]) -> None:
        """Say how these tokens are written, and with it which nodes their masses need, in `views[…].ways`."""
        self._wanted = [token for token in dict.fromkeys(tokens) if token not in self._exact and token in self._known]
        for view in self.views:
            spelled = ways(self._alignment, view.tail, self._wanted) if view.at_x is not None else []
            view.ways = {way.token: way for way in spelled}

    def sum_up(self) -> None:
        self._proposed.clear()
        columns: list[dict[bytes, float]] = []
        shifts = []
        for i, (view, bridges) in enumerate(zip(self.views, self.bridges, strict=True)):
            others: dict[Path, float] = {}
            masses = {
                token: contended_mass(bridges, view.tail, way, self._before_sums(token, i), others)
                for token, way in view.ways.items()
            }
            shifts.append(-math.log(1.0 + bridges.total + sum(others.values())))
            columns.append({t: math.log(mass) + shifts[-1] if mass > 0.0 else -math.inf for t, mass in masses.items()})
        self._shift = tuple(min(old, new) for old, new in zip(self._shift, shifts, strict=True))
        for token in self._wanted:
            if all(token in column for column in columns):
                self._exact[token] = tuple(column[token] for column in columns)
            else:  # the local vocabulary cannot write it
                self._known[token] = self._known[token]._replace(error=0.0)

    def _before_sums(self, token: bytes, model: int) -> float:
        """The mass of a token by that of x, as far as it was found without a node of its own."""
        known = self._known[token]
        return math.exp(known.masses[model]) if known.summed else 0.0


def estimate(wanted: Sequence[tuple[EstimatedRow, Sequence[Token]]]) -> None:
    """Estimate the masses of these tokens at these rows, where they are not known: one gather a model for all."""
    entries: list[tuple[EstimatedRow, bytes, Relations]] = []
    for row, tokens in wanted:
        missing = row.missing(tokens)
        entries += [(row, text, found) for text, found in zip(missing, row.crossing.of(missing), strict=True)]
    if not entries:
        return
    covering = [found.covering for _, _, found in entries]
    leading = [found.leading for _, _, found in entries]
    begins = np.array([found.begins for _, _, found in entries], dtype=np.int64)
    suspects = {j: text for j, (row, token, _) in enumerate(entries) if (text := row.suspects(token))}
    across = _across(entries, suspects)
    sums, firsts, shares = [], [], []
    for i in range(len(wanted[0][0].views)):
        said = entries[0][0].views[i].after_x[0]  # of one draft: one pass
        places = np.array([row.views[i].after_x[1] for row, _, _ in entries], dtype=np.int64)
        total, lead = _summed(said, places, covering), _summed(said, places, leading)
        for j in suspects:
            row, text, _ = entries[j]
            total[j] += row.bridges[i].mass(text) if row.bridges[i].total else 0.0
        firsts.append(np.where(begins >= 0, said.gather(places, np.maximum(begins, 0)), -np.inf))
        sums.append(total)
        shares.append(lead / np.maximum(total, 1e-300))
    summed = np.min(sums, axis=0) > 0.0
    goes_on = np.array([found.goes_on for _, _, found in entries])
    error = np.log1p(_PIECES * np.max(shares, axis=0)) + np.where(goes_on, _GOES_ON, _ENDS) + _ACROSS * across
    error = np.where(summed, error, _IN_PIECES)
    with np.errstate(divide="ignore"):
        masses = [np.where(summed, np.log(total), first) for total, first in zip(sums, firsts, strict=True)]
    for j, (row, text, _) in enumerate(entries):
        row.keep(text, _Estimate(tuple(float(own[j]) for own in masses), float(error[j]), bool(summed[j])))


def _across(
    entries: Sequence[tuple[EstimatedRow, bytes, Relations]], suspects: Mapping[int, bytes]
) -> NDArray[np.bool_]:
    """Which candidates the local tokenizer would write across the end of x (" Yor" + "k" as " York"). suspects: place
    among the entries -> the text of tail and token.
    """
    across = np.zeros(len(entries), dtype=np.bool_)
    rows = {j: entries[j][0] for j in suspects}
    for lock in {id(row.lock): row.lock for row in rows.values()}.values():
        with lock:
            for alignment in {id(row.alignment): row.alignment for row in rows.values()}.values():
                alignment.spell([suspects[j] for j, row in rows.items() if row.alignment is alignment])
            for j, row in rows.items():
                across[j] = row.leaves_tail(suspects[j])
    return across


def _summed(outputs: Outputs, places: Ids, ids: Sequence[Ids]) -> Floats:
    """The probability of each set of ids at its place, (c,)."""
    sizes = np.array([len(some) for some in ids])
    total = np.zeros(len(ids))
    if sizes.sum() == 0:
        return total
    values = np.exp(outputs.gather(np.repeat(places, sizes), np.concatenate(ids).astype(np.int64)))
    filled = np.flatnonzero(sizes)
    total[filled] = np.add.reduceat(values, np.concatenate([[0], np.cumsum(sizes[filled])[:-1]]))
    return total
