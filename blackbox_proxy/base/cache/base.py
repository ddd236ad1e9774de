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
from contextlib import aclosing

import numpy as np

from blackbox_proxy.base.cache.keeping import Keeping, alone, held, later
from blackbox_proxy.base.cache.reading import Reading, Wanted, draw_of, root_of
from blackbox_proxy.base.cache.rows import GREEDY, digest, packed, reveal_key, token_to
from blackbox_proxy.base.cache.store import MAX_BYTES, Store, StoredRow, new_owner
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.protocols import Ask, Base, Revealed
from blackbox_proxy.types import Draft, Prefix, Token, Usage

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
                    StoredRow(
                        keys[place],
                        len(prefix.tokens),
                        wanted.start,
                        json.dumps(token_to(tokens[place])),
                        packed(alone(tokens[place], float(values[place]))),
                    )
                    for place in missing
                    if not np.isnan(values[place])
                ]
                later(self.store, self.store.put, wanted.root, entries)
            return Revealed(values, usage)
        finally:
            later(self.store, self.store.release, owner)

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
            kept = Keeping(self.store, wanted, owner)
            with held(self.store, owner) as hold:
                async with aclosing(send()) as parts:
                    async for part in parts:
                        kept.add(part)
                        hold(False)  # who does not take what he asked for cannot make others wait for ever
                        yield part
                        hold(True)
                kept.end()
        finally:
            if owner is not None:
                later(self.store, self.store.release, owner)

    async def _served(self, wanted: Wanted, owner: str) -> Draft | None:
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

    def _look(self, wanted: Wanted, owner: str) -> Draft | bool:
        """On the store's thread. A draft from the rows; else whether what is missing is now claimed by `owner`."""
        store, claim = self.store, wanted.claim(wanted.start)
        drawn = wanted.draw != GREEDY
        # A sampled draft is only served when it is complete: its rest hangs on the seed and on where it began.
        if not (drawn and store.claimed(claim)) and (draft := self._reading.draft(wanted)) is not None:
            return draft
        with store.together():
            if not (drawn and store.claimed(claim)) and (draft := self._reading.draft(wanted)) is not None:
                return draft
            return store.claim(claim, owner)
