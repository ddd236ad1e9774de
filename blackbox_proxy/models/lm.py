"""A causal language model on this machine: its weights with their `Vocabulary`, and what its attention can do.

trunk.py reads texts with it, packed.py many at once. Results are over the V ids that the vocabulary knows; padding ids
are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from blackbox_proxy.errors import ContextTooLong
from blackbox_proxy.models.packed import Reader, reader_of
from blackbox_proxy.models.trunk import Trunk
from blackbox_proxy.text.vocabulary import Vocabulary


class CausalLM:
    """Weights, vocabulary and limits of a local model; `caches` and `trees` say what its attention was found to
    support.

    `caches`: a cut-back cache gives the same numbers as none. `trees`: several continuations, and several texts, can
    share one forward pass (packed.py). Both are measured on the loaded model, not read from its name.

    active: entered around each pass, where two models share their weights (an adapter on or off).
    """

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        name: str = "model",
        *,
        active: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model = model.eval()
        self.vocabulary = vocabulary
        self.name = name
        self.reader: Reader = reader_of(model)
        self.active = active
        config = model.config.get_text_config(decoder=True)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.device = self.reader.device
        self.size = len(vocabulary)
        holes = [i for i in range(self.size) if vocabulary.spelling[i] is None]
        self._outputs = int(config.vocab_size)
        self._holes = torch.tensor(holes, dtype=torch.long, device=self.device)
        self._window: int | None = getattr(config, "sliding_window", None)
        self.caches, self.trees = True, True
        self.caches, self.trees = self._probe()

    def check_length(self, length: int, what: str = "the prompt") -> None:
        """Raise ContextTooLong if `length` tokens do not fit this model's window."""
        if self.context is not None and length > self.context:
            raise ContextTooLong(
                f"{what} has {length} tokens for {self.name}, whose window is {self.context}",
                hint="Shorten the prompt, lower max_tokens, or take a local pair with a longer window.",
            )

    def over(self, vocabulary: Vocabulary, holes: Sequence[int]) -> CausalLM:
        """The same weights with the ids of another vocabulary, those in `holes` without any mass."""
        other = copy.copy(self)
        other.vocabulary = vocabulary
        other.size = len(vocabulary)
        other._holes = torch.tensor(holes, dtype=torch.long, device=self.device)
        return other

    @torch.inference_mode()
    def forward(self, ids: torch.Tensor, cache: Any | None, keep: int = 0) -> torch.Tensor:
        """Logits (batch, keep, outputs) of what follows the last `keep` of `ids` (batch, q); 0 keeps all."""
        given: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            given["past_key_values"] = cache
        with self.reader.running, self.active():
            logits: torch.Tensor = self.model(input_ids=ids, logits_to_keep=keep, **given).logits
        return logits[..., -keep:, :] if keep else logits

    def plain(self, ids: Sequence[int], keep: int = 0) -> torch.Tensor:
        """Logits (keep, outputs) of a text read from its start, without a cache."""
        return self.forward(torch.tensor([list(ids)], device=self.device), None, keep)[0]

    def known(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (…, V) in float32 of the ids that the vocabulary knows: no padding, and none for its holes."""
        logits = logits[..., : self.size].float()
        if logits.shape[-1] < self.size:  # the tokenizer has words that the model has no output for
            logits = torch.nn.functional.pad(logits, (0, self.size - logits.shape[-1]), value=float("-inf"))
        if len(self._holes):
            logits = logits.index_fill(-1, self._holes, float("-inf"))
        return logits

    def normalised(self, logits: torch.Tensor) -> torch.Tensor:
        """Log probabilities (…, V)."""
        return self.known(logits).log_softmax(-1)

    def _probe(self) -> tuple[bool, bool]:
        """Compare cached and packed forwards with plain ones on a short text, past the sliding window where that is
        small.
        """
        ordinary = [i for i in range(self.size) if self.vocabulary.spelling[i] and i < self._outputs]
        if len(ordinary) < 2:
            return False, False
        length = 12 if self._window is None or self._window > 96 else self._window + 8
        if self.context is not None:
            length = max(2, min(length, self.context - 4))
        ids = [ordinary[(7 * i + i * i) % len(ordinary)] for i in range(length + 2)]
        branches = [[ids[0], ids[1]], [ids[0], ids[-1]], [ids[2]]]
        plain = [self.normalised(self.plain(ids[:length] + branch, keep=1))[-1] for branch in branches]
        try:
            trunk = Trunk(self)
            trunk.advance(ids)
            rows = trunk.branch(ids[:length], parents=[-1, 0, 0, -1], tokens=[ids[0], ids[1], ids[-1], ids[2]])
            if all(_close(row, want) for row, want in zip(rows[2:], plain, strict=True)):
                return True, True
        except Exception:  # whatever an unusual architecture raises: it is then run in batches, or without a cache
            pass
        self.trees = False
        try:
            trunk = Trunk(self)
            trunk.advance(ids)
            return _close(trunk.advance(ids[:length] + branches[0])[-1], plain[0]), False
        except Exception:
            return False, False


def _close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    tolerance = 2e-3 if found.is_cpu else 0.15  # nats; reduced precision on accelerators reorders its sums
    real = wanted > wanted.max() - 12.0
    return bool((found[real] - wanted[real]).abs().max() < tolerance)
