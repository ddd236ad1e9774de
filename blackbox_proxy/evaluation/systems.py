"""The systems that are compared, and how each answers a task.

A multiple-choice question or a text is asked about once: what the base shows there, and what the pair says of it, is
all that base, expert, anti-expert and every alpha need. Questions to be answered in text are decoded: by the base at
alpha 0, by each alpha on the way that the cache has already gone, by a local model alone in its own tokens.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

from blackbox_proxy.answers import choices, scoring
from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.decoding.text import Limits
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.evaluation.tasks import Task, is_exact_match
from blackbox_proxy.jobs.row import HOPELESS
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.weights import Weights
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.text.writer import Writer
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Generation, Prefix, Prompt, Usage

Role = Literal["base", "expert", "antiexpert", "tuned", "ceiling"]
ROLES: tuple[Role, ...] = ("base", "expert", "antiexpert", "tuned")
"""What can be asked for by name; a ceiling is given as a model."""

_TITLES: dict[Role, str] = {
    "base": "base alone",
    "expert": "expert alone",
    "antiexpert": "anti-expert alone",
    "ceiling": "ceiling",
}


@dataclass(frozen=True, slots=True)
class System:
    """One line of the table. A proxy-tuned system has its alpha, or learned weights."""

    role: Role
    alpha: float | None = None
    weights: Weights | None = None

    @property
    def asks(self) -> bool:
        """Whether it needs the base."""
        return self.role in ("base", "tuned")

    @property
    def key(self) -> str:
        """Its name in results: "base", "tuned@0.5", "tuned@weights" …"""
        if self.weights is not None:
            return f"{self.role}@weights"
        return self.role if self.alpha is None else f"{self.role}@{self.alpha:g}"

    @property
    def title(self) -> str:
        """Its name for people."""
        if self.weights is not None:
            return "proxy-tuned, learned weights"
        return _TITLES[self.role] if self.alpha is None else f"proxy-tuned, alpha {self.alpha:g}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one system made of one task.

    value: 1 or 0 for right or wrong; for a text the bits that it costs, infinite where it was given no probability;
    None where there is an error. said: the option, or the text. abstained: no option had any mass, or the text was
    empty; it counts as wrong. instead: the token that the base writes where it shows none of the options, "" the end of
    its text; else None. log_p: of each option, or of the text, in nats. size: bytes of the text that was scored.
    unseen: options that the base did not show, so that they are estimated. tokens: decoded. usage: what was spent here,
    after what other systems had asked before. requests: what it needs by itself, from an empty cache; 0 for a local
    one.
    """

    value: float | None
    said: str = ""
    abstained: bool = False
    instead: str | None = None
    log_p: tuple[float, ...] = ()
    size: int = 0
    unseen: int = 0
    tokens: int = 0
    usage: Usage = field(default_factory=Usage)
    requests: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """One task with what each system made of it, by the system's key."""

    task: Task
    outcomes: dict[str, Outcome]

    @property
    def usage(self) -> Usage:
        return sum((outcome.usage for outcome in self.outcomes.values()), Usage())

    @property
    def size(self) -> int:
        """Bytes of the text that was scored."""
        return max(outcome.size for outcome in self.outcomes.values())

    @property
    def errors(self) -> dict[str, str]:
        return {key: outcome.error for key, outcome in self.outcomes.items() if outcome.error}


@dataclass(frozen=True, slots=True)
class Way:
    """How tasks are asked. tuner: what the tuned systems are, but for their alphas. limits: of answers in text, where a
    task has none of its own.
    """

    tuner: ProxyTuner
    limits: Limits
    rule: choices.Rule


