"""Laws 5 and 7 over real HTTP: every way of asking leads to the same bytes; a stream costs 1 + disagreements calls."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from asking import PROMPTS, bytes_of, tuner, ways
from toys import Always

from blackbox_proxy import Drafting, ProxyTuner, TransformersBase, TransformersPair, open_base
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.protocols import Ask
from blackbox_proxy.serve.routes import Stats, create_app
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Draft, Position, Prefix, Token, Usage

OPTIONS = {"max_tokens": 16}


@contextmanager
def counted(models: dict[str, str], **options: Any) -> Iterator[tuple[OpenAIBase, Stats]]:
    """The base behind HTTP, alone with its counts."""
    stats = Stats()
    engine = open_engine(models["base"], served_model_name="big", device="cpu", **options)
    with serve_in_thread(create_app(engine, stats=stats)) as url:
        base = open_base(
            "big", base_url=f"{url}/v1", dialect="host", tokenizer=models["base"], top_logprobs=5, max_attempts=1
        )
        try:
            yield base, stats
        finally:
            run(base.aclose())


@pytest.mark.parametrize(
    ("api", "kind"),
    [
        ("completions", "same"),
        pytest.param("completions", "digits", marks=pytest.mark.slow),  # quick: tests/test_testing.py
        pytest.param("completions", "pieces", marks=pytest.mark.slow),
        ("chat", "same"),
    ],
)
def test_law_5_every_way_of_asking_leads_to_the_same_bytes(
    api: str, kind: str, api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    base = api_base(dialect="host", api=api)
    plain = ProxyTuner(base, pairs(kind), draft=1).generate_batch(PROMPTS[::25], **OPTIONS)
    for name in ("3", "stream", "local", "local, streamed"):
        if api == "completions" or "local" not in name:
            found = tuner(base, pairs(kind), ways()[name]).generate_batch(PROMPTS[::25], **OPTIONS)
            assert bytes_of(found) == bytes_of(plain), name


@pytest.fixture(scope="module")
def one_at_a_time() -> dict[tuple[str, str], list[tuple[bytes, ...]]]:
    """(api, kind) -> what is written one token at a time, to compare the other ways with."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("api", "kind", "way"),
    [
        (api, kind, way)
        for api, kind in itertools.product(("chat", "completions"), ("same", "digits"))
        for way in list(ways())[1:]
        if api == "completions" or "local" not in way
    ],
)
def test_law_5_in_full(
    api: str,
    kind: str,
    way: str,
    one_at_a_time: dict[tuple[str, str], list[tuple[bytes, ...]]],
    api_base: Callable[..., OpenAIBase],
    pairs: Callable[[str], TransformersPair],
) -> None:
    """50 prompts of 128 tokens; a minute or two for each way."""
    base = api_base(dialect="host", api=api)
    if (api, kind) not in one_at_a_time:
        plain = bytes_of(ProxyTuner(base, pairs(kind), draft=1).generate_batch(PROMPTS, max_tokens=128))
        assert sum(map(len, plain)) > 50 * 60  # some texts end before, in chat more of them
        one_at_a_time[api, kind] = plain
    found = bytes_of(tuner(base, pairs(kind), ways()[way]).generate_batch(PROMPTS, max_tokens=128))
    differ = [PROMPTS[i] for i, (a, b) in enumerate(zip(found, one_at_a_time[api, kind], strict=True)) if a != b]
    assert not differ


