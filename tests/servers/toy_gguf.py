"""A Hugging Face Llama folder with byte-level BPE as a GGUF file (version 3), in float32.

Only what the toy models of these tests need, written from the format's specification (ggml, docs/gguf.md): a header,
typed key-value pairs, the tensors' descriptions, their data at multiples of 32 bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NORMAL, _CONTROL = 1, 3  # kinds of tokens
_F32 = 0  # both the kind of every tensor and that of the file

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(folder: Path, path: Path) -> None:
    """The model in `folder` as the file `path`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values = [*_architecture(config), *_tokenizer(folder, config)]
    tensors = {
        _name(name): _tensor(name, data, config) for name, data in load_file(folder / "model.safetensors").items()
    }
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)))
        for key, kind, value in values:
            file.write(_text(key) + struct.pack("<I", kind) + _packed(kind, value))
        offset = 0
        for name, data in tensors.items():
            shape = data.shape[::-1]  # GGUF names the fastest dimension first
            file.write(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, offset))
            offset += data.nbytes + -data.nbytes % _ALIGNMENT
        _align(file)
        for data in tensors.values():
            file.write(data.tobytes())
            _align(file)


def _architecture(config: dict[str, Any]) -> Iterator[tuple[str, int, Any]]:
    heads = config["num_attention_heads"]
    theta = (config.get("rope_parameters") or config).get("rope_theta", 10000.0)
    yield "general.architecture", _STRING, "llama"
    yield "general.name", _STRING, "toy"
    yield "general.file_type", _UINT32, _F32
    yield "llama.vocab_size", _UINT32, config["vocab_size"]
    yield "llama.context_length", _UINT32, config["max_position_embeddings"]
    yield "llama.embedding_length", _UINT32, config["hidden_size"]
    yield "llama.block_count", _UINT32, config["num_hidden_layers"]
    yield "llama.feed_forward_length", _UINT32, config["intermediate_size"]
    yield "llama.attention.head_count", _UINT32, heads
    yield "llama.attention.head_count_kv", _UINT32, config["num_key_value_heads"]
    yield "llama.attention.layer_norm_rms_epsilon", _FLOAT32, config["rms_norm_eps"]
    yield "llama.rope.dimension_count", _UINT32, config["hidden_size"] // heads
    yield "llama.rope.freq_base", _FLOAT32, theta


def _tokenizer(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, int, Any]]:
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"]: token["content"] for token in described["added_tokens"]}
    spelled = {index: token for token, index in described["model"]["vocab"].items()} | special
    ids = range(config["vocab_size"])
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"])
    ends = config["eos_token_id"]
    yield "tokenizer.ggml.model", _STRING, "gpt2"
    yield "tokenizer.ggml.pre", _STRING, "gpt-2"
    yield "tokenizer.ggml.tokens", _ARRAY, (_STRING, [spelled[index] for index in ids])
    yield "tokenizer.ggml.token_type", _ARRAY, (_INT32, [_CONTROL if index in special else _NORMAL for index in ids])
    yield "tokenizer.ggml.merges", _ARRAY, (_STRING, list(merges))
    yield "tokenizer.ggml.bos_token_id", _UINT32, config["bos_token_id"]
    yield "tokenizer.ggml.eos_token_id", _UINT32, ends[0] if isinstance(ends, list) else ends
    yield "tokenizer.ggml.add_bos_token", _BOOL, True
    yield "tokenizer.ggml.add_space_prefix", _BOOL, False
    yield "tokenizer.chat_template", _STRING, (folder / "chat_template.jinja").read_text(encoding="utf-8")


def _packed(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    if kind == _ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(_packed(inner, item) for item in items)
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}[kind], value)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _align(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_INNER[part]}.weight"


def _tensor(name: str, data: NDArray[Any], config: dict[str, Any]) -> NDArray[np.float32]:
    """Float32; queries and keys with the halves of each head interleaved, as GGUF's rotary embedding expects them."""
    data = data.astype(np.float32)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for part, count in heads.items():
        if part in name:
            halves = data.reshape(count, 2, len(data) // count // 2, -1)
            data = halves.swapaxes(1, 2).reshape(data.shape)
    return np.ascontiguousarray(data)
