"""From a position's candidates to log p: one end, the tail, the pairs' offsets, the equation. No loop, no choice, and
nothing but arithmetic: what the rows say is complete by now (rows.py).

position, rows -> one_end -> scores, proposals, tail -> Equation.log_p -> Weighed
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.errors import NoLogprobs
from blackbox_proxy.maths import equation as maths
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.maths.order import descending
from blackbox_proxy.maths.weights import PLAIN_SPREAD, Spread, Weights
from blackbox_proxy.protocols import Pair, Row
from blackbox_proxy.text.vocabulary import VocabularyTokens
from blackbox_proxy.types import END_KEY, Candidates, Floats, How, Key, Position, Scores, Token

_KEPT = 64  # candidates that a step keeps of a long list
_LEAST_SURE: tuple[How, ...] = ("exact", "estimated", "prefix", "neutral")
_NOTICED = 1e-3  # of the likeliest candidate's probability: a sampled token below it is not worth a request


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of q at one place besides the candidates that the base shows there.

    log_q: nats, by token; NaN for one that was asked about and not told. joining: tokens that are to be candidates,
    whatever the tail; where they are not in `log_q`, their q is estimated as that of any other. given: those are the
    text's own.
    """

    log_q: Mapping[Key, float] = field(default_factory=dict)
    joining: Sequence[Token] = ()
    given: bool = False

    @classmethod
    def of(cls, told: Sequence[tuple[Token, float]], *, given: bool = False) -> Known:
        """These tokens with their log q join the candidates."""
        values = {token.key: log_q for token, log_q in told if math.isfinite(log_q)}
        return cls(values, [token for token, _ in told], given)

    def under(self, equation: Equation) -> Known:
        """What of it joins the candidates under an equation. A text's own token does not, where weights are learned:
        they were learned for candidates as `decode` has them, and would add up to more than 1 with one more at each
        question (see `whole_vocabulary.of_given`).
        """
        return NOTHING_KNOWN if self.given and equation.weights is not None else self


NOTHING_KNOWN = Known()


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """Candidates of one position, those of the tail last: columns of equal length c, and the scores of each pair.

    shown: how many of them, from the first, have a q that the base told. most: the largest that log q of the others can
    be, nats.
    """

    tokens: Sequence[Token]
    shown: int
    log_q: Floats
    log_p: Floats
    scores: Sequence[Scores]
    covered_mass: float
    most: float = -math.inf

    def tie(self, index: int) -> tuple[object, ...]:
        """What decides between equal candidates: the base's preference, then the token itself, never the order of
        listing.
        """
        kind, value = self.tokens[index].key
        return (-self.log_q[index], kind, str(value))

    def keys(self) -> NDArray[np.uint64]:
        """What tells the noise of each candidate, shape (c,)."""
        return token_keys(self.tokens)

    def index_of(self, token: Token) -> int | None:
        """Where a token stands among the candidates; None if it is none of them."""
        return _index_in(self.tokens, token)

    @property
    def log_hidden(self) -> float:
        """log of the mass that the base did not tell of, nats."""
        return math.log(max(1.0 - self.covered_mass, 1e-300))

    @property
    def base_top(self) -> int:
        """The candidate that the base finds likeliest."""
        return self._top(self.log_q)

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
        order = descending(self.log_p)
        if len(order) > 2 * _KEPT:
            wanted = set(order[:_KEPT].tolist()) | set(descending(self.log_q)[:_KEPT].tolist())
            order = np.array([i for i in order if i in wanted])
        order = order[np.isfinite(self.log_p[order])]
        tokens = tuple(self.tokens[int(i)] for i in order)
        if all(token.key != chosen.key for token in tokens):
            index = next(i for i, token in enumerate(self.tokens) if token.key == chosen.key)
            order, tokens = np.append(order, index), (*tokens, chosen)
        scores = self.scores[0]
        how: tuple[How, ...] = tuple(
            max((each.how[int(i)] for each in self.scores), key=_LEAST_SURE.index) for i in order
        )
        expert, antiexpert = scores.log_expert[order], scores.log_antiexpert[order]
        return Candidates(tokens, self.log_q[order], expert, antiexpert, self.log_p[order], order >= self.shown, how)

    def _how(self, index: int) -> How:
        """Of all pairs what is known least of this candidate."""
        return max((scores.how[index] for scores in self.scores), key=_LEAST_SURE.index)


