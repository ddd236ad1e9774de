"""What can go wrong on the way to the API, and what waiting cures.

`named` turns every exception of openai-python and httpx2 into the one of `errors` that says what to do; `with_retries`
repeats a call while its error is retryable, waiting as long as the server asks. Only the request itself belongs inside:
a parser that fails in there would buy the same tokens again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential
from tenacity.wait import wait_base

import openai
from blackbox_proxy.errors import (
    AccessDenied,
    BadRequest,
    BadResponse,
    BaseError,
    BlackboxError,
    ConnectionFailed,
    ContextTooLong,
    ModelNotFound,
    QuotaExhausted,
    RateLimited,
    ServerFailed,
)

LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more is asked again after this."""

_T = TypeVar("_T")
_Sleep = Callable[[float], Awaitable[None]]

_TOO_LONG = (
    "context_length_exceeded",
    "exceed_context_size",
    "maximum context length",
    "maximum model length",
    "context window",
    "available context size",
)
_NO_MONEY = ("insufficient_quota", "billing_hard_limit", "exceeded your current quota", "insufficient balance")
_KEY_HINT = "Set the environment variable OPENAI_API_KEY, or pass api_key=…, and check the key's rights to this model."


# -- waiting ----------------------------------------------------------------------------------------------------------


async def with_retries(
    call: Callable[[], Awaitable[_T]], *, max_attempts: int, sleep: _Sleep = asyncio.sleep
) -> tuple[_T, int]:
    """The result of `call` and how many attempts failed before it.

    Repeats only after a `BlackboxError` whose `retryable` is true, at most `max_attempts` times in all, and then
    raises the last error. Waits as long as `Retry-After` says (at most LONGEST_WAIT), else a random time that grows.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, BlackboxError) and error.retryable),
        stop=stop_after_attempt(max_attempts),
        wait=_AsAsked(),
        sleep=sleep,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await call(), attempt.retry_state.attempt_number - 1
    raise AssertionError("tenacity ends by returning or raising")


class _AsAsked(wait_base):
    """As long as the failed answer's headers ask; a random, growing time where they do not."""

    otherwise = wait_random_exponential(multiplier=0.5, max=30.0)

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        response = getattr(error.__cause__, "response", None) if error else None
        asked = retry_after(response.headers) if response is not None else None
        return self.otherwise(retry_state) if asked is None else asked


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or an HTTP date); None where neither says.

    `headers` must look names up regardless of case, or hold them in lower case. `now`: seconds since the epoch.
    """
    seconds = _number(headers.get("retry-after-ms"), 0.001)
    text = headers.get("retry-after")
    if seconds is None:
        seconds = _number(text, 1.0)
    if seconds is None and text:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
        except (ValueError, OverflowError):
            return None
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_WAIT)


def _number(text: str | None, unit: float) -> float | None:
    try:
        value = float(text or "") * unit
    except ValueError:
        return None
    return value if value == value else None  # NaN


# -- naming -----------------------------------------------------------------------------------------------------------


def named(error: Exception, *, model: str, url: str, secret: str = "") -> BlackboxError:
    """The error of `errors` for one of openai-python or httpx2; the caller raises it from the original.

    model, url: what was asked, for the sentence. secret: the API key, taken out of whatever the server said, in the
    original too, because a traceback prints that as well.
    """
    _take_out(error, secret)
    if isinstance(error, (openai.APITimeoutError, httpx2.TimeoutException)):
        return ConnectionFailed(
            f"{url} did not answer in time", hint="Try again, give a longer timeout=…, or ask for fewer tokens at once."
        )
    if isinstance(error, openai.APIStatusError):
        return _named_status(error, model, url)
    if isinstance(error, (openai.APIResponseValidationError, openai.LengthFinishReasonError)):
        return BadResponse(f"{url} answered something unexpected: {_cut(str(error))}", hint="Check base_url.")
    if isinstance(error, (openai.APIConnectionError, httpx2.HTTPError, httpx2.InvalidURL)):
        reason = str(error.__cause__ or "") or str(error) or type(error).__name__
        return ConnectionFailed(
            f"no connection to {url}: {_cut(reason)}", hint="Check base_url, that the server runs, and the network."
        )
    if type(error) is openai.APIError:
        return _named_event(error, url)
    return BaseError(f"the request to {url} failed: {_cut(str(error))}", hint="The cause is attached (__cause__).")


def _named_status(error: openai.APIStatusError, model: str, url: str) -> BlackboxError:
    status, said = error.status_code, _said(error)
    marks = " ".join(str(mark) for mark in (error.code, error.type, said)).lower()
    known: dict[str, Any] = {"status": status, "request_id": error.request_id}
    if status in (400, 413, 422) and any(mark in marks for mark in _TOO_LONG):
        return ContextTooLong(
            f"the text does not fit the window of {model}: {said}", hint="Shorten the prompt or lower max_tokens."
        )
    if status == 402 or (status in (403, 429) and any(mark in marks for mark in _NO_MONEY)):
        return QuotaExhausted(
            f"the account at {url} has no money left: {said}", hint="Add credit, or use another key.", **known
        )
    if status in (401, 403):
        return AccessDenied(f"{url} refuses access ({status}): {said}", hint=_KEY_HINT, **known)
    if status == 404:
        return ModelNotFound(
            f"{url} does not know the model {model!r}, or is not such an API (404): {said}",
            hint="Check the model's name, and base_url: it usually ends in /v1. Chat models have no completions API; "
            'for them use api="chat".',
            **known,
        )
    if status == 408:
        return ConnectionFailed(f"{url} gave up waiting (408): {said}", hint="Try again.", **known)
    if status == 429:
        return RateLimited(f"too many requests to {url}: {said}", hint="Wait, or ask for less at once.", **known)
    if status >= 500:
        return ServerFailed(f"{url} failed ({status}): {said}", hint="Try again later.", **known)
    if status >= 400:
        return BadRequest(
            f"{url} refuses the request ({status}): {said}",
            hint="Its message names the parameter. Another dialect=… or a smaller top_logprobs=… may be what it takes.",
            **known,
        )
    return BadResponse(f"{url} answered with status {status}: {said}", hint="Check base_url.", **known)


def _named_event(error: openai.APIError, url: str) -> BaseError:
    """The error of an event in a stream that had begun well."""
    body = getattr(error, "body", None)
    code = str(body.get("code") if isinstance(body, Mapping) else None)
    status = int(code) if re.fullmatch("[45][0-9]{2}", code) else None
    if status is not None and status < 500 and status not in (408, 429):
        return BadRequest(
            f"{url} refuses the request ({status}): {_said(error)}", hint="Its message names the reason.", status=status
        )
    return ServerFailed(f"{url} failed while it wrote: {_said(error)}", hint="Try again later.", status=status)


def _said(error: openai.APIError) -> str:
    """The API's own message, in one line."""
    body: Any = getattr(error, "body", None)
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return _cut(str(body or "no message"))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"


