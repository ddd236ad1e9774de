"""The pair from two local models: `TransformersPair`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from blackbox_proxy.aligning.alignment import Segmentations
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.models.loading import load_both, load_causal_lm
from blackbox_proxy.models.outputs import Logits, Outputs
from blackbox_proxy.models.trunk import Slots, Trunk
from blackbox_proxy.pair.models import ModelPair
from blackbox_proxy.pair.sharing import shared
from blackbox_proxy.pair.side import Wanted
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Rendering


class TransformersPair(ModelPair):
    """A tuned (expert) and an untuned (anti-expert) causal LM with the same vocabulary, on this machine.

    expert, antiexpert: folder or hub id (safetensors only), or a loaded CausalLM. Without anti-expert, log A = 0. An
    expert that is a PEFT adapter (LoRA) is put onto the anti-expert's weights, which are then both models.
    `expert_prompt` and `antiexpert_prompt` say how each is shown the prompt: "raw", "chat" (its own template) or a
    function from the prompt to text. exact: with another tokenizer, sum every candidate over all ways to write it, in
    place of estimating first and summing what could matter. slots: how many texts each model keeps read. Raises
    ModelUnavailable, VocabularyMismatch, InputError.
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
        exact: bool = False,
        slots: int = 8,
    ) -> None:
        loading = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        lms = _loaded(expert, antiexpert, loading)
        prompts = (expert_prompt, antiexpert_prompt)[: len(lms)]
        models = [(_Local(lm, slots), shown) for lm, shown in zip(_sharing(lms), prompts, strict=True)]
        super().__init__(models, segmentations, exact)
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

    def __init__(self, lm: CausalLM, slots: int) -> None:
        self.lm = lm
        self.name = lm.name
        self.vocabulary: Vocabulary = lm.vocabulary
        self.size = lm.size
        self.slots = Slots(lm, slots)

    def check_length(self, length: int, what: str = "the prompt") -> None:
        self.lm.check_length(length, what)

    def text(self, ids: Sequence[int]) -> _LocalText:
        return _LocalText(self.lm, self.slots, self.slots.take(ids))


class _LocalText:
    def __init__(self, lm: CausalLM, slots: Slots, trunk: Trunk) -> None:
        self._lm = lm
        self._slots = slots
        self._trunk = trunk

    def read(self, ids: Sequence[int]) -> None:
        self._trunk.read(ids)

    def advance(self, ids: Sequence[int], keep: int = 1, wanted: Wanted | None = None) -> Outputs:
        return Logits(self._lm.known(self._trunk.logits(ids, keep=keep)))

    def branch(
        self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int], wanted: Wanted | None = None
    ) -> Outputs:
        return Logits(self._lm.known(self._trunk.logits(ids, parents, tokens)))

    def more(self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int]) -> Outputs:
        return Logits(self._lm.known(self._trunk.logits(ids, parents, tokens, keep=0)))

    def close(self) -> None:
        self._slots.give(self._trunk)