def weigh(
    position: Position,
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    equation: Equation,
    place: int,
    known: Known = NOTHING_KNOWN,
) -> Weighed:
    """q of the candidates and of the tail, the pairs' offsets, and p from them."""
    tokens, log_q = one_end(position.tokens, position.logprobs)
    if len(tokens) == 0:
        raise NoLogprobs(
            "the base gave no log probability at this position", hint="Use a model and API that return top logprobs."
        )
    covered = maths.covered_mass(log_q)
    told_log_q, cap = log_q, float(np.min(log_q))
    count = equation.tail_size + len(known.joining)
    limit = min((row.limit for row in rows if row.limit is not None), default=len(tokens))
    if len(tokens) > limit:
        tokens, log_q = _worth_scoring(tokens, log_q, rows, limit, 2 * count, known.joining)
    scores = [row.score(tokens) for row in rows]
    hidden = equation.tail != "truncate" and maths.hidden_by(covered) > 0.0
    proposed, told = _told_first(_proposals(tokens, rows if hidden else (), count, known.joining), known.log_q)
    everything, shown = tokens, len(tokens)
    if proposed:
        beyond = [row.score(proposed) for row in rows]
        spread = equation.spread
        log_a = log_spread(pairs, [each.disjoint for each in scores], spread)
        log_a_beyond = log_spread(pairs, beyond, spread)
        told_log_q = np.concatenate([told_log_q, told])
        covered = maths.covered_mass(told_log_q)
        log_a = np.concatenate([log_a, log_spread(pairs, [each.disjoint for each in beyond], spread)[: len(told)]])
        rest = maths.tail(told_log_q, log_a, log_a_beyond[len(told) :], equation.tail, cap, spread.temperature)
        log_q_beyond = np.concatenate([told, rest])
        real = np.isfinite(log_q_beyond)
        shown += int(real[: len(told)].sum())
        everything = [*tokens, *(token for token, ok in zip(proposed, real.tolist(), strict=True) if ok)]
        log_q = np.concatenate([log_q, log_q_beyond[real]])
        scores = [score.then(more.only(real)) for score, more in zip(scores, beyond, strict=True)]
    log_p = equation.log_p(log_q, scores, place, shown)
    most = min(cap, math.log(max(maths.hidden_by(covered), 1e-300)))
    return Weighed(everything, shown, log_q, log_p, scores, covered, most)


def _proposals(tokens: Sequence[Token], rows: Sequence[Row], count: int, joining: Sequence[Token]) -> list[Token]:
    """What the experts would say and the base does not show, after the tokens that join in any case."""
    found = {token.key: token for token in joining if _index_in(tokens, token) is None}
    if rows:
        known = {token.key for token in tokens}
        for row in rows:
            for token in row.propose(count + len(known)):
                if token.key not in known and (token.end or token.bytes):
                    found.setdefault(token.key, token)
    return list(found.values())[: max(count * len(rows), len(joining))]


def _told_first(proposed: Sequence[Token], known: Mapping[Key, float]) -> tuple[list[Token], Floats]:
    """The tokens of which log q is known, and that, (told,); after them those of which it is not."""
    values = np.array([known.get(token.key, math.nan) for token in proposed], dtype=np.float64)
    order = np.argsort(np.isnan(values), kind="stable")
    return [proposed[int(i)] for i in order], values[~np.isnan(values)]


