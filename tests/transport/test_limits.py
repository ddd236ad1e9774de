"""Rates, places and turns: on a clock of its own, so that minutes take no time."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from api_answers import legacy
from api_server import Asking
from starlette.responses import JSONResponse

from blackbox_proxy.errors import InputError
from blackbox_proxy.protocols import Ask
from blackbox_proxy.transport.limits import Limiter
from blackbox_proxy.types import Prefix


class Clock:
    """Time that passes only while somebody sleeps on it."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


def limiter(clock: Clock, **limits: float) -> Limiter:
    return Limiter(**limits, now=clock.now, sleep=clock.sleep)  # type: ignore[arg-type]


async def ask(limits: Limiter, tokens: int = 1, used: int | None = None) -> None:
    async with limits.request(tokens) as settle:
        if used is not None:
            settle(used)


async def test_a_minutes_requests_go_at_once_and_the_rest_at_the_rate() -> None:
    clock = Clock()
    limits = limiter(clock, requests_per_minute=60)
    for _ in range(60):
        await ask(limits)
    assert clock.time == 1000.0
    for _ in range(30):
        await ask(limits)
    assert clock.time == pytest.approx(1030.0)


async def test_tokens_are_counted_and_what_was_not_used_is_given_back() -> None:
    clock = Clock()
    limits = limiter(clock, tokens_per_minute=600)
    await ask(limits, 600, used=100)
    await ask(limits, 500)
    assert clock.time == 1000.0
    await ask(limits, 100)
    assert clock.time == pytest.approx(1010.0)
    await ask(limits, 5000)  # more than a minute's worth: waits for a full minute, no longer
    assert clock.time <= 1071.0


async def test_first_come_first_served_with_few_places() -> None:
    limits = Limiter(max_concurrency=2)
    order: list[int] = []
    most = running = 0

    async def one(i: int) -> None:
        nonlocal most, running
        async with limits.request(1):
            running += 1
            most = max(most, running)
            order.append(i)
            await asyncio.sleep(0.001)
            running -= 1

    await asyncio.gather(*(one(i) for i in range(20)))
    assert order == list(range(20))
    assert most == 2


async def test_a_waiting_request_can_be_cancelled() -> None:
    limits = Limiter(max_concurrency=1)
    async with limits.request(1):
        waiting = [asyncio.create_task(ask(limits)) for _ in range(3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        await asyncio.sleep(0)
    done, pending = await asyncio.wait(waiting, timeout=5)
    assert not pending
    assert [task.cancelled() for task in waiting] == [True, False, False]
    assert len(done) == 3


async def test_limits_are_learned_from_headers_and_given_ones_stay() -> None:
    clock = Clock()
    limits = limiter(clock, tokens_per_minute=1000)
    headers = {
        "x-ratelimit-limit-requests": "120",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-limit-tokens": "5",
    }
    limits.learn(headers)
    assert limits.limits == {"tokens_per_minute": 1000.0, "requests_per_minute": 120.0}
    await ask(limits)
    assert clock.time == pytest.approx(1000.5)
    limits.learn({"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "-3"})
    assert limits.limits["requests_per_minute"] == 120.0


def test_one_limiter_serves_several_loops() -> None:
    limits, seen = Limiter(max_concurrency=1), []

    def work(name: int) -> None:
        async def several() -> None:
            for _ in range(20):
                async with limits.request(1):
                    seen.append(name)
                    await asyncio.sleep(0)

        asyncio.run(several())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(seen) == sorted(list(range(4)) * 20)


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "max_concurrency"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(InputError) as caught:
        Limiter(**{name: 0})  # type: ignore[arg-type]
    assert caught.value.hint


async def test_a_base_obeys_given_limits_and_learns_from_answers(asking: Asking) -> None:
    """Real requests: one at a time, and the headers of an answer become limits."""
    running = most = 0

    async def answer(_: dict[str, Any]) -> JSONResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return JSONResponse(
            legacy((" the", -0.1, {" the": -0.1}), text=" the"), headers={"x-ratelimit-limit-tokens": "90000"}
        )

    asking.server.answers = [answer]
    limits = Limiter(max_concurrency=1)
    base = asking(limiter=limits)
    await asyncio.gather(*(base.draft(Ask(Prefix("Hi"), 1)) for _ in range(4)))
    assert (most, len(asking.server.sent)) == (1, 4)
    assert limits.limits == {"tokens_per_minute": 90000.0}
    await base.aclose()
