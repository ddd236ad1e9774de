"""The tuned model behind OpenAI's routes, as the unmodified openai client sees it."""

from __future__ import annotations

import json
import math
import re
import urllib.request
from typing import Any

import numpy as np
import openai
import pytest
from gateways import Gateway
from hosting import get, post
from openai import AsyncOpenAI

from blackbox_proxy import ProxyTuner
from blackbox_proxy.types import Step

PROMPT = "The mayor of New York"
ASKED: list[Any] = [{"role": "user", "content": "Where is the café?"}]
ASKED_AS_TEXT = "User: Where is the café?\nAssistant:"


async def complete(client: AsyncOpenAI, **arguments: Any) -> Any:
    arguments = {"model": "tuned", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **arguments}
    return await client.completions.create(**arguments)


def printable(step: Step) -> str:
    return step.token.decode()


async def test_a_completion_is_the_tuners_text(running: Gateway, tuner: ProxyTuner) -> None:
    wanted = tuner.generate(PROMPT, max_tokens=12)
    async with running.client() as client:
        answer = await complete(client)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (wanted.text, wanted.finish_reason)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == len(running.base.vocabulary.prompt_ids(PROMPT))  # type: ignore[union-attr]
    upstream = answer.usage.model_extra["upstream"]
    assert 1 <= upstream["api_calls"] <= 12
    assert upstream["prompt_tokens"] >= answer.usage.prompt_tokens
    assert upstream["completion_tokens"] > 0


def test_the_sync_client_streams_the_same_text(running: Gateway, tuner: ProxyTuner) -> None:
    with running.sync() as client:
        stream = client.completions.create(
            model="tuned",
            prompt=PROMPT,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert (
        "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        == tuner.generate(PROMPT, max_tokens=12).text
    )
    assert sum(bool(chunk.choices and chunk.choices[0].text) for chunk in chunks) > 2  # not all at once
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert (chunks[-1].usage.model_extra or {})["upstream"]["api_calls"] >= 1


async def test_log_probabilities_are_the_tuned_ones(running: Gateway, tuner: ProxyTuner) -> None:
    wanted = tuner.generate(PROMPT, max_tokens=12)
    assert any(step.changed for step in wanted.steps)
    async with running.client() as client:
        found = (await complete(client, logprobs=8)).choices[0].logprobs
    assert len(found.tokens) == 12
    for step, logprob, top in zip(wanted.steps, found.token_logprobs, found.top_logprobs, strict=True):
        own = next(c for c in step.candidates if c.token.id == step.token_id)
        assert logprob == pytest.approx(own.log_p, abs=1e-5)
        shown = sorted((float(p) for p in step.candidates.log_p[:8]), reverse=True)
        assert sorted(top.values(), reverse=True)[: len(shown)] == pytest.approx(shown, abs=1e-5)
        assert math.isclose(logprob, max(top.values()))  # greedy
    assert found.text_offset[0] == 0


async def test_a_stop_string_ends_the_text(running: Gateway, tuner: ProxyTuner) -> None:
    whole = tuner.generate(PROMPT, max_tokens=12).text
    stop = whole[6:8]
    async with running.client() as client:
        answer = await complete(client, stop=[stop, "never there"], logprobs=1)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")
    assert "".join(answer.choices[0].logprobs.tokens).startswith(answer.choices[0].text)


async def test_seeds_and_several_choices(running: Gateway, tuner: ProxyTuner) -> None:
    wanted = [tuner.generate(PROMPT, max_tokens=12, temperature=1.0, seed=seed).text for seed in (7, 8)]
    assert wanted[0] != wanted[1]
    async with running.client() as client:
        answer = await complete(client, max_tokens=12, temperature=1.0, seed=7, n=2)
    assert [choice.text for choice in answer.choices] == wanted


async def test_chat(running: Gateway, tuner: ProxyTuner) -> None:
    wanted = tuner.generate(ASKED_AS_TEXT, max_tokens=16)
    async with running.client() as client:
        answer = await client.chat.completions.create(
            model="tuned", messages=ASKED, max_tokens=16, temperature=0, logprobs=True, top_logprobs=3
        )
        stream = await client.chat.completions.create(
            model="tuned", messages=ASKED, max_completion_tokens=16, temperature=0, stream=True
        )
        streamed = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert answer.choices[0].message.content == wanted.text == "".join(streamed)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert b"".join(bytes(entry.bytes or []) for entry in content).decode("utf-8", "ignore") == wanted.text
    assert [len(entry.top_logprobs) for entry in content] == [3] * 16


async def test_a_message_is_continued(running: Gateway, tuner: ProxyTuner) -> None:
    whole = tuner.generate(ASKED_AS_TEXT, max_tokens=16).text
    begun = whole[:9]
    wanted = tuner.generate(ASKED_AS_TEXT + begun, max_tokens=8).text
    async with running.client() as client:
        answer = await client.chat.completions.create(
            model="tuned",
            messages=[*ASKED, {"role": "assistant", "content": begun}],
            max_tokens=8,
            temperature=0,
            extra_body={"continue_final_message": True, "add_generation_prompt": False},
        )
    assert answer.choices[0].message.content == wanted


async def test_token_ids_are_a_prompt(running: Gateway, tuner: ProxyTuner) -> None:
    vocabulary = running.base.vocabulary
    assert vocabulary is not None
    async with running.client() as client:
        answer = await complete(client, prompt=list(vocabulary.prompt_ids(PROMPT)))
        assert answer.choices[0].text == tuner.generate(PROMPT, max_tokens=12).text
        euro = vocabulary.encode(["€".encode()])[0]
        assert (
            len(euro) > 1
        )  # a prompt that ends inside a character goes on with the rest of it, or what else may follow
        cut = await complete(client, prompt=[*vocabulary.prompt_ids(PROMPT), *euro[:-1]], max_tokens=3)
        assert cut.usage.prompt_tokens == len(vocabulary.prompt_ids(PROMPT)) + len(euro) - 1


async def test_several_models_over_one_base(running: Gateway, tuner: ProxyTuner) -> None:
    half = ProxyTuner(tuner.base, tuner.pairs, 0.5)
    base = ProxyTuner(tuner.base, tuner.pairs, 0.0)
    async with running.client() as client:
        listed = {model.id: model async for model in client.models.list()}
        assert list(listed) == ["tuned", "half", "base"]
        assert (listed["tuned"].model_extra or {})["alpha_range"] == [0.0, 2.0]
        assert (await complete(client, model="half")).choices[0].text == half.generate(PROMPT, max_tokens=12).text
        of_base = await complete(client, model="base", logprobs=5)
        assert of_base.choices[0].text == base.generate(PROMPT, max_tokens=12).text
        step = base.generate(PROMPT, max_tokens=1).steps[0]
        shown = sorted(step.candidates.log_q[~step.candidates.tail].tolist(), reverse=True)
        assert sorted(of_base.choices[0].logprobs.top_logprobs[0].values(), reverse=True) == pytest.approx(
            shown, abs=1e-5
        )
        assert np.exp(shown).sum() < 0.99  # what the base shows, not made to sum to 1


async def test_alpha_and_tail_of_a_request(running: Gateway, tuner: ProxyTuner) -> None:
    asked = {"alpha": 0.5, "tail": "truncate"}
    wanted = ProxyTuner(tuner.base, tuner.pairs, 0.5, tail="truncate").generate(PROMPT, max_tokens=12)
    async with running.client() as client:
        answer = await complete(client, extra_body=asked, logprobs=3)
        assert answer.choices[0].text == wanted.text
        assert answer.choices[0].logprobs.token_logprobs[0] == pytest.approx(
            wanted.steps[0].candidates[0].log_p, abs=1e-5
        )
        for model, body, said in (
            ("tuned", {"alpha": 3}, "from 0 to 2"),
            ("tuned", {"alpha": "much"}, "must be a number"),
            ("tuned", {"tail": "floor"}, "backoff, truncate"),
            ("half", {"alpha": 1}, "does not let requests choose"),
            ("base", {"alpha": 1}, "is the base itself"),
        ):
            with pytest.raises(openai.BadRequestError, match=said):
                await complete(client, model=model, extra_body=body)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"logit_bias": {"17": 5}}, "logit_bias"),
    ({"extra_body": {"top_k": 5}}, "top_k"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"extra_body": {"guided_json": {}}}, "guided_json"),
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"extra_body": {"logprob_token_ids": [1]}, "logprobs": 1}, "logprob_token_ids"),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSED, ids=[named for _, named in REFUSED])
async def test_what_cannot_be_honoured_is_refused_by_name(
    running: Gateway, arguments: dict[str, Any], named: str
) -> None:
    async with running.client() as client:
        with pytest.raises(openai.BadRequestError, match=named):
            await complete(client, **arguments)


