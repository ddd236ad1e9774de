"""PEFT adapters: one set of weights that is two models, with the adapter (an expert) and without it (its base).

Switching is of the whole model at once, so only one of the two runs at a time: `Adapted.on` and `Adapted.off` hold its
lock. Weights that the adapter brings whole (a resized embedding) are exchanged; all else peft switches.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from blackbox_proxy.errors import ModelUnavailable
from blackbox_proxy.text.files import declared, file_of

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_INSIDE = "base_model.model."  # what peft writes before the name of a weight of the model
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # the others take something out of the base's weights


def is_adapter(name: str) -> bool:
    """Whether a folder or hub id holds an adapter."""
    return file_of(name, _CONFIG) is not None


def leaves_base_alone(name: str) -> bool:
    """Whether the base's own weights stay what they are when this adapter is put on."""
    return declared(name, _CONFIG).get("init_lora_weights", True) in _PLAIN_STARTS


def base_of(name: str) -> str:
    """The folder or hub id of the model that an adapter was trained on. Raises ModelUnavailable."""
    base = declared(name, _CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelUnavailable(
            f"the adapter {name!r} does not say what model it was trained on",
            hint="Write base_model_name_or_path into its adapter_config.json.",
        )
    return base


class Adapted:
    """A model and an adapter on it, off until it is switched on. Raises ModelUnavailable.

    The model is changed in place, and is from then on to be run inside `on` or `off`.
    """

    def __init__(self, model: Any, name: str) -> None:
        peft = _peft(name)
        path = file_of(name, _WEIGHTS)
        if path is None:
            raise ModelUnavailable(
                f"the adapter {name!r} has no {_WEIGHTS}",
                hint="Save it with save_pretrained; pickled weights are not loaded.",
            )
        from safetensors.torch import load_file

        self.model = model
        self.lock = threading.RLock()
        self._enabled: bool | None = None
        try:
            config = peft.PeftConfig.from_pretrained(name)
            config.inference_mode = True
            if config.is_prompt_learning:
                raise ValueError(f"{config.peft_type} writes into the prompt, and cannot be switched")
            weights = _without_copies(load_file(path))
            self._exchanged = _resize(model, weights, config.modules_to_save or ())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about how it was trained, which is over
                wrapped = peft.get_peft_model(model, config)
            self._exchanged += _taken_whole(model, weights)
            found = peft.set_peft_model_state_dict(wrapped, weights)
        except Exception as error:  # peft raises ValueError, KeyError, RuntimeError … for one and the same cause
            raise ModelUnavailable(
                f"the adapter {name!r} cannot be put on this model: {' '.join(str(error).split())}",
                hint="It must be an adapter of the anti-expert (or of the base that it names), saved with peft.",
            ) from error
        left = sorted(found.unexpected_keys)
        ours = [key for key in found.missing_keys if f".{wrapped.active_adapter}" in key]
        if left or ours:
            raise ModelUnavailable(
                f"the adapter {name!r} does not fit this model: {len(left)} weights of it have no place there, and "
                f"{len(ours)} are not in its file, the first {(left or ours)[0]}",
                hint="Give it with the model that it was trained on.",
            )
        wrapped.eval()
        tuners = peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.other.AuxiliaryTrainingWrapper
        self._layers = [module for module in wrapped.modules() if isinstance(module, tuners)]
        for layer in self._layers:
            layer.enable_adapters(False)
        self._switch(False)

    def on(self) -> AbstractContextManager[object]:
        """While entered, this model is the adapter's."""
        return self._being(True)

    def off(self) -> AbstractContextManager[object]:
        """While entered, this model is as it was before."""
        return self._being(False)

    def exchanged(self) -> list[Any]:
        """Modules that have weights of their own with the adapter, and others without it."""
        return [module for module, _, _, _ in self._exchanged]

    @contextmanager
    def _being(self, enabled: bool) -> Iterator[None]:
        with self.lock:
            self._switch(enabled)
            yield

    def _switch(self, enabled: bool) -> None:
        if enabled == self._enabled:
            return
        self._enabled = None
        for layer in self._layers:  # all that a forward pass looks at; enable_adapters takes milliseconds for gradients
            layer._disable_adapters = not enabled
        for module, name, before, after in self._exchanged:
            module._parameters[name] = after if enabled else before
        self._enabled = enabled


def _peft(name: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelUnavailable(
            f"{name} is an adapter, and loading one needs the package peft, which is not installed",
            hint='Install it (pip install "blackbox-proxy[train]"), or merge the adapter into its base and save that.',
        ) from error
    return peft


def _without_copies(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a resized embedding that was trained as a module of its own, peft writes the base's part and a second copy."""
    for middle in (".modules_to_save.", ".original_module."):
        weights = {k: w for k, w in weights.items() if middle not in k or k.replace(middle, ".") not in weights}
    return weights


_Exchanged = list[tuple[Any, str, Any, Any]]
"""(module, name, without, with the adapter)."""


def _resize(model: Any, weights: dict[str, torch.Tensor], own_modules: Collection[str]) -> _Exchanged:
    """Give the model as many ids as the adapter was trained with. Without it, its rows for new ones mean nothing.

    Where the adapter brings all of these rows they are taken from `weights` and put in place, without a copy; the
    base's are kept beside them only where they differ. own_modules: what peft keeps twice by itself.
    """
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    names = {name: module for name, module in model.named_modules() if any(module is end for end in ends)}
    rows = {len(w) for key, w in weights.items() if key.startswith(_INSIDE) and _holder(key, "weight") in names}
    if not rows or max(rows) == model.get_input_embeddings().weight.shape[0]:
        return []
    keys = [f"{_INSIDE}{name}.weight" for name in names]
    copied = any(name.split(".")[-1] in own_modules for name in names)
    biased = any(getattr(module, "bias", None) is not None for module in names.values())
    if copied or biased or len(rows) > 1 or not all(key in weights for key in keys):
        model.resize_token_embeddings(max(rows), mean_resizing=False)
        return []
    exchanged: _Exchanged = []
    made: dict[int, Any] = {}
    for key, module in zip(keys, names.values(), strict=True):
        before, found = module.weight, weights.pop(key)
        after = made.get(id(before))
        if after is None:  # else it is tied, and given twice
            after = made[id(before)] = torch.nn.Parameter(found.to(before.device, before.dtype), requires_grad=False)
        if not torch.equal(after[: len(before)], before):
            exchanged.append((module, "weight", before, after))
        module.weight = after
        setattr(module, "num_embeddings" if isinstance(module, torch.nn.Embedding) else "out_features", len(after))
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.vocab_size = max(rows)
    return exchanged


def _holder(key: str, weight: str) -> str:
    """The name in the model of the module that a whole weight belongs to; "" for parts of an adapter."""
    name = key.removeprefix(_INSIDE)
    for middle in (".base_layer.", ".modules_to_save.", "."):
        if name.endswith(f"{middle}{weight}"):
            return name.removesuffix(f"{middle}{weight}")
    return ""


def _taken_whole(model: Any, weights: dict[str, torch.Tensor]) -> _Exchanged:
    """Take from `weights` those that stand in place of the model's own; of equal ones the model's are kept."""
    own = dict(model.named_parameters(remove_duplicate=False))
    places = [(module, name, p) for module in model.modules() for name, p in module.named_parameters(recurse=False)]
    exchanged, given = [], set()
    for key in [key for key in weights if key.removeprefix(_INSIDE) in own]:
        before = own[key.removeprefix(_INSIDE)]
        found = weights.pop(key).to(before.device, before.dtype)
        if found.shape != before.shape:
            raise ValueError(f"{key} is {tuple(found.shape)} there and {tuple(before.shape)} in the model")
        # Tied weights are one, and are exchanged wherever they stand.
        if id(before) not in given and not torch.equal(found, before):
            after = torch.nn.Parameter(found, requires_grad=False)
            exchanged += [(module, name, before, after) for module, name, p in places if p is before]
            given.add(id(before))
    return exchanged
