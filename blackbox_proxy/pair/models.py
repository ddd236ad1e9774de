"""What all pairs of two models have in common, wherever the models run: `ModelPair`.

Where the base spells like the pair (same id <-> bytes), a session reads the id's own log probability (plain.py): plain
proxy-tuning. Everywhere else it scores events (aligned.py). What both need of one model is in side.py.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from blackbox_proxy.aligning.alignment import Alignment, Segmentations
from blackbox_proxy.aligning.crossing import Crossing
from blackbox_proxy.aligning.learned import Bases
from blackbox_proxy.errors import InputError
from blackbox_proxy.pair.aligned import AlignedSession
from blackbox_proxy.pair.estimated import EstimatedSession
from blackbox_proxy.pair.plain import PlainSession
from blackbox_proxy.pair.sharing import mismatch
from blackbox_proxy.pair.side import Model, Side
from blackbox_proxy.protocols import Session
from blackbox_proxy.text.vocabulary import Vocabulary, is_ids
from blackbox_proxy.types import Prompt, Rendering


class ModelPair:
    """An expert and perhaps an anti-expert with the same vocabulary, each with its own rendering of the prompt.

    Raises VocabularyMismatch.
    """

    def __init__(
        self, models: Sequence[tuple[Model, Rendering]], segmentations: Segmentations = "canonical", exact: bool = False
    ) -> None:
        if len(models) > 1:
            expert, antiexpert = models[0][0], models[1][0]
            if not expert.vocabulary.spells_like(antiexpert.vocabulary):
                raise mismatch(expert.vocabulary, antiexpert.vocabulary, (expert.name, antiexpert.name))
        self._models = list(models)
        self._segmentations: Segmentations = segmentations
        self._exact = exact or segmentations == "all"
        self._alignments: dict[int, tuple[Vocabulary, Alignment]] = {}
        self._crossings: dict[int, Crossing] = {}
        self._lock = threading.Lock()
        # One forward pass at a time on this machine; servers take requests side by side.
        elsewhere = all(model.partial for model, _ in models)
        self._running: AbstractContextManager[object] = nullcontext() if elsewhere else self._lock

    @property
    def has_antiexpert(self) -> bool:
        return len(self._models) > 1

    @property
    def renderings(self) -> tuple[Rendering, ...]:
        """How each model is shown a prompt."""
        return tuple(rendering for _, rendering in self._models)

    @property
    def vocabulary(self) -> Vocabulary:
        """The spelling that expert and anti-expert share."""
        return self._models[0][0].vocabulary

    def __repr__(self) -> str:
        names = ", ".join(model.name for model, _ in self._models)
        return f"{type(self).__name__}({names})"

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        if is_ids(prompt):
            raise InputError(
                "a prompt of token ids means nothing to a pair with a vocabulary of its own",
                hint="Give the prompt as text or messages.",
            )
        for model, rendering in self._models:
            length = len(model.vocabulary.prompt_ids(prompt, rendering))
            if length == 0:
                raise InputError("the prompt is empty", hint="Give at least one character of text.")
            model.check_length(length + 1)

    def open(self, prompt: Prompt, base: Vocabulary | None) -> Session:
        ends = frozenset[int]().union(*(model.vocabulary.end_ids for model, _ in self._models))
        plain = base is not None and base.spells_like(self.vocabulary)
        if base is not None and plain:  # ids are shared: what is a word there, and no end, is that word
            ends -= {i for i in ends if i < len(base) and base.spelling[i] and i not in base.end_ids}
        sides = [Side(model, model.vocabulary.prompt_ids(prompt, rendering), ends) for model, rendering in self._models]
        if base is not None and plain:
            return PlainSession(sides, base, self._running)
        crossing = None if base is None or self._exact else self._crossing(base)
        known = None if base is None else (crossing, self._alignment(base))
        bases = Bases(self.vocabulary, known, self._segmentations)
        if self._exact:
            return AlignedSession(sides, bases, self._lock, self._running)
        return EstimatedSession(sides, bases, self._lock)

    def _alignment(self, base: Vocabulary) -> Alignment:
        with self._lock:
            known = self._alignments.get(id(base))
            if known is None:
                known = (base, Alignment(self.vocabulary, base, self._segmentations))
                self._alignments[id(base)] = known
            return known[1]

    def _crossing(self, base: Vocabulary) -> Crossing:
        alignment = self._alignment(base)
        with self._lock:
            if id(base) not in self._crossings:
                self._crossings[id(base)] = Crossing(alignment)
            return self._crossings[id(base)]

    def close(self) -> None:
        self._alignments.clear()
