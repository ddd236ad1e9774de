"""The loop: ask the base for a draft, let the pair score it, choose, issue back, repeat. An async generator of `Step`.

Knows the two protocols only: no HTTP, no torch. A draft of n positions is accepted while the token chosen from p is
the one that the base drafted; the first that is not replaces it, and the next request continues from there. The
choice at each place depends on the text before it alone, so the text is the same for every n.

    prefix -> Base.draft -> positions -> Session.score -> rows -> combine -> sampling -> Step, prefix grows
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy import combine
from blackbox_proxy.base.protocol import Base
from blackbox_proxy.errors import BadResponse, CannotContinue, ContextTooLong, InputError, NoLogprobs
from blackbox_proxy.logspace import logsumexp
from blackbox_proxy.pair.protocol import Pair, Row, Session
from blackbox_proxy.sampling import Sampling, choose
from blackbox_proxy.types import (
    Candidates,
    Draft,
    FinishReason,
    Floats,
    How,
    Position,
    Prefix,
    Prompt,
    Scores,
    Step,
    TailPolicy,
    Token,
    Usage,
)
from blackbox_proxy.vocabulary import VocabularyTokens, is_unfinished, utf8_prefix
from blackbox_proxy.writer import Writer

Alpha = float | Callable[[int], float]
"""A number, or a schedule: a function of the place in the text (tokens from 0)."""

_LONGEST_RESCUE = 64  # positions asked for at most when a character must be finished inside one draft
_KEPT = 64  # candidates that a step keeps of a long list


@dataclass(frozen=True, slots=True)
class Settings:
    """How a text is decoded. `alphas`: one per pair. `tail_size`: tokens the expert may propose beyond the base's
    candidates.

    `draft`: positions asked for per request.
    """

    max_tokens: int
    alphas: tuple[Alpha, ...]
    sampling: Sampling
    stop: tuple[str, ...] = ()
    tail: TailPolicy = "backoff"
    tail_size: int = 32
    draft: int = 1


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


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """Candidates of one position, those of the tail last: columns of equal length c. Scores are those of the first
    pair.
    """

    tokens: Sequence[Token]
    shown: int
    log_q: Floats
    log_p: Floats
    scores: Scores
    covered_mass: float

    def tie(self, index: int) -> tuple[object, ...]:
        """What decides between equal candidates: the base's preference, then the token itself, never the order of
        listing.
        """
        kind, value = self.tokens[index].key
        return (-self.log_q[index], kind, str(value))

    @property
    def changed(self) -> bool:
        return self._top(self.log_p) != self._top(self.log_q)

    def _top(self, values: Floats) -> int:
        best = np.flatnonzero(values == np.max(values))
        return int(best[0]) if len(best) == 1 else min((int(i) for i in best), key=self.tie)

    def candidates(self, chosen: Token) -> Candidates:
        """What a step keeps: everything where the list is short; else the likeliest under p and under q, and the
        chosen one.
        """
        order = np.argsort(-self.log_p, kind="stable")
        if len(order) > 2 * _KEPT:
            wanted = set(order[:_KEPT].tolist()) | set(np.argsort(-self.log_q, kind="stable")[:_KEPT].tolist())
            order = np.array([i for i in order if i in wanted])
        order = order[np.isfinite(self.log_p[order])]
        tokens = tuple(self.tokens[int(i)] for i in order)
        if all(token.key != chosen.key for token in tokens):
            place = next(i for i in range(len(self.tokens)) if self.tokens[i].key == chosen.key)
            order, tokens = np.append(order, place), (*tokens, chosen)
        how: tuple[How, ...] = tuple(self.scores.how[int(i)] for i in order)
        expert, antiexpert = self.scores.log_expert[order], self.scores.log_antiexpert[order]
        return Candidates(tokens, self.log_q[order], expert, antiexpert, self.log_p[order], order >= self.shown, how)


def weigh(position: Position, rows: Sequence[Row], pairs: Sequence[Pair], settings: Settings, place: int) -> Weighed:
    """q of the candidates and of the tail, the pairs' offsets, and p from them (design: section 2.1)."""
    tokens, log_q = one_end(position.tokens, position.logprobs)
    if len(tokens) == 0:
        raise NoLogprobs(
            "the base gave no log probability at this position", hint="Use a model and API that return top logprobs."
        )
    scores = [row.score(tokens) for row in rows]
    alphas = [alpha_at(alpha, place) for alpha in settings.alphas]
    everything: list[Token] | Sequence[Token] = tokens
    shown = len(tokens)
    if settings.tail != "truncate" and combine.hidden_mass(log_q) > 0.0:
        proposed = _proposals(tokens, rows, settings.tail_size)
        beyond = [row.score(proposed) for row in rows]
        spreads = [_spread(pair, score) for pair, score in zip(pairs, scores, strict=True)]
        spreads_beyond = [_spread(pair, score) for pair, score in zip(pairs, beyond, strict=True)]
        if proposed:
            log_a, log_a_tail = combine.mixture(spreads), combine.mixture(spreads_beyond)
            log_q_tail = combine.tail(log_q, log_a, log_a_tail, settings.tail)
            real = np.isfinite(log_q_tail)
            everything = [*tokens, *(token for token, ok in zip(proposed, real.tolist(), strict=True) if ok)]
            log_q = np.concatenate([log_q, log_q_tail[real]])
            scores = [_joined(score, more, real) for score, more in zip(scores, beyond, strict=True)]
    log_p = combine.combine(log_q, [score.offset for score in scores], alphas)
    return Weighed(everything, shown, log_q, log_p, scores[0], combine.covered_mass(log_q[:shown]))


