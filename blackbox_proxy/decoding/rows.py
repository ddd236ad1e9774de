"""The near side of a text: sessions of the pairs, and rows that are complete for what is to be made of them.

    issued, positions -> Session.score -> rows -> weigh -> contenders -> Session.refine -> ... -> Scored

A pair may score by estimate and say how far it can be off. Whoever weighs rows asks here for them: what could still
change the choice, or p, is made exact first, at all positions of a draft at once, so that what follows is arithmetic.
All of this runs models and belongs on a thread (threads.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from blackbox_proxy.background import checkpoint
from blackbox_proxy.decoding.contenders import beginnings, contenders, matters, spreading
from blackbox_proxy.decoding.prompted import open_session
from blackbox_proxy.decoding.weigh import Shown, Stack, listed, log_spread, scores_at
from blackbox_proxy.decoding.weighed import NOTHING_KNOWN, Known, Weighed
from blackbox_proxy.errors import BlackboxError, ContextTooLong
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.protocols import Pair, Row, Session
from blackbox_proxy.text.vocabulary import Ids, Vocabulary
from blackbox_proxy.types import Floats, Key, Position, Prompt, Token

_PASSES = 6  # for what contends; each may bring tokens that contend only now that others are known better

Rows = Sequence[Row]
"""What the pairs say of one position: one row each."""


@contextmanager
def opened(pairs: Sequence[Pair], prompt: Prompt, base: Vocabulary | None) -> Iterator[list[Session]]:
    """Sessions of all pairs for one prompt; `base`: the base's spelling, None where it is unknown."""
    with ExitStack() as stack:
        sessions = []
        for pair in pairs:
            session = open_session(pair, prompt, base)
            stack.callback(session.close)
            sessions.append(session)
        yield sessions


def score(sessions: Sequence[Session], issued: Sequence[Token], positions: Sequence[Position]) -> list[Rows]:
    """The rows of each position that can be scored yet, as they come: complete them before they are weighed."""
    columns = [session.score(issued, positions) for session in sessions]
    return list(zip(*columns, strict=False))


def complete(
    sessions: Sequence[Session],
    rows: Sequence[Rows],
    wanted_at: Callable[[Sequence[int]], Sequence[Sequence[Token]]],
) -> None:
    """Refine rows until nothing is wanted any more. `wanted_at(places)`: tokens whose error matters at each of these
    positions, as their rows stand; it is asked once more after every pass. A token is refined once, and what is wanted
    at one position hangs on nothing at another.
    """
    asked: list[set[Key]] = [set() for _ in rows]
    left = list(range(len(rows)))
    for passes in range(_PASSES + 1):
        checkpoint()
        if not left:
            return
        wanted = {
            j: [token for token in tokens if token.key not in asked[j]]
            for j, tokens in zip(left, wanted_at(left), strict=True)
        }
        left = [j for j in left if wanted[j]]
        if not left or passes == _PASSES:
            return
        for j in left:
            asked[j].update(token.key for token in wanted[j])
        if len(sessions) == 1:  # what is wanted of one pair is what is inexact of it
            sessions[0].refine([(rows[j][0], wanted[j]) for j in left])
        else:
            refine(sessions, [(rows[j], wanted[j]) for j in left])


def refine(sessions: Sequence[Session], wanted: Sequence[tuple[Rows, Sequence[Token]]]) -> None:
    """Make the scores of these tokens at these rows the models' own, where they are not that already."""
    for i, session in enumerate(sessions):
        inexact = [(rows[i], inexact_of(rows[i : i + 1], tokens)) for rows, tokens in wanted]
        if any(tokens for _, tokens in inexact):
            session.refine([(row, tokens) for row, tokens in inexact if tokens])


def inexact_of(rows: Rows, tokens: Sequence[Token]) -> list[Token]:
    """Those of the tokens that some pair has only estimated."""
    if len(tokens) == 0:
        return []
    errors = sum(row.score(tokens).error for row in rows)
    return [token for token, error in zip(tokens, np.atleast_1d(errors).tolist(), strict=True) if error > 0.0]


