"""What the cache knows of a question: where its answers lie, and how far the rows reach. Sends nothing."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from blackbox_proxy.base.cache.rows import GREEDY, STOP, Drawn, after, digest, drawn_from, reveal_key, unpacked
from blackbox_proxy.base.cache.store import Root, Store
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.text.vocabulary import VocabularyTokens, is_ids
from blackbox_proxy.types import Draft, Floats, Position, Prefix, Prompt, Token, Usage

_log = logging.getLogger(__name__)


class Wanted:
    """A question: what is asked for, and under which keys its answers lie."""

    def __init__(self, root: Root, ask: Ask, draw: bytes | None) -> None:
        self.root = root
        self.prefix = ask.prefix
        self.n = ask.n
        self.draw = draw
        self.given = tuple(ask.given)
        self.useful_from = ask.useful_from
        self.before: bytes | None = None
        self.start = root.root
        for token in ask.prefix.tokens:
            self.before, self.start = self.start, after(self.start, token)

    def draw_at(self, key: bytes) -> bytes | None:
        """How tokens of a draft that begins at `key` are drawn: a seed says nothing without where it was used."""
        return self.draw if self.draw in (None, GREEDY) else digest(self.draw or b"", key)

    def claim(self, key: bytes) -> bytes:
        return digest(key, self.draw or b"")


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of a place: the candidates (None if only the draw is known), and what was drawn there."""

    tokens: Sequence[Token] | None
    logprobs: Floats
    drawn: Drawn | str | None

    def likeliest(self) -> list[Token]:
        """All candidates that share the highest probability."""
        assert self.tokens is not None
        return [self.tokens[int(i)] for i in np.flatnonzero(self.logprobs == self.logprobs[0])]


class Reading:
    """Reads drafts from the rows of a store, on the store's thread; `base` says what could be continued from."""

    def __init__(self, base: Base, store: Store) -> None:
        self._base = base
        self._store = store

    def draft(self, wanted: Wanted) -> Draft | None:
        """The rows from the prefix on: along the given tokens, then along what the base drew there; None if there are
        none, or too few to be of use.
        """
        key, given = wanted.start, list[Position]()
        for token in wanted.given:
            row = self.row(key, None)
            if row is None or row.tokens is None:
                break
            logprob = logprob_of(token, row)
            given.append(
                Position(token, self._told(key, token) if logprob is None else logprob, row.tokens, row.logprobs)
            )
            key = after(key, token)
        own = Draft(())
        if len(given) == len(wanted.given):
            own = self._own(wanted, key)
        positions = (*given, *own.positions)
        if len(positions) < wanted.useful_from and own.finish is None and not own.cut:
            issued = [position.token for position in positions]
            if not issued or not self._continues(wanted, issued):
                return None
        return Draft(positions, own.finish, Usage(cached_positions=len(positions)), len(given), own.cut)

    def _own(self, wanted: Wanted, key: bytes) -> Draft:
        """The base's own draft from `key` on, as far as its rows reach, or to where its answer was cut. Its last token
        may be one that no request can go on from: whoever takes that comes back and wants a longer draft.
        """
        draw = wanted.draw_at(key)
        positions: list[Position] = []
        while len(positions) < wanted.n:
            row = self.row(key, draw)
            if row is None:
                break
            if row.drawn == STOP:
                return Draft(tuple(positions), "stop")
            if row.tokens is None:
                break
            told, cut = True, False
            if isinstance(row.drawn, Drawn):
                token, logprob, cut = row.drawn
            elif wanted.draw == GREEDY:
                likeliest = row.likeliest()
                token, logprob = likeliest[0], float(row.logprobs[0])
                told = len(likeliest) == 1
                issued = [*wanted.given, *(position.token for position in positions)]
                if not told and not all(other.end or self._continues(wanted, [*issued, other]) for other in likeliest):
                    break  # which of them the base would write decides what can be issued
            else:
                break
            positions.append(Position(token, logprob, row.tokens, row.logprobs))
            if token.end:
                return Draft(tuple(positions), "stop")
            if cut:
                return Draft(tuple(positions), cut=True)
            if not told:
                break
            key = after(key, token)
        return Draft(tuple(positions))

    def _continues(self, wanted: Wanted, more: Sequence[Token]) -> bool:
        return self._base.can_continue(Prefix(wanted.prefix.prompt, (*wanted.prefix.tokens, *more)))

    def _told(self, key: bytes, token: Token) -> float | None:
        """log q of a token that is not among the candidates, where the base has told it."""
        row = self.row(reveal_key(key, token), None)
        return None if row is None else float(row.logprobs[0])

    def row(self, key: bytes, draw: bytes | None) -> Known | None:
        found = self._store.find(key, draw)
        if found is None:
            return None
        try:
            drawn: Drawn | str | None = found.drawn
            if found.drawn is not None and found.drawn != STOP:
                drawn = drawn_from(found.drawn)
            if not found.value:
                return Known(None, np.empty(0), drawn)
            return Known(*unpacked(found.value, self._base.vocabulary), drawn)
        except (ValueError, TypeError, KeyError, zlib.error) as error:
            _log.warning("a row of the cache %s cannot be read and is dropped: %s", self._store.path, error)
            self._store.drop(key)
            return None


def draw_of(temperature: float, seed: int | None) -> bytes | None:
    """How the base draws, as far as it can be repeated; None where it cannot."""
    if temperature == 0.0:
        return GREEDY
    return None if seed is None else f"{temperature!r} {seed}".encode()


def logprob_of(token: Token, row: Known | Position) -> float | None:
    """A given token's log probability, if it is among the candidates."""
    if isinstance(row.tokens, VocabularyTokens) and token.id is not None:
        places = np.flatnonzero(row.tokens.ids == token.id)
        return float(row.logprobs[places[0]]) if len(places) else None
    found = (float(value) for other, value in zip(row.tokens or (), row.logprobs, strict=False) if other == token)
    return next(found, None)


def root_of(identity: Mapping[str, object], prompt: Prompt) -> Root:
    base = json.dumps(identity, sort_keys=True)
    if isinstance(prompt, str):
        kind: list[object] = ["text", prompt]
    elif is_ids(prompt):
        kind = ["ids", [int(index) for index in prompt]]
    else:
        kind = ["messages", [dict(message) for message in prompt if isinstance(message, Mapping)]]
    spelled = json.dumps(kind, sort_keys=True)
    return Root(digest(base.encode(), spelled.encode()), base, spelled)
