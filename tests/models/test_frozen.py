"""Weights that are laid out for reading: the same model, to rounding, for drafts of every length; and trained again
where that is asked for.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import train_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from blackbox_proxy.models import frozen
from blackbox_proxy.models.frozen import Frozen, freeze, thawed
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.tuning.examples import Example
from blackbox_proxy.tuning.train import Recipe, Trainer

pytestmark = pytest.mark.skipif(not frozen._possible(), reason="no oneDNN for this processor, or not in this PyTorch")

ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1}


def model(kind: str, words: int = 600) -> Any:
    """Wide enough that every layer is one that is laid out."""
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=512, n_layer=2, n_head=8, **ENDS)).eval()
    common = LlamaConfig(
        vocab_size=words,
        hidden_size=512,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=8,
        attention_bias=True,
        tie_word_embeddings=kind == "tied",
        **ENDS,
    )
    return LlamaForCausalLM(common).eval()


def layers(of: Any) -> int:
    return sum(isinstance(module, Frozen) for module in of.modules())


@pytest.mark.parametrize(("kind", "count"), [("llama", 15), ("tied", 15), ("gpt2", 9)])
@torch.inference_mode()
def test_a_frozen_model_says_what_it_said(kind: str, count: int) -> None:
    made, ids = model(kind), torch.arange(2, 42)[None]
    before = made(input_ids=ids).logits
    freeze(made)
    assert layers(made) == count
    after = made(input_ids=ids).logits
    assert 0.0 < (after - before).abs().max() < 1e-4
    for length in (1, 2, 5, 33):
        torch.testing.assert_close(made(input_ids=ids[:, :length]).logits, after[:, :length], atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
def test_thawed_it_is_what_was_loaded_and_can_be_trained(kind: str) -> None:
    plain, made, ids = model(kind), model(kind), torch.arange(2, 22)[None]
    assert thawed(made) is made
    freeze(made)
    again = thawed(made)
    assert layers(made) > 0
    assert layers(again) == 0
    with torch.inference_mode():
        assert torch.equal(again(input_ids=ids).logits, plain(input_ids=ids).logits)
    for parameter in again.parameters():
        parameter.requires_grad_(True)
    again(input_ids=ids).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())
    assert again.get_input_embeddings().weight is made.get_input_embeddings().weight  # not a second copy


def test_a_layer_gives_its_weights_to_who_asks() -> None:
    layer = torch.nn.Linear(512, 600)
    found = Frozen(layer)
    assert torch.equal(found.weight, layer.weight)
    assert found.weight is found.weight


def test_small_layers_and_what_must_stay_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("llama")
    freeze(made, leave=[made.lm_head])
    assert layers(made) == 14
    assert type(made.lm_head) is torch.nn.Linear
    made = model("llama")
    monkeypatch.setattr(frozen, "_LEAST", 600 * 512)
    freeze(made)
    assert layers(made) == 7  # the head, and three of each layer
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    made = model("llama")
    freeze(made)
    assert layers(made) == 0


def test_a_loaded_model_is_frozen_and_trained_as_it_was_saved(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("bytes", 600)
    model("llama", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm, plain = load_causal_lm(tmp_path), load_causal_lm(tmp_path, trained=True)
    assert lm.trees
    assert layers(lm.model) == 15
    assert layers(plain.model) == 0
    losses = []
    for one in (lm, plain):
        example = Example("a", "b", tuple(range(2, 30)), 4, tuple(range(1, 25)))
        losses.append(Trainer(one, [example], Recipe(steps=3, batch=1)).run(None, 100, lambda _: None))
    assert losses[0] == losses[1]
    assert layers(lm.model) == 15
