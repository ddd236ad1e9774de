"""The arithmetic of estimates: of the rows after x at all positions of a draft, the masses of tokens and what is
proposed, as arrays.

`estimate` fills the `Known` of each row, one gather a model for all of them; `what_begins` sums a row's likeliest ids
into the base's tokens. estimated.py has the models, the nodes and the sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.aligning.crossing import Crossing, Relations
from blackbox_proxy.models.outputs import Outputs
from blackbox_proxy.pair.contended import TOP
from blackbox_proxy.text.vocabulary import Ids
from blackbox_proxy.types import Floats, Token

if TYPE_CHECKING:
    from blackbox_proxy.pair.estimated import EstimatedRow

_PIECES = 0.01  # of the mass of shorter tokens that begin a candidate: what may be written on to it against the habit
# How far an offset may be off, nats. Measured on Gemma 3's candidates within 3 nats of the best, under SmolLM2 and a
# tuned copy, against the best one's: 0.00 at 90 % where nothing goes on from a token, 0.05 (at most 0.26) where
# something does, 0.58 (at most 0.92) across the end of x.
_ENDS = 0.02
GOES_ON = 0.2
_ACROSS = 0.7
# Of a candidate that no local token covers, known by the first of two or three pieces; as much for each further one.
IN_PIECES = 1.5
_BLANKS = 6.0  # of the mass of one that ends in several blanks, most of which is written with a word behind it
_LOOKED_AT = 20  # ids after x, the expert's likeliest
_ALIKE = 2.0  # nats: where they differ by less, what goes on does so alike in both
_MOST_GOING = 6.0  # times as much the offset of what goes on may be off where they differ by more
_FARTHER = 2.0  # times as much as their log E and log A differ, an offset may be off
_WILD = 5.0  # nats: where they differ by more, they may as much about every piece
_PART = 0.01  # of all that a token could have: a way with less is none
# The same of a mass by itself, which has all that both models agree about.
_ENDS_APART = 0.05
_GOES_ON_APART = 2.0
_ACROSS_APART = 2.0
_LEFT = 0.1  # of what a row gives to tokens that are not known: no sums of others take more of it
_LEAST = 1e-6  # mass below which nothing is proposed
_UNSHOWN = 3.0  # nats: how far below what its like got on average an id may be that a model does not show

Bools = NDArray[np.bool_]


class Estimates:
    """What is known of tokens at all rows of a draft, a column a token and row; the first is that of tokens of which
    nothing is known. masses: log, (models, c), by that of x; error (2, c): by how much their difference may be off,
    nats, and each of them by itself; sums: R and what bridges the end of x, no log, 0 where no local token covers one;
    exact: whether the masses are the sums over all ways; own: see `Known.settle`.
    """

    def __init__(self, models: int) -> None:
        self.masses: Floats = np.full((models, 1), -np.inf)
        self.error: Floats = np.zeros((2, 1))
        self.sums: Floats = np.zeros((models, 1))
        self.own: Floats = np.zeros((models, 1))
        self.exact: Bools = np.zeros(1, dtype=np.bool_)

    def add(self, masses: Floats, error: Floats, sums: Floats) -> int:
        """New columns, as estimated; which is the first."""
        start = len(self.exact)
        self.masses = np.concatenate([self.masses, masses], axis=1)
        self.error = np.concatenate([self.error, error], axis=1)
        self.sums = np.concatenate([self.sums, sums], axis=1)
        self.own = np.concatenate([self.own, sums], axis=1)
        self.exact = np.concatenate([self.exact, np.zeros(masses.shape[1], dtype=np.bool_)])
        return start


class Known:
    """The columns of one row. place: of each token; summed: those that are exact; taken: of a token's sums what turned
    out to be another's.
    """

    def __init__(self, table: Estimates) -> None:
        self.table = table
        self.place: dict[bytes, int] = {}
        self.summed: dict[bytes, int] = {}
        self.taken: dict[bytes, Floats] = {}
        self._settled = True

    def settle(self, most: Sequence[float]) -> None:
        """Say of each mass what no other token has as well, `own` (models, c), no log: the estimates of what the row
        after x says, each local token counted where it begins, and not where a candidate is only as likely as its first
        piece; and sums, of which others have no part. most: of each model, of all that can be. Ways that were followed
        for two tokens may still overlap, so that something is left in any case of what the row gives to tokens that are
        not here.
        """
        if self._settled:
            return
        self._settled = True
        table, places = self.table, np.fromiter(self.place.values(), np.int64, len(self.place))
        sums, exact = table.sums[:, places], table.exact[places]
        found = np.where(exact, np.exp(table.masses[:, places]), sums)
        columns = dict(zip(self.place, range(len(places)), strict=True))
        for token, masses in self.taken.items():
            column = columns.get(token, -1)
            if column >= 0 and not exact[column]:
                found[:, column] = np.maximum(found[:, column] - masses, 0.0)
        begun = sums.sum(axis=1)
        moved = found.sum(axis=1) - begun
        room = (1.0 - _LEFT) * np.maximum(np.array(most) - begun, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.where(moved > room, room / moved, 1.0)
        table.own[:, places] = sums + part[:, None] * (found - sums)

    def take(self, token: bytes, masses: Sequence[float]) -> None:
        """So much of what stands with this token is another's; no log, by model."""
        more = np.maximum(np.array(masses), 0.0)
        self.taken[token] = self.taken[token] + more if token in self.taken else more
        self._settled = not self.summed

    def add(self, tokens: Sequence[bytes], start: int) -> None:
        """These tokens have the columns from `start` on."""
        self.place.update(zip(tokens, range(start, start + len(tokens)), strict=True))
        self._settled = not self.summed

    def replace(self, tokens: Sequence[bytes], masses: Floats, error: Floats, sums: Floats) -> None:
        """Tokens that are here, estimated anew from what more is known."""
        places, table = [self.place[token] for token in tokens], self.table
        table.masses[:, places], table.error[:, places], table.sums[:, places] = masses, error, sums
        table.own[:, places] = sums
        self._settled = not self.summed

    def set_exact(self, token: bytes, masses: Sequence[float]) -> None:
        place = self.summed[token] = self.place[token]
        self.table.masses[:, place], self.table.error[:, place], self.table.exact[place] = masses, 0.0, True
        self._settled = False

    def missing(self, tokens: Sequence[Token]) -> list[bytes]:
        """Those of these tokens that have not been estimated yet."""
        place = self.place
        return list(dict.fromkeys(t.bytes for t in tokens if t.bytes and t.bytes not in place and not t.end))

    def columns(self, tokens: Sequence[Token]) -> list[int]:
        """The column of each token; 0 where it can have none, -1 where it was not estimated yet."""
        place = self.place
        return [place.get(text, -1) if (text := token.bytes) and not token.end else 0 for token in tokens]


