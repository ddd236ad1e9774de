"""A pair and the prompt that it is shown, where that is not quite the base's (text/shown.py)."""

from __future__ import annotations

from collections.abc import Sequence

from blackbox_proxy.protocols import Pair, Row, Session
from blackbox_proxy.text.shown import Both, shown
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Position, Prompt, Token


def check_prompt(pairs: Sequence[Pair], prompt: Prompt, max_tokens: int) -> None:
    """Raise InputError or ContextTooLong where a pair cannot take this prompt."""
    for pair in pairs:
        pair.check(shown(prompt), max_tokens)


def open_session(pair: Pair, prompt: Prompt, base: Vocabulary | None) -> Session:
    """A session for this prompt; what a `Both` has issued already comes before everything."""
    session = pair.open(shown(prompt), base)
    return _After(session, prompt.issued) if isinstance(prompt, Both) and prompt.issued else session


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
