"""What of a scored draft is taken: the walk over its positions, token by token, to the first that must be replaced.

Arithmetic only: the loop brings positions whose rows are complete, `Verifier` says which tokens they make. How a token
is chosen:

- greedy: the likeliest under p; the draft is accepted while it is that.
- sampled, and the base drafted it from the q that it shows: accepted with min(1, p/q), else drawn from the residual
  (speculate.py). Exactly p, and as many accepted as any method can.
- sampled, and the draft is of another distribution (the local pair's, or that of an API whose drafts do not follow
  what it shows): p's own token is drawn, and the draft counts where it is the same. Exactly p, whatever the draft; the
  local draft uses the same noise, so that it is mostly the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from blackbox_proxy.decoding.local import expert_choice
from blackbox_proxy.decoding.rows import Scored
from blackbox_proxy.decoding.text import Text
from blackbox_proxy.decoding.weighed import NOTHING_KNOWN, Known, Weighed, worth_asking
from blackbox_proxy.errors import BlackboxError, CannotContinue
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.sampling import Sampling, choose, noise, pick, target, uniform
from blackbox_proxy.maths.speculate import accepts, overlap, residual
from blackbox_proxy.protocols import Base
from blackbox_proxy.text.vocabulary import is_unfinished, utf8_prefix
from blackbox_proxy.types import Floats, Position, Prefix, Step, Token

_MOST_TOLD = 64  # places of a text whose answers are remembered
_MOST_REQUESTS = 4  # tokens asked about at one place where each costs a request


@dataclass(frozen=True, slots=True, eq=False)
class Verifiable:
    """Positions that continue a text. local: how many of them, from the first, the local pair drafted. goes_on: whether
    a longer draft could go on from the last one.
    """

    scored: Sequence[Scored]
    local: int
    goes_on: bool
    targets: dict[int, Floats] = field(default_factory=dict)

    def after(self, count: int) -> Verifiable:
        """What is left once the first `count` positions are taken as they were drafted."""
        return Verifiable(self.scored[count:], max(0, self.local - count), self.goes_on)

    def target(self, j: int, sampling: Sampling) -> Floats:
        """What a sampled token of position j is drawn from, shape (c,)."""
        if j not in self.targets:
            weighed = self.scored[j].under(0)
            self.targets[j] = target(weighed.log_p, sampling, weighed.tie)
        return self.targets[j]


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely each kind of draft was to be accepted at one place: the base's, and the expert's (None: not looked
    at).
    """

    base: float
    local: float | None


@dataclass(frozen=True, slots=True)
class Asks:
    """Tokens that the base must be asked about by name before the next one after `prefix`, at `scored`, can be
    chosen.
    """

    scored: Scored
    prefix: Prefix
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """The steps that scored positions led to, and the odds at each. What came then, if not all were taken or the last
    was replaced: `waits`, the next choice hangs on positions that are not there yet; `error`, what went wrong at the
    next place; `asks`, what the next choice hangs on.
    """

    steps: list[Step] = field(default_factory=list)
    odds: list[Odds] = field(default_factory=list)
    waits: bool = False
    error: BlackboxError | None = None
    asks: Asks | None = None

    def then(self, more: Taken) -> Taken:
        """What two walks in a row took."""
        return replace(more, steps=[*self.steps, *more.steps], odds=[*self.odds, *more.odds])


class Told:
    """What the base said of tokens that it was asked about by name, at the last places of one text."""

    def __init__(self) -> None:
        self._known: dict[tuple[Token, ...], Known] = {}

    def recall(self, scored: Sequence[Scored], issued: tuple[Token, ...]) -> list[Scored]:
        """Those of some positions after `issued` that an earlier request came to: what was said is known there."""
        found = []
        for each in scored if self._known else ():
            known = self._known.get(issued)
            if known is not None:
                each.learn(known)
                found.append(each)
            issued = (*issued, each.position.token)
        return found

    def learn(self, asks: Asks, logprobs: Floats) -> None:
        """The base's answer: log q of the tokens asked about, NaN where it does not say."""
        if len(self._known) >= _MOST_TOLD:
            self._known.clear()
        found = {token.key: float(value) for token, value in zip(asks.tokens, logprobs, strict=True)}
        self._known[asks.prefix.tokens] = Known(found)
        asks.scored.learn(self._known[asks.prefix.tokens])


