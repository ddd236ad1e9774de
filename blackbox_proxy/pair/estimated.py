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
from functools import partial

import numpy as np

from blackbox_proxy.aligning.alignment import Alignment
from blackbox_proxy.aligning.crossing import Crossing
from blackbox_proxy.aligning.learned import Bases
from blackbox_proxy.aligning.tree import Path
from blackbox_proxy.aligning.writing import before_a_word, begun_by, written
from blackbox_proxy.background import checkpoint
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.pair.ahead import read_ahead
from blackbox_proxy.pair.contended import TOP, Bridges, Way, contended_mass, ways
from blackbox_proxy.pair.estimates import Estimates, Known, doubt_of, estimate, estimate_anew, what_begins
from blackbox_proxy.pair.passes import Pass, View, pass_over
from blackbox_proxy.pair.side import Side, scores_of, side_by_side, until_unknown, with_end
from blackbox_proxy.protocols import Row
from blackbox_proxy.text.vocabulary import Ids, utf8_prefix
from blackbox_proxy.types import Floats, How, Position, Scores, Token

_ONWARD = 4  # local tokens that are followed from a beginning to the longer tokens of the base that it becomes
_FOLLOWED = 0.02  # of the expert's mass: a beginning with less is not followed
_NAMED = 8  # ids that begin a token, of which a model that shows only some ids is asked
_LITTLE = 0.01  # of a mass: a model that shows only some ids is not asked about one that has less than that
_PROPOSED = 64  # tokens of a place that are looked for: what candidates and tail usually take
_BEYOND = 32  # of those, beyond the candidates, that are estimated with them: what a tail usually takes


class EstimatedSession:
    """Scores candidates of a base with another (or an unknown) vocabulary."""

    def __init__(self, sides: Sequence[Side], bases: Bases, lock: threading.Lock) -> None:
        self._sides = sides
        self._bases = bases
        self.lock = lock  # of what the alignment remembers
        self._passes: list[Pass] = []
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
            ahead = read_ahead(positions, [crossing for crossing, _ in known])
            laid: dict[bytes, list[tuple[Path, bytes, Path | None, Path | None]]] = {}
            nodes: dict[bytes, list[list[Path]]] = {}
            views: list[list[View]] = []
            self._passes = []
            for side in self._sides:
                read, rest = side.text_after(issued)
                if rest not in laid:  # both models usually stand at the same text
                    laid[rest] = _lay_out(side, known, rest, [token.bytes or b"" for token in drafted])
                    nodes[rest] = [
                        [node for way in ways(alignment, tail, some) for node in way.nodes] if some and at_x else []
                        for (_, alignment), (_, tail, at_x, _), some in zip(known, laid[rest], ahead, strict=False)
                    ]
                views.append([View(*place) for place in laid[rest]])
                self._passes.append(pass_over(side.text, read, views[-1], nodes[rest]))
        side_by_side(self._sides, lambda i: self._passes[i].run(views[i]))
        table, ends = Estimates(len(self._sides)), [side.ends for side in self._sides]
        rows = [
            EstimatedRow(table, self.lock, position.tokens, *own, [view[j] for view in views], ends)
            for j, (position, own) in enumerate(zip(positions, known, strict=False))
        ]
        propose(rows)
        estimate([(row, [*row.shown, *row.beyond()]) for row in rows])
        return list(rows)

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        """Sum the masses of these tokens, in one pass of each model over all nodes that are new."""
        asked = [(row, tokens) for row, tokens in wanted if isinstance(row, EstimatedRow)]
        with self.lock:
            texts: dict[Alignment, list[tuple[bytes, bytes]]] = {}
            for row, tokens in asked:
                spelled = [token.bytes for token in tokens if token.bytes and not token.end]
                own = texts.setdefault(row.alignment, [])
                for tail in {view.tail for view in row.views}:
                    own += [(tail, text) for text in spelled]
            for alignment, some in texts.items():  # in one batch what lay_out looks at one by one
                written(alignment, some)
            for row, tokens in asked:
                row.lay_out(tokens)
        self._run_more([row for row, _ in asked])
        for row, _ in asked:
            row.look_again()
        with self.lock:
            for row, _ in asked:
                row.sum_up()
        self._follow([row for row, _ in asked])
        estimate([(row, row.beyond()) for row, _ in asked])

    def _follow(self, rows: Sequence[EstimatedRow]) -> None:
        """Find the tokens whose beginnings were summed and had gone on: they may not have been among the candidates."""
        for _ in range(_ONWARD):
            rows = [row for row in rows if row.onward]
            if not rows:
                return
            with self.lock:
                for row in rows:
                    row.lay_out_onward()
            self._run_more(rows)
            with self.lock:
                for row in rows:
                    row.follow()

    def _run_more(self, rows: Sequence[EstimatedRow]) -> None:
        self.nodes += sum(side_by_side(self._sides, lambda i: self._passes[i].run_more([row.views[i] for row in rows])))

    def close(self) -> None:
        for side in self._sides:
            side.text.close()
        self._sides = ()


