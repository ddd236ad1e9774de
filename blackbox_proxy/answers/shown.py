"""What the tuned model shows at given text, as a server that scores its prompt does: candidates at every token of it.

As `score`, with the likeliest candidates beside each token. p is over the base's whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from blackbox_proxy.answers.scoring import given_positions, look_along
from blackbox_proxy.decoding.rows import Scored, Weigher
from blackbox_proxy.decoding.threads import on_thread
from blackbox_proxy.decoding.whole_vocabulary import of_given, over_everything
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.types import Position, Prefix, Prompt, Token, Usage


async def shown_at(
    base: Base, pairs: Sequence[Pair], prompt: Prompt, given: Sequence[Token], equation: Equation, k: int
) -> tuple[list[Position], Usage]:
    """A position for each of `given`, which follow `prompt`: log p of the token, and the k likeliest. And the cost.

    Where `Abilities.scores`. Raises ContextTooLong, BaseError, PairError.
    """
    positions, usage = await given_positions(base, Prefix(prompt), given)
    weigher = Weigher(pairs, (equation,), temperature=1.0)
    at = partial(_position, k=k)
    return await on_thread(look_along, base, prompt, positions, weigher, 0, at), usage


def _position(scored: Scored, k: int) -> Position:
    weigher, log_q = scored.weigher, scored.position.logprob
    assert log_q is not None, "given positions have it"
    equation = weigher.equations[0]
    weighed = over_everything(scored.under(0), weigher.pairs, equation, scored.place)
    index = weighed.index_of(scored.position.token)
    log_p = -math.inf if index is None and equation.weights is None else of_given(weighed, index, log_q)
    order = np.argsort(-weighed.log_p, kind="stable")[:k]
    order = order[np.isfinite(weighed.log_p[order])]
    return Position(scored.position.token, log_p, [weighed.tokens[int(i)] for i in order], weighed.log_p[order])
