"""A position as a whole: p over the base's whole vocabulary, with everything that is not listed as one more event.

`weigh` decides between candidates, so it normalises over them. To say how probable a *given* token is, Z must cover the
whole vocabulary, or a token that the base does not show would seem likelier than it is. So tokens whose log q is known
(given text, options) join the candidates, and all that is on no list joins as one event:

    weight of the rest  =  (1 - sum q)  *  prod_i ( (1 - sum E_i) / (1 - sum A_i) )^alpha_i        sums over the listed

It is exact at alpha = 0, where expert and anti-expert agree, and where nothing is hidden; at alpha = 1 it is exact if
the base spreads over the rest as the anti-expert does, which is what the backoff tail assumes (equation.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from blackbox_proxy.decoding.weigh import Weighed
from blackbox_proxy.maths.equation import Equation, hidden_mass
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.protocols import Pair
from blackbox_proxy.types import Floats

_LEAST = 1e-6  # a rest of E or A below this is rounding


def over_everything(weighed: Weighed, pairs: Sequence[Pair], equation: Equation, place: int) -> Weighed:
    """The same candidates with `log_p` over the whole vocabulary: what is missing to 1 is the rest's."""
    log_weights = weighed.log_q + equation.shift(weighed.scores, place)
    hidden = hidden_mass(weighed.log_q)
    log_rest = math.log(hidden) if hidden > 0.0 else -math.inf
    for pair, scores, alpha in zip(pairs, weighed.scores, equation.at(place), strict=True):
        if alpha == 0.0:
            continue
        if pair.has_antiexpert:
            log_rest += alpha * (_log_rest(scores.log_expert) - _log_rest(scores.log_antiexpert))
        else:  # without a ratio a sum of products cannot be told from its factors: the least of the others
            log_rest += alpha * float(scores.offset.min())
    total: Floats = log_weights - np.logaddexp(logsumexp(log_weights), log_rest)
    return replace(weighed, log_p=total)


def _log_rest(log_masses: Floats) -> float:
    """log (1 - sum) of masses, not less than rounding."""
    return math.log(max(1.0 - math.exp(logsumexp(log_masses)), _LEAST))
