"""Base and pair spell alike: E(c) is the probability of that id after exactly the issued ids. Plain proxy-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.models.outputs import Outputs
from blackbox_proxy.pair.side import Side, Wanted, scores_of, side_by_side, with_end
from blackbox_proxy.protocols import Row
from blackbox_proxy.text.vocabulary import Ids, Vocabulary, VocabularyTokens
from blackbox_proxy.types import Floats, How, Position, Scores, Token

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
        self._rows = [_PlainRow([(found, j) for found in shown], ends, self._base) for j in range(n)]
        return list(self._rows)

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        for row, tokens in wanted:
            j = next(j for j, other in enumerate(self._rows) if other is row)
            ids, _ = _ids_of(tokens, self._base)
            self._wanted[j].update(ids[self._rows[j].estimated(ids)][:_NAMED].tolist())
        shown = self._advance(self._text, len(self._rows), self._wanted)
        for j, known in enumerate(self._rows):
            known.shown = [(found, j) for found in shown]

    def _advance(self, text: Sequence[int], n: int, wanted: Wanted | None = None) -> list[Outputs]:
        """What each model shows at the last n places; with `wanted`, those ids and the ends among it."""

        def one(i: int) -> Outputs:
            side = self._sides[i]
            ends = set(side.ends.tolist())
            named = None if wanted is None else {j: ends.union(ids) for j, ids in wanted.items()}
            return side.text.advance(side.prompt + list(text), n, named)

        with self._running:
            return side_by_side(self._sides, one)

    def _named(self, tokens: Sequence[Token]) -> Iterable[int]:
        ids, _ = _ids_of(tokens[:_NAMED], self._base)
        return [i for i in ids.tolist() if 0 <= i < self._sides[0].model.size]

    def read(self, issued: Sequence[Token]) -> None:
        ids = [token.id for token in issued if token.id is not None]
        for side in self._sides:
            side.text.read([*side.prompt, *ids])

    def close(self) -> None:
        for side in self._sides:
            side.text.close()
        self._sides = ()


def _likeliest(found: Outputs, j: int, count: int) -> list[int]:
    """The `count` likeliest ids that a model has shown itself at a place."""
    return [int(i) for i in found.top(j, count)[0]]


class _PlainRow:
    def __init__(
        self,
        shown: Sequence[tuple[Outputs, int]],
        ends: Sequence[Ids],
        base: Vocabulary,
    ) -> None:
        self.shown = list(shown)  # of each model what it says, and the place in it
        self._ends = ends
        self._size = min(found.width for found, _ in shown)
        self._base = base
        self._partial = any(np.isfinite(found.hidden[place]) for found, place in shown)
        self.limit: int | None = _NAMED if self._partial else None
        self._log_end = [
            logsumexp(found.gather(np.full(len(ids), place), ids))
            for (found, place), ids in zip(shown, ends, strict=True)
        ]

    def score(self, tokens: Sequence[Token]) -> Scores:
        ids, ending = _ids_of(tokens, self._base)
        columns = self._columns(ids)
        estimated = self._unshown(columns) & ~ending
        how: list[How] = ["prefix" if guess else "exact" for guess in estimated.tolist()]
        for column, log_end in zip(columns, self._log_end, strict=True):
            column[ending] = log_end
        return scores_of(columns, how, np.where(estimated, np.inf, 0.0))

    def estimated(self, ids: Ids) -> NDArray[np.bool_]:
        """Of which ids a model showed nothing, (c,)."""
        return self._unshown(self._columns(ids))

    def _columns(self, ids: Ids) -> list[Floats]:
        """The log probabilities of these ids under each model, (c,); -inf for those outside its vocabulary."""
        columns = []
        known = np.flatnonzero((ids >= 0) & (ids < self._size))
        for found, place in self.shown:
            column = np.full(len(ids), -np.inf)
            column[known] = found.gather(np.full(len(known), place), ids[known])
            columns.append(column)
        return columns

    def _unshown(self, columns: Sequence[Floats]) -> NDArray[np.bool_]:
        result = np.zeros(len(columns[0]), dtype=np.bool_)
        for (found, place), column in zip(self.shown if self._partial else (), columns, strict=False):
            hidden = float(found.hidden[place])
            result |= np.isfinite(hidden) & (column == hidden)
        return result

    def propose(self, count: int, model: int = 0) -> list[Token]:
        model = min(model, len(self.shown) - 1)
        found, place = self.shown[model]
        ends = self._ends[model]
        ids, values = found.top(place, count + len(ends))
        real = ~np.isin(ids, ends) & np.isfinite(values)
        proposed = [
            (self._base.token_of(int(i)), float(value)) for i, value in zip(ids[real], values[real], strict=True)
        ]
        return with_end(proposed[:count], self._log_end[model], count)


def _ids_of(tokens: Sequence[Token], base: Vocabulary) -> tuple[Ids, NDArray[np.bool_]]:
    """Ids (c,), -1 where unknown, and which tokens end the text."""
    if isinstance(tokens, VocabularyTokens):
        return tokens.ids, np.isin(tokens.ids, list(base.end_ids))
    ids = np.array([-1 if token.id is None else token.id for token in tokens], dtype=np.int64)
    return ids, np.array([token.end for token in tokens], dtype=np.bool_)
