"""Of which candidates a better score is worth a pass of the models: those whose error could change what is made of p.

A pair may score by estimate first, and say by how much each offset can be off. What then holds of log p is a bar around
it, sum_i |alpha_i| error_i. Greedy, tokens contend if the upper ends of their bars reach the best lower end; one that
does so alone has won, unless something may go on from it and the models differ much: then all that it has may be a
longer token's (" I" of " Iris"), which no bar tells, so it is looked at itself.

    log p   a -1.0 ± 0.1     b -1.3 ± 0.4     c -4.0 ± 0.5     best lower end -1.1: a and b contend, c cannot win

Sampled, p itself is what counts: a token contends, too, where its error moves more than a stated part of p. The rule
looks at one place and nothing else, so p is the same for every draft length and order of questions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.maths.equation import normalise
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.text.vocabulary import Ids
from blackbox_proxy.types import Floats, Scores

Number = float | Floats

_NEAR = 3.0  # nats below the likeliest: a token of the tail that is farther off does not come up by what is spread
_SPREADS = 0.02  # of all mass: a candidate with less changes little of what is left for the tail
_BEGINS = 0.05  # of the expert's mass: a beginning with less does not hide its choice
_OPEN = 0.1  # nats: the error of what may go on is larger, of what ends where it ends smaller
_SURE = 0.5  # nats: the error of what may go on is larger where the models differ much about what comes next
_MARGIN = 0.5  # nats: of a bound that rests on estimates itself
_NEVER = -1e3  # log of a mass of nothing that can be reckoned with
_MOVED = 0.02  # of all probability: a token whose error moves less is left as it was estimated


def contenders(log_p: Floats, bar: Floats, temperature: float, parts: Parts | None = None) -> Ids:
    """Indices of the candidates to be scored anew: log_p (n,), finite somewhere, and its bar (n,), nats >= 0; of one
    position, or of several, each a part.
    """
    if not bar.any():
        return np.empty(0, dtype=np.intp)
    parts = Parts.of([len(log_p)]) if parts is None else parts
    contend = log_p + bar >= parts.each(parts.most(log_p - bar))
    contend &= parts.each(parts.counts(contend) > 1) | (bar > _SURE)
    if temperature > 0.0:
        contend |= _moved(normalise(log_p / temperature, parts), bar / temperature)
    return np.flatnonzero(contend & (bar > 0.0))


def spreading(
    log_p: Floats, bar: Floats, log_mass: Floats, told: NDArray[np.bool_], temperature: float, parts: Parts
) -> Ids:
    """Candidates that decide how much of the hidden mass each token of the tail gets: it is spread over what those that
    the base told (n,) leave of all mass, and beside a " " that was only the beginning of words nothing would be left.
    Once that is known better a token of the tail gets less; so wanted where one could be the likeliest, or, sampled, is
    near it. log_mass (n,): the spread's.
    """
    least = parts.most(log_p - bar) - _MARGIN if temperature == 0.0 else parts.most(log_p) - _NEAR
    near = parts.most(np.where(told, -np.inf, log_p)) >= least
    near &= parts.counts(~told) > 0
    return np.flatnonzero(parts.each(near) & (np.exp(log_mass) > _SPREADS) & (bar > 0.0))


def beginnings(scores: Scores, told: NDArray[np.bool_], parts: Parts) -> Ids:
    """Candidates that may be the beginning of what the expert writes, " Gre" of " Greta": the token that it becomes may
    be hidden by the base and covered by no token of the pair, and is known only once they are summed.
    """
    hides = parts.each(parts.counts(~told) > 0)
    return np.flatnonzero(hides & (np.exp(scores.log_expert) > _BEGINS) & (scores.error > _OPEN))


def hidden_bound(
    log_e: Floats,
    log_a: Floats,
    factors: tuple[Number, Number, Number],
    log_hidden: Number,
    most: Number,
    log_outside: Number,
) -> Floats:
    """The largest that w_q log q + w_E log E - w_A log A can be, (c,) nats, of a token that the base hides and that is
    part of an event with E and A (c,).

    Its q is the smaller of `most` and r A / A(not C), with log r = log_hidden and log A(not C) = log_outside. In log A
    that makes two straight lines: largest where they meet, or where A is all of the event's; without bound where it
    grows as A vanishes. All but E and A may be one number, or one for each event.
    """
    of_q, of_e, of_a = factors
    meet = most - log_hidden + log_outside
    ends = [
        of_q * np.minimum(most, log_hidden + end - log_outside) - of_a * end
        for end in (np.minimum(meet, np.maximum(log_a, _NEVER)), np.maximum(log_a, _NEVER))
    ]
    bound = of_e * log_e + np.max(ends, axis=0)
    unbound = (np.asarray(of_e) < 0.0) | (np.asarray(of_q) < of_a)
    return np.where(unbound, np.inf, bound)


def matters(
    bound: Floats, log_p: Floats, bar: Floats, temperature: float, parts: Parts, owners: Ids
) -> NDArray[np.bool_]:
    """Whether a token whose log p may be as large as this, (b,), could be chosen, or moves p by a stated part; owners
    (b,): the parts that they belong to.
    """
    reach: NDArray[np.bool_] = bound >= parts.most(log_p - bar)[owners] - _MARGIN
    if temperature > 0.0:
        log_z = parts.log_sums(log_p / temperature)[owners]
        with np.errstate(over="ignore"):
            reach |= np.exp((bound + _MARGIN) / temperature - log_z) > _MOVED
    return reach


def noticeable(log_mass: Floats, bar: Floats) -> Ids:
    """The same where offsets themselves are asked for, and no p: log_mass (c,) is what the pair gives each token."""
    return np.flatnonzero(_moved(log_mass, bar))


def _moved(log_p: Floats, bar: Floats) -> NDArray[np.bool_]:
    """Whether each error can add a stated part of all probability to its token: p (exp(bar) - 1)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.exp(log_p) * np.expm1(bar) > _MOVED
