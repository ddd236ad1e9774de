"""`calibrate`: weights for a base and a pair from a few texts, and whether they are better beyond chance.

rows -> questions, and what they will cost -> documents -> Learner -> weights
                                              the same without each fifth of the documents -> compared with alpha
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from blackbox_proxy import tuner as tuners
from blackbox_proxy.answers.choices import Rule
from blackbox_proxy.background import side_by_side
from blackbox_proxy.calibration.asking import Document, Plan, Question, documents_of, plan_of, question_of
from blackbox_proxy.calibration.fitting import Fitted, Learner, rest_weight, spread_of_weights
from blackbox_proxy.calibration.likelihood import Terms
from blackbox_proxy.calibration.places import terms
from blackbox_proxy.decoding.weigh import log_spread
from blackbox_proxy.errors import BudgetReached, InputError
from blackbox_proxy.evaluation.run import cached
from blackbox_proxy.evaluation.statistics import bootstrap_interval, bootstrap_p
from blackbox_proxy.evaluation.tasks import Source, Task, read_tasks
from blackbox_proxy.learned import Learned, models_of
from blackbox_proxy.maths.equation import unlisted_mass
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.maths.weights import PLAIN_SPREAD, Spread, Weights
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Floats, Usage

_LEAST = 8  # documents: fewer cannot be told from chance
_CARRIES = 0.005  # nats: how much worse than plain weights may be on texts of another kind


@dataclass(frozen=True, slots=True)
class Told:
    """How far the asking is."""

    total: int
    done: int = 0
    usage: Usage = field(default_factory=Usage)


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
    where it was not, or was no better. others: on texts of another kind. documents, places: that were fitted; unlisted:
    places where what was right was among no candidates, so that they say nothing. better: beyond chance than alpha = 1
    and than the best alpha.
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


async def acalibrate(
    tuner: ProxyTuner,
    source: Source,
    *,
    others: Source | None = None,
    learn_tail: bool = True,
    rule: Rule | None = None,
    concurrency: int = 8,
    limit: int | None = None,
    skip_bad: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
    ready: Callable[[Plan], bool] | None = None,
    observe: Callable[[Told], None] | None = None,
) -> Calibration | None:
    """Learn weights for the tuner's base and pairs from rows of one kind (see `evaluation.tasks`): each is a document.

    others: rows of another kind, to see whether the weights carry over. learn_tail: spread the hidden mass anew, too.
    ready: is told what asking takes at most before anything is sent, and says whether to go on; else None comes back.
    Raises InputError, BaseError, PairError; a budget that ends early leaves the rows it still paid for, if there are
    enough.
    """
    rule = rule or Rule()
    async with cached(tuner.base) as base:
        asked = partial(_questions, base, tuner.pairs, rule=rule, limit=limit, skip_bad=skip_bad)
        questions = await asyncio.to_thread(asked, source)
        more = [] if others is None else await asyncio.to_thread(asked, others)
        if len(questions) < _LEAST:
            raise InputError(
                f"{len(questions)} documents are too few to learn from", hint=f"Give at least {_LEAST}, better 50."
            )
        if ready is not None and not ready(plan_of(base, [*questions, *more])):
            return None
        documents, usage = await _asked(tuner, base, questions, rule, concurrency, observe)
        other, spent = await _asked(tuner, base, more, rule, concurrency, observe)
        models = await asyncio.to_thread(models_of, base, tuner.pairs, tuner.equation.tail)
    found = [document for document in documents if document.places]
    if len(found) < _LEAST:
        raise InputError(
            f"at {len(found)} of {len(documents)} documents something right is among the candidates: too few",
            hint="Raise --top-logprobs, or give more texts.",
        )
    work = _Work(tuner, found, other, learn_tail, confidence, seed)
    return await asyncio.to_thread(work.calibration, questions[0].way, documents, usage + spent, models)


def calibrate(tuner: ProxyTuner, source: Source, **options: Any) -> Calibration | None:
    """`acalibrate` for callers without a loop."""
    return tuners.run(acalibrate(tuner, source, **options))


def _questions(
    base: Base, pairs: Sequence[Pair], source: Source, *, rule: Rule, limit: int | None, skip_bad: bool
) -> list[Question]:
    found: dict[int, Question] = {}

    def check(task: Task) -> None:
        found[task.index] = question_of(base, pairs, task, rule)

    rows = read_tasks(source, skip_bad=skip_bad, check=check, limit=limit).rows
    questions = [found[row.index] for row in rows]
    if len({question.way == "choice" for question in questions}) > 1:
        raise InputError(
            "multiple choice and texts are learned from apart: their weights mean different things",
            hint="Split the file.",
        )
    return questions


async def _asked(
    tuner: ProxyTuner,
    base: Base,
    questions: Sequence[Question],
    rule: Rule,
    concurrency: int,
    observe: Callable[[Told], None] | None,
) -> tuple[list[Document], Usage]:
    """Every row's document, in order; where a budget ended the asking, those that were paid for."""
    found: dict[int, Document] = {}
    todo = iter(enumerate(questions))
    usage = Usage()
    ended: list[BudgetReached] = []

    async def work() -> None:
        nonlocal usage
        for place, question in todo:
            if ended:
                return
            try:
                found[place] = await documents_of(base, tuner.pairs, tuner.equation, question, rule)
            except BudgetReached as error:
                ended.append(error)
                return
            usage += found[place].usage
            if observe is not None:
                observe(Told(len(questions), len(found), usage))

    await side_by_side(work, min(concurrency, len(questions)))
    if ended and len(found) < _LEAST:
        raise ended[0]
    return [found[place] for place in sorted(found)], usage


