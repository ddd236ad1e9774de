"""`host` and completions: what it answers, what an echo says, and where a text stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hosting import SOUP, spelled
from openai import AsyncOpenAI
from tiny import END_TEXT, TEXTS, plain

from blackbox_proxy.serve.text import Feed
from blackbox_proxy.types import Position, Token

# -- completions ----------------------------------------------------------------------------------------------------


async def test_a_completion(client: AsyncOpenAI, tokenizer: Any) -> None:
    answer = await client.completions.create(model="tiny", prompt="The dog", max_tokens=60, temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == "tiny"
    [choice] = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, SOUP, "stop", None)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokenizer("The dog")["input_ids"])
    assert answer.usage.completion_tokens == len(tokenizer(SOUP)["input_ids"]) + 1  # the end is a token, too
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_sixteen_tokens_unless_told(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt="The dog", temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


async def test_logprobs_of_a_completion(client: AsyncOpenAI, tokenizer: Any, reference: Any) -> None:
    answer = await client.completions.create(model="tiny", prompt="The dog", max_tokens=60, temperature=0, logprobs=5)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.text_offset is not None
    assert b"".join(map(spelled, logprobs.tokens)) == SOUP.encode()  # the final end is not listed
    assert any(token.startswith("bytes:\\x") for token in logprobs.tokens)
    start = tokenizer("The dog")["input_ids"]
    ids = tokenizer(SOUP)["input_ids"]
    rows = plain(reference, start + ids)
    for place, (token, logprob, row) in enumerate(
        zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    ):
        want = rows[len(start) - 1 + place]
        assert logprob == pytest.approx(want[ids[place]], abs=1e-4)
        assert len(row) == 5
        assert next(iter(row)) == token
        assert list(row.values()) == pytest.approx(np.sort(want)[::-1][:5].tolist(), abs=1e-4)
    written = b""
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert offset == len(written.decode("utf-8", "ignore"))
        written += spelled(token)


async def test_the_end_is_a_candidate(client: AsyncOpenAI) -> None:
    text = TEXTS[0][:-1]
    answer = await client.completions.create(model="tiny", prompt=text, max_tokens=2, temperature=0, logprobs=2)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (".", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["."]
    cut = await client.completions.create(model="tiny", prompt=TEXTS[0], max_tokens=1, temperature=0, logprobs=2)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("", "stop")
    assert cut.choices[0].logprobs is not None
    assert cut.choices[0].logprobs.tokens == []
    others = await client.completions.create(
        model="tiny", prompt=TEXTS[0], n=100, max_tokens=1, temperature=2, seed=1, logprobs=5
    )
    went_on = [choice for choice in others.choices if choice.finish_reason == "length"]
    assert went_on
    for choice in went_on:
        assert choice.logprobs is not None
        assert next(iter((choice.logprobs.top_logprobs or [{}])[0])) == END_TEXT


async def test_the_token_itself_is_always_in_the_dict(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="tiny", prompt="The", max_tokens=40, temperature=2, seed=8, logprobs=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    sizes = set()
    for token, logprob, row in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert row[token] == logprob
        sizes.add(len(row))
    assert sizes == {1, 2}
    none = await client.completions.create(model="tiny", prompt="The", max_tokens=3, temperature=0, logprobs=0)
    assert none.choices[0].logprobs is not None
    assert [len(row) for row in none.choices[0].logprobs.top_logprobs or []] == [1, 1, 1]


async def test_every_way_to_give_a_prompt(client: AsyncOpenAI, tokenizer: Any) -> None:
    texts = ["The dog", "A", "User: hi"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    answers = []
    for prompt in (texts, ids):
        answer = await client.completions.create(model="tiny", prompt=prompt, max_tokens=60, temperature=0)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        answers.append([choice.text for choice in answer.choices])
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    single = await client.completions.create(model="tiny", prompt=ids[0], max_tokens=60, temperature=0)
    assert answers[0] == answers[1] == [SOUP, TEXTS[2][1:], TEXTS[3][len("User: hi") :]]
    assert single.choices[0].text == SOUP


async def test_several_choices_of_several_prompts(client: AsyncOpenAI, tokenizer: Any) -> None:
    answer = await client.completions.create(
        model="tiny", prompt=["The", "A"], n=3, max_tokens=8, temperature=1.5, seed=4
    )
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices[:3]}) > 1
    first = await client.completions.create(model="tiny", prompt="The", max_tokens=8, temperature=1.5, seed=4)
    assert first.choices[0].text == answer.choices[0].text
    again = await client.completions.create(
        model="tiny", prompt=["The", "A"], n=3, max_tokens=8, temperature=1.5, seed=4
    )
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokenizer("The")["input_ids"]) + len(tokenizer("A")["input_ids"])


async def test_top_p_cuts_the_tail(client: AsyncOpenAI) -> None:
    for narrow in ({"top_p": 1e-6}, {"top_p": 0}):
        answer = await client.completions.create(
            model="tiny", prompt="The dog", max_tokens=60, temperature=1.0, **narrow
        )
        assert answer.choices[0].text == SOUP


# -- echo -----------------------------------------------------------------------------------------------------------


async def test_a_bias_decides_and_does_not_show(client: AsyncOpenAI, reference: Any, tokenizer: Any) -> None:
    """Added to the logits before the choice, greedy or drawn; the log probabilities stay the model's own."""
    prompt = "the old baker ate"
    row = plain(reference, tokenizer(prompt)["input_ids"])[-1]
    wanted = int(np.argsort(-row)[3])
    gap = float(row.max() - row[wanted])
    for bias, chosen in ((gap - 0.01, int(row.argmax())), (gap + 0.01, wanted)):
        nats: Any = bias  # the client's types say that it is a whole number
        answer = await client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=1,
            temperature=0,
            logprobs=5,
            logit_bias={str(wanted): nats},
            extra_body={"return_tokens_as_token_ids": True},
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens == [f"token_id:{chosen}"]
        expected = {f"token_id:{index}": row[index] for index in np.argsort(-row)[:5]}
        [top], [own] = logprobs.top_logprobs or [], logprobs.token_logprobs or []
        assert top == pytest.approx(expected, abs=1e-4)
        assert own == pytest.approx(row[chosen], abs=1e-4)
    drawn = await client.completions.create(
        model="tiny", prompt=prompt, max_tokens=3, n=20, seed=1, logit_bias={str(wanted): 100}
    )
    assert {choice.text for choice in drawn.choices} == {tokenizer.decode([wanted] * 3)}


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
async def test_named_tokens_are_shown_in_place_of_the_likeliest(
    chat: bool, client: AsyncOpenAI, reference: Any, tokenizer: Any
) -> None:
    """vLLM's `logprob_token_ids`: exactly these, and the token itself."""
    extra = {"return_tokens_as_token_ids": True, "logprob_token_ids": [299, 7, 65]}
    common: dict[str, Any] = {"model": "tiny", "temperature": 0, "extra_body": extra}
    if chat:
        messages: Any = [{"role": "user", "content": "Hi"}]
        prompt = "User: Hi\nAssistant:"
        said = await client.chat.completions.create(
            messages=messages, max_tokens=1, logprobs=True, top_logprobs=1, **common
        )
        content = said.choices[0].logprobs.content
        assert content is not None
        found = {top.token: top.logprob for top in content[0].top_logprobs}
        token = content[0].token
    else:
        prompt = "the old baker ate"
        answer = await client.completions.create(prompt=prompt, max_tokens=1, logprobs=1, **common)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.top_logprobs
        assert logprobs.tokens
        found, token = dict(logprobs.top_logprobs[0]), logprobs.tokens[0]
    row = plain(reference, tokenizer(prompt)["input_ids"])[-1]
    assert token == f"token_id:{row.argmax()}"
    assert found.pop(token) == pytest.approx(row.max(), abs=1e-4)
    assert found == pytest.approx({f"token_id:{index}": row[index] for index in (299, 7, 65)}, abs=1e-4)


