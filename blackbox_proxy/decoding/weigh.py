"""From a position's candidates to log p: one end, the tail, the pairs' offsets, the equation. No loop, no choice.

position, rows -> one_end -> scores, proposals, tail -> combine -> Weighed
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.errors import InputError, NoLogprobs
from blackbox_proxy.maths import equation
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.protocols import Pair, Row
from blackbox_proxy.text.vocabulary import VocabularyTokens
from blackbox_proxy.types import END_KEY, Candidates, Floats, How, Position, Scores, TailPolicy, Token

Alpha = float | Callable[[int], float]
"""A number, or a schedule: a function of the place in the text (tokens from 0)."""

_KEPT = 64  # candidates that a step keeps of a long list
_NOTICED = 1e-3  # of the likeliest candidate's probability: a sampled token below it is not worth a request


@dataclass(frozen=True, slots=True)
class Settings:
    """How a text is decoded. `alphas`: one per pair. `tail_size`: tokens the expert may propose beyond the base's
    candidates.
    """

    max_tokens: int
    alphas: tuple[Alpha, ...]
    sampling: Sampling
    stop: tuple[str, ...] = ()
    tail: TailPolicy = "backoff"
    tail_size: int = 32


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """Candidates of one position, those of the tail last: columns of equal length c. Scores are those of the first
    pair. `unknown`: tokens of the tail whose own q could change what is chosen, those that could most first; only
    under "ask".
    """

    tokens: Sequence[Token]
    shown: int
    log_q: Floats
    log_p: Floats
    scores: Scores
    covered_mass: float
    unknown: tuple[Token, ...] = ()

    def tie(self, index: int) -> tuple[object, ...]:
        """What decides between equal candidates: the base's preference, then the token itself, never the order of
        listing.
        """
        kind, value = self.tokens[index].key
        return (-self.log_q[index], kind, str(value))

    def keys(self) -> NDArray[np.uint64]:
        """What tells the noise of each candidate, shape (c,)."""
        return token_keys(self.tokens)

    def place_of(self, token: Token) -> int | None:
        """Where a token stands among the candidates; None if it is none of them."""
        if isinstance(self.tokens, VocabularyTokens) and not token.end:
            found = np.flatnonzero(self.tokens.ids == (-1 if token.id is None else token.id))
            return int(found[0]) if len(found) else None
        return next((i for i, other in enumerate(self.tokens) if other.key == token.key), None)

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


def weigh(
    position: Position,
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    settings: Settings,
    place: int,
    revealed: Mapping[tuple[str, object], float] | None = None,
) -> Weighed:
    """q of the candidates and of the tail, the pairs' offsets, and p from them (design: section 2.1).

    revealed: log q of tokens that the base was asked about by name, by their keys; NaN where it did not say.
    """
    tokens, log_q = one_end(position.tokens, position.logprobs)
    if len(tokens) == 0:
        raise NoLogprobs(
            "the base gave no log probability at this position", hint="Use a model and API that return top logprobs."
        )
    shown_log_q = log_q
    limit = min((row.limit for row in rows if row.limit is not None), default=len(tokens))
    if len(tokens) > limit:
        tokens, log_q = _worth_scoring(tokens, log_q, rows, limit, settings.tail_size)
    scores = [row.score(tokens) for row in rows]
    alphas = [alpha_at(alpha, place) for alpha in settings.alphas]
    everything: list[Token] | Sequence[Token] = tokens
    shown, unknown = len(tokens), tuple[Token, ...]()
    cap = float(np.min(shown_log_q))
    if settings.tail != "truncate" and equation.hidden_mass(shown_log_q) > 0.0:
        proposed, told = _told_first(_proposals(tokens, rows, settings.tail_size), revealed or {})
        beyond = [row.score(proposed) for row in rows]
        spreads = [_spread(pair, score) for pair, score in zip(pairs, scores, strict=True)]
        spreads_beyond = [_spread(pair, score) for pair, score in zip(pairs, beyond, strict=True)]
        if proposed:
            log_a, log_a_tail = equation.mixture(spreads), equation.mixture(spreads_beyond)
            known_log_a = np.concatenate([log_a, log_a_tail[: len(told)]])
            shown_log_q = np.concatenate([shown_log_q, told])
            rest = equation.tail(shown_log_q, known_log_a, log_a_tail[len(told) :], settings.tail, cap)
            log_q_tail = np.concatenate([told, rest])
            real = np.isfinite(log_q_tail)
            shown += int(real[: len(told)].sum())
            everything = [*tokens, *(token for token, ok in zip(proposed, real.tolist(), strict=True) if ok)]
            log_q = np.concatenate([log_q, log_q_tail[real]])
            scores = [_joined(score, more, real) for score, more in zip(scores, beyond, strict=True)]
    offsets = [score.offset for score in scores]
    log_p = equation.combine(log_q, offsets, alphas)
    if settings.tail == "ask" and shown < len(everything):
        shift = equation.combine(np.zeros(len(log_q)), offsets, alphas)
        most = min(cap, math.log(max(equation.hidden_mass(shown_log_q), 1e-300)))
        unknown = _worth_asking(everything, shown, log_q, shift, most, settings, revealed or {})
    return Weighed(everything, shown, log_q, log_p, scores[0], equation.covered_mass(shown_log_q), unknown)


def _told_first(proposed: Sequence[Token], revealed: Mapping[tuple[str, object], float]) -> tuple[list[Token], Floats]:
    """The tokens of which the base has told log q, and that, (told,); after them those of which it has not."""
    values = np.array([revealed.get(token.key, math.nan) for token in proposed], dtype=np.float64)
    order = np.argsort(np.isnan(values), kind="stable")
    return [proposed[int(i)] for i in order], values[~np.isnan(values)]


def _worth_asking(
    tokens: Sequence[Token],
    shown: int,
    log_q: Floats,
    shift: Floats,
    most: float,
    settings: Settings,
    revealed: Mapping[tuple[str, object], float],
) -> tuple[Token, ...]:
    """Of the tail, what could be chosen if its log q were `most`, the largest that it can be. Greedy: what could be
    the likeliest; sampled: what could have `_NOTICED` of the likeliest.

    shift (c,): what the pairs add to log q, up to a constant. What was asked and not told is not asked again.
    """
    bound, best = most + shift[shown:], float(np.max(log_q[:shown] + shift[:shown]))
    temperature = settings.sampling.temperature
    enough = best if temperature == 0.0 else best + temperature * math.log(_NOTICED)
    order = np.argsort(-bound, kind="stable")
    wanted = [tokens[shown + int(i)] for i in order if bound[i] >= enough]
    return tuple(token for token in wanted if token.key not in revealed)


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
    return _taken(tokens, places), merged[places]


def _worth_scoring(
    tokens: Sequence[Token], log_q: Floats, rows: Sequence[Row], limit: int, count: int
) -> tuple[Sequence[Token], Floats]:
    """Of a long list (a whole vocabulary), the `limit` likeliest tokens of the base and what the experts propose.

    The others have neither the base's probability nor the expert's, so p has no place for them.
    """
    wanted = {token.key for row in rows for token in row.propose(2 * count)}
    if isinstance(tokens, VocabularyTokens):
        ids = [key[1] for key in wanted if key[0] == "id"]
        proposed = np.isin(tokens.ids, [*ids, *(tokens.vocabulary.end_ids if END_KEY in wanted else ())])
    else:
        proposed = np.array([token.key in wanted for token in tokens])
    proposed[np.argsort(-log_q, kind="stable")[:limit]] = True
    places = np.flatnonzero(proposed)
    return _taken(tokens, places), log_q[places]


def _taken(tokens: Sequence[Token], places: NDArray[np.intp]) -> Sequence[Token]:
    if isinstance(tokens, VocabularyTokens):
        return VocabularyTokens(tokens.ids[places], tokens.vocabulary)
    return [tokens[int(i)] for i in places]


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
