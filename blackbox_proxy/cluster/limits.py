"""One rate limit for many processes: `Window` grants, a `SharedLimiter` in each process asks it.

In any window of `span` seconds no more is sent than the limit. A grant counts from when it is given until a window
after the last moment at which it can reach the API: it holds for `valid` seconds, and a request is on its way for
`margin`. So span / (span + valid + margin) of the limit can be used, 97.6 % as it stands.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from blackbox_proxy.transport.limits import Place, tell_turn, told_limits

SPAN, VALID, MARGIN = 60.0, 1.0, 0.5  # seconds
_TOGETHER = 64  # requests that are asked for at once
_SHARE = 20  # the part of a limit that one process gets at once
_LEARN_SECONDS = 1.0


class Asks(Protocol):
    """The way to the process that grants."""

    async def ask(self, name: str, *arguments: Any) -> Any:
        """What its method of this name answers."""
        ...

    def tell(self, name: str, *arguments: Any) -> None:
        """The same, without waiting for it. What is told and asked arrives in this order."""
        ...


class Grant(NamedTuple):
    """The first `first` requests may go, under this number; the next one after `wait` seconds. None of it holds once
    `valid` seconds have passed since it was asked for.
    """

    number: int
    first: int
    wait: float
    valid: float


@dataclass(slots=True)
class _Given:
    ends: float
    requests: int
    tokens: float


class Window:
    """What is granted, by what was granted within the last window. limits: requests_per_minute, tokens_per_minute (a
    minute is a `span`); None where there is none, as long as no answer names one. note: is told, before it is granted,
    what `restore` must know after a restart.
    """

    def __init__(
        self,
        limits: Mapping[str, float | None],
        *,
        span: float = SPAN,
        valid: float = VALID,
        margin: float = MARGIN,
        now: Callable[[], float] = time.time,
        note: Callable[[list[Any]], None] = lambda _: None,
    ) -> None:
        self._given = {name: float(limit) for name, limit in limits.items() if limit is not None}
        self.limits = dict(self._given)
        self._span, self._valid, self._margin = span, valid, margin
        self._clock, self._latest = now, 0.0
        self._note = note
        self._grants: dict[int, _Given] = {}  # by number, in the order of their ends
        self._requests, self._tokens = 0, 0.0
        self._number = 0

    def ask(self, needs: Sequence[float]) -> Grant:
        """As many of these requests, in their order, as fit; each needs so many tokens at most."""
        now = self._now()
        self._forget(now)
        most = len(needs)
        if (limit := self.limits.get("requests_per_minute")) is not None:
            most = min(most, max(1, int(limit / _SHARE)))
        count, tokens = 0, 0.0
        while count < most and self._fits(count + 1, tokens + needs[count]):
            tokens += needs[count]
            count += 1
        self._number += 1
        if count:
            ends = now + self._span + self._valid + self._margin
            self._note(["granted", self._number, ends, count, tokens])
            self._enter(self._number, _Given(ends, count, tokens))
        wait = 0.0 if count >= most else self._until(needs[count], now)
        return Grant(self._number, count, wait, self._valid)

    def give_back(self, number: int, requests: int, tokens: float) -> None:
        """Of this grant, so much was not used."""
        given = self._grants.get(number)
        if given is not None:
            requests, tokens = min(requests, given.requests), min(tokens, given.tokens)
            given.requests -= requests
            given.tokens -= tokens
            self._requests -= requests
            self._tokens -= tokens

    def learn(self, told: Mapping[str, tuple[float, float | None]]) -> None:
        """Limits that an answer has named, and what is left of them. Given limits stay as they are. What others have
        used up counts as if it had been granted now.
        """
        now = self._now()
        self._forget(now)
        for name, (limit, left) in told.items():
            if name in self._given:
                continue
            requests = name == "requests_per_minute"
            used = self._requests if requests else self._tokens
            others = 0.0 if left is None else max(0.0, limit - left - used)
            if self.limits.get(name) == limit and others < limit / _SHARE:
                continue
            self._note(["learned", name, limit])
            self.limits[name] = limit
            if others >= 1.0:
                self._number += 1
                ends = now + self._span
                given = _Given(ends, int(others) if requests else 0, 0.0 if requests else others)
                self._note(["granted", self._number, ends, given.requests, given.tokens])
                self._enter(self._number, given)

    def restore(self, events: Iterable[Sequence[Any]]) -> None:
        """What was noted before: nothing that may still be on its way is forgotten."""
        for event in events:
            if event[0] == "granted":
                number, ends, requests, tokens = event[1:]
                self._number = max(self._number, number)
                longest = self._now() + self._span + self._valid + self._margin  # a clock that was set back
                self._enter(number, _Given(min(ends, longest), requests, tokens))
            elif event[0] == "learned" and event[1] not in self._given:
                self.limits[event[1]] = event[2]
        self._forget(self._now())

    def events(self) -> list[list[Any]]:
        """What is still worth restoring."""
        self._forget(self._now())
        learned: list[list[Any]] = [["learned", n, value] for n, value in self.limits.items() if n not in self._given]
        return learned + [["granted", n, g.ends, g.requests, g.tokens] for n, g in self._grants.items()]

    # -- counting -----------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        self._latest = max(self._latest, self._clock())
        return self._latest

    def _enter(self, number: int, given: _Given) -> None:
        self._grants[number] = given
        self._requests += given.requests
        self._tokens += given.tokens

    def _forget(self, now: float) -> None:
        for number, given in list(self._grants.items()):
            if given.ends <= now:
                self._requests -= given.requests
                self._tokens -= given.tokens
                del self._grants[number]
        if not self._grants:
            self._tokens = 0.0  # without what rounding has left

    def _fits(self, requests: int, tokens: float) -> bool:
        """A request that alone is more than a window's tokens goes when nothing else does."""
        a, b = self.limits.get("requests_per_minute"), self.limits.get("tokens_per_minute")
        if a is not None and self._requests + requests > max(1.0, a):
            return False
        return b is None or self._tokens + tokens <= b or (self._tokens == 0.0 and requests == 1)

    def _until(self, tokens: float, now: float) -> float:
        """Seconds until one request of so many tokens fits, if nothing is granted or given back before."""
        requests, used = self._requests, self._tokens
        try:
            for given in self._grants.values():
                self._requests -= given.requests
                self._tokens = max(0.0, self._tokens - given.tokens)
                if self._fits(1, tokens):
                    return max(0.0, given.ends - now)
            return 0.0
        finally:
            self._requests, self._tokens = requests, used


