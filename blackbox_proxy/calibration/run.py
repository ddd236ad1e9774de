"""`calibrate`: weights for a base and a pair from a few texts, and whether they are better beyond chance.

rows -> questions, and what they will cost -> documents -> Learner -> weights
                                              the same without each fifth of the documents -> compared with alpha
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from blackbox_proxy import tuner as tuners
from blackbox_proxy.answers.choices import Rule
from blackbox_proxy.background import side_by_side
from blackbox_proxy.calibration.asking import Document, Plan, Question, documents_of, needs_scores, plan_of, question_of
from blackbox_proxy.calibration.learning import Calibration, Work
from blackbox_proxy.errors import BudgetReached, InputError
from blackbox_proxy.evaluation.run import cached
from blackbox_proxy.evaluation.tasks import Source, Task, read_tasks
from blackbox_proxy.learned import models_of
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Usage

_LEAST = 8  # documents: fewer cannot be told from chance


@dataclass(frozen=True, slots=True)
class Told:
    """How far the asking is."""

    total: int
    done: int = 0
    usage: Usage = field(default_factory=Usage)


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
        equation = tuner.equation
        models = await asyncio.to_thread(models_of, base, tuner.pairs, equation.tail, equation.tail_size)
    found = [document for document in documents if document.learnable]
    if len(found) < _LEAST:
        raise InputError(
            f"at {len(found)} of {len(documents)} documents something right is among the candidates: too few",
            hint="Raise --top-logprobs, or give more texts.",
        )
    work = Work(tuner, found, other, learn_tail, confidence, seed)
    return await asyncio.to_thread(work.calibration, questions[0].way, documents, usage + spent, models)


def calibrate(tuner: ProxyTuner, source: Source, **options: Any) -> Calibration | None:
    """`acalibrate` for callers without a loop."""
    return tuners.run(acalibrate(tuner, source, **options))


def _questions(
    base: Base, pairs: Sequence[Pair], source: Source, *, rule: Rule, limit: int | None, skip_bad: bool
) -> list[Question]:
    found: dict[int, Question] = {}

    unscored: list[Task] = []

    def check(task: Task) -> None:
        try:
            found[task.index] = question_of(base, pairs, task, rule)
        except InputError:
            if task.kind == "choice" and needs_scores(base, task, rule):
                unscored.append(task)
            raise

    try:
        rows = read_tasks(source, skip_bad=skip_bad, check=check, limit=limit).rows
    except InputError as error:
        if not unscored:
            raise
        requests = sum(len(task.options) for task in unscored)
        raise InputError(
            str(error),
            hint=f"{base.name} scores no given text. One that does (completions that echo their prompt with log "
            f"probabilities, or the base's own weights in this process) takes {requests} requests for the options of "
            f"these {len(unscored)} questions, one each; lettered options (A, B, …) take {len(unscored)} of one token. "
            "Nothing was sent.",
        ) from error
    questions = [found[row.index] for row in rows]
    if len({question.task.kind == "choice" for question in questions}) > 1:
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