# -- learning and comparing -------------------------------------------------------------------------------------------


class _Work:
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
        self._others = [document for document in others if document.places]
        self._confidence = confidence
        self._seed = seed
        has = tuple(pair.has_antiexpert for pair in tuner.pairs)
        tail = any(place.shown < len(place.log_q) for document in documents for place in document.places)
        spreads = cache(lambda spread: self._terms(documents, spread))
        self._learner = Learner(spreads, has, learn_tail and tail and tuner.equation.tail in ("backoff", "ask"))

    def _terms(self, documents: Sequence[Document], spread: Spread) -> Terms:
        pairs, policy = self._tuner.pairs, self._tuner.equation.tail
        rows = []
        for number, document in enumerate(documents):
            for place in document.places:
                log_q = place.spread_anew(spread, policy, pairs)
                x = terms(place, log_q, self._learner.has_antiexperts)
                kept = place.among & np.isfinite(log_q)
                rows.append((x[kept], place.right[kept], number))
        return Terms.of(rows)

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
        losses = {
            "weights": learned,
            "best alpha": swept,
            "alpha 1": plain.losses(learner.plain(1.0)),
            "base alone": plain.losses(learner.plain(0.0)),
            "expert alone": plain.losses(_alone(has)),
        }
        systems = tuple(self._compared(name, own, learned, plain.documents) for name, own in losses.items())
        here = learner.spreads(fitted.spread)
        intervals = spread_of_weights(here, fitted, len(numbers), seed=self._seed, confidence=self._confidence)
        weights = weights_of(fitted, has, 0.0 if kind == "choice" else self._rest(fitted))
        return Calibration(
            weights,
            dict(zip(names_of(has), intervals, strict=True)),
            fitted.alpha,
            fitted.strength,
            kind,
            len(self._documents),
            plain.count,
            sum(max(1, len(document.every)) - len(document.places) for document in asked),
            max(document.shown for document in asked),
            systems,
            tail,
            self._elsewhere(fitted),
            usage,
            models,
            self._confidence,
        )

    def _elsewhere(self, fitted: Fitted) -> tuple[Compared, ...]:
        """The weights on texts of another kind."""
        if not self._others:
            return ()
        plain, own = (self._terms(self._others, spread) for spread in (PLAIN_SPREAD, fitted.spread))
        learned = own.losses(fitted.weights)
        losses = {"weights": learned, "alpha 1": plain.losses(self._learner.plain(1.0))}
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
        listed, rest, right = [], [], []
        for document in self._documents:
            for place in document.every:
                log_q = place.spread_anew(fitted.spread, policy, pairs)
                listed.append(logsumexp(weights.log_weights(log_q, place.scores, place.shown)))
                unlisted = unlisted_mass(log_q, log_spread(pairs, place.scores), place.shown)
                rest.append(weights.log_rest(unlisted, place.scores))
                right.append(not place.listed)
        return rest_weight(np.array(listed), np.array(rest), np.array(right))


def _alone(has_antiexperts: Sequence[bool]) -> Floats:
    """The first expert and nothing else, (d,)."""
    found = np.zeros(2 + sum(2 if has else 1 for has in has_antiexperts))
    found[1] = 1.0
    return found


def names_of(has_antiexperts: Sequence[bool]) -> list[str]:
    """What the weights are called, in the order of `Terms`."""
    found = ["q"]
    for i, has in enumerate(has_antiexperts):
        number = "" if i == 0 else str(i + 1)
        found += [f"E{number}", f"A{number}"] if has else [f"E{number}"]
    return [*found, "tail"]


def weights_of(fitted: Fitted, has_antiexperts: Sequence[bool], rest: float) -> Weights:
    """The numbers of `Terms` under their names."""
    values = iter(fitted.weights.tolist())
    base, experts, antiexperts = next(values), [], []
    for has in has_antiexperts:
        experts.append(next(values))
        antiexperts.append(next(values) if has else None)
    tail = next(values)
    assert math.isfinite(tail)
    return Weights(base, tuple(experts), tuple(antiexperts), tail, rest, fitted.spread)
