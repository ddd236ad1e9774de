"""Words that were added to a tokenizer are cut out of a text before its pre-tokenizer sees it, and boundaries know."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from toys import check_boundary, train_tokenizer

from blackbox_proxy.text.added import AddedWords
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.text.vocabulary import Vocabulary

KINDS = ("bytes", "digits", "pieces")
WORDS: dict[str, list[str | AddedToken]] = {
    "a thought": ["<think>", "</think>"],
    "a tool's tag": ["<tool_call>", "</tool_call>", "<tool>"],
    "an emoji": ["🦜", "👍🏽"],
    "one that begins another": ["<a", "<ab>", "<abc", "bc>"],
    "one with spaces": ["\n\n###", " New York "],
    "one that takes spaces along": [AddedToken("<x>", lstrip=True, rstrip=True), AddedToken("<y>", lstrip=True)],
    "an ordinary word": ["theory", "thesis"],
    "one that stands alone": [AddedToken("cat", single_word=True), AddedToken("<c>", single_word=True)],
    "not normalised": [AddedToken("<t>", normalized=False), AddedToken("no de", normalized=True)],
    "one letter": ["¤", "<"],
    "one that repeats itself": ["aaa", "abab"],
}
OTHERS = [" ", "a", "b", "<", "\n", "the", "é", "2"]
PARTS = {
    name: [part for word in map(str, words) for part in (word, word[:-1], word[1:])] + OTHERS
    for name, words in WORDS.items()
}


def extended(kind: str, words: list[str | AddedToken], special: bool = False) -> Vocabulary:
    tokenizer = train_tokenizer(kind, 400)
    tokenizer.add_tokens(words, special_tokens=special)
    return from_tokenizer(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WORDS)
def test_whatever_follows_the_tokens_before_a_boundary_stay(name: str, kind: str) -> None:
    """And those after it can be cut on their own; a text of many words is not kept open for ever."""
    vocabulary = extended(kind, WORDS[name])
    rng = random.Random(f"{name} {kind}")
    for _ in range(400):
        text = "".join(rng.choices(PARTS[name], k=rng.randint(1, 7))).encode()
        more = "".join(rng.choices(PARTS[name], k=rng.randint(0, 4))).encode()
        check_boundary(vocabulary, text, more)
    long = f"{WORDS[name][0]} and so on, and then some more. " * 5
    assert vocabulary.boundary(long.encode()) > len(long.encode()) - 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WORDS)
def test_text_with_added_words_is_spelled_back(name: str, kind: str) -> None:
    vocabulary = extended(kind, WORDS[name])
    rng = random.Random(name)
    for _ in range(100):
        text = "".join(rng.choices(PARTS[name], k=6)).encode()
        assert b"".join(vocabulary.spelling[i] or b"" for i in vocabulary.encode([text])[0]) == text


def test_a_word_is_open_until_nothing_can_lengthen_it() -> None:
    vocabulary = extended("bytes", ["<think>", "</think>", "<thinking>"])
    text = b"so<think"
    assert all(vocabulary.boundary(text[:end]) <= 2 for end in range(1, len(text) + 1))
    assert vocabulary.boundary(b"so<think>") == 9
    assert vocabulary.boundary(b"so</thinker") > 2
    assert vocabulary.first([b"<think> so"]) == [b"<think>"]


def test_words_that_are_special_are_not_recognised_in_a_text() -> None:
    vocabulary = extended("bytes", ["<think>"], special=True)
    assert not set(vocabulary.encode([b"a<think>b"])[0]) & set(vocabulary.special)
    assert vocabulary.added == {}


def test_words_can_be_left_out() -> None:
    vocabulary = extended("bytes", ["<think>", "</think>"])
    opening, closing = (vocabulary.id_of(word) for word in (b"<think>", b"</think>"))
    assert opening is not None
    assert closing is not None
    less = vocabulary.without([opening])
    ids = less.encode([b"<think>a</think>"])[0]
    assert opening not in ids
    assert ids[-1] == closing
    assert less.spelling[opening] is None
    assert less.id_of(b"<think>") is None
    assert opening not in less.beginning_with(b"<")
    assert vocabulary.encode([b"<think>"])[0] == [opening]  # the other is as it was
    assert less.prompt_ids("<think>") == vocabulary.prompt_ids("<think>")
    with pytest.raises(ValueError, match="added words"):
        vocabulary.without([5])


@given(
    words=st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4),
    text=st.text("ab<", max_size=10),
    more=st.text("ab<", max_size=5),
)
@settings(deadline=None)
def test_what_is_final_among_added_words_stays_so(words: list[str], text: str, more: str) -> None:
    """Held against a plain search, leftmost and longest first, over the whole text."""
    start, end = AddedWords(words).open_part(text)

    def found(of: str) -> list[tuple[int, int]]:
        places, place = [], 0
        while place < len(of):
            longest = max((word for word in words if of.startswith(word, place)), key=len, default="")
            if longest:
                places.append((place, place + len(longest)))
            place += len(longest) or 1
        return places

    assert 0 <= start <= end <= len(text)
    for whole in (text, text + more):
        assert [one for one in found(whole) if one[1] <= start] == [one for one in found(text) if one[1] <= start]
        assert not [one for one in found(whole) if one[0] < end and one[1] > start]
