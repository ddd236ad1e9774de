"""One limit and one budget for many processes: nothing above them in any window, through restarts, hardly less."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blackbox_proxy.base.budget import Budget
from blackbox_proxy.cluster.budget import Ledger, SharedBudget
from blackbox_proxy.cluster.checkpoint import Checkpoint
from blackbox_proxy.cluster.desk import Desk, Terms
from blackbox_proxy.cluster.limits import SharedLimiter, Window
from blackbox_proxy.errors import BudgetReached
from blackbox_proxy.transport.limits import at_turn
from blackbox_proxy.types import Usage


class World:
    """Time that passes when all sleep: events in order, as many processes as there are."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        until = self.time + seconds
        while self.time < until:
            await asyncio.sleep(0)
            self.time += min(0.01, until - self.time)


class Near:
    """A desk in this process. `delay`: what an answer takes."""

    def __init__(self, desk: Any, delay: Callable[[], Any] | None = None) -> None:
        self.desk = desk
        self.delay = delay
        self.asked = 0

    async def ask(self, name: str, *arguments: Any) -> Any:
        self.asked += 1
        answer = getattr(self.desk, name)(*arguments)
        if self.delay is not None:
            await self.delay()
        await asyncio.sleep(0)
        return answer

    def tell(self, name: str, *arguments: Any) -> None:
        getattr(self.desk, name)(*arguments)


