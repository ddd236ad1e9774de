"""Decode the same texts in different ways and count, at the server, what each of them costs.

Nothing here draws a table: a `Measured` holds counts and seconds, and the ratios that follow from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.decoding.pace import Drafting
from blackbox_proxy.host.network import Network
from blackbox_proxy.prices import Prices
from blackbox_proxy.protocols import Ask, Pair
from blackbox_proxy.tuner import ProxyTuner, run
from blackbox_proxy.types import Prefix, Usage

Stats = Callable[[], Mapping[str, int]]
"""The server's own counts: requests, prompt_tokens, completion_tokens."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One way of asking. Requests and billed tokens are the server's count, seconds are wall time.

    tokens: of all texts. disagreements: those that stood in no draft; restarts: those of them that the text went on
    after. kept: output tokens of the base that are in a text.
    """

    name: str
    texts: tuple[str, ...]
    tokens: int
    requests: int
    disagreements: int
    restarts: int
    kept: int
    prompt_tokens: int
    output_tokens: int
    seconds: float

    @property
    def calls_per_token(self) -> float:
        return self.requests / self.tokens

    @property
    def disagreement_rate(self) -> float:
        return self.disagreements / self.tokens

    @property
    def wasted(self) -> int:
        """Output tokens that were paid for and are in no text."""
        return self.output_tokens - self.kept

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def cost(self, prices: Prices) -> float:
        return prices.cost(Usage(self.requests, self.prompt_tokens, self.output_tokens))

    def floor(self, network: Network) -> float:
        """Seconds that the network alone takes for these texts with the fewest requests that can do: one for each text
        and one after each disagreement, every token read as soon as it is there.
        """
        return network.least(self.tokens, len(self.texts) + self.restarts)


WAYS: dict[str, Drafting] = {
    "one at a time": Drafting.fixed(1),
    "8 at a time": Drafting.fixed(8),
    "32 at a time": Drafting.fixed(32),
    "adaptive, latency": Drafting(stream=False, local=False),
    "adaptive, cost": Drafting(stream=False, local=False, minimise="cost"),
    "stream and cut": Drafting(local=False),
    "with local drafts": Drafting(),
}
RAW = "base alone"


def measure_raw(base: OpenAIBase, prompts: Sequence[str], max_tokens: int, stats: Stats) -> Measured:
    """The base's own stream, log probabilities and all, with nobody behind it."""

    async def one(prompt: str) -> tuple[str, int]:
        tokens = [
            position.token async for part in base.stream(Ask(Prefix(prompt), max_tokens)) for position in part.positions
        ]
        return b"".join(token.bytes or b"" for token in tokens).decode("utf-8", "replace"), len(tokens)

    before, start = stats(), time.perf_counter()
    found = [run(one(prompt)) for prompt in prompts]
    seconds, after = time.perf_counter() - start, stats()
    tokens = sum(count for _, count in found)
    spent = {name: after[name] - before[name] for name in ("requests", "prompt_tokens", "completion_tokens")}
    return Measured(
        RAW,
        tuple(text for text, _ in found),
        tokens,
        spent["requests"],
        0,
        0,
        tokens,
        spent["prompt_tokens"],
        spent["completion_tokens"],
        seconds,
    )


def measure(
    name: str,
    drafting: Drafting,
    base: OpenAIBase,
    pair: Pair,
    prompts: Sequence[str],
    stats: Stats,
    *,
    alpha: float,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Measured:
    """The tuned texts, one after the other, asked for in one way."""
    tuner = ProxyTuner(base, pair, alpha, draft=drafting)
    before, start = stats(), time.perf_counter()
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    found = [tuner.generate(prompt, **options) for prompt in prompts]
    seconds, after = time.perf_counter() - start, stats()
    steps = [step for generation in found for step in generation.steps if step.candidates]
    return Measured(
        name,
        tuple(generation.text for generation in found),
        len(steps),
        after["requests"] - before["requests"],
        sum(not step.drafted for step in steps),
        sum(not step.drafted and step.finish_reason is None for step in steps),
        sum(step.drafted and not step.local for step in steps),
        after["prompt_tokens"] - before["prompt_tokens"],
        after["completion_tokens"] - before["completion_tokens"],
        seconds,
    )
