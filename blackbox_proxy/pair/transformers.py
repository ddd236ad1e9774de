"""The pair from two local models: `TransformersPair`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blackbox_proxy.models.lm import CausalLM, Trunk
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.pair.alignment import Segmentations
from blackbox_proxy.pair.models import ModelPair
from blackbox_proxy.pair.side import Shown, Wanted
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Rendering


class TransformersPair(ModelPair):
    """A tuned (expert) and an untuned (anti-expert) causal LM with the same vocabulary, on this machine.

    expert, antiexpert: folder or hub id (safetensors only), or a loaded CausalLM. Without anti-expert, log A = 0.
    `expert_prompt` and `antiexpert_prompt` say how each is shown the prompt: "raw", "chat" (its own template) or a
    function from the prompt to text. Raises ModelUnavailable, VocabularyMismatch, InputError.
    """

    def __init__(
        self,
        expert: str | CausalLM,
        antiexpert: str | CausalLM | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        expert_prompt: Rendering = "raw",
        antiexpert_prompt: Rendering = "raw",
        trust_remote_code: bool = False,
        segmentations: Segmentations = "canonical",
    ) -> None:
        def load(model: str | CausalLM) -> _Local:
            if isinstance(model, CausalLM):
                return _Local(model)
            return _Local(load_causal_lm(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code))

        models = [(load(expert), expert_prompt)]
        if antiexpert is not None:
            models.append((load(antiexpert), antiexpert_prompt))
        super().__init__(models, segmentations)
        self.models: tuple[tuple[CausalLM, Rendering], ...] = tuple((each.lm, shown) for each, shown in models)
        """Expert and, if there is one, anti-expert, with how each is shown a prompt: to run them by themselves."""


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
