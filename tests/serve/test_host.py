"""`host` over real HTTP with the unmodified openai client: what it answers, what it refuses, and in which words."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from openai import AsyncOpenAI
from tiny import END_TEXT, TEXTS, build_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from blackbox_proxy.errors import ConnectionFailed, InputError, ModelUnavailable, ServerFailed
from blackbox_proxy.serve.engine import Ask, Engine, Event
from blackbox_proxy.serve.host import open_engine, run_host
from blackbox_proxy.serve.process import HostProcess, serve_in_thread
from blackbox_proxy.serve.prompts import Prompts
from blackbox_proxy.serve.routes import Stats, create_app
from blackbox_proxy.serve.text import Feed
from blackbox_proxy.types import Position, Token, Usage

SOUP = " ate “naïve” soup — 日本語 €5!"
KEY = "sk-local"
CERTIFICATES = ssl.create_default_context()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return open_engine(folder, top_logprobs=5, served_model_name="tiny")


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    """A host that shows 5 log probabilities."""
    with serve_in_thread(create_app(engine)) as url:
        yield url


@pytest.fixture(scope="module")
def open_url(folder: Path) -> Iterator[str]:
    """A host that shows the whole vocabulary."""
    with serve_in_thread(create_app(open_engine(folder, top_logprobs=-1, served_model_name="tiny"))) as url:
        yield url


def client_of(url: str, api_key: str = "none") -> AsyncOpenAI:
    """One set of certificates for all clients: reading them takes longer than most of these tests."""
    http_client = openai.DefaultAsyncHttpxClient(verify=CERTIFICATES)
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=30, http_client=http_client)


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(url) as client:
        yield client


@pytest.fixture
async def open_client(open_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(open_url) as client:
        yield client


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body = answer.read()
    return json.loads(body) if body else None


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a request that no client library would send."""
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def plain(reference: Any, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    with torch.inference_mode():
        rows = reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return rows.double().log_softmax(-1).numpy()  # type: ignore[no-any-return]


def spelled(token: str) -> bytes:
    """A token of a completion as bytes."""
    if token.startswith("bytes:"):
        return bytes(int(escape, 16) for escape in re.findall(r"\\x([0-9a-f]{2})", token))
    return token.encode()


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
        answer = await client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=1,
            temperature=0,
            logprobs=5,
            logit_bias={str(wanted): bias},
            extra_body={"return_tokens_as_token_ids": True},
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens == [f"token_id:{chosen}"]
        expected = {f"token_id:{index}": row[index] for index in np.argsort(-row)[:5]}
        assert logprobs.top_logprobs == [pytest.approx(expected, abs=1e-4)]
        assert logprobs.token_logprobs == [pytest.approx(row[chosen], abs=1e-4)]
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
        content = said.choices[0].logprobs.content  # type: ignore[union-attr]
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
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
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
    assert b"".join(map(spelled, choice.logprobs.tokens or [])) == choice.text.encode()
    written = b""
    for token, offset in zip(choice.logprobs.tokens or [], choice.logprobs.text_offset, strict=True):
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


# -- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_says_the_same_as_a_whole(client: AsyncOpenAI) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "prompt": ["The dog", "A"], "max_tokens": 60, "temperature": 0}
    whole = await client.completions.create(**arguments, logprobs=4, echo=True)
    texts, columns, finishes = {0: "", 1: ""}, {0: [[], [], [], []], 1: [[], [], [], []]}, {}
    usage = []
    stream = await client.completions.create(
        **arguments, logprobs=4, echo=True, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        assert chunk.id
        assert chunk.object == "text_completion"
        usage.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            logprobs = choice.logprobs
            parts = (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
            for column, part in zip(columns[choice.index], parts, strict=True):
                column += part
            if choice.finish_reason is not None:
                finishes[choice.index] = choice.finish_reason
                assert choice.text == ""
                assert logprobs.tokens == []
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert finishes[choice.index] == choice.finish_reason
        assert choice.logprobs is not None
        tokens, token_logprobs, top_logprobs, text_offset = columns[choice.index]
        assert tokens == choice.logprobs.tokens
        assert text_offset == choice.logprobs.text_offset
        close = pytest.approx([x or 0 for x in choice.logprobs.token_logprobs or []], abs=1e-4)
        assert [x or 0 for x in token_logprobs] == close
        assert [set(row or ()) for row in top_logprobs] == [
            set(row or ()) for row in choice.logprobs.top_logprobs or []
        ]
    assert usage[-1] == whole.usage
    assert set(usage[:-1]) == {None}


async def test_a_stream_never_shows_half_a_character(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(model="tiny", prompt="The dog", max_tokens=60, temperature=0, stream=True)
    pieces = [choice.text async for chunk in stream for choice in chunk.choices]
    assert "".join(pieces) == SOUP
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("chat", [False, True])
async def test_the_usage_so_far(client: AsyncOpenAI, chat: bool) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0, "stream": True}
    create: Any = client.chat.completions.create if chat else client.completions.create
    arguments |= {"messages": HI} if chat else {"prompt": ["The dog", "A"], "echo": True}
    stream = await create(
        **arguments, stream_options={"include_usage": True, "continuous_usage_stats": True}, n=1 if chat else 2
    )
    used = [chunk.usage async for chunk in stream]
    counts = [usage.completion_tokens for usage in used]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-2:] == [counts[-1]] * 2
    assert all(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens for usage in used)
    assert used[0].prompt_tokens > 0
    without = await create(**arguments, stream_options={"continuous_usage_stats": True})
    assert {chunk.usage async for chunk in without} == {None}


class Endless:
    """An engine that writes until it is closed, and says when that was."""

    name, top_logprobs, context = "endless", 5, None

    def __init__(self) -> None:
        self.started, self.closed = threading.Event(), threading.Event()
        self.written = 0

    def check(self, ask: Ask) -> None:
        pass

    async def complete(self, ask: Ask) -> AsyncGenerator[Event, None]:
        try:
            while True:
                self.written += 1
                self.started.set()
                yield Event("word ", usage=Usage(completion_tokens=1))
                await asyncio.sleep(0)
        finally:
            self.closed.set()


@pytest.mark.parametrize("chat", [False, True])
async def test_a_client_that_leaves_stops_the_stream(chat: bool) -> None:
    engine, stats = Endless(), Stats()
    with serve_in_thread(create_app(engine, stats=stats)) as url:
        async with client_of(url) as client:
            stream: Any
            if chat:
                stream = await client.chat.completions.create(
                    model="endless", messages=[{"role": "user", "content": "hi"}], stream=True
                )
            else:
                stream = await client.completions.create(model="endless", prompt="hi", stream=True)
            for _ in range(3):
                await anext(stream)
            assert not engine.closed.is_set()
            assert stats.active == 1
            await stream.close()
            assert await asyncio.to_thread(engine.closed.wait, 10)
        assert stats.completion_tokens == engine.written


async def test_a_client_that_leaves_stops_a_whole_answer() -> None:
    engine = Endless()
    with serve_in_thread(create_app(engine)) as url:
        host, port = url.removeprefix("http://").split(":")
        body = b'{"model": "endless", "prompt": "hi"}'
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            assert await asyncio.to_thread(engine.started.wait, 10)
        assert await asyncio.to_thread(engine.closed.wait, 10)


class Watched:
    """The real engine; says when a text has ended."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.top_logprobs, self.context = engine.name, engine.top_logprobs, engine.context
        self.check = engine.check
        self.ended = threading.Event()
        self._engine = engine

    async def complete(self, ask: Ask) -> AsyncGenerator[Event, None]:
        try:
            async with aclosing(self._engine.complete(ask)) as events:
                async for event in events:
                    yield event
        finally:
            self.ended.set()


async def test_leaving_the_real_model_stops_it(engine: Engine) -> None:
    watched = Watched(engine)
    arguments: dict[str, Any] = {"model": "tiny", "prompt": "The", "max_tokens": 250, "temperature": 2, "seed": 1}
    with serve_in_thread(create_app(watched)) as url:
        async with client_of(url) as client:
            stream = await client.completions.create(**arguments, stream=True)
            await anext(stream)
            await anext(stream)
            await stream.close()
            assert await asyncio.to_thread(watched.ended.wait, 10)
            left = get(f"{url}/stats")
            whole = await client.completions.create(**arguments)
    assert whole.usage is not None
    assert 1 <= left["completion_tokens"] < whole.usage.completion_tokens
    assert left["active"] == 0


class Failing(Endless):
    def __init__(self, error: Exception, at_once: bool) -> None:
        super().__init__()
        self._error = error
        self._at_once = at_once

    async def complete(self, ask: Ask) -> AsyncGenerator[Event, None]:
        if not self._at_once:
            yield Event("word ", usage=Usage(completion_tokens=1))
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (RuntimeError("a secret path"), 500, "The server had an error"),
        (ConnectionFailed("the base is away", hint="Wait."), 503, "The base is away. Wait."),
        (InputError("that cannot be"), 400, "That cannot be."),
    ],
)
async def test_an_engine_that_fails(error: Exception, status: int, says: str) -> None:
    with serve_in_thread(create_app(Failing(error, at_once=True))) as url:
        got, body = post(f"{url}/v1/completions", b'{"model": "endless", "prompt": "hi"}')
        assert got == status
        assert says in body["error"]["message"]
        assert "secret" not in json.dumps(body)
        assert get(f"{url}/stats")["active"] == 0
    with serve_in_thread(create_app(Failing(error, at_once=False))) as url:
        async with client_of(url) as client:
            stream = await client.completions.create(model="endless", prompt="hi", stream=True)
            assert (await anext(stream)).choices[0].text == "word "
            with pytest.raises(openai.APIError, match=re.escape(says)):
                await anext(stream)


# -- vLLM's extensions ----------------------------------------------------------------------------------------------


async def test_tokens_as_ids_over_the_whole_vocabulary(
    open_client: AsyncOpenAI, tokenizer: Any, reference: Any
) -> None:
    start = tokenizer("The dog")["input_ids"]
    answer = await open_client.completions.create(
        model="tiny",
        prompt=start,
        max_tokens=60,
        temperature=0,
        logprobs=300,
        extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True},
    )
    [choice] = answer.choices
    ids = [*tokenizer(SOUP)["input_ids"], 0]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == [f"token_id:{index}" for index in ids]  # here the end is listed
    assert choice.logprobs.top_logprobs is not None
    rows = plain(reference, start + ids)
    for place, row in enumerate(choice.logprobs.top_logprobs):
        found = np.array([row[f"token_id:{index}"] for index in range(300)])
        assert len(row) == 300
        np.testing.assert_allclose(found, rows[len(start) - 1 + place], atol=1e-4)
    assert choice.finish_reason == "stop"
    extra = choice.model_extra or {}
    assert extra["token_ids"] == ids
    assert extra["prompt_token_ids"] == start


async def test_streamed_ids(open_client: AsyncOpenAI, tokenizer: Any) -> None:
    stream = await open_client.completions.create(
        model="tiny",
        prompt="The dog",
        max_tokens=60,
        temperature=0,
        logprobs=1,
        stream=True,
        extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True},
    )
    ids: list[int] = []
    prompts, tokens = [], []
    async for chunk in stream:
        [choice] = chunk.choices
        extra = choice.model_extra or {}
        ids += extra["token_ids"]
        prompts.append(extra.get("prompt_token_ids"))
        tokens += (choice.logprobs.tokens or []) if choice.logprobs else []
    assert ids == [*tokenizer(SOUP)["input_ids"], 0]
    assert tokens == [f"token_id:{index}" for index in ids]
    assert prompts[0] == tokenizer("The dog")["input_ids"]
    assert set(map(str, prompts[1:])) == {"None"}


async def test_a_prefix_of_ids_continues_its_own_draft(client: AsyncOpenAI, tokenizer: Any) -> None:
    prefix = tokenizer("The dog")["input_ids"]
    for wanted in [*tokenizer(SOUP)["input_ids"], 0]:
        answer = await client.completions.create(
            model="tiny", prompt=prefix, max_tokens=1, temperature=0, extra_body={"return_token_ids": True}
        )
        extra = answer.choices[0].model_extra or {}
        assert extra["token_ids"] == [wanted]
        prefix = [*prefix, wanted]


async def test_special_tokens_are_added_as_asked(folder: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END_TEXT} $A", special_tokens=[(END_TEXT, 0)]
    )
    tokenizer.bos_token = END_TEXT
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    words = tokenizer("The dog", add_special_tokens=False)["input_ids"]
    with serve_in_thread(create_app(open_engine(tmp_path, served_model_name="tiny"))) as url:
        async with client_of(url) as client:
            for added, want in ((None, [0, *words]), (True, [0, *words]), (False, words)):
                answer = await client.completions.create(
                    model="tiny",
                    prompt="The dog",
                    max_tokens=0,
                    echo=True,
                    logprobs=1,
                    extra_body={"return_token_ids": True, "add_special_tokens": added},
                )
                [choice] = answer.choices
                assert (choice.model_extra or {})["prompt_token_ids"] == want
                assert choice.text == "The dog"  # what the tokenizer put before it is no part of it
                assert choice.logprobs is not None
                assert len(choice.logprobs.tokens or []) == len(want)
                assert (choice.logprobs.text_offset or [])[len(want) - len(words)] == 0
            chat = await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hi"}],
                max_tokens=1,
                extra_body={"return_token_ids": True},
            )
            assert (chat.model_extra or {})["prompt_token_ids"][0] == 0  # the plain template writes no BOS itself
    own = Prompts(tokenizer, TRIMMING)  # a model's template writes what it wants
    rendered = tokenizer(f"[user]hi{END_TEXT}[assistant]", add_special_tokens=False)["input_ids"]
    assert own.ids(Ask(tuple(HI), 1)) == tuple(rendered)
    assert own.ids(Ask(tuple(HI), 1, add_special_tokens=True)) == (0, *rendered)


# -- chat -----------------------------------------------------------------------------------------------------------

HI: list[Any] = [{"role": "user", "content": "hi"}]


async def test_a_chat_with_the_plain_template(client: AsyncOpenAI, tokenizer: Any) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HI, temperature=0)
    assert answer.object == "chat.completion"
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", " hello there, friend.")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokenizer("User: hi\nAssistant:")["input_ids"])
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    again = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": parts}],
        temperature=0,  # type: ignore[list-item, misc]
    )
    assert again.choices[0].message.content == choice.message.content


async def test_logprobs_of_a_chat(client: AsyncOpenAI, tokenizer: Any, reference: Any) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=HI, temperature=0, max_completion_tokens=30, logprobs=True, top_logprobs=4
    )
    [choice] = answer.choices
    assert choice.logprobs is not None
    entries = choice.logprobs.content
    assert entries is not None
    start, ids = (tokenizer(text)["input_ids"] for text in ("User: hi\nAssistant:", " hello there, friend."))
    rows = plain(reference, start + ids)
    assert len(entries) == len(ids)  # without the final end
    for place, entry in enumerate(entries):
        want = rows[len(start) - 1 + place]
        assert entry.logprob == pytest.approx(want[ids[place]], abs=1e-4)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(np.sort(want)[::-1][:4].tolist(), abs=1e-4)
        assert entry.top_logprobs[0].token == entry.token
    assert b"".join(bytes(entry.bytes or []) for entry in entries) == b" hello there, friend."


async def test_bytes_are_the_true_bytes(client: AsyncOpenAI) -> None:
    body = {"continue_final_message": True, "add_generation_prompt": False}
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "The dog"}],
        temperature=2,
        seed=3,
        max_tokens=60,
        logprobs=True,
        top_logprobs=5,
        extra_body=body,
    )
    [choice] = answer.choices
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    whole = b"".join(bytes(entry.bytes or []) for entry in entries)
    assert whole.decode("utf-8", "replace") == choice.message.content
    tops = [top for entry in entries for top in entry.top_logprobs]
    partial = [top for top in tops if top.token.startswith("\\x")]
    assert partial
    for top in partial:
        assert bytes(top.bytes or []) == spelled(f"bytes:{top.token}")
    assert any(top.token == END_TEXT for top in tops)
    outside = [entry for entry in entries if entry.token not in [top.token for top in entry.top_logprobs]]
    assert outside
    assert all(len(entry.top_logprobs) == 5 for entry in entries)
    assert all(entry.logprob < entry.top_logprobs[-1].logprob for entry in outside)


async def test_chat_tokens_as_ids(open_client: AsyncOpenAI, tokenizer: Any) -> None:
    answer = await open_client.chat.completions.create(
        model="tiny",
        messages=HI,
        temperature=0,
        logprobs=True,
        top_logprobs=300,
        extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True},
    )
    ids = [*tokenizer(" hello there, friend.")["input_ids"], 0]
    [choice] = answer.choices
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert [entry.token for entry in entries] == [f"token_id:{index}" for index in ids]
    assert b"".join(bytes(entry.bytes or []) for entry in entries[:-1]) == b" hello there, friend."
    for entry in entries:
        assert {top.token for top in entry.top_logprobs} == {f"token_id:{index}" for index in range(300)}
        assert math.fsum(math.exp(top.logprob) for top in entry.top_logprobs) == pytest.approx(1.0, abs=1e-5)
    assert (choice.model_extra or {})["token_ids"] == ids
    assert (answer.model_extra or {})["prompt_token_ids"] == tokenizer("User: hi\nAssistant:")["input_ids"]


async def test_a_chat_stream_says_the_same(client: AsyncOpenAI) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "messages": HI, "temperature": 0.7, "seed": 2, "max_tokens": 20}
    arguments |= {"logprobs": True, "top_logprobs": 2, "n": 2}
    whole = await client.chat.completions.create(**arguments)
    texts, entries, finishes = ["", ""], [[], []], [None, None]
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            **arguments, stream=True, stream_options={"include_usage": True}
        )
    ]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            entries[choice.index] += (choice.logprobs.content or []) if choice.logprobs else []
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert finishes[choice.index] == choice.finish_reason
        assert choice.logprobs is not None
        want = choice.logprobs.content or []
        assert [entry.token for entry in entries[choice.index]] == [entry.token for entry in want]
        assert [e.logprob for e in entries[choice.index]] == pytest.approx([e.logprob for e in want], abs=1e-4)


async def test_a_trailing_assistant_message_starts_a_new_turn(client: AsyncOpenAI, tokenizer: Any) -> None:
    messages: list[Any] = [*HI, {"role": "assistant", "content": " hello"}]
    answer = await client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=1, extra_body={"return_token_ids": True}
    )
    want = tokenizer("User: hi\nAssistant: hello\nAssistant:")["input_ids"]
    assert (answer.model_extra or {})["prompt_token_ids"] == want


@pytest.mark.parametrize("begun", [" hello", " hello ", "\n  hello\n\n", " ", ""])
async def test_a_prefill_is_continued_as_it_is_written(client: AsyncOpenAI, tokenizer: Any, begun: str) -> None:
    messages: list[Any] = [*HI, {"role": "assistant", "content": begun}]
    answer = await client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=20,
        temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True},
    )
    assert (answer.model_extra or {})["prompt_token_ids"] == tokenizer(f"User: hi\nAssistant:{begun}")["input_ids"]
    if begun == " hello":
        assert answer.choices[0].message.content == " there, friend."  # the prefill is not repeated


TRIMMING = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("as_file", [False, True])
async def test_the_template_of_the_model_or_the_caller(folder: Path, tmp_path: Path, as_file: bool) -> None:
    template = TRIMMING
    if as_file:
        (tmp_path / "chat.jinja").write_text(TRIMMING, encoding="utf-8")
        template = str(tmp_path / "chat.jinja")
    engine = open_engine(folder, served_model_name="tiny", chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    body = {"continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True}
    with serve_in_thread(create_app(engine)) as url:
        async with client_of(url) as client:
            answer = await client.chat.completions.create(
                model="tiny",
                messages=[*HI, {"role": "assistant", "content": " on the  "}],
                max_tokens=1,
                extra_body=body,
            )
            none = await client.chat.completions.create(
                model="tiny",
                messages=HI,
                max_tokens=1,
                extra_body={"add_generation_prompt": False, "return_token_ids": True},
            )
    want = tokenizer(f"[user]hi{END_TEXT}[assistant] on the  ")["input_ids"]
    assert 0 in want  # special tokens of a template are special tokens
    assert (answer.model_extra or {})["prompt_token_ids"] == want
    assert (none.model_extra or {})["prompt_token_ids"] == tokenizer(f"[user]hi{END_TEXT}")["input_ids"]


async def test_a_template_that_refuses(folder: Path) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with serve_in_thread(create_app(open_engine(folder, served_model_name="tiny", chat_template=template))) as url:
        async with client_of(url) as client:
            with pytest.raises(openai.BadRequestError, match="roles must alternate"):
                await client.chat.completions.create(model="tiny", messages=HI)


def test_a_template_file_that_is_missing(folder: Path) -> None:
    with pytest.raises(InputError, match="no chat template"):
        open_engine(folder, chat_template="no/such/file.jinja")


def test_prompts_without_messages_are_cut_as_they_are(tokenizer: Any) -> None:
    prompts = Prompts(tokenizer)
    assert prompts.ids(Ask((3, 4), 1)) == (3, 4)
    assert prompts.ids(Ask("The", 1)) == tuple(tokenizer("The")["input_ids"])


async def test_stop_in_a_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HI, temperature=0, stop=["the", "zzz"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (" hello ", "stop")


async def test_a_chat_without_a_limit_fills_the_window(client: AsyncOpenAI, tokenizer: Any) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "cat " * 100}], temperature=2, seed=5, stop=None
    )
    assert answer.usage is not None
    [choice] = answer.choices
    assert choice.finish_reason == ("length" if answer.usage.total_tokens == 256 else "stop")
    assert answer.usage.total_tokens <= 256


# -- what is refused ------------------------------------------------------------------------------------------------

COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "The"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": HI}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (COMPLETION | {"logprobs": 6}, "logprobs", "integer_above_max_value"),
        (COMPLETION | {"logprobs": -1}, "logprobs", "integer_below_min_value"),
        (COMPLETION | {"logprobs": True}, "logprobs", "invalid_type"),
        (COMPLETION | {"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        (COMPLETION | {"max_tokens": "5"}, "max_tokens", "invalid_type"),
        (COMPLETION | {"echo_last": -1}, "echo_last", "integer_below_min_value"),
        (COMPLETION | {"echo_last": 1.5}, "echo_last", "invalid_type"),
        (COMPLETION | {"echo_last": 0, "echo": True, "max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        (COMPLETION | {"temperature": 2.5}, "temperature", "decimal_above_max_value"),
        (COMPLETION | {"temperature": -0.1}, "temperature", "decimal_below_min_value"),
        (COMPLETION | {"top_p": 1.5}, "top_p", "decimal_above_max_value"),
        (COMPLETION | {"n": 0}, "n", "integer_below_min_value"),
        (COMPLETION | {"n": 1000}, "n", "integer_above_max_value"),
        (COMPLETION | {"stop": list("abcde")}, "stop", "array_above_max_length"),
        (COMPLETION | {"stop": [1]}, "stop", "invalid_type"),
        (COMPLETION | {"best_of": 3}, "best_of", "unsupported_parameter"),
        (COMPLETION | {"suffix": "x"}, "suffix", "unsupported_parameter"),
        (COMPLETION | {"top_k": 5}, "top_k", "unsupported_parameter"),
        (COMPLETION | {"logit_bias": {"five": 1}}, "logit_bias", None),
        (COMPLETION | {"logit_bias": {"5": 101}}, "logit_bias", "decimal_above_max_value"),
        (COMPLETION | {"logit_bias": {"99999": 1}}, None, None),
        (COMPLETION | {"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", None),
        (COMPLETION | {"logprob_token_ids": [5]}, "logprob_token_ids", None),
        (COMPLETION | {"logprobs": 1, "logprob_token_ids": [99999]}, None, None),
        (COMPLETION | {"logprobs": 1, "logprob_token_ids": [*range(129)]}, "logprob_token_ids", None),
        (COMPLETION | {"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        (COMPLETION | {"top_k": 40}, "top_k", "unsupported_parameter"),
        (COMPLETION | {"prompt_logprobs": 0}, "prompt_logprobs", "unsupported_parameter"),
        (COMPLETION | {"prompt": []}, "prompt", "empty_array"),
        (COMPLETION | {"prompt": [1.5]}, "prompt", "invalid_type"),
        (COMPLETION | {"prompt": [["a"]]}, "prompt", "invalid_type"),
        (COMPLETION | {"prompt": [True]}, "prompt", "invalid_type"),
        (COMPLETION | {"prompt": ""}, None, None),
        (COMPLETION | {"prompt": [5, 300]}, None, None),
        ({"model": "tiny"}, "prompt", "missing_required_parameter"),
        ({"prompt": "x"}, "model", "missing_required_parameter"),
        (COMPLETION | {"max_tokens": 300}, None, "context_length_exceeded"),
        (COMPLETION | {"prompt": [["a"], "b"]}, "prompt", "invalid_type"),
        (CHAT | {"top_logprobs": 6, "logprobs": True}, "top_logprobs", "integer_above_max_value"),
        (CHAT | {"top_logprobs": 2}, "top_logprobs", None),
        (CHAT | {"logprobs": 5}, "logprobs", "invalid_type"),
        (CHAT | {"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        (CHAT | {"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value"),
        (CHAT | {"echo_last": 1}, "echo_last", "invalid_type"),
        (CHAT | {"messages": []}, "messages", "empty_array"),
        (CHAT | {"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        (CHAT | {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        (CHAT | {"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        (CHAT | {"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        (CHAT | {"continue_final_message": True}, "add_generation_prompt", None),
        (CHAT | {"continue_final_message": True, "add_generation_prompt": False}, "messages", None),
        (CHAT | {"max_tokens": 300}, None, "context_length_exceeded"),
    ],
)
async def test_refusals_are_those_of_openai(
    client: AsyncOpenAI, body: dict[str, Any], param: str | None, code: str | None
) -> None:
    path = "/chat/completions" if "messages" in body else "/completions"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.post(path, body=body, cast_to=object)
    error = caught.value
    assert (error.status_code, error.type, error.param, error.code) == (400, "invalid_request_error", param, code)
    assert error.body["message"]  # type: ignore[index]


async def test_a_refused_stream_is_an_ordinary_error(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256"):
        await client.completions.create(model="tiny", prompt="The", max_tokens=300, stream=True)


async def test_neutral_and_unknown_fields_are_ignored(client: AsyncOpenAI) -> None:
    neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "nonsense": {"a": 1}, "logit_bias": {}}
    answer = await client.completions.create(
        model="tiny",
        prompt="The dog",
        max_tokens=60,
        temperature=0,
        best_of=1,
        presence_penalty=0,
        user="me",
        extra_body=neutral,
    )
    assert answer.choices[0].text == SOUP


async def test_an_unknown_model(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.completions.create(model="gpt-9", prompt="x")
    assert caught.value.code == "model_not_found"
    assert "`gpt-9`" in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1, 2]", b'"text"', b"\xff\xfe", b'{"model": "tiny", "prompt": "\\ud83d"}']
)
def test_malformed_bodies(url: str, body: bytes) -> None:
    for path in ("completions", "chat/completions"):
        status, answer = post(f"{url}/v1/{path}", body)
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["message"]


def test_unknown_paths_and_methods(url: str) -> None:
    status, answer = post(f"{url}/v1/embeddings", b"{}")
    assert (status, answer["error"]["message"]) == (404, "Invalid URL (POST /v1/embeddings)")
    status, answer = post(f"{url}/v1/models", b"{}")
    assert status == 405
    assert answer["error"]["type"] == "invalid_request_error"


async def test_the_key(engine: Engine) -> None:
    with serve_in_thread(create_app(engine, api_key=KEY)) as url:
        for wrong in ("none", KEY + "x", "schlüssel"):
            status, answer = post(f"{url}/v1/completions", b"{}", authorization=f"Bearer {wrong}")
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert post(f"{url}/v1/completions", b"{}")[0] == 401
        async with client_of(url, "none") as stranger:
            with pytest.raises(openai.AuthenticationError) as caught:
                await stranger.models.list()
            assert caught.value.code == "invalid_api_key"
        async with client_of(url, KEY) as friend:
            assert (await friend.completions.create(model="tiny", prompt="A", max_tokens=1)).choices
        assert get(f"{url}/stats")["requests"] == 1  # nobody else came as far as the model
        assert get(f"{url}/health") is None


# -- the rest of the server -----------------------------------------------------------------------------------------


async def test_models(client: AsyncOpenAI) -> None:
    [model] = (await client.models.list()).data
    assert (model.id, model.object, (model.model_extra or {})["max_model_len"]) == ("tiny", "model", 256)
    assert (await client.models.retrieve("tiny")).id == "tiny"


async def test_the_server_counts(engine: Engine) -> None:
    with serve_in_thread(create_app(engine)) as url:
        async with client_of(url) as client:
            used = []
            for prompt in ("The", "A"):
                answer = await client.completions.create(model="tiny", prompt=prompt, max_tokens=4, temperature=0)
                used.append(answer.usage)
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model="tiny", prompt="")
        stats = get(f"{url}/stats")
    assert stats["requests"] == 3
    assert stats["refused"] == 1
    assert stats["active"] == 0
    assert stats["prompt_tokens"] == sum(usage.prompt_tokens for usage in used if usage)
    assert stats["completion_tokens"] == sum(usage.completion_tokens for usage in used if usage) == 8


async def test_many_clients_at_once(client: AsyncOpenAI) -> None:
    prompts = ["The dog", "A", "User: hi", "The dog"] * 4
    answers = await asyncio.gather(
        *(client.completions.create(model="tiny", prompt=p, max_tokens=60, temperature=0) for p in prompts)
    )
    texts = [answer.choices[0].text for answer in answers]
    assert texts == [SOUP, TEXTS[2][1:], TEXTS[3][len("User: hi") :], SOUP] * 4


async def test_middleware_stands_in_front(engine: Engine) -> None:
    from starlette.middleware import Middleware

    seen = []

    class Watch:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await self.app(scope, receive, send)

    with serve_in_thread(create_app(engine, api_key=KEY, middleware=[Middleware(Watch)])) as url:
        assert post(f"{url}/v1/completions", b"{}")[0] == 401
    assert seen == ["/v1/completions"]


def test_a_taken_port_is_said(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot listen"):
        run_host(folder, port=taken.getsockname()[1])


def test_run_host_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable):
        run_host(tmp_path / "nothing", port=0)
    with pytest.raises(InputError, match="top_logprobs"):
        run_host(tmp_path, port=0, top_logprobs=-2)


def test_importing_the_routes_loads_no_torch() -> None:
    code = (
        "import sys, blackbox_proxy.serve, blackbox_proxy.serve.host, blackbox_proxy.serve.process, "
        "blackbox_proxy.serve.routes\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


# -- a process of its own -------------------------------------------------------------------------------------------


async def test_a_host_in_its_own_process(folder: Path) -> None:
    with HostProcess(folder, top_logprobs=3, api_key=KEY, served_model_name="black", threads=1) as host:
        pid = host.pid
        async with client_of(host.url, KEY) as client:
            answer = await client.completions.create(
                model=host.model, prompt="The dog", max_tokens=60, temperature=0, logprobs=3
            )
            assert answer.choices[0].text == SOUP
            with pytest.raises(openai.BadRequestError, match="<= 3"):
                await client.completions.create(model=host.model, prompt="x", logprobs=4)
            stream = await client.completions.create(
                model=host.model, prompt="The", max_tokens=200, temperature=2, stream=True
            )
            await anext(stream)
            assert host.stats()["requests"] == 3
            host.close()  # with a stream still open
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(host.url.rpartition(":")[2])), timeout=5)


def test_a_host_that_cannot_start_says_why(folder: Path) -> None:
    with pytest.raises(ServerFailed, match="did not start: no chat template"):
        HostProcess(folder, chat_template="no/such/file.jinja").start()


def test_a_host_that_takes_too_long_is_ended(folder: Path) -> None:
    host = HostProcess(folder, timeout=0.01)
    with pytest.raises(ServerFailed, match="did not answer within"):
        host.start()
    with pytest.raises(ServerFailed, match="not running"):
        _ = host.pid


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_host_does_not_outlive_its_parent(folder: Path) -> None:
    program = (
        "import sys\n"
        "from blackbox_proxy.serve.process import HostProcess\n"
        "host = HostProcess(sys.argv[1], threads=1).start()\n"
        "print(host.url, flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().strip().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            parent.kill()
            with suppress(ConnectionResetError):  # the connection ends when the process that holds it does
                assert connection.recv(1) == b""
