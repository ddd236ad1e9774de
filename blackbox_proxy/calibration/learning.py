"""What the places that were asked about say: weights, and what they are worth on documents they were not fitted to.

documents -> Learner -> weights
             the same without each fifth of the documents -> compared with alpha
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from blackbox_proxy.calibration.asking import Document
from blackbox_proxy.calibration.fitting import Fitted, Learner, Spreads, rest_weight, spread_of_weights
from blackbox_proxy.calibration.likelihood import Table, Terms
from blackbox_proxy.calibration.options import choices_of
from blackbox_proxy.calibration.places import ALPHAS, Places
from blackbox_proxy.evaluation.statistics import bootstrap_interval, bootstrap_p
from blackbox_proxy.learned import Learned
from blackbox_proxy.maths.weights import PLAIN_SPREAD, Spread, Weights
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Floats, Usage

_CARRIES = 0.005  # nats: how much worse than plain weights may be on texts of another kind


@dataclass(frozen=True, slots=True)
class Compared:
    """One way to combine, on documents that it was not fitted to. loss: nats for each place, -log p of what was right
    among the candidates, with its interval. gain: by how much the weights are better, nats, low to high.
    """

    name: str
    loss: float
    low: float
    high: float
    gain: float = 0.0
    gain_low: float = 0.0
    gain_high: float = 0.0
    p: float = 1.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned. weights; intervals: of each, by its name; alpha: the best plain one. systems: the weights
    first. tail: the same for weights with the hidden mass spread as it always was, where a spread was learned; None
    where it was not, or was no better. others: on texts of another kind. documents, places: that were fitted, of
    multiple choice the questions; unlisted: places where what was right was among no candidates, and questions whose
    right options have no mass, so that they say nothing. better: beyond chance than alpha = 1 and than the best alpha.
    """

    weights: Weights
    intervals: dict[str, tuple[float, float]]
    alpha: float
    strength: float
    kind: str
    documents: int
    places: int
    unlisted: int
    shown: int
    systems: tuple[Compared, ...]
    tail: Compared | None
    others: tuple[Compared, ...]
    usage: Usage
    models: dict[str, Any]
    confidence: float

    @property
    def better(self) -> bool:
        """Beyond chance better than alpha = 1 and than the best alpha."""
        return all(each.gain_low > 0.0 for each in self.systems if each.name in ("alpha 1", "best alpha"))

    @property
    def carries_over(self) -> bool | None:
        """Whether texts of another kind lose next to nothing against plain proxy-tuning; None where there were none."""
        found = [each.gain for each in self.others if each.name == "alpha 1"]
        return None if not found else found[0] >= -_CARRIES

    @property
    def worth_writing(self) -> bool:
        """Better beyond chance, and on texts of another kind, where some were given, no worse."""
        return self.better and self.carries_over is not False

    @property
    def learned(self) -> Learned:
        """What a file holds."""
        found = {
            "kind": self.kind,
            "documents": self.documents,
            "places": self.places,
            "better": self.better,
            "carries_over": self.carries_over,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "systems": [asdict(each) for each in self.systems],
        }
        return Learned(self.weights, self.models, found)