class Panel:
    """All systems over one base and one pair (of several pairs, expert and anti-expert are those of the first).

    ceiling: the base tuned directly, where there is one. Raises InputError where a system cannot be had.
    """

    def __init__(
        self,
        base: Base,
        systems: Sequence[System],
        way: Way,
        ceiling: TransformersBase | None = None,
    ) -> None:
        self.systems = tuple(systems)
        self._base = base
        self._pairs = way.tuner.pairs
        self._way = way
        self._ceiling = ceiling
        self._locals: dict[Role, TransformersBase] = {} if ceiling is None else {"ceiling": ceiling}
        self._tuners = {system.key: self._tuner(system) for system in self.systems if system.role in ("base", "tuned")}
        if any(system.role == "antiexpert" for system in self.systems) and not self._pairs[0].has_antiexpert:
            raise InputError(
                "there is no anti-expert to compare with", hint="Leave it out of the systems, or give one."
            )

    def _tuner(self, system: System) -> ProxyTuner:
        tuner = self._way.tuner
        # The base by itself writes what it drafts: local drafts could only be in its way.
        drafting = tuner.drafting if system.role == "tuned" else replace(tuner.drafting, local=False)
        return tuner.altered(base=self._base, equation=self._equation(system), drafting=drafting)

    def _equation(self, system: System) -> Equation:
        """Of a proxy-tuned system; of another, alpha 0."""
        equation = self._way.tuner.equation
        if system.weights is not None:
            return equation.with_weights(system.weights)
        return equation.with_alpha(system.alpha or 0.0)

    # -- before -------------------------------------------------------------------------------------------------------

    def check(self, task: Task) -> None:
        """Raise InputError if one of the models cannot take this task; runs nothing."""
        models = [self._base, *([] if self._ceiling is None else [self._ceiling])]
        for base in models:
            if task.kind == "choice":
                choices.check(base, self._pairs, task.prompt, task.options, self._way.rule)
            elif task.kind == "text":
                scoring.check(base, self._pairs, *self._split(task))
        if task.kind == "question":
            alone = [self._local(s.role) for s in self.systems if s.role in ("expert", "antiexpert", "ceiling")]
            parts: tuple[Base | Pair, ...] = (*self._pairs, self._base, *alone)
            for part in parts:
                part.check(task.prompt, task.max_tokens or self._way.limits.max_tokens)

    def _split(self, task: Task) -> tuple[Prompt, str]:
        """What a text is scored after, and what of it is scored: its own first token where it has no prompt."""
        return (task.prompt, task.text) if task.prompt else scoring.split_opening(task.text, self._base.vocabulary)

    def _local(self, role: Role) -> TransformersBase:
        """A local model by itself, in its own tokens. Raises InputError."""
        if role not in self._locals:
            models = getattr(self._pairs[0], "models", None)
            if models is None:
                raise InputError(
                    f"the {role} cannot answer by itself: {type(self._pairs[0]).__name__} only scores",
                    hint="Leave it out of the systems.",
                )
            lm, rendering = models[1 if role == "antiexpert" else 0]
            self._locals[role] = TransformersBase(lm, rendering=rendering)
        return self._locals[role]

    # -- asking -------------------------------------------------------------------------------------------------------

    async def answer(self, task: Task) -> Answered:
        """What every system makes of a task. An error is an outcome; those that every further row would meet as well
        are raised.
        """
        outcomes: dict[str, Outcome] = {}
        if task.kind == "question":
            for system in self.systems:
                outcomes |= await _guarded(self._say(task, system), [system])
            return Answered(task, outcomes)
        ask = self._choose if task.kind == "choice" else self._score
        # One request is enough for all systems but the ceiling, which is another model.
        shared = [system for system in self.systems if system.role != "ceiling"]
        if shared:
            outcomes |= await _guarded(ask(self._base, task, shared), shared)
        if self._ceiling is not None:
            ceiling = [system for system in self.systems if system.role == "ceiling"]
            outcomes |= await _guarded(ask(self._ceiling, task, ceiling), ceiling)
        return Answered(task, {system.key: outcomes[system.key] for system in self.systems})

    def _equations(self, systems: Sequence[System]) -> list[Equation]:
        """One for each proxy-tuned system; alpha 0 where there is none, since something must be asked for."""
        tuned = [system for system in systems if system.role == "tuned"] or [System("base")]
        return [self._equation(system) for system in tuned]

    async def _choose(self, base: Base, task: Task, systems: Sequence[System]) -> dict[str, Outcome]:
        options, equations = task.options, self._equations(systems)
        found = await choices.choose(base, self._pairs, task.prompt, options, equations, rule=self._way.rule)
        usage, tuned = found[0].usage, iter(found)
        needed = usage.api_calls or (len(options) if found[0].by == "scores" else 1)
        outcomes = {}
        for place, system in enumerate(systems):
            of = next(tuned) if system.role == "tuned" else found[0]
            best, log_p = {
                "tuned": (of.best, of.log_p),
                "base": (of.base_best, of.log_q),
                "ceiling": (of.base_best, of.log_q),
                "expert": (of.expert_best, of.log_expert),
                "antiexpert": (of.antiexpert_best, of.log_antiexpert),
            }[system.role]
            outcomes[system.key] = Outcome(
                float(best in task.right),
                "" if best is None else task.options[best].strip(),
                best is None,
                of.instead if of.unseen and system.asks else None,
                tuple(log_p),
                unseen=sum(how in ("backoff", "floor") for how in of.how) if system.asks else 0,
                tokens=int(system.asks and found[0].by != "scores"),
                usage=usage if place == 0 and system.role != "ceiling" else Usage(),
                requests=needed if system.asks else 0,
            )
        return outcomes

    async def _score(self, base: Base, task: Task, systems: Sequence[System]) -> dict[str, Outcome]:
        prompt, text = self._split(task)
        found = await scoring.score(base, self._pairs, prompt, text, self._equations(systems))
        usage, tuned = found[0].usage, iter(found)
        outcomes = {}
        for place, system in enumerate(systems):
            of = next(tuned) if system.role == "tuned" else found[0]
            log_p = {
                "tuned": of.log_p,
                "base": of.log_q,
                "ceiling": of.log_q,
                "expert": of.log_expert,
                "antiexpert": of.log_antiexpert,
            }[system.role]
            outcomes[system.key] = Outcome(
                -log_p / math.log(2.0),
                log_p=(log_p,),
                size=of.bytes,
                usage=usage if place == 0 and system.role != "ceiling" else Usage(),
                requests=max(usage.api_calls, 1) if system.asks else 0,
            )
        return outcomes

    async def _say(self, task: Task, system: System) -> dict[str, Outcome]:
        """An answer in text, decoded greedily."""
        max_tokens = task.max_tokens or self._way.limits.max_tokens
        stop = self._way.limits.stop if task.stop is None else task.stop
        usage, requests = Usage(), 0
        if system.asks:
            found = await self._tuners[system.key].agenerate(task.prompt, max_tokens=max_tokens, stop=stop)
            text, tokens, usage, requests = found.text, len(found.steps), found.usage, _requests(found)
        else:
            text, tokens = await _alone(self._local(system.role), task.prompt, max_tokens, stop)
        right = is_exact_match(text, task.answers)
        said = text.strip()
        return {system.key: Outcome(float(right), said, not said, tokens=tokens, usage=usage, requests=requests)}


