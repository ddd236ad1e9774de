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
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from blackbox_proxy.base.cache.rows import (
    GREEDY,
    STOP,
    Drawn,
    after,
    digest,
    drawn_from,
    drawn_to,
    named,
    packed,
    token_to,
    unpacked,
)
from blackbox_proxy.base.cache.store import LEASE, MAX_BYTES, Entry, Root, Store, new_owner
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.protocols import Ask, Base, Revealed
from blackbox_proxy.text.vocabulary import VocabularyTokens, is_ids
from blackbox_proxy.types import Draft, FinishReason, Floats, Position, Prefix, Prompt, Token, Usage

_log = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 0.005, 0.1  # seconds between two looks for what somebody else is asking for


class CachedBase(BaseAround):
    """A `Base` that asks `base` only for what is not in the file yet.

    path: the cache file, by default one for all in the user's cache folder; or an open `Store`. max_bytes: what the
    file may hold; then the rows that were not used for longest are forgotten. Many threads and processes may share the
    file: what one of them is asking for, the others wait for.

    Greedy drafts, drafts with a seed, and given text come from the cache. Drafts without a seed are always asked for.
    Positions from the cache are counted in `Usage.cached_positions`, with no call and no tokens. A base without
    `identity` is passed through.
    """

    def __init__(
        self, base: Base, path: str | os.PathLike[str] | Store | None = None, *, max_bytes: int = MAX_BYTES
    ) -> None:
        super().__init__(base)
        self.store = path if isinstance(path, Store) else Store(path, max_bytes=max_bytes)

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
        wanted = _Wanted(_root(identity, prefix.prompt), Ask(prefix, 1), None)
        keys = [named(wanted.start, token) for token in tokens]
        claim, owner = digest(*keys), new_owner()
        values = np.full(len(tokens), np.nan)

        def look() -> bool:
            """Whether all that is missing is ours to ask."""
            for place, key in enumerate(keys):
                row = self._row(key, None)
                values[place] = np.nan if row is None else row.logprobs[0]
            return not np.isnan(values).any() or self.store.claim(claim, owner)

        try:
            wait = _FIRST_WAIT
            while not await asyncio.wrap_future(self.store.submit(look)):
                await asyncio.sleep(wait)
                wait = min(wait * 1.5, _LONGEST_WAIT)
            missing = [int(place) for place in np.flatnonzero(np.isnan(values))]
            usage = Usage()
            if missing:
                told = await self.base.reveal(prefix, [tokens[place] for place in missing])
                values[missing], usage = told.logprobs, told.usage
                entries = [
                    Entry(
                        keys[place],
                        len(prefix.tokens),
                        wanted.start,
                        json.dumps(token_to(tokens[place])),
                        packed(_alone(tokens[place], float(values[place]))),
                    )
                    for place in missing
                    if not np.isnan(values[place])
                ]
                _later(self.store, self.store.put, wanted.root, entries)
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
        wanted = _Wanted(_root(identity, ask.prefix.prompt), ask, _draw(ask.temperature, ask.seed))
        owner = new_owner() if wanted.draw is not None else None
        try:
            if owner is not None:
                served = await self._served(wanted, owner)
                if served is not None:
                    yield served
                    return
            kept = _Kept(self.store, wanted, owner)
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

    async def _served(self, wanted: _Wanted, owner: str) -> Draft | None:
        """What the cache has; None once it is ours to ask. Waits while somebody else asks for the same."""
        wait = _FIRST_WAIT
        while True:
            found = await asyncio.wrap_future(self.store.submit(self._look, wanted, owner))
            if not isinstance(found, bool):
                return found
            if found:
                return None
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, _LONGEST_WAIT)

    def _look(self, wanted: _Wanted, owner: str) -> Draft | bool:
        """On the store's thread. A draft from the rows; else whether what is missing is now claimed by `owner`."""
        store, claim = self.store, wanted.claim(wanted.start)
        drawn = wanted.draw != GREEDY
        # A sampled draft is only served when it is complete: its rest hangs on the seed and on where it began.
        if not (drawn and store.claimed(claim)) and (draft := self._walk(wanted)) is not None:
            return draft
        with store.together():
            if not (drawn and store.claimed(claim)) and (draft := self._walk(wanted)) is not None:
                return draft
            return store.claim(claim, owner)

    # -- reading --------------------------------------------------------------------------------------------------

    def _walk(self, wanted: _Wanted) -> Draft | None:
        """The rows from the prefix on: along the given tokens, then along what the base drew there; None if there are
        none, or too few to be of use.
        """
        key, given = wanted.start, list[Position]()
        for token in wanted.given:
            row = self._row(key, None)
            if row is None or row.tokens is None:
                break
            logprob = _logprob_of(token, row)
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

    def _own(self, wanted: _Wanted, key: bytes) -> Draft:
        """The base's own draft from `key` on, as far as its rows reach, or to where its answer was cut. Its last token
        may be one that no request can go on from: whoever takes that comes back and wants a longer draft.
        """
        draw = wanted.draw_at(key)
        positions: list[Position] = []
        while len(positions) < wanted.n:
            row = self._row(key, draw)
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

    def _continues(self, wanted: _Wanted, more: Sequence[Token]) -> bool:
        return self.base.can_continue(Prefix(wanted.prefix.prompt, (*wanted.prefix.tokens, *more)))

    def _told(self, key: bytes, token: Token) -> float | None:
        """log q of a token that is not among the candidates, where the base has told it."""
        row = self._row(named(key, token), None)
        return None if row is None else float(row.logprobs[0])

    def _row(self, key: bytes, draw: bytes | None) -> _Row | None:
        found = self.store.find(key, draw)
        if found is None:
            return None
        try:
            drawn: Drawn | str | None = found.drawn
            if found.drawn is not None and found.drawn != STOP:
                drawn = drawn_from(found.drawn)
            if not found.value:
                return _Row(None, np.empty(0), drawn)
            return _Row(*unpacked(found.value, self.base.vocabulary), drawn)
        except (ValueError, TypeError, KeyError, zlib.error) as error:
            _log.warning("a row of the cache %s cannot be read and is dropped: %s", self.store.path, error)
            self.store.drop(key)
            return None


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """What is known of a place: the candidates (None if only the draw is known), and what was drawn there."""

    tokens: Sequence[Token] | None
    logprobs: Floats
    drawn: Drawn | str | None

    def likeliest(self) -> list[Token]:
        """All candidates that share the highest probability."""
        assert self.tokens is not None
        return [self.tokens[int(i)] for i in np.flatnonzero(self.logprobs == self.logprobs[0])]