async def test_echo_scores_the_prompt(client: AsyncOpenAI, tokenizer: Any, reference: Any) -> None:
    text = TEXTS[1]
    answer = await client.completions.create(model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=3)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (text, "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    logprobs: Any = choice.logprobs  # the client's types know nothing of a token without log probabilities
    ids = tokenizer(text)["input_ids"]
    rows = plain(reference, ids)
    assert b"".join(map(spelled, logprobs.tokens or [])) == text.encode()
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    for place in range(1, len(ids)):
        assert logprobs.token_logprobs[place] == pytest.approx(rows[place - 1][ids[place]], abs=1e-4)
        assert 3 <= len(logprobs.top_logprobs[place]) <= 4


async def test_echo_goes_on_into_the_answer(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="tiny", prompt="The dog", max_tokens=60, temperature=0, echo=True, logprobs=1
    )
    [choice] = answer.choices
    assert choice.text == f"The dog{SOUP}"
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset is not None
    *tokens, end = choice.logprobs.tokens or []
    assert end == END_TEXT, "who takes what was generated off the end takes one token for each"
    assert answer.usage is not None
    assert answer.usage.total_tokens == len(tokens) + 1
    assert b"".join(map(spelled, tokens)) == choice.text.encode()
    written = b""
    for token, offset in zip([*tokens, end], choice.logprobs.text_offset, strict=True):
        assert offset == len(written.decode("utf-8", "ignore"))
        written += spelled(token)
    bare = await client.completions.create(model="tiny", prompt="The dog", max_tokens=60, temperature=0, echo=True)
    assert (bare.choices[0].text, bare.choices[0].logprobs) == (choice.text, None)


async def test_echo_of_ids_writes_special_tokens_out(client: AsyncOpenAI, tokenizer: Any) -> None:
    ids = [0, *tokenizer("The")["input_ids"]]
    answer = await client.completions.create(model="tiny", prompt=ids, max_tokens=0, echo=True, logprobs=0)
    [choice] = answer.choices
    assert choice.text == f"{END_TEXT}The"
    assert choice.logprobs is not None
    assert (choice.logprobs.tokens or [])[0] == END_TEXT
    assert (choice.logprobs.text_offset or [])[:2] == [0, len(END_TEXT)]


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("echo", [None, True])
async def test_the_end_of_the_prompt_comes_back(
    client: AsyncOpenAI, tokenizer: Any, echo: bool | None, as_ids: bool
) -> None:
    ids = tokenizer("The dog ate “naïve” soup")["input_ids"]
    prompt = ids if as_ids else "The dog ate “naïve” soup"
    arguments: dict[str, Any] = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 3, "logprobs": 2}
    whole = (await client.completions.create(**arguments, echo=True)).choices[0]
    assert whole.logprobs is not None
    for last in (1, 5, 9, len(ids), len(ids) + 3):
        answer = await client.completions.create(**arguments, echo=echo, extra_body={"echo_last": last})
        [choice] = answer.choices
        logprobs = choice.logprobs
        assert logprobs is not None
        tokens = whole.logprobs.tokens or []
        first = max(0, len(ids) - last)
        assert logprobs.tokens == tokens[first:]
        assert choice.text == b"".join(map(spelled, tokens[first:])).decode("utf-8", "replace")
        want = [x or 0 for x in (whole.logprobs.token_logprobs or [])[first:]]
        assert [x or 0 for x in logprobs.token_logprobs or []] == pytest.approx(want, abs=1e-4)
        assert ((logprobs.token_logprobs or [])[0] is None) == (first == 0)
        written, offsets = b"", []
        for token in tokens[first:]:
            offsets.append(len(written.decode("utf-8", "replace").removesuffix("\ufffd")))
            written += spelled(token)
        if not choice.text.startswith("\ufffd"):
            assert logprobs.text_offset == offsets
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(ids)


