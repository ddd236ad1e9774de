"""`host` and chat: templates, continued answers, log probabilities and streams."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from hosting import HI, TRIMMING, client_of, spelled
from openai import AsyncOpenAI
from tiny import END_TEXT, plain
from transformers import AutoTokenizer

from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import InputError
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.host.prompts import Prompts
from blackbox_proxy.serve.engine import TextWanted
from blackbox_proxy.serve.routes import create_app

# -- chat -----------------------------------------------------------------------------------------------------------


async def test_a_chat_with_the_plain_template(client: AsyncOpenAI, tokenizer: Any) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HI, temperature=0)
    assert answer.object == "chat.completion"
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", " hello there, friend.")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokenizer("User: hi\nAssistant:")["input_ids"])
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    said: list[Any] = [{"role": "user", "content": parts}]
    again = await client.chat.completions.create(model="tiny", messages=said, temperature=0)
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
    texts, finishes = ["", ""], [None, None]
    entries: list[list[Any]] = [[], []]
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
    assert prompts.ids(TextWanted((3, 4), 1)) == (3, 4)
    assert prompts.ids(TextWanted("The", 1)) == tuple(tokenizer("The")["input_ids"])


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
