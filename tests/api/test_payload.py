"""Prefix -> request: what is sent, what can be continued, what is refused before anything is spent."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from api_answers import END, TURN, make_vocabulary

from blackbox_proxy.api.payload import RESERVED, request
from blackbox_proxy.api.sent import Settings, can_continue, carried, check, prompt_length, travels
from blackbox_proxy.dialects.table import DIALECTS, Api, Dialect, Prefill
from blackbox_proxy.errors import BlackboxError, CannotContinue, ContextTooLong, InputError
from blackbox_proxy.protocols import Ask
from blackbox_proxy.text.spelling import as_text
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import END as END_TOKEN
from blackbox_proxy.types import Prefix, Prompt, Token

OPENAI, VLLM = DIALECTS["openai"], DIALECTS["vllm"]
TEXTUAL = Dialect("textual", completions_k=None, chat_k=None)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

THE = Token(256, b" the", " the")
PART = Token(259, b"\xf0\x9f", "\ufffd")
REST = Token(None, b"\x91\x8d", "")
NAMELESS = Token(None, b" dog", " dog")
UNKNOWN = Token(None, None, "\ufffd")
ONLY_ID = Token(300, None, "")
SPECIAL = Token(TURN, b"", "<|im_start|>")
NEWLINE = Token(10, b"\n", "\n")


def make(dialect: Dialect = OPENAI, api: Api = "completions", known: Vocabulary | None = None, **more: Any) -> Settings:
    return Settings("m", api, dialect, more.pop("top_logprobs", 5), known, **more)


def build(prefix: Prefix, given: Settings, n: int = 4, temperature: float = 0.0, seed: int | None = None) -> Any:
    sent = carried(Ask(prefix, n, temperature, seed), given)
    assert sent is not None
    return request(sent, given)


def on(prompt: Prompt, *tokens: Token) -> Prefix:
    return Prefix(prompt, tokens)


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_openai_completions_as_text() -> None:
    assert build(on("Hi", THE, NAMELESS), make(), n=3) == {
        "model": "m",
        "prompt": "Hi the dog",
        "max_tokens": 3,
        "logprobs": 5,
        "temperature": 0.0,
        "top_p": 1.0,
    }


def test_openai_chat() -> None:
    assert build(on("Hi"), make(api="chat", top_logprobs=20), n=1, temperature=1.0, seed=7) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 7,
    }
    assert build(on(MESSAGES), make(api="chat"))["messages"] == MESSAGES


def test_openai_completions_as_ids(vocabulary: Vocabulary) -> None:
    assert build(on("Hi the", THE, PART, SPECIAL), make(known=vocabulary))["prompt"] == [258, 256, 256, 259, TURN]
    assert "extra_body" not in build(on("Hi"), make(known=vocabulary))


def test_vllm_asks_for_ids_only_where_it_can_spell_them(vocabulary: Vocabulary) -> None:
    neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    known = build(on("Hi", THE), make(VLLM, known=vocabulary))
    assert known["prompt"] == [258, 256]
    assert known["extra_body"] == {**neutral, "return_tokens_as_token_ids": True}
    unknown = build(on("Hi", THE), make(VLLM))
    assert unknown["prompt"] == "Hi the"
    assert unknown["extra_body"] == neutral


def test_vllm_chat_continues_its_last_message(vocabulary: Vocabulary) -> None:
    given = make(VLLM, "chat", vocabulary)
    first = build(on(MESSAGES), given)
    assert first["messages"] == MESSAGES
    assert "continue_final_message" not in first["extra_body"]
    assert first["max_tokens"] == 4
    then = build(on(MESSAGES, THE, NAMELESS), given)
    assert then["messages"] == [*MESSAGES, {"role": "assistant", "content": " the dog"}]
    fields = then["extra_body"]
    assert (fields["continue_final_message"], fields["add_generation_prompt"]) == (True, False)
    assert fields["return_tokens_as_token_ids"] is True


def test_a_message_that_the_caller_began_is_continued_from_the_first_request_on() -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "So"}]
    for tokens, content in (((), "So"), ((THE,), "So the")):
        sent = build(on(begun, *tokens), make(VLLM, "chat"))
        assert sent["messages"] == [*MESSAGES, {"role": "assistant", "content": content}]
        assert sent["extra_body"]["continue_final_message"] is True
    assert begun[-1]["content"] == "So"  # the caller's own messages stay as they are
    assert build(on(begun), make(api="chat"))["messages"] == begun


def test_a_prefill_may_mark_the_message_itself() -> None:
    marked = Dialect("marked", None, None, prefill=Prefill(message={"prefix": True}))
    sent = build(on(MESSAGES, THE), make(marked, "chat"))
    assert sent["messages"][-1] == {"role": "assistant", "content": " the", "prefix": True}
    assert "extra_body" not in sent


def test_the_callers_extra_body_has_the_last_word() -> None:
    sent = build(on("Hi"), make(VLLM, extra_body={"top_k": 50, "provider": {"only": ["x"]}}))
    assert sent["extra_body"] == {"top_k": 50, "min_p": 0.0, "repetition_penalty": 1.0, "provider": {"only": ["x"]}}


def test_every_field_of_every_request_is_reserved_or_extra(vocabulary: Vocabulary) -> None:
    for dialect in (*DIALECTS.values(), TEXTUAL):
        for api in ("completions", "chat"):
            sent = build(on("Hi"), make(dialect, api, vocabulary), seed=1)
            assert set(sent) - {"extra_body"} <= RESERVED
            json.dumps(sent)


@pytest.mark.parametrize(
    ("rendering", "prompt", "text"),
    [
        ("raw", "Hi", "Hi"),
        ("raw", MESSAGES, "Be brief.\n\nHi"),
        (lambda prompt: f"Q: {prompt}\nA:", "Hi", "Q: Hi\nA:"),
        (lambda prompt: prompt[-1]["content"], MESSAGES, "Hi"),
    ],
)
def test_renderings(rendering: Any, prompt: Any, text: str, vocabulary: Vocabulary) -> None:
    assert build(on(prompt, THE), make(rendering=rendering))["prompt"] == f"{text} the"
    ids = build(on(prompt, THE), make(known=vocabulary, rendering=rendering))["prompt"]
    assert ids == [*vocabulary.encode([text.encode()])[0], 256]


def test_text_where_an_id_is_missing(vocabulary: Vocabulary) -> None:
    assert build(on("Hi", NAMELESS, THE), make(known=vocabulary))["prompt"] == "Hi dog the"


def test_text_to_a_server_that_adds_its_own_bos() -> None:
    known = make_vocabulary(bos=True)
    given = make(TEXTUAL, known=known, rendering="chat")
    assert build(on("Hi", THE), given)["prompt"] == "<|im_start|>user\nHi<|im_start|> the"
    assert build(on([1, 258, 256]), make(TEXTUAL, known=known))["prompt"] == "Hi the"
    assert build(on([258, 256], THE), make(TEXTUAL, known=known))["prompt"] == "Hi the the"
    assert build(on("Hi"), make(OPENAI, known=known))["prompt"] == [1, 258]


def test_a_prompt_of_ids_is_sent_as_it_is(vocabulary: Vocabulary) -> None:
    assert build(on([5, 6]), make())["prompt"] == [5, 6]
    assert build(on([5, 6], THE), make())["prompt"] == [5, 6, 256]
    assert build(on((5, TURN), PART), make(known=vocabulary))["prompt"] == [5, TURN, 259]
    assert build(on([258, 256], NAMELESS), make(known=vocabulary))["prompt"] == "Hi the dog"
    with pytest.raises(InputError, match="whole characters"):
        build(on([258, 259]), make(TEXTUAL, known=vocabulary))


def test_an_empty_rendering_is_refused(vocabulary: Vocabulary) -> None:
    for known in (None, vocabulary):
        with pytest.raises(InputError, match="empty"):
            build(on("Hi"), make(known=known, rendering=lambda prompt: ""))


# -- what can be continued --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "as_text", "as_ids", "prefilled"),
    [
        ((), "text", "ids", "text"),
        ((THE,), "text", "ids", "text"),
        ((PART,), None, "ids", None),
        ((PART, REST), "text", "text", "text"),
        ((THE, PART), None, "ids", None),
        ((NAMELESS,), "text", "text", "text"),
        ((UNKNOWN,), None, None, None),
        ((ONLY_ID,), None, "ids", None),
        ((NAMELESS, ONLY_ID), None, None, None),
        ((SPECIAL,), None, "ids", None),
        ((THE, NEWLINE), "text", "ids", None),
        ((NEWLINE, THE), "text", "ids", "text"),
        ((END_TOKEN,), None, None, None),
        ((THE, Token(END, b"", "<|endoftext|>", end=True)), None, None, None),
    ],
)
def test_how_tokens_travel(
    tokens: tuple[Token, ...], as_text: str | None, as_ids: str | None, prefilled: str | None, vocabulary: Vocabulary
) -> None:
    prefix = on("Hi", *tokens)
    cases = [
        (make(OPENAI), as_text),
        (make(OPENAI, known=vocabulary), as_ids),
        (make(VLLM, known=vocabulary), as_ids),
        (make(TEXTUAL, known=vocabulary), as_text),
        (make(VLLM, "chat"), prefilled),
        (make(VLLM, "chat", vocabulary), prefilled),
        (make(OPENAI, "chat"), None if tokens else "text"),
    ]
    for given, way in cases:
        assert travels(prefix, given) == way, given
        assert can_continue(prefix, given) == (way is not None)
        if way is None:
            with pytest.raises(CannotContinue) as caught:
                build(prefix, given)
            assert caught.value.hint
        else:
            build(prefix, given)


def test_a_prefill_that_keeps_white_space() -> None:
    keeps = replace(VLLM, prefill=Prefill(keeps_space=True))
    assert can_continue(on("Hi", THE, NEWLINE), make(keeps, "chat"))


def test_a_prompt_of_ids_without_a_tokenizer_is_continued_by_ids_only() -> None:
    assert can_continue(on([5, 6], ONLY_ID), make(OPENAI))
    assert not can_continue(on([5, 6], NAMELESS), make(OPENAI))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "given", "says"),
    [
        ("", make(), "empty"),
        ([], make(), "empty"),
        ([], make(api="chat"), "empty"),
        (b"Hi", make(), "bytes"),
        (7, make(), "int"),
        ("half \ud83d", make(), "surrogate"),
        ([{"role": "user", "content": "\ud83d"}], make(), "surrogate"),
        ([1, {"role": "user", "content": "x"}], make(), "all token ids or all messages"),
        ([{"role": "user"}], make(), "all token ids or all messages"),
        (["Hi"], make(), "all token ids or all messages"),
        ([1, 2], make(api="chat"), "not token ids"),
        ([1, 2], make(VLLM, "chat"), "not token ids"),
        ([1, 2], make(TEXTUAL), "takes text"),
        ([1, -2], make(), "outside"),
        ([1, 999], make(known=make_vocabulary()), "outside"),
        (MESSAGES, make(rendering="chat"), "tokenizer is unknown"),
    ],
)
def test_prompts_that_cannot_be_asked(prompt: Any, given: Settings, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check(prompt, 1, given)


@pytest.mark.parametrize("max_tokens", [0, -1, True, 1.0, "1"])
def test_max_tokens(max_tokens: Any) -> None:
    with pytest.raises(InputError, match="max_tokens"):
        check("Hi", max_tokens, make())


def test_a_chat_without_prefill_decodes_one_token() -> None:
    check("Hi", 1, make(api="chat"))
    with pytest.raises(CannotContinue, match="only one token") as caught:
        check("Hi", 2, make(api="chat"))
    assert 'api="completions"' in caught.value.hint
    assert "max_tokens=1" in caught.value.hint
    check("Hi", 2, make(VLLM, "chat"))


def test_ids_without_a_tokenizer_decode_one_token() -> None:
    check([1, 2], 1, make())
    with pytest.raises(CannotContinue, match="token ids"):
        check([1, 2], 2, make())


def test_the_window(vocabulary: Vocabulary) -> None:
    given = make(known=vocabulary)
    check("Hi the", 8, given, context=10)
    with pytest.raises(ContextTooLong, match="2 tokens and 9") as caught:
        check("Hi the", 9, given, context=10)
    assert isinstance(caught.value, InputError)
    check("Hi the" * 100, 9, make(), context=10)  # nobody can count these here
    with pytest.raises(ContextTooLong):
        check([1, 2, 3], 1, make(), context=3)


def test_prompt_length(vocabulary: Vocabulary) -> None:
    def broken(prompt: Any, rendering: Any) -> list[int]:
        raise ValueError("a template that refuses these roles")

    assert prompt_length("Hi the", make(known=vocabulary)) == 2
    assert prompt_length("Hi", make(VLLM, "chat", vocabulary)) == 8  # <|im_start|> u s e r \n Hi <|im_start|>
    assert prompt_length("Hi", make()) is None
    refusing = Vocabulary(
        [b"a"], special={}, end_ids=[], encode=lambda texts: [], pretokens=lambda text: [], render=broken
    )
    assert prompt_length("Hi", make(VLLM, "chat", refusing)) is None


def test_every_refusal_is_an_own_error() -> None:
    refused = 0
    for given in (make(), make(TEXTUAL), make(api="chat"), make(VLLM, "chat")):
        for prompt in ("", [], "x", [1], MESSAGES, [None], [[1]], [{"role": 1, "content": None}], None):
            for max_tokens in (0, 1, 2):
                with suppress(BlackboxError):
                    check(prompt, max_tokens, given)  # type: ignore[arg-type]
                    continue
                refused += 1
    assert refused > 60


def test_check_renders_the_prompt(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="rendered prompt is empty"):
        check("Hi", 1, make(rendering=lambda prompt: ""))
    untemplated = make(known=_without_template())
    with pytest.raises(InputError, match="no chat template"):
        check("Hi", 1, replace(untemplated, rendering="chat"))
    check("Hi", 1, untemplated)


def _without_template() -> Vocabulary:
    def render(prompt: Any, rendering: Any) -> list[int]:
        return list(as_text(prompt, rendering, chat=None).encode())

    return Vocabulary(
        [bytes([b]) for b in range(256)],
        special={},
        end_ids=[],
        encode=lambda texts: [list(text.encode()) for text in texts],
        pretokens=lambda text: [0],
        render=render,
    )


def test_text_prompts_are_cut_once() -> None:
    cut: list[str] = []

    def render(prompt: Any, rendering: Any) -> list[int]:
        cut.append(prompt)
        return [1, 2]

    known = Vocabulary(
        [b"a"] * 3, special={}, end_ids=[], encode=lambda texts: [], pretokens=lambda text: [], render=render
    )
    given = make(known=known)
    for prompt in ("Hi", "Ho", "Hi", "Ho"):
        assert build(on(prompt), given)["prompt"] == [1, 2]
        assert prompt_length(prompt, given) == 2
    assert cut == ["Hi", "Ho"]
    for number in range(1000):
        prompt_length(str(number), given)
    assert len(given._remembered) <= 256