class Work:
    """Everything after the asking: arithmetic."""

    def __init__(
        self,
        tuner: ProxyTuner,
        documents: Sequence[Document],
        others: Sequence[Document],
        learn_tail: bool,
        confidence: float,
        seed: int,
    ) -> None:
        self._tuner = tuner
        self._documents = documents
        self._others = [document for document in others if document.learnable]
        self._confidence = confidence
        self._seed = seed
        has = tuple(pair.has_antiexpert for pair in tuner.pairs)
        self._choice = any(document.options for document in documents)
        places = [place for document in documents for place in document.seen]
        tail = any(place.shown < len(place.log_q) for place in places) and tuner.equation.tail in ("backoff", "ask")
        self._learner = Learner(cache(self._tables(documents)), has, learn_tail and tail, learns_rest=self._choice)

    def _tables(self, documents: Sequence[Document]) -> Spreads:
        """The table of these documents, however the hidden mass is spread."""
        pairs, policy = self._tuner.pairs, self._tuner.equation.tail
        if documents[0].options:
            return lambda spread: choices_of([document.options for document in documents], spread, policy, pairs)
        places = [place for document in documents for place in document.places]
        every, right = Places.of(places), np.concatenate([place.right for place in places])
        numbers = np.repeat(np.arange(len(documents)), [len(document.places) for document in documents])

        def table(spread: Spread) -> Table:
            log_q = every.spread_anew(spread, policy, pairs)
            kept = np.isfinite(log_q)
            x = every.terms(log_q, [pair.has_antiexpert for pair in pairs])
            return Terms(x.T.compress(kept, axis=1).T, every.parts.only(kept), right[kept], numbers)

        return table

    def calibration(self, kind: str, asked: Sequence[Document], usage: Usage, models: dict[str, Any]) -> Calibration:
        learner, numbers = self._learner, list(range(len(self._documents)))
        plain = learner.spreads(PLAIN_SPREAD)
        learned, swept = learner.crossed(numbers, tail=False)
        tail = None
        if learner.learns_tail:
            anew, _ = learner.crossed(numbers, tail=True)
            if anew.sum() < learned.sum():
                tail = self._compared("with the tail as it was", learned, anew, plain.documents)
                learned = anew
        fitted = learner.learn(numbers, tail=tail is not None)
        has = learner.has_antiexperts
        alphas = learner.swept(plain)
        losses = {
            "weights": learned,
            "best alpha": swept,
            "alpha 1": alphas[:, ALPHAS.index(1.0)],
            "base alone": alphas[:, ALPHAS.index(0.0)],
            "expert alone": plain.alone(_alone(learner.plain(0.0))),
        }
        systems = tuple(self._compared(name, own, learned, plain.documents) for name, own in losses.items())
        here = learner.spreads(fitted.spread)
        intervals = spread_of_weights(here, fitted, len(numbers), seed=self._seed, confidence=self._confidence)
        weights = weights_of(fitted, has, None if self._choice else self._rest(fitted))
        return Calibration(
            weights,
            dict(zip(names_of(has, rest=any(intervals[-1]) and self._choice), intervals, strict=False)),
            fitted.alpha,
            fitted.strength,
            "choice" if self._choice else kind,
            len(self._documents),
            plain.count,
            sum(document.unlisted for document in asked),
            max(document.shown for document in asked),
            systems,
            tail,
            self._elsewhere(weights),
            usage,
            models,
            self._confidence,
        )

    def _elsewhere(self, weights: Weights) -> tuple[Compared, ...]:
        """The weights on texts of another kind."""
        if not self._others:
            return ()
        tables = self._tables(self._others)
        plain, own = tables(PLAIN_SPREAD), tables(weights.spread)
        has, choice = self._learner.has_antiexperts, bool(self._others[0].options)
        learner = Learner(lambda _: plain, has, learns_tail=False, learns_rest=choice)
        learned = own.losses(_vector(weights, rest=choice))
        losses = {"weights": learned, "alpha 1": learner.swept(plain)[:, ALPHAS.index(1.0)]}
        return tuple(self._compared(name, each, learned, plain.documents) for name, each in losses.items())

    def _compared(self, name: str, own: Floats, learned: Floats, documents: Any) -> Compared:
        sizes = np.bincount(documents).astype(np.float64)
        real = sizes > 0
        by_document = np.bincount(documents, own)[real] / sizes[real]
        gains = by_document - np.bincount(documents, learned)[real] / sizes[real]
        how: dict[str, Any] = {"weights": sizes[real]}
        low, high = bootstrap_interval(by_document, self._seed, self._confidence, **how)
        if not np.any(gains):
            return Compared(name, float(np.mean(own)), low, high)
        gain_low, gain_high = bootstrap_interval(gains, self._seed, self._confidence, **how)
        gain = float(np.average(gains, weights=sizes[real]))
        return Compared(
            name, float(np.mean(own)), low, high, gain, gain_low, gain_high, bootstrap_p(gains, self._seed, **how)
        )

    def _rest(self, fitted: Fitted) -> float:
        """The number for everything beyond the candidates, where p is over the whole vocabulary."""
        weights = weights_of(fitted, self._learner.has_antiexperts, 0.0)
        pairs, policy = self._tuner.pairs, self._tuner.equation.tail
        places = [place for document in self._documents for place in document.every]
        every = Places.of(places)
        log_q = every.spread_anew(fitted.spread, policy, pairs)
        listed = every.parts.log_sums(weights.log_weights(log_q, every.scores, every.told))
        rest = weights.log_rests(every.unlisted(log_q, pairs), every.scores, every.parts)
        right = np.array([not place.listed for place in places])
        return rest_weight(listed, rest, right)


def _alone(like: Floats) -> Floats:
    """The first expert and nothing else, (d,)."""
    found = np.zeros_like(like)
    found[1] = 1.0
    return found


def names_of(has_antiexperts: Sequence[bool], *, rest: bool) -> list[str]:
    """What the weights are called, in the order of the table. rest: whether what is on no list has one."""
    found = ["q"]
    for i, has in enumerate(has_antiexperts):
        number = "" if i == 0 else str(i + 1)
        found += [f"E{number}", f"A{number}"] if has else [f"E{number}"]
    return [*found, "tail", "rest"] if rest else [*found, "tail"]


def weights_of(fitted: Fitted, has_antiexperts: Sequence[bool], rest: float | None) -> Weights:
    """The numbers of the table under their names. rest: None where it is one of them."""
    values = iter(fitted.weights.tolist())
    base, experts, antiexperts = next(values), [], []
    for has in has_antiexperts:
        experts.append(next(values))
        antiexperts.append(next(values) if has else None)
    tail = next(values)
    assert math.isfinite(tail)
    rest = next(values) if rest is None else rest
    return Weights(base, tuple(experts), tuple(antiexperts), tail, rest, fitted.spread)


def _vector(weights: Weights, *, rest: bool) -> Floats:
    """The same in the order of the table, (d,)."""
    pairs = [
        weight
        for pair in zip(weights.experts, weights.antiexperts, strict=True)
        for weight in pair
        if weight is not None
    ]
    return np.array([weights.base, *pairs, weights.tail, *([weights.rest] if rest else [])])
