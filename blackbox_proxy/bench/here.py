"""Whole texts with all three models in this process, against the plain loop: `blackbox-proxy bench --here`.

The plain loop is proxy-tuning as it is written down (Liu et al. 2024, section 2): three models with a cache each, one
forward pass of each a token, log q + alpha (log E - log A) over the whole vocabulary, the likeliest token issued. Where
the pair has another tokenizer there is no such loop; there the figure is the time of its three passes a token alone.
It runs the models as transformers loads them. Everything runs in turn on the same weights, so the ratios hold on a busy
machine as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from transformers import DynamicCache

from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.bench.near import random_model
from blackbox_proxy.decoding.pace import Drafting
from blackbox_proxy.models.frozen import thawed
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.screen.tables import Table
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.tuner import ProxyTuner, run

PROMPTS = ("def score(self, tokens):", "The loop asks the base for")
ALONE = "base alone"
PLAIN = "plain loop"
_OURS = {"one at a time": Drafting.fixed(1), "8 at a time": Drafting.fixed(8), "by default": Drafting()}
_SPREAD = 3.0  # nats: random logits that are as sure of themselves as a trained model's
_TUNED = 0.01  # how far the expert is from the anti-expert, of the spread of each weight
_LARGER = {"0.8M": "10M", "10M": "100M", "100M": "100M"}


def random_three(shape: str, base: Vocabulary, local: Vocabulary) -> tuple[CausalLM, CausalLM, CausalLM]:
    """A base (of the next larger shape), an expert and an anti-expert with random weights. Raises InputError."""
    pair = [random_model(shape, local, drift, _SPREAD) for drift in (_TUNED, 0.0)]
    return random_model(_LARGER.get(shape, shape), base, 0.3, _SPREAD), pair[0], pair[1]


@dataclass(frozen=True, slots=True)
class Here:
    """One way to write the texts. speed: tokens a second, of the round in the middle; kept: share of tokens that stood
    in a draft (None: there are no drafts); texts: ids of what was written, where that is comparable.
    """

    name: str
    speed: float
    kept: float | None
    texts: tuple[tuple[int, ...], ...]


@torch.inference_mode()
def plain_loop(
    models: Sequence[CausalLM], plain: Sequence[Any], prompts: Sequence[Sequence[int]], tokens: int, alpha: float | None
) -> tuple[int, ...]:
    """One text by base, expert and anti-expert (or the base alone), greedy, until `tokens` or the base's end.

    plain: each model's weights, as transformers runs them. prompts: ids for each model. alpha None: the base's own
    choice, whatever the others say.
    """
    caches: list[Any] = [DynamicCache() for _ in models]
    new = [list(ids) for ids in prompts]
    written: list[int] = []
    ends, base_size = models[0].vocabulary.end_ids, len(models[0].vocabulary)
    while len(written) < tokens:
        rows = []
        for model, cache, ids in zip(plain, caches, new, strict=True):
            logits = model(
                input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits[0, -1]
            rows.append(torch.log_softmax(logits.float(), -1))
        size = min(base_size, *(len(row) for row in rows))
        total = rows[0][:base_size] if alpha is None else rows[0][:size] + alpha * (rows[1][:size] - rows[2][:size])
        choice = int(total.argmax())
        written.append(choice)
        if choice in ends:
            break
        new = [[min(choice, lm.model.get_input_embeddings().num_embeddings - 1)] for lm in models]
    return tuple(written)


def measure_here(
    base: CausalLM,
    expert: CausalLM,
    antiexpert: CausalLM,
    prompts: Sequence[str],
    *,
    tokens: int = 64,
    alpha: float = 1.0,
    rounds: int = 3,
) -> list[Here]:
    """Every way in turn, `rounds` times; base alone and plain loop first. Greedy, the whole vocabulary shown."""
    box = TransformersBase(base)
    pair = TransformersPair(expert, antiexpert)
    same = base.vocabulary.spells_like(expert.vocabulary)
    ids = [[lm.vocabulary.prompt_ids(prompt, "raw") for lm in (base, expert, antiexpert)] for prompt in prompts]
    kept: dict[str, float] = {}

    def ours(name: str, drafting: Drafting) -> list[tuple[int, ...]]:
        tuner = ProxyTuner(box, pair, alpha, draft=drafting)
        found = [tuner.generate(prompt, max_tokens=tokens) for prompt in prompts]
        steps = [step for generation in found for step in generation.steps]
        kept[name] = sum(step.drafted for step in steps) / len(steps)
        return [tuple(-1 if step.token_id is None else step.token_id for step in one.steps) for one in found]

    three = [base, expert, antiexpert]
    plain = [thawed(lm.model) for lm in three]
    ways: dict[str, Callable[[], list[tuple[int, ...]]]] = {
        ALONE: lambda: [plain_loop(three[:1], plain[:1], own[:1], tokens, None) for own in ids],
        PLAIN: lambda: [plain_loop(three, plain, own, tokens, alpha if same else None) for own in ids],
    }
    ways |= {name: partial(ours, name, drafting) for name, drafting in _OURS.items()}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[tuple[int, ...]]] = {}
    try:
        for turn in range(rounds + 1):
            for name, way in ways.items():
                begin = time.perf_counter()
                texts[name] = way()
                if turn:  # the first one fills caches that are made once
                    speeds[name].append(sum(map(len, texts[name])) / (time.perf_counter() - begin))
    finally:
        run(box.aclose())
    return [Here(name, statistics.median(speeds[name]), kept.get(name), tuple(texts[name])) for name in ways]


def run_here(
    console: Console, models: tuple[CausalLM, CausalLM, CausalLM], prompts: Sequence[str], **options: Any
) -> list[Here]:
    """Measure and print; options as for `measure_here`."""
    found = measure_here(*models, prompts, **options)
    base, expert, _ = models
    same = base.vocabulary.spells_like(expert.vocabulary)
    console.print(here_table(found, f"{base.name}; {expert.name}, {'the same' if same else 'another'} tokenizer"))
    return found


def here_table(found: Sequence[Here], title: str) -> Table:
    """One row a way; speeds beside those of base alone and of the plain loop."""
    known = {one.name: one for one in found}
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("", "tokens/s", "of base alone", "of plain loop", "of drafts kept"):
        table.add_column(column, justify="right" if column else "left")
    for one in found:
        table.add_row(
            one.name,
            f"{one.speed:.1f}",
            f"{one.speed / known[ALONE].speed:.2f}",
            f"{one.speed / known[PLAIN].speed:.2f}",
            "" if one.kept is None else f"{one.kept:.0%}",
        )
    return table
