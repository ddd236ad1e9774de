"""The memory that loading and running models takes, in a process of its own: python tests/peaks.py one|pair|two …

Everything is imported first; what is printed is the resident memory above that, in bytes: at its peak, and at the end.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import peft.tuners.lora
import safetensors.torch  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
from toys import train_tokenizer

from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.types import Position

assert peft.tuners.lora
PROMPT = "The mayor of New York said on 12 March 2023 that 1,024 people came. "


def resident(which: str) -> int:
    """VmRSS (now) or VmHWM (the most since it was reset), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def main(what: str, antiexpert: str, expert: str) -> None:
    decoded = from_tokenizer(train_tokenizer("bytes", 500))
    tokens = [decoded.token(text) for text in (b" New", b" the", b"2", b".")]
    torch.nn.Linear(8, 8)(torch.zeros(1, 8))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    if what == "one":
        lm = load_causal_lm(antiexpert, device="cpu")
        lm.plain(range(5, 35))
    else:
        pair = TransformersPair(expert if what == "pair" else antiexpert, antiexpert, device="cpu")
        row = pair.open(PROMPT, decoded).score(
            tokens[:1], [Position(tokens[0], -1.0, tokens, np.linspace(-1.0, -3.0, len(tokens)))]
        )
        assert np.isfinite(row[0].score(tokens).log_expert).all()
    print(resident("VmHWM") - before, resident("VmRSS") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
