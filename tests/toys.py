"""Tiny real parts for tests: vocabularies and models small enough to enumerate, seeded, made on the spot."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from blackbox_proxy.decoding.pace import Drafting, Pace, Plan
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.protocols import Abilities
from blackbox_proxy.text.vocabulary import Vocabulary

ARCHITECTURES = ("llama", "qwen2", "gpt2", "gemma2", "mistral", "mamba")

CORPUS = """The mayor of New York said on 12 March 2023 that 1,024 people came. "Don't they?" she asked.
In Zürich the café opened; the naïve visitor paid 3.50 €. 東京は日本の首都です。 Ещё один день. שלום עולם 👍🏽 👩‍💻
def area(r):
    return 3.14159 * r ** 2

New York, New Haven and Newark are not the same. There they were: the theory, then the thesis, 20 of 2000.
Whether it rains or not,  two  spaces stay two spaces.\tTabs stay tabs.
"""


def words(seed: int = 0, count: int = 400) -> str:
    """Regular nonsense for tokenizers to learn from."""
    rng = random.Random(seed)
    syllables = ["ba", "ko", "li", "mu", "ne", "ro", "sa", "ti", "the", "ing", "er", "New", "York", "20", "23"]
    return " ".join("".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(count))


def train_tokenizer(kind: str, size: int, seed: int = 0) -> PreTrainedTokenizerFast:
    """kind: "bytes" (byte-level BPE), "digits" (the same, digits one by one) or "pieces" (metaspace with byte
    fallback).
    """
    text = [CORPUS, words(seed)]
    specials = ["<s>", "</s>", "<unk>"]
    if kind == "pieces":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = sorted({character for character in words(seed) if character != " "} | {"▁", ".", ","})
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=specials + fallback,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        # trained on single words, so that no piece spans a space, as sentencepiece would have it
        tokenizer.train_from_iterator([f" {word}" for part in text for word in part.split()], trainer)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        description = tokenizer.to_str()
        tokenizer = Tokenizer.from_str(_only_added(description, specials))
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            clean_up_tokenization_spaces=False,
        )
    tokenizer = Tokenizer(models.BPE())
    splitters: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if kind == "digits" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splitters, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def _only_added(description: str, specials: Sequence[str]) -> str:
    """The byte pieces are ordinary words of the vocabulary, not special tokens."""
    import json

    data = json.loads(description)
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in specials]
    return json.dumps(data)


def tiny_model(
    architecture: str, size: int, seed: int, *, window: int = 8, context: int = 512, drift: float = 0.0
) -> Any:
    """Random weights, large enough that distributions differ from place to place and from seed to seed.

    `drift`: how far they are then moved, in a direction that does not depend on the seed, as tuning would.
    """
    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1}
    model: Any
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common))
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common))
    elif architecture == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=context, **ends)
        )
    elif architecture == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**common, head_dim=8, sliding_window=window))
    elif architecture == "mistral":
        model = MistralForCausalLM(MistralConfig(**common, sliding_window=window))
    elif architecture == "mamba":
        model = MambaForCausalLM(
            MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=4, **ends)
        )
    else:
        raise ValueError(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
        torch.manual_seed(1000)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(drift * torch.randn_like(parameter))
    return model.eval()


def save(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    architecture: str = "llama",
    extra: int = 0,
    drift: float = 0.0,
) -> str:
    """A model's folder as save_pretrained leaves it; `extra` output ids are padding."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model(architecture, len(tokenizer) + extra, seed, drift=drift).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def toy_vocabulary(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> Vocabulary:
    """Ids 0 = end, then the tokens; BPE with the given merges over single characters, no pre-tokenizer."""
    pieces = {"</s>": 0} | {token: i + 1 for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=list(merges)))

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer.encode(text, add_special_tokens=False).ids if text else [] for text in texts]

    return Vocabulary(
        [b"", *(token.encode() for token in tokens)],
        special={0: "</s>"},
        end_ids=[0],
        encode=encode,
        pretokens=lambda text: [0] if text else [],
        render=lambda prompt, _: encode([str(prompt)])[0],
    )


def toy_lm(vocabulary: Vocabulary, seed: int) -> CausalLM:
    return CausalLM(tiny_model("llama", len(vocabulary), seed), vocabulary, f"toy-{seed}")


class Always(Pace):
    """Asks in the same way again and again, as far as that fits: `given` tokens of the local pair, n of the base."""

    def __init__(self, given: int, n: int, stream: bool) -> None:
        super().__init__(Drafting())
        self._always = Plan(given, n, stream)

    def plan(self, abilities: Abilities, left: int, prompt_tokens: float) -> Plan:
        local = min(self._always.local, left - 1) if abilities.scores else 0
        return Plan(local, max(1, min(self._always.n, left - local)), self._always.stream)
