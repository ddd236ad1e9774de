"""Accept or replace a drafted token so that what is kept follows p exactly (speculative sampling).

The base is the *draft* model with distribution q, the tuned model the *target* with p (Leviathan et al. 2023, arXiv
2211.17192, section 2.3; Chen et al. 2023, arXiv 2302.01318), with one difference: q is known for the candidates C that
the API shows and for nothing else. The tail's q is an estimate that went into p, not what the API draws from. So a
drafted token outside C is never accepted by ratio, and the residual gives the tail all of its p:

    accept d in C with probability min(1, p(d) / q(d));  otherwise draw from  (max(0, p - q) on C,  p on the tail) / Z

    P(c) = q(c) min(1, p(c)/q(c)) + (1 - sum_C min(p, q)) max(0, p(c) - q(c)) / Z = p(c),    Z = 1 - sum_C min(p, q)
"""

from __future__ import annotations

import numpy as np

from blackbox_proxy.types import Floats


def accepts(p: float, q: float, u: float) -> bool:
    """Whether a token drafted with probability q is kept, u being uniform on [0, 1): with probability min(1, p/q)."""
    return u * q < p


def residual(p: Floats, q: Floats, shown: int) -> Floats:
    """Unnormalised weights (c,) that a replacement is drawn from. The first `shown` candidates are C, the rest the
    tail, whose q is not looked at.
    """
    rest = np.array(p)
    rest[:shown] = np.maximum(p[:shown] - q[:shown], 0.0)
    return rest


def overlap(p: Floats, q: Floats, shown: int) -> float:
    """sum over C of min(p, q): the probability that a token drawn from q is accepted."""
    return float(np.minimum(p[:shown], q[:shown]).sum())
