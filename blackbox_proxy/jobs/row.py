"""One row of a bulk run: whether the models can take it, and the line that it becomes, however the run is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blackbox_proxy.errors import (
    AccessDenied,
    BlackboxError,
    BudgetReached,
    ModelNotFound,
    NoLogprobs,
    QuotaExhausted,
)
from blackbox_proxy.jobs.inputs import InputRow
from blackbox_proxy.jobs.outputs import failure_line, result_line
from blackbox_proxy.types import Generation, Prompt, Step, Usage

HOPELESS = (AccessDenied, QuotaExhausted, ModelNotFound, NoLogprobs, BudgetReached)
"""Errors that every further row would meet as well: they end the run, and their row is asked again when it goes on."""


class Generates(Protocol):
    """What a job needs of a tuner. Where it has `base` and `pairs`, their `check` sees every prompt before the run."""

    async def agenerate(self, prompt: Prompt, **options: Any) -> Generation: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a row: its line in the results, the steps that there were, what they cost, and the error that
    ended them, None where there is a text.
    """

    line: bytes
    steps: Sequence[Step]
    usage: Usage
    error: BlackboxError | None = None


async def answer(tuner: Generates, row: InputRow) -> Answer:
    """Decode one row. A failure is an answer, too; what no further row would survive (`HOPELESS`) is raised."""
    try:
        generation = await tuner.agenerate(row.prompt, **row.options)
    except HOPELESS:
        raise
    except BlackboxError as error:
        spent = sum((step.usage for step in error.steps), Usage())
        return Answer(failure_line(row, error), error.steps, spent, error)
    return Answer(result_line(row, generation), generation.steps, generation.usage)


def reason_against(tuner: Generates, row: InputRow) -> str | None:
    """Why the models could not take this prompt, None if they can. Sends nothing."""
    for part in (*getattr(tuner, "pairs", ()), getattr(tuner, "base", None)):
        if part is not None:
            try:
                part.check(row.prompt, row.options["max_tokens"])
            except BlackboxError as error:
                return str(error)
    return None
