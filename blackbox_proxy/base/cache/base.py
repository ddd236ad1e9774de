"""A cache around any base: what was shown once at a place of a text is never asked for again.

One row per position, so that a draft of n tokens is n answers to later questions, whatever their length and whatever
the pair made of it: another alpha, another expert, a text that goes the same way for a while. The row of a place is
found by a digest of base, prompt and the tokens issued so far. A draft is served from the cache alone or asked for, as
far as the rows reach; what lies beyond is the next request. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from blackbox_proxy.base.cache.reading import Reading, Wanted, draw_of, logprob_of, root_of
from blackbox_proxy.base.cache.rows import GREEDY, STOP, Drawn, after, digest, drawn_to, packed, reveal_key, token_to
from blackbox_proxy.base.cache.seeds import open_seeds
from blackbox_proxy.base.cache.store import LEASE, MAX_BYTES, Store, StoredRow, new_owner
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.protocols import Ask, Base, Revealed
from blackbox_proxy.types import Draft, FinishReason, Position, Prefix, Token, Usage

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 0.005, 0.1  # seconds between two looks for what somebody else is asking for


class CachedBase(BaseAround):
    """A `Base` that asks `base` only for what is not in the file yet.

    path: the cache file, by default one for all in the user's cache folder; or an open `Store`. max_bytes: what the
    file may hold; then the rows that were not used for longest are forgotten. Many threads and processes may share the
    file: what one of them is asking for, the others wait for.

    seeds: files that `cache export` has written; what they have is not asked for either, and they are never written to.

    Greedy drafts, drafts with a seed, and given text come from the cache. Drafts without a seed are always asked for.
    Positions from the cache are counted in `Usage.cached_positions`, with no call and no tokens. A base without
    `identity` is passed through.
    """

    def __init__(
        self,
        base: Base,
        path: str | os.PathLike[str] | Store | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        seeds: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        super().__init__(base)
        if isinstance(path, Store):
            self.store = path
        else:
            opened = open_seeds([Path(seed) for seed in seeds], None if path is None else Path(path))
            self.store = Store(path, max_bytes=max_bytes, seeds=opened)
        self._reading = Reading(base, self.store)

    def __repr__(self) -> str:
        return f"CachedBase({self.base!r}, {str(self.store.path)!r})"

    async def draft(self, ask: Ask) -> Draft:
        """The rows that there are, at most n and those of the given tokens; where there is none, the base's draft."""

        async def whole() -> AsyncGenerator[Draft, None]:
            yield await self.base.draft(ask)

        async with aclosing(self._parts(whole, ask)) as parts:
            return [part async for part in parts][-1]

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        """The same: in one part from the cache, else as the base streams it; what has arrived is kept."""

        def streamed() -> AsyncGenerator[Draft, None]:
            return self.base.stream(ask)

        async with aclosing(self._parts(streamed, ask)) as parts:
            async for part in parts:
                yield part

    async def reveal(self, prefix: Prefix, tokens: Sequence[Token]) -> Revealed:
        """What the base told of these tokens; it is asked about the others only. One row for each token."""
        identity = self.base.identity
        if identity is None:
            return await self.base.reveal(prefix, tokens)
        wanted = Wanted(root_of(identity, prefix.prompt), Ask(prefix, 1), None)
        keys = [reveal_key(wanted.start, token) for token in tokens]
        claim, owner = digest(*keys), new_owner()
        values = np.full(len(tokens), np.nan)

        def look() -> bool:
            """Whether all that is missing is ours to ask."""
            for place, key in enumerate(keys):
                row = self._reading.row(key, None)
                values[place] = np.nan if row is None else row.logprobs[0]
            return not np.isnan(values).any() or self.store.claim(claim, owner)

        try:
            await self._waited(look)
            missing = [int(place) for place in np.flatnonzero(np.isnan(values))]
            usage = Usage()
            if missing:
                told = await self.base.reveal(prefix, [tokens[place] for place in missing])
                values[missing], usage = told.logprobs, told.usage
                rows = [
                    _told(wanted.start, len(prefix.tokens), tokens[i])._replace(
                        value=packed(_alone(tokens[i], values[i]))
                    )
                    for i in missing
                    if not np.isnan(values[i])
                ]
                _later(self.store, self.store.put, wanted.root, rows)
            return Revealed(values, usage)
        finally:
            _later(self.store, self.store.release, owner)

    async def aclose(self) -> None:
        """Close the base and the file. Both can be used again."""
        await self.base.aclose()
        await asyncio.to_thread(self.store.close)

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _parts(self, send: Callable[[], AsyncGenerator[Draft, None]], ask: Ask) -> AsyncGenerator[Draft, None]:
        identity = self.base.identity
        if identity is None:
            async with aclosing(send()) as parts:
                async for part in parts:
                    yield part
            return
        wanted = Wanted(root_of(identity, ask.prefix.prompt), ask, draw_of(ask.temperature, ask.seed))
        owner = new_owner() if wanted.draw is not None else None
        try:
            if owner is not None:
                served = await self._served(wanted, owner)
                if served is not None:
                    yield served
                    return
            kept = _Keeping(self.store, wanted, owner)
            with _held(self.store, owner) as hold:
                async with aclosing(send()) as parts:
                    async for part in parts:
                        kept.add(part)
                        hold(False)  # who does not take what he asked for cannot make others wait for ever
                        yield part
                        hold(True)
                kept.end()
        finally:
            if owner is not None:
                _later(self.store, self.store.release, owner)

    async def _served(self, wanted: Wanted, owner: str) -> Draft | None:
        """What the cache has; None once it is ours to ask. Waits while somebody else asks for the same."""
        found = await self._waited(partial(self._look, wanted, owner))
        return None if isinstance(found, bool) else found

    async def _waited(self, look: Callable[[], _T]) -> _T:
        """What `look` says on the store's thread, as soon as that is not False."""
        wait = _FIRST_WAIT
        while (found := await asyncio.wrap_future(self.store.submit(look))) is False:
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, _LONGEST_WAIT)
        return found

    def _look(self, wanted: Wanted, owner: str) -> Draft | bool:
        """On the store's thread. A draft from the rows; else whether what is missing is now claimed by `owner`."""
        store, claim = self.store, wanted.claim(wanted.start)
        drawn = wanted.draw != GREEDY
        # A sampled draft is only served when it is complete: what it draws depends on its seed and on where it began.
        if not (drawn and store.claimed(claim)) and (draft := self._reading.draft(wanted)) is not None:
            return draft
        with store.together():
            if not (drawn and store.claimed(claim)) and (draft := self._reading.draft(wanted)) is not None:
                return draft
            return store.claim(claim, owner)


