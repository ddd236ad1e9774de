"""What a request costs: the prices of tokens, and their sum. Requests are planned, bounded and reported by it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from blackbox_proxy.errors import InputError
from blackbox_proxy.types import Usage


@dataclass(frozen=True, slots=True)
class Prices:
    """What a token costs in any currency; only the ratios matter. `cached_prompt`: a prompt token that the API still
    had. The default is gpt-3.5-turbo-instruct's list price in US$ per million (no discount for cached prompts).
    """

    prompt: float = 1.5
    cached_prompt: float = 1.5
    output: float = 2.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(price) and price >= 0.0 for price in (self.prompt, self.cached_prompt, self.output)):
            raise InputError("prices must be numbers of at least 0", hint="Give prompt, cached prompt and output.")

    def cost(self, usage: Usage) -> float:
        """Tokens times the price of one, in the currency of the prices."""
        fresh = usage.prompt_tokens - usage.cached_prompt_tokens
        cached = usage.cached_prompt_tokens * self.cached_prompt
        return fresh * self.prompt + cached + usage.completion_tokens * self.output


def prices_of(text: str) -> Prices:
    """Prices as they are written: 1.5,1.5,2. Raises InputError."""
    try:
        return Prices(*(float(price) for price in text.split(",")))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"prices are three numbers, not {text!r}", hint="Prompt, cached prompt, output: 1.5,1.5,2."
        ) from error