def log_spread(pairs: Sequence[Pair], scores: Sequence[Scores], spread: Spread = PLAIN_SPREAD) -> Floats:
    """How hidden mass is spread, (c,): as the untuned models would, or as was learned; as an expert where it has no
    other.
    """
    return maths.mixture(
        [
            spread.log_mass(s.log_expert, s.log_antiexpert) if pair.has_antiexpert else s.log_expert
            for pair, s in zip(pairs, scores, strict=True)
        ]
    )


def worth_asking(
    weighed: Weighed, known: Known, temperature: float, weights: Weights | None = None
) -> tuple[Token, ...]:
    """Of the tail, what could be chosen if its log q were the largest that it can be, and no estimate, those that could
    most first. Greedy: what could be the likeliest; sampled: what could have `_NOTICED` of the likeliest. What was
    asked and not told is not asked again.
    """
    beyond = slice(weighed.shown, None)
    of_q, of_estimates = (1.0, 0.0) if weights is None else (weights.base, weights.tail)
    bound = of_q * (weighed.most - weighed.log_q[beyond]) + weighed.log_p[beyond] - of_estimates
    best = float(np.max(weighed.log_p[: weighed.shown]))
    enough = best if temperature == 0.0 else best + temperature * math.log(_NOTICED)
    order = np.argsort(-bound, kind="stable")
    wanted = [weighed.tokens[weighed.shown + int(i)] for i in order if bound[i] >= enough]
    return tuple(token for token in wanted if token.key not in known.log_q)


def token_keys(tokens: Sequence[Token]) -> NDArray[np.uint64]:
    """A number for each token, shape (c,), the same whenever it is the same token; all end tokens are one."""
    if isinstance(tokens, VocabularyTokens):
        keys = tokens.ids.astype(np.uint64) + np.uint64(1)
        keys[np.isin(tokens.ids, list(tokens.vocabulary.end_ids))] = 0
        return keys
    return np.array([_key(token) for token in tokens], dtype=np.uint64)


def _key(token: Token) -> int:
    kind, value = token.key
    if kind == "end":
        return 0
    if isinstance(value, int):
        return value + 1
    spelled = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(spelled, digest_size=8, key=str(kind).encode()).digest(), "little") | 1 << 63


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
    indices = np.flatnonzero(kept)
    return _taken(tokens, indices), merged[indices]


def _worth_scoring(
    tokens: Sequence[Token], log_q: Floats, rows: Sequence[Row], limit: int, count: int, joining: Sequence[Token]
) -> tuple[Sequence[Token], Floats]:
    """Of a long list (a whole vocabulary), the `limit` likeliest tokens of the base and what the experts propose.

    The others have neither the base's probability nor the expert's, so p has no place for them.
    """
    wanted = {token.key for row in rows for token in (*row.propose(count), *joining)}
    if isinstance(tokens, VocabularyTokens):
        ids = [key[1] for key in wanted if key[0] == "id"]
        proposed = np.isin(tokens.ids, [*ids, *(tokens.vocabulary.end_ids if END_KEY in wanted else ())])
    else:
        proposed = np.array([token.key in wanted for token in tokens])
    proposed[np.argsort(-log_q, kind="stable")[:limit]] = True
    indices = np.flatnonzero(proposed)
    return _taken(tokens, indices), log_q[indices]


def _taken(tokens: Sequence[Token], indices: NDArray[np.intp]) -> Sequence[Token]:
    if isinstance(tokens, VocabularyTokens):
        return VocabularyTokens(tokens.ids[indices], tokens.vocabulary)
    return [tokens[int(i)] for i in indices]


def _index_in(tokens: Sequence[Token], token: Token) -> int | None:
    if isinstance(tokens, VocabularyTokens) and not token.end:
        found = np.flatnonzero(tokens.ids == (-1 if token.id is None else token.id))
        return int(found[0]) if len(found) else None
    return next((i for i, other in enumerate(tokens) if other.key == token.key), None)
