"""What a bulk run may cost, before it: bounds from the lengths of its prompts. Sends nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blackbox_proxy.jobs.inputs import InputRow, Source
from blackbox_proxy.jobs.outputs import Output
from blackbox_proxy.jobs.row import Generates
from blackbox_proxy.jobs.run import Choice, defaults_for, survey
from blackbox_proxy.text.prompts import CHARACTERS_PER_TOKEN, guessed_tokens
from blackbox_proxy.types import Usage


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bounds for texts that all reach max_tokens. Retries and discarded drafts come on top, shorter texts take off.

    rows: still to be asked (bad: that cannot be, skipped: that are done). prompt_tokens: of all prompts once, as
    counted by `counted_by`. `per_text`: one request for each text; `per_token`: one for each token, which sends prompt
    and text so far each time.
    """

    rows: int
    skipped: int
    bad: int
    counted_by: str
    prompt_tokens: int
    output_tokens: int
    per_text: Usage
    per_token: Usage


@dataclass(slots=True)
class Bounds:
    """Sums over rows to be asked: how many, tokens of their prompts once, of their texts, and what is sent again where
    each token is a request.
    """

    rows: int = 0
    prompts: int = 0
    outputs: int = 0
    again: int = 0

    def add(self, length: int, most: int) -> None:
        """One row more: a prompt of so many tokens, a text of so many at most."""
        self.rows, self.prompts, self.outputs = self.rows + 1, self.prompts + length, self.outputs + most
        self.again += most * length + most * (most - 1) // 2

    def __add__(self, other: Bounds) -> Bounds:
        return Bounds(
            self.rows + other.rows,
            self.prompts + other.prompts,
            self.outputs + other.outputs,
            self.again + other.again,
        )

    def estimate(self, skipped: int, bad: int, counted_by: str) -> Estimate:
        """The two extremes."""
        return Estimate(
            self.rows,
            skipped,
            bad,
            counted_by,
            self.prompts,
            self.outputs,
            Usage(self.rows, self.prompts, self.outputs),
            Usage(self.outputs, self.again, self.outputs),
        )


def estimate_job(
    tuner: Generates,
    source: Source,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
    shuffle: int | None = None,
    skip_bad: bool = False,
    settings: dict[str, Any] | None = None,
    **decoding: Any,
) -> Estimate:
    """Check all rows as `run_job` would, and say what asking them may cost. `out`: what is done there is left out."""
    defaults = defaults_for(tuner, settings, decoding)
    choice = Choice(limit=limit, shuffle=shuffle, skip_bad=skip_bad)
    counted_by, count = counter_of(tuner)
    bounds = Bounds()

    def add(row: InputRow) -> None:
        bounds.add(count(row), int(row.options["max_tokens"]))

    output = None
    if out is not None:
        output = Output(Path(out), resume=resume, overwrite=overwrite, retry_failed=retry_failed, ordered=True)
    try:
        with survey(tuner, source, output if resume else None, defaults, choice, add) as found:
            return bounds.estimate(found.total - bounds.rows, found.bad, counted_by)
    finally:
        if output is not None:
            output.close()


def counter_of(tuner: Generates) -> tuple[str, Callable[[InputRow], int]]:
    """The best way at hand to count a prompt's tokens: the base's own vocabulary, the pair's, or characters."""
    base = getattr(tuner, "base", None)
    for name, part in (("the base's", base), *(("the pair's", pair) for pair in getattr(tuner, "pairs", ()))):
        vocabulary = getattr(part, "vocabulary", None)
        if vocabulary is not None:
            return f"{name} vocabulary", partial(_tokens, vocabulary)
    return f"characters / {CHARACTERS_PER_TOKEN}", lambda row: math.ceil(guessed_tokens(row.prompt))


def _tokens(vocabulary: Any, row: InputRow) -> int:
    return len(vocabulary.prompt_ids(row.prompt))
