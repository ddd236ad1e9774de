"""Base and pair spell alike: E(c) is the probability of that id after exactly the issued ids. Plain proxy-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.maths.parts import Parts
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
        draft = _Draft(shown, ends, self._base, n)
        self._rows = [_PlainRow(draft, j) for j in range(n)]
        return list(self._rows)

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        for row, tokens in wanted:
            j = next(j for j, other in enumerate(self._rows) if other is row)
            ids, _ = _ids_of(tokens, self._base)
            self._wanted[j].update(ids[self._rows[j].estimated(ids)][:_NAMED].tolist())
        if self._rows:
            self._rows[0].draft.shown = self._advance(self._text, len(self._rows), self._wanted)

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


class _Draft:
    """What the models say at all n places of a draft. log_end (n,): of each model, what it gives the end of the text;
    partial (n,): whether some model showed only some ids there.
    """

    def __init__(self, shown: Sequence[Outputs], ends: Sequence[Ids], base: Vocabulary, n: int) -> None:
        self.shown = list(shown)
        self.ends = ends
        self.base = base
        self.size = min(found.width for found in shown)
        self.partial = np.any([np.isfinite(found.hidden) for found in shown], axis=0)
        self.log_end = []
        for found, ids in zip(shown, ends, strict=True):
            values = found.gather(np.repeat(np.arange(n), len(ids)), np.tile(ids, n)).reshape(n, len(ids))
            self.log_end.append(np.logaddexp.reduce(values, axis=1, initial=-np.inf))

    def columns(self, places: Ids, ids: Ids) -> list[Floats]:
        """The log probabilities of these ids at these places under each model, (c,); -inf for those outside its
        vocabulary.
        """
        columns = []
        known = np.flatnonzero((ids >= 0) & (ids < self.size))
        for found in self.shown:
            column = np.full(len(ids), -np.inf)
            column[known] = found.gather(places[known], ids[known])
            columns.append(column)
        return columns

    def unshown(self, places: Ids, columns: Sequence[Floats]) -> NDArray[np.bool_]:
        """Of which ids a model showed nothing, (c,)."""
        result = np.zeros(len(places), dtype=np.bool_)
        for found, column in zip(self.shown if self.partial.any() else (), columns, strict=False):
            hidden = found.hidden[places].astype(np.float64)
            result |= np.isfinite(hidden) & (column == hidden)
        return result


class _PlainRow:
    def __init__(self, draft: _Draft, place: int) -> None:
        self.draft = draft
        self._place = place
        self.limit: int | None = _NAMED if draft.partial[place] else None

    def score(self, tokens: Sequence[Token]) -> Scores:
        return self.score_all([(self, tokens)])

    def score_all(self, wanted: Sequence[tuple[_PlainRow, Sequence[Token]]]) -> Scores:
        draft, parts = self.draft, Parts.of([len(tokens) for _, tokens in wanted])
        named = [_ids_of(tokens, draft.base) for _, tokens in wanted]
        ids, ending = np.concatenate([ids for ids, _ in named]), np.concatenate([ends for _, ends in named])
        places = parts.each(np.array([row._place for row, _ in wanted]))
        columns = draft.columns(places, ids)
        estimated = draft.unshown(places, columns) & ~ending
        how: list[How] = ["prefix" if guess else "exact" for guess in estimated.tolist()]
        for column, log_end in zip(columns, draft.log_end, strict=True):
            column[ending] = log_end[places[ending]]
        return scores_of(columns, how, np.where(estimated, np.inf, 0.0), parts=parts)

    def estimated(self, ids: Ids) -> NDArray[np.bool_]:
        """Of which ids a model showed nothing, (c,)."""
        places = np.full(len(ids), self._place)
        return self.draft.unshown(places, self.draft.columns(places, ids))

    def propose(self, count: int, model: int = 0) -> list[Token]:
        model = min(model, len(self.draft.shown) - 1)
        ends, token_of = self.draft.ends[model], self.draft.base.token_of
        ids, values = self.draft.shown[model].top(self._place, count + len(ends))
        kept = np.flatnonzero(np.isfinite(values) & ~np.isin(ids, ends))[:count]
        proposed = [token_of(i) for i in ids[kept].tolist()]
        return with_end(proposed, values[kept], float(self.draft.log_end[model][self._place]), count)


def _ids_of(tokens: Sequence[Token], base: Vocabulary) -> tuple[Ids, NDArray[np.bool_]]:
    """Ids (c,), -1 where unknown, and which tokens end the text."""
    if isinstance(tokens, VocabularyTokens):
        return tokens.ids, np.isin(tokens.ids, list(base.end_ids))
    ids = np.array([-1 if token.id is None else token.id for token in tokens], dtype=np.int64)
    return ids, np.array([token.end for token in tokens], dtype=np.bool_)
