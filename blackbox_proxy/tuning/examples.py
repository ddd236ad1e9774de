"""Rows as the small model reads them: prompt and text in its own tokens, and which of them it learns to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.tasks import Task
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Prompt


@dataclass(frozen=True, slots=True)
class Example:
    """ids: prompt, text and end; the first `given` are only read. ends: where each token of the text ends, in bytes of
    the text; begins: where the first of them begins.
    """

    prompt: Prompt
    text: str
    ids: tuple[int, ...]
    given: int
    ends: tuple[int, ...]
    begins: int = 0


def example_of(task: Task, vocabulary: Vocabulary, window: int | None) -> Example:
    """A row to learn from: what follows its prompt, and then the end; or a whole text. Raises InputError."""
    if task.kind == "choice":
        raise InputError("a question with choices is nothing to write", hint="Give prompt and answer, or a text.")
    text = task.text if task.kind == "text" else _after(task.prompt, task.answers[0])
    prompt = vocabulary.prompt_ids(task.prompt) if task.prompt else []
    written = vocabulary.encode([text.encode()])[0]
    if not prompt:  # a first token is written after nothing
        prompt, written = written[:1], written[1:]
    end = [min(vocabulary.end_ids)] if task.prompt and vocabulary.end_ids else []
    ids = [*prompt, *written, *end]
    if not written:
        raise InputError("its text is a single token", hint="Give a longer text.")
    if window is not None and len(ids) > window:
        raise InputError(f"it has {len(ids)} tokens, and the small model's window is {window}", hint="Cut it.")
    begins = 0 if task.prompt else len(text.encode()) - sum(map(len, _spelled(vocabulary, written)))
    reached, ends = begins, []
    for spelling in _spelled(vocabulary, written):
        reached += len(spelling)
        ends.append(reached)
    return Example(task.prompt, text, tuple(ids), len(prompt), tuple(ends), begins)


def _spelled(vocabulary: Vocabulary, ids: Sequence[int]) -> list[bytes]:
    return [vocabulary.spelling[index] or b"" for index in ids]


def _after(prompt: Prompt, answer: str) -> str:
    joined = isinstance(prompt, str) and not prompt[-1:].isspace() and not answer[:1].isspace()
    return f" {answer}" if joined else answer


def in_order(count: int, epoch_seed: int) -> Sequence[int]:
    """The rows of one round, in an order of its own."""
    import random

    order = list(range(count))
    random.Random(epoch_seed).shuffle(order)
    return order
