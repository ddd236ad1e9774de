"""From positions' candidates to log p: one end, the tail, the pairs' offsets, the equation. No loop, no choice, and
nothing but arithmetic: what the rows say is complete by now (rows.py).

    position -> Shown;  Shown, rows -> Listed: candidates, proposals            one by one
    Listed of many positions -> Stack -> scores, the tail, Equation.log_ps -> Weighed   all of them in one array
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.decoding.contenders import hidden_bound
from blackbox_proxy.decoding.weighed import NOTHING_KNOWN, Known, Weighed, index_in
from blackbox_proxy.errors import NoLogprobs
from blackbox_proxy.maths import equation as maths
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.maths.order import largest
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.maths.weights import PLAIN_SPREAD, Spread
from blackbox_proxy.protocols import Pair, Row, Together
from blackbox_proxy.text.vocabulary import Ids, VocabularyTokens
from blackbox_proxy.types import END_KEY, Floats, Key, Position, Scores, TailPolicy, Token

_LISTED = 256  # tokens of a position: more are left an array of ids, fewer are looked at often


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The base's own candidates at a position, all ends as one: log_q (c,); mass: the sum of their q; least: the
    smallest log q, nats.
    """

    tokens: Sequence[Token]
    log_q: Floats
    mass: float
    least: float

    @classmethod
    def at(cls, position: Position) -> Shown:
        """Raises NoLogprobs."""
        few = len(position.tokens) <= _LISTED
        tokens, log_q = one_end(list(position.tokens) if few else position.tokens, position.logprobs)
        if len(tokens) == 0:
            raise NoLogprobs(
                "the base gave no log probability at this position",
                hint="Use a model and API that return top logprobs.",
            )
        return cls(tokens, log_q, float(np.exp(log_q).sum()), float(log_q.min()))


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """Everything that is weighed at a position: the base's candidates, what it told by name, and what is estimated.

    blocks: those tokens again, in the pieces in which they are scored: a whole vocabulary is no list. log_q (c,), nats,
    of the first `told`; of the others it is yet to be estimated, and 0. mass, least: of all that the base told, and of
    its own candidates.
    """

    tokens: Sequence[Token]
    blocks: Sequence[Sequence[Token]]
    told: int
    log_q: Floats
    mass: float
    least: float


def listed(shown: Shown, rows: Sequence[Row], tail: TailPolicy, tail_size: int, known: Known = NOTHING_KNOWN) -> Listed:
    """The candidates of a position, and what the experts propose besides where the base hides something."""
    tokens, log_q = shown.tokens, shown.log_q
    count = tail_size + len(known.joining)
    limit = min((row.limit for row in rows if row.limit is not None), default=len(tokens))
    if len(tokens) > limit:
        tokens, log_q = _worth_scoring(tokens, log_q, rows, limit, 2 * count, known.joining)
    hidden = tail != "truncate" and maths.hidden_by(min(1.0, shown.mass)) > 0.0
    proposed = _proposals(tokens, rows if hidden else (), count, known.joining)
    if not proposed:
        return Listed(tokens, (tokens,), len(tokens), log_q, shown.mass, shown.least)
    proposed, told = _told_first(proposed, known.log_q)
    every = [*tokens, *proposed]
    blocks = (tokens, proposed) if isinstance(tokens, VocabularyTokens) else (every,)
    mass = shown.mass + float(np.exp(told).sum())
    values = np.concatenate([log_q, told, np.zeros(len(proposed) - len(told))])
    return Listed(every, blocks, len(tokens) + len(told), values, mass, shown.least)


