"""A position as a whole: p over the base's whole vocabulary, with everything that is not listed as one more event.

`weigh` decides between candidates, so it normalises over them. To say how probable a *given* token is, Z must cover the
whole vocabulary, or a token that the base does not show would seem likelier than it is. So tokens whose log q is known
(given text, options) join the candidates, and all that is on no list joins as one event:

    weight of the rest  =  (1 - sum q)  *  prod_i ( (1 - sum E_i) / (1 - sum A_i) )^alpha_i        sums over the listed

It is exact at alpha = 0, where expert and anti-expert agree, and where nothing is hidden; at alpha = 1 it is exact if
the base spreads over the rest as the anti-expert does, which is what the backoff tail assumes (equation.py). Learned
weights have their factors here as well, and one number for the rest as a whole, since their exponents need not add up
to 1 and a sum of such products is no product of sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from blackbox_proxy.decoding.weigh import log_spread
from blackbox_proxy.decoding.weighed import Weighed
from blackbox_proxy.maths.equation import Equation, hidden_mass, unlisted_mass
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.maths.weights import log_rest as rest_of
from blackbox_proxy.protocols import Pair
from blackbox_proxy.types import Floats

_ROUNDING = math.log(1e-6)


def over_everything(weighed: Weighed, pairs: Sequence[Pair], equation: Equation, place: int) -> Weighed:
    """The same candidates with `log_p` over the whole vocabulary: what is missing to 1 is the rest's."""
    if equation.weights is not None:
        listed = log_spread(pairs, [scores.disjoint for scores in weighed.scores])
        hidden = unlisted_mass(weighed.log_q, listed, weighed.shown)
        log_weights = equation.weights.log_weights(weighed.log_q, weighed.scores, weighed.told)
        learned: Floats = log_weights - np.logaddexp(
            logsumexp(log_weights), equation.weights.log_rest(hidden, weighed.scores)
        )
        return replace(weighed, log_p=learned)
    hidden = hidden_mass(weighed.log_q)
    log_weights = weighed.log_q + equation.shift(weighed.scores, place)
    log_rest = math.log(hidden) if hidden > 0.0 else -math.inf
    for pair, scores, alpha in zip(pairs, weighed.scores, equation.at(place), strict=True):
        if alpha == 0.0:
            continue
        if pair.has_antiexpert:
            rest = rest_of(scores.own[0]) - rest_of(scores.own[1])
            log_rest += alpha * rest
        else:  # without a ratio a sum of products cannot be told from its factors: the least of the others
            log_rest += alpha * float(scores.offset.min())
    total: Floats = log_weights - np.logaddexp(logsumexp(log_weights), log_rest)
    return replace(weighed, log_p=total)


def of_given(weighed: Weighed, index: int | None, log_q: float) -> float:
    """log p of a given token: that of its candidate; as one of the rest (index None) a share of that, as large as its
    share of all that the base did not tell: no estimate of what is listed of it makes these shares more than 1.
    """
    if index is not None:
        return float(weighed.log_p[index])
    share, listed = log_share(weighed.log_q[: weighed.shown], log_q), math.exp(min(logsumexp(weighed.log_p), 0.0))
    if share is None or listed >= 1.0:
        return of_nothing(log_q)
    return math.log1p(-listed) + share


def log_share(shown: Floats, log_q: float) -> float | None:
    """log of a token's share of what the base did not show, whose candidates have log q `shown` (k,); None where that
    is nothing but rounding.
    """
    hidden = hidden_mass(shown)
    return None if hidden <= 0.0 else min(log_q - math.log(hidden), 0.0)


def of_nothing(log_q: float) -> float:
    """log p of a given token where no mass is left for what is not listed."""
    return min(log_q, _ROUNDING)
