"""An answer on its way into the store: kept part by part, and what waits for it is told."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np

from blackbox_proxy.base.cache.reading import Wanted, logprob_of
from blackbox_proxy.base.cache.rows import GREEDY, STOP, Drawn, after, drawn_to, packed, reveal_key, token_to
from blackbox_proxy.base.cache.store import LEASE, Store, StoredRow
from blackbox_proxy.types import Draft, FinishReason, Position, Token

_log = logging.getLogger(__name__)


class Keeping:
    """An answer on its way into the store, part by part."""

    def __init__(self, store: Store, wanted: Wanted, owner: str | None) -> None:
        self._store = store
        self._wanted = wanted
        self._owner = owner
        self._key, self._before = wanted.start, wanted.before
        self._last: Token | None = wanted.prefix.tokens[-1] if wanted.prefix.tokens else None
        self._place = len(wanted.prefix.tokens)
        self._draw: bytes | None = None
        self._own = False
        self._finish: FinishReason | None = None

    def add(self, part: Draft) -> None:
        """Keep these positions. Whoever waits for the first of them can go on; a greedy claim moves to what is next."""
        rows: list[tuple[StoredRow, Position | None]] = []
        for i, position in enumerate(part.positions):
            drawn = Drawn(position.token, position.logprob, part.cut and i + 1 == len(part.positions))
            rows.append((self._stored(i >= part.given, drawn_to(drawn)), position))
            if i < part.given and position.logprob is not None and logprob_of(position.token, position) is None:
                rows.append((self._told(position), alone(position.token, position.logprob)))
            self._move(position.token)
        if part.finish is not None:
            self._finish = part.finish
        if rows:
            self._write(rows)

    def end(self) -> None:
        """The answer is complete: if the base ended its text without showing the end, that is worth knowing, too."""
        if self._finish == "stop" and not (self._last is not None and self._last.end) and self._owner is not None:
            self._write([(self._stored(True, STOP), None)])

    def _stored(self, own: bool, drawn: str) -> StoredRow:
        if own and not self._own:
            self._own, self._draw = True, self._wanted.draw_at(self._key)
        token = None if self._last is None else json.dumps(token_to(self._last))
        kept = own and self._draw is not None
        return StoredRow(
            self._key,
            self._place,
            self._before,
            token,
            b"",
            self._draw if kept else None,
            drawn if kept else None,
        )

    def _told(self, position: Position) -> StoredRow:
        """A row of its own for a given token that is not among the candidates."""
        spelled = json.dumps(token_to(position.token))
        return StoredRow(reveal_key(self._key, position.token), self._place, self._key, spelled, b"")

    def _move(self, token: Token) -> None:
        self._before, self._key, self._last = self._key, after(self._key, token), token
        self._place += 1

    def _write(self, rows: list[tuple[StoredRow, Position | None]]) -> None:
        wanted = self._wanted
        claim = wanted.claim(self._key if wanted.draw == GREEDY else wanted.start)

        def write() -> None:
            entries = [row if position is None else row._replace(value=packed(position)) for row, position in rows]
            self._store.put(wanted.root, entries, self._owner, claim)

        later(self._store, write)


def alone(token: Token, logprob: float) -> Position:
    return Position(token, None, (token,), np.array([logprob]))


def later(store: Store, work: Callable[..., None], *arguments: Any) -> None:
    """On the store's thread, without waiting for it."""
    with suppress(RuntimeError):  # the interpreter is on its way out; the claim runs out by itself
        store.submit(work, *arguments).add_done_callback(_look_at)


def _look_at(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.warning("the cache could not keep an answer", exc_info=error)


class held:
    """Renews a claim while its owner waits for the base."""

    def __init__(self, store: Store, owner: str | None) -> None:
        self._store = store
        self._owner = owner
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Callable[[bool], None]:
        self._hold(True)
        return self._hold

    def __exit__(self, *_: object) -> None:
        self._hold(False)

    def _hold(self, on: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if on and self._owner is not None:
            self._timer = asyncio.get_running_loop().call_later(LEASE / 3, self._renew, self._owner)

    def _renew(self, owner: str) -> None:
        later(self._store, self._store.renew, owner)
        self._hold(True)
