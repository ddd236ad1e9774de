"""The candidates of steps: what p would be at another alpha, and which of them are worth showing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from blackbox_proxy.analysis.places import before_of, chosen_index
from blackbox_proxy.types import Candidates, Floats, How, Step

SCALES = tuple(i / 8 for i in range(17))


# -- another alpha ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """The same places at `scale` times the alpha that was used. changed: the share where the likeliest token is not
    the base's; kept: the share where it is the text's own token; distance: mean total variation from the base.
    """

    scale: float
    changed: float
    kept: float
    distance: float


def sweep(
    steps: Iterable[Step], scales: Sequence[float] = SCALES, *, alpha: float | None = None
) -> tuple[SweepPoint, ...]:
    """p at other alphas over the stored candidates, along the text as it stands: p_s ~ q * (p / q)^s.

    Exact at each place for one pair or several and any schedule, as far as the step kept all its candidates; but a text
    decoded at another alpha would go its own way after the first token that differs. Where the text was decoded with
    alpha = 0, p says nothing of the pair: then E / A takes the place of p / q, and `scale` is alpha itself. Empty where
    no step has candidates.
    """
    factors = np.array(scales, dtype=np.float64)[:, None]
    rows = []
    for step in steps:
        chosen = chosen_index(step)
        if chosen is None:
            continue
        log_q = step.candidates.log_q
        with np.errstate(invalid="ignore"):  # nothing times what is impossible
            log_p = np.where(factors == 0.0, log_q, log_q + factors * _offset(step, alpha))
        top, before = np.argmax(log_p, axis=1), int(np.argmax(log_q))
        p = np.exp(log_p - np.max(log_p, axis=1, keepdims=True))
        distances = 0.5 * np.abs(p / p.sum(axis=1, keepdims=True) - before_of(log_q)).sum(axis=1)
        rows.append(np.stack([top != before, top == chosen, distances]))
    if not rows:
        return ()
    means = np.mean(rows, axis=0)
    return tuple(SweepPoint(float(scale), *means[:, i].tolist()) for i, scale in enumerate(scales))


def _offset(step: Step, alpha: float | None) -> Floats:
    columns = step.candidates
    with np.errstate(invalid="ignore"):
        if alpha == 0.0:
            offset = columns.log_expert - columns.log_antiexpert
            return np.where(np.isfinite(offset), offset, 0.0)
        offset = columns.log_p - columns.log_q
    return np.where(np.isnan(offset), -np.inf, offset)


# -- what is worth showing of a step ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """One candidate in probabilities; nan where a model cannot say. `estimated`: q is the tail policy's. terms: what
    each term of learned weights adds to log p + log Z, nats (see `Factors`).
    """

    token: bytes
    printed: str
    end: bool
    q: float
    expert: float
    antiexpert: float
    p: float
    estimated: bool
    how: How
    chosen: bool
    terms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Factors:
    """Learned weights of one pair: of log q, log E and log A, and what is added where q is estimated."""

    names: ClassVar[tuple[str, ...]] = ("q", "E", "A", "tail")
    q: float
    expert: float
    antiexpert: float
    tail: float

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Factors | None:
        """As a trace's settings have them; None where they have none, or those of several pairs."""
        weights = settings.get("weights")
        if not isinstance(weights, Mapping) or len(weights["experts"]) != 1:
            return None
        return cls(weights["base"], weights["experts"][0], weights["antiexperts"][0] or 0.0, weights["tail"])

    def terms(self, columns: Candidates, i: int) -> tuple[float, ...]:
        """Of one candidate; nan where a model cannot say."""
        logs = (columns.log_expert[i], columns.log_antiexpert[i])
        e, a = (float(log) if math.isfinite(log) else math.nan for log in logs)
        estimated = self.tail if columns.tail[i] else 0.0
        return self.q * float(columns.log_q[i]), self.expert * e, -self.antiexpert * a, estimated


@dataclass(frozen=True, slots=True)
class Telling:
    """The candidates that tell most, likeliest under p first, and what the others have together."""

    rows: tuple[Shown, ...]
    others: int
    others_q: float
    others_p: float


def telling(step: Step, count: int = 8, factors: Factors | None = None) -> Telling:
    """The `count` candidates that are likeliest under p or under q, whichever is more, and the chosen one; with the
    terms of learned weights, where there are any.
    """
    columns, chosen = step.candidates, chosen_index(step)
    if not len(columns):
        return Telling((), 0, 0.0, 0.0)
    q, p = np.exp(columns.log_q), np.exp(columns.log_p)
    order = np.argsort(-np.maximum(p, before_of(columns.log_q)), kind="stable")
    kept = {*order[:count].tolist()} | ({chosen} if chosen is not None else set())
    rest = np.array([i for i in range(len(columns)) if i not in kept], dtype=int)
    alone = not columns.log_antiexpert.any()  # there is no anti-expert
    with np.errstate(invalid="ignore"):
        expert = np.where(np.isfinite(columns.log_expert), np.exp(columns.log_expert), np.nan)
        antiexpert = np.where(np.isfinite(columns.log_antiexpert), np.exp(columns.log_antiexpert), np.nan)
    rows = tuple(
        Shown(
            columns.tokens[i].bytes or b"",
            columns.tokens[i].text,
            columns.tokens[i].end,
            float(q[i]),
            float(expert[i]),
            math.nan if alone else float(antiexpert[i]),
            float(p[i]),
            bool(columns.tail[i]),
            columns.how[i],
            i == chosen,
            () if factors is None else factors.terms(columns, i),
        )
        for i in sorted(kept, key=lambda i: (-p[i], -q[i], i))
    )
    return Telling(rows, len(rest), float(q[rest].sum()), float(p[rest].sum()))
