"""A base whose texts follow from their prompts, a cache around it, and a process that fills one (run as a program)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeBase

from blackbox_proxy.base.cache.base import CachedBase
from blackbox_proxy.protocols import Abilities, Ask, Base
from blackbox_proxy.types import Draft, Position, Prefix, Token, Usage

LENGTH = 24  # tokens of a text of `Told`


class Told(FakeBase):
    """A base whose texts follow from their prompts. Writes what it shows into `log`, one line per position."""

    name = "told"

    def __init__(self, log: Path | None = None, *, seconds: float = 0.0, identity: object = "told") -> None:
        self.log = log
        self.seconds = seconds
        self.calls = 0
        self.error: Exception | None = None
        self.unseen_end = True
        self._identity = identity

    @property
    def abilities(self) -> Abilities:
        return Abilities(streams=True, scores=True, streams_scored=True)

    @property
    def identity(self) -> Mapping[str, object] | None:
        return None if self._identity is None else {"model": self._identity}

    def can_continue(self, prefix: Prefix) -> bool:
        return not prefix.tokens or not (prefix.tokens[-1].bytes or b"").startswith(b"\xe6")

    def show(self, prefix: Prefix, token: Token | None, temperature: float, seed: int | None) -> Position:
        spelled = repr((prefix.prompt, [t.key for t in prefix.tokens])).encode()
        numbers = np.frombuffer(hashlib.sha256(spelled).digest(), np.uint8)[:5].astype(float)
        logprobs = np.sort(np.log((numbers + 1 + np.arange(5) / 10) / 2000))[::-1]
        tokens = tuple(Token(bytes=b" %d" % n, text=f" {n:d}") for n in (numbers + 256 * np.arange(5)).astype(int))
        chosen = 0 if temperature == 0 else random.Random(f"{spelled!r}{seed}").randrange(5)
        if self.log is not None:
            with self.log.open("ab", buffering=0) as log:
                log.write(b"%s\n" % hashlib.sha256(spelled).hexdigest()[:12].encode())
        return Position(token or tokens[chosen], None if token else float(logprobs[chosen]), tokens, logprobs)

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        prefix, given = ask.prefix, ask.given
        self.calls += 1
        usage = Usage(api_calls=1)
        for i in range(len(given) + ask.n):
            await asyncio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
            if len(prefix.tokens) >= LENGTH and self.unseen_end:
                yield Draft((), "stop", usage)
                return
            position = self.show(prefix, given[i] if i < len(given) else None, ask.temperature, ask.seed)
            prefix = prefix.plus(position.token)
            yield Draft((position,), None, usage, int(i < len(given)))
            usage = Usage()
        yield Draft((), "length", usage)

    async def draft(self, ask: Ask) -> Draft:
        parts = [part async for part in self.stream(ask)]
        positions = tuple(position for part in parts for position in part.positions)
        return Draft(positions, parts[-1].finish, Usage(1), sum(part.given for part in parts))


def same(one: Position, other: Position) -> bool:
    return (
        (one.token, one.logprob, tuple(one.tokens)) == (other.token, other.logprob, tuple(other.tokens))
        and one.logprobs.dtype == other.logprobs.dtype
        and np.array_equal(one.logprobs, other.logprobs)
    )


async def text_of(base: Base, prompt: str, n: int, **options: Any) -> tuple[list[Position], Usage]:
    """A whole text, n tokens at a time."""
    prefix, positions, usage = Prefix(prompt), list[Position](), Usage()
    while True:
        draft = await base.draft(Ask(prefix, n, **options))
        usage += draft.usage
        positions += draft.positions
        for position in draft.positions:
            prefix = prefix.plus(position.token)
        if draft.finish == "stop":
            return positions, usage


@contextmanager
def cached(base: Base, file: Path, **options: Any) -> Iterator[CachedBase]:
    made = CachedBase(base, file, **options)
    try:
        yield made
    finally:
        made.store.close()


WORKERS, THREADS, TEXTS = 8, 8, 6


def work(file: str, log: str, number: str) -> None:
    """One of the processes: each thread reads every text, some streamed, in an order of its own."""
    base = Told(Path(log), seconds=0.001)
    with cached(base, Path(file)) as one:

        async def read(thread: int) -> None:
            prompts = [f"text {i}" for i in range(TEXTS)]
            random.Random(f"{number} {thread}").shuffle(prompts)
            for prompt in prompts:
                prefix = Prefix(prompt)
                while len(prefix.tokens) < LENGTH:
                    n = min(6 + thread, LENGTH - len(prefix.tokens))
                    async for part in one.stream(Ask(prefix, n)) if thread % 2 else _whole(one, prefix, n):
                        for position in part.positions:
                            prefix = prefix.plus(position.token)
                texts[prompt] = b"".join(t.bytes or b"" for t in prefix.tokens).decode()

        texts: dict[str, str] = {}
        threads = [threading.Thread(target=lambda i=i: asyncio.run(read(i))) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(json.dumps(texts, sort_keys=True))


async def _whole(base: Base, prefix: Prefix, n: int) -> AsyncGenerator[Draft, None]:
    yield await base.draft(Ask(prefix, n))


if __name__ == "__main__":
    work(*sys.argv[1:])
