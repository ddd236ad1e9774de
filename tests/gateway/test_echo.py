"""Prompts that come back, scored by the tuned model; and a gateway as the base of another tuner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gateways import Gateway, Pairs, gateway

from blackbox_proxy import ProxyTuner, open_base
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.protocols import Ask
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Prefix

PROMPT = "The mayor of New York said that 20 people came."


async def test_an_echo_has_what_score_says(running: Gateway, tuner: ProxyTuner) -> None:
    vocabulary = running.base.vocabulary
    assert vocabulary is not None
    ids = vocabulary.prompt_ids(PROMPT)
    first = (vocabulary.token_of(ids[0]).bytes or b"").decode()
    wanted = tuner.score(first, PROMPT[len(first) :])
    for prompt in (PROMPT, list(ids)):
        async with running.client() as client:
            answer = await client.completions.create(
                model="tuned", prompt=prompt, max_tokens=0, echo=True, logprobs=2, temperature=0
            )
        assert answer.choices[0].text == PROMPT
        found = answer.choices[0].logprobs
        assert found is not None
        logprobs: Any = found.token_logprobs
        assert logprobs[0] is None
        assert logprobs[1:] == pytest.approx([token.log_p for token in wanted.tokens], abs=1e-4)
        assert "".join(found.tokens or ()) == PROMPT
        assert found.text_offset == [len("".join((found.tokens or [])[:i])) for i in range(len(ids))]
    async with running.client() as client:
        longer: Any = await client.completions.create(
            model="tuned", prompt=PROMPT, max_tokens=3, echo=True, logprobs=1, temperature=0
        )
    assert longer.choices[0].text == PROMPT + tuner.generate(PROMPT, max_tokens=3).text
    assert longer.usage.prompt_tokens == len(ids)
    assert longer.choices[0].logprobs.text_offset[len(ids)] == len(PROMPT)


async def test_the_first_word_is_what_a_pair_without_a_beginning_starts_from(
    running: Gateway, tuner: ProxyTuner, models: dict[str, str]
) -> None:
    """The base cuts the first word; the pair, which must have read a token, is not made to cut it there."""
    vocabulary = running.base.vocabulary
    assert vocabulary is not None
    word, rest = "There", " they were, in 2023"
    count = len(vocabulary.prompt_ids(word))
    assert count > 1
    async with running.client() as client:
        answer: Any = await client.completions.create(
            model="tuned", prompt=word + rest, max_tokens=0, echo=True, logprobs=1, temperature=0
        )
    found = answer.choices[0].logprobs.token_logprobs
    assert found[:count] == [None] * count
    assert found[count:] == pytest.approx([token.log_p for token in tuner.score(word, rest).tokens], abs=1e-4)


@pytest.mark.parametrize(
    ("inside", "outside", "exact"),
    [("digits", "same", True), ("same", "digits", False), ("same", "pieces", True)],
)
def test_a_proxy_of_a_proxy_is_two_pairs(
    models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str], inside: str, outside: str, exact: bool
) -> None:
    """The law: log p of both pairs, up to a constant, over the candidates that the first proxy shows. What is an
    estimate on one side only says so.
    """

    def opened(kind: str, exact: bool) -> TransformersPair:
        return TransformersPair(models[f"{kind}-expert"], models[f"{kind}-antiexpert"], device="cpu", exact=exact)

    first, second = opened(inside, True), opened(outside, exact)
    with gateway(models, lambda _: first, hosted(-1), top_logprobs=400, max_logprobs=64) as inner:
        base = open_base(
            "tuned", base_url=f"{inner.url}/v1", dialect="serve", tokenizer=models["base"], top_logprobs=40
        )
        near = open_base("big", base_url=hosted(-1), dialect="vllm", tokenizer=models["base"], top_logprobs=400)
        try:
            outer = ProxyTuner(base, second, 0.7).generate(PROMPT, max_tokens=2)
            both = ProxyTuner(near, [first, second], [1.0, 0.7]).generate(PROMPT, max_tokens=2)
            draft = run(base.draft(Ask(Prefix(PROMPT), 1)))
        finally:
            run(base.aclose())
            run(near.aclose())
    assert len(draft.positions[0].tokens) == 40
    compared = 0
    for step, other in zip(outer.steps, both.steps, strict=True):
        one = {c.token.key: c for c in step.candidates if not c.tail}
        two = {c.token.key: c for c in other.candidates}
        shared = sorted(one.keys() & two.keys(), key=str)
        assert len(shared) >= 20
        alike = {"exact"} if exact else {"exact", "estimated"}  # a sum that others moved says "estimated", too
        held = [key for key in shared if one[key].how == two[key].how and one[key].how in alike]
        shift = [one[key].log_p - two[key].log_p for key in held]
        assert shift == pytest.approx([shift[0]] * len(shift), abs=1e-4)
        compared += len(held)
        if step.token_id != other.token_id:  # from here on they are different texts
            break
    assert compared >= 20
