"""The pair from two local models: `TransformersPair`.

Where the base spells like the pair (same id <-> bytes), a session reads the id's own log probability (plain.py): plain
proxy-tuning. Everywhere else it scores events (aligned.py). What both need of one model is in side.py.
"""

from __future__ import annotations

import threading

from blackbox_proxy.errors import InputError, VocabularyMismatch
from blackbox_proxy.lm import CausalLM, load_causal_lm
from blackbox_proxy.pair.aligned import AlignedSession
from blackbox_proxy.pair.alignment import Alignment, Segmentations
from blackbox_proxy.pair.plain import PlainSession
from blackbox_proxy.pair.protocol import Session
from blackbox_proxy.pair.side import Side
from blackbox_proxy.types import Prompt, Rendering
from blackbox_proxy.vocabulary import LearnedVocabulary, Vocabulary, is_ids


class TransformersPair:
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
        def load(model: str | CausalLM) -> CausalLM:
            if isinstance(model, CausalLM):
                return model
            return load_causal_lm(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)

        models = [(load(expert), expert_prompt)]
        if antiexpert is not None:
            models.append((load(antiexpert), antiexpert_prompt))
            _check_vocabularies(models[0][0], models[1][0])
        self._models = models
        self._segmentations: Segmentations = segmentations
        self._alignments: dict[int, tuple[Vocabulary, Alignment]] = {}
        self._lock = threading.Lock()

    @property
    def has_antiexpert(self) -> bool:
        return len(self._models) > 1

    @property
    def vocabulary(self) -> Vocabulary:
        """The spelling that expert and anti-expert share."""
        return self._models[0][0].vocabulary

    def __repr__(self) -> str:
        names = ", ".join(lm.name for lm, _ in self._models)
        return f"TransformersPair({names})"

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        if is_ids(prompt):
            raise InputError(
                "a prompt of token ids means nothing to a pair with a vocabulary of its own",
                hint="Give the prompt as text or messages.",
            )
        for lm, rendering in self._models:
            length = len(lm.vocabulary.prompt_ids(prompt, rendering))
            if length == 0:
                raise InputError("the prompt is empty", hint="Give at least one character of text.")
            lm.check_length(length + 1)

    def open(self, prompt: Prompt, base: Vocabulary | None) -> Session:
        ends = frozenset[int]().union(*(lm.vocabulary.end_ids for lm, _ in self._models))
        sides = [Side(lm, lm.vocabulary.prompt_ids(prompt, rendering), ends) for lm, rendering in self._models]
        if base is not None and base.spells_like(self.vocabulary):
            return PlainSession(sides, base, self._lock)
        return AlignedSession(sides, self._alignment(base), self._lock)

    def _alignment(self, base: Vocabulary | None) -> Alignment:
        if base is None:  # what is learned of an unknown base belongs to one text at a time
            return Alignment(self.vocabulary, LearnedVocabulary(), self._segmentations)
        with self._lock:
            known = self._alignments.get(id(base))
            if known is None:
                known = (base, Alignment(self.vocabulary, base, self._segmentations))
                self._alignments[id(base)] = known
            return known[1]

    def close(self) -> None:
        self._alignments.clear()


def _check_vocabularies(expert: CausalLM, antiexpert: CausalLM) -> None:
    if expert.vocabulary.spells_like(antiexpert.vocabulary):
        return
    ours, theirs = expert.vocabulary.spelling, antiexpert.vocabulary.spelling
    differing = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if (a or b"") != (b or b"")), None)
    place = min(len(ours), len(theirs)) if differing is None else differing
    a, b = (spelling[place] if place < len(spelling) else None for spelling in (ours, theirs))
    raise VocabularyMismatch(
        f"expert {expert.name} and anti-expert {antiexpert.name} have different vocabularies: "
        f"id {place} is {a!r} in one and {b!r} in the other",
        hint="The anti-expert must be the expert before tuning. The base may have any vocabulary.",
    )
