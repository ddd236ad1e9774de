"""Weighing a position as a whole: with tokens whose q is known from elsewhere, and with everything that is not listed.

`weigh` decides between candidates, so it normalises over them. To say how probable a *given* token is, Z must cover the
whole vocabulary, or a token that the base does not show would seem likelier than it is. Here tokens join the candidates
whose log q is known (given text, options, what was asked by name), and all that is on no list joins as one event:

    weight of the rest  =  (1 - sum q)  *  prod_i ( (1 - sum E_i) / (1 - sum A_i) )^alpha_i        sums over the listed

It is exact at alpha = 0, where expert and anti-expert agree, and where nothing is hidden; at alpha = 1 it is exact if
the base spreads over the rest as the anti-expert does, which is what the backoff tail assumes (combine.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from blackbox_proxy.decoding.weigh import Settings, Weighed, alpha_at, weigh
from blackbox_proxy.maths.equation import hidden_mass
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.protocols import Pair, Row
from blackbox_proxy.types import Floats, Position, Scores, Token

Told = Sequence[tuple[Token, float]]
"""Tokens and their log q in nats."""

_LEAST = 1e-6  # a rest of E or A below this is rounding


def weigh_told(
    position: Position, rows: Sequence[Row], pairs: Sequence[Pair], settings: Settings, place: int, told: Told
) -> Weighed:
    """`weigh` with these tokens among the candidates, whatever the tail policy; of one that the base shows, the base's
    own q counts. `log_p` is over the whole vocabulary: what is missing to 1 is the rest's.
    """
    tokens = [token for token, _ in told]
    wanted: list[Row] = [_Proposing(row, tokens) for row in rows]
    wider = replace(settings, tail_size=settings.tail_size + len(tokens))
    known = {token.key: log_q for token, log_q in told if math.isfinite(log_q)}
    weighed = weigh(position, wanted, pairs, wider, place, known)
    beyond = [token for token in tokens if token.key in known and weighed.place_of(token) is None]
    everything = weighed.tokens if not beyond else [*weighed.tokens, *beyond]
    log_q = np.concatenate([weighed.log_q, [known[token.key] for token in beyond]])
    scores = [_appended(row.score(weighed.tokens), row.score(beyond)) for row in rows]
    alphas = [alpha_at(alpha, place) for alpha in settings.alphas]
    log_p = _over_everything(log_q, scores, alphas, [pair.has_antiexpert for pair in pairs])
    return replace(weighed, tokens=everything, log_q=log_q, log_p=log_p, scores=scores[0])


def _over_everything(
    log_q: Floats, scores: Sequence[Scores], alphas: Sequence[float], has_antiexpert: Sequence[bool]
) -> Floats:
    """log p (c,) of the listed tokens: the equation with the rest as one more event."""
    log_weights = np.array(log_q, dtype=np.float64)
    hidden = hidden_mass(log_q)
    log_rest = math.log(hidden) if hidden > 0.0 else -math.inf
    for score, alpha, ratio in zip(scores, alphas, has_antiexpert, strict=True):
        if alpha == 0.0:
            continue
        log_weights += alpha * score.offset
        if ratio:
            log_rest += alpha * (_log_rest(score.log_expert) - _log_rest(score.log_antiexpert))
        else:  # without a ratio a sum of products cannot be told from its factors: the least of the others
            log_rest += alpha * float(np.min(score.offset))
    total: Floats = log_weights - np.logaddexp(logsumexp(log_weights), log_rest)
    return total


def _log_rest(log_masses: Floats) -> float:
    """log (1 - sum) of masses, not less than rounding."""
    return math.log(max(1.0 - math.exp(logsumexp(log_masses)), _LEAST))


def _appended(one: Scores, other: Scores) -> Scores:
    if len(other.how) == 0:
        return one
    return Scores(
        np.concatenate([one.log_expert, other.log_expert]),
        np.concatenate([one.log_antiexpert, other.log_antiexpert]),
        np.concatenate([one.offset, other.offset]),
        (*one.how, *other.how),
    )


class _Proposing:
    """A row that proposes some tokens before its own."""

    limit: int | None

    def __init__(self, row: Row, tokens: Sequence[Token]) -> None:
        self._row = row
        self._tokens = list(tokens)
        self.limit = row.limit

    def score(self, tokens: Sequence[Token]) -> Scores:
        return self._row.score(tokens)

    def propose(self, count: int, model: int = 0) -> list[Token]:
        """They come on top of `count`: a long list must not crowd out what the model would say."""
        ours = {token.key for token in self._tokens}
        return [*self._tokens, *(token for token in self._row.propose(count, model) if token.key not in ours)]
