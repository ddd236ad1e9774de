"""The near side of a text: sessions of the pairs, and rows that are complete for what is to be made of them.

    issued, positions -> Session.score -> rows -> weigh -> contenders -> Session.refine -> ... -> Scored

A pair may score by estimate and say how far it can be off. Whoever weighs rows asks here for them: what could still
change the choice, or p, is made exact first, at all positions of a draft at once, so that what follows is arithmetic.
All of this runs models and belongs on a thread (threads.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from blackbox_proxy.background import checkpoint
from blackbox_proxy.decoding.contenders import beginnings, contenders, hidden_bound, matters, spreading
from blackbox_proxy.decoding.prompted import open_session
from blackbox_proxy.decoding.weigh import NOTHING_KNOWN, Known, Weighed, log_spread, weigh
from blackbox_proxy.errors import BlackboxError, ContextTooLong
from blackbox_proxy.maths import equation as maths
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.protocols import Pair, Row, Session
from blackbox_proxy.text.vocabulary import Vocabulary
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


def complete(sessions: Sequence[Session], rows: Sequence[Rows], wanted_at: Callable[[int], Sequence[Token]]) -> None:
    """Refine rows until nothing is wanted any more. `wanted_at(j)`: tokens whose error matters at position j, as its
    rows stand; it is asked once more after every pass. A token is refined once, and what is wanted at one position
    hangs on nothing at another.
    """
    asked: list[set[Key]] = [set() for _ in rows]
    left = list(range(len(rows)))
    for passes in range(_PASSES + 1):
        checkpoint()
        wanted = {j: [token for token in wanted_at(j) if token.key not in asked[j]] for j in left}
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
        complete(sessions, [each.rows for each in bounded], lambda j: self._contenders(bounded[j]))

    def _contenders(self, scored: Scored) -> list[Token]:
        found = {token.key: token for token in scored.newly_joining()}
        try:
            weighed_by = scored.weigh()
        except ContextTooLong:
            raise
        except BlackboxError:  # whoever comes to it will hear of it; the positions before it are good
            return list(found.values())
        spreads: dict[object, Floats] = {}
        for weighed, equation in zip(weighed_by, self.equations, strict=True):
            bar = equation.error(weighed.scores, scored.place)
            kind = (equation.spread, id(weighed.scores))
            if kind not in spreads:
                spreads[kind] = log_spread(self.pairs[:1], weighed.scores[:1], equation.spread)
            spread = spreads[kind]
            wanted = [
                *contenders(weighed.log_p, bar, self.temperature),
                *spreading(weighed.log_p, bar, spread, weighed.shown, self.temperature),
                *self._beginnings(weighed, equation, scored.place, bar),
            ]
            for i in wanted:
                found.setdefault(weighed.tokens[int(i)].key, weighed.tokens[int(i)])
        return list(found.values())

    def _beginnings(self, weighed: Weighed, equation: Equation, place: int, bar: Floats) -> list[int]:
        """Candidates that may be the beginning of a hidden token which could be chosen."""
        found = [beginnings(scores, weighed.shown) for scores in weighed.scores]
        factors = equation.factors(place)
        if factors is None or not self.pairs[0].has_antiexpert:
            return [int(i) for each in found for i in each]
        ((some,), (scores,)) = found, weighed.scores
        if not len(some):
            return []
        log_e, log_a = scores.log_expert, scores.log_antiexpert
        known = np.isfinite(log_e) & np.isfinite(log_a) & np.isfinite(weighed.log_p)
        if not known.any():
            return [int(i) for i in some]
        best = int(np.argmax(np.where(known, weighed.log_p, -np.inf)))
        of_q, of_e, of_a = factors
        of_tail = 0.0 if equation.weights is None else equation.weights.tail
        with np.errstate(invalid="ignore"):  # of a token with unknown bytes the pair says nothing
            log_z = of_q * weighed.log_q[best] + of_e * log_e[best] - of_a * log_a[best] - weighed.log_p[best]
        log_z += of_tail * (best >= weighed.shown)
        outside = maths.uncovered(scores.disjoint.log_antiexpert[: weighed.shown])
        bound = hidden_bound(log_e[some], log_a[some], factors, weighed.log_hidden, weighed.most, math.log(outside))
        reached = matters(bound + of_tail - log_z, weighed.log_p, bar, self.temperature)
        return [int(i) for i in some[reached]]


@dataclass(slots=True, eq=False)
class Scored:
    """One position of a text with what the pairs say of it: complete, so that weighing it is arithmetic.

    place: tokens of the text before it. known: what was told besides.
    """

    weigher: Weigher
    position: Position
    rows: Rows
    place: int
    known: Known = NOTHING_KNOWN
    _weighed: list[Weighed] | None = None
    _joined: bool = False

    def under(self, i: int) -> Weighed:
        """The candidates under the i-th equation. Raises NoLogprobs, InputError."""
        return (self.weigh() if self._weighed is None else self._weighed)[i]

    def weigh(self) -> list[Weighed]:
        """The candidates under each equation, as the rows stand."""
        pairs, weighed = self.weigher.pairs, []
        alike: dict[object, Weighed] = {}  # equations whose candidates are the same differ in log p alone
        for equation in self.weigher.equations:
            known = self.known.under(equation)
            kind = (equation.tail, equation.tail_size, equation.spread, id(known))
            found = alike.get(kind)
            if found is None:
                found = alike[kind] = weigh(self.position, self.rows, pairs, equation, self.place, known)
            else:
                log_p = equation.log_p(found.log_q, found.scores, self.place, found.shown)
                found = replace(found, log_p=log_p)
            weighed.append(found)
        self._weighed = weighed
        return weighed

    def learn(self, known: Known) -> None:
        """The base was asked about this place. Complete it anew."""
        self.known, self._weighed, self._joined = known, None, False

    def newly_joining(self) -> list[Token]:
        """What joins the candidates and is inexact, the first time that it is asked for: then it is refined."""
        found = [] if self._joined else inexact_of(self.rows, self.known.joining)
        self._joined = True
        return found
