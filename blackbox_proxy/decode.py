"""The loop: ask the base for a draft, let the pair score it, choose, issue back, repeat. An async generator of `Step`.

Knows the two protocols only: no HTTP, no torch. A draft of n positions is accepted while the token chosen from p is
the one that the base drafted; the first that is not replaces it, and the next request continues from there. The
choice at each place depends on the text before it alone, so the text is the same for every n.

    prefix -> Base.draft -> positions -> Session.score -> rows -> combine -> sampling -> Step, prefix grows
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack

import numpy as np

from blackbox_proxy.base.protocol import Base
from blackbox_proxy.errors import BadResponse, CannotContinue, ContextTooLong
from blackbox_proxy.pair.protocol import Pair, Row, Session
from blackbox_proxy.sampling import choose
from blackbox_proxy.types import (
    Candidates,
    Draft,
    FinishReason,
    Position,
    Prefix,
    Prompt,
    Step,
    Token,
    Usage,
)
from blackbox_proxy.vocabulary import is_unfinished, utf8_prefix
from blackbox_proxy.weigh import Settings, Weighed, weigh
from blackbox_proxy.writer import Writer

_LONGEST_RESCUE = 64  # positions asked for at most when a character must be finished inside one draft


async def decode(base: Base, pairs: Sequence[Pair], prompt: Prompt, settings: Settings) -> AsyncIterator[Step]:
    """The steps of one text; the last one carries the finish reason.

    Raises BaseError for what the API does, CannotContinue where no candidate could be issued back. What the window of
    a local model no longer holds ends the text with "length".
    """
    with ExitStack() as stack:
        sessions = []
        for pair in pairs:
            session = pair.open(prompt, base.vocabulary)
            stack.callback(session.close)
            sessions.append(session)
        text = _Text(base, pairs, settings, Prefix(prompt))
        asked = settings.draft
        while True:
            try:
                draft = await text.ask(asked)
            except ContextTooLong:
                if not text.prefix.tokens:
                    raise
                yield text.closing("length")  # what there is of the text has been paid for
                return
            asked = settings.draft
            if not draft.positions:
                if draft.finish != "stop":
                    raise BadResponse(
                        "the base answered with no token and no end",
                        hint="Raise max_tokens or look at the server's log.",
                    )
                yield text.closing("stop", end=True)
                return
            try:
                rows = await asyncio.to_thread(_score, sessions, text.prefix.tokens, draft.positions)
            except ContextTooLong:
                yield text.closing("length")
                return
            view = _View(draft, rows, pairs, settings)
            while view.place < len(rows):
                steps = await asyncio.to_thread(text.take, view)
                if steps is None:  # a character begun here must be finished inside one draft: ask for a longer one
                    asked = text.rescue = max(8, 2 * len(draft.positions))
                    break
                for step in steps:
                    yield step
                if steps[-1].finish_reason is not None:
                    return
                if not steps[-1].drafted:
                    break
            else:
                if draft.finish == "stop" and len(rows) == len(draft.positions):
                    yield text.closing("stop", end=True)
                    return


def _score(sessions: Sequence[Session], issued: Sequence[Token], positions: Sequence[Position]) -> list[list[Row]]:
    """Per position the rows of all pairs. Where n positions outgrow a window, the first one alone may still fit."""
    try:
        columns = [session.score(issued, positions) for session in sessions]
    except ContextTooLong:
        if len(positions) == 1:
            raise
        columns = [session.score(issued, positions[:1]) for session in sessions]
    return [list(rows) for rows in zip(*columns, strict=False)]


class _Text:
    """The text so far: its prefix, what it cost since the last step, and what of it may be shown."""

    def __init__(self, base: Base, pairs: Sequence[Pair], settings: Settings, prefix: Prefix) -> None:
        self.prefix = prefix
        self.rescue = 0
        self._base = base
        self._pairs = pairs
        self._settings = settings
        self._writer = Writer(settings.stop)
        self._spent = Usage()

    async def ask(self, asked: int) -> Draft:
        """The base's next draft: greedy for a greedy text, else drawn from q itself. Near the end of a window, one
        token.
        """
        sampling = self._settings.sampling
        greedy = sampling.temperature == 0.0
        temperature, seed = (0.0, None) if greedy else (1.0, (sampling.seed + len(self.prefix.tokens)) % 2**31)
        reach = self._reach(asked)
        try:
            draft = await self._base.draft(self.prefix, reach, temperature=temperature, seed=seed)
        except ContextTooLong:
            if reach == 1:
                raise
            draft = await self._base.draft(self.prefix, 1, temperature=temperature, seed=seed)
        self._spent += draft.usage
        return draft

    def _reach(self, asked: int) -> int:
        """How many positions to ask for: no more than can be used, but what a rescue needs."""
        left = self._settings.max_tokens - len(self.prefix.tokens)
        room = self._base.room(self.prefix)
        wanted = asked if self.rescue else min(asked, left)
        return max(1, wanted if room is None else min(wanted, room))

    def _usage(self) -> Usage:
        spent, self._spent = self._spent, Usage()
        return spent

    def closing(self, finish: FinishReason, end: bool = False) -> Step:
        """The last step where no position with candidates led to it: the base ended unseen, or a local window is
        full.
        """
        nothing = np.empty(0)
        none = Candidates((), nothing, nothing, nothing, nothing, np.empty(0, dtype=np.bool_), ())
        text = self._writer.close()
        return Step(b"", text, None, none, 0.0, end, False, end, finish, self._usage())

    def take(self, view: _View) -> list[Step] | None:
        """The steps at the place of a view, moved on past them; None if they hang on a longer draft.

        Usually one; several where tokens inside a character can only be issued back together.
        """
        chain = self._chain(view, view.place, self.prefix)
        if chain is None:
            return None
        if not chain:
            raise CannotContinue(
                "none of the candidates at this place can be issued back to the base",
                hint="Give open_base the base's tokenizer: prefixes then travel as token ids. Or raise top_logprobs.",
            )
        self.rescue = 0
        steps = [self._step(view, view.place + i, token) for i, token in enumerate(chain)]
        view.place += len(chain)
        return steps

    def _chain(self, view: _View, j: int, prefix: Prefix) -> list[Token] | None:
        """The tokens chosen from position j on, up to the first from which a request can continue; [] if none can.

        A token that cannot be continued from is only taken where the base drafted it and its draft goes on to a place
        that can; so the choice is the same for every draft length.
        """
        weighed = view.weighed(j, len(prefix.tokens))
        drafted = view.draft.positions[j].token.key
        open_to = weighed.log_p.copy()
        while np.any(np.isfinite(open_to)):
            index = choose(open_to, self._settings.sampling, len(prefix.tokens), weighed.tie)
            token = weighed.tokens[index]
            if token.end:
                return [token]
            if token.bytes is not None:
                longer = prefix.plus(token)
                if len(longer.tokens) >= self._settings.max_tokens or self._base.can_continue(longer):
                    return [token]
                if token.key == drafted and _may_be_finished(longer.generated):
                    rest = self._rest(view, j + 1, longer)
                    if rest is None:
                        return None
                    if rest:
                        return [token, *rest]
            open_to[index] = -np.inf
        return []

    def _rest(self, view: _View, j: int, prefix: Prefix) -> list[Token] | None:
        if j < len(view.rows):
            return self._chain(view, j, prefix)
        may_go_on = view.draft.finish != "stop" and self.rescue < _LONGEST_RESCUE
        return None if may_go_on else []

    def _step(self, view: _View, j: int, token: Token) -> Step:
        weighed = view.weighed(j, len(self.prefix.tokens))
        self.prefix = self.prefix.plus(token)
        spelling = b"" if token.end else token.bytes or b""
        text, stopped = self._writer.write(spelling)
        finish: FinishReason | None = None
        if token.end or stopped:
            finish = "stop"
        elif len(self.prefix.tokens) >= self._settings.max_tokens or self._base.room(self.prefix) == 0:
            finish = "length"
        if finish is not None and not stopped:
            text += self._writer.close()
        return Step(
            token=spelling,
            text=text,
            token_id=token.id,
            candidates=weighed.candidates(token),
            covered_mass=weighed.covered_mass,
            drafted=token.key == view.draft.positions[j].token.key,
            changed=weighed.changed,
            end=token.end,
            finish_reason=finish,
            usage=self._usage(),
        )


def _may_be_finished(text: bytes) -> bool:
    """Whether what follows could still make this whole text: it is whole already, or ends in the beginning of a
    character.
    """
    rest = text[utf8_prefix(text) :]
    return not rest or is_unfinished(rest)


class _View:
    """A scored draft and the place in it that comes next."""

    def __init__(self, draft: Draft, rows: Sequence[Sequence[Row]], pairs: Sequence[Pair], settings: Settings) -> None:
        self.draft = draft
        self.rows = rows
        self.place = 0
        self._pairs = pairs
        self._settings = settings
        self._weighed: dict[int, Weighed] = {}

    def weighed(self, j: int, place: int) -> Weighed:
        """The candidates of position j, which is `place` tokens into the text."""
        if j not in self._weighed:
            self._weighed[j] = weigh(self.draft.positions[j], self.rows[j], self._pairs, self._settings, place)
        return self._weighed[j]
