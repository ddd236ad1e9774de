"""Laws 5, 6 and 10 where nobody gave a tokenizer: one text, and one p at every place, however it is asked for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import PROMPTS
from toys import Always

from blackbox_proxy import CachedBase, Drafting, ProxyTuner, TransformersBase, TransformersPair, open_base
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.serve.emulation import emulation_of
from blackbox_proxy.serve.routes import create_app
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Draft, Generation, Position, Prefix

Pairs = Callable[[str], TransformersPair]
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("same", "pieces")]
SPOKEN = [("openai", "completions"), ("host", "completions"), ("vllm", "chat"), ("llama-server", "completions")]


class Restless(BaseAround):
    """Parts come together or one by one, after any time, and connections break: by seed."""

    def __init__(self, base: Base, rng: random.Random) -> None:
        super().__init__(base)
        self._rng = rng

    async def draft(self, ask: Ask) -> Draft:
        return await self.base.draft(ask)

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        async with aclosing(self.base.stream(ask)) as parts:
            async for part in parts:
                if self._rng.random() < 0.2:
                    await asyncio.sleep(self._rng.random() * 0.01)
                if self._rng.random() < 0.05 and part.positions:
                    yield replace(part, finish=None)
                    return
                yield part


@pytest.fixture(scope="module")
def served(models: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """The base behaving as another server: its name -> base_url."""
    engine = open_engine(models["base"], top_logprobs=5, served_model_name="big", device="cpu")
    with ExitStack() as stack:

        @cache
        def url(name: str) -> str:
            app = create_app(engine, emulation=emulation_of(name))
            return stack.enter_context(serve_in_thread(app)) + "/v1"

        yield url


@pytest.fixture
def speaking(served: Callable[[str], str]) -> Iterator[Callable[..., OpenAIBase]]:
    opened: list[OpenAIBase] = []

    def make(name: str, api: Any, **options: Any) -> OpenAIBase:
        options = {"tokenizer": None, "top_logprobs": 5, **options}
        opened.append(open_base("big", base_url=served(name), dialect=name, api=api, **options))
        return opened[-1]

    yield make
    for base in opened:
        run(base.aclose())


def asked(base: Base, pair: TransformersPair, seed: int, prompt: str, tokens: int) -> Generation:
    """One run; seed 0: one token at a time."""
    rng = random.Random(seed)
    if seed == 0:
        return ProxyTuner(base, pair, draft=Drafting.fixed(1)).generate(prompt, max_tokens=tokens)
    n = rng.choice([1, 2, 3, 5, 8, 13, 64])
    tuner = ProxyTuner(Restless(base, rng), pair)
    tuner._pace = Always(rng.choice([0, 0, 3]), n, rng.random() < 0.6)
    return tuner.generate(prompt, max_tokens=tokens)


def same(found: Generation, plain: Generation) -> None:
    """The same text, and the same candidates with the same p, but for rounding, at every place."""
    assert [step.token for step in found.steps] == [step.token for step in plain.steps]
    assert (found.text, found.finish_reason) == (plain.text, plain.finish_reason)
    for step, other in zip(found.steps, plain.steps, strict=True):
        keys = {candidate.token.key: candidate.log_p for candidate in step.candidates}
        others = {candidate.token.key: candidate.log_p for candidate in other.candidates}
        assert sum(abs(np.exp(keys.get(k, -np.inf)) - np.exp(others.get(k, -np.inf))) for k in keys | others) < 1e-3


@pytest.mark.parametrize("spoken", SPOKEN, ids=" ".join)
@pytest.mark.parametrize("kind", ["digits", *SLOW])
def test_one_text_however_it_is_asked_for(
    spoken: tuple[str, str], kind: str, speaking: Callable[..., OpenAIBase], pairs: Pairs
) -> None:
    base = speaking(*spoken)
    plain = asked(base, pairs(kind), 0, "In 2023 of", 22)  # a text in which what was written is cut anew
    for seed in range(1, 3):
        same(asked(base, pairs(kind), seed, "In 2023 of", 22), plain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["same", "digits", "pieces"])
def test_200_runs_are_one_text(kind: str, speaking: Callable[..., OpenAIBase], pairs: Pairs) -> None:
    base = speaking("openai", "completions")
    plain = asked(base, pairs(kind), 0, "The mayor of", 32)
    for seed in range(1, 200):
        same(asked(base, pairs(kind), seed, "The mayor of", 32), plain)


@pytest.mark.slow
@pytest.mark.parametrize("spoken", SPOKEN, ids=" ".join)
def test_many_prompts(spoken: tuple[str, str], speaking: Callable[..., OpenAIBase], pairs: Pairs) -> None:
    base = speaking(*spoken)
    for place, prompt in enumerate(PROMPTS):
        kind = ("same", "digits", "pieces")[place % 3]
        plain = asked(base, pairs(kind), 0, prompt, 24)
        for seed in (place + 1, place + 100):
            same(asked(base, pairs(kind), seed, prompt, 24), plain)


@pytest.mark.parametrize("exact", [False, True])
def test_a_draft_is_scored_in_one_pass(exact: bool, models: dict[str, str]) -> None:
    """All positions at once say what one after the other say, in as many passes as one of them takes."""
    pair = TransformersPair(models["digits-expert"], models["digits-antiexpert"], device="cpu", exact=exact)
    base = TransformersBase(models["base"], top_logprobs=5, device="cpu")
    positions = [anonymous(position) for position in run(base.draft(Ask(Prefix("The mayor of"), 8))).positions]
    passes: list[int] = []
    for lm, _ in pair.models:
        lm.model.register_forward_pre_hook(lambda *_: passes.append(1))

    def scores(at_once: int) -> list[Any]:
        session, rows = pair.open("The mayor of", None), []
        for start in range(0, len(positions), at_once):
            issued = [position.token for position in positions[:start]]
            some = positions[start : start + at_once]
            # In one go a draft that goes another way is looked at first: it leaves nothing behind.
            session.score(issued, [some[0], *positions[:2]])
            rows += [
                row.score(position.tokens) for row, position in zip(session.score(issued, some), some, strict=True)
            ]
        session.close()
        return rows

    together, alone = scores(8), scores(1)
    for one, other in zip(together, alone, strict=True):
        assert one.how == other.how
        assert np.allclose(one.offset, other.offset, atol=1e-4)
    passes.clear()
    session = pair.open("The mayor of", None)
    session.score([], positions[:1])
    of_one = len(passes)
    session.close()
    passes.clear()
    session = pair.open("The mayor of", None)
    session.score([], positions)
    assert len(passes) == of_one <= 4
    session.close()


def anonymous(position: Position) -> Position:
    """As a base shows it whose ids nobody knows."""
    token, *tokens = (replace(token, id=None) for token in (position.token, *position.tokens))
    return replace(position, token=token, tokens=tuple(tokens))


def test_what_is_kept_leads_to_the_same_text(speaking: Callable[..., OpenAIBase], pairs: Pairs, tmp_path: Path) -> None:
    """A run that was killed half-way goes on with what it has kept, and asks in another way."""
    base = speaking("openai", "completions")
    plain = asked(base, pairs("digits"), 0, "The mayor of", 24)
    kept = CachedBase(base, tmp_path / "kept")
    asked(kept, pairs("digits"), 3, "The mayor of", 11)
    for seed in (1, 4, 0):
        same(asked(kept, pairs("digits"), seed, "The mayor of", 24), plain)
    run(kept.aclose())
