"""Whole generations against the equation computed directly with the three models, over real HTTP and in one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.errors import CannotContinue
from blackbox_proxy.text.spelling import from_pretrained
from blackbox_proxy.types import Generation

PROMPTS = [
    f"{a} {b}"
    for a, b in itertools.product(("The mayor", "New York", "def area", "日本", "In 2023"), ("of", "12", " ", "ba"))
]


class Direct:
    """p = softmax(log q + log E - log A), greedy, with nothing of this package but the tokenizer's ids."""

    def __init__(self, models: dict[str, str], pair: str) -> None:
        names = (models["base"], models[f"{pair}-expert"], models[f"{pair}-antiexpert"])
        self.models = [AutoModelForCausalLM.from_pretrained(name).eval() for name in names]
        self.vocabulary = from_pretrained(models["base"])

    @torch.inference_mode()
    def generate(self, prompt: str, tokens: int) -> tuple[list[int], list[np.ndarray]]:
        size, ids, rows = len(self.vocabulary), list(self.vocabulary.prompt_ids(prompt)), []
        start = len(ids)
        while len(ids) < start + tokens:
            q, e, a = (m(torch.tensor([ids])).logits[0, -1, :size].double().log_softmax(-1) for m in self.models)
            row = (q + e - a).log_softmax(-1)
            rows.append(row.numpy())
            ids.append(int(row.argmax()))
            if ids[-1] in self.vocabulary.end_ids:
                break
        return ids[start:], rows


@pytest.fixture(scope="module")
def direct(models: dict[str, str]) -> Direct:
    return Direct(models, "same")


def ids_of(generation: Generation) -> list[int | None]:
    return [step.token_id for step in generation.steps]


@pytest.mark.parametrize(
    ("where", "draft", "prompts", "tokens"),
    [
        ("process", 1, PROMPTS[::6], 24),
        pytest.param("process", 1, PROMPTS, 64, marks=pytest.mark.slow),
        pytest.param("http", 2, PROMPTS, 64, marks=pytest.mark.slow),
    ],
    ids=["process", "process, in full", "http, in full"],
)
def test_law_3_same_vocabulary_equals_the_equation(
    where: str,
    draft: int,
    prompts: list[str],
    tokens: int,
    models: dict[str, str],
    api_base: Callable[..., OpenAIBase],
    pairs: Callable[[str], TransformersPair],
    direct: Direct,
) -> None:
    base: OpenAIBase | TransformersBase
    if where == "http":
        size = len(from_pretrained(models["base"]))
        base = api_base(size)
    else:
        base = TransformersBase(models["base"], device="cpu")
    tuner = ProxyTuner(base, pairs("same"), draft=draft)
    generations = tuner.generate_batch(prompts, max_tokens=tokens)
    assert sum(len(g.steps) for g in generations) > 0.8 * len(prompts) * tokens
    for prompt, generation in zip(prompts, generations, strict=True):
        ids, rows = direct.generate(prompt, tokens)
        assert ids_of(generation) == ids
        for step, row in zip(generation.steps, rows, strict=True):
            for candidate in step.candidates[:20]:
                assert candidate.log_p == pytest.approx(row[candidate.token.id], abs=1e-4)
        assert generation.usage.api_calls <= len(ids)


@pytest.mark.parametrize("kind", ["same", pytest.param("digits", marks=pytest.mark.slow)])
def test_law_1_alpha_zero_is_the_base_over_its_candidates(
    kind: str, models: dict[str, str], api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    base = api_base()
    alone = TransformersBase(models["base"], device="cpu")
    with_itself = TransformersPair(models[f"{kind}-expert"], models[f"{kind}-expert"], device="cpu")
    for tuner in (ProxyTuner(base, pairs(kind), alpha=0.0), ProxyTuner(base, with_itself, alpha=3.0)):
        for prompt in PROMPTS[:2]:
            generation = tuner.generate(prompt, max_tokens=16)
            assert ids_of(generation) == ids_of(
                ProxyTuner(alone, pairs("same"), alpha=0.0).generate(prompt, max_tokens=16)
            )
            assert not any(step.changed for step in generation.steps)
            for step in generation.steps:
                log_p = np.array([c.log_p for c in step.candidates if not c.tail])
                log_q = np.array([c.log_q for c in step.candidates if not c.tail])
                assert np.ptp(log_p - log_q) < 1e-9


@pytest.mark.parametrize("kind", ["same", pytest.param("digits", marks=pytest.mark.slow)])
def test_law_6_streamed_batched_and_repeated_texts_are_the_same(
    kind: str, models: dict[str, str], api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    base = api_base()
    tuner = ProxyTuner(base, pairs(kind))
    options = {"max_tokens": 16, "temperature": 0.8, "top_p": 0.95, "seed": 11}
    plain = [tuner.generate(prompt, **options) for prompt in PROMPTS[:2]]
    batch = tuner.generate_batch(PROMPTS[:2], **options)
    streamed = ["".join(step.text for step in tuner.stream(prompt, **options)) for prompt in PROMPTS[:2]]
    assert [ids_of(g) for g in batch] == [ids_of(g) for g in plain]
    assert streamed == [g.text for g in plain]


@pytest.mark.parametrize(
    "kind", ["digits", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("same", "pieces"))]
)
def test_law_8_text_prefixes_never_show_what_is_not_there(
    kind: str, api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    """A base whose tokenizer is unknown: prefixes travel as text, and random weights offer split characters all the
    time.
    """
    base = api_base(dialect="openai", tokenizer=None)
    for generation in ProxyTuner(base, pairs(kind)).generate_batch(PROMPTS[2::6], max_tokens=24):
        spelled = b"".join(step.token for step in generation.steps)
        assert "\ufffd" not in generation.text
        assert generation.text == spelled.decode("utf-8", "ignore")
        assert all(np.isfinite(c.log_p) for step in generation.steps for c in step.candidates)


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_chat_is_decoded_through_a_prefill(
    kind: str, api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    """Whole texts over chat: every request continues the assistant's message, which holds what was issued so far."""
    messages = [{"role": "user", "content": "The mayor of New York?"}]
    generation = ProxyTuner(api_base(api="chat"), pairs(kind), draft=3).generate(messages, max_tokens=16)
    assert len(generation.steps) == 16 or generation.finish_reason == "stop"
    assert any(step.changed for step in generation.steps)
    assert generation.usage.api_calls > 3
    assert generation.text == b"".join(step.token for step in generation.steps).decode("utf-8", "ignore")
    assert "\ufffd" not in generation.text


def test_a_chat_api_without_prefill_gives_one_token_and_says_what_would_give_more(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    tuner = ProxyTuner(api_base(api="chat", dialect="openai", tokenizer=None), pairs("digits"))
    assert len(tuner.generate("The mayor of", max_tokens=1).steps) == 1
    with pytest.raises(CannotContinue) as caught:
        tuner.generate("The mayor of", max_tokens=2)
    assert "completions" in caught.value.hint
