"""Learned weights in whole texts: plain ones change no byte, and no other changes a law of decoding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tables import Table, TableBase, TablePair, decoded, pace_of, token

from blackbox_proxy import ProxyTuner, Spread, TransformersBase, TransformersPair, Weights
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.decoding.loop import decode
from blackbox_proxy.decoding.rows import Weigher, opened
from blackbox_proxy.decoding.text import Limits
from blackbox_proxy.decoding.weighed import worth_asking
from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.protocols import Ask
from blackbox_proxy.testing import TUNER_LAWS, check_tuner
from blackbox_proxy.tuner import run as wait
from blackbox_proxy.types import Prefix

Pairs = Callable[[str], TransformersPair]
LEARNED = Weights(0.6, (0.9,), (0.4,), tail=-0.3, rest=0.2, spread=Spread(1.2, 0.25))
PROMPTS = ["The mayor of New York", "日本 in 2023 "]


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_law_11_plain_weights_give_the_same_bytes(kind: str, api_base: Callable[..., OpenAIBase], pairs: Pairs) -> None:
    plain = ProxyTuner(api_base(), pairs(kind), 0.7)
    same = ProxyTuner(api_base(), pairs(kind), weights=Weights(1.0, (0.7,), (0.7,)))
    assert same.equation == plain.equation, "there is one arithmetic for both"
    for options in ({}, {"temperature": 0.8, "seed": 3}):
        texts = [tuner.generate(PROMPTS[0], max_tokens=16, **options) for tuner in (plain, same)]
        assert texts[0].text == texts[1].text


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_laws_5_to_8_hold_with_any_weights(kind: str, api_base: Callable[..., OpenAIBase], pairs: Pairs) -> None:
    about_alpha = ("alpha_zero_is_the_base", "every_step_keeps_the_equation")
    laws = [law for law in TUNER_LAWS if law.__name__ not in about_alpha]
    laws = laws if kind == "same" else laws[:1]
    kept = check_tuner(
        lambda **how: ProxyTuner(api_base(), pairs(kind), weights=LEARNED, **how), PROMPTS[:1], laws=laws, tokens=10
    )
    assert set(kept) == {law.__name__ for law in laws}


def test_every_step_keeps_the_learned_equation(api_base: Callable[..., OpenAIBase], pairs: Pairs) -> None:
    generation = ProxyTuner(api_base(), pairs("digits"), weights=LEARNED).generate(PROMPTS[0], max_tokens=16)
    assert any(step.changed for step in generation.steps)
    for step in generation.steps:
        c = step.candidates
        known = np.isfinite(c.log_expert) & np.isfinite(c.log_antiexpert)
        own = 0.6 * c.log_q + 0.9 * c.log_expert - 0.4 * c.log_antiexpert - 0.3 * c.tail
        assert np.ptp((c.log_p - own)[known]) < 1e-9
        assert c.log_p[0] == max(c.log_p)


def test_what_contends_hangs_on_how_far_each_side_may_be_off(models: dict[str, str], pairs: Pairs) -> None:
    """An estimate that is good enough for E / A is not where E counts for more than A."""
    base = TransformersBase(models["base"], top_logprobs=20, device="cpu")
    positions = wait(base.draft(Ask(Prefix(PROMPTS[0]), 4))).positions

    def bars(weights: Weights) -> float:
        equation = Equation(weights=weights)
        with opened([pairs("digits")], PROMPTS[0], base.vocabulary) as sessions:
            (session,) = sessions
            scores = [row.score(at.tokens) for row, at in zip(session.score([], positions), positions, strict=True)]
        return sum(float(equation.error([each], 0).sum()) for each in scores)

    alike, alone = bars(Weights(0.6, (0.9,), (0.9,))), bars(Weights(0.6, (0.9,), (0.0,)))
    assert alone > 1.3 * alike > 0.0


SHOWN: Table = {b"": {b"a": 0.5, b"b": 0.3, b"c": 0.1}}
OFFSETS: dict[bytes, dict[bytes | None, float]] = {b"": {b"a": -1.0, b"b": 0.5, b"d": 2.0}}


@pytest.mark.parametrize("way", ["2", "local-1"])
async def test_law_5_sampled_tokens_follow_p(way: str) -> None:
    """Chi-square of 1,000 draws: exceeded once in ten thousand if p is right. A is 0.1 everywhere."""
    weights = replace(LEARNED, spread=Spread())
    log_a, offset = np.full(4, math.log(0.1)), np.array([-1.0, 0.5, 0.0, 2.0])
    log_q = np.log([0.5, 0.3, 0.1, 0.1 * 0.1 / (1 - 0.3)])
    own = 0.6 * log_q + 0.9 * (log_a + offset) - 0.4 * log_a - 0.3 * np.array([0, 0, 0, 1])
    p = np.exp(own - np.logaddexp.reduce(own))
    draws, seen = 1_000, Counter[bytes]()
    for seed in range(draws):
        steps: Any = decode(
            _Drawing(SHOWN),
            [TablePair(OFFSETS, [token(b"d")])],
            "prompt",
            Equation(weights=weights),
            Limits(1),
            Sampling(1.0, 1.0, seed),
            pace_of(way),
        )
        seen.update([(await anext(steps)).token])
        await steps.aclose()
    chi = sum(
        (seen[text] - draws * each) ** 2 / (draws * each)
        for text, each in zip((b"a", b"b", b"c", b"d"), p, strict=True)
    )
    assert sum(seen.values()) == draws
    assert chi < 21.1


class _Drawing(TableBase):
    """Shows three tokens of a larger vocabulary, and draws from those."""

    async def draft(self, ask: Ask) -> Any:
        rng = np.random.default_rng([ask.seed or 0, 1])
        whole = await super().draft(replace(ask, temperature=0.0))
        first = whole.positions[0]
        if not ask.given:
            drawn = int(rng.choice(4, p=[0.5, 0.3, 0.1, 0.1]))
            written = first.tokens[drawn] if drawn < 3 else token(b"x")
            first = replace(first, token=written, logprob=float(first.logprobs[drawn]) if drawn < 3 else None)
        return replace(whole, positions=(first, *whole.positions[1:]))


def test_a_token_that_might_win_if_its_q_were_told_is_asked_about(models: dict[str, str], pairs: Pairs) -> None:
    base = TransformersBase(models["base"], top_logprobs=3, device="cpu")
    (position,) = wait(base.draft(Ask(Prefix(PROMPTS[0]), 1))).positions
    asked = []
    for weights in (replace(LEARNED, tail=-30.0), replace(LEARNED, tail=30.0)):
        weigher = Weigher([pairs("same")], [Equation(tail="ask", weights=weights)])
        with opened(weigher.pairs, PROMPTS[0], base.vocabulary) as sessions:
            (scored,) = weigher.score(sessions, [], [position])
            asked.append(worth_asking(scored.under(0), scored.known, 0.0, weights))
    assert asked[0] == asked[1], "what is added to estimates says nothing of what is told"


def test_what_weights_cannot_do_is_refused(api_base: Callable[..., OpenAIBase], pairs: Pairs) -> None:
    base, pair = api_base(), pairs("same")
    for how in ({"alpha": 0.5}, {"steer": "bias"}):
        with pytest.raises(InputError, match="weights"):
            ProxyTuner(base, pair, weights=LEARNED, **how)
    for weights in (replace(LEARNED, antiexperts=(None,)), Weights(1.0, (1.0, 1.0), (1.0, 1.0))):
        with pytest.raises(InputError, match="weights are of"):
            ProxyTuner(base, pair, weights=weights)
    ProxyTuner(base, pair, weights=Weights(), steer="bias")


async def test_two_pairs_with_weights_of_their_own() -> None:
    weights = Weights(1.0, (1.0, 0.5), (1.0, 0.5))
    pair, other = TablePair(OFFSETS), TablePair({b"": {b"c": 4.0}})
    from tables import Settings

    plain = await decoded(TableBase(SHOWN), [pair, other], Settings(1, (1.0, 0.5)), pace_of("1"))
    steps = decode(
        TableBase(SHOWN), [pair, other], "prompt", Equation(weights=weights), Limits(1), Sampling(), pace_of("1")
    )
    (step,) = [step async for step in steps]
    assert np.array_equal(step.candidates.log_p, plain[0].candidates.log_p)


def test_scores_of_a_text_add_up_over_the_vocabulary(models: dict[str, str], pairs: Pairs) -> None:
    """No more than one in all, with every token of the vocabulary as the one that was given."""
    from blackbox_proxy.answers.scoring import score

    base = TransformersBase(models["base"], top_logprobs=5, device="cpu")
    assert base.vocabulary is not None
    texts = [s.decode() for s in base.vocabulary.spelling if s and s.isascii() and len(s) > 1][:40]
    single = [t for t in texts if len(base.vocabulary.encode([t.encode()])[0]) == 1]
    equations = [Equation(weights=LEARNED), Equation(weights=replace(LEARNED, base=0.2, experts=(0.2,)))]
    found = [wait(score(base, [pairs("digits")], PROMPTS[0], text, equations)) for text in single]
    for i in range(2):
        total = sum(math.exp(each[i].log_p) for each in found)
        assert 0.0 < total <= 1.0 + 1e-9
        assert all(math.isfinite(each[i].log_p) for each in found)
