"""Where a text that travels as text would be cut anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from api_answers import TURN, legacy
from api_server import Asking, Server
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_vocabulary, train_tokenizer

from blackbox_proxy.api.recut import Recut, Unspelled, after_special, chat_opening, until_recut
from blackbox_proxy.api.sent import Settings
from blackbox_proxy.dialects.table import Dialect
from blackbox_proxy.protocols import Ask
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import END, Draft, Position, Prefix, Token

TOY = toy_vocabulary(["a", "b", "c", "ab", "abc", "é"], [("a", "b"), ("ab", "c")])
TEXTUAL = Dialect("textual", completions_k=None, chat_k=None)
REAL = from_tokenizer(train_tokenizer("bytes", 400))


def chat(known: Vocabulary) -> Settings:
    return Settings("m", "chat", TEXTUAL, 5, known)


def drafted(*tokens: Token, finish: Any = "length", given: int = 0) -> Draft:
    shown = (Token(bytes=b"x"),), np.array([-0.1])
    return Draft(tuple(Position(token, -0.1, *shown) for token in tokens), finish, given=given)


def kept(text: bytes, *pieces: bytes, known: Vocabulary = TOY) -> int:
    draft = drafted(*(known.token(piece) for piece in pieces))
    return len(until_recut(draft, Recut(text, known)).positions)


@pytest.mark.parametrize(
    ("text", "pieces", "count"),
    [
        (b"", [b"a", b"c", b"b"], 3),
        (b"", [b"a", b"b", b"c"], 2),  # "ab" is one token
        (b"a", [b"b", b"c"], 1),
        (b"ca", [b"b", b"c"], 1),
        (b"", [b"ab", b"c", b"a"], 2),
        (b"", [b"abc", b"abc", b"a"], 3),
        (b"c", [b"a", b"a", b"a"], 3),
        (b"", [b"\xc3", b"\xa9", b"a"], 2),  # half a character is not asked about; together they are one token
        (b"", [b"\xc3", b"a"], 2),
        (b"\xc3", [b"a", b"b"], 2),
    ],
)
def test_how_far_a_draft_goes(text: bytes, pieces: list[bytes], count: int) -> None:
    assert kept(text, *pieces) == count


@pytest.mark.parametrize(
    ("text", "pieces", "count"),
    [
        (b"A", [b" fox", b" ran", b"."], 3),
        (b"A", [b" fo", b"x", b" ran"], 2),
        (b"A fo", [b"x", b" ran", b" to"], 1),
        (b"", [b"A", b" fox"], 1),  # a chat's answer: what stands before it is not known
        (b"A", [b" \xc3", b"\xa9", b" ran"], 2),  # two tokens make one character
        (b"A", [b" \xc3", b" ran", b" to"], 3),  # no character at all: nothing can go on from there as text
        (b"A \xc3", [b" ran"], 1),
    ],
)
def test_how_far_a_draft_goes_where_the_tokenizer_is_unknown(text: bytes, pieces: list[bytes], count: int) -> None:
    tokens = [Token(None, piece, piece.decode("utf-8", "replace")) for piece in pieces]
    assert len(until_recut(drafted(*tokens, finish="stop"), Unspelled(text)).positions) == count
    assert len(until_recut(drafted(*tokens, given=len(tokens)), Unspelled(text)).positions) == len(tokens)


def test_what_is_left_of_a_draft() -> None:
    a, b, c = (TOY.token(piece) for piece in (b"a", b"b", b"c"))
    whole = drafted(a, c, b, finish="stop")
    assert until_recut(whole, Recut(b"", TOY)) is whole
    assert until_recut(whole, None) is whole
    cut = until_recut(drafted(c, a, b, c, finish="stop", given=4), Recut(b"", TOY))
    assert (len(cut.positions), cut.finish, cut.given) == (3, None, 3)
    last = until_recut(drafted(a, b, finish="stop"), Recut(b"", TOY))
    assert (len(last.positions), last.finish) == (2, None)
    ended = drafted(a, END, finish="stop")
    assert until_recut(ended, Recut(b"", TOY)) is ended


def test_tokens_that_leave_no_trace_in_text() -> None:
    a, special, unknown = TOY.token(b"a"), Token(99, b"", "<x>"), Token(None, None, "\ufffd")
    for token in (special, unknown):
        assert len(until_recut(drafted(a, token, a), Recut(b"", TOY)).positions) == 2


def test_another_id_of_the_same_spelling_is_another_token() -> None:
    assert not Recut(b"", TOY).add(Token(99, b"a", "a"))
    assert Recut(b"", TOY).add(Token(None, b"a", "a"))


@given(st.text("ab é1\n'st", max_size=12), st.lists(st.integers(2, 399), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None)
def test_with_a_real_tokenizer(text: str, ids: list[int]) -> None:
    """Exactly where cutting the whole text gives other tokens than the text's and the draft's."""
    tokens = [REAL.token_of(i) for i in ids]
    expected, written = len(tokens), text.encode()
    before = REAL.encode([written])[0] if written else []
    for i, token in enumerate(tokens):
        written += token.bytes or b""
        try:
            written.decode()
        except UnicodeDecodeError:
            continue
        if REAL.encode([written])[0] != [*before, *ids[: i + 1]]:
            expected = i + 1
            break
    assert len(until_recut(drafted(*tokens), Recut(text.encode(), REAL)).positions) == expected


def test_long_texts_are_forgotten() -> None:
    text = "The mayor of New York said on 12 March 2023 that people came. " * 80
    recut = Recut(b"", REAL)
    assert all(recut.add(REAL.token_of(i)) for i in REAL.encode([text.encode()])[0])
    assert len(recut._text) < 300
    recut = Recut(f"é{text}in".encode(), REAL)
    assert len(recut._text) < 10
    assert not recut.add(REAL.token(b"g"))


def test_the_text_that_counts(vocabulary: Vocabulary) -> None:
    assert after_special("one<|im_start|>two<|endoftext|>Hi", vocabulary) == b"Hi"
    assert after_special("Hi", vocabulary) == b"Hi"
    assert chat_opening("Hi", chat(vocabulary)) == b""  # it ends with <|im_start|>
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So"}]
    assert chat_opening(begun, chat(vocabulary)) == b"So"

    def refuse(prompt: Any, rendering: Any) -> Any:
        raise KeyError("role")

    bare = Vocabulary(
        vocabulary.spelling,
        special={TURN: "<x>"},
        end_ids=[],
        encode=lambda t: [],
        pretokens=lambda t: [],
        render=refuse,
    )
    assert chat_opening("Hi", chat(bare)) == b""


@pytest.mark.parametrize("api", ["completions", "chat"])
async def test_drafts_of_text_apis_are_cut(server: Server, asking: Asking, vocabulary: Vocabulary, api: str) -> None:
    """After " th" + "e" the text would be " the", one token."""
    rows = [(token, -0.1, {token: -0.1}) for token in (" t", "h", "e", "!")]
    rows[0] = (" ", -0.1, {" ": -0.1})
    body = legacy(
        ("!", -0.1, {"!": -0.1}), *rows[:1], ("t", -0.1, {"t": -0.1}), *rows[1:], text="! the!", finish="stop"
    )
    server.answers = [body]
    dialect = TEXTUAL if api == "completions" else "vllm"
    base = asking(api=api, dialect=dialect, tokenizer=vocabulary)
    found = await base.draft(Ask(Prefix("Hi"), 9))
    assert b"".join(position.token.bytes or b"" for position in found.positions) == b"! the"
    assert (found.finish, found.usage.completion_tokens) == (None, 6)
    parts = [part async for part in base.stream(Ask(Prefix("Hi"), 9))]
    assert sum(len(part.positions) for part in parts) == 5
    nobody_knows = asking(dialect=TEXTUAL, tokenizer=None, trust_drafts=False)
    unknown = await nobody_knows.draft(Ask(Prefix("Hi"), 9))
    assert (len(unknown.positions), unknown.cut) == (2, True)
    await nobody_knows.aclose()
    for free in (asking(tokenizer=vocabulary), asking(api="chat", tokenizer=vocabulary)):
        assert len((await free.draft(Ask(Prefix("Hi"), 9))).positions) == 6
        await free.aclose()
    await base.aclose()
