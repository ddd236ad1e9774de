"""What weights are learned from: rows of a file -> documents -> places, each asked about once, and what that will take.

A text is scored by the base in one request, where it can do that. Where it cannot, the base is asked for its own
continuation along the text: one request, and one after each token that it would not have written itself; or, for a chat
that cannot be continued, for one token. A question with options takes one request of one token; where its options have
several tokens, one request for each of them, and a base that scores given text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from blackbox_proxy.answers import choices, looking, scoring
from blackbox_proxy.answers.forms import Forms
from blackbox_proxy.answers.windows import encoded
from blackbox_proxy.calibration.options import Option, Spot
from blackbox_proxy.calibration.places import ALPHAS, Place
from blackbox_proxy.decoding.rows import Scored, Weigher
from blackbox_proxy.decoding.threads import on_thread
from blackbox_proxy.decoding.whole_vocabulary import of_given, over_everything
from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.tasks import Task
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.maths.weights import Weights, known_masses
from blackbox_proxy.protocols import Ask, Base, Pair
from blackbox_proxy.text.prompts import guessed_tokens
from blackbox_proxy.types import Floats, Position, Prefix, Prompt, Usage

Way = Literal["scored", "along", "choice", "options"]
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


@dataclass(frozen=True, eq=False)
class Document:
    """One row, and what it cost: a text place by place, or a question by its options."""

    every: tuple[Place, ...] = ()
    usage: Usage = field(default_factory=Usage)
    options: tuple[Option, ...] = ()

    @cached_property
    def places(self) -> list[Place]:
        """Those of a text at which what was right is among the candidates."""
        return [place for place in self.every if place.listed]

    @property
    def learnable(self) -> bool:
        """Whether it says anything of weights."""
        return bool(self.places) or any(option.right and option.possible for option in self.options)

    @property
    def unlisted(self) -> int:
        """Places, or questions, that say nothing."""
        return len(self.every) - len(self.places) if self.every else int(not self.learnable)

    @property
    def seen(self) -> list[Place]:
        """All places of the text, or of the options."""
        return [*self.every, *(spot.place for option in self.options for spot in option.spots)]

    @property
    def shown(self) -> int:
        """Candidates that the base showed, at most."""
        return max((place.shown for place in self.seen), default=0)


def question_of(base: Base, pairs: Sequence[Pair], task: Task, rule: choices.Rule) -> Question:
    """How a row is asked. Raises InputError for one that cannot be; sends nothing."""
    if task.kind == "choice":
        if choices.check(base, pairs, task.prompt, task.options, rule) != "scores":
            return Question(task, task.prompt, "", "choice")
        for option in task.options:
            scoring.check(base, pairs, task.prompt, option)
        return Question(task, task.prompt, "", "options")
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


def needs_scores(base: Base, task: Task, rule: choices.Rule) -> bool:
    """Whether only a base that scores given text can tell the options of a question apart, and this one does not."""
    try:
        return not base.abilities.scores and not Forms(task.options, rule.forms).single(base.vocabulary)
    except InputError:
        return False


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
        elif question.way == "options":  # the prompt with each of them
            options = question.task.options
            lengths = sum(_length(base, option) for option in options)
            requests, outputs = requests + len(options), outputs + len(options)
            prompts += len(options) * prompt + lengths
        else:
            requests, prompts, outputs = requests + 1, prompts + prompt + text, outputs + 1
    ways = {question.way for question in questions}
    way = "options" if "options" in ways else next(iter(ways))
    return Plan(way, requests, Usage(requests, prompts, outputs))


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
        found, usage = await looking.forms(base, pairs, question.prompt, question.task.options, learned, rule)
        options = () if found is None else _of_forms(found, pairs, question.task, _silent(equation))
        return Document(usage=usage, options=options)
    if question.way == "options":
        return await _of_options(base, pairs, equation, question, rule)
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
    return _silent(equation).with_weights(Weights(1.0, ones, antiexperts, rest=_NEXT_TO_PLAIN))


def _silent(equation: Equation) -> Equation:
    """It asks for nothing but the places themselves."""
    return replace(equation, tail="backoff") if equation.tail == "ask" else equation


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


# -- options ----------------------------------------------------------------------------------------------------------


def _of_forms(found: looking.ByForms, pairs: Sequence[Pair], task: Task, equation: Equation) -> tuple[Option, ...]:
    """Options that are told apart by one token: each is the forms that count for it, among those of all."""
    weighed = found.weighed
    among = np.zeros(len(weighed.tokens), dtype=np.bool_)
    for indices in found.found:
        among[list(indices)] = True
    scores = weighed.scores
    log_p = [equation.with_alpha(alpha).log_p(weighed.log_q, scores, 0, weighed.shown) for alpha in ALPHAS]
    log_e, _ = known_masses(weighed.log_q, scores[0], pairs[0].has_antiexpert)
    options = []
    for number, indices in enumerate(found.found):
        own = np.zeros(len(among), dtype=np.bool_)
        own[list(indices)] = True
        spot = Spot(Place(weighed.log_q, weighed.shown, scores, own, among))
        plain = np.array([logsumexp(each[own]) for each in log_p])
        options.append(Option([spot], 1, number in task.right, plain, logsumexp(log_e[own])))
    return tuple(options)


async def _of_options(
    base: Base, pairs: Sequence[Pair], equation: Equation, question: Question, rule: choices.Rule
) -> Document:
    """Options of several tokens: each as the text after the prompt, as `choose` has it."""
    plain, task = _silent(equation).with_alpha(1.0), question.task
    probes = [*_probes(_learned(equation, pairs)), plain]
    looked, usage = await looking.whole(base, pairs, question.prompt, task.options, probes, _told)
    options = []
    for number, tokens in enumerate(looked):
        size = choices.divisor(len(tokens), sum(each.size for each in tokens), rule.normalise)
        options.append(
            Option(
                [each.spot for each in tokens],
                size,
                number in task.right,
                np.sum([each.plain for each in tokens], axis=0) / size,
                sum(each.log_expert for each in tokens) / size,
            )
        )
    return Document(usage=usage, options=tuple(options))


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """One token of an option. size: its bytes; plain (a,), log_expert: as of an `Option`."""

    spot: Spot
    size: int
    plain: Floats
    log_expert: float


def _told(scored: Scored) -> _Told:
    """Under the equations of `_of_options`."""
    token, log_q = scored.position.token, scored.position.logprob
    assert log_q is not None, "given positions have it"
    plainly, plain = scored.under(2), scored.weigher.equations[2]
    index = plainly.index_of(token)
    pairs, log_p = scored.weigher.pairs, []
    for alpha in ALPHAS:
        weighed = over_everything(plainly, pairs, plain.with_alpha(alpha), scored.place)
        log_p.append(-np.inf if index is None else of_given(weighed, index, log_q))
    scores = plainly.scores[0] if index is not None else scored.rows[0].score([token])
    log_expert = float(scores.log_expert[index or 0])
    return _Told(
        Spot(_seen(scored), log_q),
        len(token.bytes or b""),
        np.array(log_p),
        log_expert if np.isfinite(log_expert) else log_q,
    )


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
