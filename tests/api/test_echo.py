"""Given text: what is asked, and what of an answer is prompt, given text and continuation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from api_answers import END, TURN, legacy
from api_server import Asking, Server

from blackbox_proxy.api.echo import Echo, EchoedIds, EchoedText
from blackbox_proxy.api.payload import request
from blackbox_proxy.api.sent import Sent, Settings, carried
from blackbox_proxy.api.streaming import Incremental, parse
from blackbox_proxy.dialects.table import DIALECTS, Dialect
from blackbox_proxy.errors import BadResponse, InputError, NoLogprobs
from blackbox_proxy.protocols import Ask
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Prefix, Token

ECHOES = Dialect("echoes", 5, 5, echo={"echo": True})
VLLM, HOST = DIALECTS["vllm"], DIALECTS["host"]
THE, CAT = Token(256, b" the", " the"), Token(257, b" cat", " cat")
PART, NAMELESS, UNKNOWN = Token(259, b"\xf0\x9f", "\ufffd"), Token(None, b" dog", " dog"), Token(None, None, "\ufffd")
NULL: tuple[float | None, Any] = (None, None)


def make(dialect: Dialect = ECHOES, known: Vocabulary | None = None) -> Settings:
    return Settings("m", "completions", dialect, 5, known)


def answer(*tokens: str, text: str = "", finish: str | None = "length", null: int = 1, **more: Any) -> Any:
    """An answer in the legacy shape whose first `null` tokens have no candidates."""
    body = legacy(*((token, -0.1, {token: -0.1, "!": -3.0}) for token in tokens), text=text, finish=finish)
    columns = body["choices"][0]["logprobs"]
    for i in range(null):
        columns["token_logprobs"][i] = columns["top_logprobs"][i] = None
    columns |= {"text_offset": None} | more
    return body


def read(body: Any, echo: Echo, n: int = 4, known: Vocabulary | None = None) -> Draft:
    return parse(body, Incremental(n, 5, known, echo))


def told(draft: Draft) -> tuple[list[bytes | None], int, str | None]:
    return [position.token.bytes for position in draft.positions], draft.given, draft.finish


# -- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "known", "given", "kept", "n", "fields"),
    [
        (ECHOES, False, [THE, CAT], 2, 4, {"echo": True}),
        (ECHOES, False, [THE, PART, CAT], 1, 1, {"echo": True}),
        (ECHOES, False, [NAMELESS, UNKNOWN], 1, 1, {"echo": True}),
        (HOST, False, [THE, CAT], 2, 4, {"echo": True}),  # as text, nobody knows how many tokens it will be
        (VLLM, True, [THE, CAT], 2, 4, {"echo": True}),
        (HOST, True, [THE, PART, CAT], 3, 4, {"echo": True, "echo_last": 3}),
        (HOST, True, [THE, NAMELESS, CAT], 1, 1, {"echo": True, "echo_last": 1}),
        (HOST, True, [THE, Token(END, b"", "", end=True)], 1, 1, {"echo": True, "echo_last": 1}),
        (ECHOES, False, [], 0, 4, {}),
    ],
)
def test_what_is_asked(
    dialect: Dialect, known: bool, given: list[Token], kept: int, n: int, fields: Any, vocabulary: Vocabulary
) -> None:
    settings = make(dialect, vocabulary if known else None)
    found = carried(Ask(Prefix("Hi", (THE,)), 4, given=given), settings)
    assert isinstance(found, Sent)
    assert (found.given, found.n) == (tuple(given[:kept]), n)
    body = request(found, settings)["extra_body"] if fields else {}
    assert {name: value for name, value in body.items() if name.startswith("echo")} == fields
    without = carried(Ask(Prefix("Hi", (THE, *given[:kept])), 4), settings)
    assert without is not None
    assert (found.prompt, found.before) == (without.prompt, found.prompt[: len(found.before)])
    assert found.goes_on == (kept == len(given))


def test_nothing_is_asked_where_nothing_can_be_given(vocabulary: Vocabulary) -> None:
    assert carried(Ask(Prefix("Hi"), 4, given=[PART, THE]), make()) is None
    assert carried(Ask(Prefix("Hi"), 4, given=[NAMELESS]), make(HOST, vocabulary)) is None


async def test_what_is_sent(server: Server, asking: Asking, vocabulary: Vocabulary) -> None:
    body = answer("token_id:256", "token_id:257", "token_id:258", null=0)
    server.answers = [body]
    base = asking(dialect="host", tokenizer=vocabulary)
    found = await base.draft(Ask(Prefix("Hi"), 1, given=[THE, CAT]))
    assert told(found) == ([b" the", b" cat", b"Hi"], 2, "length")
    sent = server.sent[0]
    assert (sent["prompt"], sent["max_tokens"], sent["echo"], sent["echo_last"]) == ([258, 256, 257], 1, True, 2)
    await base.aclose()


@pytest.mark.parametrize("options", [{"dialect": "openai"}, {"dialect": "vllm", "api": "chat"}])
async def test_who_cannot_score(asking: Asking, options: Any) -> None:
    base = asking(**options)
    assert not base.abilities.scores
    with pytest.raises(InputError, match="does not score"):
        await base.draft(Ask(Prefix("Hi"), 1, given=[THE]))
    with pytest.raises(InputError, match="does not score"):
        async for _ in base.stream(Ask(Prefix("Hi"), 1, given=[THE])):
            pass


# -- sent as ids ------------------------------------------------------------------------------------------------------


def by_ids(*given: Token, before: int = 2, **more: Any) -> EchoedIds:
    return EchoedIds(before, given, **more)


def test_ids_are_counted(vocabulary: Vocabulary) -> None:
    rows = ["Hi", "!", " the", " cat", "Hi", " the"]
    assert told(read(answer(*rows), by_ids(THE, CAT))) == ([b" the", b" cat", b"Hi", b" the"], 2, "length")
    assert told(read(answer(*rows), by_ids(THE, CAT), known=vocabulary))[0][:2] == [b" the", b" cat"]
    assert told(read(answer(*rows), by_ids(THE, CAT, goes_on=False))) == ([b" the", b" cat"], 2, None)
    ended = answer("Hi", "!", " the", finish="stop", text="Hi! the")
    assert told(read(ended, by_ids(THE))) == ([b" the"], 1, "stop")


def test_only_the_given_ones_are_repeated_or_all_where_the_server_ignores_that() -> None:
    for rows, null in ((["Hi", "!", " the", " cat"], 1), ([" the", " cat"], 0)):
        assert told(read(answer(*rows, null=null), by_ids(THE, last=True))) == ([b" the", b" cat"], 1, "length")


def test_given_ids_are_what_they_are(vocabulary: Vocabulary) -> None:
    special = Token(TURN, b"", "<|im_start|>")
    found = read(answer("Hi", "!", "<|im_start|>", " the"), by_ids(special), known=vocabulary)
    assert found.positions[0].token == special
    literal = read(answer("Hi", "!", "</s>", " the"), by_ids(Token(9, b"</s>", "</s>")))
    assert not literal.positions[0].token.end
    unknown = read(answer("Hi", "!", "\ufffd", " the"), by_ids(PART))
    assert (unknown.given, unknown.positions[0].token.bytes) == (1, None)


def test_an_echo_of_something_else() -> None:
    with pytest.raises(BadResponse, match="not repeated"):
        read(answer("Hi", "!", " dog", " cat"), by_ids(THE))
    with pytest.raises(NoLogprobs, match="only its own"):
        read(answer("Hi", "!", " the", " cat", null=3), by_ids(THE))
    with pytest.raises(BadResponse, match="3 tokens where 2"):
        read(answer("Hi", "!", " the", "a", "b", "c"), by_ids(THE), n=2)


# -- sent as text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "offsets", "expected"),
    [
        (["Hi", " the", " cat", "!"], None, ([b" the", b" cat", b"!"], 2)),
        (["Hi", " ", "the", " cat", "!"], None, ([b" ", b"the", b" cat", b"!"], 3)),
        (["Hi", " the", " cat"], None, ([b" the", b" cat"], 2)),
        (["<s>", "Hi", " the", " cat", "!"], None, ([b" the", b" cat", b"!"], 2)),
        (["<|endoftext|>", "Hi", " the", " cat", "!"], None, ([b" the", b" cat", b"!"], 2)),
        ([" Hi", " the", " cat", "!"], None, ([b" the", b" cat", b"!"], 2)),
        (["<s>", " Hi", " the", " cat", "!"], None, ([b" the", b" cat", b"!"], 2)),
        (["Hi th", "e cat", "!"], None, ([], 0)),  # across the border
        (["Hi", " the", " cats"], None, ([b" the"], 1)),
        (["Ho", " the", " cat", "!"], None, ([], 0)),  # something else
        (["\ufffd", " the", " cat", "!"], None, ([], 0)),
        (["\ufffd", " the", " cat", "!"], [0, 2, 6, 10], ([b" the", b" cat", b"!"], 2)),
        (["H", "\ufffd", "\ufffd", " the", " cat", "!"], [0, 1, 1, 2, 6, 10], ([b" the", b" cat", b"!"], 2)),
        (["H", "\ufffd", "\ufffd", " the", " cat", "!"], [5, 6, 6, 7, 11, 15], ([], 0)),  # offsets of something else
        (["H", "\ufffd", "he", " cat", "!"], [0, 1, 4, 6, 10], ([], 0)),
        (["Hi", " the", "\ufffd", "!"], [0, 2, 6, 10], ([b" the"], 1)),
    ],
)
def test_text_is_found_again(rows: Sequence[str], offsets: Any, expected: Any) -> None:
    found = told(read(answer(*rows, text_offset=offsets), EchoedText("Hi", " the cat")))
    assert found[:2] == expected
    assert (found[2] is None) == (len(expected[0]) < 2)


def test_special_tokens_in_text(vocabulary: Vocabulary) -> None:
    sent = EchoedText("<|im_start|>Hi", " the")
    for rows in (["<|im_start|>", "Hi", " the", "!"], [f"token_id:{TURN}", "token_id:258", "token_id:256", "!"]):
        assert told(read(answer(*rows), replace(sent), known=vocabulary)) == ([b" the", b"!"], 1, "length")
    rows = [f"token_id:{TURN}", "token_id:258", "token_id:256", f"token_id:{END}"]
    found = read(answer(*rows, finish="stop"), EchoedText("Hi", " the"), known=vocabulary)
    assert [position.token.end for position in found.positions] == [False, True]


def test_characters_of_several_tokens(vocabulary: Vocabulary) -> None:
    spelled = ["bytes:\\xf0\\x9f", "bytes:\\x91", "bytes:\\x8d", " the", "bytes:\\xc3", "bytes:\\xa9", "!"]
    found = read(answer(*spelled, text_offset=[0, 0, 0, 1, 5, 5, 6]), EchoedText("👍", " theé"))
    assert told(found) == ([b" the", b"\xc3", b"\xa9", b"!"], 3, "length")


def test_the_end_after_given_text() -> None:
    body = answer("Hi", " the", "!", "<END>", text="Hi the!", finish="stop")
    assert read(body, EchoedText("Hi", " the")).positions[-1].token.end
    body = answer("Hi", " the", "!", "<END>", text="Hi the!<END>", finish="stop")
    assert not read(body, EchoedText("Hi", " the")).positions[-1].token.end
    body = answer("Hi", " the", text="Hi the", finish="stop")
    assert told(read(body, EchoedText("Hi", " the"))) == ([b" the"], 1, "stop")
