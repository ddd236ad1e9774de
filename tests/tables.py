"""A base and a pair that are written down as tables, and what tests decode with them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fakes import FakeBase
from toys import Always

from blackbox_proxy.decoding.loop import decode
from blackbox_proxy.decoding.pace import Drafting, Pace
from blackbox_proxy.decoding.text import Limits
from blackbox_proxy.errors import ContextTooLong
from blackbox_proxy.maths.equation import Alpha, Equation
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.protocols import Abilities, Ask, Row
from blackbox_proxy.types import END, Draft, How, Position, Prefix, Scores, Step, TailPolicy, Token, Usage

Table = dict[bytes, dict[bytes | None, float]]
"""Text so far -> next token (None: the end) -> probability."""


def token(spelling: bytes | None) -> Token:
    return END if spelling is None else Token(bytes=spelling, text=spelling.decode("utf-8", "replace"))


class TableBase(FakeBase):
    """A base whose next-token table is written down. `as_text`: prefixes must be whole UTF-8."""

    name = "table"
    abilities = Abilities(streams=True, scores=True, streams_scored=True)

    def __init__(
        self, table: Table, *, as_text: bool = True, limit: int = 100, hide_end: bool = False, slow: float = 0.0
    ) -> None:
        self.table, self.as_text, self.limit, self.hide_end = table, as_text, limit, hide_end
        self.asked: list[tuple[bytes, int]] = []
        self.streamed, self.slow = 0, slow

    def can_continue(self, prefix: Prefix) -> bool:
        try:
            prefix.generated.decode("utf-8")
        except UnicodeDecodeError:
            return not self.as_text
        return True

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        """One position a part, then a part with the finish alone."""
        whole = await self.draft(ask)
        for j, position in enumerate(whole.positions):
            await asyncio.sleep(self.slow)
            yield Draft((position,), usage=whole.usage if j == 0 else Usage(), given=int(j < whole.given))
            self.streamed += 1
        yield Draft((), whole.finish, Usage() if whole.positions else whole.usage)

    async def draft(self, ask: Ask) -> Draft:
        prefix, given = ask.prefix, ask.given
        text = prefix.generated
        self.asked.append((text, ask.n))
        rng = np.random.default_rng([ask.seed or 0, len(prefix.tokens)])
        positions: list[Position] = []
        finish = None
        for place in range(len(given) + min(ask.n, self.limit)):
            row = sorted(self.table.get(text, {None: 1.0}).items(), key=lambda item: -item[1])
            tokens, logprobs = [token(s) for s, _ in row], np.log([p for _, p in row])
            drawn = int(rng.choice(len(row), p=[p for _, p in row])) if ask.temperature else 0
            chosen = given[place] if place < len(given) else tokens[drawn]
            if chosen.end and self.hide_end:
                finish = "stop"
                break
            positions.append(Position(chosen, float(logprobs[drawn]), tokens, logprobs))
            if chosen.end:
                finish = "stop"
                break
            text += chosen.bytes or b""
            if text not in self.table and place >= len(given):
                break
        usage = Usage(1, len(prefix.tokens) + len(given), len(positions) - len(given))
        return Draft(tuple(positions), finish, usage, len(given))  # type: ignore[arg-type]


class TableRow:
    limit: int | None = None

    def __init__(self, offsets: dict[bytes | None, float], proposals: Sequence[Token]) -> None:
        self.offsets, self.proposals = offsets, proposals

    def score(self, tokens: Sequence[Token]) -> Scores:
        offset = np.array([self.offsets.get(None if t.end else t.bytes, 0.0) for t in tokens])
        antiexpert = np.full(len(tokens), math.log(0.1))
        exact: How = "exact"
        return Scores(antiexpert + offset, antiexpert, offset, (exact,) * len(tokens))

    def propose(self, count: int, model: int = 0) -> list[Token]:
        return list(self.proposals)[:count]


class TablePair:
    """Offsets per text so far; `window` is how many issued tokens it can still score."""

    has_antiexpert = True

    def __init__(
        self,
        offsets: dict[bytes, dict[bytes | None, float]],
        proposals: Sequence[Token] = (),
        window: int = 99,
        writes: dict[bytes, bytes] | None = None,
    ):
        self.offsets, self.proposals, self.window, self.writes = offsets, proposals, window, writes or {}

    def check(self, prompt: Any, max_tokens: int) -> None: ...

    def open(self, prompt: Any, base: Any) -> TablePair:
        return self

    def read(self, issued: Sequence[Token]) -> None: ...

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        raise AssertionError("tables are exact")

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        if len(issued) + len(positions) > self.window:
            raise ContextTooLong("full")
        text = b"".join(t.bytes or b"" for t in issued)
        rows: list[Row] = []
        for position in positions:
            written = [token(self.writes[text])] if text in self.writes else []
            rows.append(TableRow(self.offsets.get(text, {}), [*written, *self.proposals]))
            text += position.token.bytes or b""
        return rows

    def close(self) -> None: ...


@dataclass(frozen=True)
class Settings:
    """What a test decodes with, in one place."""

    max_tokens: int = 20
    alphas: tuple[Alpha, ...] = (1.0,)
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    tail: TailPolicy = "backoff"

    @property
    def equation(self) -> Equation:
        return Equation(self.alphas, self.tail)

    @property
    def limits(self) -> Limits:
        return Limits(self.max_tokens, self.stop)


SETTINGS = Settings()


WAYS = ["1", "2", "3", "8", "stream", "stream-2", "adaptive", "local-1", "local-3", "local-3-stream"]


def pace_of(way: str) -> Pace:
    """How the base is asked, as tests name it: a fixed number, a stream, with so many tokens of the local pair …"""
    numbers = [int(part) for part in way.split("-") if part.isdigit()]
    if way.startswith("local"):
        return Always(numbers[0], 4, way.endswith("stream"))
    if way == "adaptive":
        return Pace(Drafting(stream=False))
    return Always(0, numbers[0] if numbers else 100, way.startswith("stream"))


async def run(base: TableBase, pair: TablePair, settings: Settings = SETTINGS, way: str = "1") -> list[Step]:
    return await decoded(base, [pair], settings, pace_of(way))


async def decoded(base: Any, pairs: Sequence[Any], settings: Settings, pace: Pace) -> list[Step]:
    steps = decode(base, pairs, "prompt", settings.equation, settings.limits, settings.sampling, pace)
    return [step async for step in steps]


def text_of(steps: list[Step]) -> str:
    return "".join(step.text for step in steps)
