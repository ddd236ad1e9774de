"""The loop: ask the base for a draft, let the pair score it, take what agrees, issue back, repeat.

An async generator of `Step`. Knows the two protocols only: no HTTP, no torch. While a draft streams in, what has
arrived is scored in one pass and taken; at the first token that p replaces the stream is closed and the next request
continues from there. So there are as many requests as disagreements, and the text is the same for every way of asking.

    prefix -> Base.stream -> positions -> Session.score -> rows -> combine -> choice -> Step, prefix grows
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from blackbox_proxy.decoding.arrivals import Arrivals
from blackbox_proxy.decoding.pace import Pace, Plan
from blackbox_proxy.decoding.sessions import opened
from blackbox_proxy.decoding.verify import Scored, Taken, Text, local_draft
from blackbox_proxy.decoding.weigh import Settings
from blackbox_proxy.errors import BadResponse, BlackboxError, ContextTooLong
from blackbox_proxy.maths.sampling import request_seed
from blackbox_proxy.protocols import Ask, Base, Pair, Row, Session
from blackbox_proxy.text.prompts import guessed_tokens
from blackbox_proxy.types import Draft, Position, Prefix, Prompt, Step, Token, Usage


async def decode(
    base: Base, pairs: Sequence[Pair], prompt: Prompt, settings: Settings, pace: Pace
) -> AsyncIterator[Step]:
    """The steps of one text; the last one carries the finish reason. `pace` chooses the requests and learns from them.

    Raises BaseError for what the API does, CannotContinue where no candidate could be issued back. What the window of
    a local model no longer holds ends the text with "length".
    """
    with opened(pairs, prompt, base.vocabulary) as sessions:
        loop = _Loop(base, pairs, sessions, prompt, settings, pace)
        while not loop.text.finished:
            async with aclosing(loop.request()) as steps:
                async for step in steps:
                    yield step


class _Loop:
    """One text on its way: what is known between its requests."""

    def __init__(
        self,
        base: Base,
        pairs: Sequence[Pair],
        sessions: Sequence[Session],
        prompt: Prompt,
        settings: Settings,
        pace: Pace,
    ) -> None:
        self.text = Text(base, pairs, settings, Prefix(prompt), pace.drafting.local and base.abilities.scores)
        self._base = base
        self._sessions = sessions
        self._settings = settings
        self._pace = pace
        self._most: int | None = None  # what the base's window was found to leave, where it is not known
        self._local_failed = False  # the base kept the last local draft and the prefix not apart
        self._length = guessed_tokens(prompt)  # until the API says it
        self._length_at = 0
        self._spent = Usage()

    async def request(self) -> AsyncGenerator[Step, None]:
        """Ask once, and yield the steps that this leads to."""
        text = self.text
        plan, given = await self._plan()
        start = time.monotonic()
        arrivals = self._ask(plan, given)
        waiting: list[Position] = []
        left, arrived, finish, cut = 0, 0, None, False
        try:
            while (part := await arrivals.take()) is not None:
                self._count(part, arrived, len(given))
                waiting += part.positions
                left, arrived = left + part.given, arrived + len(part.positions)
                finish, cut = part.finish, cut or part.cut
                if not waiting:
                    continue
                rows = await asyncio.to_thread(_score, self._sessions, text.prefix.tokens, waiting)
                if rows is None:
                    yield await self._last(arrivals, text.closing("length"))
                    return
                more = not (finish == "stop" or cut) or len(rows) < len(waiting)
                scored = Scored(waiting[: len(rows)], rows, left, more)
                taken = await self._take(scored)
                if not plan.stream and part.usage.api_calls:
                    # Nothing overlaps: what a request takes is the answer and its verification.
                    self._pace.saw_answer(arrived - len(given), time.monotonic() - start)
                for agreement in taken.agreements:
                    self._pace.saw_choice(agreement.base, agreement.local)
                replaced = bool(taken.steps) and not taken.steps[-1].drafted
                done = text.finished or replaced or (len(rows) < len(waiting) and len(taken.steps) == len(rows))
                for step in taken.steps[:-1]:
                    yield self._paid(step)
                if taken.steps:
                    yield await self._last(arrivals, taken.steps[-1]) if done else self._paid(taken.steps[-1])
                if isinstance(taken.error, ContextTooLong):
                    yield await self._last(arrivals, text.closing("length"))
                    return
                if taken.error is not None:
                    raise taken.error
                if done:
                    return
                left = max(0, left - len(taken.steps))
                del waiting[: len(taken.steps)]
                if taken.waits and left:
                    break  # only a draft of the base's own can tell what comes here
        except ContextTooLong:
            if plan.given + plan.n > 1:
                self._most = max(1, (plan.given + plan.n) // 2)
            elif text.prefix.tokens:
                yield await self._last(arrivals, text.closing("length"))  # what there is has been paid for
            else:
                raise
            return
        finally:
            self._spent += await arrivals.close()
        if waiting:
            broke = finish is None and not cut and arrived < len(given) + plan.n
            text.longer(0 if left else len(waiting), broke)
        elif finish == "stop":
            yield self._paid(text.closing("stop", end=True))
        elif arrived == 0:
            if not given:
                raise BadResponse(
                    "the base answered with no token and no end",
                    hint="Raise max_tokens or look at the server's log.",
                )
            self._local_failed = True

    async def _take(self, scored: Scored) -> Taken:
        """What the text takes of a scored draft, asking the base about tokens by name where that decides a choice."""
        whole = Taken([], [])
        while True:
            taken = await asyncio.to_thread(self.text.take, scored)
            whole = whole.then(taken)
            if taken.asks is None:
                return whole
            try:
                told = await self._base.reveal(taken.asks.prefix, taken.asks.tokens)
            except BlackboxError as error:
                return replace(whole, error=error, asks=None)
            self._spent += told.usage
            self.text.learn(taken.asks, told.logprobs)
            scored = scored.after(len(taken.steps))

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _plan(self) -> tuple[Plan, tuple[Token, ...]]:
        """The next request, and the local draft that goes with it."""
        text, pace, abilities = self.text, self._pace, self._base.abilities
        left = text.reach() if self._most is None else min(text.reach(), self._most)
        if text.rescue:
            return Plan(0, left, pace.drafting.stream and abilities.streams), ()
        if self._local_failed:
            abilities, self._local_failed = replace(abilities, scores=False), False
        plan = pace.plan(abilities, left, self._length + len(text.prefix.tokens) - self._length_at)
        if plan.given == 0:
            return plan, ()
        start = time.monotonic()
        issued = text.prefix.tokens
        given = await asyncio.to_thread(_local_draft, self._sessions[0], issued, plan.given, self._settings)
        pace.saw_local(max(len(given), 1), time.monotonic() - start)
        if not given:
            plan = pace.plan(replace(abilities, scores=False), left, self._length)
        return plan, given

    def _ask(self, plan: Plan, given: Sequence[Token]) -> Arrivals:
        """The base's next draft: greedy for a greedy text, else drawn from q itself."""
        place, sampling = len(self.text.prefix.tokens), self._settings.sampling
        greedy = sampling.temperature == 0.0
        ask = self._base.stream if plan.stream else self._whole
        parts = ask(
            Ask(
                self.text.prefix,
                plan.n,
                temperature=0.0 if greedy else 1.0,
                seed=None if greedy else request_seed(sampling.seed, place),
                given=given,
                useful_from=self.text.useful_from,
            )
        )
        start = time.monotonic()

        paid = False

        def saw(part: Draft, count: int) -> None:
            nonlocal paid
            paid = paid or part.usage.api_calls > 0  # a cache's answer says nothing about the API's speed
            if plan.stream and paid and part.positions:
                self._pace.saw_answer(count - len(given), time.monotonic() - start)

        return Arrivals(parts, saw)

    async def _whole(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        yield await self._base.draft(ask)

    # -- what it costs --------------------------------------------------------------------------------------------

    def _count(self, part: Draft, arrived: int, given: int) -> None:
        usage = part.usage
        self._spent += usage
        if arrived == 0 and usage.prompt_tokens > 0:
            self._length = usage.prompt_tokens - given
            self._length_at = len(self.text.prefix.tokens)
            self._pace.saw_prompt(usage.prompt_tokens, usage.cached_prompt_tokens)

    def _paid(self, step: Step) -> Step:
        spent, self._spent = self._spent, Usage()
        return replace(step, usage=spent)

    async def _last(self, arrivals: Arrivals, step: Step) -> Step:
        """The last step of a request: the stream is closed before anybody sees it, and counted."""
        self._spent += await arrivals.close()
        return self._paid(step)


def _local_draft(session: Session, issued: Sequence[Token], count: int, settings: Settings) -> tuple[Token, ...]:
    try:
        return local_draft(session, issued, count, settings)
    except ContextTooLong:
        return ()  # the scoring will say what that means for the text


def _score(
    sessions: Sequence[Session], issued: Sequence[Token], positions: Sequence[Position]
) -> list[list[Row]] | None:
    """Per position the rows of all pairs. Where n positions outgrow a window, the first one alone may still fit; None
    where not even that does.
    """
    for some in (positions, positions[:1]):
        try:
            columns = [session.score(issued, some) for session in sessions]
        except ContextTooLong:
            continue
        return [list(rows) for rows in zip(*columns, strict=False)]
    return None