def _lay_out(
    side: Side, known: Sequence[tuple[Crossing, Alignment]], rest: bytes, drafted: Sequence[bytes]
) -> list[tuple[Path, bytes, Path | None, Path | None]]:
    """For each position the place where its own tail starts, as a path from what is read, the tail, its spelling, and
    the one of a tail that ends in blanks before a word.
    """
    tails: list[tuple[Path, bytes]] = []
    root: Path = ()
    for j in range(len(known)):
        checkpoint()
        if j > 0:
            rest += drafted[j - 1]
        settled, rest = side.settle(rest)
        root += tuple(settled)
        tails.append((root, rest))
    alignment = known[0][1]
    paths = alignment.canonicals([tail for _, tail in tails])
    others = before_a_word(alignment, [tail for _, tail in tails])
    laid = zip(tails, paths, others, strict=True)
    return [(root, tail, path, beside) for (root, tail), path, beside in laid]


def propose(rows: Sequence[EstimatedRow]) -> None:
    """Find what the first model's likeliest ids begin with, and what ends the text, for all rows of a draft at once."""
    ended([row for row in rows if row.spelled and not row.partial])
    for crossing in {id(row.crossing): row.crossing for row in rows}.values():
        own = [row for row in rows if row.crossing is crossing and row.spelled]
        if own:
            outputs = own[0].views[0].after_x[0]
            found = what_begins(crossing, outputs, [row.views[0].after_x[1] for row in own], _PROPOSED)
            for row, masses in zip(own, found, strict=True):
                row.begun(0, masses)


def ended(rows: Sequence[EstimatedRow]) -> None:
    """Find what each model gives the ids that end a text, at all these rows at once."""
    found = []
    for i, ends in enumerate(rows[0].ends if rows else ()):
        outputs, places = rows[0].views[i].after_x[0], np.array([row.views[i].after_x[1] for row in rows])
        values = outputs.gather(np.repeat(places, len(ends)), np.tile(ends, len(rows)))
        found.append(np.logaddexp.reduce(values.reshape(len(rows), len(ends)), axis=1, initial=-np.inf).tolist())
    for row, *masses in zip(rows, *found, strict=True):
        row.log_end = masses


def _columns(wanted: Sequence[tuple[EstimatedRow, Sequence[Token]]]) -> list[int]:
    """Where the table has these tokens of these rows, see `Known.columns`."""
    found: list[int] = []
    for row, tokens in wanted:
        found += row.known.columns(tokens) if row.spelled else [0] * len(tokens)
    return found


