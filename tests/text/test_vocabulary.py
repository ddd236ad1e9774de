"""Spelling: ids to bytes and back, safe boundaries, first tokens; on small vocabularies and, where they are at hand,
real ones.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import check_boundary, train_tokenizer

from blackbox_proxy.errors import ModelUnavailable
from blackbox_proxy.text.spelling import from_pretrained, from_tiktoken, from_tokenizer
from blackbox_proxy.text.vocabulary import LearnedVocabulary, Vocabulary, is_unfinished, utf8_prefix

KINDS = ("bytes", "digits", "pieces")
SMALL = {kind: from_tokenizer(train_tokenizer(kind, 400)) for kind in KINDS}
REAL = ("gpt2", "qwen2", "llama-spm", "cl100k_base", "o200k_base")
ODD = list(
    " \n\t'abc let's don't we'll 12 345 .,!?()-–“”’éüß日本語中文字한글שלוםمرحبا👍🏽👨‍👩‍👧\u00a0\u200d\r\nThe the THE  "
)


@cache
def real(name: str, folder: Path) -> Vocabulary:
    if name.endswith("_base"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIKTOKEN_CACHE_DIR", str(folder / "tiktoken"))
            return from_tiktoken(name)
    return from_pretrained(str(folder / name))


def odd_text(rng: random.Random, longest: int) -> str:
    return "".join(rng.choice(ODD) for _ in range(rng.randint(0, longest)))


def check_boundaries(vocabulary: Vocabulary, rounds: int) -> None:
    """Whatever follows, the tokens before a boundary stay, and those after it can be cut on their own."""
    rng = random.Random(0)
    moved = 0
    for _ in range(rounds):
        text, more = odd_text(rng, 14).encode(), odd_text(rng, 6).encode()
        moved += check_boundary(vocabulary, text, more) > 0
    assert moved > rounds / 2


@pytest.mark.parametrize("kind", KINDS)
def test_boundaries_of_small_vocabularies(kind: str) -> None:
    check_boundaries(SMALL[kind], 600)


@pytest.mark.parametrize("name", REAL)
def test_boundaries_of_real_vocabularies(name: str, tokenizers: Path) -> None:
    check_boundaries(real(name, tokenizers), 1000)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=30))
@example(text="two ▁ signs")
@settings(deadline=None)
def test_text_is_spelled_back(kind: str, text: str) -> None:
    vocabulary = SMALL[kind]
    (ids,) = vocabulary.encode([text.encode()])
    if kind == "pieces":
        text = text.replace("▁", " ")  # what sentencepiece writes a space as: it cannot tell the two apart
    assert b"".join(vocabulary.spelling[i] or b"" for i in ids) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_first_token_is_the_one_the_tokenizer_cuts(kind: str) -> None:
    vocabulary = SMALL[kind]
    for text in ("New York", " the theory", "2023", "日本", "👍 ok", "  two"):
        ids = vocabulary.encode([text.encode()])[0]
        assert vocabulary.first([text.encode()]) == [vocabulary.spelling[ids[0]]]


def test_first_token_of_an_unfinished_character_is_the_longest_that_fits() -> None:
    vocabulary = SMALL["bytes"]
    half = "日".encode()[:2]
    longest = max((s for s in vocabulary.spelling if s and half.startswith(s)), key=len)
    assert vocabulary.first([half]) == [longest]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_begin_alike_are_one_range(kind: str) -> None:
    vocabulary = SMALL[kind]
    for prefix in (b" t", b"N", b"\xe6", b"\xff", b"zzz"):
        expected = {i for i, s in enumerate(vocabulary.spelling) if s and s.startswith(prefix)}
        assert set(vocabulary.beginning_with(prefix).tolist()) == expected


def test_extensions_are_the_shortest_ways_on() -> None:
    learned = LearnedVocabulary([b"a", b"abc"]).with_more([b"ab", b"ad", b"b", b""])
    assert learned.with_more([b"ab", b""]) is learned
    assert learned.extensions(b"a") == [b"b", b"d"]
    assert learned.extensions(b"ab") == [b"c"]
    assert learned.extensions(b"abc") == []
    assert learned.first([b"abcd", b"adx", b"zz"]) == [b"abc", b"ad", b"zz"]


def test_vocabularies_are_told_apart_by_their_bytes() -> None:
    again = from_tokenizer(train_tokenizer("bytes", 400))
    other = from_tokenizer(train_tokenizer("bytes", 401))
    assert SMALL["bytes"].spells_like(again)
    assert not SMALL["bytes"].spells_like(other)
    assert not SMALL["bytes"].spells_like(SMALL["digits"])


def test_special_tokens_in_a_continuation_are_text() -> None:
    vocabulary = SMALL["bytes"]
    assert not set(vocabulary.encode([b"a</s>b"])[0]) & set(vocabulary.special)
    assert 1 in vocabulary.prompt_ids("a</s>b")


def test_chat_template_and_its_end_of_turn(tokenizers: Path) -> None:
    vocabulary = real("qwen2", tokenizers)
    assert vocabulary.end_ids == {151643, 151645}
    ids = vocabulary.prompt_ids("Hi", "chat")
    assert vocabulary.token_of(ids[0]).text == "<|im_start|>"
    assert vocabulary.prompt_ids([{"role": "user", "content": "Hi"}], "chat") == ids
    assert vocabulary.prompt_ids("Hi", lambda prompt: f"{prompt}!") == vocabulary.prompt_ids("Hi!")


def test_a_tokenizer_that_changes_text_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2, "a": 3, "b": 4, "c": 5}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(ModelUnavailable, match="does not spell text back"):
        from_tokenizer(tokenizer)


@pytest.mark.parametrize(
    ("text", "whole", "unfinished"),
    [
        (b"ab", 2, False),
        (b"a\xe6\x97", 1, True),
        (b"a\x80", 1, False),
        ("日".encode(), 3, False),
        (b"\xf0\x9f", 0, True),
    ],
)
def test_where_text_stops_being_whole(text: bytes, whole: int, unfinished: bool) -> None:
    assert utf8_prefix(text) == whole
    assert is_unfinished(text[whole:]) is unfinished
