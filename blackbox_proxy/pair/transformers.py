"""The pair from two local models: `TransformersPair`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from blackbox_proxy.models.lm import CausalLM, Trunk
from blackbox_proxy.models.loading import load_both, load_causal_lm
from blackbox_proxy.pair.alignment import Segmentations
from blackbox_proxy.pair.models import ModelPair
from blackbox_proxy.pair.sharing import shared
from blackbox_proxy.pair.side import Shown, Wanted
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Rendering


class TransformersPair(ModelPair):
    """A tuned (expert) and an untuned (anti-expert) causal LM with the same vocabulary, on this machine.

    expert, antiexpert: folder or hub id (safetensors only), or a loaded CausalLM. Without anti-expert, log A = 0. An
    expert that is a PEFT adapter (LoRA) is put onto the anti-expert's weights, which are then both models.
    `expert_prompt` and `antiexpert_prompt` say how each is shown the prompt: "raw", "chat" (its own template) or a
    function from the prompt to text. Raises ModelUnavailable, VocabularyMismatch, InputError.
    """

    def __init__(
        self,
        expert: str | os.PathLike[str] | CausalLM,
        antiexpert: str | os.PathLike[str] | CausalLM | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        expert_prompt: Rendering = "raw",
        antiexpert_prompt: Rendering = "raw",
        trust_remote_code: bool = False,
        segmentations: Segmentations = "canonical",
    ) -> None:
        loading = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        lms = _loaded(expert, antiexpert, loading)
        prompts = (expert_prompt, antiexpert_prompt)[: len(lms)]
        super().__init__([(_Local(lm), shown) for lm, shown in zip(_sharing(lms), prompts, strict=True)], segmentations)
        self.models: tuple[tuple[CausalLM, Rendering], ...] = tuple(zip(lms, prompts, strict=True))
        """Expert and, if there is one, anti-expert, with how each is shown a prompt: to run them by themselves."""


def _loaded(
    expert: str | os.PathLike[str] | CausalLM,
    antiexpert: str | os.PathLike[str] | CausalLM | None,
    loading: Mapping[str, Any],
) -> list[CausalLM]:
    if not isinstance(expert, CausalLM) and antiexpert is not None and not isinstance(antiexpert, CausalLM):
        both = load_both(expert, antiexpert, **loading)
        if both is not None:
            return list(both)
    given = [expert] if antiexpert is None else [expert, antiexpert]
    return [model if isinstance(model, CausalLM) else load_causal_lm(model, **loading) for model in given]


def _sharing(lms: Sequence[CausalLM]) -> Sequence[CausalLM]:
    """The same models over the vocabulary that they share. Raises VocabularyMismatch."""
    if len(lms) < 2:
        return lms
    found = shared(lms[0].vocabulary, lms[1].vocabulary, (lms[0].name, lms[1].name))
    if found is None:
        return lms
    parts = zip(lms, found.vocabularies, found.holes, strict=True)
    return [lm.over(vocabulary, holes) for lm, vocabulary, holes in parts]


class _Local:
    """A CausalLM as a session's model."""

    partial = False

    def __init__(self, lm: CausalLM) -> None:
        self.lm = lm
        self.name = lm.name
        self.vocabulary: Vocabulary = lm.vocabulary
        self.size = lm.size

    def check_length(self, length: int, what: str = "the prompt") -> None:
        self.lm.check_length(length, what)

    def text(self) -> _LocalText:
        return _LocalText(Trunk(self.lm))


class _LocalText:
    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk

    def advance(self, ids: Sequence[int], keep: int = 1, wanted: Wanted | None = None) -> Shown:
        return _shown(self._trunk.advance(ids, keep))

    def branch(
        self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int], wanted: Wanted | None = None
    ) -> Shown:
        return _shown(self._trunk.branch(ids, parents, tokens))


def _shown(rows: torch.Tensor) -> Shown:
    return Shown.whole(rows.float().cpu().numpy())