async def test_the_end_of_the_prompt_without_scores(client: AsyncOpenAI, tokenizer: Any) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "temperature": 0, "prompt": "The dog"}
    last = tokenizer.decode(tokenizer("The dog")["input_ids"][-2:])
    answer = await client.completions.create(**arguments, max_tokens=60, extra_body={"echo_last": 2})
    assert (answer.choices[0].text, answer.choices[0].logprobs) == (last + SOUP, None)
    alone = await client.completions.create(**arguments, max_tokens=0, extra_body={"echo_last": 2})
    assert alone.choices[0].text == last
    none = await client.completions.create(**arguments, max_tokens=60, echo=True, extra_body={"echo_last": 0})
    assert none.choices[0].text == SOUP


async def test_the_end_of_the_prompt_in_a_stream(client: AsyncOpenAI) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "prompt": "The dog", "temperature": 0, "max_tokens": 60}
    arguments |= {"logprobs": 2, "extra_body": {"echo_last": 2}}
    [whole] = (await client.completions.create(**arguments)).choices
    choices = [chunk.choices[0] async for chunk in await client.completions.create(**arguments, stream=True)]
    assert whole.logprobs is not None
    assert choices[0].logprobs is not None
    assert choices[0].logprobs.tokens == (whole.logprobs.tokens or [])[:2]  # the prompt's come first, by themselves
    assert "".join(choice.text for choice in choices) == whole.text
    for column in ("tokens", "token_logprobs", "text_offset"):
        streamed = [value for choice in choices for value in getattr(choice.logprobs, column)]
        want = getattr(whole.logprobs, column)
        assert streamed == (want if column == "tokens" else pytest.approx(want, abs=1e-4))


