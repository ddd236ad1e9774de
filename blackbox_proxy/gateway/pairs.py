"""Pairs as a gateway gives them to a tuner: one that is shown `Both` prompts, and none at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blackbox_proxy.gateway.prompts import Both
from blackbox_proxy.protocols import Pair, Row, Session
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import How, Position, Prompt, Scores, Token


class ShownPair:
    """A pair that understands `Both`: it is shown the one half, and the other half has been issued already."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    @property
    def has_antiexpert(self) -> bool:
        return self.pair.has_antiexpert

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        self.pair.check(prompt.shown if isinstance(prompt, Both) else prompt, max_tokens)

    def open(self, prompt: Prompt, base: Vocabulary | None) -> Session:
        if not isinstance(prompt, Both):
            return self.pair.open(prompt, base)
        session = self.pair.open(prompt.shown, base)
        return _After(session, prompt.issued) if prompt.issued else session

    def close(self) -> None:
        self.pair.close()


class _After:
    """A session of a text of which some tokens were issued before it was opened."""

    def __init__(self, session: Session, issued: tuple[Token, ...]) -> None:
        self._session = session
        self._issued = issued

    def read(self, issued: Sequence[Token]) -> None:
        self._session.read((*self._issued, *issued))

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        return self._session.score((*self._issued, *issued), positions)

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        self._session.refine(wanted)

    def close(self) -> None:
        self._session.close()


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
