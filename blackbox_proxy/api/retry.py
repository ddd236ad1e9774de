"""What can go wrong on the way to the API, and what waiting cures.

`translated` turns every exception of openai-python and httpx2 into the one of `errors` that says what to do,
`error_in_body` an error that came inside a 200, `truncated` a body that did not arrive whole (`decode_body` finds
both); `with_retries` repeats a call while its error is retryable, waiting as long as the server asks. Only the request
and the arrival of its answer belong inside: what an answer means is read outside (streaming.py), because a parser that
fails in there would buy the same tokens again.

Each retry is one line of this module's logger (INFO): attempt, kind of error, wait. Never the error's own words, which
are the server's and may repeat the prompt.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential
from tenacity.wait import wait_base

from blackbox_proxy.api.limits import at_turn
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

JITTER = 0.1
"""Of a wait that the server asked for; so much longer at most, so that not all who wait come back at once."""

_log = logging.getLogger(__name__)
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
    call: Callable[[], Awaitable[_T]],
    *,
    max_attempts: int,
    max_seconds: float = 600.0,
    sleep: _Sleep = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[_T, int]:
    """The result of `call` and how many attempts failed before it.

    Repeats only after a `BlackboxError` whose `retryable` is true, at most `max_attempts` times in all; then raises the
    last error. `max_seconds` after the first request got its turn (limits.py) no attempt is begun, and one that has not
    brought its result by then is given up, however steadily its answer drips in. Waits as long as the failed answer
    asks (`asked_wait`) and up to a tenth longer, else a random time that grows to 30 s. `clock`: seconds.
    """
    start, waited = clock(), False

    async def bounded() -> _T:
        try:
            async with asyncio.timeout(None) as limit:

                def begin() -> None:
                    nonlocal start, waited
                    if not waited:
                        start, waited = clock(), True
                    limit.reschedule(asyncio.get_running_loop().time() + start + max_seconds - clock())

                with at_turn(begin):
                    return await call()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ConnectionFailed(
                f"no whole answer within {max_seconds:g} s, retries included",
                hint="Try again, ask for fewer tokens at once, or allow more (max_retry_seconds).",
            ) from error

    def enough(state: RetryCallState) -> bool:
        return state.attempt_number >= max_attempts or clock() - start + state.upcoming_sleep > max_seconds

    def note(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.info(
            "attempt %d of %d failed (%s), the next in %.2f s",
            state.attempt_number,
            max_attempts,
            _kind(error),
            state.upcoming_sleep,
        )

    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, BlackboxError) and error.retryable),
        stop=enough,
        wait=_AsAsked(),
        before_sleep=note,
        sleep=sleep,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await bounded(), attempt.retry_state.attempt_number - 1
    raise AssertionError("tenacity ends by returning or raising")


def note_break(error: BaseException, positions: int) -> None:
    """Logs a stream that broke and is continued by another request, from the `positions` that it had written."""
    _log.info("a stream broke after %d positions (%s), the next goes on from there", positions, _kind(error))


def _kind(error: BaseException | None) -> str:
    status = getattr(error, "status", None)
    return type(error).__name__ + (f" {status}" if status else "")


class _AsAsked(wait_base):
    """As long as the failed answer's headers ask, and a little more; a random, growing time where they do not, or ask
    for no time at all: a date that has passed cured nothing.
    """

    otherwise = wait_random_exponential(multiplier=0.5, max=30.0)

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        response = getattr(error.__cause__, "response", None) if error else None
        asked = None if response is None else asked_wait(response.status_code, response.headers)
        return asked * random.uniform(1.0, 1.0 + JITTER) if asked else self.otherwise(retry_state)


def asked_wait(status: int, headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds to wait by `retry_after`, after a 429 also by `limits_reset`; None where nothing is said."""
    seconds = retry_after(headers, now=now)
    return limits_reset(headers) if seconds is None and status == 429 else seconds


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or an HTTP date); None where neither says.

    A date is compared with the server's own `Date`, so that this machine's clock may be wrong; without one with `now`,
    seconds since the epoch, by default this machine's. `headers` must look names up regardless of case, or hold them in
    lower case.
    """
    seconds = _number(headers.get("retry-after-ms"), 0.001)
    text = headers.get("retry-after")
    if seconds is None:
        seconds = _number(text, 1.0)
    if seconds is None and (until := _date(text)) is not None:
        sent = _date(headers.get("date"))
        seconds = until - (sent if sent is not None else time.time() if now is None else now)
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_WAIT)


def limits_reset(headers: Mapping[str, str]) -> float | None:
    """Seconds until the rate limits that `x-ratelimit-…-requests` and `-tokens` tell of are open again.

    The longer of those that are used up (nothing remaining), of both if that is said of neither; None without a
    duration.
    """
    waits: list[float] = []
    used_up: list[float] = []
    for what in ("requests", "tokens"):
        seconds = duration(headers.get(f"x-ratelimit-reset-{what}"))
        if seconds is not None:
            waits.append(seconds)
            if _number(headers.get(f"x-ratelimit-remaining-{what}"), 1.0) == 0:
                used_up.append(seconds)
    return min(max(used_up or waits), LONGEST_WAIT) if waits else None


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)"


def duration(text: str | None) -> float | None:
    """Seconds of a duration as rate limits are told: "6m0s", "1s", "20ms", or a bare number of seconds; else None."""
    text = (text or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(f"({_PART})+", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))


def _date(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def _number(text: str | None, unit: float) -> float | None:
    try:
        value = float(text or "") * unit
    except ValueError:
        return None
    return value if value == value else None  # NaN


# -- naming -----------------------------------------------------------------------------------------------------------


def translated(error: Exception, *, model: str, url: str, secret: str = "") -> BlackboxError:
    """The error of `errors` for one of openai-python or httpx2; the caller raises it from the original.

    model, url: what was asked, for the sentence. secret: the API key, taken out of whatever the server said, in the
    original too, because a traceback prints that as well.
    """
    take_out(error, secret)
    if isinstance(error, (openai.APITimeoutError, httpx2.TimeoutException)):
        return ConnectionFailed(
            f"{url} did not answer in time", hint="Try again, give a longer timeout=…, or ask for fewer tokens at once."
        )
    if isinstance(error, openai.APIStatusError):
        found = _named_status(error, model, url)
        said = _should_retry(error)
        if said is not None:
            found.retryable = said
        return found
    if isinstance(error, (openai.APIResponseValidationError, openai.LengthFinishReasonError)):
        return BadResponse(f"{url} answered something unexpected: {_cut(str(error))}", hint="Check base_url.")
    if isinstance(error, (openai.APIConnectionError, httpx2.HTTPError, httpx2.InvalidURL)):
        reason = str(error.__cause__ or "") or str(error) or type(error).__name__
        return ConnectionFailed(
            f"no connection to {url}: {_cut(reason)}", hint="Check base_url, that the server runs, and the network."
        )
    if type(error) is openai.APIError:
        return error_in_body(getattr(error, "body", None), url)
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
    if status == 409:
        return ServerFailed(f"{url} could not take the request just now (409): {said}", hint="Try again.", **known)
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


def _should_retry(error: openai.APIStatusError) -> bool | None:
    """What the server says itself about trying again; None where it says nothing."""
    response = getattr(error, "response", None)
    said = response.headers.get("x-should-retry", "").strip().lower() if response is not None else ""
    return {"true": True, "false": False}.get(said)


def error_in_body(error: object, url: str) -> BaseError:
    """For the `error` of an event in a stream that had begun well, or of a whole answer with status 200."""
    fields = error if isinstance(error, Mapping) else {}
    said, code = _words(error), str(fields.get("code"))
    marks = " ".join((code, str(fields.get("type")), said)).lower()
    status = int(code) if re.fullmatch("[45][0-9]{2}", code) else None
    if any(mark in marks for mark in _NO_MONEY):
        return QuotaExhausted(
            f"the account at {url} has no money left: {said}", hint="Add credit, or use another key.", status=status
        )
    if status == 429:
        return RateLimited(f"too many requests to {url}: {said}", hint="Wait, or ask for less at once.", status=status)
    if status is not None and status < 500 and status not in (408, 409):
        return BadRequest(
            f"{url} refuses the request ({status}): {said}", hint="Its message names the reason.", status=status
        )
    return ServerFailed(f"{url} failed while it wrote: {said}", hint="Try again later.", status=status)


def decode_body(content: bytes, url: str) -> object:
    """The JSON of a body. Raises what can be asked for again: BadResponse where it is no JSON (a gateway's page, a body
    cut short), and what `error_in_body` makes of an `error` in it.
    """
    try:
        body: object = json.loads(content)
    except (ValueError, RecursionError):
        shown = " ".join(content[:400].decode("utf-8", "replace").split())[:80]
        raise truncated(
            f"the API answered with something that is not a completion: {shown!r}",
            hint="A page instead of JSON usually comes from a proxy or gateway. Check base_url, usually ending in /v1.",
        ) from None
    if isinstance(body, Mapping) and body.get("error"):
        raise error_in_body(body["error"], url)
    return body


def truncated(what: str, hint: str) -> BadResponse:
    """For a 200 whose body is not the one that was sent: asking again is the only way to get the answer."""
    error = BadResponse(what, hint=hint)
    error.retryable = True
    return error


def _said(error: openai.APIError) -> str:
    """The API's own message, in one line."""
    return _words(getattr(error, "body", None))


def _words(body: Any) -> str:
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return _cut(str(body or "no message"))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"


def take_out(error: BaseException, secret: str) -> None:
    """Take the key out of an exception's texts, and out of those it came from."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while secret and left:
        link = left.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.args = tuple(without_secret(value, secret) for value in link.args)
        for name in ("message", "body", "doc", "object"):  # the last two hold what could not be read
            if hasattr(link, name):
                setattr(link, name, without_secret(getattr(link, name), secret))
        left += [link.__cause__, link.__context__]


def without_secret(value: Any, secret: str) -> Any:
    """JSON, or bytes, with the key taken out of all its texts."""
    if isinstance(value, str):
        return value.replace(secret, "[api key]")
    if isinstance(value, bytes):
        return value.replace(secret.encode(), b"[api key]")
    if isinstance(value, Mapping):
        return {without_secret(name, secret): without_secret(inner, secret) for name, inner in value.items()}
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