async def _guarded(asking: Awaitable[dict[str, Outcome]], systems: Sequence[System]) -> dict[str, Outcome]:
    try:
        return await asking
    except HOPELESS:
        raise
    except BlackboxError as error:
        spent = sum((step.usage for step in error.steps), Usage())
        failed = Outcome(None, error=f"{type(error).__name__}: {error}")
        return {
            system.key: replace(failed, usage=spent if place == 0 else Usage()) for place, system in enumerate(systems)
        }


def _requests(said: Generation) -> int:
    """What a text needs from an empty cache where drafts are long: one request, and one after each token that is not
    the base's own. Local drafts, where there are any, may save some of them.
    """
    return 1 + sum(step.changed and step.finish_reason is None for step in said.steps)


async def _alone(base: TransformersBase, prompt: Prompt, max_tokens: int, stop: Sequence[str]) -> tuple[str, int]:
    """A local model's own greedy text, and its length in its own tokens."""
    writer, text, tokens = Writer(stop), "", 0
    async with aclosing(base.positions(Prefix(prompt), max_tokens)) as positions:
        async for position in positions:
            tokens += 1
            if position.token.end:
                break
            more, stopped = writer.write(position.token.bytes or b"")
            text += more
            if stopped:
                return text, tokens
    return text + writer.close(), tokens
