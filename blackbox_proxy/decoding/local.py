"""What the expert would write: the local draft, which the base is given to score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blackbox_proxy.decoding.weighed import token_keys
from blackbox_proxy.errors import ContextTooLong
from blackbox_proxy.maths.sampling import Sampling, choose
from blackbox_proxy.protocols import Row, Session
from blackbox_proxy.types import Position, Token


def expert_choice(row: Row, sampling: Sampling, count: int, place: int) -> Token | None:
    """The token that the expert would write at a place, in the base's spelling; drawn from its `count` likeliest, with
    the noise of that place.
    """
    proposed = row.propose(1 if sampling.temperature == 0.0 else count or 1)
    if len(proposed) <= 1 or sampling.temperature == 0.0:
        return proposed[0] if proposed else None
    log_e = row.score(proposed).log_expert
    log_e = np.where(np.isfinite(log_e), log_e, -np.inf)
    if not np.any(np.isfinite(log_e)):
        return proposed[0]
    return proposed[choose(log_e, sampling, place, lambda i: (i,), lambda: token_keys(proposed))]


def local_draft(session: Session, issued: Sequence[Token], n: int, sampling: Sampling, count: int) -> tuple[Token, ...]:
    """At most n tokens that the expert would write after the issued ones: one forward pass each.

    Ends early where the expert would end the text, write what is no token of the base, or has no room; the scoring
    will say what that means for the text.
    """
    drafted: list[Token] = []
    for place in range(len(issued), len(issued) + n):
        try:
            (row,) = session.score([*issued, *drafted], [Position.ahead()])
        except ContextTooLong:
            return ()
        token = expert_choice(row, sampling, count, place)
        if token is None or token.end or not token.bytes:
            break
        drafted.append(token)
    return tuple(drafted)