class Door:
    """A `Window` by the names that a desk has."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.give_back = window.give_back
        self.learn = window.learn

    def grant(self, needs: list[float]) -> Any:
        return self.window.ask(needs)


def most_in_a_window(times: list[float], span: float) -> int:
    first, most = 0, 0
    for last, time in enumerate(times):
        while times[first] <= time - span:
            first += 1
        most = max(most, last - first + 1)
    return most


async def test_four_processes_stay_below_the_limit_and_use_nine_tenths_of_it() -> None:
    world = World()
    window = Window({"requests_per_minute": 40}, span=6.0, valid=0.1, margin=0.05, now=world.now)
    sent: list[float] = []

    async def process(seed: int) -> None:
        rng = random.Random(seed)

        async def delay() -> None:
            await world.sleep(rng.uniform(0.0, 0.05))

        limits = SharedLimiter(Near(Door(window), delay), now=world.now, sleep=world.sleep)

        async def one() -> None:
            async with limits.request(1):
                await world.sleep(rng.uniform(0.0, 0.05))  # on its way
                sent.append(world.time)

        await asyncio.gather(*(one() for _ in range(50)))

    begun = world.time
    await asyncio.gather(*(process(i) for i in range(4)))
    assert len(sent) == 200
    assert most_in_a_window(sorted(sent), 6.0) <= 40
    ideal = (200 / 40 - 1) * 6.0  # a window's worth at once, and then one a window
    assert ideal / (max(sent) - begun) >= 0.9


async def test_a_late_answer_is_given_back_and_asked_for_again() -> None:
    world = World()
    window = Window({"requests_per_minute": 1}, span=10.0, valid=0.5, margin=0.1, now=world.now)
    slow = iter([2.0, 0.0])

    async def delay() -> None:
        await world.sleep(next(slow, 0.0))

    near = Near(Door(window), delay)
    limits = SharedLimiter(near, now=world.now, sleep=world.sleep)
    turns: list[float] = []
    with at_turn(lambda: turns.append(world.time)):
        async with limits.request(1):
            pass
    assert near.asked == 2
    assert turns[0] == pytest.approx(1002.0, abs=0.1)  # the first grant was never used, so it does not count


async def test_tokens_are_counted_given_back_and_one_larger_than_the_limit_goes_alone() -> None:
    world = World()
    window = Window({"tokens_per_minute": 100}, span=60.0, now=world.now)
    limits = SharedLimiter(Near(Door(window)), now=world.now, sleep=world.sleep)
    async with limits.request(90) as used:
        used(10)
    async with limits.request(90) as used:
        used(90)
    assert world.time == 1000.0
    assert window.ask([50]).first == 0
    world.time += 62.0
    assert window.ask([500, 1]).first == 1
    assert window.ask([1]).first == 0


async def test_who_is_cancelled_takes_nothing() -> None:
    world = World()
    window = Window({"requests_per_minute": 1}, now=world.now)
    limits = SharedLimiter(Near(Door(window)), now=world.now, sleep=world.sleep)

    async def one() -> float:
        async with limits.request(1):
            return world.time

    first = await one()
    waiting = [asyncio.create_task(one()) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    waiting[1].cancel()
    assert first == 1000.0
    assert await waiting[2] == pytest.approx(1061.5, abs=0.1)


async def test_an_error_of_the_desk_is_that_of_all_who_wait() -> None:
    class Broken:
        async def ask(self, name: str, *arguments: Any) -> Any:
            raise ConnectionError("gone")

        def tell(self, name: str, *arguments: Any) -> None: ...

    limits = SharedLimiter(Broken())

    async def one() -> None:
        async with limits.request(1):
            pass

    found = await asyncio.gather(one(), one(), return_exceptions=True)
    assert [type(each) for each in found] == [ConnectionError, ConnectionError]


async def test_limits_are_learned_from_any_process_and_given_ones_stay() -> None:
    world = World()
    window = Window({"tokens_per_minute": 1000, "requests_per_minute": None}, now=world.now)
    first, second = (SharedLimiter(Near(Door(window)), now=world.now) for _ in range(2))
    assert window.ask([1] * 500).first == 500  # no limit is known
    world.time += 62.0
    headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "20"}
    first.learn(headers | {"x-ratelimit-limit-tokens": "5"})
    second.learn(headers)
    assert window.limits == {"tokens_per_minute": 1000.0, "requests_per_minute": 60.0}
    granted = 0
    while first_few := window.ask([1] * 60).first:
        assert first_few <= 3  # a twentieth at once
        granted += first_few
    assert granted == 20  # others have used up 40


def test_a_desk_that_is_killed_forgets_nothing_it_has_granted(tmp_path: Path) -> None:
    terms = Terms({"requests_per_minute": 20}, {"max_calls": 3})

    desks: list[Desk] = []

    def begun(run: str = "a") -> Desk:
        desks.append(Desk(tmp_path, run, terms))
        return desks[-1]

    for granted in range(20):
        assert begun().grant([1, 1]).first == 1, granted  # a new process for each
    desk = begun()
    assert desk.grant([1]).first == 0
    assert 50 < desk.grant([1]).wait <= 61.5
    assert begun("the next run").grant([1]).first == 0
    assert desk.allow("one", 5, 10) == (10, "", "")
    desk = begun()
    assert desk.allow("one", 5, 10) == (10, "", "")  # asked again after the kill: the same reservation
    desk.settle("one", Usage(1, 5, 2))
    desk.allow("two", 5, 10)  # its worker is killed
    desk = begun()
    assert desk.allow("three", 5, 10)[0] == 10
    desk = begun()
    granted_more, reached, hint = desk.allow("four", 5, 10)
    assert granted_more is None
    assert "3 calls" in reached
    assert hint
    (tmp_path / "limits").write_bytes((tmp_path / "limits").read_bytes() + b'["gran')  # torn: nobody has heard of it
    assert begun().grant([1]).first == 0
    for each in desks:  # only now: none of them had the time to
        each.close()


def test_a_checkpoint_written_anew_says_the_same(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "kept")
    now = [1000.0]
    window = Window({"requests_per_minute": 10}, note=kept.note, now=lambda: now[0])
    ledger = Ledger(Budget(max_calls=5), kept.note)
    for i in range(4):
        window.ask([1])
        ledger.allow(str(i), 3, 4)
    ledger.settle("0", Usage(2, 3, 4))
    kept.rewrite(window.events() + ledger.events())
    kept.note(["settled", "1", 1, 3, 1, 0, 0, 0])
    old = Checkpoint(tmp_path / "kept").old
    again, other = Window({"requests_per_minute": 10}, now=lambda: now[0]), Ledger(Budget(max_calls=5))
    again.restore(old)
    other.restore(old)
    given = 0
    while again.ask([1] * 10).first:
        given += 1
    assert given == 6
    assert other.budget.usage == Usage(3, 6, 5)
    with pytest.raises(BudgetReached):
        other.allow("x", 1, 1)
    other.settle("2", Usage())
    assert other.allow("x", 1, 1) == 1


def test_a_clock_that_goes_back_grants_no_more() -> None:
    now = [1000.0]
    window = Window({"requests_per_minute": 1}, now=lambda: now[0])
    assert window.ask([1]).first == 1
    now[0] = 10.0
    assert window.ask([1]).first == 0
    restored = Window({"requests_per_minute": 1}, now=lambda: now[0])
    restored.restore([["granted", 1, 1061.5, 1, 1.0]])
    assert restored.ask([1]).wait <= 61.5


async def test_many_processes_spend_no_more_than_the_budget() -> None:
    budget = Budget(max_tokens_billed=200)
    ledger = Ledger(budget)

    class Till:
        def allow(self, name: str, prompt: int, n: int) -> tuple[int | None, str, str]:
            try:
                return ledger.allow(name, prompt, n), "", ""
            except BudgetReached as error:
                return None, str(error), error.hint

        settle = staticmethod(ledger.settle)

    near = Near(Till())
    spent = reached = 0

    async def process(name: str) -> None:
        nonlocal spent, reached
        shared = SharedBudget(near, name)
        for _ in range(20):
            try:
                granted = await shared.allow(3, 8)
            except BudgetReached as error:
                reached += bool(error.hint)
                continue
            await asyncio.sleep(0)
            shared.settle(3, granted, Usage(1, 3, min(granted, 5)))
            spent += 3 + min(granted, 5)

    await asyncio.gather(*(process(str(i)) for i in range(4)))
    assert reached > 0
    assert spent == budget.usage.prompt_tokens + budget.usage.completion_tokens
    assert 190 <= spent <= 200
