"""The loop: ask the base for a draft, let the pair score it, take what agrees, issue back, repeat.

An async generator of `Step`. Knows the two protocols only: no HTTP, no torch. While a draft streams in, what has
arrived is scored in one pass and taken; at the first token that p replaces the stream is closed and the next request
continues from there. So there are as many requests as disagreements, and the text is the same for every way of asking.

    prefix -> Base.stream -> positions -> Session.score -> rows -> Equation -> choice -> Step, prefix grows
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from blackbox_proxy.decoding.arrivals import Arrivals
from blackbox_proxy.decoding.local import local_draft
from blackbox_proxy.decoding.pace import Course, Pace, Plan
from blackbox_proxy.decoding.rows import Scored, Weigher, opened
from blackbox_proxy.decoding.text import Limits, Text
from blackbox_proxy.decoding.threads import Turns
from blackbox_proxy.decoding.verify import Asks, Taken, Told, Verifiable, Verifier
from blackbox_proxy.errors import BadResponse, BlackboxError, ContextTooLong
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.sampling import Sampling, request_seed
from blackbox_proxy.protocols import Ask, Base, Pair, Session
from blackbox_proxy.text.prompts import guessed_tokens
from blackbox_proxy.types import Draft, Position, Prompt, Step, Token, Usage


async def decode(
    base: Base,
    pairs: Sequence[Pair],
    prompt: Prompt,
    equation: Equation,
    limits: Limits,
    sampling: Sampling,
    pace: Pace,
) -> AsyncIterator[Step]:
    """The steps of one text; the last one carries the finish reason. `pace` chooses the requests and learns from them.

    Raises BaseError for what the API does, CannotContinue where no candidate could be issued back. What the window of
    a local model no longer holds ends the text with "length".
    """
    text = Text(base, prompt, limits)
    watch = pace.drafting.local and base.abilities.scores
    verifier = Verifier(base, text, equation, sampling, watch)
    weigher = Weigher(pairs, (equation,), sampling.temperature)
    with opened(pairs, prompt, base.vocabulary) as sessions:
        loop = _Loop(base, sessions, text, verifier, weigher, Course(pace, guessed_tokens(prompt)), sampling)
        try:
            while not text.finished:
                async with aclosing(loop.request()) as steps:
                    async for step in steps:
                        yield step
        finally:
            await loop.turns.idle()


class _Loop:
    """One text on its way: what is known between its requests."""

    def __init__(
        self,
        base: Base,
        sessions: Sequence[Session],
        text: Text,
        verifier: Verifier,
        weigher: Weigher,
        course: Course,
        sampling: Sampling,
    ) -> None:
        self.turns = Turns()  # of the sessions
        self._base = base
        self._sessions = sessions
        self._text = text
        self._verifier = verifier
        self._weigher = weigher
        self._course = course
        self._sampling = sampling
        self._told = Told()
        self._spent = Usage()
        self._begun = False

    async def request(self) -> AsyncGenerator[Step, None]:
        """Ask once, and yield the steps that this leads to: ask, score, take, emit."""
        text, course = self._text, self._course
        plan, local = await self._plan()
        start, first = time.monotonic(), not self._begun
        arrivals = self._ask(plan, local)
        try:
            while (part := await arrivals.more()) is not None:
                self._count(part, arrivals, len(local))
                taken = await self._take(arrivals)
                if not plan.stream and part.usage.api_calls and part.positions:
                    # Nothing overlaps: what a request takes is the answer and its verification.
                    took = time.monotonic() - start
                    course.pace.saw_answer(arrivals.count - len(local), took, len(local), first)
                done = text.finished or bool(taken.steps and not taken.steps[-1].drafted)
                for step in taken.steps[:-1]:
                    yield self._paid(step)
                if taken.steps:
                    yield await self._last(arrivals, taken.steps[-1]) if done else self._paid(taken.steps[-1])
                if taken.error is not None:
                    raise taken.error
                if done:
                    return
                if taken.waits and arrivals.local:
                    break  # only a draft of the base's own can tell what comes here
        except ContextTooLong:
            if not course.must_be_shorter(plan):
                if text.place == 0:
                    raise
                yield await self._last(arrivals, text.close("length"))  # what there is has been paid for
            return
        finally:
            self._spent += await arrivals.close()
        for step in self._ended(arrivals, plan, len(local)):
            yield step

    def _ended(self, arrivals: Arrivals, plan: Plan, local: int) -> list[Step]:
        """What a draft that ended before anything was replaced means: the text's end, or something for the next one."""
        if arrivals.waiting:
            own = 0 if arrivals.local else len(arrivals.waiting)
            self._course.must_be_longer(own, arrivals.broke(local + plan.n))
        elif arrivals.ended and arrivals.finish is not None:
            return [self._paid(self._text.close(arrivals.finish, arrivals.reason))]
        elif arrivals.count == 0:
            if not local:
                if self._text.place == 0:
                    raise BadResponse(
                        "the base answered with no token and no end",
                        hint="Raise max_tokens or look at the server's log.",
                    )
                return [self._paid(self._text.close("other", "an empty answer"))]  # what there is has been paid for
            self._course.without_local()
        return []

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _plan(self) -> tuple[Plan, tuple[Token, ...]]:
        """The next request, and the local draft that goes with it."""
        text, abilities = self._text, self._base.abilities
        room = self._base.room(text.prefix)
        plan = self._course.plan(abilities, text.left, room, text.place)
        if plan.local == 0:
            return plan, ()
        start = time.monotonic()
        count = self._weigher.equations[0].tail_size
        local = await self.turns.run(
            local_draft, self._sessions[0], text.prefix.tokens, plan.local, self._sampling, count
        )
        self._course.pace.saw_local(max(len(local), 1), time.monotonic() - start)
        if not local:
            plan = self._course.plan(replace(abilities, scores=False), text.left, room, text.place)
        return plan, local

    def _ask(self, plan: Plan, local: Sequence[Token]) -> Arrivals:
        """The base's next draft: greedy for a greedy text, else drawn from q itself. The models read the prompt
        meanwhile.
        """
        greedy = self._sampling.temperature == 0.0
        ask = Ask(
            self._text.prefix,
            plan.n,
            temperature=0.0 if greedy else 1.0,
            seed=None if greedy else request_seed(self._sampling.seed, self._text.place),
            given=local,
            useful_from=self._course.useful_from,
        )
        start, paid = time.monotonic(), False

        def saw(part: Draft, count: int) -> None:
            nonlocal paid
            paid = paid or part.usage.api_calls > 0  # a cache's answer says nothing about the API's speed
            if plan.stream and paid and part.positions:
                self._course.pace.saw_answer(count - len(local), time.monotonic() - start)

        arrivals = Arrivals(self._base.stream(ask) if plan.stream else self._whole(ask), saw)
        if not self._begun and not local:
            self.turns.begin(_read, self._sessions)
        self._begun = True
        return arrivals

    async def _whole(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        yield await self._base.draft(ask)

    # -- scoring and taking ---------------------------------------------------------------------------------------

    async def _take(self, arrivals: Arrivals) -> Taken:
        """What the text takes of the positions that wait, up to the first that it replaces."""
        whole, scored = Taken(), list[Scored]()
        while arrivals.waiting and not self._text.finished:
            more, draft, taken = await self.turns.run(self._next, arrivals, scored)
            if not more and not scored:  # a model's window is full
                return whole.then(Taken([self._text.close("length")]))
            scored += more
            taken = await self._told_all(draft, taken)
            whole = whole.then(taken)
            arrivals.took(len(taken.steps))
            del scored[: len(taken.steps)]
            replaced = bool(taken.steps) and not taken.steps[-1].drafted
            stuck = taken.waits and (not more or len(scored) == len(arrivals.waiting))
            if replaced or stuck or taken.error is not None:
                break
        return whole

    def _next(self, arrivals: Arrivals, scored: Sequence[Scored]) -> tuple[list[Scored], Verifiable, Taken]:
        """What more of the positions can be scored yet, all that is scored, and what the text takes of it."""
        more = self._score(arrivals.waiting, len(scored))
        every = [*scored, *more]
        draft = Verifiable(every, arrivals.local, arrivals.goes_on or len(every) < len(arrivals.waiting))
        return more, draft, self._verifier.take(draft, self._course.patient) if every else Taken()

    def _score(self, waiting: Sequence[Position], start: int) -> list[Scored]:
        """Positions from `start` on, scored and weighed. Where they all outgrow a window, the first alone may still
        fit; none where not even that does.
        """
        issued = (*self._text.prefix.tokens, *(position.token for position in waiting[:start]))
        for some in (waiting[start:], waiting[start : start + 1]):
            try:
                scored = self._weigher.score(self._sessions, issued, some)
                if told := self._told.recall(scored, issued):
                    self._weigher.complete(self._sessions, told)
            except ContextTooLong:
                continue
            return scored
        return []

    async def _told_all(self, draft: Verifiable, taken: Taken) -> Taken:
        """What the text takes of a scored draft in the end: the base is asked about tokens by name where that decides a
        choice. taken: as far as that is known without.
        """
        whole = Taken()
        while True:
            whole = whole.then(taken)
            for odds in taken.odds:
                self._course.pace.saw_choice(odds.base, odds.local)
            if taken.steps:
                self._course.moved()
            if taken.asks is None:
                return whole
            try:
                await self._reveal(taken.asks)
            except BlackboxError as error:
                return replace(whole, error=error, asks=None)
            draft = draft.after(len(taken.steps))
            taken = await self.turns.run(self._verifier.take, draft, self._course.patient)

    async def _reveal(self, asks: Asks) -> None:
        answer = await self._base.reveal(asks.prefix, asks.tokens)
        self._spent += answer.usage
        self._told.learn(asks, answer.logprobs)
        await self.turns.run(self._weigher.complete, self._sessions, [asks.scored])

    # -- what it costs --------------------------------------------------------------------------------------------

    def _count(self, part: Draft, arrivals: Arrivals, local: int) -> None:
        self._spent += part.usage
        if arrivals.count == len(part.positions):
            self._course.saw_request(part.usage, local, self._text.place)

    def _paid(self, step: Step) -> Step:
        spent, self._spent = self._spent, Usage()
        return replace(step, usage=spent)

    async def _last(self, arrivals: Arrivals, step: Step) -> Step:
        """The last step of a request: the stream is closed before anybody sees it, and counted."""
        self._spent += await arrivals.close()
        return self._paid(step)


def _read(sessions: Sequence[Session]) -> None:
    for session in sessions:
        session.read(())
