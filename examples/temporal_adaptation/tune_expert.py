"""Goes on training a small model on text: the expert. The model before it is the anti-expert.

    python tune_expert.py prepared/train.jsonl --model meta-llama/Llama-2-7b-hf -o expert --lora 16
    python tune_expert.py prepared/train.jsonl --model meta-llama/Llama-2-7b-hf -o expert --lora 16 --resume

Rows are {"text": …}. Texts are joined with the end token between them and cut into blocks; one text in `KEPT_OUT` is
not trained on but measured, before and after. transformers' Trainer does the work, on a GPU in bfloat16, on the CPU in
float32, and keeps checkpoints: a run that was stopped and resumed ends with the same weights as one that was not.

The folder then holds an ordinary model (safetensors, LoRA merged), its tokenizer, a card (README.md) and
training.json, from which evaluate.py knows the anti-expert. `pip install 'blackbox-proxy[train]'`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator
from transformers.trainer_utils import get_last_checkpoint

from blackbox_proxy.text.reading import json_of, numbered_lines

KEPT_OUT = 25
"""One text in so many is only measured."""


def texts_of(path: Path) -> list[dict[str, Any]]:
    """The rows that have text. SystemExit where there are none."""
    rows = [json_of(line) for _, line in numbered_lines(path)]
    found = [row for row in rows if isinstance(row.get("text"), str) and row["text"].strip()]
    if not found:
        raise SystemExit(f'{path} has no rows with "text"')
    return found


def blocks_of(texts: Sequence[str], tokenizer: Any, size: int) -> list[dict[str, list[int]]]:
    """The texts in a row, an end token after each, cut into blocks of `size` tokens; the rest at the end is dropped
    unless it is all there is.
    """
    ids: list[int] = []
    for found in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids += [*start, *found, *end]
    pieces = [ids[i : i + size] for i in range(0, len(ids), size)]
    if len(pieces) > 1 and len(pieces[-1]) < size:
        pieces.pop()
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def load(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(name)
    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True), tokenizer


def with_lora(model: Any, rank: int) -> Any:
    """The same model with low-rank adapters on all its linear layers; only they are trained (arXiv 2106.09685)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """All that decides the weights; a run can only be resumed with the same."""
    decides = ("model", "epochs", "max_steps", "learning_rate", "batch_size", "accumulate", "block", "lora", "seed")
    data = hashlib.sha256(given.texts.read_bytes()).hexdigest()[:16]
    return {name: getattr(given, name) for name in decides} | {"dtype": dtype_of(given)[0], "data_sha256": data}


def dtype_of(given: argparse.Namespace) -> tuple[str, torch.dtype]:
    """What is computed in, and what the weights are while they are trained: whole ones move by steps too small for
    bfloat16, but under LoRA they stand still.
    """
    computed = given.dtype if given.dtype != "auto" else "bfloat16" if on_gpu() else "float32"
    return computed, torch.bfloat16 if computed == "bfloat16" and given.lora else torch.float32


def on_gpu() -> bool:
    return torch.cuda.is_available()


def checkpoint_of(folder: Path, settings: dict[str, Any], resume: bool) -> str | None:
    """The checkpoint to go on from. SystemExit where a run would be mixed with another."""
    settled = folder / "settings.json"
    before = json.loads(settled.read_text()) if settled.is_file() else None
    if before is not None and not resume:
        raise SystemExit(f"{folder} holds an unfinished run: --resume goes on with it, or remove it.")
    if before is not None and before != settings:
        changed = sorted(name for name in settings if settings[name] != before.get(name))
        raise SystemExit(f"{folder} was trained with other settings ({', '.join(changed)}): it cannot be resumed.")
    folder.mkdir(parents=True, exist_ok=True)
    settled.write_text(json.dumps(settings, indent=2))
    checkpoint: str | None = get_last_checkpoint(str(folder))
    return checkpoint