class Verifier:
    """Chooses the tokens of one text and puts them into it. `watch`: judge what the expert would have drafted, too."""

    def __init__(self, base: Base, text: Text, equation: Equation, sampling: Sampling, watch: bool) -> None:
        self._base = base
        self._text = text
        self._equation = equation
        self._sampling = sampling
        self._watch = watch

    def take(self, draft: Verifiable, patient: bool) -> Taken:
        """The steps up to the first replaced token, the end of the text, or the last position; moves the text past
        them. patient: whether to wait for a longer draft where the first choice hangs on one.

        The error is CannotContinue where no candidate can be issued back to the base.
        """
        taken = Taken()
        while len(taken.steps) < len(draft.scored):
            start = len(taken.steps)
            may_wait = draft.goes_on and (patient or start > 0)
            try:
                chain = self._chain(draft, start, self._text.prefix, may_wait)
            except BlackboxError as error:
                return replace(taken, error=error)
            if isinstance(chain, Asks):
                return replace(taken, asks=chain)
            if chain is None:
                return replace(taken, waits=True)
            if not chain:
                return replace(taken, error=_nothing_can_be_issued())
            for j, token in enumerate(chain, start):
                taken.odds.append(self._odds(draft, j, token))
                taken.steps.append(self._step(draft, j, token))
            if self._text.finished or not taken.steps[-1].drafted:
                break
        return taken

    def _chain(self, draft: Verifiable, j: int, prefix: Prefix, may_wait: bool) -> list[Token] | Asks | None:
        """The tokens chosen from position j on, up to the first from which a request can continue; [] if none can.

        A token that cannot be continued from is only taken where the base drafted it and its draft goes on to a place
        that can; so the choice is the same for every draft length. None where that needs a longer draft of the base's
        own: a token begins a character, and the draft ends inside it.
        """
        scored = draft.scored[j]
        weighed = scored.under(0)
        if asks := self._asks(scored, prefix):
            return asks
        choice = _Choice(self._sampling, weighed, scored.place, self._by_ratio(draft, j, weighed))
        while (index := choice.next()) is not None:
            token = weighed.tokens[index]
            if token.end:
                return [token]
            if token.bytes is not None:
                longer = prefix.plus(token)
                if self._text.can_rest_after(longer):
                    return [token]
                if _may_be_finished(longer.generated):
                    if j < draft.local:  # the base might have drafted it here: let it
                        return None
                    if token.key == scored.position.token.key:
                        rest = self._rest(draft, j + 1, longer, may_wait)
                        if not isinstance(rest, list):
                            return rest
                        if rest:
                            return [token, *rest]
            choice.forbid(index)
        return []

    def _rest(self, draft: Verifiable, j: int, prefix: Prefix, may_wait: bool) -> list[Token] | Asks | None:
        if j < len(draft.scored):
            return self._chain(draft, j, prefix, may_wait)
        return None if may_wait else []

    def _asks(self, scored: Scored, prefix: Prefix) -> Asks | None:
        """What the base must be asked about before this place can be decided."""
        if self._equation.tail != "ask" or scored.known is not NOTHING_KNOWN:
            return None
        unknown = worth_asking(scored.under(0), scored.known, self._sampling.temperature, self._equation.weights)
        reveals = self._base.abilities.reveals
        tokens = unknown[: _MOST_REQUESTS if reveals == 1 else reveals]
        return Asks(scored, prefix, tokens) if tokens else None

    def _by_ratio(self, draft: Verifiable, j: int, weighed: Weighed) -> _Drafted | None:
        """The drafted token, where it is to be accepted by ratio; None where p's own token is drawn."""
        greedy = self._sampling.temperature == 0.0
        if greedy or j < draft.local or not self._base.abilities.draws:
            return None
        return _Drafted(_within_c(draft.scored[j].position, weighed), draft.target(j, self._sampling))

    def _odds(self, draft: Verifiable, j: int, token: Token) -> Odds:
        scored, sampling = draft.scored[j], self._sampling
        weighed = scored.under(0)
        if sampling.temperature == 0.0:
            base = float(weighed.tokens[weighed.base_top].key == token.key)
        else:
            p, q = draft.target(j, sampling), np.exp(weighed.log_q)
            draws = self._base.abilities.draws
            base = overlap(p, q, weighed.shown) if draws else float((p * q)[: weighed.shown].sum())
        local: float | None = None
        if self._watch:
            expected = expert_choice(scored.rows[0], sampling, self._equation.tail_size, scored.place)
            local = float(expected is not None and expected.key == token.key)
        return Odds(base, local)

    def _step(self, draft: Verifiable, j: int, token: Token) -> Step:
        scored = draft.scored[j]
        drafted = token.key == scored.position.token.key
        return self._text.take(token, scored.under(0), drafted=drafted, local=j < draft.local)


@dataclass(frozen=True, slots=True)
class _Drafted:
    """A token drawn from q; `index` among the candidates, None where it lies outside C. `p`: the target, (c,)."""

    index: int | None
    p: Floats


class _Choice:
    """The candidates in the order in which they are chosen, as those that cannot be issued are ruled out."""

    def __init__(self, sampling: Sampling, weighed: Weighed, place: int, drafted: _Drafted | None) -> None:
        self._sampling = sampling
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
    index = weighed.index_of(token)
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
