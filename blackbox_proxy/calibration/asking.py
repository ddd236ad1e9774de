"""What weights are learned from: rows of a file -> documents -> places, each asked about once, and what that will take.

A text is scored by the base in one request, where it can do that. Where it cannot, the base is asked for its own
continuation along the text: one request, and one after each token that it would not have written itself; or, for a chat
that cannot be continued, for one token. A question with options takes one request of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from blackbox_proxy.answers import choices, scoring
from blackbox_proxy.answers.windows import encoded
from blackbox_proxy.calibration.places import Place
from blackbox_proxy.decoding.rows import Scored, Weigher
from blackbox_proxy.decoding.threads import on_thread
from blackbox_proxy.decoding.weigh import Weighed
from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.tasks import Task
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.weights import Weights
from blackbox_proxy.protocols import Ask, Base, Pair
from blackbox_proxy.text.prompts import guessed_tokens
from blackbox_proxy.types import Position, Prefix, Prompt, Usage

Way = Literal["scored", "along", "choice"]
_AHEAD = 8  # tokens of a draft: what the base writes behind a token that it did not have is for nothing
_NEXT_TO_PLAIN = 1e-9  # nats: learned weights, computed as such, that change nothing


@dataclass(frozen=True, slots=True)
class Question:
    """One row as it is asked: what follows a prompt; or the options of which some are right."""

    task: Task
    prompt: Prompt
    text: str
    way: Way


@dataclass(frozen=True, slots=True)
class Plan:
    """What asking will take at most: requests, and tokens of all of them together."""

    way: Way
    requests: int
    usage: Usage


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One row, place by place, and what it cost."""

    every: tuple[Place, ...]
    usage: Usage = field(default_factory=Usage)

    @property
    def places(self) -> list[Place]:
        """Those at which what was right is among the candidates."""
        return [place for place in self.every if place.listed]

    @property
    def shown(self) -> int:
        """Candidates that the base showed, at most."""
        return max((place.shown for place in self.every), default=0)


def question_of(base: Base, pairs: Sequence[Pair], task: Task, rule: choices.Rule) -> Question:
    """How a row is asked. Raises InputError for one that cannot be; sends nothing."""
    if task.kind == "choice":
        if choices.check(base, pairs, task.prompt, task.options, rule) == "scores":
            raise InputError(
                "its options are of several tokens", hint="Letter the options (A, B, …) and ask for the letter."
            )
        return Question(task, task.prompt, "", "choice")
    prompt, text = (task.prompt, task.text) if task.kind == "text" else (task.prompt, _after(task.prompt, task.answers))
    if not prompt:
        prompt, text = scoring.split_opening(text, base.vocabulary)
    if base.abilities.scores:
        scoring.check(base, pairs, prompt, text)
        return Question(task, prompt, text, "scored")
    if base.vocabulary is None:
        raise InputError(
            "the base scores no given text, and its tokenizer is not known, so that a text cannot be followed",
            hint="Give --tokenizer; or questions with choices.",
        )
    parts: tuple[Base | Pair, ...] = (*pairs, base)
    for part in parts:
        part.check(prompt, 1)
    encoded(base.vocabulary, text)
    return Question(task, prompt, text, "along")


def _after(prompt: Prompt, answers: Sequence[str]) -> str:
    """The answer as it stands after its prompt."""
    joined = isinstance(prompt, str) and not prompt[-1:].isspace() and not answers[0][:1].isspace()
    return f" {answers[0]}" if joined else answers[0]