@dataclass(frozen=True, slots=True)
class Weigher:
    """What rows are weighed for. temperature: 0 where the likeliest token is wanted, else p itself as well."""

    pairs: Sequence[Pair]
    equations: Sequence[Equation]
    temperature: float = 0.0

    def score(
        self,
        sessions: Sequence[Session],
        issued: Sequence[Token],
        positions: Sequence[Position],
        known: Sequence[Known] = (),
        place: int = 0,
    ) -> list[Scored]:
        """Every position that can be scored yet, complete. known: one for each position, if anything is; place: tokens
        of the text before the issued ones that these sessions have not seen.
        """
        scored = [
            Scored(self, positions[j], rows, place + len(issued) + j, known[j] if known else NOTHING_KNOWN)
            for j, rows in enumerate(score(sessions, issued, positions))
        ]
        self.complete(sessions, scored)
        return scored

    def complete(self, sessions: Sequence[Session], scored: Sequence[Scored]) -> None:
        """Make rows complete for what is known at their positions by now. Where every score is the models' own there is
        nothing to do, and a position that nobody comes to need not be weighed.
        """
        bounded = [each for each in scored if any(row.limit is not None for row in each.rows)]
        complete(sessions, [each.rows for each in bounded], lambda js: self._contenders([bounded[j] for j in js]))

    def weigh(self, scored: Sequence[Scored]) -> list[tuple[Stack, Floats]]:
        """Weigh positions under each equation, as their rows stand, and have them keep it. Of each equation all
        candidates, and their log p (n,). Raises NoLogprobs, InputError.
        """
        stacks: dict[object, tuple[Stack, list[Weighed]]] = {}  # of equations that differ in log p alone
        found, weighed = [], []
        places = [each.place for each in scored]
        for equation in self.equations:
            known = [each.known.under(equation) for each in scored]
            kind = (equation.tail, equation.tail_size, equation.spread, *map(id, known))
            stack, alike = stacks.get(kind, (None, []))
            if stack is None:
                how = equation.tail, equation.tail_size
                positions = [listed(each.shown, each.rows, *how, own) for each, own in zip(scored, known, strict=True)]
                rows = [each.rows for each in scored]
                stack = Stack.of(positions, rows, self.pairs, equation.tail, equation.spread)
            log_p = equation.log_ps(stack.log_q, stack.scores, places, stack.told, stack.parts)
            if alike:
                bounds = zip(alike, stack.parts.bounds, strict=True)
                weighed.append([replace(each, log_p=log_p[start:end]) for each, (start, end) in bounds])
            else:
                weighed.append(stack.weighed(log_p))
                stacks[kind] = stack, weighed[-1]
            found.append((stack, log_p))
        for each, *own in zip(scored, *weighed, strict=True):
            each.weighed = own
        return found

    def _contenders(self, scored: Sequence[Scored]) -> list[list[Token]]:
        """What is wanted at each position."""
        found: list[dict[Key, Token]] = [{} for _ in scored]
        self._add_joining(found, scored)
        self._add_wanted(found, scored)
        return [list(tokens.values()) for tokens in found]

    def _add_joining(self, found: Sequence[dict[Key, Token]], scored: Sequence[Scored]) -> None:
        """What joins the candidates and is inexact, the first time that a position is asked about."""
        anew = [(own, each) for own, each in zip(found, scored, strict=True) if each.joins_anew()]
        if not anew:
            return
        tokens = [each.known.joining for _, each in anew]
        error = sum(
            scores_at([(each.rows[i], some) for (_, each), some in zip(anew, tokens, strict=True)]).error
            for i in range(len(self.pairs))
        )
        values = iter(np.atleast_1d(error).tolist())
        for (own, _), some in zip(anew, tokens, strict=True):
            own |= {token.key: token for token in some if next(values) > 0.0}

    def _add_wanted(self, found: Sequence[dict[Key, Token]], scored: Sequence[Scored]) -> None:
        try:
            stacks = self.weigh(scored)
        except ContextTooLong:
            raise
        except BlackboxError:  # whoever comes to it will hear of it; the other positions are good
            for one, each in zip(found, scored, strict=True) if len(scored) > 1 else ():
                self._add_wanted([one], [each])
            return
        spreads: dict[object, Floats] = {}
        for i, equation in enumerate(self.equations):
            stack, log_p = stacks[i]
            bar = equation.errors(stack.scores, [each.place for each in scored], stack.parts)
            wanted = [contenders(log_p, bar, self.temperature, stack.parts)]
            if not stack.told.all():
                kind = (equation.spread, id(stack))
                if kind not in spreads:
                    spreads[kind] = log_spread(self.pairs[:1], stack.scores[:1], equation.spread)
                wanted.append(spreading(log_p, bar, spreads[kind], stack.told, self.temperature, stack.parts))
                wanted += self._beginnings(stack, log_p, bar, i, scored)
            every = np.concatenate(wanted)
            owners = stack.parts.owners(every)
            for j, n in zip(owners.tolist(), (every - stack.parts.starts[owners]).tolist(), strict=True):
                token = stack.tokens[j][n]
                found[j].setdefault(token.key, token)

    def _beginnings(self, stack: Stack, log_p: Floats, bar: Floats, i: int, scored: Sequence[Scored]) -> list[Ids]:
        """Candidates that may be the beginning of a hidden token which could be chosen under the i-th equation."""
        begun = [beginnings(each, stack.told, stack.parts) for each in stack.scores]
        if len(begun) > 1 or not self.pairs[0].has_antiexpert:
            return begun
        factors = [self.equations[i].factors(each.place) for each in scored]
        if not len(begun[0]) or None in factors:
            return begun
        weights = self.equations[i].weights
        of_tail = 0.0 if weights is None else weights.tail
        bound = stack.hidden_bound(log_p, np.array(factors).T, of_tail, begun[0])
        return [begun[0][matters(bound, log_p, bar, self.temperature, stack.parts, stack.parts.owners(begun[0]))]]


@dataclass(slots=True, eq=False)
class Scored:
    """One position of a text with what the pairs say of it: complete, so that weighing it is arithmetic.

    place: tokens of the text before it. known: what was told besides. weighed: the candidates under each equation, once
    they are.
    """

    weigher: Weigher
    position: Position
    rows: Rows
    place: int
    known: Known = NOTHING_KNOWN
    weighed: list[Weighed] | None = None
    _shown: Shown | None = None
    _joined: bool = False

    @property
    def shown(self) -> Shown:
        """The base's own candidates. Raises NoLogprobs."""
        if self._shown is None:
            self._shown = Shown.at(self.position)
        return self._shown

    def under(self, i: int) -> Weighed:
        """The candidates under the i-th equation. Raises NoLogprobs, InputError."""
        if self.weighed is None:
            self.weigher.weigh([self])
        assert self.weighed is not None
        return self.weighed[i]

    def learn(self, known: Known) -> None:
        """The base was asked about this place. Complete it anew."""
        self.known, self.weighed, self._joined = known, None, False

    def joins_anew(self) -> bool:
        """Whether something joins the candidates that this was not asked about before: what is inexact is refined."""
        anew = not self._joined and len(self.known.joining) > 0
        self._joined = True
        return anew
