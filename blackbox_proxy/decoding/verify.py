"""What of a scored draft is taken: the walk over its positions, token by token, to the first that must be replaced.

No waiting and no requests: `decode` brings the positions, `Text` says which tokens they make. How a token is chosen:

- greedy: the likeliest under p; the draft is accepted while it is that.
- sampled, and the base drafted it from the q that it shows: accepted with min(1, p/q), else drawn from the residual
  (speculate.py). Exactly p, and as many accepted as any method can.
- sampled, and the draft is of another distribution (the local pair's, or that of an API whose drafts do not follow
  what it shows): p's own token is drawn, and the draft counts where it is the same. Exactly p, whatever the draft; the
  local draft uses the same noise, so that it is mostly the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blackbox_proxy.decoding.weigh import Settings, Weighed, token_keys, weigh
from blackbox_proxy.errors import BlackboxError, CannotContinue
from blackbox_proxy.maths.sampling import Sampling, choose, noise, pick, target, uniform
from blackbox_proxy.maths.speculate import accepts, overlap, residual
from blackbox_proxy.protocols import Base, Pair, Row, Session
from blackbox_proxy.text.vocabulary import is_unfinished, utf8_prefix
from blackbox_proxy.text.writer import Writer
from blackbox_proxy.types import Candidates, FinishReason, Floats, Position, Prefix, Step, Token

_LONGEST_RESCUE = 64  # positions asked for at most when a character must be finished inside one draft
_MOST_RESCUES = 16  # requests for that at one place, of which many may have broken
_MOST_TOLD = 64  # places of a text whose answers are remembered
_MOST_REQUESTS = 4  # tokens asked about at one place where each costs a request
_BLANK = Position(Token(), None, (), np.empty(0))


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Positions that continue a text, with their rows (one per pair; fewer rows than positions where scoring ends).

    given: how many of them, from the first, the local pair drafted. more: whether a longer draft could go on from the
    last one.
    """

    positions: Sequence[Position]
    rows: Sequence[Sequence[Row]]
    given: int
    more: bool

    def after(self, count: int) -> Scored:
        """What is left once the first `count` positions are taken as they were drafted."""
        return Scored(self.positions[count:], self.rows[count:], max(0, self.given - count), self.more)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How likely a draft agrees with p at one place: the base's, and the expert's (None: not looked at)."""

    base: float
    local: float | None


@dataclass(frozen=True, slots=True)
class Taken:
    """The steps that a scored draft led to. `waits`: the next choice hangs on positions that are not there yet;
    `error`: what went wrong at the next place, the steps before it are good; `asks`: what it hangs on.
    """

    steps: list[Step]
    agreements: list[Agreement]
    waits: bool = False
    error: BlackboxError | None = None
    asks: Asks | None = None

    def then(self, more: Taken) -> Taken:
        """What two walks in a row took."""
        return replace(more, steps=[*self.steps, *more.steps], agreements=[*self.agreements, *more.agreements])


@dataclass(frozen=True, slots=True)
class Asks:
    """Tokens that the base must be asked about by name before the next one after `prefix` can be chosen."""

    prefix: Prefix
    tokens: tuple[Token, ...]


class _MustAsk(Exception):
    """Within this file only: carries `Asks` out of the walk."""

    def __init__(self, asks: Asks) -> None:
        super().__init__()
        self.asks = asks


class Text:
    """The text so far: its prefix, and what of it may be shown. `watch`: judge what the expert would have drafted."""

    def __init__(self, base: Base, pairs: Sequence[Pair], settings: Settings, prefix: Prefix, watch: bool) -> None:
        self.prefix = prefix
        self.finished = False
        self.rescue = 0
        self.useful_from = 1
        self._rescues = 0
        self._base = base
        self._pairs = pairs
        self._settings = settings
        self._watch = watch
        self._writer = Writer(settings.stop)
        self._told: dict[tuple[Token, ...], dict[tuple[str, object], float]] = {}

    def reach(self) -> int:
        """How many positions the next request may ask for: no more than can be used, but what a rescue needs."""
        wanted = self.rescue or self._settings.max_tokens - len(self.prefix.tokens)
        room = self._base.room(self.prefix)
        return max(1, wanted if room is None else min(wanted, room))

    def longer(self, positions: int, broke: bool) -> None:
        """Ask for a longer draft than these positions of the base's own next time: what a token has begun in it must be
        finished. broke: it ended early for no reason that would be the same again.
        """
        self.rescue = max(8, 2 * positions, 0 if broke else 2 * self.rescue)
        self.useful_from = positions + 1
        self._rescues += 1

    def learn(self, asks: Asks, logprobs: Floats) -> None:
        """The base's answer: log q of the tokens asked about, NaN where it does not say."""
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        found = {token.key: float(value) for token, value in zip(asks.tokens, logprobs, strict=True)}
        self._told[asks.prefix.tokens] = found

    def closing(self, finish: FinishReason, end: bool = False) -> Step:
        """The last step where no position with candidates led to it: the base ended unseen, or a window is full."""
        self.finished = True
        nothing = np.empty(0)
        none = Candidates((), nothing, nothing, nothing, nothing, np.empty(0, dtype=np.bool_), ())
        return Step(b"", self._writer.close(), None, none, 0.0, end, False, end, finish)

    def take(self, scored: Scored) -> Taken:
        """The steps up to the first replaced token, the end of the text, or the last row; moves the text past them.

        The error is CannotContinue where no candidate can be issued back to the base, ContextTooLong where a local
        model's window is full.
        """
        view = _View(scored, self._weigh)
        taken = Taken([], [])
        while len(taken.steps) < len(scored.rows):
            start = len(taken.steps)
            try:
                chain = self._chain(view, start, self.prefix)
            except BlackboxError as error:
                return replace(taken, error=error)
            except _MustAsk as must:
                return replace(taken, asks=must.asks)
            if chain is None:
                return replace(taken, waits=True)
            if not chain:
                return replace(taken, error=_nothing_can_be_issued())
            self.rescue, self.useful_from, self._rescues = 0, 1, 0
            for j, token in enumerate(chain, start):
                taken.agreements.append(self._agreement(view, j, token))
                taken.steps.append(self._step(view, j, token))
            if self.finished or not taken.steps[-1].drafted:
                break
        return taken

    # -- choosing -------------------------------------------------------------------------------------------------

    def _weigh(self, position: Position, rows: Sequence[Row], prefix: Prefix) -> Weighed:
        """The candidates after `prefix`, with what the base was asked about some of them. Raises _MustAsk."""
        settings, place = self._settings, len(prefix.tokens)
        if settings.tail != "ask":
            return weigh(position, rows, self._pairs, settings, place)
        told = self._told.get(prefix.tokens)
        weighed = weigh(position, rows, self._pairs, settings, place, told)
        if told is None and weighed.unknown:
            one_each = self._base.abilities.reveals == 1
            most = _MOST_REQUESTS if one_each else self._base.abilities.reveals
            raise _MustAsk(Asks(prefix, weighed.unknown[:most]))
        return weighed

    def _chain(self, view: _View, j: int, prefix: Prefix) -> list[Token] | None:
        """The tokens chosen from position j on, up to the first from which a request can continue; [] if none can.

        A token that cannot be continued from is only taken where the base drafted it and its draft goes on to a place
        that can; so the choice is the same for every draft length. None where that hangs on a longer draft of the
        base's own.
        """
        place = len(prefix.tokens)
        weighed, drafted = view.weighed(j, prefix), view.scored.positions[j].token.key
        choice = _Choice(self._settings, weighed, place, self._by_ratio(view, j, weighed))
        while (index := choice.next()) is not None:
            token = weighed.tokens[index]
            if token.end:
                return [token]
            if token.bytes is not None:
                longer = prefix.plus(token)
                if len(longer.tokens) >= self._settings.max_tokens or self._base.can_continue(longer):
                    return [token]
                if _may_be_finished(longer.generated):
                    if j < view.scored.given:  # the base might have drafted it here: let it
                        return None
                    rest = self._rest(view, j + 1, longer) if token.key == drafted else []
                    if rest is None:
                        return None
                    if rest:
                        return [token, *rest]
            choice.forbid(index)
        return []

    def _rest(self, view: _View, j: int, prefix: Prefix) -> list[Token] | None:
        if j < len(view.scored.rows):
            return self._chain(view, j, prefix)
        longer = view.scored.more and self.rescue < _LONGEST_RESCUE and self._rescues < _MOST_RESCUES
        return None if longer else []

    def _by_ratio(self, view: _View, j: int, weighed: Weighed) -> _Drafted | None:
        """The drafted token, where it is to be accepted by ratio; None where p's own token is drawn."""
        greedy = self._settings.sampling.temperature == 0.0
        if greedy or j < view.scored.given or not self._base.abilities.draws:
            return None
        return _Drafted(_within_c(view.scored.positions[j], weighed), view.target(j, self._settings.sampling))

    def _agreement(self, view: _View, j: int, token: Token) -> Agreement:
        weighed, place, sampling = view.known(j), len(self.prefix.tokens), self._settings.sampling
        if sampling.temperature == 0.0:
            base = float(weighed.tokens[weighed.base_top].key == token.key)
        else:
            p, q = view.target(j, self._settings.sampling), np.exp(weighed.log_q)
            draws = self._base.abilities.draws
            base = overlap(p, q, weighed.shown) if draws else float((p * q)[: weighed.shown].sum())
        local: float | None = None
        if self._watch:
            expected = expert_choice(view.scored.rows[j][0], self._settings, place)
            local = float(expected is not None and expected.key == token.key)
        return Agreement(base, local)

    def _step(self, view: _View, j: int, token: Token) -> Step:
        weighed = view.known(j)
        self.prefix = self.prefix.plus(token)
        last = len(self.prefix.tokens) >= self._settings.max_tokens or self._base.room(self.prefix) == 0
        text, finish = self._writer.release(token, last)
        self.finished = finish is not None
        return Step(
            token=b"" if token.end else token.bytes or b"",
            text=text,
            token_id=token.id,
            candidates=weighed.candidates(token),
            covered_mass=weighed.covered_mass,
            drafted=token.key == view.scored.positions[j].token.key,
            changed=weighed.changed,
            end=token.end,
            finish_reason=finish,
            local=j < view.scored.given,
        )


