"""Waiting and naming, without a network."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx2
import openai
import pytest

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
from blackbox_proxy.secrets import keep_secret
from blackbox_proxy.transport.failures import error_in_body, translated
from blackbox_proxy.transport.retry import JITTER, LONGEST_WAIT, asked_wait, duration, retry_after, with_retries

NOW = 1_800_000_000.0
KEY = "sk-very-secret-1234"
PROMPT = "what nobody should read"
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
        ({"retry-after": date(-3590), "date": date(-3600)}, 10.0),  # this machine's clock is an hour ahead
        ({"retry-after": date(3610), "date": date(3600)}, 10.0),  # and an hour behind
        ({"retry-after": date(30), "date": "today"}, 30.0),
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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("1s", 1.0),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("500us", 0.0005),
        ("2d", 172800.0),
        ("0s", 0.0),
        ("0.5", 0.5),
        ("7", 7.0),
        ("1m30", None),
        ("-1s", None),
        ("5x", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert duration(text) == pytest.approx(seconds)


def limits(requests: str | None, tokens: str | None, left: tuple[str | None, str | None]) -> dict[str, str]:
    told = {"reset-requests": requests, "reset-tokens": tokens, "remaining-requests": left[0]}
    told["remaining-tokens"] = left[1]
    return {f"x-ratelimit-{name}": value for name, value in told.items() if value is not None}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (limits("1s", "6m0s", ("0", "900")), 1.0),
        (limits("1s", "60s", ("12", "0")), 60.0),
        (limits("1s", "60s", ("0", "0")), 60.0),
        (limits("20ms", "1s", ("3", "4")), 1.0),
        (limits("20ms", "1s", (None, None)), 1.0),
        (limits("20ms", None, ("0", "0")), 0.02),
        (limits("20ms", "later", ("9", "0")), 0.02),
        (limits(None, "6m0s", (None, None)), LONGEST_WAIT),
        (limits(None, None, ("0", "0")), None),
    ],
)
def test_rate_limits_say_when_they_open(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait(429, headers) == seconds
    assert asked_wait(503, headers) is None
    assert asked_wait(429, {**headers, "retry-after": "2"}) == 2.0


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

    async def run(self, max_attempts: int = 5, max_seconds: float = 600.0) -> tuple[str, int]:
        """Time passes by sleeping only."""
        return await with_retries(
            self, max_attempts=max_attempts, max_seconds=max_seconds, sleep=self.sleep, clock=lambda: sum(self.slept)
        )


def asking_for(wait: str, status: int = 429) -> BlackboxError:
    """The error of an answer with this `Retry-After`."""
    response = httpx2.Response(status, request=REQUEST, headers={"retry-after": wait})
    original = openai.APIStatusError("slow down, " + PROMPT, response=response, body=None)
    error = translated(original, model="m", url="http://host/v1")
    error.__cause__ = original
    return error


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


async def test_the_time_is_bounded_too() -> None:
    """No attempt begins after the limit, and nobody sleeps for one that would."""
    flaky = Flaky(*(asking_for("10") for _ in range(99)))
    with pytest.raises(RateLimited):
        await flaky.run(max_attempts=99, max_seconds=35.0)
    assert (flaky.calls, len(flaky.slept)) == (4, 3)
    assert sum(flaky.slept) <= 35.0


async def test_who_is_told_to_wait_waits_and_not_all_come_back_at_once() -> None:
    slept = []
    for _ in range(100):
        flaky = Flaky(asking_for("10"))
        await flaky.run()
        slept += flaky.slept
    assert min(slept) >= 10.0
    assert max(slept) <= 10.0 * (1.0 + JITTER)
    assert max(slept) - min(slept) > 0.5


async def test_each_retry_is_one_line_without_the_servers_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await Flaky(asking_for("10"), ConnectionFailed(f"{PROMPT} {KEY}")).run()
    lines = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert [line[:2] for line in lines] == [("blackbox_proxy.transport.retry", "INFO")] * 2
    assert lines[0][2].startswith("attempt 1 of 5 failed (RateLimited 429), the next in 1")
    assert lines[1][2].startswith("attempt 2 of 5 failed (ConnectionFailed), the next in 0.")
    assert not any(PROMPT in line[2] or KEY in line[2] for line in lines)


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
    return translated(error, model="m", url="http://host/v1")


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
        (409, None, ServerFailed),
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


@pytest.mark.parametrize(
    ("status", "said", "retryable"),
    [
        (400, "true", True),
        (401, "True", True),
        (500, "false", False),
        (429, "false", False),
        (500, "maybe", True),
        (400, "", False),
    ],
)
def test_the_server_may_say_itself_whether_to_retry(status: int, said: str, retryable: bool) -> None:
    response = httpx2.Response(status, request=REQUEST, headers={"x-should-retry": said})
    assert name(openai.APIStatusError("x", response=response, body=None)).retryable is retryable


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ({"message": "the engine died", "code": 500}, ServerFailed, 500),
        ({"message": "x", "code": "server_error"}, ServerFailed, None),
        ("upstream is down", ServerFailed, None),
        ({"message": "x", "code": 408}, ServerFailed, 408),
        ({"message": "x", "code": "409"}, ServerFailed, 409),
        ({"message": "x", "code": 429}, RateLimited, 429),
        ({"message": "x", "code": 400}, BadRequest, 400),
        ({"message": "x", "type": "insufficient_quota", "code": 429}, QuotaExhausted, 429),
    ],
)
def test_errors_inside_of_good_answers(body: Any, kind: type[BaseError], status: int | None) -> None:
    error = error_in_body(body, "http://host/v1")
    assert (type(error), error.status) == (kind, status)
    assert error.retryable == (kind in (ServerFailed, RateLimited))


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


@pytest.mark.parametrize("kind", sorted(CLIENT_ERRORS, key=str))
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
    keep_secret(KEY, "[api key]")
    body = {"message": f"Incorrect API key provided: {KEY}", "inner": [{"key": KEY}]}
    original = status_error(401, body)
    original.__cause__ = ValueError(f"deeper: {KEY}")
    original.__context__ = aside = ValueError(f"Illegal header value {KEY}", f"Bearer {KEY}".encode())
    aside.__context__ = unreadable = UnicodeDecodeError("utf-8", f"{KEY}\xff".encode("latin-1"), 19, 20, "why")
    unreadable.__context__ = cut = json.JSONDecodeError("why", f'{{"{KEY}', 1)
    error = name(original)
    assert "Incorrect API key provided: [api key]" in str(error)
    shown = [str(error), repr(error), error.hint, str(original), repr(original), repr(original.__cause__)]
    shown += [repr(aside), repr(unreadable), str(unreadable), repr(unreadable.object), repr(cut), cut.doc]
    shown += [repr(original.body), repr(vars(original))]  # type: ignore[attr-defined]
    assert not any(KEY in text for text in shown)
