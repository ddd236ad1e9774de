"""A causal language model from a folder or hub id: safetensors only, whole, and what to do where that fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from blackbox_proxy.errors import InputError, ModelUnavailable
from blackbox_proxy.models.adapters import Adapted, base_of, is_adapter, leaves_base_alone
from blackbox_proxy.models.frozen import freeze
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.text.files import declared, declared_ends, file_of
from blackbox_proxy.text.spelling import from_pretrained, reason
from blackbox_proxy.text.vocabulary import Vocabulary

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_QUANTISERS = {"gptq": "gptqmodel", "awq": "gptqmodel", "aqlm": "aqlm", "hqq": "hqq", "quanto": "optimum-quanto"}
_PREFIXES = {
    "_orig_mod.": "torch.compile writes it; save the model that was compiled (model._orig_mod)",
    "module.": "a parallel wrapper writes it; save the model inside (model.module)",
    "base_model.model.": "PEFT writes it; merge the adapter (merge_and_unload), or save it alone with save_pretrained",
    "_fsdp_wrapped_module.": "FSDP writes it; save the whole state dict of the model inside",
}
_NAMED = 3  # weights that a message names


def load_causal_lm(
    name: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    trained: bool = False,
) -> CausalLM:
    """A model from a folder or hub id: safetensors only, and no code of the model's own unless `trust_remote_code`.

    A PEFT adapter is put onto the weights that lie beside it, or else onto those of the base that it names.
    trained: the weights are to be trained, so that they are not laid out for reading alone (frozen.py).
    device: "auto" takes an accelerator where there is one. dtype: "auto" is float32 on the CPU, the weights' own type
    elsewhere; or "float32", "bfloat16", "float16". Raises ModelUnavailable, InputError.
    """
    load = _Loader.checked(device, dtype, trust_remote_code)
    name = _found(name)
    if not is_adapter(name):
        model = load.weights(name)
        if not trained:
            freeze(model)
        return CausalLM(model, load.vocabulary(name), name)
    base = name if _has_weights(name) else _found(base_of(name))
    adapted = Adapted(load.weights(base), name)
    if not trained:
        freeze(adapted.model, adapted.exchanged())
    return CausalLM(adapted.model, load.vocabulary(name, base), name, active=adapted.on)


def load_both(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[CausalLM, CausalLM] | None:
    """`base` with a PEFT adapter, and without it, over one copy of the weights; arguments as for `load_causal_lm`.

    None where there can be no such pair: `adapter` is none, has weights of its own beside it, or changes the weights
    that it is put on; or `base` is an adapter itself.
    """
    load = _Loader.checked(device, dtype, trust_remote_code)
    name, base = _found(adapter), _found(base)
    if not is_adapter(name) or is_adapter(base) or _has_weights(name) or not leaves_base_alone(name):
        return None
    adapted = Adapted(load.weights(base), name)
    freeze(adapted.model, adapted.exchanged())
    expert = CausalLM(adapted.model, load.vocabulary(name, base), name, active=adapted.on)
    return expert, CausalLM(adapted.model, load.vocabulary(base), base, active=adapted.off)


def _found(given: str | os.PathLike[str]) -> str:
    """The folder or hub id. Raises ModelUnavailable where it must be a folder and is none, or none of a model."""
    name = os.fspath(given)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    path = Path(name).expanduser()
    if not path.is_dir():
        if looks_local:
            raise ModelUnavailable(
                f"there is no folder {name}", hint="Give a model's folder, or a Hugging Face hub id."
            )
        return name
    if not _has_weights(str(path)) and not is_adapter(str(path)):
        raise ModelUnavailable(
            f"{name} has no config.json, so it is not a model's folder",
            hint="Save the model there with save_pretrained; an adapter's folder has adapter_config.json.",
        )
    return str(path)


def _has_weights(name: str) -> bool:
    """Whether a folder is a whole model's, as its configuration says. Adapters on the hub are taken to be alone."""
    return Path(name).is_dir() and file_of(name, "config.json") is not None


