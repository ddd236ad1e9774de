"""What was said, and the next reply. Knows a tuner, and no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from blackbox_proxy.errors import InputError
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Prompt, Step, Usage


@dataclass
class Turn:
    """A question, the steps of its reply as far as it came, and the alphas they were made with."""

    asked: str
    alphas: tuple[Any, ...]
    steps: list[Step] = field(default_factory=list)

    @property
    def reply(self) -> str:
        return "".join(step.text for step in self.steps)


class Conversation:
    """Turns, one after the other. plain: the base sees a transcript, as a model without a chat template needs it; else
    messages. arguments: of `ProxyTuner.stream`.
    """

    def __init__(self, tuner: ProxyTuner, arguments: dict[str, Any], *, plain: bool) -> None:
        self._tuner = tuner
        self._plain = plain
        self._arguments = dict(arguments)
        if plain:
            self._arguments["stop"] = (*self._arguments["stop"], "\nUser:")
        self.turns: list[Turn] = []

    @property
    def alphas(self) -> tuple[Any, ...]:
        """The weight of each pair."""
        return self._tuner.equation.alphas

    def weigh(self, alphas: Sequence[float]) -> None:
        """From now on: one alpha for all pairs, or one each. Learned weights end with it. Raises InputError."""
        pairs = len(self._tuner.pairs)
        if len(alphas) not in (1, pairs):
            raise InputError(f"there are {pairs} pairs but {len(alphas)} alphas", hint="Give one or one each.")
        told = tuple(alphas) * (pairs if len(alphas) == 1 else 1)
        self._tuner.equation = replace(self._tuner.equation.with_alpha(0.0), alphas=told)

    def ask(self, text: str) -> Iterator[Step]:
        """The reply, as it comes. Where it ends early (an error, an interruption), what there was of it is kept."""
        prompt = self._prompt(text)
        turn = Turn(text, self.alphas)
        try:
            for step in self._tuner.stream(prompt, **self._arguments):
                turn.steps.append(step)
                yield step
        finally:
            if turn.steps:
                self.turns.append(turn)

    def ask_base(self) -> Iterator[Step]:
        """What the untuned base says to the last question; the conversation stays as it is. Raises InputError."""
        last = self._last()
        tuner = ProxyTuner.of(
            self._tuner.base, self._tuner.pairs, self._tuner.equation.with_alpha(0.0), self._tuner.drafting
        )
        yield from tuner.stream(self._prompt(last.asked, self.turns[:-1]), **self._arguments)

    def step(self, back: int = 1) -> Step:
        """A step of the last reply, counted from its end. Raises InputError."""
        steps = self._last().steps
        if not 1 <= back <= len(steps):
            raise InputError(f"the last reply has {len(steps)} tokens", hint="1 is its last one.")
        return steps[-back]

    def reset(self) -> None:
        """Forget what was said."""
        self.turns.clear()

    def messages(self, turns: Sequence[Turn] | None = None) -> list[dict[str, str]]:
        """What was said, as messages."""
        said = self.turns if turns is None else turns
        return [
            message
            for turn in said
            for message in (
                {"role": "user", "content": turn.asked},
                {"role": "assistant", "content": turn.reply.strip() if self._plain else turn.reply},
            )
        ]

    def record(self) -> dict[str, Any]:
        """Everything that was said, for JSON, with what it cost."""
        usage = sum((step.usage for turn in self.turns for step in turn.steps), Usage())
        turns = [
            {
                "alphas": [str(a) if callable(a) else a for a in turn.alphas],
                "changed": sum(s.changed for s in turn.steps),
            }
            for turn in self.turns
        ]
        billed = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        return {"messages": self.messages(), "turns": turns, "usage": {"api_calls": usage.api_calls, **billed}}

    def _last(self) -> Turn:
        if not self.turns:
            raise InputError("nothing was said yet", hint="Ask something first.")
        return self.turns[-1]

    def _prompt(self, text: str, before: Sequence[Turn] | None = None) -> Prompt:
        said = [*self.messages(before), {"role": "user", "content": text}]
        if not self._plain:
            return said
        lines = [f"{message['role'].capitalize()}: {message['content']}" for message in said]
        return "\n".join([*lines, "Assistant:"])
