"""Learned weights and experts trained through the box, on toys that are trained here: a near and a far pair.

    python examples/learned_weights.py                     about ten minutes on one core; needs blackbox-proxy[train]

A base and a small model learn to write of a shop; the small one is then tuned on sums in words, plainly and through the
base's five candidates, for the same number of steps. Printed for each seed, pair and k: -log p of the true token among
the candidates, on documents that weights and alpha were not fitted to (nats); and bits per byte of further documents,
which can be compared between experts, since every token counts there: how many fewer the expert trained through the box
needs than the plain one, with the paired bootstrap over these documents.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, calibrate, evaluate, tune
from blackbox_proxy.evaluation.run import Evaluation
from blackbox_proxy.evaluation.statistics import bootstrap_interval
from blackbox_proxy.tuning.train import Recipe

NAMES = ["Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry"]
THINGS = ["apples", "pencils", "marbles", "books", "coins", "cards"]
_TUNED = (("alpha 1", "1"), ("weights", "weights"))


def shop(rng: random.Random) -> str:
    """What both models know."""
    a, b = rng.sample(NAMES, 2)
    thing, n, m = rng.choice(THINGS), rng.randint(2, 40), rng.randint(2, 40)
    return rng.choice(
        [
            f" {a} went to the shop and bought {n} {thing}. {b} bought {m} of them on the next day.",
            f" In the shop there were {n} {thing} and {m} other things. {a} told {b} about it.",
            f" {n} + {m} = {n + m}, said {a} to {b} in the shop.",
        ]
    )


def sums(rng: random.Random) -> str:
    """What the expert is tuned on."""
    a, b = rng.sample(NAMES, 2)
    thing, n, m = rng.choice(THINGS), rng.randint(2, 40), rng.randint(2, 40)
    return (
        f" Question: {a} has {n} {thing}, {b} gives {a} {m} more. How many {thing} has {a}? Answer: {a} has {n} + {m} "
        f"= {n + m} {thing}."
    )


def texts(make: Callable[[random.Random], str], count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [make(rng) for _ in range(count)]


def tokenizer(size: int, corpus: Sequence[str], digits: bool) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def train(folder: Path, spelling: PreTrainedTokenizerFast, corpus: Sequence[str], steps: int, seed: int) -> str:
    """A Llama of two layers from nothing."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(spelling),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    model: Any = LlamaForCausalLM(config)
    rng, ids = random.Random(seed), [spelling(text)["input_ids"] for text in corpus]
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        some = [[0, *each] for each in rng.sample(ids, 12)]
        longest = max(map(len, some))
        inputs = torch.tensor([each + [1] * (longest - len(each)) for each in some])
        labels = torch.tensor([each + [-100] * (longest - len(each)) for each in some])
        model(input_ids=inputs, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    spelling.save_pretrained(folder)
    return str(folder)


def fewer(plain: Evaluation, through: Evaluation, system: str) -> str:
    """Bits per byte that the second saves, with the 95 % interval over the documents, which both were measured on."""
    sizes, saved = [], []
    for one, other in zip(plain.rows, through.rows, strict=True):
        before, after = one.outcomes[system], other.outcomes[system]
        assert before.value is not None
        assert after.value is not None
        sizes.append(before.size)
        saved.append((before.value - after.value) / before.size)
    low, high = bootstrap_interval(saved, weights=sizes)
    mean = sum(value * size for value, size in zip(saved, sizes, strict=True)) / sum(sizes)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def measure(folder: Path, seed: int, steps: int) -> None:
    known, wanted = texts(shop, 1200, seed), [{"text": text} for text in texts(sums, 120, seed + 100)]
    dev = [{"text": text} for text in texts(sums, 40, seed + 200)]
    other = [{"text": text} for text in texts(shop, 20, seed + 300)]
    held_out = [{"text": text} for text in texts(sums, 30, seed + 500)]
    mixed = [*known, *texts(sums, 60, seed + 400)]  # both know the words, hardly their use
    spelled = {kind: tokenizer(500, mixed, kind == "far") for kind in ("near", "far")}
    big = train(folder / "base", spelled["near"], mixed, steps, seed)
    for kind in ("near", "far"):
        small = train(folder / f"{kind}-small", spelled[kind], mixed, steps, seed + 1)
        seen = TransformersBase(big, top_logprobs=5, device="cpu")
        plainly: dict[int, Evaluation] = {}
        for through in (False, True):
            expert = folder / f"{kind}-{'through' if through else 'plain'}"
            recipe = Recipe(steps=60, batch=4, rate=5e-3, through=through, seed=seed)
            tune(small, wanted, expert, recipe=recipe, base=seen if through else None, device="cpu")
            for k in (5, 20):
                pair = TransformersPair(expert, small, device="cpu")
                tuner = ProxyTuner(TransformersBase(big, top_logprobs=k, device="cpu"), pair)
                found = calibrate(tuner, dev, others=other)
                assert found is not None
                figures = "  ".join(f"{each.name} {each.loss:.3f}" for each in found.systems)
                gain = next(each for each in found.systems if each.name == "alpha 1")
                elsewhere = next(each.gain for each in found.others if each.name == "alpha 1")
                learned = ProxyTuner(tuner.base, pair, weights=found.weights)
                evaluation = evaluate(learned, held_out, alphas=[1.0])
                (table,) = evaluation.tables
                bits = "  ".join(f"{each.system.key} {each.value:.3f}" for each in table.results)
                print(
                    f"seed {seed} {kind:4} k {k:2} {'through' if through else 'plain':7}  {figures}  | over alpha 1: "
                    f"{gain.gain:+.3f} ({gain.gain_low:+.3f} to {gain.gain_high:+.3f}), elsewhere {elsewhere:+.3f}"
                    f"{' (does not carry over)' if found.carries_over is False else ''}"
                    f"  | bits per byte: {bits}",
                    flush=True,
                )
                if not through:
                    plainly[k] = evaluation
                    continue
                saved = [f"{name} {fewer(plainly[k], evaluation, f'tuned@{key}')}" for name, key in _TUNED]
                print(f"seed {seed} {kind:4} k {k:2} bits per byte fewer than plain: {'  '.join(saved)}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description="Learned weights on toys that are trained here.")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--steps", type=int, default=300, help="of the base and of the small models")
    given = arguments.parse_args()
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), seed, given.steps)


if __name__ == "__main__":
    main()
