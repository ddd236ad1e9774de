"""No pair: what the base under its own name is decoded with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blackbox_proxy.protocols import Row, Session
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import How, Position, Prompt, Scores, Token


class NoPair:
    """Expert and anti-expert that agree about everything and propose nothing: what is decoded is the base."""

    has_antiexpert = True

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        """Nothing is shown to it."""

    def open(self, prompt: Prompt, base: Vocabulary | None) -> Session:
        return _Nothing()

    def close(self) -> None:
        """Nothing was opened."""


class _Nothing:
    def read(self, issued: Sequence[Token]) -> None:
        """There is no model."""

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        return [_Neutral() for _ in positions]

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        """Nothing is estimated."""

    def close(self) -> None:
        """Nothing is held."""


class _Neutral:
    limit: int | None = None

    def score(self, tokens: Sequence[Token]) -> Scores:
        nothing = np.zeros(len(tokens))
        how: list[How] = ["neutral"]
        return Scores(nothing, nothing, nothing, tuple(how * len(tokens)))

    def propose(self, count: int, model: int = 0) -> list[Token]:
        return []
