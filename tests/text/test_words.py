"""Before words every tokenizer cuts: by cases, and by what real vocabularies do."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blackbox_proxy.text.spelling import from_pretrained, from_tiktoken
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.text.words import REACH, stands_alone


@pytest.mark.parametrize(
    ("before", "token"),
    [
        ("A", " the"),
        ("A,", " the"),
        ("3", " of"),
        ("the", "."),
        ("3", ")."),
        ("the", " 20"),
        ("the", " —"),
        ("the\n", "Then"),
        ("。\n", " 東京"),
        ("go", " USA"),
    ],
)
def test_what_stands_alone(before: str, token: str) -> None:
    assert stands_alone(before, token)


@pytest.mark.parametrize(
    ("before", "token"),
    [
        ("", " the"),  # nobody knows what stands before it
        ("the", "re"),
        ("20", "23"),
        ("A ", "the"),  # " the"
        ("A ", " the"),
        ("A", " "),
        ("A", "\n"),
        ("\n\n", "The"),  # GPT-2 takes the second line end apart once a word follows
        ("\n", "The"),
        (".", "\n"),
        (".", '"'),  # '."'
        ("don", "'t"),
        ("don", "'"),
        (".", "com"),
        ("A", "12"),
        ("the", " iPhone"),  # o200k cuts before capitals
        ("the", " 亚洲AV"),
        ("the", " a b"),
        ("東", "京"),
        ("the", " อย่างไร"),  # marks among the letters
        ("the", ""),
    ],
)
def test_what_may_be_cut_otherwise(before: str, token: str) -> None:
    assert not stands_alone(before, token)


def check(vocabulary: Vocabulary, count: int) -> None:
    """Any token, behind any few others: where it stands alone, the text is cut as before and then into it."""
    rng = random.Random(0)
    tokens = [text for text in map(text_of, vocabulary.spelling) if text]
    cases = [("".join(rng.choices(tokens, k=rng.randint(1, 3))), rng.choice(tokens)) for _ in range(count)]
    alone = [(before, token) for before, token in cases if stands_alone(before[-REACH:], token)]
    assert len(alone) > count / 10
    cut = vocabulary.encode([before.encode() for before, _ in alone])
    cut_with = vocabulary.encode([(before + token).encode() for before, token in alone])
    for (before, token), ids, more in zip(alone, cut, cut_with, strict=True):
        assert more == [*ids, vocabulary.id_of(token.encode())], (before, token)


def text_of(spelling: bytes | None) -> str:
    text = (spelling or b"").decode("utf-8", "replace")
    return "" if "\ufffd" in text else text


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama-spm"])
def test_real_tokenizers(name: str, tokenizers: Path) -> None:
    check(from_pretrained(str(tokenizers / name)), 5_000)


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_real_encodings(name: str, tokenizers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tokenizers / "tiktoken"))
    check(from_tiktoken(name), 5_000)