async def test_tools_and_formats_are_refused_and_harmless_fields_are_not(running: Gateway) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    async with running.client() as client:

        async def chat(**arguments: Any) -> Any:
            return await client.chat.completions.create(
                **{"model": "tuned", "messages": ASKED, "max_tokens": 1, "temperature": 0, **arguments}
            )

        for arguments, named in (
            ({"tools": [tool]}, "tools"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"reasoning_effort": "low"}, "reasoning_effort"),
            ({"tool_choice": "required"}, "tool_choice"),
        ):
            with pytest.raises(openai.BadRequestError, match=named):
                await chat(**arguments)
        assert await chat(user="me", metadata={"a": "b"}, store=False, parallel_tool_calls=True, tool_choice="none")
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await chat(model="another")


def test_the_description_names_the_routes_and_their_fields(running: Gateway) -> None:
    told = get(f"{running.url}/openapi.json")
    for path, does in told["paths"].items():
        if "get" in does:
            with urllib.request.urlopen(running.url + path.format(name="tuned"), timeout=10) as answer:
                assert answer.status == 200
        else:
            assert post(running.url + path, b"{}")[0] == 400
    fields = told["components"]["schemas"]["CompletionRequest"]["properties"]
    assert fields["model"]["enum"] == ["tuned", "half", "base"]
    assert fields.keys() > {"prompt", "logprobs", "echo", "stream", "alpha", "tail", "steps"}
    named = {word.rpartition("/")[2] for word in re.findall(r'"(#/components/schemas/\w+)"', json.dumps(told))}
    assert named <= told["components"]["schemas"].keys()