@dataclass(frozen=True, slots=True)
class _Drafted:
    """A token drawn from q; `index` among the candidates, None where it lies outside C. `p`: the target, (c,)."""

    index: int | None
    p: Floats


class _Choice:
    """The candidates in the order in which they are chosen, as those that cannot be issued are ruled out."""

    def __init__(self, settings: Settings, weighed: Weighed, place: int, drafted: _Drafted | None) -> None:
        self._sampling = settings.sampling
        self._weighed = weighed
        self._place = place
        self._drafted = drafted
        self._open: Floats = weighed.log_p.copy()
        self._rest: Floats | None = None

    def forbid(self, index: int) -> None:
        self._open[index] = -np.inf
        if self._rest is not None:
            self._rest[index] = 0.0

    def next(self) -> int | None:
        if not np.any(np.isfinite(self._open)):
            return None
        weighed, sampling = self._weighed, self._sampling
        if self._drafted is not None:
            if self._rest is None:
                p, q = self._drafted.p, np.exp(weighed.log_q)
                self._rest = residual(p, q, weighed.shown)
                d = self._drafted.index
                if d is not None and accepts(float(p[d]), float(q[d]), uniform(sampling.seed, self._place)):
                    return d
            if self._rest.any():
                return pick(self._rest, noise(sampling.seed, self._place, weighed.keys()))
        return choose(self._open, sampling, self._place, weighed.tie, weighed.keys)


