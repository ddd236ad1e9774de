"""`host` and streams: the same as a whole answer, and over when the client leaves; vLLM's extensions."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from hosting import HI, SOUP, TRIMMING, client_of, get, post
from openai import AsyncOpenAI
from tiny import END_TEXT, plain
from transformers import AutoModelForCausalLM, AutoTokenizer

from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import ConnectionFailed, InputError
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.host.prompts import Prompts
from blackbox_proxy.serve.engine import Engine, Event, TextWanted
from blackbox_proxy.serve.routes import Stats, create_app
from blackbox_proxy.types import Usage

# -- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_says_the_same_as_a_whole(client: AsyncOpenAI) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "prompt": ["The dog", "A"], "max_tokens": 60, "temperature": 0}
    whole = await client.completions.create(**arguments, logprobs=4, echo=True)
    texts, finishes = {0: "", 1: ""}, {}
    columns: dict[int, list[list[Any]]] = {0: [[], [], [], []], 1: [[], [], [], []]}
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
    own_fields, about = (), dict[str, Any]()

    def __init__(self) -> None:
        self.started, self.closed = threading.Event(), threading.Event()
        self.written = 0

    def check(self, wanted: TextWanted) -> None:
        pass

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
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
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            assert await asyncio.to_thread(engine.started.wait, 10)
        assert await asyncio.to_thread(engine.closed.wait, 10)


class Watched:
    """The real engine; says when a text has ended."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.top_logprobs, self.context = engine.name, engine.top_logprobs, engine.context
        self.own_fields, self.about = engine.own_fields, engine.about
        self.check = engine.check
        self.ended = threading.Event()
        self._engine = engine

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        try:
            async with aclosing(self._engine.complete(wanted)) as events:
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

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
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
    assert own.ids(TextWanted(tuple(HI), 1)) == tuple(rendered)
    assert own.ids(TextWanted(tuple(HI), 1, add_special_tokens=True)) == (0, *rendered)
