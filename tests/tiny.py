"""A local model that knows a few texts by heart, and what is asked of it in the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from blackbox_proxy.types import Position

TEXTS = (
    "The cat sat on the mat.",
    "The dog ate “naïve” soup — 日本語 €5!",
    "A fox ran to the sea 👍🏽 and back.",
    "User: hi\nAssistant: hello there, friend.",
    "User: where?\nAssistant: on the mat. STOP now",
)
END_TEXT = "<|endoftext|>"


def build_tiny(folder: Path) -> Path:
    """A Llama of two layers that knows TEXTS by heart and ends them; its tokens split multi-byte characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, *TEXTS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_TEXT)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    texts = [[*fast(text)["input_ids"], 0] for text in TEXTS]
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    labels = torch.tensor([text + [-100] * (width - len(text)) for text in texts])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def plain(reference: Any, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log probabilities (len(ids), V) computed without any of the code under test."""
    with torch.inference_mode():
        rows = reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return rows.double().log_softmax(-1).numpy()  # type: ignore[no-any-return]


def ids_of(positions: tuple[Position, ...] | list[Position]) -> list[int]:
    return [position.token.id if position.token.id is not None else -1 for position in positions]


def text_of(positions: tuple[Position, ...]) -> str:
    return b"".join(position.token.bytes or b"" for position in positions).decode()