@pytest.mark.parametrize("options", [{"stop": ["e", "ba"]}, {"max_tokens": 1}, {"max_tokens": 5}])
def test_limits_and_stop_strings_at_draft_borders(
    options: dict[str, Any], api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    base = api_base(dialect="host")
    asked = {**OPTIONS, **options}
    plain = ProxyTuner(base, pairs("same"), draft=1).generate_batch(PROMPTS[::17], **asked)
    for name in ("2", "stream", "local, streamed"):
        found = tuner(base, pairs("same"), ways()[name]).generate_batch(PROMPTS[::17], **asked)
        assert bytes_of(found) == bytes_of(plain)
        assert [g.text for g in found] == [g.text for g in plain]


class Cut(OpenAIBase):
    """A connection that breaks after so many positions of every stream."""

    after = 1

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        seen = 0
        async for part in super().stream(ask):
            yield Draft(part.positions, None if seen + 1 == self.after else part.finish, part.usage, part.given)
            seen += len(part.positions)
            if seen >= self.after:
                return


def test_streams_cut_at_any_point(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    base = api_base(dialect="host")
    whole = tuner(base, pairs("same"), Drafting(local=False)).generate(PROMPTS[6], **OPTIONS)
    base.__class__ = Cut
    for after in (1, 2, 3, 7, 15, 16):
        base.after = after  # type: ignore[attr-defined]
        cut = tuner(base, pairs("same"), Drafting(local=False)).generate(PROMPTS[6], **OPTIONS)
        assert bytes_of([cut]) == bytes_of([whole])


def test_a_full_window_ends_every_text_at_the_same_place(
    models: dict[str, str], pairs: Callable[[str], TransformersPair]
) -> None:
    """The base's window is 512 tokens; the client does not know it, and asks for more than there is room for."""
    with counted(models) as (base, _):
        prompt = "New York " * 240
        length = len(TransformersBase(models["base"], device="cpu").prompt_ids(prompt))
        assert 440 < length < 505
        found = [
            tuner(base, pairs("same"), way).generate(prompt, max_tokens=128)
            for way in (Drafting.fixed(1), Drafting.fixed(32), Drafting(local=False))
        ]
    assert found[0].finish_reason == "length"
    assert len(found[0].steps) < 128
    assert len({bytes_of([g])[0] for g in found}) == 1


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_law_7_a_streamed_text_costs_one_call_and_one_for_each_disagreement(
    kind: str, models: dict[str, str], pairs: Callable[[str], TransformersPair]
) -> None:
    """Counted by the server. A disagreement at the very end needs no further call."""
    with counted(models) as (base, stats):
        for prompt in PROMPTS[:1]:
            before = stats.requests
            g = tuner(base, pairs(kind), Drafting(local=False)).generate(prompt, max_tokens=32)
            disagreements = sum(not step.drafted and step.finish_reason is None for step in g.steps)
            assert disagreements > 3
            assert stats.requests - before == 1 + disagreements == g.usage.api_calls
        assert stats.active == 0


def test_law_7_an_expert_that_agrees_more_often_than_the_base_saves_calls(
    models: dict[str, str], pairs: Callable[[str], TransformersPair]
) -> None:
    """alpha = 4: the tuned model is mostly the expert's."""
    expert = TransformersPair(models["same-expert"], device="cpu")
    with counted(models) as (base, stats):
        calls, texts = {}, {}
        for local in (False, True):
            before = stats.requests
            made = ProxyTuner(base, expert, alpha=4.0, draft=Drafting(local=local))
            found = made.generate_batch(PROMPTS[:3], concurrency=1, max_tokens=32)
            calls[local], texts[local] = stats.requests - before, bytes_of(found)
    restarts = sum(not step.drafted and step.finish_reason is None for g in found for step in g.steps)
    assert texts[True] == texts[False]
    assert calls[True] < 0.7 * calls[False]
    assert calls[True] >= restarts


def test_what_a_cut_stream_has_cost_is_what_the_server_counts(
    models: dict[str, str], pairs: Callable[[str], TransformersPair]
) -> None:
    """Prompts exactly; output as far as it arrived, the server may have written a little more before it noticed."""
    with counted(models, first_token=0.0, per_token=0.01) as (base, stats):
        g = tuner(base, pairs("same"), Drafting(local=False)).generate(PROMPTS[0], max_tokens=32)
        assert g.usage.prompt_tokens == stats.prompt_tokens
        assert len(g.steps) <= g.usage.completion_tokens <= stats.completion_tokens
        assert stats.completion_tokens < 32 * g.usage.api_calls


def test_a_seed_repeats_a_sampled_text(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    base = api_base(dialect="host")
    for drafting in (Drafting(), Drafting(local=False), Drafting(stream=False)):
        made = ProxyTuner(base, pairs("same"), draft=drafting)
        texts = [made.generate(PROMPTS[0], max_tokens=8, temperature=1.0, seed=s) for s in (3, 3, 4)]
        assert bytes_of(texts[:1]) == bytes_of(texts[1:2]) != bytes_of(texts[2:])


class Hidden(BaseAround):
    """A base in this process that shows no ids: its vocabulary has to be learned; its tokens come back unchanged."""

    vocabulary = None

    def _seen(self, token: Token) -> Token:
        return token if token.end else Token(None, token.bytes, token.text)

    async def draft(self, ask: Ask) -> Draft:
        spelled = self.base.vocabulary.token  # type: ignore[union-attr]
        known = [tuple(spelled(token.bytes or b"") for token in tokens) for tokens in (ask.prefix.tokens, ask.given)]
        whole = await self.base.draft(replace(ask, prefix=Prefix(ask.prefix.prompt, known[0]), given=known[1]))
        shown = [
            Position(self._seen(p.token), p.logprob, [self._seen(token) for token in p.tokens], p.logprobs)
            for p in whole.positions
        ]
        return Draft(tuple(shown), whole.finish, whole.usage, whole.given)

    def can_continue(self, prefix: Prefix) -> bool:
        return all(self.base.vocabulary.id_of(token.bytes or b"") is not None for token in prefix.tokens)  # type: ignore[union-attr]

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        whole = await self.draft(ask)
        for j, position in enumerate(whole.positions):
            yield Draft((position,), None, whole.usage if j == 0 else Usage(), given=int(j < whole.given))
        yield Draft((), whole.finish)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "pieces"])
def test_law_5_holds_while_the_vocabulary_is_being_learned(
    kind: str, models: dict[str, str], pairs: Callable[[str], TransformersPair]
) -> None:
    base = Hidden(TransformersBase(models["base"], top_logprobs=5, device="cpu"))
    plain = ProxyTuner(base, pairs(kind), draft=1).generate_batch(PROMPTS[:3], **OPTIONS)
    ways = (Drafting.fixed(4), Always(0, 100, True), Always(4, 6, False))
    for way in ways:
        assert bytes_of(tuner(base, pairs(kind), way).generate_batch(PROMPTS[:3], **OPTIONS)) == bytes_of(plain)
