"""Response -> Draft: every pitfall of real APIs, and the two laws: only own errors, no candidate from a sentinel."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from api_answers import END, TURN, chat, entry, legacy
from hypothesis import given, settings
from hypothesis import strategies as st

from blackbox_proxy.api.streaming import Incremental, parse
from blackbox_proxy.errors import BadResponse, BaseError, NoLogprobs, ServerFailed
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.transport.failures import decode_body
from blackbox_proxy.types import Draft, Position, Token, Usage

FFFD = [239, 191, 189]
HALF = chr(0xD83D)  # a surrogate without its partner


def ask(body: object, n: int = 10, k: int = 5, vocabulary: Vocabulary | None = None) -> Draft:
    return parse(body, Incremental(n, k, vocabulary))


def only(body: object, k: int = 5, vocabulary: Vocabulary | None = None) -> Position:
    (position,) = ask(body, k=k, vocabulary=vocabulary).positions
    return position


# -- what a token is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_entry", "expected"),
    [
        (entry("Hi", -1.0), Token(None, b"Hi", "Hi")),
        (entry("é", -1.0, [195, 169]), Token(None, b"\xc3\xa9", "é")),
        (entry("\\xe2\\x80", -1.0, [0xE2, 0x80]), Token(None, b"\xe2\x80", "\\xe2\\x80")),
        (entry("bytes:\\xe2\\x80", -1.0), Token(None, b"\xe2\x80", "bytes:\\xe2\\x80")),
        (entry("bytes: \\xf0\\x9f", -1.0), Token(None, b" \xf0\x9f", "bytes: \\xf0\\x9f")),
        (entry("bytes:\\n\\\\\\xf0", -1.0), Token(None, b"\n\\\xf0", "bytes:\\n\\\\\\xf0")),
        (entry("bytes:", -1.0), Token(None, b"bytes:", "bytes:")),
        (entry("bytes:\\x41", -1.0), Token(None, b"bytes:\\x41", "bytes:\\x41")),  # whole UTF-8 is never escaped
        (entry("\ufffd", -1.0), Token(None, None, "\ufffd")),
        (entry(" \ufffd", -1.0), Token(None, None, " \ufffd")),
        (entry("\ufffd", -1.0, FFFD), Token(None, None, "\ufffd")),
        (entry(" \ufffd", -1.0, [32, *FFFD]), Token(None, None, " \ufffd")),
        (entry("\ufffd", -1.0, [0xF0, 0x9F]), Token(None, b"\xf0\x9f", "\ufffd")),
        (entry("x", -1.0, FFFD), Token(None, None, "x")),
        (entry("Hi", -1.0, []), Token(None, b"Hi", "Hi")),
        (entry("", -1.0), Token(None, None, "")),
        (entry(HALF, -1.0), Token(None, None, HALF)),
        (entry("Hi", -1.0, [72, 105], id=7), Token(7, b"Hi", "Hi")),
        (entry("Hi", -1.0, None, token_id=7), Token(7, b"Hi", "Hi")),
        (entry("Hi", -1.0, None, id=-1), Token(None, b"Hi", "Hi")),
        (entry("token_id:17", -1.0, list(b"token_id:17")), Token(17, None, "token_id:17")),
        (entry("<|im_end|>", -1.0), Token(None, b"", "<|im_end|>", end=True)),
        (entry("<|im_end|>", -1.0, list(b"<|im_end|>")), Token(None, b"", "<|im_end|>", end=True)),
        (entry("</s>", -1.0), Token(None, b"", "</s>", end=True)),
        (entry("</s>", -1.0, list(b"</s>")), Token(None, b"</s>", "</s>")),
    ],
)
def test_what_a_token_is_without_a_vocabulary(given_entry: dict[str, Any], expected: Token) -> None:
    body = chat(entry("other", -2.0) | {"top_logprobs": [given_entry]}, text="other")
    assert only(body).tokens == (expected,)


@pytest.mark.parametrize(
    ("given_entry", "expected"),
    [
        (entry(" the", -1.0), Token(256, b" the", " the")),
        (entry("the", -1.0), Token(None, b"the", "the")),  # no token of this vocabulary
        (entry("token_id:259", -1.0, list(b"token_id:259")), Token(259, b"\xf0\x9f", "\ufffd")),
        (entry("\ufffd", -1.0, FFFD, id=259), Token(259, b"\xf0\x9f", "\ufffd")),
        (entry("\ufffd", -1.0, [0xF0, 0x9F]), Token(259, b"\xf0\x9f", "\ufffd")),
        (entry("\ufffd", -1.0), Token(None, None, "\ufffd")),
        (entry(f"token_id:{END}", -1.0), Token(END, b"", "<|endoftext|>", end=True)),
        (entry("", -1.0, None, id=END), Token(END, b"", "<|endoftext|>", end=True)),
        (entry("<|endoftext|>", -1.0), Token(END, b"", "<|endoftext|>", end=True)),
        (entry("<|endoftext|>", -1.0, list(b"<|endoftext|>")), Token(END, b"", "<|endoftext|>", end=True)),
        (entry("<|endoftext|>", -1.0, list(b"other")), Token(None, b"other", "<|endoftext|>")),
        (entry("<|im_start|>", -1.0), Token(TURN, b"", "<|im_start|>")),
        (entry("<|im_end|>", -1.0), Token(None, b"<|im_end|>", "<|im_end|>")),  # no special token of this vocabulary
        (entry("token_id:99999", -1.0), Token(99999, None, "")),
    ],
)
def test_what_a_token_is_with_a_vocabulary(
    given_entry: dict[str, Any], expected: Token, vocabulary: Vocabulary
) -> None:
    body = chat(entry("other", -2.0) | {"top_logprobs": [given_entry]}, text="other")
    assert only(body, vocabulary=vocabulary).tokens == (expected,)


def test_ids_keep_apart_what_strings_would_merge(vocabulary: Vocabulary) -> None:
    top = {f"token_id:{byte}": -math.log(64) for byte in range(0x80, 0xC0)}
    position = only(legacy(("token_id:128", -math.log(64), top)), k=64, vocabulary=vocabulary)
    assert [token.bytes for token in position.tokens] == [bytes([byte]) for byte in range(0x80, 0xC0)]
    assert np.exp(position.logprobs).sum() == pytest.approx(1.0)


def test_tokens_known_only_by_replacement_characters_are_never_merged() -> None:
    top = [entry("\ufffd", -1.0), entry("\ufffd", -2.0, FFFD), entry("\ufffd", -3.0, [0xE2]), entry("\ufffd", -4.0)]
    position = only(chat(entry("Hi", -5.0) | {"top_logprobs": top}, text="Hi"))
    assert position.logprobs.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert [token.bytes for token in position.tokens] == [None, None, b"\xe2", None]


def test_a_token_listed_twice_is_one_candidate_with_its_larger_probability() -> None:
    top = [entry("a", -3.0, [97]), entry("b", -1.0), entry("a", -2.0), entry("c", -1.0, None, id=5)]
    top += [entry("c", -0.5, None, id=6), entry("C", -0.7, None, id=5), entry("b", -4.0)]
    position = only(chat(entry("a", -2.0) | {"top_logprobs": top}, text="a"), k=6)
    assert [(t.text, t.id, lp) for t, lp in zip(position.tokens, position.logprobs, strict=True)] == [
        ("c", 6, -0.5),
        ("C", 5, -0.7),
        ("b", None, -1.0),
        ("a", None, -2.0),
    ]


def test_a_text_that_an_ordinary_token_has_too_is_that_token() -> None:
    """Qwen2 has "</s>" as an ordinary token."""
    known = Vocabulary(
        [b"</s>", b"Hi", b"", b""],
        special={2: "</s>", 3: "<eos>"},
        end_ids=[2, 3],
        encode=lambda texts: [],
        pretokens=lambda text: [],
        render=lambda prompt, rendering: [],
    )
    position = only(legacy(("Hi", -0.1, {"Hi": -0.1, "</s>": -3.0, "<eos>": -4.0}), text="Hi"), vocabulary=known)
    assert [(token.id, token.end) for token in position.tokens] == [(1, False), (0, False), (3, True)]


def test_different_end_tokens_stay_apart() -> None:
    top = [entry("<|im_end|>", -1.0), entry("<|endoftext|>", -2.0), entry("x", -0.5)]
    position = only(chat(entry("x", -0.5) | {"top_logprobs": top}, text="x"))
    assert [(token.text, token.end) for token in position.tokens] == [
        ("x", False),
        ("<|im_end|>", True),
        ("<|endoftext|>", True),
    ]


# -- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing",
    [-9999.0, -9999, -9984.0, -3.4028234663852886e38, -1.7976931348623157e308, None, -math.inf],
)
def test_a_sentinel_is_no_probability(missing: float | None) -> None:
    legacy_position = only(legacy((" a", missing, {" b": -0.1, " a": missing}), text=" a"))
    chat_position = only(chat(entry(" a", missing) | {"top_logprobs": [entry(" a", missing), entry(" b", -0.1)]}))
    for position in (legacy_position, chat_position):
        assert position.token.text == " a"
        assert position.logprob is None
        assert [token.text for token in position.tokens] == [" b"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e308, 10**400, 0.5])
@pytest.mark.parametrize("own", [True, False])
def test_what_cannot_be_a_log_probability_is_refused(value: float, own: bool) -> None:
    """To leave out the candidate would let another one win without a word."""
    values = (-0.1, value) if not own else (value, -0.1)
    top = {" a": values[0], " b": values[1]}
    with pytest.raises(BadResponse, match="a log probability is"):
        ask(legacy((" a", values[0], top), text=" a"))
    with pytest.raises(BadResponse, match="a log probability is"):
        ask(chat(entry(" a", values[0]) | {"top_logprobs": [entry(*item) for item in top.items()]}))


@pytest.mark.parametrize("text", ["a" * 1025, " " * 10_000_000])
def test_a_token_longer_than_any_is_refused(text: str) -> None:
    for body in (legacy((text, -0.1, {text: -0.1}), text=text), chat(entry(text, -0.1) | {"top_logprobs": []})):
        with pytest.raises(BadResponse, match="a token has"):
            ask(body)
    many = {f"{i}": -9.0 for i in range(2000)}
    with pytest.raises(BadResponse, match="2,000 candidates"):
        ask(legacy((" a", -0.1, many), text=" a"), k=5)


def test_rounding_above_zero_is_clipped() -> None:
    position = only(legacy((" a", 1e-5, {" a": 1e-5, " b": -12.0}), text=" a"))
    assert position.logprob == 0.0
    assert position.logprobs.tolist() == [0.0, -12.0]


def test_candidates_are_sorted_and_ties_keep_their_order() -> None:
    position = only(legacy(("c", -3.0, {"c": -3.0, "b": -1.0, "a": -1.0, "d": -0.5}), text="c"))
    assert [token.text for token in position.tokens] == ["d", "b", "a", "c"]
    assert position.logprobs.dtype == np.float64


@pytest.mark.parametrize("own", [-4.0, -2.0])  # -2.0: tied with the last of the k
def test_a_sampled_token_outside_the_k_does_not_join_them(own: float) -> None:
    top = {"z": own, "a": -0.5, "b": -1.0, "c": -2.0}
    position = only(legacy(("z", own, top), text="z"), k=3)
    assert [token.text for token in position.tokens] == ["a", "b", "c"]
    assert position.logprob == own
    inside = only(legacy(("z", own, top), text="z"), k=4)
    assert "z" in [token.text for token in inside.tokens]


def test_a_sampled_token_among_the_k_stays_even_if_more_are_shown() -> None:
    top = {"a": -0.5, "b": -1.0, "c": -2.0, "d": -3.0}
    assert len(only(legacy(("b", -1.0, top), text="b"), k=3).tokens) == 4


def test_the_sampled_tokens_probability_may_come_from_the_list() -> None:
    assert only(legacy(("a", None, {"a": -0.5, "b": -1.0}), text="a")).logprob == -0.5


# -- the end ----------------------------------------------------------------------------------------------------------


def test_an_end_that_is_shown() -> None:
    draft = ask(
        legacy(
            ("Hi", -0.1, {"Hi": -0.1}),
            ("<|endoftext|>", -0.2, {"<|endoftext|>": -0.2, "!": -3.0}),
            text="Hi",
            finish="stop",
        )
    )
    assert [position.token.end for position in draft.positions] == [False, True]
    assert draft.positions[1].token.bytes == b""
    assert [token.end for token in draft.positions[1].tokens] == [True, False]
    assert draft.finish == "stop"


def test_an_end_that_is_left_out() -> None:
    draft = ask(chat(entry("Hi", -0.1) | {"top_logprobs": [entry("Hi", -0.1)]}, text="Hi", finish="stop"))
    assert [position.token.end for position in draft.positions] == [False]
    assert draft.finish == "stop"


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"text": "", "finish_reason": "stop", "logprobs": None}]},
        {"choices": [{"text": "", "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": None}, "finish_reason": "stop", "logprobs": {"content": []}}]},
        {"choices": [{"message": {"content": ""}, "finish_reason": "stop", "logprobs": {"content": None}}]},
        legacy(text="", finish="stop"),
    ],
)
def test_an_immediate_end_has_no_positions(body: Any) -> None:
    draft = ask(body)
    assert (draft.positions, draft.finish, draft.usage.api_calls) == ((), "stop", 1)


def test_an_end_without_text_or_bytes() -> None:
    """llama-server: "" and no bytes; an id that nobody can spell."""
    top = [entry("", -0.1, [], id=2), entry("!", -3.0, [33], id=5), entry("", -4.0, [], id=1)]
    rows = [entry("Hi", -0.1, [72, 105], id=9) | {"top_logprobs": [entry("Hi", -0.1, [72, 105], id=9)]}]
    rows += [entry("", -0.1, [], id=2) | {"top_logprobs": top}]
    body = chat(*rows, text="Hi", finish="stop")
    last = ask(body).positions[-1]
    assert last.token == Token(2, b"", "", end=True)
    assert [(token.id, token.end, token.bytes) for token in last.tokens] == [
        (2, True, b""),
        (5, False, b"!"),
        (1, False, None),
    ]
    body["choices"][0]["finish_reason"] = "length"
    assert ask(body).positions[-1].token == Token(2, None, "")


def test_an_end_of_unknown_spelling_adds_nothing_to_the_text() -> None:
    rows = [("Hi", -0.1, {"Hi": -0.1}), ("<END>", -0.2, {"<END>": -0.2, "!": -3.0})]
    last = ask(legacy(*rows, text="Hi", finish="stop")).positions[-1]
    assert last.token == Token(None, b"", "<END>", end=True)
    assert [token.end for token in last.tokens] == [True, False]
    literal = ask(legacy(*rows, text="Hi<END>", finish="stop")).positions[-1]
    assert literal.token == Token(None, b"<END>", "<END>")


def test_a_special_token_ends_the_text_where_the_server_says_so(vocabulary: Vocabulary) -> None:
    rows = [("token_id:258", -0.1, {"token_id:258": -0.1}), (f"token_id:{TURN}", -0.2, {f"token_id:{TURN}": -0.2})]
    stopped = ask(legacy(*rows, text="Hi", finish="stop"), vocabulary=vocabulary).positions[-1]
    assert stopped.token.end
    assert stopped.tokens[0].end
    assert not ask(legacy(*rows, text="Hi", finish="length"), vocabulary=vocabulary).positions[-1].token.end


def test_what_the_text_went_on_after_was_written_literally(vocabulary: Vocabulary) -> None:
    rows = [("</s>", -0.1, {"</s>": -0.1, "<eos>": -3.0}), ("Hi", -0.1, {"Hi": -0.1})]
    first = ask(legacy(*rows, text="</s>Hi")).positions[0]
    assert first.token == Token(None, b"</s>", "</s>")
    assert [token.end for token in first.tokens] == [False, True]
    rows = [("<|endoftext|>", -0.1, {"<|endoftext|>": -0.1}), ("Hi", -0.1, {"Hi": -0.1})]
    first = ask(legacy(*rows, text="<|endoftext|>Hi"), vocabulary=vocabulary).positions[0]
    assert first.token == Token(None, b"<|endoftext|>", "<|endoftext|>")


def test_an_unfinished_character_at_a_stop_is_not_the_end() -> None:
    rows = [("Hi", -0.1, {"Hi": -0.1}), ("\ufffd", -0.2, {"\ufffd": -0.2})]
    assert not ask(legacy(*rows, text="Hi", finish="stop")).positions[-1].token.end


def test_a_text_of_which_a_part_is_hidden_tells_nothing_of_the_end() -> None:
    body = chat(entry("Hm", -0.1) | {"top_logprobs": [entry("Hm", -0.1)]}, text=None, finish="stop")
    assert only(body).token.end
    body["choices"][0]["message"]["reasoning_content"] = "Hm"
    assert not only(body).token.end


# -- finish, usage, shape ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("eos", "stop"), ("length", "length"), (None, None), ("SAFETY", "content_filter"), (3, "other")],
)
def test_finish(reason: Any, finish: str | None) -> None:
    assert ask(legacy(("a", -1.0, {"a": -1.0}), text="a", finish=reason)).finish == finish


def test_usage_is_the_apis_own_count_or_none() -> None:
    body = legacy(("a", -1.0, {"a": -1.0}), text="a")
    assert ask(body).usage == Usage(api_calls=1, prompt_tokens=3, completion_tokens=1)
    empty: list[Any] = [None, {}, {"prompt_tokens": None, "completion_tokens": "4"}, [], {"prompt_tokens": True}]
    for usage in empty:
        assert ask({**body, "usage": usage}).usage == Usage(api_calls=1)


def test_completions_in_the_chat_shape() -> None:
    """llama-server: the columns are absent, `content` is there."""
    item = entry("Hi", -0.1, [72, 105], id=9) | {"top_logprobs": [entry("Hi", -0.1, [72, 105], id=9)]}
    body = {"choices": [{"text": "Hi", "finish_reason": "length", "logprobs": {"content": [item]}}]}
    assert only(body).token == Token(9, b"Hi", "Hi")


GOOD = legacy(("a", -1.0, {"a": -1.0, "b": -2.0}), ("b", -1.0, {"b": -1.0, "a": -2.0}), text="ab")
COLUMNS = GOOD["choices"][0]["logprobs"]


def with_logprobs(**changes: Any) -> Any:
    return {"choices": [{"text": "ab", "finish_reason": "length", "logprobs": {**COLUMNS, **changes}}]}


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ("<html><body>Bad gateway", BadResponse, "<html>"),
        (None, BadResponse, "NoneType"),
        ([], BadResponse, "list"),
        ({}, BadResponse, "no choices"),
        ({"choices": []}, BadResponse, "no choices"),
        ({"choices": ["x"]}, BadResponse, "no choices"),
        ({"error": {"message": "upstream is down", "code": 502}}, BadResponse, "upstream is down"),
        ({"error": "upstream is down"}, BadResponse, "upstream is down"),
        (with_logprobs(tokens=["a"]), BadResponse, "1, 2 and 2"),
        (with_logprobs(token_logprobs=[-1.0]), BadResponse, "2, 1 and 2"),
        (with_logprobs(top_logprobs=COLUMNS["top_logprobs"] * 2), BadResponse, "2, 2 and 4"),
        (with_logprobs(top_logprobs=None), BadResponse, "malformed"),
        (with_logprobs(tokens=None), BadResponse, "malformed"),
        (with_logprobs(tokens=["a", 3]), BadResponse, "malformed"),
        (with_logprobs(token_logprobs=[-1.0, "-1"]), BadResponse, "not a number"),
        (with_logprobs(token_logprobs=[-1.0, True]), BadResponse, "not a number"),
        (with_logprobs(token_logprobs=[-1.0, 0.5]), BadResponse, "positive"),
        (with_logprobs(top_logprobs=[{"a": -1.0}, ["b"]]), BadResponse, "malformed"),
        (with_logprobs(content=[3]), BadResponse, "malformed"),
        (with_logprobs(content=[{"token": None}]), BadResponse, "malformed"),
        (chat(entry("a", -1.0, [300]) | {"top_logprobs": []}), BadResponse, "bytes"),
        (with_logprobs(tokens=None, token_logprobs=None, top_logprobs=None), NoLogprobs, "without"),
        ({"choices": [{"text": "ab", "finish_reason": "stop", "logprobs": None}]}, NoLogprobs, "without"),
        ({"choices": [{"message": {"content": "ab"}, "finish_reason": "stop"}]}, NoLogprobs, "without"),
        (chat(text="ab", finish="stop"), NoLogprobs, "without"),
        (chat(entry("ab", -1.0), text="ab"), NoLogprobs, "only its own"),
        (chat(entry("ab", -1.0) | {"top_logprobs": [entry("ab", -9999.0)]}, text="ab"), NoLogprobs, "only its own"),
        (with_logprobs(top_logprobs=[{"a": -1.0}, None]), NoLogprobs, "only its own"),
        (chat(text="", finish="length"), BadResponse, "neither"),
        (chat(text="", finish="content_filter"), BadResponse, "content_filter"),
        ({"choices": [{"finish_reason": "stop"}]}, BadResponse, "neither"),
        (
            {"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]},
            BadResponse,
            "neither",
        ),
    ],
)
def test_what_is_no_draft(body: object, kind: type[BaseError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        ask(body)
    assert caught.value.hint
    assert not caught.value.retryable


def test_more_tokens_than_were_asked_for() -> None:
    assert len(ask(GOOD, n=2).positions) == 2
    with pytest.raises(BadResponse, match="2 tokens where 1"):
        ask(GOOD, n=1)


def test_decode_body() -> None:
    """What is no JSON has not arrived, and can be asked for again; what is malformed otherwise has."""
    assert decode_body(b'{"a": [NaN, 1]}', "http://host") != "x"
    assert decode_body(b'"a"', "http://host") == "a"
    for body in ("<html>ü".encode(), b'{"choices": [', b"\xff\xfe\xfa", b"[" * 200_000, b""):
        with pytest.raises(BadResponse, match="not a completion") as caught:
            decode_body(body, "http://host")
        assert caught.value.retryable
    with pytest.raises(ServerFailed, match="engine died"):
        decode_body(b'{"error": {"message": "engine died"}}', "http://host")


# -- the laws ---------------------------------------------------------------------------------------------------------

BODIES = [
    GOOD,
    chat(
        entry("Hi", -0.1, [72, 105]) | {"top_logprobs": [entry("Hi", -0.1, [72, 105]), entry("\ufffd", -3.0, FFFD)]},
        entry("", -0.1, [], id=END) | {"top_logprobs": [entry("</s>", -0.1, None, id=END)]},
        text="Hi",
        finish="stop",
    ),
    legacy(("token_id:258", -0.1, {"token_id:258": -0.1, "bytes:\\xe2": -2.0}), text="Hi"),
]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), -9999.0, -9999, -3.4e38, 0, 300, -1])
    | st.floats()
    | st.sampled_from(["", "stop", "token_id:3", "token_id:999999999", "bytes:\\xff", HALF, "</s>", "\ufffd"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    body = copy.deepcopy(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(body)))
        if not path:
            body = draw(JSON)
            continue
        parent = body
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()):
            parent[path[-1]] = draw(JSON)
        else:
            del parent[path[-1]]
    return body


@given(mutated(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_only_own_errors_and_only_real_probabilities(vocabulary: Vocabulary, body: Any, known: bool) -> None:
    try:
        draft = ask(body, k=2, vocabulary=vocabulary if known else None)
    except BaseError:
        return
    for position in draft.positions:
        assert len(position.tokens) == len(position.logprobs) > 0
        assert np.isfinite(position.logprobs).all()
        assert (position.logprobs <= 0).all()
        assert (position.logprobs > -9000).all()
        assert (np.diff(position.logprobs) <= 0).all()
        assert position.logprob is None or -9000 < position.logprob <= 0
        assert all(token.bytes is None or token.bytes != b"\xef\xbf\xbd" for token in position.tokens)


SENTINELS = st.sampled_from([-9999.0, -3.4028234663852886e38, -1.7976931348623157e308, None, -math.inf])


@given(st.lists(st.floats(-50, 0) | SENTINELS, min_size=1, max_size=8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_candidates_are_exactly_those_with_a_probability(values: list[float | None], chatty: bool) -> None:
    names = [chr(97 + i) for i in range(len(values))]
    real = {name for name, value in zip(names, values, strict=True) if value is not None and value > -100}
    if chatty:
        top = [entry(name, value) for name, value in zip(names, values, strict=True)]
        body = chat(entry("a", values[0]) | {"top_logprobs": top}, text="a")
    else:
        body = legacy(("a", values[0], dict(zip(names, values, strict=True))), text="a")
    if not real:
        with pytest.raises(NoLogprobs):
            ask(body, k=8)
        return
    position = only(body, k=8)
    assert {token.text for token in position.tokens} == real
    assert (position.logprob is not None) == ("a" in real)
