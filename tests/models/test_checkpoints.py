"""What real checkpoints are like: weights that are not there, names with a prefix, ends said in odd places."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import save, tiny_model, train_tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, LlavaConfig

from blackbox_proxy.errors import ModelUnavailable
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.models.trunk import Trunk

Weights = dict[str, torch.Tensor]
TOKENIZER = train_tokenizer("bytes", 300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(save(tmp_path / "model", TOKENIZER, 1))


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file({name: w.clone() for name, w in change(load_file(file)).items()}, file, metadata={"format": "pt"})


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": w for name, w in weights.items()}


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: w for name, w in weights.items() if not any(part in name for part in parts)}


INCOMPLETE: dict[str, tuple[Callable[[Weights], Weights], str, str]] = {
    "a layer": (without("layers.1."), "9 weights", "save_pretrained"),
    "a matrix": (without("layers.0.mlp.up_proj"), "1 weights.*layers.0.mlp.up_proj.weight", "save_pretrained"),
    "a norm": (without("model.norm"), "1 weights.*model.norm.weight", "save_pretrained"),
    "the head": (without("lm_head"), "1 weights.*lm_head.weight", "tie_word_embeddings"),
    "the embedding": (without("embed_tokens"), "embed_tokens", "save_pretrained"),
    "half": (without("layers.1.", "lm_head", "q_proj"), "11 weights .* …", "save_pretrained"),
    "compiled": (prefixed("_orig_mod."), "21 weights", "torch.compile"),
    "peft": (prefixed("base_model.model."), "21 weights", "PEFT"),
    "parallel": (prefixed("module."), "21 weights", "parallel wrapper"),
    "fsdp": (prefixed("_fsdp_wrapped_module."), "21 weights", "FSDP"),
    "a smaller norm": (
        lambda weights: {**weights, "model.norm.weight": torch.ones(16)},
        r"1 weights .* not the shape .*: model.norm.weight is \(16,\) and not \(32,\)",
        "not of the same model",
    ),
    "a larger vocabulary": (
        lambda weights: {**weights, "model.embed_tokens.weight": torch.ones(999, 32)},
        r"1 weights .* not the shape .*embed_tokens.weight is \(999, 32\)",
        "not of the same model",
    ),
    "an adapter not merged": (
        lambda weights: {**weights, "model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)},
        "1 weights .* belong to an adapter",
        "merge_and_unload",
    ),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_a_checkpoint_without_all_of_its_weights_is_refused(kind: str, folder: Path) -> None:
    change, message, hint = INCOMPLETE[kind]
    rewrite(folder, change)
    with pytest.raises(ModelUnavailable, match=message) as caught:
        load_causal_lm(folder, device="cpu")
    assert hint in caught.value.hint


def image_and_text(kind: Any) -> Any:
    """The configuration of a tiny model that reads images, too, and says its end only in the part that writes."""
    text = tiny_model("llama", len(TOKENIZER), 1).config.to_dict() | {"head_dim": 8, "eos_token_id": 1}
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    eye = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(
        text_config={name: text[name] for name in (*keep, "num_key_value_heads", "eos_token_id")},
        vision_config={**eye, "image_size": 28, "patch_size": 14},
        image_token_index=3,
    )


def test_a_model_that_reads_images_too_is_its_language_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Gemma3ForConditionalGeneration(image_and_text(Gemma3Config)).eval()
    whole.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    assert "eos_token_id" not in json.loads((tmp_path / "config.json").read_text())
    lm = load_causal_lm(tmp_path, device="cpu")
    assert lm.vocabulary.end_ids == {1}
    with torch.inference_mode():
        logits = whole(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    assert torch.allclose(Trunk(lm).advance([5, 6, 7])[-1], lm.normalised(logits), atol=1e-4)


def test_a_model_that_is_no_language_model_is_said_to_be_none(folder: Path) -> None:
    image_and_text(LlavaConfig).save_pretrained(folder)
    with pytest.raises(ModelUnavailable, match="is no causal language model, but a llava") as caught:
        load_causal_lm(folder, device="cpu")
    assert "saved alone" in caught.value.hint


def test_what_is_too_much_or_tied_does_no_harm(folder: Path, tmp_path: Path) -> None:
    expected = Trunk(load_causal_lm(folder, device="cpu")).advance([3, 4, 5])
    rewrite(folder, lambda weights: {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert torch.allclose(Trunk(load_causal_lm(folder, device="cpu")).advance([3, 4, 5]), expected, atol=1e-5)
    tied = tiny_model("llama", len(TOKENIZER), 1)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "tied")
    TOKENIZER.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    load_causal_lm(tmp_path / "tied", device="cpu")


def configured(folder: Path, name: str, **changes: Any) -> None:
    file = folder / name
    said = json.loads(file.read_text()) if file.exists() else {}
    said.update(changes)
    file.write_text(json.dumps({key: value for key, value in said.items() if value != "nothing"}))


ENDS: dict[str, tuple[dict[str, Any], dict[str, Any], set[int]]] = {
    "in both": ({"eos_token_id": 1}, {"eos_token_id": 1}, {1}),
    "a list": ({"eos_token_id": [1, 7]}, {"eos_token_id": "nothing"}, {1, 7}),
    "generation goes before": ({"eos_token_id": 8}, {"eos_token_id": [7, 9]}, {7, 9}),
    "nowhere": ({"eos_token_id": "nothing"}, {"eos_token_id": "nothing"}, set()),
    "null": ({"eos_token_id": None}, {"eos_token_id": None}, set()),
    "in the text part": (
        {"eos_token_id": "nothing", "text_config": {"eos_token_id": 7}},
        {"eos_token_id": "nothing"},
        {7},
    ),
    "at the top, though there is a text part": (
        {"eos_token_id": 8, "text_config": {"eos_token_id": 7}},
        {"eos_token_id": "nothing"},
        {8},
    ),
    "of a part that is none": ({"eos_token_id": "nothing", "text_config": "none"}, {}, set()),
}


@pytest.mark.parametrize("kind", ENDS)
def test_ends_are_those_that_the_models_files_name(kind: str, folder: Path) -> None:
    """Never a default of the configuration's class: Llama's is 2, whatever that spells."""
    from blackbox_proxy.text.files import declared_ends

    config, generation, ends = ENDS[kind]
    configured(folder, "generation_config.json", **{"eos_token_id": "nothing", **generation})
    configured(folder, "config.json", **config)
    assert set(declared_ends(str(folder))) == ends


def test_a_model_whose_files_name_no_end_has_its_tokenizers(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        configured(folder, name, eos_token_id="nothing")
    assert load_causal_lm(folder, device="cpu").vocabulary.end_ids == {1}
    configured(folder, "tokenizer_config.json", eos_token="nothing")
    assert load_causal_lm(folder, device="cpu").vocabulary.end_ids == frozenset()


@pytest.mark.parametrize(("method", "package"), [("gptq", "gptqmodel"), ("awq", "gptqmodel")])
def test_quantised_weights_say_what_they_need(method: str, package: str, folder: Path) -> None:
    configured(folder, "config.json", quantization_config={"quant_method": method, "bits": 4, "group_size": 128})
    with pytest.raises(ModelUnavailable, match=rf"quantised \({method}\)") as caught:
        load_causal_lm(folder, device="cpu")
    assert package in caught.value.hint
    assert not str(caught.value).rstrip().endswith(("…", ":", ","))


def test_a_folder_without_a_tokenizer_says_so(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelUnavailable, match=r"there is no tokenizer in .*tokenizer\.json") as caught:
        load_causal_lm(folder, device="cpu")
    assert "save_pretrained" in caught.value.hint
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match="no tokenizer could be loaded") as caught:
        load_causal_lm(folder, device="cpu")
    assert not str(caught.value).endswith((":", ","))
