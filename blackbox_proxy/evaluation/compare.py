"""From rows to a table: each system's figure with its interval, its distance from the base and how sure that is, and
what must be said in words.

All systems are compared on the same rows: those that every one of them has an answer to. What is left out is counted.
A larger difference is always better here, also where the figure itself is one of which less is better.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from blackbox_proxy.evaluation.statistics import (
    McNemar,
    PairedT,
    bootstrap_interval,
    bootstrap_p,
    mcnemar,
    paired_t_test,
    wilson_interval,
)
from blackbox_proxy.evaluation.systems import Answered, Outcome, System
from blackbox_proxy.evaluation.tasks import METRICS, Kind, Metric
from blackbox_proxy.prices import Prices
from blackbox_proxy.types import Floats, Usage

_MANY_ABSTAIN = 0.05
_MANY_UNSEEN = 0.2
_FEW_ROWS = 30
_ROUNDING = 1e-9
_NOUNS: dict[Metric, str] = {"accuracy": "accuracy", "exact_match": "exact match", "bits_per_byte": "bits per byte"}


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better than another system, on the same rows; below 0 is worse. low, high: bootstrap interval.

    For shares of right answers `t` is the paired t-test and `mcnemar` the exact test, whose p decides (`p`); for bits
    per byte p is the paired bootstrap's.
    """

    value: float
    low: float
    high: float
    p: float
    significant: bool
    t: PairedT | None = None
    mcnemar: McNemar | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One system's line. value: the metric, with its interval: Wilson's for shares, bootstrapped for bits per byte.

    gap_closed: the share of the way from the base to the ceiling. abstained: rows without an answer, counted as wrong;
    instead: what the base writes most often where it shows none of the options, "" the end of its text, None where it
    always shows one; unseen: rows where an option that the base did not show is estimated; errors: rows without a
    result, left out everywhere. tokens: decoded; requests: what the system needs by itself, from an empty cache; usage:
    what was spent on it here, after all systems above it; cost of that, where there are prices.
    """

    system: System
    value: float
    low: float
    high: float
    right: int | None
    abstained: int
    instead: str | None
    unseen: int
    errors: int
    tokens: int
    requests: int
    usage: Usage
    cost: float | None = None
    to_base: Difference | None = None
    to_expert: Difference | None = None
    gap_closed: float | None = None

    @property
    def requests_per_token(self) -> float | None:
        """None where nothing was decoded through the API."""
        return self.requests / self.tokens if self.requests and self.tokens else None


@dataclass(frozen=True, slots=True)
class Table:
    """All systems on the rows of one kind. rows: compared; dropped: left out for an error of at least one system, with
    the reasons, the commonest first.
    """

    kind: Kind
    metric: Metric
    rows: int
    dropped: int
    results: tuple[Result, ...]
    reasons: Mapping[str, int] = field(default_factory=dict)
    ceiling: float | None = None
    warnings: tuple[str, ...] = ()

    def result(self, key: str) -> Result | None:
        """The line of a system by its key ("base", "tuned@1")."""
        return next((result for result in self.results if result.system.key == key), None)


def table_of(
    kind: Kind,
    rows: Sequence[Answered],
    systems: Sequence[System],
    *,
    ceiling_value: float | None = None,
    prices: Prices | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Table:
    """Compare all systems on the rows of this kind."""
    metric = METRICS[kind]
    mine = [row for row in rows if row.task.kind == kind]
    whole = [row for row in mine if not row.errors]
    reasons: dict[str, int] = {}
    for row in mine:
        for reason in set(row.errors.values()):
            reasons[reason] = reasons.get(reason, 0) + 1
    weights = np.array([row.size if kind == "text" else 1.0 for row in whole])
    values = {
        system.key: np.array([_per_byte(row, system.key, kind) for row in whole], dtype=np.float64)
        for system in systems
    }
    compare = _Compare(metric, weights, confidence, seed)
    figures = {key: compare.figure(found) for key, found in values.items()}
    ceiling = figures["ceiling"][0] if "ceiling" in figures else ceiling_value
    results = []
    for system in systems:
        value, low, high = figures[system.key]
        outcomes = [row.outcomes[system.key] for row in whole]
        usage = sum((row.outcomes[system.key].usage for row in mine), Usage())
        to_base = compare.difference(values, system.key, "base")
        results.append(
            Result(
                system,
                value,
                low,
                high,
                None if kind == "text" else round(float(np.sum(values[system.key]))),
                sum(outcome.abstained for outcome in outcomes),
                _instead_of(outcomes),
                sum(outcome.unseen > 0 for outcome in outcomes),
                sum(bool(row.outcomes[system.key].error) for row in mine),
                sum(outcome.tokens for outcome in outcomes),
                sum(outcome.requests for outcome in outcomes),
                usage,
                None if prices is None else prices.cost(usage),
                to_base,
                compare.difference(values, system.key, "expert") if system.role == "tuned" else None,
                _gap_closed(metric, value, figures.get("base"), ceiling) if system.role == "tuned" else None,
            )
        )
    ordered = dict(sorted(reasons.items(), key=lambda item: -item[1]))
    table = Table(kind, metric, len(whole), len(mine) - len(whole), tuple(results), ordered, ceiling)
    return replace(table, warnings=tuple(warnings_of(table)))


def _instead_of(outcomes: Sequence[Outcome]) -> str | None:
    """What stands most often in place of an option; of equals the first."""
    written = Counter(outcome.instead for outcome in outcomes if outcome.instead is not None)
    return max(written, key=lambda text: written[text], default=None)


def better(metric: Metric, a: float, b: float) -> float:
    """How much better a is than b."""
    return b - a if metric == "bits_per_byte" else a - b


def _per_byte(row: Answered, key: str, kind: Kind) -> float:
    value = row.outcomes[key].value
    assert value is not None, "rows with an error are left out"
    return value / row.size if kind == "text" else value


def _gap_closed(
    metric: Metric, value: float, base: tuple[float, float, float] | None, ceiling: float | None
) -> float | None:
    """None where there is no way to go from the base to the ceiling."""
    if base is None or ceiling is None or not better(metric, ceiling, base[0]) > 0:
        return None
    return better(metric, value, base[0]) / better(metric, ceiling, base[0])


@dataclass(frozen=True, slots=True)
class _Compare:
    metric: Metric
    weights: Floats
    confidence: float
    seed: int

    def figure(self, values: Floats) -> tuple[float, float, float]:
        """The metric over all rows, and its interval; bits per byte are those of all texts together."""
        if len(values) == 0:
            return math.nan, math.nan, math.nan
        if self.metric != "bits_per_byte":
            right = round(float(np.sum(values)))
            return right / len(values), *wilson_interval(right, len(values), self.confidence)
        if not np.all(np.isfinite(values)):
            return math.inf, math.inf, math.inf
        mean = float(np.average(values, weights=self.weights))
        return mean, *bootstrap_interval(values, self.seed, self.confidence, weights=self.weights)

    def difference(self, values: Mapping[str, Floats], key: str, other: str) -> Difference | None:
        """How much better `key` is than `other`; None where that is itself, missing, or not finite."""
        if key == other or other not in values:
            return None
        a, b = values[key], values[other]
        if len(a) == 0 or not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
            return None
        gains = b - a if self.metric == "bits_per_byte" else a - b
        value = float(np.average(gains, weights=self.weights))
        low, high = bootstrap_interval(gains, self.seed, self.confidence, weights=self.weights)
        if self.metric == "bits_per_byte":
            p = bootstrap_p(gains, self.seed, weights=self.weights)
            return Difference(value, low, high, p, p < 1 - self.confidence)
        exact = mcnemar(a, b)
        return Difference(value, low, high, exact.p, exact.p < 1 - self.confidence, paired_t_test(a, b), exact)


# -- in words ---------------------------------------------------------------------------------------------------------


def warnings_of(table: Table, alpha: float | None = None) -> list[str]:
    """What must be said of a table; with `alpha`, of the proxy-tuned systems only about the one with that."""
    if table.rows == 0:
        return [f"No row has an answer from every system; {table.dropped} were left out."]
    found = []
    base, expert, ceiling = (table.result(key) for key in ("base", "expert", "ceiling"))
    for result in table.results:
        if alpha is not None and result.system.alpha not in (alpha, None):
            continue
        if result.system.role == "tuned":
            title = result.system.title.capitalize()
            if base is not None:
                found += _worse(table.metric, title, result, base, result.to_base, _instead(table, base))
            if expert is not None:
                found += _worse(table.metric, title, result, expert, result.to_expert, _instead(table, expert))
        if result.abstained > _MANY_ABSTAIN * table.rows:
            answer = "empty text" if table.kind == "question" else "no option has any probability"
            hint = ""
            if result.instead is not None:
                written = repr(result.instead) if result.instead else "nothing more"
                answer = f"the base shows none of the options, and most often writes {written} instead"
                hint = "; raise --top-logprobs, take --missing ask, or have the prompt lead to one of the options"
            found.append(
                f"{result.system.title.capitalize()} abstained on {result.abstained} of {table.rows} rows "
                f"({answer}), which count as wrong{hint}."
            )
        if math.isinf(result.value):
            found.append(
                f"{result.system.title.capitalize()} gives at least one text no probability at all: its bits per byte "
                "are infinite. --tail backoff leaves every token possible."
            )
    unseen = max(result.unseen for result in table.results)
    if unseen > _MANY_UNSEEN * table.rows:
        found.append(
            f"On {unseen} of {table.rows} rows the base showed only some of the options, and the others are an "
            "estimate: raise --top-logprobs, or ask for the missing ones with --missing ask."
        )
    if base is not None and ceiling is not None and not better(table.metric, ceiling.value, base.value) > 0:
        found.append(f"The ceiling is no better than the base ({ceiling.value:.3f}), so there is no gap to close.")
    if table.rows < _FEW_ROWS:
        found.append(f"Only {table.rows} rows were compared: the intervals are wide, and little can be concluded.")
    return found


def _instead(table: Table, other: Result) -> str:
    """What to use rather than a proxy-tuned system that is worse than `other`."""
    tuned = [result for result in table.results if result.system.role == "tuned"]
    best = tuned[0]
    for result in tuned:
        best = result if better(table.metric, result.value, best.value) > 0 else best
    if better(table.metric, best.value, other.value) > 0:
        better_one = "Learned weights do" if best.system.alpha is None else f"Alpha {best.system.alpha:g} does"
        return f"{better_one} better than both"
    if other.system.role == "base":
        return "This pair does not help this base with this task"
    return "What helps here is the expert itself: use it alone, or a better base"


def _worse(
    metric: Metric, title: str, result: Result, other: Result, difference: Difference | None, advice: str
) -> list[str]:
    """A sentence where a system is worse than another one, and whether that may be chance."""
    if difference is None or not difference.value < -_ROUNDING:
        return []
    sure = (
        f"significant ({_p(difference.p)}). {advice}."
        if difference.significant
        else f"not significant ({_p(difference.p)}): it may be chance, more rows would tell."
    )
    return [
        f"{title} is worse than the {other.system.title}: {_NOUNS[metric]} {result.value:.3f} against "
        f"{other.value:.3f}, {sure}"
    ]


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
