"""The same tiny models for every server: a folder as Hugging Face has it, and a GGUF file of the same weights.

A Llama of two layers in float32 with a head size that vLLM's CPU attention knows, byte-level BPE, BOS put before every
text, a chat template with a special end of turn, so two end tokens, and a vocabulary in which many characters take
several tokens. The pairs are moved from their anti-experts as tuning would move them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from servers.toy_gguf import write_gguf
from tokenizers import AddedToken, Tokenizer, processors
from toys import train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DRIFT = 0.01  # how far experts are from their anti-experts
CONTEXT = 512  # tokens
TURN, TURN_END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_models(root: Path) -> dict[str, str]:
    """Folders of `base` (with base.gguf beside it) and of two pairs: its vocabulary ("same"), another ("digits")."""
    same, digits = make_tokenizer("bytes", 600), make_tokenizer("digits", 450, 1)
    folders = {
        "base": _save(root / "base", same, 1),
        "same-expert": _save(root / "same-expert", same, 2, DRIFT),
        "same-antiexpert": _save(root / "same-antiexpert", same, 2),
        "digits-expert": _save(root / "digits-expert", digits, 4, DRIFT),
        "digits-antiexpert": _save(root / "digits-antiexpert", digits, 4),
    }
    write_gguf(root / "base", root / "base.gguf")
    return folders | {"gguf": str(root / "base.gguf")}


def make_tokenizer(kind: str, size: int, seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in toys.py, with BOS, turns and a chat template."""
    plain = train_tokenizer(kind, size, seed)
    tokenizer: Tokenizer = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (TURN, TURN_END)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def _save(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int, drift: float = 0.0) -> str:
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _model(tokenizer, seed, drift).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def _model(tokenizer: PreTrainedTokenizerFast, seed: int, drift: float) -> Any:
    """Random weights, large enough that distributions differ from place to place; the drift is alike for all seeds.

    Parts of characters are less likely than the rest, so that texts are texts; ends are more likely, so that they end.
    """
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)]
    size = len(tokenizer)
    parts = [index for index in range(size) if "\ufffd" in tokenizer.decode([index])]
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=ends,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
        torch.manual_seed(1000)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(drift * torch.randn_like(parameter))
        model.lm_head.weight[parts] *= 0.6
        model.lm_head.weight[ends] *= 1.6
    return model.eval()


def described(folder: str | Path) -> dict[str, Any]:
    """config.json of a model's folder."""
    found: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return found
