"""Warm runs cost nothing, also where text travels as text: it is cut anew, and no request can go on from white space.

A base on a table that is sent its text anew, the real recut, cache and loop; every way of asking, greedy and sampled.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBase
from tables import Settings, TablePair, decoded
from toys import toy_vocabulary

from blackbox_proxy.api.recut import Recut, until_recut
from blackbox_proxy.base.cache.base import CachedBase
from blackbox_proxy.decoding.pace import Drafting, Pace, Plan
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.protocols import Abilities, Ask
from blackbox_proxy.types import END, Draft, Position, Prefix, Token, Usage

SPELLING = toy_vocabulary(["a", "b", " ", "  ", " a", "ab", "é"], [(" ", " "), (" ", "a"), ("a", "b")])
SPACES = [i for i in range(1, len(SPELLING)) if (SPELLING.token_of(i).bytes or b"").startswith(b" ")]
MOST_CALLS = 100  # for a text of 20 tokens


def rng(*of: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:8], "big"))


class TextBase(FakeBase):
    """Its next token follows from the tokens that its tokenizer makes of the text sent, and those it wrote since.

    Fond of white space, so that two of its tokens are often one token of the text. breaks: how likely a stream breaks
    after a position.
    """

    name = "text"
    abilities = Abilities(streams=True)

    def __init__(self, seed: int, breaks: float = 0.0) -> None:
        self.seed, self.breaks, self.calls = seed, breaks, 0

    @property
    def identity(self) -> dict[str, object]:
        return {"seed": self.seed}

    def can_continue(self, prefix: Prefix) -> bool:
        text = prefix.generated
        return not any(token.end for token in prefix.tokens) and not text[-1:].isspace()

    async def draft(self, ask: Ask) -> Draft:
        prefix = ask.prefix
        assert self.can_continue(prefix)
        self.calls += 1
        assert self.calls < MOST_CALLS
        written = list(SPELLING.encode([prefix.generated])[0]) if prefix.tokens else []
        positions: list[Position] = []
        for place in range(ask.n):
            scores = rng(self.seed, written).gumbel(size=len(SPELLING))
            scores[SPACES] += 2.0
            scores[0] -= 2.0
            logprobs = scores - np.log(np.exp(scores).sum())
            noise = (
                rng(self.seed, ask.seed, len(prefix.tokens), place).gumbel(size=len(scores)) if ask.temperature else 0.0
            )
            chosen = int(np.argmax(logprobs + noise))
            shown = np.argsort(-logprobs)[:4]
            tokens = [self._token(int(i)) for i in shown]
            positions.append(Position(self._token(chosen), float(logprobs[chosen]), tokens, logprobs[shown]))
            if chosen == 0:
                break
            written.append(chosen)
        whole = Draft(tuple(positions), "stop" if positions[-1].token.end else "length", Usage(1, 1, len(positions)))
        return until_recut(whole, Recut(prefix.generated, SPELLING))

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        whole = await self.draft(ask)
        usage, luck = whole.usage, rng(self.seed, "luck", self.calls)
        for j, position in enumerate(whole.positions):
            yield Draft((position,), None, usage, cut=whole.cut and j + 1 == len(whole.positions))
            usage = Usage()
            if luck.random() < self.breaks:
                yield Draft(())
                return
        yield Draft((), whole.finish)

    def _token(self, index: int) -> Token:
        return END if index == 0 else SPELLING.token_of(index)


class AnyLength(Pace):
    """A length by chance for every request, another in every run: as measured times would have it."""

    def __init__(self, seed: int) -> None:
        super().__init__(Drafting(stream=False, local=False))
        self._lengths = random.Random(seed)

    def plan(self, abilities: Abilities, left: int, prompt_tokens: float) -> Plan:
        return Plan(0, min(left, self._lengths.randint(1, 6)), False)


WAYS: dict[str, Callable[[int], Pace]] = {
    "1": lambda _: Pace(Drafting.fixed(1)),
    "2": lambda _: Pace(Drafting.fixed(2)),
    "5": lambda _: Pace(Drafting.fixed(5)),
    "stream": lambda _: Pace(Drafting(local=False)),
    "any length": AnyLength,
}


class Noise(dict[bytes, Any]):
    """What a pair changes at every text: something."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def get(self, text: bytes, default: Any = None) -> Any:
        spelled = [None, *(SPELLING.token_of(i).bytes for i in range(1, len(SPELLING)))]
        return dict(zip(spelled, rng("pair", self._seed, text).normal(size=len(spelled)).tolist(), strict=True))


async def text_of(base: Any, seed: int, pace: Pace, temperature: float) -> list[object]:
    settings = Settings(20, (1.0,), Sampling(temperature, 1.0, 7))
    steps = await decoded(base, [TablePair(Noise(seed))], settings, pace)
    return [*((step.token, step.changed) for step in steps), steps[-1].finish_reason]


@pytest.mark.parametrize(
    ("way", "temperature", "breaks"),
    [
        *((way, 0.0, 0.0) for way in WAYS),
        *((way, 1.0, 0.0) for way in WAYS if way != "any length"),  # where a sampled draft begins decides what it is
        ("stream", 0.0, 0.3),
        ("stream", 1.0, 0.3),
    ],
)
async def test_a_warm_run_asks_nothing(way: str, temperature: float, breaks: float, tmp_path: Path) -> None:
    for seed in (0, 1, 3):
        plain = await text_of(TextBase(seed), seed, WAYS["1"](0), temperature)
        found = []
        for again in range(3):
            base = TextBase(seed, breaks)
            cached = CachedBase(base, tmp_path / f"{seed}.sqlite3")
            found.append(await text_of(cached, seed, WAYS[way](again), temperature))
            await cached.aclose()
            assert (base.calls > 0) is (again == 0)
        assert found[1] == found[2] == found[0]
        if temperature == 0.0:
            assert found[0] == plain


async def test_a_place_that_no_draft_can_pass_is_asked_about_twice_at_most() -> None:
    """The base writes two spaces where the text would have one token for both: no request goes on from the first, and
    no draft goes on behind the second. A longer one is asked for only while it could help.
    """

    class Spaces(TextBase):
        async def draft(self, ask: Ask) -> Draft:
            self.calls += 1
            space, other = SPELLING.token_of(3), SPELLING.token_of(2)
            logprobs = np.log([0.9, 0.1])
            position = Position(space, float(logprobs[0]), [space, other], logprobs)
            return until_recut(Draft((position,) * ask.n, "length", Usage(1)), Recut(ask.prefix.generated, SPELLING))

    for way in ("1", "5", "stream"):
        base = Spaces(0)
        steps = await decoded(base, [TablePair({})], Settings(3), WAYS[way](0))
        assert b"".join(step.token for step in steps) == b" b "  # the last one need not be continued
        assert base.calls <= 3 * 2
