"""`tune`: an expert from a small model and texts, alone or through the black box.

rows -> examples;   through: -> the base's candidates, once, from the cache -> spots
                                                                       -> Trainer -> adapter, card
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blackbox_proxy import tuner as tuners
from blackbox_proxy.aligning.alignment import Alignment
from blackbox_proxy.aligning.crossing import Crossing
from blackbox_proxy.answers import scoring
from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.run import cached
from blackbox_proxy.evaluation.tasks import Source, Task, read_tasks
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.protocols import Base
from blackbox_proxy.text.prompts import guessed_tokens
from blackbox_proxy.tuning.examples import Example, example_of
from blackbox_proxy.tuning.spots import Spots, spots_of
from blackbox_proxy.tuning.train import CHECKPOINT, Recipe, Stepped, Trainer
from blackbox_proxy.types import Usage
from blackbox_proxy.version import __version__

_AT_ONCE = 8
_EVERY = 20  # steps between checkpoints


@dataclass(frozen=True, slots=True)
class Asked:
    """What looking through the base takes at most: a request a text, with so many tokens."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it. loss: mean of the last tenth of the steps, nats. examples, tokens: that it learned from; spots:
    places of the base that were looked through; left_out: places of the texts where no row of the small model is.
    resumed: steps that an earlier run had made. usage: what was asked here.
    """

    folder: Path
    loss: float
    examples: int
    tokens: int
    spots: int
    left_out: int
    resumed: int
    usage: Usage


async def atune(
    model: str | Path | CausalLM,
    source: Source,
    out: Path | str,
    *,
    recipe: Recipe | None = None,
    base: Base | None = None,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    limit: int | None = None,
    skip_bad: bool = False,
    ready: Callable[[Asked], bool] | None = None,
    observe: Callable[[Stepped], None] | None = None,
) -> Tuned | None:
    """Train a LoRA adapter of `model` on rows (as for `evaluate`: texts, or prompts with answers) and keep it in `out`,
    which `TransformersPair(out, model)` takes as expert. A training that was stopped goes on from its checkpoint.

    base: with `recipe.through`, the black box whose combination with the expert is to be right; it must score given
    text. ready: is told what that takes before anything is sent; says whether to go on, else None comes back. Raises
    InputError before anything is spent, BaseError, ModelUnavailable.
    """
    recipe, folder = recipe or Recipe(), Path(out)
    if recipe.through and base is None:
        raise InputError("there is no base to be trained through", hint="Name the base, or train the expert by itself.")
    _peft()
    _prepare(folder, overwrite)
    if isinstance(model, CausalLM):
        lm = model
    else:
        lm = await asyncio.to_thread(load_causal_lm, model, device=device, dtype=dtype, trained=True)
    examples: dict[int, Example] = {}

    def check(task: Task) -> None:
        examples[task.index] = example_of(task, lm.vocabulary, lm.context)
        if recipe.through:
            assert base is not None
            if base.vocabulary is None:
                raise InputError("the base's tokenizer is not known", hint="Give it: --tokenizer.")
            scoring.check(base, (), *_parts(examples[task.index], base))

    rows = await asyncio.to_thread(read_tasks, source, skip_bad=skip_bad, check=check, limit=limit)
    found = [examples[row.index] for row in rows.rows]
    spots: list[Spots] | None = None
    usage, places = Usage(), 0
    if recipe.through:
        assert base is not None
        if ready is not None and not ready(_asked(base, found)):
            return None
        spots, usage, places = await _looked(base, lm, found)
    elif ready is not None and not ready(Asked(Usage())):
        return None

    def work() -> Tuned:
        trainer = Trainer(lm, found, recipe, spots)
        resumed = trainer.go_on(folder)
        loss = trainer.run(folder, _EVERY, observe or (lambda _: None))
        seen = sum(map(len, spots or ()))
        tokens = sum(len(example.ids) - example.given for example in found)
        tuned = Tuned(folder, loss, len(found), tokens, seen, places - seen, resumed, usage)
        trainer.model.save_pretrained(folder)
        (folder / "README.md").write_text(_card(lm.name, base, recipe, tuned), encoding="utf-8")
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return tuned

    return await asyncio.to_thread(work)


def tune(model: str | Path | CausalLM, source: Source, out: Path | str, **options: Any) -> Tuned | None:
    """`atune` for callers without a loop."""
    return tuners.run(atune(model, source, out, **options))


def _peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError("training needs peft", hint="pip install 'blackbox-proxy[train]'") from error


def _prepare(folder: Path, overwrite: bool) -> None:
    """A folder to write to: new, or with the checkpoint of a training that was stopped."""
    if overwrite and folder.is_dir() and ((folder / CHECKPOINT).exists() or (folder / "adapter_config.json").exists()):
        shutil.rmtree(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CHECKPOINT).exists())):
        raise InputError(f"{folder} is there already", hint="Name another folder, or --overwrite an adapter.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error}", hint="Name another folder.") from error


# -- through the box --------------------------------------------------------------------------------------------------


def _parts(example: Example, base: Base) -> tuple[Any, str]:
    """What the base is asked about: a text without a prompt has its own first token as one."""
    return (example.prompt, example.text) if example.prompt else scoring.split_opening(example.text, base.vocabulary)


def _asked(base: Base, examples: Sequence[Example]) -> Asked:
    tokens = sum(round(guessed_tokens(part)) for example in examples for part in _parts(example, base) if part)
    return Asked(Usage(len(examples), tokens, len(examples)))


async def _looked(base: Base, lm: CausalLM, examples: Sequence[Example]) -> tuple[list[Spots], Usage, int]:
    """The spots of each example, what asking cost, and how many places the base has there."""
    assert base.vocabulary is not None
    crossing = Crossing(Alignment(lm.vocabulary, base.vocabulary))
    limit, usages, counts = asyncio.Semaphore(_AT_ONCE), list[Usage](), list[int]()
    async with cached(base) as asked:

        async def one(example: Example) -> Spots:
            async with limit:
                prompt, text = _parts(example, asked)
                positions, usage = await scoring.ask_whole(asked, prompt, text)
            usages.append(usage)
            counts.append(len(positions))
            start = len(example.text.encode()) - len(text.encode())
            return spots_of(example, positions, crossing, start)

        found = await asyncio.gather(*map(one, examples))
    return list(found), sum(usages, Usage()), sum(counts)


# -- the card ---------------------------------------------------------------------------------------------------------


def _card(name: str, base: Base | None, recipe: Recipe, tuned: Tuned) -> str:
    """What the folder is, for people."""
    way = (
        f"through {base.name}, so that log q + {recipe.alpha:g} (log E - log A) is right at {tuned.spots} places "
        f"({tuned.left_out} lay inside a token of this model), and on its own next tokens elsewhere"
        if recipe.through and base is not None
        else f"on its own next tokens, {tuned.tokens} of them"
    )
    settings = json.dumps(asdict(recipe))
    return (
        f"---\nbase_model: {name}\nlibrary_name: peft\ntags: [lora, proxy-tuning, blackbox-proxy]\n---\n\n"
        f"# Expert for proxy-tuning\n\nA LoRA adapter of `{name}`, trained by blackbox_proxy {__version__} on "
        f"{tuned.examples} texts, {way}. Loss over the last tenth of the steps: {tuned.loss:.3f} nats.\n\n"
        f"Use it as the expert, and `{name}` itself as the anti-expert.\n\n```json\n{settings}\n```\n"
    )
