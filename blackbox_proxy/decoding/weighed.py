"""What is known of one position once it is weighed: its candidates with log q, the pairs' scores and log p; and what
the base told besides when it was asked by name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.order import descending
from blackbox_proxy.maths.weights import Weights
from blackbox_proxy.text.vocabulary import VocabularyTokens
from blackbox_proxy.types import Candidates, Floats, How, Key, Scores, Token

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
        return index_in(self.tokens, token)

    @property
    def told(self) -> NDArray[np.bool_]:
        """Whether the base told a candidate's q, (c,)."""
        return np.arange(len(self.log_q)) < self.shown

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


def index_in(tokens: Sequence[Token], token: Token) -> int | None:
    """Where a token stands; None if it is not there."""
    if isinstance(tokens, VocabularyTokens) and not token.end:
        found = np.flatnonzero(tokens.ids == (-1 if token.id is None else token.id))
        return int(found[0]) if len(found) else None
    return next((i for i, other in enumerate(tokens) if other.key == token.key), None)