class _Wanted:
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


class _Kept:
    """An answer on its way into the store, part by part."""

    def __init__(self, store: Store, wanted: _Wanted, owner: str | None) -> None:
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
        rows: list[tuple[Entry, Position | None]] = []
        for i, position in enumerate(part.positions):
            drawn = Drawn(position.token, position.logprob, part.cut and i + 1 == len(part.positions))
            rows.append((self._entry(i >= part.given, drawn_to(drawn)), position))
            if i < part.given and position.logprob is not None and _logprob_of(position.token, position) is None:
                rows.append((self._told(position), _alone(position.token, position.logprob)))
            self._move(position.token)
        if part.finish is not None:
            self._finish = part.finish
        if rows:
            self._write(rows)

    def end(self) -> None:
        """The answer is complete: if the base ended its text without showing the end, that is worth knowing, too."""
        if self._finish == "stop" and not (self._last is not None and self._last.end) and self._owner is not None:
            self._write([(self._entry(True, STOP), None)])

    def _entry(self, own: bool, drawn: str) -> Entry:
        if own and not self._own:
            self._own, self._draw = True, self._wanted.draw_at(self._key)
        token = None if self._last is None else json.dumps(token_to(self._last))
        kept = own and self._draw is not None
        return Entry(
            self._key,
            self._place,
            self._before,
            token,
            b"",
            self._draw if kept else None,
            drawn if kept else None,
        )

    def _told(self, position: Position) -> Entry:
        """A row of its own for a given token that is not among the candidates."""
        spelled = json.dumps(token_to(position.token))
        return Entry(named(self._key, position.token), self._place, self._key, spelled, b"")

    def _move(self, token: Token) -> None:
        self._before, self._key, self._last = self._key, after(self._key, token), token
        self._place += 1

    def _write(self, rows: list[tuple[Entry, Position | None]]) -> None:
        wanted = self._wanted
        claim = wanted.claim(self._key if wanted.draw == GREEDY else wanted.start)

        def write() -> None:
            entries = [
                entry if position is None else entry._replace(value=packed(position)) for entry, position in rows
            ]
            self._store.put(wanted.root, entries, self._owner, claim)

        _later(self._store, write)


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


# -- keys -------------------------------------------------------------------------------------------------------------


def _root(identity: Mapping[str, object], prompt: Prompt) -> Root:
    base = json.dumps(identity, sort_keys=True)
    if isinstance(prompt, str):
        kind: list[object] = ["text", prompt]
    elif is_ids(prompt):
        kind = ["ids", [int(index) for index in prompt]]
    else:
        kind = ["messages", [dict(message) for message in prompt if isinstance(message, Mapping)]]
    spelled = json.dumps(kind, sort_keys=True)
    return Root(digest(base.encode(), spelled.encode()), base, spelled)


def _alone(token: Token, logprob: float) -> Position:
    return Position(token, None, (token,), np.array([logprob]))


def _draw(temperature: float, seed: int | None) -> bytes | None:
    """How the base draws, as far as it can be repeated; None where it cannot."""
    if temperature == 0.0:
        return GREEDY
    return None if seed is None else f"{temperature!r} {seed}".encode()


def _logprob_of(token: Token, row: _Row | Position) -> float | None:
    """A given token's log probability, if it is among the candidates."""
    if isinstance(row.tokens, VocabularyTokens) and token.id is not None:
        places = np.flatnonzero(row.tokens.ids == token.id)
        return float(row.logprobs[places[0]]) if len(places) else None
    found = (float(value) for other, value in zip(row.tokens or (), row.logprobs, strict=False) if other == token)
    return next(found, None)