def measured(trainer: Trainer, validation: Any, per_byte: float) -> dict[str, float]:
    """Loss on what is kept out, in nats per token, and in bits per byte of text (`per_byte`: tokens of one)."""
    loss = float(trainer.evaluate(validation)["eval_loss"])
    return {"nats_per_token": round(loss, 4), "bits_per_byte": round(loss * per_byte / math.log(2), 4)}


def tune(given: argparse.Namespace) -> dict[str, Any]:
    """Train and save; what stands in training.json."""
    rows = texts_of(given.texts)
    settings = settings_of(given)
    work = given.output / "checkpoints"
    computed, weights = dtype_of(given)
    checkpoint = checkpoint_of(work, settings, given.resume)
    torch.manual_seed(given.seed)
    model, tokenizer = load(given.model, weights)
    revision = getattr(model.config, "_commit_hash", None)
    model.config.use_cache = False
    kept_out = [row["text"] for row in rows[KEPT_OUT - 1 :: KEPT_OUT]] or [rows[-1]["text"]]
    read = [row for i, row in enumerate(rows) if i % KEPT_OUT != KEPT_OUT - 1]
    blocks = blocks_of([row["text"] for row in read], tokenizer, given.block)
    validation = blocks_of(kept_out, tokenizer, given.block)
    (whole,) = blocks_of(kept_out, tokenizer, sys.maxsize)
    per_byte = len(whole["input_ids"]) / sum(len(text.encode()) for text in kept_out)
    if given.lora:
        model = with_lora(model, given.lora)
    if given.gradient_checkpointing:
        model.enable_input_require_grads()
        # its name in later versions of transformers, which warn of the earlier one
        later = getattr(model, "activation_checkpointing_enable", None)
        (later or model.gradient_checkpointing_enable)()
    steps = math.ceil(len(blocks) / given.batch_size / given.accumulate) * given.epochs
    steps = given.max_steps if given.max_steps > 0 else math.ceil(steps)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(work),
            num_train_epochs=given.epochs,
            max_steps=given.max_steps,
            per_device_train_batch_size=given.batch_size,
            per_device_eval_batch_size=given.batch_size,
            gradient_accumulation_steps=given.accumulate,
            learning_rate=given.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(100, steps // 20),
            weight_decay=0.01,
            max_grad_norm=1.0,
            seed=given.seed,
            data_seed=given.seed,
            bf16=computed == "bfloat16" and on_gpu(),
            use_cpu=not on_gpu(),
            dataloader_pin_memory=on_gpu(),
            save_strategy="steps",
            save_steps=given.save_every or max(1, math.ceil(steps / 10)),
            save_total_limit=2,
            logging_strategy="no" if given.quiet else "steps",
            logging_steps=max(1, steps // 20),
            disable_tqdm=given.quiet,
            report_to="none",
        ),
        train_dataset=blocks,
        eval_dataset=validation,
        data_collator=default_data_collator,
    )
    before = measured(trainer, validation, per_byte)  # a resumed run, too, begins with the untuned model
    if given.stop_at:
        trainer.add_callback(_StopAt(given.stop_at))
    done = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < trainer.state.max_steps:
        raise SystemExit(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}: --resume goes on")
    after = measured(trainer, validation, per_byte)
    tuned = trainer.model.merge_and_unload() if given.lora else trainer.model
    tuned.config.use_cache = True
    tuned.to(torch.bfloat16 if computed == "bfloat16" else torch.float32).save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)
    dates = sorted(str(row["published"]) for row in read if row.get("published"))
    facts: dict[str, Any] = {
        "antiexpert": given.model,
        "antiexpert_revision": revision,
        "settings": settings,
        "steps": done.global_step,
        "tokens_per_epoch": sum(len(block["input_ids"]) for block in blocks),
        "texts": len(read),
        "texts_kept_out": len(kept_out),
        "published": [dates[0], dates[-1]] if dates else None,
        "loss_before": before,
        "loss_after": after,
        "seconds": round(done.metrics["train_runtime"], 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (given.output / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (given.output / "README.md").write_text(card(facts), encoding="utf-8")
    if given.antiexpert is not None:
        _untuned(given, tuned.dtype)
    if not given.keep_checkpoints:
        shutil.rmtree(work)
    return facts


class _StopAt(transformers.TrainerCallback):  # type: ignore[misc]
    """Saves and ends the run early, as an interruption would."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step >= self._step:
            control.should_save = control.should_training_stop = True
        return control


def _untuned(given: argparse.Namespace, dtype: torch.dtype) -> None:
    """The same model as it was, in the same type as the expert, so that nothing but the tuning is between them."""
    model, tokenizer = load(given.model, dtype)
    model.save_pretrained(given.antiexpert)
    tokenizer.save_pretrained(given.antiexpert)


def card(facts: dict[str, Any]) -> str:
    """The model's README: what it was trained on, and how, and what came of it."""
    settings, before, after = facts["settings"], facts["loss_before"], facts["loss_after"]
    published = " to ".join(facts["published"]) if facts["published"] else "unknown"
    how = f"LoRA of rank {settings['lora']} on all linear layers, merged" if settings["lora"] else "all weights"
    lines = [
        "---",
        f"base_model: {facts['antiexpert']}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "# Expert for proxy-tuning",
        "",
        f"`{facts['antiexpert']}`, its training continued on {facts['texts']} texts "
        f"({facts['tokens_per_epoch']:,} tokens), published {published}. Its anti-expert is that model untuned.",
        "",
        "| | before | after |",
        "|---|---|---|",
        f"| nats per token, {facts['texts_kept_out']} texts kept out | {before['nats_per_token']:.4f} "
        f"| {after['nats_per_token']:.4f} |",
        f"| bits per byte, the same | {before['bits_per_byte']:.4f} | {after['bits_per_byte']:.4f} |",
        "",
        f"{how}; {facts['steps']} steps of {settings['batch_size']} × {settings['accumulate']} blocks of "
        f"{settings['block']} tokens; learning rate {settings['learning_rate']:g}, cosine; seed {settings['seed']}; "
        f"{settings['dtype']}; {facts['seconds']:.0f} s.",
        f"Data: sha256 {settings['data_sha256']}…; torch {facts['versions']['torch']}, "
        f"transformers {facts['versions']['transformers']}.",
        "",
    ]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help='JSONL with "text"')
    parser.add_argument("--model", required=True, help="folder or hub id of the small model: the anti-expert")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the expert")
    parser.add_argument("--antiexpert", type=Path, help="save a copy of the untuned model there, in the same type")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--max-steps", type=int, default=-1, help="steps instead of epochs")
    parser.add_argument("--learning-rate", type=float, help="2e-5; with --lora 2e-4")
    parser.add_argument("--batch-size", type=int, default=8, help="blocks at a time")
    parser.add_argument("--accumulate", type=int, default=1, help="batches of a step")
    parser.add_argument("--block", type=int, default=1024, help="tokens of a block")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train low-rank adapters only, and merge")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--save-every", type=int, default=0, metavar="STEPS", help="a tenth of the run by default")
    parser.add_argument("--keep-checkpoints", action="store_true", help="do not remove them at the end")
    parser.add_argument("--stop-at", type=int, default=0, metavar="STEP", help="stop there, to go on with --resume")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    given = parser.parse_args(arguments)
    if given.learning_rate is None:
        given.learning_rate = 2e-4 if given.lora else 2e-5
    for name in ("batch_size", "accumulate", "block"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not given.texts.is_file():
        parser.error(f"there is no file {given.texts}")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    transformers.utils.logging.set_verbosity_error()
    if given.quiet:
        transformers.utils.logging.disable_progress_bar()
    facts = tune(given)
    print((given.output / "README.md").read_text().split("---\n", 2)[2].strip())
    print(f"\nexpert: {given.output}   antiexpert: {given.antiexpert or facts['antiexpert']}")


if __name__ == "__main__":
    main()
