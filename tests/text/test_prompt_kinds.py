"""Prompts as people have them: token ids of the base, messages whose content is a list of parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.errors import InputError
from blackbox_proxy.text.prompts import joined
from blackbox_proxy.text.shown import told

Pairs = Callable[[str], TransformersPair]
TEXT = "The mayor of New York"


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


PROMPTS: list[tuple[Any, Any]] = [
    (TEXT, TEXT),
    ((1, 2), (1, 2)),
    ([{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Hi"}]),
    ([{"role": "user", "content": parts("a", "b")}], [{"role": "user", "content": "ab"}]),
    ([{"role": "user", "content": parts()}], [{"role": "user", "content": ""}]),
    (
        [{"role": "user", "name": "x", "content": parts("a\n")}, {"role": "user", "content": "b"}],
        [{"role": "user", "name": "x", "content": "a\n"}, {"role": "user", "content": "b"}],
    ),
]
OTHER: list[Any] = [
    {"type": "image_url", "image_url": {"url": "http://x"}},
    {"type": "input_audio"},
    {"type": "text"},
    {"type": "text", "text": None},
    {"text": "a"},
    "a",
    None,
]


@pytest.mark.parametrize(("prompt", "text"), PROMPTS)
def test_text_parts_are_joined(prompt: Any, text: Any) -> None:
    assert joined(prompt) == text


@pytest.mark.parametrize("part", OTHER)
def test_parts_that_are_no_text_are_refused(part: Any) -> None:
    with pytest.raises(InputError, match="no text"):
        joined([{"role": "user", "content": [*parts("a"), part]}])


@pytest.fixture(scope="module")
def base(models: dict[str, str]) -> TransformersBase:
    return TransformersBase(models["base"], top_logprobs=20, device="cpu")


@pytest.mark.parametrize("kind", ["same", "digits", "pieces"])
def test_ids_of_the_base_are_text_for_the_pair(kind: str, base: TransformersBase, pairs: Pairs) -> None:
    tuner = ProxyTuner(base, pairs(kind))
    ids = base.prompt_ids(TEXT)
    assert tuner.generate(ids, max_tokens=8).text == tuner.generate(TEXT, max_tokens=8).text
    assert [found.text for found in tuner.generate_batch([ids, TEXT], max_tokens=4)] == [
        tuner.generate(TEXT, max_tokens=4).text
    ] * 2
    options = [" the", " of"]
    assert tuner.choose(ids, options).log_p == pytest.approx(tuner.choose(TEXT, options).log_p, abs=1e-6)
    assert tuner.score(ids, " said").log_p == pytest.approx(tuner.score(TEXT, " said").log_p, abs=1e-6)


def test_a_list_of_parts_is_the_text(base: TransformersBase, pairs: Pairs) -> None:
    tuner = ProxyTuner(base, pairs("digits"))
    whole = tuner.generate([{"role": "user", "content": TEXT}], max_tokens=6)
    split: Any = [{"role": "user", "content": parts(TEXT[:9], TEXT[9:])}]
    assert tuner.generate(split, max_tokens=6).text == whole.text
    assert [found.text for found in tuner.generate_batch([split], max_tokens=6)] == [whole.text]
    image: Any = [{"role": "user", "content": OTHER[:1]}]
    with pytest.raises(InputError, match="image_url"):
        tuner.generate(image)
    with pytest.raises(InputError, match="image_url"):
        tuner.generate_batch([image])


@pytest.mark.parametrize("ids", [(10**6,), (-1, 5)])
def test_ids_that_are_none_of_the_bases_are_refused(ids: tuple[int, ...], base: TransformersBase, pairs: Pairs) -> None:
    with pytest.raises(InputError, match="outside the"):
        ProxyTuner(base, pairs("digits")).generate(ids)


def test_ids_need_the_bases_tokenizer(api_base: Callable[..., OpenAIBase], pairs: Pairs) -> None:
    tuner = ProxyTuner(api_base(dialect="openai", tokenizer=None), pairs("digits"))
    for ask in (tuner.generate, lambda ids: tuner.choose(ids, ["A", "B"]), lambda ids: tuner.score(ids, "A")):
        with pytest.raises(InputError, match="tokenizer"):
            ask((1, 2, 3))


@pytest.mark.parametrize("kind", ["same", "digits", "pieces"])
def test_ids_that_end_inside_a_character_are_issued(kind: str, base: TransformersBase, pairs: Pairs) -> None:
    begun = base.vocabulary.id_of(b"\xc3")
    assert begun is not None
    ids = (*base.prompt_ids("The mayor of Z"), begun)
    generation = ProxyTuner(base, pairs(kind)).generate(ids, max_tokens=3)
    assert len(generation.steps) == 3
    assert told(ids, base.vocabulary).issued[0].id == begun  # type: ignore[union-attr]
