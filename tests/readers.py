"""Tiny models that have read some code, with vocabularies that cut blanks in two ways."""

from __future__ import annotations

import textwrap
from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from toys import tiny_model
from transformers import PreTrainedTokenizerFast

from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.text.vocabulary import Vocabulary

CODE = Path(textwrap.__file__).read_text(encoding="utf-8")  # none of this package's: what was read would move with it
TOGETHER = r" +|\n|\w+|[^\s\w]"


@cache
def code_vocabulary(pattern: str | None) -> Vocabulary:
    """Byte-level BPE trained on some code: GPT-2's pattern, or one that keeps blanks together."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CODE], trainer)
    return from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>"))


@cache
def reader(pattern: str | None, seed: int) -> CausalLM:
    """A model that has read some of it, spelled so."""
    vocabulary = code_vocabulary(pattern)
    ids = torch.tensor(vocabulary.encode([CODE.encode()])[0])
    torch.manual_seed(seed)
    model = tiny_model("llama", len(vocabulary), seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(60):
        starts = torch.randint(0, len(ids) - 48, (8,))
        batch = torch.stack([ids[start : start + 48] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return CausalLM(model, vocabulary, str(seed))
