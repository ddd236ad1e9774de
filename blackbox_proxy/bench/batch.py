"""`blackbox-proxy bench --batch`: texts decoded at a time, beside the API's own streams at a time.

The base's answers come over an emulated network from a process of its own, which has written each of them before: it
takes no processor but that of sending, like an API that never saturates. So what is measured is what holds texts up
here: the client, the pair, and the arithmetic between them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.bench.setting import Setting, table_over
from blackbox_proxy.host.network import Network
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.protocols import Ask
from blackbox_proxy.screen.tables import Table
from blackbox_proxy.tuner import ProxyTuner, run
from blackbox_proxy.types import Generation, Prefix

_AT_FIRST = 16  # texts at a time, while the base writes its answers
_FEWEST = 8  # texts of a measurement, also where they are decoded one after the other: no text is like another
_SUMMARY = (
    "Tokens a second of all texts: tuned, by those of the first row, of the base's own streams, and of a network alone "
    "with the fewest requests that can do (one after each disagreement). Processor time of this process for each "
    "token: the client, the pair, and what is between them."
)


@dataclass(frozen=True, slots=True)
class Batched:
    """So many texts at a time, at least `_FEWEST` in all: their tokens, wall seconds, and those of this process on its
    processors. alone, network: tokens a second of as many of the base's own streams, and of a network without any work.
    """

    texts: int
    tokens: int
    seconds: float
    processor: float
    alone: float
    network: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def run_batch(console: Console, setting: Setting, *, batches: Sequence[int], alpha: float = 1.0) -> list[Batched]:
    """Everything that `bench --batch` does, the sizes in their order. Every text is decoded twice, and the second time
    is measured. Raises ModelUnavailable, ServerFailed, BaseError; AssertionError if a text depends on the company,
    which would be a defect.
    """
    told, max_tokens, network = setting.told(max(*batches, _FEWEST)), setting.max_tokens, setting.network
    options = {"max_tokens": max_tokens, "temperature": 0.0}
    found: list[Batched] = []
    with setting.host(remember=True) as host, console.status("") as status:
        black_box = setting.black_box(host)
        models = [load_causal_lm(name, device="cpu") for name in (setting.expert, setting.antiexpert)]
        try:
            status.update("writing the base's answers")
            known, _, _ = _decoded(black_box, models, alpha, told, _AT_FIRST, options)
            run(_streams(black_box, told, max_tokens, len(told)))
            for count in batches:
                status.update(f"{count} at a time")
                some = told[: max(count, _FEWEST)]
                texts, seconds, processor = _decoded(black_box, models, alpha, some, count, options)
                assert [text.text for text in texts] == [text.text for text in known[: len(some)]], (
                    "texts depend on company"
                )
                tokens = sum(len(text.steps) for text in texts)
                alone = run(_streams(black_box, some, max_tokens, count))
                each = [_network(text, network) for text in texts]
                found.append(Batched(count, tokens, seconds, processor, alone, tokens / max(*each, sum(each) / count)))
        finally:
            run(black_box.aclose())
    console.print(_table(found, network))
    console.print(_SUMMARY, highlight=False, soft_wrap=True)
    return found


def _decoded(
    base: OpenAIBase,
    models: Sequence[CausalLM],
    alpha: float,
    prompts: Sequence[str],
    at_a_time: int,
    options: Mapping[str, Any],
) -> tuple[list[Generation], float, float]:
    """The texts, wall seconds and processor seconds, by a pair that has read nothing yet."""
    pair = TransformersPair(*models)
    begin, worked = time.perf_counter(), time.process_time()
    texts = ProxyTuner(base, pair, alpha).generate_batch(prompts, concurrency=at_a_time, **options)
    seconds, processor = time.perf_counter() - begin, time.process_time() - worked
    pair.close()
    return texts, seconds, processor


async def _streams(base: OpenAIBase, prompts: Sequence[str], max_tokens: int, at_a_time: int) -> float:
    """Tokens a second of the base's own streams, so many of these at a time."""
    free = asyncio.Semaphore(at_a_time)

    async def one(prompt: str) -> int:
        async with free:
            return sum([len(part.positions) async for part in base.stream(Ask(Prefix(prompt), max_tokens))])

    begin = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(prompt) for prompt in prompts)))
    return tokens / (time.perf_counter() - begin)


def _network(text: Generation, network: Network) -> float:
    """Seconds that the network alone takes for a text with the fewest requests that can do."""
    steps = [step for step in text.steps if step.candidates]
    return network.least(len(steps), 1 + sum(not step.drafted and step.finish_reason is None for step in steps))


def _table(found: Sequence[Batched], network: Network) -> Table:
    titles = ("texts at a time", "tokens/s", "by one", "base alone", "of it", "network", "of it", "ms a token")
    drawn = table_over(network, *titles)
    for row in found:
        drawn.add_row(
            str(row.texts),
            f"{row.tokens_per_second:,.1f}",
            f"{row.tokens_per_second / found[0].tokens_per_second:.1f}",
            f"{row.alone:,.1f}",
            f"{row.tokens_per_second / row.alone:.2f}",
            f"{row.network:,.1f}",
            f"{row.tokens_per_second / row.network:.2f}",
            f"{1e3 * row.processor / row.tokens:.1f}",
        )
    return drawn
