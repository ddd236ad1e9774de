"""A LoRA adapter as the expert: one copy of the weights is both models, and the expert equals the merged model."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from toys import save, train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from blackbox_proxy.errors import ModelUnavailable
from blackbox_proxy.models import frozen
from blackbox_proxy.models.frozen import Frozen
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.models.trunk import Trunk
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.types import END, Position, Token

# peft's own, while it makes the adapters that are loaded here
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

BASE = from_tokenizer(train_tokenizer("bytes", 500))
TARGETS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "lora_alpha": 4},
    "all linear layers": {"target_modules": "all-linear"},
    "with a head of its own": {"modules_to_save": ["lm_head"]},
    "with a head and an embedding": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "on the embedding": {"target_modules": [*TARGETS, "embed_tokens"]},
    "more words": {"words": ["<think>", "</think>"]},
    "more words, the others as they were": {"words": ["<think>", "</think>"], "moved": False},
    "more words, saved as modules": {"words": ["<think>"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "some tokens of its own": {"trainable_token_indices": {"embed_tokens": [5, 6, 222]}},
    "pissa": {"init_lora_weights": "pissa"},
}


def adapter(
    base: str,
    folder: Path,
    words: list[str] | None = None,
    tokenizer: bool = True,
    moved: bool = True,
    **options: Any,
) -> str:
    """An adapter as training leaves it, and beside it (…-merged) the model that it is when merged. words: that it has
    more than the base; moved: and the rows of the others are trained, too.
    """
    model = AutoModelForCausalLM.from_pretrained(base)
    own = AutoTokenizer.from_pretrained(base)
    if words:
        own.add_tokens(words)
        model.resize_token_embeddings(len(own), mean_resizing=False)
    torch.manual_seed(3)
    config = LoraConfig(**{"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **options})
    tuned: Any = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if weight.requires_grad or (words and moved and name.endswith(("embed_tokens.weight", "lm_head.weight"))):
                weight.add_(0.1 * torch.randn_like(weight))
    tuned.save_pretrained(folder)
    if tokenizer:
        own.save_pretrained(folder)
    merged = Path(f"{folder}-merged")
    tuned.merge_and_unload().save_pretrained(merged)
    own.save_pretrained(merged)
    return str(folder)


@pytest.fixture(scope="module", params=["bytes", "digits"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """In the vocabulary of the base that is decoded, and in another one."""
    kind = request.param
    tokenizer = train_tokenizer(kind, 500 if kind == "bytes" else 400)
    return save(tmp_path_factory.mktemp("base") / kind, tokenizer, 5)


def row(pair: TransformersPair) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    texts = [" New", " the", "2", ".", "e", " ba"]
    tokens = [*(BASE.token(text.encode()) for text in texts if BASE.id_of(text.encode()) is not None), END]
    position = Position(tokens[0], -1.0, tokens, np.linspace(-1.0, -3.0, len(tokens)))
    found: list[Token] = [BASE.token(b" New")]
    scores = pair.open("He went to", BASE).score(found, [position])[0].score(tokens)
    return scores.log_expert, scores.log_antiexpert


@pytest.fixture(params=["plain", "frozen"], autouse=True)
def laid_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """These models are too small to be laid out for reading, if nobody says otherwise."""
    if request.param == "frozen":
        monkeypatch.setattr(frozen, "_LEAST", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_is_the_merged_model_and_the_antiexpert_the_base(kind: str, base: str, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter", **KINDS[kind])
    pair = TransformersPair(folder, base, device="cpu")
    apart = TransformersPair(f"{folder}-merged", base, device="cpu")
    for ours, theirs in ((row(pair), row(apart)), (row(pair), row(apart))):
        assert np.allclose(ours[0], theirs[0], atol=1e-4)
        assert np.allclose(ours[1], theirs[1], atol=1e-4)
        assert np.abs(theirs[0] - theirs[1]).max() > 0.01
    (expert, _), (antiexpert, _) = pair.models
    if kind != "pissa":  # which takes its start out of the base's weights, so the two cannot share them
        assert [id(w) for w in expert.model.parameters()] == [id(w) for w in antiexpert.model.parameters()]
        for name, weight in AutoModelForCausalLM.from_pretrained(base).named_parameters():
            if "q_proj" in name:
                inside = name.replace("q_proj.weight", "q_proj.base_layer")
                assert torch.equal(expert.model.get_submodule(inside).weight, weight)
    alone = load_causal_lm(folder, device="cpu")
    ids = [5, 6, 7, 8]
    merged = Trunk(apart.models[0][0])
    assert torch.allclose(Trunk(alone).advance(ids), merged.advance(ids), atol=1e-4)
    assert torch.allclose(Trunk(expert).advance(ids), merged.advance(ids), atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "more words, the others as they were"])
def test_the_weights_are_there_once(kind: str, base: str, tmp_path: Path) -> None:
    """As tensors; `pytest -m slow tests/pair/test_adapter_memory.py` measures what a process takes."""
    folder = adapter(base, tmp_path / "adapter", **KINDS[kind])
    (expert, _), (antiexpert, _) = TransformersPair(folder, base, device="cpu").models

    def size(lm: CausalLM) -> dict[int, int]:
        lm.plain([5, 6, 7])  # its own weights are in place
        laid = {id(module): module.weight.numel() for module in lm.model.modules() if isinstance(module, Frozen)}
        return laid | {w.data_ptr(): w.numel() for w in lm.model.parameters()}

    single = sum(w.numel() for w in AutoModelForCausalLM.from_pretrained(base).parameters())
    assert sum({**size(expert), **size(antiexpert)}.values()) < 1.15 * single


def test_both_are_right_while_threads_ask_them_in_turn(base: str, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    models = [lm for lm, _ in TransformersPair(folder, base, device="cpu").models]
    ids = [5, 6, 7, 8, 9]
    expected = [Trunk(lm).advance(ids) for lm in models]
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)

    def ask(number: int) -> bool:
        which = number % 2
        return torch.allclose(Trunk(models[which]).advance(ids), expected[which], atol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(60)))


def test_an_adapter_beside_its_bases_weights_is_put_on_them(base: str, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    merged = Trunk(load_causal_lm(f"{folder}-merged", device="cpu")).advance([5, 6, 7])
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(Path(folder) / name, both)
    config = json.loads((both / "adapter_config.json").read_text())
    (both / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "nowhere/at-all"}))
    assert torch.allclose(Trunk(load_causal_lm(both, device="cpu")).advance([5, 6, 7]), merged, atol=1e-4)
    log_expert, log_antiexpert = row(TransformersPair(str(both), base, device="cpu"))
    assert np.abs(log_expert - log_antiexpert).max() > 0.01


def test_an_adapter_without_a_tokenizer_has_its_bases(base: str, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter", tokenizer=False)
    pair = TransformersPair(folder, base, device="cpu")
    assert pair.models[0][0].vocabulary is pair.models[1][0].vocabulary


def test_without_peft_there_is_a_sentence_that_says_what_to_install(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter(base, tmp_path / "adapter")
    imported = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for load in (lambda: load_causal_lm(folder, device="cpu"), lambda: TransformersPair(folder, base, device="cpu")):
        with pytest.raises(ModelUnavailable, match="needs the package peft") as caught:
            load()
        assert "blackbox-proxy[train]" in caught.value.hint


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("base_model.model.", "base_model.model._orig_mod."): w for name, w in weights.items()}


def halved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: w for name, w in weights.items() if "layers.1" not in name}


@pytest.mark.parametrize("change", [renamed, halved])
def test_an_adapter_whose_weights_find_no_place_is_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], base: str, tmp_path: Path
) -> None:
    folder = adapter(base, tmp_path / "adapter")
    file = Path(folder) / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(ModelUnavailable, match="does not fit this model"):
        TransformersPair(folder, base, device="cpu")


def test_what_is_missing_of_an_adapter_is_said(base: str, tmp_path: Path) -> None:
    folder = Path(adapter(base, tmp_path / "adapter"))
    other = save(tmp_path / "other", train_tokenizer("bytes", 300), 2, "gpt2")
    with pytest.raises(ModelUnavailable, match="cannot be put on this model"):
        TransformersPair(str(folder), other, device="cpu")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelUnavailable, match="does not say what model"):
        load_causal_lm(folder, device="cpu")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"no adapter_model\.safetensors"):
        TransformersPair(str(folder), base, device="cpu")


def test_peft_agrees_that_this_is_how_its_adapters_are_read(base: str, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.inference_mode():
        wanted = theirs(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1)
    lm = load_causal_lm(folder, device="cpu")
    assert torch.allclose(Trunk(lm).advance([5, 6, 7])[0], wanted[: lm.size].log_softmax(-1), atol=1e-4)
