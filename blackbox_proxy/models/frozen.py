"""Weights that are only read: linear layers laid out once as oneDNN multiplies them fastest.

PyTorch multiplies a matrix of float32 as it lies, and rearranges it anew at each call: for the few tokens that a draft
or its nodes are, that takes longer than the products. oneDNN can be given it rearranged (what torch.compile does with
frozen weights). The plain layout is given up, so that a model takes no more memory than before, but for an output
layer that shares its weights with the embedding.

On x86 processors, float32 only; everything else is left as it is. Results differ from PyTorch's by rounding.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Collection
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

_LEAST = 100_000  # weights of a layer: below, the call takes longer than what it saves


class Frozen(torch.nn.Module):
    """A linear layer that cannot be trained: x (…, in) to x W' + b (…, out)."""

    def __init__(self, layer: torch.nn.Linear | Conv1D) -> None:
        super().__init__()
        self._turned = isinstance(layer, Conv1D)
        weight = layer.weight.detach()
        weight = weight.t().contiguous() if self._turned else weight
        self.out_features: int = weight.shape[0]
        self.in_features: int = weight.shape[1]
        self.bias = layer.bias
        self._laid = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._asked: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._laid, self.bias, "none", [], "")
        return found

    def dense(self) -> torch.Tensor:
        """The weights as the layer had them, bit for bit."""
        weight: torch.Tensor = self._laid.to_dense()
        return weight.t().contiguous() if self._turned else weight

    @property
    def weight(self) -> torch.Tensor:
        """For a model that reads this layer's weights itself: made when it first does, then kept."""
        if self._asked is None:
            self._asked = self.dense()
        return self._asked

    def thawed(self) -> torch.nn.Module:
        """The ordinary layer, with a copy of the weights."""
        layer: Any = Conv1D(self.out_features, self.in_features) if self._turned else _linear(self)
        layer.weight = torch.nn.Parameter(self.dense())
        if self.bias is not None:
            layer.bias = self.bias
        layer.train(self.training)
        found: torch.nn.Module = layer
        return found


def _linear(of: Frozen) -> torch.nn.Linear:
    return torch.nn.Linear(of.in_features, of.out_features, bias=of.bias is not None, device="meta")


def freeze(model: torch.nn.Module, leave: Collection[torch.nn.Module] = ()) -> None:
    """Lay out the model's large linear layers, in place; those in `leave` stay as they are."""
    if not _possible():
        return
    left = set(map(id, leave))
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}  # of each layer: it may stand in several
    for parent in model.modules():
        for name, layer in parent.named_children():
            if id(layer) not in left and _suits(layer):
                places.setdefault(id(layer), []).append((parent, name))
    for found in places.values():
        laid = Frozen(found[0][0].get_submodule(found[0][1]))
        for parent, name in found:
            setattr(parent, name, laid)  # with it goes the plain layer, before the next is laid out
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if places and parameter.is_cpu:
            parameter.data = parameter.data.clone()  # else the file stays mapped, with all that has been laid out


def thawed(model: Any) -> Any:
    """The same model with ordinary layers in place of frozen ones, as transformers loads it; everything else is shared.
    The model itself where nothing of it is frozen.
    """
    frozen = [module for module in model.modules() if isinstance(module, Frozen)]
    if not frozen:
        return model
    shared = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(one): one for one in shared}
    memo |= {id(module): module.thawed() for module in frozen}
    return copy.deepcopy(model, memo)


def _suits(layer: Any) -> bool:
    if type(layer) not in (torch.nn.Linear, Conv1D):  # a subclass may do something else
        return False
    weight = layer.weight
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return weight.is_cpu and weight.dtype == torch.float32 and weight.numel() >= _LEAST and not hooked


def _possible() -> bool:
    """Whether this is a processor and a PyTorch where it pays, and where it is as right as the ordinary product."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    layer = torch.nn.Linear(64, 48)
    x = torch.linspace(-1.0, 1.0, 3 * 64).reshape(1, 3, 64)
    try:
        with torch.inference_mode():
            return bool((Frozen(layer)(x) - layer(x)).abs().max() < 1e-4)
    except (AttributeError, RuntimeError, TypeError):  # built without oneDNN, or a later one without these names
        return False
