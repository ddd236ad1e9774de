"""A causal language model on this machine: its weights with their `Vocabulary`, and what its attention can do.

trunk.py reads texts with it, packed.py many at once. Results are over the V ids that the vocabulary knows; padding ids
are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from blackbox_proxy.errors import ContextTooLong, InputError, ModelUnavailable
from blackbox_proxy.models.packed import Reader
from blackbox_proxy.models.trunk import Trunk
from blackbox_proxy.text.spelling import load_tokenizer
from blackbox_proxy.text.vocabulary import Vocabulary

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CausalLM:
    """Weights, vocabulary and limits of a local model; `caches` and `trees` say what its attention was found to
    support.

    `caches`: a cut-back cache gives the same numbers as none. `trees`: several continuations, and several texts, can
    share one forward pass (packed.py). Both are measured on the loaded model, not read from its name.

    reader: who runs the weights, where two models share them; active: entered around each pass (an adapter on or off).
    """

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        name: str = "model",
        *,
        reader: Reader | None = None,
        active: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model = model.eval()
        self.vocabulary = vocabulary
        self.name = name
        self.reader = reader or Reader(model)
        self.active = active
        config = model.config.get_text_config(decoder=True)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.device = next(model.parameters()).device
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
    return CausalLM(model, Vocabulary.from_tokenizer(tokenizer, end_ids=end_ids), name)


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
