"""An emulated network: what an engine writes arrives no sooner than it would from far away.

    OverNetwork(engine, Network(first_token=0.3, per_token=0.02))

Real APIs are measured by two numbers, the time to the first token and the time between tokens. With a local model
behind them, what a program costs against a distant API can be measured at home.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from blackbox_proxy.errors import InputError
from blackbox_proxy.host.around import EngineAround
from blackbox_proxy.serve.engine import Engine, Event, TextWanted


@dataclass(frozen=True, slots=True)
class Network:
    """first_token: seconds until the first token of a text. per_token: seconds for each further one."""

    first_token: float = 0.0
    per_token: float = 0.0

    def __post_init__(self) -> None:
        for name, seconds in (("first_token", self.first_token), ("per_token", self.per_token)):
            if not (math.isfinite(seconds) and seconds >= 0.0):
                raise InputError(
                    f"{name} must be a number of seconds of at least 0, not {seconds}", hint="0 is no network at all."
                )

    def delay(self, tokens: int) -> float:
        """Seconds from the request until so many tokens are there; those of the first token if there are none."""
        return self.first_token + max(0, tokens - 1) * self.per_token

    def least(self, tokens: int, requests: int) -> float:
        """Seconds for so many tokens that come of so many requests, one after the other, each read as soon as it is
        there.
        """
        return requests * self.first_token + max(0, tokens - requests) * self.per_token


class OverNetwork(EngineAround):
    """An engine as seen over a network.

    Each text is on a schedule that starts when it is asked for, so the model's own time is part of the delay and does
    not come on top; a model slower than the schedule is as slow as it is. No more than one token is written ahead of
    its time: a client that leaves stops the model where the text had come to, as it does at a real API.
    """

    def __init__(self, engine: Engine, network: Network) -> None:
        super().__init__(engine)
        self._network = network

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        now = asyncio.get_running_loop().time
        start, tokens = now(), 0
        waiting: list[Event] = []  # the prompt's event goes together with the first token, which is read meanwhile
        async with aclosing(self._engine.complete(wanted)) as events:
            async for event in events:
                waiting.append(event)
                tokens += event.usage.completion_tokens
                if tokens == 0 and event.finish_reason is None:
                    continue
                await asyncio.sleep(max(0.0, start + self._network.delay(tokens) - now()))
                for ready in waiting:
                    yield ready
                waiting = []
        for ready in waiting:  # an engine that ended without a word
            yield ready
