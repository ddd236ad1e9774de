"""Waiting and naming, without a network."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx2
import openai
import pytest

from blackbox_proxy.base.retry import LONGEST_WAIT, named, retry_after, with_retries
from blackbox_proxy.errors import (
    AccessDenied,
    BadRequest,
    BadResponse,
    BaseError,
    BlackboxError,
    ConnectionFailed,
    ContextTooLong,
    InputError,
    ModelNotFound,
    QuotaExhausted,
    RateLimited,
    ServerFailed,
)

NOW = 1_800_000_000.0
KEY = "sk-very-secret-1234"
REQUEST = httpx2.Request("POST", "http://host/v1/completions", headers={"Authorization": f"Bearer {KEY}"})


def date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": date(30)}, 30.0),
        ({"retry-after": date(-30)}, 0.0),
        ({"retry-after": date(9999)}, LONGEST_WAIT),
        ({"retry-after": "9999"}, LONGEST_WAIT),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "inf"}, LONGEST_WAIT),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 99 Foo 9999 99:99:99 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=NOW) == seconds


class Flaky:
    """Fails with each of `errors` in turn, then returns "done"; `slept` holds how long was waited."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.slept: list[float] = []

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def run(self, max_attempts: int = 5) -> tuple[str, int]:
        return await with_retries(self, max_attempts=max_attempts, sleep=self.sleep)


async def test_only_what_waiting_cures_is_tried_again() -> None:
    flaky = Flaky(ServerFailed("x"), RateLimited("x"), ConnectionFailed("x"))
    assert await flaky.run() == ("done", 3)
    assert (flaky.calls, len(flaky.slept)) == (4, 3)
    for error in (BadRequest("x"), QuotaExhausted("x"), AccessDenied("x"), InputError("x"), ValueError("x")):
        flaky = Flaky(error)
        with pytest.raises(type(error)) as caught:
            await flaky.run()
        assert caught.value is error
        assert flaky.calls == 1


async def test_the_last_error_is_raised_when_attempts_run_out() -> None:
    errors = [ServerFailed(str(i)) for i in range(9)]
    flaky = Flaky(*errors)
    with pytest.raises(ServerFailed, match=r"^2$"):
        await flaky.run(max_attempts=3)
    assert (flaky.calls, len(flaky.slept)) == (3, 2)


async def test_a_cancelled_call_is_not_tried_again() -> None:
    flaky = Flaky(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await flaky.run()
    assert flaky.calls == 1


async def test_waits_grow_at_random_where_nothing_is_asked() -> None:
    longest = [0.0] * 4
    for _ in range(200):
        flaky = Flaky(*(ServerFailed("x") for _ in range(4)))
        await flaky.run()
        longest = [max(pair) for pair in zip(longest, flaky.slept, strict=True)]
    assert longest == sorted(longest)
    assert longest[0] <= 0.5 < 1.0 < longest[3] <= 4.0


# -- naming -----------------------------------------------------------------------------------------------------------


def status_error(status: int, body: Any, kind: type[openai.APIStatusError] = openai.APIStatusError) -> Exception:
    response = httpx2.Response(status, request=REQUEST, headers={"x-request-id": "req_1"})
    return kind(f"Error code: {status} - {body}", response=response, body=body)


def name(error: Exception) -> BlackboxError:
    return named(error, model="m", url="http://host/v1", secret=KEY)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"message": "max logprobs is 20"}, BadRequest),
        (400, {"message": "too long", "code": "context_length_exceeded"}, ContextTooLong),
        (400, {"message": "This model's maximum context length is 4 tokens"}, ContextTooLong),
        (400, {"message": "exceeds", "type": "exceed_context_size_error"}, ContextTooLong),
        (413, "maximum context length", ContextTooLong),
        (401, {"message": "bad key"}, AccessDenied),
        (402, {"message": "Insufficient Balance"}, QuotaExhausted),
        (403, {"message": "no right"}, AccessDenied),
        (403, {"message": "x", "code": "insufficient_quota"}, QuotaExhausted),
        (404, {"message": "no such model", "code": "model_not_found"}, ModelNotFound),
        (404, {"detail": "Not Found"}, ModelNotFound),
        (408, None, ConnectionFailed),
        (409, None, BadRequest),
        (422, {"detail": [{"loc": ["body", "top_k"], "msg": "extra fields not permitted"}]}, BadRequest),
        (429, {"message": "slow down", "code": "rate_limit_exceeded"}, RateLimited),
        (429, {"message": "You exceeded your current quota", "type": "insufficient_quota"}, QuotaExhausted),
        (429, "", RateLimited),
        (500, "<html>oops", ServerFailed),
        (503, {"error": "loading"}, ServerFailed),
        (529, [1, 2], ServerFailed),
        (304, None, BadResponse),
    ],
)
def test_statuses(status: int, body: Any, kind: type[BlackboxError]) -> None:
    error = name(status_error(status, body))
    assert type(error) is kind
    assert error.hint
    assert error.retryable == (kind in (RateLimited, ServerFailed, ConnectionFailed))
    if isinstance(error, BaseError):
        assert (error.status, error.request_id) == (status, "req_1")


def test_the_apis_own_words_are_kept() -> None:
    assert "max logprobs is 20" in str(name(status_error(400, {"message": "max logprobs\nis 20"})))
    assert "extra fields" in str(name(status_error(422, {"detail": [{"msg": "extra fields"}]})))
    assert len(str(name(status_error(500, "x" * 9999)))) < 400
    assert "OPENAI_API_KEY" in name(status_error(401, {})).hint


def all_of(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind, *(child for sub in kind.__subclasses__() for child in all_of(sub))}


def made(kind: type[BaseException]) -> Exception:
    """An instance of an exception class of the clients without its constructor, which differs from class to class."""
    error = kind.__new__(kind)
    assert isinstance(error, Exception)
    error.args = ("x",)
    known = {"status_code": 418, "request_id": None, "code": None, "type": None, "body": None}
    if isinstance(error, openai.APIStatusError):
        vars(error).update(known)
    return error


CLIENT_ERRORS = [
    kind
    for kind in all_of(openai.OpenAIError) | all_of(httpx2.HTTPError) | {httpx2.InvalidURL}
    if kind.__module__.partition(".")[0] in ("openai", "httpx2")
]


@pytest.mark.parametrize("kind", sorted(CLIENT_ERRORS, key=lambda kind: kind.__name__))
def test_no_error_of_the_clients_is_missed(kind: type[BaseException]) -> None:
    error = name(made(kind))
    assert isinstance(error, BaseError)
    assert error.hint
    assert "http://host/v1" in str(error)


def test_timeouts_and_connections() -> None:
    assert "in time" in str(name(openai.APITimeoutError(REQUEST)))
    refused = openai.APIConnectionError(request=REQUEST)
    refused.__cause__ = httpx2.ConnectError("All connection attempts failed")
    assert isinstance(name(refused), ConnectionFailed)
    assert "http://host/v1: All connection attempts failed" in str(name(refused))


def test_the_key_is_taken_out_of_everything() -> None:
    body = {"message": f"Incorrect API key provided: {KEY}", "inner": [{"key": KEY}]}
    original = status_error(401, body)
    original.__cause__ = ValueError(f"deeper: {KEY}")
    error = name(original)
    assert "Incorrect API key provided: [api key]" in str(error)
    shown = [str(error), repr(error), error.hint, str(original), repr(original), repr(original.__cause__)]
    shown += [repr(original.body), repr(vars(original))]  # type: ignore[attr-defined]
    assert not any(KEY in text for text in shown)