class EstimatedRow:
    """A position's candidates under both models. Scoring is arithmetic over what has been read."""

    limit: int | None = 128

    def __init__(
        self,
        table: Estimates,
        lock: threading.Lock,
        shown: Sequence[Token],
        crossing: Crossing,
        alignment: Alignment,
        views: Sequence[View],
        ends: Sequence[Ids],
    ) -> None:
        self.shown = list(shown[: self.limit])
        self.views = views
        self.crossing = crossing
        self.lock = lock
        self.alignment = alignment
        self.ends = ends
        self.draft = table
        self.known = Known(table)
        self.bridges = [Bridges(alignment, view.tail, view.at_x or (), view.places, view.beside) for view in views]
        self.bridged = any(bridges.total for bridges in self.bridges)
        # One for all tokens of the row, so that what else is summed here moves none against another.
        self.shift = tuple(-math.log(1.0 + bridges.total) for bridges in self.bridges)
        self._others: list[dict[Path, float]] = [{} for _ in views]  # by node, what joins the first sum there
        self._written: dict[int, dict[bytes, float]] = {}  # model -> what its likeliest ids begin with
        self._proposed: dict[int, tuple[int, list[Token]]] = {}
        self._wanted: list[bytes] = []
        self.onward: list[bytes] = []  # texts that are about to become longer tokens of the base
        self._become: list[dict[bytes, float]] = [{} for _ in views]  # by model, their masses by that of x
        self.log_end: list[float] | None = None
        self.end_doubt = 0.0
        self.spelled = all(view.at_x is not None for view in views)
        said = [outputs.hidden[place] for view in views for outputs, place in view.places.values()]
        self.partial = any(map(math.isfinite, said))

    # -- arithmetic -----------------------------------------------------------------------------------------------

    def score(self, tokens: Sequence[Token]) -> Scores:
        return self.score_all([(self, tokens)])

    def score_all(self, wanted: Sequence[tuple[EstimatedRow, Sequence[Token]]]) -> Scores:
        table, parts = self.draft, Parts.of([len(tokens) for _, tokens in wanted])
        places = _columns(wanted)
        if -1 in places:
            estimate([(row, tokens) for row, tokens in wanted if row.spelled])
            places = _columns(wanted)
        for row, _ in wanted:
            row.known.settle([math.exp(-shift) for shift in row.shift])
        shift = np.repeat(np.array([row.shift for row, _ in wanted]).T, parts.sizes, axis=1)
        columns, error = table.masses[:, places] + shift, table.error[:, places]
        own = table.own[:, places] * np.exp(shift)
        how: list[How] = ["exact" if summed else "estimated" for summed in table.exact[places].tolist()]
        for (row, tokens), start in zip(wanted, parts.starts.tolist(), strict=True):
            if row.partial:  # with some ids left out, an estimate went into what was summed
                some = slice(start, start + len(tokens))
                how[some] = ["prefix" if kind == "exact" else kind for kind in how[some]]
            for i in [i for i, token in enumerate(tokens, start) if token.end] if row.spelled else ():
                columns[:, i], error[:, i] = row.end(), row.end_doubt
                own[:, i] = np.exp(columns[:, i])
                how[i] = "estimated" if row.end_doubt else "exact"
        return scores_of(columns, how, error[0], error[1], own, parts)

    def end(self) -> list[float]:
        """What each model gives the end of the text, nats."""
        if self.log_end is None:
            ended([self])
            of_each = zip(self.views, self.ends, strict=True) if self.partial else ()
            self.end_doubt = math.fsum(doubt_of(*view.after_x, ends) for view, ends in of_each)
        assert self.log_end is not None
        return [value + shift for value, shift in zip(self.log_end, self.shift, strict=True)]

    def leaves_tail(self, text: bytes) -> bool:
        """Whether the usual spelling of tail and token is another than the tail's, with more behind it."""
        at_x = self.views[0].at_x or ()
        return (self.alignment.canonical(text) or ())[: len(at_x)] != at_x

    def begun_ways(self, token: bytes) -> Floats:
        """How the two ways to write blanks begin, as masses by that of x, (ways, models): as usual, and where the last
        of them is left to the word behind it.
        """
        with self.lock:
            text = self.views[0].tail + token
            paths = [self.alignment.canonical(text), *before_a_word(self.alignment, [text])]
        begun = [
            [bridges.started(path) for bridges in self.bridges] for path in paths if path and path != self.views[0].at_x
        ]
        return np.array(begun).reshape(len(begun), len(self.bridges))

    def propose(self, count: int, model: int = 0) -> list[Token]:
        model = min(model, len(self.views) - 1)
        if not self.spelled:
            return []
        most, found = self._proposed.get(model, (0, []))
        if most < count or model not in self._proposed:
            outputs, place = self.views[model].after_x
            if (most < count and count > _PROPOSED) or model not in self._written:
                (own,) = what_begins(self.crossing, outputs, [place], count)
                self.begun(model, own)
            most = max(count, _PROPOSED)
            found = self._propose(most, model)
            self._proposed[model] = (most, found)
        return found[:count]

    def beyond(self) -> list[Token]:
        """What is proposed beyond the base's own candidates, as much as is estimated with them."""
        shown = {token.bytes for token in self.shown}
        return [token for token in self.propose(_PROPOSED) if token.bytes not in shown][:_BEYOND]

    def begun(self, model: int, masses: dict[bytes, float]) -> None:
        """What the likeliest ids after x begin with, as masses; what is written across the end of x joins it here."""
        if self.bridged:
            for first, value in self.bridges[model].likely(TOP):
                masses[first] = masses.get(first, 0.0) + math.exp(value)
        self._written[model] = masses

    def _propose(self, count: int, model: int) -> list[Token]:
        masses = self._written[model]
        if become := self._become[model]:
            masses = {token: masses.get(token, 0.0) + become.get(token, 0.0) for token in (*masses, *become)}
        shift = math.exp(self.shift[model])
        masses = masses | {t: math.exp(self.draft.masses[model, place]) for t, place in self.known.summed.items()}
        if shift != 1.0:
            masses = {token: mass * shift for token, mass in masses.items()}
        values = np.fromiter(masses.values(), np.float64, len(masses))
        tokens = list(masses)
        order = np.argsort(-values, kind="stable")[:count]
        order = order[values[order] > 0.0]
        token = self.crossing.token
        log_end = self.end()[model]
        if not math.isfinite(log_end):
            return [token(tokens[i]) for i in order.tolist()]
        proposed = [token(tokens[i]) for i in order.tolist()]
        return with_end(proposed, np.log(values[order]), log_end, count)

    # -- sums -----------------------------------------------------------------------------------------------------

    def lay_out(self, tokens: Sequence[Token]) -> None:
        """Say how these tokens are written, and with it which nodes their masses need, in `views[…].ways`; and which
        ids are wanted there, of models that show only some.
        """
        known = self.known
        spelled = dict.fromkeys(token.bytes for token in tokens if token.bytes and not token.end)
        self._wanted = [t for t in spelled if t in known.place and t not in known.summed]
        by_tail: dict[bytes, dict[bytes, Way]] = {}  # mostly that of both models
        for i, (view, ends) in enumerate(zip(self.views, self.ends, strict=True)):
            if view.tail not in by_tail:
                own = ways(self.alignment, view.tail, self._wanted, self._entered)
                by_tail[view.tail] = {way.token: way for way in own}
            view.ways = by_tail[view.tail] if view.at_x is not None else {}
            if not self.partial:
                continue
            at_x = view.at_x or ()
            for way in view.ways.values():
                view.want_steps(way.path, partial(self._little, i, self._before_sums(way.token, i)))
            for token, relations in zip(self._wanted, self.crossing.of(self._wanted), strict=True):
                little = self._little(i, self._before_sums(token, i), at_x)
                view.want(at_x, relations.covering[:_NAMED].tolist(), little)
            if any(token.end for token in tokens):
                view.want(at_x, ends.tolist(), self._little(i, math.exp(self.end()[i]), at_x))

    def _little(self, model: int, mass: float, node: Path) -> float:
        """The log probability at a node that is little beside a mass by that of x."""
        return math.log(max(_LITTLE * mass, 1e-300)) - math.log(max(self.bridges[model].started(node), 1e-300))

    def look_again(self) -> None:
        """Estimate anew what models that show only some ids were asked about."""
        if self.partial:
            self.log_end = None
            estimate_anew(self, self._wanted)

    def sum_up(self) -> None:
        columns: list[dict[bytes, float]] = []
        behind: list[dict[Path, float]] = [{} for _ in self.views]
        for i, (view, bridges) in enumerate(zip(self.views, self.bridges, strict=True)):
            masses = {
                token: contended_mass(bridges, view.tail, way, self._before_sums(token, i), self._others[i], behind[i])
                for token, way in view.ways.items()
            }
            columns.append({t: math.log(mass) if mass > 0.0 else -math.inf for t, mass in masses.items()})
        self.shift = tuple(
            -math.log(1.0 + bridges.total + math.fsum(others.values()))
            for bridges, others in zip(self.bridges, self._others, strict=True)
        )
        for token in self._wanted:
            if all(token in column for column in columns):
                self.known.set_exact(token, [column[token] for column in columns])
            else:  # the local vocabulary cannot write it
                self.draft.error[:, self.known.place[token]] = 0.0
        self._own_no_more(behind)
        self.follow()

    def _entered(self, node: Path, token: bytes, inside: bool) -> bool:
        masses = [1.0 if inside else self._before_sums(token, i) for i in range(len(self.bridges))]
        return any(bridges.entered(node, mass) for bridges, mass in zip(self.bridges, masses, strict=True))

    def _own_no_more(self, behind: Sequence[Mapping[Path, float]]) -> None:
        """What was completed at nodes behind x, by model, is the mass of tokens that were summed: the row after x has
        it with the token that the first piece begins.
        """
        nodes = list(dict.fromkeys(node for found in behind for node in found))
        begun = [begun_by(self.alignment, self.views[0].tail, node) for node in nodes]
        for node, first in zip(nodes, self.alignment.base.first(begun), strict=True):
            self.known.take(first, [found.get(node, 0.0) for found in behind])

    def lay_out_onward(self) -> None:
        """The same for texts that go on."""
        for i, view in enumerate(self.views):
            view.ways = {way.token: way for way in ways(self.alignment, view.tail, self.onward)}
            for way in view.ways.values() if self.partial else ():
                view.want_steps(way.path, partial(self._little, i, _FOLLOWED))

    def follow(self) -> None:
        """Take what the ways' ends become into what is proposed; what has to be followed further is `onward` then."""
        self._proposed.clear()
        onward: dict[bytes, None] = {}
        for i, (view, bridges) in enumerate(zip(self.views, self.bridges, strict=True)):
            for way in view.ways.values():
                going, scale = bridges.going(way), bridges.scale(way.path)
                for token, share in going.whole.items():
                    self._become[i][token] = self._become[i].get(token, 0.0) + scale * share
                if i == 0:
                    onward |= dict.fromkeys(t for t, share in going.onward.items() if scale * share > _FOLLOWED)
        self.onward = list(onward)

    def _before_sums(self, token: bytes, model: int) -> float:
        """The mass of a token by that of x, as far as it was found without a node of its own."""
        return float(self.draft.sums[model, self.known.place[token]])