class _Keeping:
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
                rows.append((_told(self._key, self._place, position.token), _alone(position.token, position.logprob)))
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

    def _move(self, token: Token) -> None:
        self._before, self._key, self._last = self._key, after(self._key, token), token
        self._place += 1

    def _write(self, rows: list[tuple[StoredRow, Position | None]]) -> None:
        wanted = self._wanted
        claim = wanted.claim(self._key if wanted.draw == GREEDY else wanted.start)

        def write() -> None:
            entries = [row if position is None else row._replace(value=packed(position)) for row, position in rows]
            self._store.put(wanted.root, entries, self._owner, claim)

        _later(self._store, write)


def _told(key: bytes, place: int, token: Token) -> StoredRow:
    """A row of its own for a token that the base told of at a place, though it is not among the candidates there."""
    return StoredRow(reveal_key(key, token), place, key, json.dumps(token_to(token)), b"")


def _alone(token: Token, logprob: float) -> Position:
    return Position(token, None, (token,), np.array([logprob]))


def _later(store: Store, work: Callable[..., None], *arguments: Any) -> None:
    """On the store's thread, without waiting for it."""
    with suppress(RuntimeError):  # the interpreter is on its way out; the claim runs out by itself
        store.submit(work, *arguments).add_done_callback(_look_at)


def _look_at(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.warning("the cache could not keep an answer", exc_info=error)


class _held:
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
        _later(self._store, self._store.renew, owner)
        self._hold(True)