def _take_out(error: BaseException, secret: str) -> None:
    """Take the key out of an exception's texts, and out of those it came from."""
    link: BaseException | None = error
    while secret and link is not None:
        link.args = tuple(without_secret(value, secret) for value in link.args)
        for name in ("message", "body"):
            if hasattr(link, name):
                setattr(link, name, without_secret(getattr(link, name), secret))
        link = link.__cause__ or link.__context__


def without_secret(value: Any, secret: str) -> Any:
    """JSON with the key taken out of all its texts."""
    if isinstance(value, str):
        return value.replace(secret, "[api key]")
    if isinstance(value, Mapping):
        return {name: without_secret(inner, secret) for name, inner in value.items()}
    return [without_secret(inner, secret) for inner in value] if isinstance(value, list) else value


def named_limit(refusal: str, asked: int) -> int | None:
    """The largest number of logprobs that a refusal names below what was asked for; None if it is about something else.

    "Expected a value <= 5, but got 20" (OpenAI), "logprobs of 20, which is greater than max allowed: 5" (vLLM).
    """
    if "logprobs" not in refusal:
        return None
    about = refusal.partition("logprobs")[2]
    return max((int(n) for n in re.findall(r"(?<![\w.])\d+(?![\w.]*\d)", about) if 0 < int(n) < asked), default=None)


def refuses_streams(refusal: BadRequest) -> bool:
    """Whether a refusal is about asking for a stream, or for its usage."""
    cause = refusal.__cause__
    return isinstance(cause, openai.APIError) and "stream" in f"{cause.param or ''} {_said(cause)}".lower()
