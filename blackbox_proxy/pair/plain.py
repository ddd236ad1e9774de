"""Base and pair spell alike: E(c) is the probability of that id after exactly the issued ids. Plain proxy-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.pair.side import Shown, Side, Wanted, scores_of, side_by_side, with_end
from blackbox_proxy.protocols import Row
from blackbox_proxy.text.vocabulary import Ids, Vocabulary, VocabularyTokens
from blackbox_proxy.types import How, Position, Scores, Token

_NAMED = 128  # candidates of one place, the likeliest first, that a model is asked about where it did not show them
_SHARED = 64  # ids that the expert finds likeliest, of which the anti-expert is asked in advance


class PlainSession:
    """Ids are shared with the base: E(c) is the probability of that id after exactly the issued ids."""

    def __init__(self, sides: Sequence[Side], base: Vocabulary, running: AbstractContextManager[object]) -> None:
        self._sides = sides
        self._base = base
        self._running = running
        self._text: list[int] = []
        self._rows: list[_PlainRow] = []
        self._wanted: dict[int, set[int]] = {}

    def read(self, issued: Sequence[Token]) -> None:
        """Nothing: `score` reads what it needs."""

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        drafted = [position.token.id for position in positions]
        if None in drafted[:-1]:  # what follows an unidentified token cannot be scored
            positions = positions[: drafted.index(None) + 1]
        n = len(positions)
        text = [i for i in (*(token.id for token in issued), *drafted[: n - 1]) if i is not None]
        shown = self._advance(text, n)
        wanted: dict[int, set[int]] = {j: set() for j in range(n)}
        if any(np.isfinite(found.hidden).any() for found in shown):
            for j, position in enumerate(positions):
                wanted[j] = {*self._named(position.tokens), *_likeliest(shown[0], j, _SHARED)}
            shown = self._advance(text, n, wanted)
        ends = [side.ends for side in self._sides]
        self._text, self._wanted = text, wanted
        self._rows = [_PlainRow([_row(found, j) for found in shown], ends, self._base) for j in range(n)]
        return list(self._rows)

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        for row, tokens in wanted:
            j = next(j for j, other in enumerate(self._rows) if other is row)
            ids, _ = _ids_of(tokens, self._base)
            self._wanted[j].update(ids[self._rows[j].estimated(ids)][:_NAMED].tolist())
        shown = self._advance(self._text, len(self._rows), self._wanted)
        for j, known in enumerate(self._rows):
            known.shown = [_row(found, j) for found in shown]

    def _advance(self, text: Sequence[int], n: int, wanted: Wanted | None = None) -> list[Shown]:
        """What each model shows at the last n places; with `wanted`, those ids and the ends among it."""

        def one(i: int) -> Shown:
            side = self._sides[i]
            ends = set(side.ends.tolist())
            named = None if wanted is None else {j: ends.union(ids) for j, ids in wanted.items()}
            return side.text.advance(side.prompt + list(text), n, named)

        with self._running:
            return side_by_side(self._sides, one)

    def _named(self, tokens: Sequence[Token]) -> Iterable[int]:
        ids, _ = _ids_of(tokens[:_NAMED], self._base)
        return [i for i in ids.tolist() if 0 <= i < self._sides[0].model.size]

    def close(self) -> None:
        self._sides = ()


def _row(found: Shown, j: int) -> Shown:
    return Shown(found.rows[j : j + 1], found.hidden[j : j + 1])


def _likeliest(found: Shown, j: int, count: int) -> list[int]:
    """The `count` likeliest ids that a model has shown itself at a place."""
    row = np.where(found.rows[j] == found.hidden[j], -np.inf, found.rows[j])
    top = np.argpartition(row, -count)[-count:] if len(row) > count else np.arange(len(row))
    return [int(i) for i in top[np.argsort(-row[top], kind="stable")] if np.isfinite(row[i])]


class _PlainRow:
    def __init__(
        self,
        shown: Sequence[Shown],
        ends: Sequence[Ids],
        base: Vocabulary,
    ) -> None:
        self.shown = list(shown)
        self._ends = ends
        self._base = base
        self._partial = any(np.isfinite(found.hidden[0]) for found in shown)
        self.limit: int | None = _NAMED if self._partial else None
        self._log_end = [
            logsumexp(found.rows[0][ids].astype(np.float64)) for found, ids in zip(shown, ends, strict=True)
        ]

    def score(self, tokens: Sequence[Token]) -> Scores:
        ids, ending = _ids_of(tokens, self._base)
        estimated = self.estimated(ids) & ~ending
        how: list[How] = ["prefix" if guess else "exact" for guess in estimated.tolist()]
        columns = []
        for found, log_end in zip(self.shown, self._log_end, strict=True):
            row = found.rows[0]
            known = (ids >= 0) & (ids < len(row))
            column = np.where(known, row[np.where(known, ids, 0)].astype(np.float64), -np.inf)
            column[ending] = log_end
            columns.append(column)
        return scores_of(columns, how, estimated)

    def estimated(self, ids: Ids) -> NDArray[np.bool_]:
        """Of which ids a model showed nothing, (c,)."""
        result = np.zeros(len(ids), dtype=np.bool_)
        for found in self.shown if self._partial else ():
            row = found.rows[0]
            known = (ids >= 0) & (ids < len(row))
            result |= known & (row[np.where(known, ids, 0)] == found.hidden[0]) & bool(np.isfinite(found.hidden[0]))
        return result

    def propose(self, count: int, model: int = 0) -> list[Token]:
        model = min(model, len(self.shown) - 1)
        row = self.shown[model].rows[0].copy()
        row[row == self.shown[model].hidden[0]] = -np.inf  # what was not shown is not proposed
        row[self._ends[model]] = -np.inf
        top = np.argpartition(row, -count)[-count:] if len(row) > count else np.arange(len(row))
        top = top[np.argsort(-row[top], kind="stable")]
        proposed = [(self._base.token_of(int(i)), float(row[i])) for i in top if np.isfinite(row[i])]
        return with_end(proposed, self._log_end[model], count)


def _ids_of(tokens: Sequence[Token], base: Vocabulary) -> tuple[Ids, NDArray[np.bool_]]:
    """Ids (c,), -1 where unknown, and which tokens end the text."""
    if isinstance(tokens, VocabularyTokens):
        return tokens.ids, np.isin(tokens.ids, list(base.end_ids))
    ids = np.array([-1 if token.id is None else token.id for token in tokens], dtype=np.int64)
    return ids, np.array([token.end for token in tokens], dtype=np.bool_)