def plan_of(base: Base, questions: Sequence[Question]) -> Plan:
    """Bounds of what asking takes, with nothing in the cache yet."""
    requests = prompts = outputs = 0
    for question in questions:
        prompt, text = (_length(base, part) for part in (question.prompt, question.text))
        if question.way == "along":  # one for each token at worst; then each sends the prompt and half of the text
            times = text if _goes_on(base, question) else 1
            requests, prompts, outputs = requests + times, prompts + times * (prompt + text // 2), outputs + text
        else:
            requests, prompts, outputs = requests + 1, prompts + prompt + text, outputs + 1
    ways = {question.way for question in questions}
    return Plan(next(iter(ways)), requests, Usage(requests, prompts, outputs))


def _length(base: Base, prompt: Prompt) -> int:
    if not isinstance(prompt, str) or base.vocabulary is None:
        return round(guessed_tokens(prompt)) if prompt else 0
    return len(base.vocabulary.encode([prompt.encode()])[0])


async def documents_of(
    base: Base, pairs: Sequence[Pair], equation: Equation, question: Question, rule: choices.Rule
) -> Document:
    """The places of one row. Raises BaseError, PairError."""
    learned = _learned(equation, pairs)
    if question.way == "choice":
        weighed, found, usage = await choices.look(base, pairs, question.prompt, question.task.options, learned, rule)
        return _of_choice(weighed, found, question.task.right, usage)
    if question.way == "scored":
        seen, usage = await scoring.look(base, pairs, question.prompt, question.text, _probes(learned), _seen)
    else:
        positions, usage = await _along(base, question)
        weigher = Weigher(pairs, _probes(learned), temperature=1.0)
        seen = await on_thread(scoring.look_along, base, question.prompt, positions, weigher, 0, _seen)
    return Document(tuple(seen), usage)


def _learned(equation: Equation, pairs: Sequence[Pair]) -> Equation:
    """Plain proxy-tuning as learned weights are computed: over the candidates that `decode` has."""
    ones = tuple(1.0 for _ in pairs)
    antiexperts = tuple(1.0 if pair.has_antiexpert else None for pair in pairs)
    if equation.tail == "ask":
        equation = replace(equation, tail="backoff")  # it asks for nothing but the places themselves
    return equation.with_weights(Weights(1.0, ones, antiexperts, rest=_NEXT_TO_PLAIN))


def _probes(learned: Equation) -> list[Equation]:
    """Weights for which the scores are to be good enough: plain ones, and such as are often learned."""
    weights = learned.weights
    assert weights is not None
    other = replace(
        weights,
        base=0.5,
        experts=tuple(0.8 for _ in weights.experts),
        antiexperts=tuple(None if each is None else 0.2 for each in weights.antiexperts),
    )
    return [learned, learned.with_weights(other)]


def _seen(scored: Scored) -> Place:
    weighed = scored.under(0)
    return Place.of_token(weighed, weighed.index_of(scored.position.token))


def _of_choice(weighed: Weighed | None, found: Sequence[Sequence[int]], right: Sequence[int], usage: Usage) -> Document:
    if weighed is None:
        return Document((), usage)
    among, is_right = (np.zeros(len(weighed.tokens), dtype=np.bool_) for _ in range(2))
    for option, indices in enumerate(found):
        among[list(indices)] = True
        is_right[list(indices)] = option in right
    return Document((Place(weighed.log_q, weighed.shown, weighed.scores, is_right, among),), usage)


# -- a base that scores nothing ---------------------------------------------------------------------------------------


def _goes_on(base: Base, question: Question) -> bool:
    """Whether the base can continue from a part of the answer."""
    assert base.vocabulary is not None
    first = base.vocabulary.token_of(encoded(base.vocabulary, question.text)[0])
    return base.can_continue(Prefix(question.prompt, (first,)))


async def _along(base: Base, question: Question) -> tuple[list[Position], Usage]:
    """The base's candidates at each token of the text, from its own drafts: one goes as far as it writes the text, and
    what it would have written instead is a place as well. Ends where no request can go on.
    """
    assert base.vocabulary is not None
    tokens = [base.vocabulary.token_of(index) for index in encoded(base.vocabulary, question.text)]
    found: list[Position] = []
    usage = Usage()
    while len(found) < len(tokens):
        prefix = Prefix(question.prompt, tuple(tokens[: len(found)]))
        if found and not base.can_continue(prefix):
            break
        draft = await base.draft(Ask(prefix, min(_AHEAD, len(tokens) - len(found))))
        usage += draft.usage
        if not draft.positions:
            break
        for position in draft.positions:
            own = tokens[len(found)]
            found.append(replace(position, token=own, logprob=None))
            if position.token.key != own.key or len(found) == len(tokens):
                break
    return found, usage