def scores_at(wanted: Sequence[tuple[Row, Sequence[Token]]]) -> Scores:
    """What one pair says of tokens at many positions, those of one after those of the other."""
    first = wanted[0][0]
    if len(wanted) > 1 and isinstance(first, Together):
        draft = first.draft
        if all(getattr(row, "draft", None) is draft for row, _ in wanted):  # isinstance of each takes long
            return first.score_all(wanted)
    one, *more = (row.score(tokens) for row, tokens in wanted)
    return one.then(*more)


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The candidates of many positions under one another, each position a part; their q are known or estimated by now.

    mass, least (p,): see `Listed`. log_q (n,); told (n,): whether the base told it; scores: of each pair.
    """

    mass: Floats
    least: Floats
    tokens: Sequence[Sequence[Token]]
    log_q: Floats
    told: NDArray[np.bool_]
    scores: Sequence[Scores]
    parts: Parts

    @classmethod
    def of(
        cls,
        positions: Sequence[Listed],
        rows: Sequence[Sequence[Row]],
        pairs: Sequence[Pair],
        tail: TailPolicy,
        spread: Spread,
    ) -> Stack:
        """Score, and estimate what is to be estimated; what has no mass is no candidate. rows: of each position, one of
        each pair.
        """
        parts = Parts.of([len(each.log_q) for each in positions])
        log_q = _joined([each.log_q for each in positions])
        scores = [
            scores_at([(row, block) for row, each in zip(own, positions, strict=True) for block in each.blocks])
            for own in zip(*rows, strict=True)
        ]
        tokens = [each.tokens for each in positions]
        mass, least = np.array([[each.mass, each.least] for each in positions]).T
        if all(each.told == len(each.log_q) for each in positions):
            told = np.ones(len(log_q), dtype=np.bool_)
        else:
            told = _joined([np.arange(len(each.log_q)) < each.told for each in positions])
            own = log_spread(pairs, [each.disjoint for each in scores], spread)
            log_a = np.where(told, own, log_spread(pairs, scores, spread))
            hidden = maths.hidden_masses(mass)
            log_q = np.where(told, log_q, maths.tails(hidden, log_a, told, parts, tail, least, spread.temperature))
        kept = np.isfinite(log_q)
        if not kept.all():
            tokens = [
                each if own.all() else list(itertools.compress(each, own.tolist()))
                for each, own in zip(tokens, parts.split(kept), strict=True)
            ]
            parts, log_q, told = parts.only(kept), log_q[kept], told[kept]
            scores = [each.only(kept) for each in scores]
        return cls(mass, least, tokens, log_q, told, scores, parts)

    @property
    def most(self) -> Floats:
        """The largest that log q of a token that the base did not show can be, (p,)."""
        found: Floats = np.minimum(self.least, np.log(np.maximum(maths.hidden_masses(self.mass), 1e-300)))
        return found

    def hidden_bound(self, log_p: Floats, factors: Floats, of_tail: float, some: Ids) -> Floats:
        """The largest that log p of a hidden token can be which is part of what the one pair has for some candidates,
        (b,). factors (3, p): see `Equation.factors`; of_tail: nats, what an estimated q adds.
        """
        (scores,), parts = self.scores, self.parts
        log_e, log_a = scores.log_expert, scores.log_antiexpert
        known = np.isfinite(log_e) & np.isfinite(log_a) & np.isfinite(log_p)
        best = parts.best(np.where(known, log_p, -np.inf))  # of any the difference to its terms is log Z
        of_q, of_e, of_a = factors
        with np.errstate(invalid="ignore"):  # of a token with unknown bytes the pair says nothing
            log_z = of_q * self.log_q[best] + of_e * log_e[best] - of_a * log_a[best] - log_p[best]
        log_z += of_tail * ~self.told[best]
        log_hidden = np.log(np.maximum(1.0 - np.minimum(self.mass, 1.0), 1e-300))
        log_outside = np.log(maths.uncovered(np.where(self.told, scores.own[1], 0.0), parts))
        own = parts.owners(some)
        w_q, w_e, w_a = factors[:, own]
        found = hidden_bound(
            log_e[some], log_a[some], (w_q, w_e, w_a), log_hidden[own], self.most[own], log_outside[own]
        )
        return np.where(known[best][own], found + of_tail - log_z[own], np.inf)

    def weighed(self, log_p: Floats) -> list[Weighed]:
        """Position by position, with log p (n,)."""
        counts = self.parts.counts(self.told).tolist()
        covered, most = np.minimum(self.mass, 1.0).tolist(), self.most.tolist()
        found = []
        for i, (start, end) in enumerate(self.parts.bounds):
            own = slice(start, end)
            scores = [each.only(own) for each in self.scores]
            found.append(Weighed(self.tokens[i], counts[i], self.log_q[own], log_p[own], scores, covered[i], most[i]))
        return found


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _proposals(tokens: Sequence[Token], rows: Sequence[Row], count: int, joining: Sequence[Token]) -> list[Token]:
    """What the experts would say and the base does not show, after the tokens that join in any case."""
    found = {token.key: token for token in joining if index_in(tokens, token) is None}
    most = max(count * len(rows), len(joining))
    if rows:
        known = {token.key for token in tokens}
        for token in itertools.chain.from_iterable(row.propose(count + len(known)) for row in rows):
            if len(found) >= most:
                break
            key = token.key
            if key not in known and key not in found and (token.end or token.bytes):
                found[key] = token
    return list(found.values())[:most]


def _told_first(proposed: Sequence[Token], known: Mapping[Key, float]) -> tuple[list[Token], Floats]:
    """The tokens of which log q is known, and that, (told,); after them those of which it is not."""
    if not known:
        return list(proposed), np.empty(0)
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
    proposed[largest(log_q, limit)] = True
    indices = np.flatnonzero(proposed)
    return _taken(tokens, indices), log_q[indices]


def _taken(tokens: Sequence[Token], indices: NDArray[np.intp]) -> Sequence[Token]:
    if isinstance(tokens, VocabularyTokens):
        return VocabularyTokens(tokens.ids[indices], tokens.vocabulary)
    return [tokens[int(i)] for i in indices]