def estimate(wanted: Sequence[tuple[EstimatedRow, Sequence[Token]]]) -> None:
    """Estimate the masses of these tokens at these rows of one draft, where they are not known: one gather a model for
    all.
    """
    rows: list[EstimatedRow] = []
    blocks: list[list[bytes]] = []
    relations: list[Relations] = []
    for row, tokens in wanted:
        if missing := row.known.missing(tokens):
            rows.append(row)
            blocks.append(missing)
            relations += row.crossing.of(missing)
    if not rows:
        return
    start = rows[0].known.table.add(*_estimated(rows, blocks, relations))
    for row, block in zip(rows, blocks, strict=True):
        row.known.add(block, start)
        start += len(block)


def estimate_anew(row: EstimatedRow, tokens: Sequence[bytes]) -> None:
    """The same for tokens of a row of which the models were asked since."""
    if tokens:
        row.known.replace(tokens, *_estimated([row], [tokens], row.crossing.of(tokens)))


def _estimated(
    rows: Sequence[EstimatedRow], blocks: Sequence[Sequence[bytes]], relations: Sequence[Relations]
) -> tuple[Floats, Floats, Floats]:
    """Masses (models, c), errors (2, c) and sums (models, c), see `Known`, of a block of tokens of each row. The rows
    stand in one `Outputs` a model.
    """
    sizes = [len(block) for block in blocks]
    covering, leading = _Sets([found.covering for found in relations]), _Sets([found.leading for found in relations])
    begins = np.array([found.begins for found in relations], dtype=np.int64)
    goes_on = np.array([found.goes_on for found in relations])
    suspects = _suspects(rows, blocks)
    across = _across(suspects, len(relations))
    by_row: dict[EstimatedRow, list[int]] = {}
    for j, (row, _, _) in suspects.items():
        by_row.setdefault(row, []).append(j)
    sums, firsts, shares, doubt = [], [], [], np.zeros(len(relations))
    for i in range(len(rows[0].views)):
        said = rows[0].views[i].after_x[0]  # of one draft: one pass
        places = np.repeat(np.array([row.views[i].after_x[1] for row in rows], dtype=np.int64), sizes)
        total, lead = covering.summed(said, places), leading.summed(said, places)
        doubt += covering.doubt(said, places, total)
        for row, own in by_row.items():
            if row.bridges[i].total:
                total[own] += row.bridges[i].masses([suspects[j][1] for j in own])
        firsts.append(np.where(begins >= 0, said.gather(places, np.maximum(begins, 0)), -np.inf))
        sums.append(total)
        shares.append(lead / np.maximum(total, 1e-300))
    of_all = np.stack(sums)
    summed = np.min(of_all, axis=0) > 0.0
    differ = np.repeat(_differ(rows), sizes)
    unlike = _ENDS + _FARTHER * differ
    going = GOES_ON * np.clip(differ / _ALIKE, 1.0, _MOST_GOING)
    error = np.log1p(_PIECES * np.max(shares, axis=0)) + np.where(goes_on, going, _ENDS) + _ACROSS * across
    apart = error + np.where(goes_on, _GOES_ON_APART, _ENDS_APART) + _ACROSS_APART * across
    more = np.array([max(found.pieces - 2, 1) for found in relations])
    wild = (differ > _WILD) & np.isfinite(differ)
    pieces = more * np.minimum(np.where(wild, differ, IN_PIECES), unlike)
    errors = np.stack([np.where(summed, np.minimum(error, unlike), pieces), np.where(summed, apart, more * IN_PIECES)])
    with np.errstate(divide="ignore"):
        masses = np.where(summed, np.log(of_all), np.stack(firsts))
    blanks = np.array([found.blanks for found in relations])
    tails = np.repeat([row.views[0].tail[-1:].isspace() for row in rows], sizes)
    _blanks(rows, blocks, np.flatnonzero((blanks > 0) & (blanks + tails > 1)), summed, masses, pieces, errors)
    return masses, errors + doubt, np.where(summed, of_all, 0.0)