@dataclass(eq=False)
class _Ticket:
    tokens: int
    turn: asyncio.Future[int]


class SharedLimiter:
    """The limiter of one process (see `transport.limits.Admits`), for one event loop: what waits here is asked for
    together, and goes in its order.
    """

    def __init__(
        self,
        desk: Asks,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._desk = desk
        self._now, self._sleep = now, sleep
        self._waiting: deque[_Ticket] = deque()
        self._asking: asyncio.Task[None] | None = None
        self._told: dict[str, float] = {}
        self._told_at = -_LEARN_SECONDS

    @asynccontextmanager
    async def request(self, tokens: int) -> AsyncIterator[Callable[[int], None]]:
        """As `Limiter.request`."""
        ticket = _Ticket(tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(ticket)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        try:
            number = await ticket.turn
        except asyncio.CancelledError:
            if ticket.turn.done() and not ticket.turn.cancelled() and ticket.turn.exception() is None:
                self._desk.tell("give_back", ticket.turn.result(), 1, tokens)
            raise
        tell_turn()
        place = Place(tokens)
        try:
            yield place.used
        finally:
            if place.unused:
                self._desk.tell("give_back", number, 0, place.unused)

    def learn(self, headers: Mapping[str, str]) -> None:
        """As `Limiter.learn`, and at most once a second where nothing is new."""
        told = told_limits(headers)
        limits = {name: limit for name, (limit, _) in told.items()}
        if limits and (limits != self._told or self._now() - self._told_at >= _LEARN_SECONDS):
            self._told, self._told_at = limits, self._now()
            self._desk.tell("learn", told)

    async def _ask(self) -> None:
        """Ask until nobody waits. An error is that of all who wait."""
        try:
            while waiting := self._live():
                asked, needs = self._now(), [ticket.tokens for ticket in waiting[:_TOGETHER]]
                number, count, wait, valid = await self._desk.ask("grant", needs)
                late = self._now() - asked > valid
                for ticket in waiting[:count]:
                    if late or ticket.turn.done():
                        self._desk.tell("give_back", number, 1, ticket.tokens)
                    else:
                        self._waiting.remove(ticket)
                        ticket.turn.set_result(number)
                if wait > 0.0 and not late and self._live():
                    await self._sleep(wait)
        except Exception as error:
            for ticket in self._live():
                ticket.turn.set_exception(error)
            self._waiting.clear()

    def _live(self) -> list[_Ticket]:
        """Those who still wait; who was cancelled is gone."""
        while self._waiting and self._waiting[0].turn.done():
            self._waiting.popleft()
        return [ticket for ticket in self._waiting if not ticket.turn.done()]
