"""A causal language model from a folder or hub id: safetensors only, and what to do about it where that fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from blackbox_proxy.errors import InputError, ModelUnavailable
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.text.spelling import from_tokenizer, load_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_causal_lm(
    name: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> CausalLM:
    """A model from a folder or hub id: safetensors only, and no code of the model's own unless `trust_remote_code`.

    device: "auto" takes an accelerator where there is one. dtype: "auto" is float32 on the CPU, the weights' own type
    elsewhere; or "float32", "bfloat16", "float16". Raises ModelUnavailable, InputError.
    """
    name = os.fspath(name)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    path = Path(name).expanduser()
    if looks_local and not path.is_dir():
        raise ModelUnavailable(f"there is no folder {name}", hint="Give a model's folder, or a Hugging Face hub id.")
    if path.is_dir():
        name = str(path)
        if not (path / "config.json").is_file():
            raise ModelUnavailable(
                f"{name} has no config.json, so it is not a model's folder",
                hint="Save the model there with save_pretrained; a PEFT adapter must be merged first.",
            )
    if dtype != "auto" and dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", hint=f"Use auto, {', '.join(_DTYPES)}.")
    device = _pick_device(device)
    wanted: Any = _DTYPES.get(dtype) or (torch.float32 if device == "cpu" else "auto")
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=wanted, use_safetensors=True, trust_remote_code=trust_remote_code
        ).to(device)
    except Exception as error:  # transformers raises OSError, ValueError, ImportError … for one and the same cause
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelUnavailable(
            f"no causal language model could be loaded from {name!r}: {reason}",
            hint="It needs config.json and model.safetensors (pickled weights are not loaded); "
            "code of the model's own runs only with trust_remote_code.",
        ) from error
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = model.config.eos_token_id if ends is None else ends
    end_ids = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return CausalLM(model, from_tokenizer(tokenizer, end_ids=end_ids), name)


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