def _differ(rows: Sequence[EstimatedRow]) -> Floats:
    """How much E and A differ at most about what is likely to come next at each row, (r,) nats: where that is little,
    they do not differ about what comes behind it either, and where it is much, they may.
    """
    if len(rows[0].views) == 1:
        return np.full(len(rows), np.inf)
    expert, antiexpert = (view.after_x[0] for view in rows[0].views)
    tops = [expert.top(row.views[0].after_x[1], _LOOKED_AT) for row in rows]
    sizes = [len(ids) for ids, _ in tops]
    places = np.repeat(np.array([row.views[1].after_x[1] for row in rows], dtype=np.int64), sizes)
    log_a = antiexpert.gather(places, np.concatenate([ids for ids, _ in tops]))
    differ = np.abs(np.concatenate([values for _, values in tops]) - log_a)
    most: Floats = np.maximum.reduceat(differ, np.concatenate([[0], np.cumsum(sizes)[:-1]]))
    return most


def _blanks(
    rows: Sequence[EstimatedRow],
    blocks: Sequence[Sequence[bytes]],
    found: Ids,
    summed: Bools,
    masses: Floats,
    pieces: Floats,
    errors: Floats,
) -> None:
    """Estimate tokens that end in several blanks anew, those at `found`, in masses (models, c) and errors (2, c).

    Most of their mass is written with a word behind them, "   " and " def", and the known nodes show only how that
    begins. How E is to A on that way and on the others bounds the offset, whatever their shares are.
    """
    texts = [(row, text) for row, block in zip(rows, blocks, strict=True) for text in block] if len(found) else []
    for j in found.tolist():
        row, text = texts[j]
        errors[1, j] += _BLANKS
        if not row.spelled:
            continue
        begun = row.begun_ways(text)
        parts = np.concatenate([np.exp(masses[:, j])[None], begun]) if summed[j] else begun
        if len(masses) == 1 or not len(parts) or not (parts > 0.0).all():  # a mass by itself hangs on the shares
            errors[0, j] += _BLANKS
            continue
        parts = parts[(parts > _PART * parts.sum(axis=0)).any(axis=1)]
        offsets = np.log(parts[:, 0] / parts[:, -1])
        low, high = offsets.min(), offsets.max()
        errors[0, j] = pieces[j] + (high - low) / 2.0
        masses[:-1, j] = masses[-1, j] + (low + high) / 2.0


