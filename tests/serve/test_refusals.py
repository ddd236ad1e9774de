"""What `host` refuses, and in which words."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from hosting import HI, KEY, SOUP, client_of, get, post
from openai import AsyncOpenAI

from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.serve.engine import Engine
from blackbox_proxy.serve.routes import create_app

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
        (COMPLETION | {"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "array_above_max_length"),
        (COMPLETION | {"logit_bias": {"5" * 5000: 1}}, "logit_bias", None),
        (COMPLETION | {"seed": 10**30}, "seed", "integer_above_max_value"),
        (COMPLETION | {"stop": "x" * 2000}, "stop", "string_above_max_length"),
        (COMPLETION | {"prompt": ["x"] * 129}, "prompt", "array_above_max_length"),
        (COMPLETION | {"prompt": ["x"] * 128 + [1.5]}, "prompt", "array_above_max_length"),
        (CHAT | {"messages": HI * 4097}, "messages", "array_above_max_length"),
        (COMPLETION | {"logprob_token_ids": [5]}, "logprob_token_ids", None),
        (COMPLETION | {"logprobs": 1, "logprob_token_ids": [99999]}, None, None),
        (
            COMPLETION | {"logprobs": 1, "logprob_token_ids": [*range(129)]},
            "logprob_token_ids",
            "array_above_max_length",
        ),
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
