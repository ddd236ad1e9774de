"""Base and pair spell alike: E(c) is the probability of that id after exactly the issued ids. Plain proxy-tuning."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.logspace import logsumexp
from blackbox_proxy.pair.protocol import Row
from blackbox_proxy.pair.side import Rows, Side, columns, scores_of, with_end
from blackbox_proxy.types import Position, Scores, Token
from blackbox_proxy.vocabulary import Ids, Vocabulary, VocabularyTokens


class PlainSession:
    """Ids are shared with the base: E(c) is the probability of that id after exactly the issued ids."""

    def __init__(self, sides: Sequence[Side], base: Vocabulary, lock: threading.Lock) -> None:
        self._sides = sides
        self._base = base
        self._lock = lock

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        drafted = [position.token.id for position in positions]
        if None in drafted[:-1]:  # what follows an unidentified token cannot be scored
            positions = positions[: drafted.index(None) + 1]
        text = [i for i in (*(token.id for token in issued), *drafted[: len(positions) - 1]) if i is not None]
        with self._lock:
            rows = [columns(side.trunk.advance(side.prompt + text, keep=len(positions))) for side in self._sides]
        ends = [side.ends for side in self._sides]
        return [_PlainRow([row[j] for row in rows], ends, self._base) for j in range(len(positions))]

    def close(self) -> None:
        self._sides = ()


class _PlainRow:
    limit: int | None = None

    def __init__(self, rows: Sequence[Rows], ends: Sequence[Ids], base: Vocabulary) -> None:
        self._rows = rows
        self._ends = ends
        self._base = base
        self._log_end = [logsumexp(row[ids].astype(np.float64)) for row, ids in zip(rows, ends, strict=True)]

    def score(self, tokens: Sequence[Token]) -> Scores:
        ids, ending = _ids_of(tokens, self._base)
        columns = []
        for row, log_end in zip(self._rows, self._log_end, strict=True):
            known = (ids >= 0) & (ids < len(row))
            column = np.where(known, row[np.where(known, ids, 0)].astype(np.float64), -np.inf)
            column[ending] = log_end
            columns.append(column)
        return scores_of(columns, ["exact"] * len(tokens))

    def propose(self, count: int) -> list[Token]:
        row = self._rows[0].copy()
        row[self._ends[0]] = -np.inf
        top = np.argpartition(row, -count)[-count:] if len(row) > count else np.arange(len(row))
        top = top[np.argsort(-row[top], kind="stable")]
        proposed = [(self._base.token_of(int(i)), float(row[i])) for i in top if np.isfinite(row[i])]
        return with_end(proposed, self._log_end[0], count)


def _ids_of(tokens: Sequence[Token], base: Vocabulary) -> tuple[Ids, NDArray[np.bool_]]:
    """Ids (c,), -1 where unknown, and which tokens end the text."""
    if isinstance(tokens, VocabularyTokens):
        return tokens.ids, np.isin(tokens.ids, list(base.end_ids))
    ids = np.array([-1 if token.id is None else token.id for token in tokens], dtype=np.int64)
    return ids, np.array([token.end for token in tokens], dtype=np.bool_)
