"""Which alpha to use: the values to try, and the one that does best on a development file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.compare import Table, better
from blackbox_proxy.evaluation.tasks import Metric

_MOST = 201  # alphas in one sweep
_HINT = "Give alpha=START:STOP:STEP, as alpha=0:2:0.25."


@dataclass(frozen=True, slots=True)
class Point:
    """The metric at one alpha, with its interval."""

    alpha: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """The curve over alpha and its best point; of several equally good ones that of the smallest alpha.

    edge: the best is the "lowest" or "highest" alpha tried, so that it may lie beyond; None inside. requests: what all
    alphas together took here, cache included; single: what the picked alpha takes by itself from an empty cache.
    notes: what must be said in words.
    """

    metric: Metric
    points: tuple[Point, ...]
    best: Point
    edge: str | None
    requests: int
    single: int
    notes: tuple[str, ...]

    @property
    def relative_requests(self) -> float:
        """Requests of the sweep for each one of a single alpha's run; 0 where everything came from the cache."""
        return self.requests / self.single if self.single else 0.0


def parse_sweep(text: str) -> tuple[float, ...]:
    """The alphas of "alpha=0:2:0.25", both ends included. Raises InputError."""
    name, equals, numbers = text.partition("=")
    parts = numbers.split(":")
    try:
        start, stop, step = (float(part) for part in parts)
    except ValueError as error:
        raise InputError(f"--sweep cannot be {text!r}", hint=_HINT) from error
    if name.strip() != "alpha" or not equals or not all(map(math.isfinite, (start, stop, step))):
        raise InputError(f"--sweep cannot be {text!r}", hint=_HINT)
    if step <= 0 or stop <= start:
        raise InputError(f"a sweep goes upwards, and {text!r} does not", hint=_HINT)
    count = math.floor((stop - start) / step + 1e-9) + 1
    if count > _MOST:
        raise InputError(f"{text!r} are {count} alphas, more than {_MOST}", hint="Take larger steps.")
    return tuple(round(start + i * step, 10) for i in range(count))


def sweep_of(table: Table, requests: int) -> Sweep:
    """The curve and the pick of a table with several alphas. requests: what was spent on all of it."""
    tuned = sorted((r for r in table.results if r.system.alpha is not None), key=lambda r: r.system.alpha or 0.0)
    points = tuple(Point(r.system.alpha or 0.0, r.value, r.low, r.high) for r in tuned)
    best = pick(points, table.metric)
    single = next(r.requests for r in tuned if r.system.alpha == best.alpha)
    edge = None
    if len(points) > 1:
        edge = {points[0].alpha: "lowest", points[-1].alpha: "highest"}.get(best.alpha)
    notes = [
        f"The score at the picked alpha {best.alpha:g} is optimistic: alpha was chosen on these very rows. "
        "Measure it on others."
    ]
    flat = all(point.value == best.value for point in points)
    if flat:
        notes.append("All alphas do equally well: this file cannot tell them apart.")
    elif edge is not None:
        beyond = "the best may lie beyond: widen the sweep " + ("upwards" if edge == "highest" else "downwards")
        if best.alpha == 0.0:
            beyond = "the pair does not help here"
        notes.append(f"The best alpha is the {edge} that was tried; {beyond}.")
    overlapping = [p for p in points if p.alpha != best.alpha and p.low <= best.value <= p.high]
    if overlapping and not flat:
        low, high = min(p.alpha for p in (*overlapping, best)), max(p.alpha for p in (*overlapping, best))
        notes.append(
            f"Alphas between {low:g} and {high:g} are not surely worse: its score lies within their intervals."
        )
    return Sweep(table.metric, points, best, edge, requests, single, tuple(notes))


def pick(points: Sequence[Point], metric: Metric) -> Point:
    """The best point; of equally good ones that of the smallest alpha. Raises InputError where nothing was measured."""
    real = [point for point in points if not math.isnan(point.value)]
    if not real:
        raise InputError("no alpha could be measured", hint="Look at the errors of the rows.")
    best = real[0]
    for point in sorted(real, key=lambda point: point.alpha):
        if better(metric, point.value, best.value) > 0 or (point.value == best.value and point.alpha < best.alpha):
            best = point
    return best
