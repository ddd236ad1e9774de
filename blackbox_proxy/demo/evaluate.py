"""From answers to the rows of the demo's table. Pure: no HTTP, no torch, nothing that a model could be tuned on.

A question is right or wrong. A report is scored by the share of its sentences that state a fact about its town that
is true after the news; a sentence that is no statement at all counts as untrue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from blackbox_proxy.demo.phrases import NEWS, STATEMENTS
from blackbox_proxy.demo.world import World, questions, reports

Kind = Literal["changed", "unchanged", "free"]
KINDS: tuple[Kind, ...] = ("changed", "unchanged", "free")
COUNTS = {"changed": 32, "unchanged": 40, "free": 5}
"""How many of each are asked. Facts, phrasings and headlines are those of the test split."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something to ask: a question with its answer, or the headline of a report about `answer`, a town."""

    kind: Kind
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said, in how many tokens, for how many API calls."""

    text: str
    calls: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Figures:
    """A system's line of the table: mean score of each kind, 0 to 1, and API calls per token."""

    name: str
    scores: dict[Kind, float]
    calls_per_token: float
    answers: tuple[Answer, ...]


def tasks(world: World) -> list[Task]:
    """Everything that is asked, none of which any model was trained on."""
    asked = [
        Task("changed" if changed else "unchanged", question.prompt, question.answer)
        for changed in (True, False)
        for question in questions(world, "test", changed=changed, count=COUNTS["changed" if changed else "unchanged"])
    ]
    return asked + [Task("free", report.prompt, report.town) for report in reports(world, "test", count=COUNTS["free"])]


def score(world: World, task: Task, text: str) -> float:
    """0 to 1."""
    if task.kind != "free":
        return float(text.strip() == task.answer)
    sentences = [part for part in re.split(r"(?<=\.)\s+(?=\S)", text.strip()) if part]
    true = [_is_true(world, task.answer, sentence) for sentence in sentences]
    return sum(true) / len(true) if true else 0.0


def _is_true(world: World, town: str, sentence: str) -> bool:
    for relation, pattern in _patterns():
        found = pattern.fullmatch(sentence)
        if found and found["town"] == town:
            return found["value"] == world.value(town, relation)
    return False


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Every way of stating a fact, as (relation, pattern)."""
    lines = [(relation, line) for table in (STATEMENTS, NEWS) for relation, found in table.items() for line in found]
    return [
        (
            relation,
            re.compile(re.escape(line).replace(r"\{town\}", "(?P<town>.+)").replace(r"\{value\}", "(?P<value>.+)")),
        )
        for relation, line in lines
    ]


def row_of(name: str, world: World, todo: Sequence[Task], answers: Sequence[Answer]) -> Figures:
    """A system's answers to all tasks as a line of the table."""
    points: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    for task, answer in zip(todo, answers, strict=True):
        points[task.kind].append(score(world, task, answer.text))
    means: dict[Kind, float] = {kind: sum(found) / max(len(found), 1) for kind, found in points.items()}
    calls, tokens = sum(answer.calls for answer in answers), sum(answer.tokens for answer in answers)
    return Figures(name, means, calls / max(tokens, 1), tuple(answers))


def gap_closed(row: Figures, base: Figures, ceiling: Figures, kind: Kind) -> float | None:
    """The share of the way from base to ceiling; None where there is none to go."""
    gap = ceiling.scores[kind] - base.scores[kind]
    return (row.scores[kind] - base.scores[kind]) / gap if gap > 0 else None