def alpha_at(alpha: Alpha, place: int) -> float:
    """alpha at a place in the text. Raises InputError if it is no finite number."""
    value = float(alpha(place) if callable(alpha) else alpha)
    if not math.isfinite(value):
        raise InputError(
            f"alpha must be a finite number, not {value}", hint="1 is plain proxy-tuning, 0 the base itself."
        )
    return value


def one_end(tokens: Sequence[Token], log_q: Floats) -> tuple[Sequence[Token], Floats]:
    """All end tokens as the one event they are: the likeliest of them, with the probability of all."""
    if isinstance(tokens, VocabularyTokens):
        ends = np.flatnonzero(np.isin(tokens.ids, list(tokens.vocabulary.end_ids)))
    else:
        ends = np.array([i for i, token in enumerate(tokens) if token.end], dtype=np.int64)
    finite = np.isfinite(log_q)
    if len(ends) <= 1 and finite.all():
        return tokens, log_q
    kept = finite.copy()
    merged = log_q.copy()
    if len(ends) > 1:
        best = int(ends[np.argmax(log_q[ends])])
        merged[best] = logsumexp(log_q[ends])
        kept[ends] = False
        kept[best] = np.isfinite(merged[best])
    places = np.flatnonzero(kept)
    if isinstance(tokens, VocabularyTokens):
        return VocabularyTokens(tokens.ids[places], tokens.vocabulary), merged[places]
    return [tokens[int(i)] for i in places], merged[places]


def _proposals(tokens: Sequence[Token], rows: Sequence[Row], count: int) -> list[Token]:
    """What the experts would say and the base does not show."""
    known = {token.key for token in tokens}
    found: dict[tuple[str, object], Token] = {}
    for row in rows:
        for token in row.propose(count + len(known)):
            if token.key not in known and (token.end or token.bytes):
                found.setdefault(token.key, token)
    return list(found.values())[: count * len(rows)]


def _spread(pair: Pair, scores: Scores) -> Floats:
    """How the hidden mass is spread: as the untuned model would; as the expert where there is none."""
    return scores.log_antiexpert if pair.has_antiexpert else scores.log_expert


def _joined(shown: Scores, beyond: Scores, real: NDArray[np.bool_]) -> Scores:
    how = tuple(kind for kind, ok in zip(beyond.how, real.tolist(), strict=True) if ok)
    return Scores(
        np.concatenate([shown.log_expert, beyond.log_expert[real]]),
        np.concatenate([shown.log_antiexpert, beyond.log_antiexpert[real]]),
        np.concatenate([shown.offset, beyond.offset[real]]),
        (*shown.how, *how),
    )