def _within_c(position: Position, weighed: Weighed) -> int | None:
    """Where the drafted token stands among the shown candidates; None where its q is not among those shown.

    All end tokens are one candidate, but an end token that is not listed is not in its q.
    """
    token = position.token
    if token.end and token not in [other for other in position.tokens if other.end]:
        return None
    index = weighed.place_of(token)
    return index if index is not None and index < weighed.shown else None


def _nothing_can_be_issued() -> CannotContinue:
    return CannotContinue(
        "none of the candidates at this place can be issued back to the base",
        hint="Give open_base the base's tokenizer: prefixes then travel as token ids. Or raise top_logprobs.",
    )


def _may_be_finished(text: bytes) -> bool:
    """Whether what follows could still make this whole text: it is whole already, or ends in the beginning of a
    character.
    """
    rest = text[utf8_prefix(text) :]
    return not rest or is_unfinished(rest)


class _View:
    """A scored draft and the candidates of its positions, weighed once each."""

    def __init__(self, scored: Scored, weigh_at: Callable[[Position, Sequence[Row], Prefix], Weighed]) -> None:
        self.scored = scored
        self._weigh_at = weigh_at
        self._weighed: dict[int, Weighed] = {}
        self._targets: dict[int, Floats] = {}

    def weighed(self, j: int, prefix: Prefix) -> Weighed:
        """The candidates of position j, which follows `prefix`."""
        if j not in self._weighed:
            self._weighed[j] = self._weigh_at(self.scored.positions[j], self.scored.rows[j], prefix)
        return self._weighed[j]

    def known(self, j: int) -> Weighed:
        return self._weighed[j]

    def target(self, j: int, sampling: Sampling) -> Floats:
        """What a sampled token of position j, weighed before, is drawn from, shape (c,)."""
        if j not in self._targets:
            weighed = self._weighed[j]
            self._targets[j] = target(weighed.log_p, sampling, weighed.tie)
        return self._targets[j]


# -- the local draft --------------------------------------------------------------------------------------------------


def expert_choice(row: Row, settings: Settings, place: int) -> Token | None:
    """The token that the expert would write at a place, in the base's spelling; with the noise of that place."""
    proposed = row.propose(1 if settings.sampling.temperature == 0.0 else settings.tail_size or 1)
    if len(proposed) <= 1 or settings.sampling.temperature == 0.0:
        return proposed[0] if proposed else None
    log_e = row.score(proposed).log_expert
    log_e = np.where(np.isfinite(log_e), log_e, -np.inf)
    if not np.any(np.isfinite(log_e)):
        return proposed[0]
    return proposed[choose(log_e, settings.sampling, place, lambda i: (i,), lambda: token_keys(proposed))]


def local_draft(session: Session, issued: Sequence[Token], count: int, settings: Settings) -> tuple[Token, ...]:
    """At most `count` tokens that the expert would write after the issued ones: one forward pass each.

    Ends early where the expert would end the text, or write what is no token of the base.
    """
    drafted: list[Token] = []
    for place in range(len(issued), len(issued) + count):
        (row,) = session.score([*issued, *drafted], [_BLANK])
        token = expert_choice(row, settings, place)
        if token is None or token.end or not token.bytes:
            break
        drafted.append(token)
    return tuple(drafted)
