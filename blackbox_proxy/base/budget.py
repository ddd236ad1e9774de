"""A budget around any base: what may be spent is reserved before a request and settled after it, never exceeded.

    base = BudgetedBase(open_base(...), Budget(max_calls=1000, max_cost=2.5, prices=Prices(1.5e-6, 1.5e-6, 2e-6)))

A request that would not fit asks for fewer tokens; one that does not fit at all is not sent: BudgetReached. What was
decoded until then is kept (`error.steps`).
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.errors import BudgetReached, InputError
from blackbox_proxy.prices import Prices
from blackbox_proxy.protocols import Ask, Base, Revealed
from blackbox_proxy.text.vocabulary import is_ids
from blackbox_proxy.types import Draft, Prefix, Token, Usage

_Answer = TypeVar("_Answer", Draft, Revealed)

_PER_MESSAGE = 16  # tokens that a chat template may add to a message, at most


@dataclass(slots=True)
class _Spent:
    calls: int = 0
    prompt: int = 0
    output: int = 0


class Pays(Protocol):
    """What requests are paid from: a `Budget`, or one that many processes share (cluster/budget.py)."""

    async def allow(self, prompt_tokens: int, n: int) -> int:
        """Set aside one request; the output tokens it may ask for, 1 to n. Raises BudgetReached."""
        ...

    def settle(self, prompt_tokens: int, granted: int, used: Usage) -> None:
        """A request that was allowed is over and has cost `used`: the most it can, where it was broken off."""
        ...


class Budget:
    """What may be spent in all, by all bases that share it; None is no limit. Safe for threads.

    max_calls: requests. max_tokens_billed: prompt and output tokens. max_cost: in the currency of `prices`, which are
    prices of one token. A request under way counts as the most it can cost.
    """

    def __init__(
        self,
        max_calls: int | None = None,
        max_tokens_billed: int | None = None,
        max_cost: float | None = None,
        prices: Prices | None = None,
    ) -> None:
        for name, value in (("calls", max_calls), ("tokens_billed", max_tokens_billed), ("cost", max_cost)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(
                    f"max_{name} must be a number of at least 0, not {value}", hint="Leave it out for none."
                )
        if max_cost is not None and prices is None:
            raise InputError("a cost needs prices", hint="Give the prices of a prompt, cached prompt and output token.")
        self.max_calls = max_calls
        self.max_tokens_billed = max_tokens_billed
        self.max_cost = max_cost
        self.prices = prices or Prices(0.0, 0.0, 0.0)
        self._spent = _Spent()
        self._reserved = _Spent()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        with self._lock:
            return (
                f"Budget({self._spent.calls} of {self.max_calls} calls, "
                f"{self._spent.prompt + self._spent.output} of {self.max_tokens_billed} tokens, "
                f"{self.cost:g} of {self.max_cost})"
            )

    @property
    def usage(self) -> Usage:
        """What has been spent so far, requests under way left out."""
        return Usage(self._spent.calls, self._spent.prompt, self._spent.output)

    @property
    def cost(self) -> float:
        """What that costs; cached prompt tokens at the full price, since no API promises them."""
        return self.prices.cost(self.usage)

    async def allow(self, prompt_tokens: int, n: int) -> int:
        """As `reserve`, at once."""
        return self.reserve(prompt_tokens, n)

    def reserve(self, prompt_tokens: int, n: int) -> int:
        """Set aside one request; the output tokens it may ask for, 1 to n. Raises BudgetReached."""
        with self._lock:
            calls = self._spent.calls + self._reserved.calls
            prompt = self._spent.prompt + self._reserved.prompt + prompt_tokens
            output = self._spent.output + self._reserved.output
            if self.max_calls is not None and calls >= self.max_calls:
                raise _reached(f"{self.max_calls} calls")
            left = float(n)
            if self.max_tokens_billed is not None:
                left = min(left, self.max_tokens_billed - prompt - output)
                if left < 1:
                    raise _reached(f"{self.max_tokens_billed} tokens")
            if self.max_cost is not None:
                money = self.max_cost - prompt * self.prices.prompt - output * self.prices.output
                left = min(
                    left, money / self.prices.output if self.prices.output > 0 else math.inf if money >= 0 else 0
                )
                if left < 1:
                    raise _reached(f"a cost of {self.max_cost:g}")
            granted = int(min(left, n))
            self._hold(prompt_tokens, granted)
            return granted

    def restore(self, spent: Usage, reserved: Sequence[tuple[int, int]] = ()) -> None:
        """Count what was spent before this process, and set aside what may still be billed (prompt and output tokens of
        each request).
        """
        with self._lock:
            self._spent.calls += spent.api_calls
            self._spent.prompt += spent.prompt_tokens
            self._spent.output += spent.completion_tokens
            for prompt_tokens, granted in reserved:
                self._hold(prompt_tokens, granted)

    def _hold(self, prompt_tokens: int, granted: int) -> None:
        self._reserved.calls += 1
        self._reserved.prompt += prompt_tokens
        self._reserved.output += granted

    def settle(self, prompt_tokens: int, granted: int, used: Usage) -> None:
        """A reserved request is over and has cost `used`."""
        with self._lock:
            self._reserved.calls -= 1
            self._reserved.prompt -= prompt_tokens
            self._reserved.output -= granted
            self._spent.calls += used.api_calls
            self._spent.prompt += used.prompt_tokens
            self._spent.output += used.completion_tokens


def _reached(limit: str) -> BudgetReached:
    return BudgetReached(
        f"the budget of {limit} leaves no room for another request",
        hint="Raise it to go on; what has been decoded is kept.",
    )


class BudgetedBase(BaseAround):
    """A base whose requests are paid from a `Budget`, or from another that `Pays`. Of a stream that was cut, what had
    arrived is what counts.
    """

    def __init__(self, base: Base, budget: Pays) -> None:
        super().__init__(base)
        self.budget = budget

    def __repr__(self) -> str:
        return f"BudgetedBase({self.base!r}, {self.budget!r})"

    async def draft(self, ask: Ask) -> Draft:
        """As the base drafts, at most as many tokens as the budget allows. Raises BudgetReached, BaseError."""
        return await self._paid(ask.prefix, ask.n, lambda granted: self.base.draft(replace(ask, n=granted)), ask.given)

    async def reveal(self, prefix: Prefix, tokens: Sequence[Token]) -> Revealed:
        """As the base tells, one request for as many tokens as one can name. Raises BudgetReached, BaseError."""
        told = [np.empty(0)]
        usage, at_once = Usage(), max(1, self.base.abilities.reveals)
        for start in range(0, len(tokens), at_once):
            some = tokens[start : start + at_once]
            answer = await self._paid(prefix, 1, lambda _, some=some: self.base.reveal(prefix, some), some[:1])  # type: ignore[misc]
            told.append(answer.logprobs)
            usage += answer.usage
        return Revealed(np.concatenate(told), usage)

    async def steer(self, prefix: Prefix, bias: Mapping[Token, float], **options: Any) -> Draft:
        """As the base chooses. Raises BudgetReached, BaseError."""
        return await self._paid(prefix, 1, lambda _: self.base.steer(prefix, bias, **options))

    async def _paid(
        self, prefix: Prefix, n: int, ask: Callable[[int], Awaitable[_Answer]], given: Sequence[Token] = ()
    ) -> _Answer:
        """One request for at most n tokens; `ask` is told how many the budget allows."""
        tokens = most_tokens(self.base, prefix, given)
        granted = await self.budget.allow(tokens, n)
        used = Usage()
        try:
            answer = await ask(granted)
            used = answer.usage
            return answer
        except asyncio.CancelledError:
            used = Usage(1, tokens, granted)  # it may be on its way, and billed
            raise
        finally:
            self.budget.settle(tokens, granted, used)

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        """As the base streams, at most as many tokens as the budget allows. Raises BudgetReached, BaseError."""
        tokens = most_tokens(self.base, ask.prefix, ask.given)
        granted = await self.budget.allow(tokens, ask.n)
        used = Usage()
        try:
            async with aclosing(self.base.stream(replace(ask, n=granted))) as parts:
                async for part in parts:
                    used += part.usage
                    yield part
        except (asyncio.CancelledError, GeneratorExit):
            used = used if used.api_calls else Usage(1, tokens, granted)
            raise
        finally:
            self.budget.settle(tokens, granted, used)


def most_tokens(base: Base, prefix: Prefix, given: Sequence[Token] = ()) -> int:
    """The most prompt tokens that a request can have: exact where the tokenizer is known and the prompt raw text, else
    one for each byte of it.
    """
    prompt, issued = prefix.prompt, len(prefix.tokens) + len(given)
    if is_ids(prompt):
        return len(prompt) + issued
    if isinstance(prompt, str) and base.vocabulary is not None and base.context is not None:
        room = base.room(prefix)
        if room is not None:  # the base knows how it renders the prompt
            return base.context - room + len(given)
    if isinstance(prompt, str):
        known = base.vocabulary
        tokens = len(prompt.encode()) if known is None else len(known.prompt_ids(prompt))
        return tokens + _PER_MESSAGE + issued
    return (
        sum(len(str(part["content"]).encode()) + _PER_MESSAGE for part in prompt if not isinstance(part, int)) + issued
    )