# -- stop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "before"),
    [
        (" soup", " ate “naïve”"),
        ("aïv", " ate “n"),
        (["never", "—", "日本"], " ate “naïve” soup "),
        ("本語 €", " ate “naïve” soup — 日"),
        (" ate", ""),
        ("5!x", SOUP),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_is_cut_off(client: AsyncOpenAI, stop: str | list[str], before: str, stream: bool) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "prompt": "The dog", "max_tokens": 60, "temperature": 0}
    arguments |= {"stop": stop, "logprobs": 1}
    text, tokens, offsets, finish = "", [], [], None
    if stream:
        async for chunk in await client.completions.create(**arguments, stream=True):
            [choice] = chunk.choices
            text += choice.text
            tokens += choice.logprobs.tokens
            offsets += choice.logprobs.text_offset
            finish = choice.finish_reason or finish
    else:
        [choice] = (await client.completions.create(**arguments)).choices
        text, finish = choice.text, choice.finish_reason
        tokens, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
    assert (text, finish) == (before, "stop")
    assert b"".join(map(spelled, tokens)).startswith(before.encode())
    assert all(offset < len(before) for offset in offsets)


def push_all(feed: Feed, pieces: list[bytes]) -> tuple[str, list[bytes], bool]:
    text, kept = "", list[bytes]()
    for piece in pieces:
        more, entries, stopped = feed.push(Position(Token(bytes=piece), None, (), np.empty(0)))
        text += more
        kept += [entry.position.token.bytes or b"" for entry in entries]
        if stopped:
            return text, kept, True
    rest, entries = feed.close()
    return text + rest, kept + [entry.position.token.bytes or b"" for entry in entries], False


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "kept", "stopped"),
    [
        (["abc"], [b"xab", b"abd", b"abc"], "xababd", 2, True),
        (["aab"], [b"a", b"a", b"a", b"b"], "a", 1, True),
        (["bc", "abcd"], [b"xa", b"b", b"c"], "xa", 1, True),
        (["é"], [b"caf\xc3", b"\xa9"], "caf", 1, True),
        (["ab"], [b"xa"], "xa", 1, False),
        ([], [b"\xe6\x97", b"\xa5\xe6", b"\x9c"], "日\ufffd", 3, False),
        ([], [b"\xff", b"a"], "\ufffda", 2, False),
        (["\ufffd"], [b"\xff", b"a"], "\ufffda", 2, False),
    ],
)
def test_a_feed_matches_across_tokens(
    stops: list[str], pieces: list[bytes], text: str, kept: int, stopped: bool
) -> None:
    assert push_all(Feed(stops), pieces) == (text, pieces[:kept], stopped)


def test_a_feed_holds_back_only_what_may_be_cut() -> None:
    feed = Feed(["STOP"])
    shown = [feed.push(Position(Token(bytes=piece), None, (), np.empty(0)))[0] for piece in (b"a S", b"T", b"x", b"S")]
    assert shown == ["a ", "", "STx", ""]
    assert feed.close()[0] == "S"