@dataclass(frozen=True, slots=True)
class _Loader:
    device: str
    dtype: Any
    trust_remote_code: bool

    @classmethod
    def checked(cls, device: str, dtype: str, trust_remote_code: bool) -> _Loader:
        """Raises InputError for a device or dtype that there is not."""
        if dtype != "auto" and dtype not in _DTYPES:
            raise InputError(f"unknown dtype {dtype!r}", hint=f"Use auto, {', '.join(_DTYPES)}.")
        device = _pick_device(device)
        return cls(device, _DTYPES.get(dtype) or (torch.float32 if device == "cpu" else "auto"), trust_remote_code)

    def vocabulary(self, name: str, base: str | None = None) -> Vocabulary:
        """The vocabulary of a model; of an adapter its own, or that of its base where it came without one."""
        own = base is None or file_of(name, "tokenizer_config.json") or file_of(name, "tokenizer.json")
        source = name if own or base is None else base
        ends = declared_ends(name) or (declared_ends(base) if base is not None else [])
        return from_pretrained(source, end_ids=ends, trust_remote_code=self.trust_remote_code)

    def weights(self, name: str) -> Any:
        """The model of a folder or hub id, every weight of it from the checkpoint. Raises ModelUnavailable."""
        method = declared(name, "config.json").get("quantization_config")
        method = method.get("quant_method") if isinstance(method, dict) else None
        try:
            with _alone(name) as bare:
                model, report = AutoModelForCausalLM.from_pretrained(
                    bare,
                    dtype=self.dtype,
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # else it refers to a report that the commands do not print
                )
            model = model.to(self.device)
        except Exception as error:  # transformers raises OSError, ValueError, ImportError … for one and the same cause
            raise _unavailable(name, method, error) from error
        _check_shapes(name, report["mismatched_keys"])
        _check_whole(name, report["missing_keys"], report["unexpected_keys"])
        return model


@contextmanager
def _alone(name: str) -> Iterator[str]:
    """A model's folder without the adapter that lies in it, which transformers would put on in a way of its own."""
    if not Path(name).is_dir() or not is_adapter(name):
        yield name
        return
    with tempfile.TemporaryDirectory() as bare:
        for file in Path(name).iterdir():
            if not file.name.startswith("adapter_"):
                (Path(bare) / file.name).symlink_to(file.resolve())
        yield bare


def _unavailable(name: str, method: str | None, error: BaseException) -> ModelUnavailable:
    if method is not None:
        package = _QUANTISERS.get(method)
        install = f"Install what reads them (pip install {package}), or give" if package else "Give"
        return ModelUnavailable(
            f"the weights of {name!r} are quantised ({method}) and cannot be loaded here: {reason(error)}",
            hint=f"{install} the weights before they were quantised.",
        )
    if "Unrecognized configuration class" in str(error):
        kind = declared(name, "config.json").get("model_type")
        return ModelUnavailable(
            f"{name!r} is no causal language model, but a {kind}",
            hint="Give a model that writes text; of one that reads images, too, the language model saved alone.",
        )
    return ModelUnavailable(
        f"no causal language model could be loaded from {name!r}: {reason(error)}",
        hint="It needs config.json and model.safetensors (pickled weights are not loaded); "
        "code of the model's own runs only with trust_remote_code.",
    )


def _check_shapes(name: str, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Raise ModelUnavailable where weights are of another shape than the configuration says. mismatched: each with its
    shape in the checkpoint and in the model.
    """
    found = sorted(mismatched)
    if found:
        named = ", ".join(f"{key} is {tuple(there)} and not {tuple(here)}" for key, there, here in found[:_NAMED])
        more = " …" if len(found) > _NAMED else ""
        raise ModelUnavailable(
            f"{len(found)} weights in the checkpoint of {name!r} have not the shape that its config.json says: "
            f"{named}{more}",
            hint="The weights and config.json are not of the same model: save both again with save_pretrained.",
        )


def _check_whole(name: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise ModelUnavailable where weights are not in the checkpoint: transformers fills them at random and goes on."""
    missing, unexpected = sorted(missing), sorted(unexpected)
    prefix = next((prefix for prefix in _PREFIXES if any(key.startswith(prefix) for key in unexpected)), None)
    loose = [key for key in unexpected if ".lora_" in key]
    if not missing and not loose:
        return
    keys = missing or loose
    named = ", ".join(keys[:_NAMED]) + (" …" if len(keys) > _NAMED else "")
    hint = "Save it again with save_pretrained; where lm_head is the embedding, config.json says tie_word_embeddings."
    if prefix is not None:
        hint = f"Its weights are named with the prefix {prefix!r}: {_PREFIXES[prefix]}."
    if missing:
        raise ModelUnavailable(f"{len(missing)} weights are not in the checkpoint of {name!r}: {named}", hint=hint)
    raise ModelUnavailable(
        f"{len(loose)} weights in the checkpoint of {name!r} belong to an adapter that is not part of it: {named}",
        hint="Merge the adapter (merge_and_unload) and save the model, or save the adapter alone.",
    )


def _pick_device(device: str) -> str:
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {device!r} is not available", hint='Use "auto" or "cpu".') from error
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