def _suspects(
    rows: Sequence[EstimatedRow], blocks: Sequence[Sequence[bytes]]
) -> dict[int, tuple[EstimatedRow, bytes, bytes]]:
    """Of all tokens of all rows, those that may be written across the end of x: place -> row, token, and the text of
    tail and token.
    """
    found, start = {}, 0
    for row, block in zip(rows, blocks, strict=True):
        if row.bridged:
            tail = row.views[0].tail
            joins, last = row.alignment.local.joins, tail[-1]
            for j, token in enumerate(block, start):
                if joins(last, token[0]):
                    found[j] = (row, token, tail + token)
        start += len(block)
    return found


def _across(suspects: Mapping[int, tuple[EstimatedRow, bytes, bytes]], count: int) -> Bools:
    """Which candidates the local tokenizer would write across the end of x (" Yor" + "k" as " York")."""
    across = np.zeros(count, dtype=np.bool_)
    for lock in {id(row.lock): row.lock for row, _, _ in suspects.values()}.values():
        with lock:
            texts: dict[int, list[bytes]] = {}
            alignments = {id(row.alignment): row.alignment for row, _, _ in suspects.values()}
            for row, _, text in suspects.values():
                texts.setdefault(id(row.alignment), []).append(text)
            for key, alignment in alignments.items():
                alignment.spell(texts[key])
            for j, (row, _, text) in suspects.items():
                across[j] = row.leaves_tail(text)
    return across


class _Sets:
    """Some sets of ids, to be summed at places."""

    def __init__(self, ids: Sequence[Ids]) -> None:
        self._count = len(ids)
        self._sizes = np.fromiter(map(len, ids), np.int64, len(ids))
        self._filled = np.flatnonzero(self._sizes)
        self._flat = np.concatenate(ids).astype(np.int64) if len(self._filled) else np.empty(0, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes[self._filled])[:-1]]).astype(np.int64)

    def summed(self, outputs: Outputs, places: Ids) -> Floats:
        """The probability of each set at its place, (c,)."""
        total = np.zeros(self._count)
        if len(self._filled):
            values = np.exp(outputs.gather(np.repeat(places, self._sizes), self._flat))
            total[self._filled] = np.add.reduceat(values, self._starts)
        return total

    def doubt(self, outputs: Outputs, places: Ids, total: Floats) -> Floats:
        """How far the log of these sums may be off because a model does not show all ids, (c,) nats: one of those that
        it does not show may be as likely as the least that it does, and all may be well below what they got.
        """
        found = np.zeros(self._count)
        hidden = outputs.hidden[places].astype(np.float64)
        if not len(self._filled) or not np.isfinite(hidden).any():
            return found
        at = np.repeat(places, self._sizes)
        guessed = outputs.gather(at, self._flat) == np.repeat(hidden, self._sizes)
        count = np.add.reduceat(guessed.astype(np.float64), self._starts)
        spread, own = np.exp(hidden[self._filled]), np.maximum(total[self._filled], 1e-300)
        above = np.log1p((np.exp(outputs.least[places][self._filled].astype(np.float64)) - spread) / own)
        shown = np.maximum(own - count * spread, 0.0) / own
        below = -np.log(np.maximum(shown, math.exp(-_UNSHOWN)))
        found[self._filled] = np.where(count > 0, np.maximum(above, below), 0.0)
        return found


def doubt_of(outputs: Outputs, place: int, ids: Ids) -> float:
    """The same of one sum."""
    some, places = _Sets([ids]), np.array([place])
    return float(some.doubt(outputs, places, some.summed(outputs, places))[0])


def what_begins(crossing: Crossing, outputs: Outputs, places: Sequence[int], count: int) -> list[dict[bytes, float]]:
    """For each place the base's tokens that the `count` likeliest ids there begin with, and their masses in sum."""
    tops = [outputs.top(place, max(count, TOP)) for place in places]
    likely = [np.exp(values[values > np.log(_LEAST)]) for _, values in tops]
    codes, events = crossing.codes([ids[: len(values)] for (ids, _), values in zip(tops, likely, strict=True)])
    found = []
    for own, values in zip(codes, likely, strict=True):
        distinct, inverse = np.unique(own, return_inverse=True)
        sums = np.bincount(inverse, values, len(distinct)).tolist()
        found.append({events[code]: total for code, total in zip(distinct.tolist(), sums, strict=True) if code >= 0})
    return found
