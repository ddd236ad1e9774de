"""An adapter and its base take the memory of one model: peaks of processes that load and run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from toys import train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PEAKS = Path(__file__).parents[1] / "peaks.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read as Linux tells them"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # peft's own, while it makes the adapter
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def base(folder: Path, kind: str, ids: int | None, dtype: torch.dtype) -> str:
    """A Llama of 130 to 170 MB in float32; with `ids`, as many outputs, the way models of large vocabularies are."""
    tokenizer = train_tokenizer(kind, 500 if kind == "bytes" else 400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ids or len(tokenizer),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=10 if ids is None else 4,
        num_attention_heads=8,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def adapter(folder: Path, of: str, words: list[str]) -> str:
    model = AutoModelForCausalLM.from_pretrained(of)
    own = AutoTokenizer.from_pretrained(of)
    if words:
        own.add_tokens(words)
        model.resize_token_embeddings(model.config.vocab_size + len(words), mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(str(folder))
    own.save_pretrained(folder)
    return str(folder)


def memory(what: str, *folders: str) -> tuple[float, float]:
    """At its peak and at the end, in MB."""
    calm = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(PEAKS), what, *folders]
    done = subprocess.run(command, env=os.environ | calm, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    highest, last = (int(part) / 1e6 for part in done.stdout.split())
    return highest, last


@pytest.mark.parametrize(
    ("kind", "ids", "dtype", "words"),
    [
        ("bytes", None, torch.float32, []),
        ("digits", None, torch.float32, []),
        ("bytes", 16_000, torch.bfloat16, ["<think>", "</think>"]),
    ],
    ids=["in the vocabulary that is decoded", "in another one", "with more words"],
)
def test_the_peak_is_that_of_one_model(
    kind: str, ids: int | None, dtype: torch.dtype, words: list[str], tmp_path: Path
) -> None:
    antiexpert = base(tmp_path / "base", kind, ids, dtype)
    expert = adapter(tmp_path / "adapter", antiexpert, words)
    found = {what: memory(what, antiexpert, expert) for what in ("one", "pair", "two")}
    told = ", ".join(f"{what} {highest:.0f} and {last:.0f} MB" for what, (highest, last) in found.items())
    print(f"\n{kind}, {len(words)} words more, at its peak and at the end: {told}")
    for one, pair, two in zip(*found.values(), strict=True):
        assert one > 100
        assert pair < 1.15 * one
        assert two > 1.4 * one, "what is measured would show a second copy"
