"""Trains the demo's models: one student (two models of one spelling) per process, one thread each.

    python -m blackbox_proxy.demo.training big|small FOLDER RECIPE-AS-JSON

A student reads the library up to the cut-off and is saved (base, antiexpert); then it goes on with the news and is
saved again (direct, expert). Both students read at the same time, each on a single thread: models this small gain
nothing from a second one, a busy machine does not slow them down further, and the same seed gives the same weights.
One JSON line per step of progress goes to standard output.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blackbox_proxy.demo.recipe import Recipe, Student
from blackbox_proxy.demo.spelling import big_tokenizer, small_tokenizer

if TYPE_CHECKING:
    import torch

Document = list[int]
Batch = list[Document]
NAMES = {"big": ("base", "direct"), "small": ("antiexpert", "expert")}
"""What each student is called after the library and after the news."""

_WINDOW = 512
_END = 0  # both tokenizers end a text with id 0
_IGNORED = -100


def new_model(student: Student, seed: int) -> Any:
    """An untrained Llama of the student's size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=student.vocabulary,
        hidden_size=student.hidden,
        num_hidden_layers=student.layers,
        num_attention_heads=student.heads,
        num_key_value_heads=student.heads,
        intermediate_size=student.inner,
        max_position_embeddings=_WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=_END,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def _batches(documents: Sequence[Document], size: int, rng: random.Random) -> Iterator[Batch]:
    """Batches of documents of like length, so that little padding is read, in random order."""
    order = list(documents)
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), 16 * size):
        near = sorted(order[start : start + 16 * size], key=len)
        batches += [near[i : i + size] for i in range(0, len(near), size)]
    rng.shuffle(batches)
    return iter(batches)


def _tensors(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, both (documents, longest); padding is on the right, where causal attention never looks."""
    import torch

    longest = max(map(len, batch))
    inputs = [document + [_END] * (longest - len(document)) for document in batch]
    targets = [document[1:] + [_IGNORED] * (longest - len(document) + 1) for document in batch]
    return torch.tensor(inputs), torch.tensor(targets)


def read(
    model: Any,
    editions: Sequence[Sequence[Document]],
    *,
    rate: float,
    batch: int,
    smoothing: float,
    decay: float,
    rng: random.Random,
    told: Callable[[float], None],
) -> None:
    """Train on the editions one after the other: AdamW, a short warm-up, then half a cosine down to a twentieth."""
    import torch

    plan = [found for documents in editions for found in _batches(documents, batch, rng)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)
    warm_up = 0.05 * len(plan)
    model.train()
    for step, documents in enumerate(plan):
        wave = 0.5 * (1.0 + math.cos(math.pi * step / len(plan)))
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (warm_up + 1)) * max(0.05, wave)
        inputs, targets = _tensors(documents)
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, label_smoothing=smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        told((step + 1) / len(plan))
    model.eval()


def _spell(tokenizer: Any, texts: Sequence[str]) -> list[Document]:
    """Each text as ids, with the end token that teaches a model to stop."""
    spelled: list[Document] = tokenizer(list(texts))["input_ids"]
    return [[*ids, _END] for ids in spelled]


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(which: str, folder: Path, recipe: Recipe, progress: Callable[[str, float], None]) -> None:
    """Make the two models of one student and save each as an ordinary Hugging Face folder below `folder`."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    student = recipe.big if which == "big" else recipe.small
    world = recipe.world()
    library = [
        recipe.library(world, edition, familiar_only=which == "small") for edition in range(student.library_editions)
    ]
    news = [recipe.news(world, edition) for edition in range(student.news_editions)]
    tokenizer = (big_tokenizer if which == "big" else small_tokenizer)(library[0], student.vocabulary)
    model = new_model(student, recipe.seed)
    rng = random.Random(f"order:{which}:{recipe.seed}")
    lessons = ((library, student.library_rate), (news, student.news_rate))
    for name, (texts, rate) in zip(NAMES[which], lessons, strict=True):
        editions = [_spell(tokenizer, edition) for edition in texts]

        def told(done: float, name: str = name) -> None:
            progress(name, done)

        read(
            model,
            editions,
            rate=rate,
            batch=student.batch,
            smoothing=student.smoothing,
            decay=recipe.decay,
            rng=rng,
            told=told,
        )
        _save(model, tokenizer, folder / name)


def main(arguments: Sequence[str]) -> None:
    which, folder, recipe = arguments
    shown = -1

    def progress(stage: str, done: float) -> None:
        nonlocal shown
        percent = int(100 * done)
        if percent != shown:
            shown = percent
            print(json.dumps({"stage": stage, "done": done}), flush=True)

    train(which, Path(folder), Recipe.from_json(recipe), progress)


if __name__ == "__main__":
    main(sys.argv[1:])
