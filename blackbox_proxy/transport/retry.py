"""What waiting cures: a call repeated while its error is retryable, as long as the server asks.

Only the request and the arrival of its answer belong inside `with_retries`: what an answer means is read outside
(api/streaming.py), because a parser that fails in there would buy the same tokens again.

Each retry is one line of this module's logger (INFO): attempt, kind of error, wait. Never the error's own words, which
are the server's and may repeat the prompt.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential
from tenacity.wait import wait_base

from blackbox_proxy.errors import BlackboxError, ConnectionFailed
from blackbox_proxy.transport.limits import at_turn

LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more is asked again after this."""

JITTER = 0.1
"""Of a wait that the server asked for; so much longer at most, so that not all who wait come back at once."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Sleep = Callable[[float], Awaitable[None]]


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
