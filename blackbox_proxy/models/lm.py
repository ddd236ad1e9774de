"""A causal language model on this machine, run over a growing text.

`CausalLM` is the weights with their `Vocabulary`; a `Trunk` is one text in it, with its KV cache. Both the pair and
the in-process base stand on these two. All results are log probabilities in float32 over the V ids that the
vocabulary knows; padding ids are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from blackbox_proxy.errors import ContextTooLong
from blackbox_proxy.text.vocabulary import Vocabulary


class CausalLM:
    """Weights, vocabulary and limits of a local model; `caches` and `trees` say what its attention was found to
    support.

    `caches`: a cut-back KV cache gives the same numbers as none. `trees`: several continuations can share one forward
    pass under a tree mask. Both are measured on the loaded model (`probe`), not read from its name.
    """

    def __init__(self, model: Any, vocabulary: Vocabulary, name: str = "model") -> None:
        self.model = model.eval()
        self.vocabulary = vocabulary
        self.name = name
        config = model.config.get_text_config(decoder=True)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.device = next(model.parameters()).device
        self.size = len(vocabulary)
        holes = [i for i in range(self.size) if vocabulary.spelling[i] is None]
        self._outputs = int(config.vocab_size)
        self._holes = torch.tensor(holes, dtype=torch.long, device=self.device)
        self._window: int | None = getattr(config, "sliding_window", None)
        self._layer_types = set(getattr(config, "layer_types", None) or ())
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
    def forward(
        self,
        ids: torch.Tensor,
        cache: Any | None,
        positions: torch.Tensor | None = None,
        mask: Any | None = None,
        keep: int = 0,
    ) -> torch.Tensor:
        """Log probabilities (batch, keep, V) of what follows the last `keep` of `ids` (batch, q); 0 keeps all."""
        given: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            given["past_key_values"] = cache
        if positions is not None:
            given["position_ids"] = positions
        if mask is not None:
            given["attention_mask"] = mask
        logits = self.model(input_ids=ids, logits_to_keep=keep, **given).logits
        return self._normalise(logits[..., -keep:, :] if keep else logits)

    def _normalise(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits[..., : self.size].float()
        if logits.shape[-1] < self.size:  # the tokenizer has words that the model has no output for
            logits = torch.nn.functional.pad(logits, (0, self.size - logits.shape[-1]), value=float("-inf"))
        if len(self._holes):
            logits = logits.index_fill(-1, self._holes, float("-inf"))
        return logits.log_softmax(-1)

    def tree_mask(self, depths: torch.Tensor, ancestors: torch.Tensor, cached: int) -> Any:
        """Additive masks for q new tokens after `cached` ones. depths (q,), ancestors (q, q): may i see j?

        Sliding-window layers see only the last `window` positions, counted along each path (Gemma-2, Mistral …).
        """
        dtype = next(self.model.parameters()).dtype
        q = len(depths)
        seen = torch.cat([torch.ones(q, cached, dtype=torch.bool, device=self.device), ancestors], dim=1)
        places = torch.cat([torch.arange(cached, device=self.device), depths])

        def additive(allowed: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros(allowed.shape, dtype=dtype, device=self.device)
            return mask.masked_fill(~allowed, torch.finfo(dtype).min)[None, None]

        if self._window is None:
            return additive(seen)
        near = seen & (depths[:, None] - places[None, :] < self._window)
        if not self._layer_types:
            return additive(near)
        if self._layer_types == {"full_attention"}:
            return additive(seen)
        if self._layer_types == {"sliding_attention"}:
            return additive(near)
        return {"full_attention": additive(seen), "sliding_attention": additive(near)}

    def _probe(self) -> tuple[bool, bool]:
        """Compare cached and tree forwards with plain ones on a short text, past the sliding window where that is
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
        plain = [self._plain(ids[:length] + branch)[-1] for branch in branches]
        try:
            trunk = Trunk(self)
            trunk.advance(ids)
            cached = trunk.advance(ids[:length] + branches[0])[-1]
            caches = _close(cached, plain[0])
        except Exception:  # whatever an unusual architecture raises: it is then run without a cache
            caches = False
        if not caches:
            return False, False
        try:
            trunk = Trunk(self)
            trunk.advance(ids)
            rows = trunk.branch(ids[:length], parents=[-1, 0, 0, -1], tokens=[ids[0], ids[1], ids[-1], ids[2]])
            trees = all(_close(row, want) for row, want in zip(rows[2:], plain, strict=True))
        except Exception:
            trees = False
        return caches, trees

    def _plain(self, ids: Sequence[int]) -> torch.Tensor:
        return self.forward(torch.tensor([list(ids)], device=self.device), None)[0]


def _close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    tolerance = 2e-3 if found.is_cpu else 0.15  # nats; reduced precision on accelerators reorders its sums
    real = wanted > wanted.max() - 12.0
    return bool((found[real] - wanted[real]).abs().max() < tolerance)


class Trunk:
    """One text in one model and the KV cache of what has been read of it.

    The text may be given anew each time: the part that agrees with the last one is not read again.
    """

    def __init__(self, lm: CausalLM) -> None:
        self.lm = lm
        self._ids: list[int] = []
        self._cache: Any = None

    def _share(self, ids: Sequence[int], leave: int) -> list[int]:
        """Cut the cache back to what it shares with `ids` less the last `leave`; the ids that remain to be read."""
        limit = min(len(self._ids), len(ids) - leave)
        shared = 0
        while shared < limit and self._ids[shared] == ids[shared]:
            shared += 1
        self._cut(shared)
        return list(ids[shared:])

    def _cut(self, length: int) -> None:
        if self._cache is None or length == 0:
            self._cache, self._ids = DynamicCache(), []
            return
        surplus = self._cache.get_seq_length() - length
        if surplus > 0:
            self._cache.crop(-surplus)
        self._ids = self._ids[:length]

    def advance(self, ids: Sequence[int], keep: int = 1) -> torch.Tensor:
        """Read `ids` (the whole text); log probabilities (keep, V) of what follows its last `keep` tokens."""
        self.lm.check_length(len(ids), "the text")
        if not 1 <= keep <= len(ids):
            raise ValueError(f"keep must be between 1 and the {len(ids)} tokens of the text")
        if not self.lm.caches:
            return self.lm._plain(ids)[-keep:]
        rest = self._share(ids, leave=keep)
        new = torch.tensor([rest], device=self.lm.device)
        rows = self.lm.forward(new, self._cache, keep=keep)[0]
        self._ids = list(ids)
        return rows

    def branch(self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Log probabilities (1 + m, V) after the text `ids` and after each of m nodes of a tree that grows from its
        end.

        Node i is `tokens[i]` after node `parents[i]` < i, or after the text itself where that is -1. One forward pass
        where the model supports tree masks; otherwise one batch of the paths to all leaves.
        """
        depth = [0] * len(tokens)
        for i, parent in enumerate(parents):
            depth[i] = 1 if parent < 0 else depth[parent] + 1
        self.lm.check_length(len(ids) + max(depth, default=0), "the text")
        if not tokens:
            return self.advance(ids)
        if not self.lm.trees:
            return self._branch_in_batch(ids, parents, tokens)
        rest = self._share(ids, leave=1)
        cached, new, m = len(self._ids), len(rest), len(tokens)
        device = self.lm.device
        ancestors = torch.zeros(new + m, new + m, dtype=torch.bool, device=device)
        ancestors[:new, :new] = torch.ones(new, new, dtype=torch.bool, device=device).tril()
        ancestors[new:, :new] = True
        for i, parent in enumerate(parents):
            if parent >= 0:
                ancestors[new + i] |= ancestors[new + parent]
            ancestors[new + i, new + i] = True
        places = [*range(cached, cached + new), *(cached + new - 1 + d for d in depth)]
        positions = torch.tensor(places, device=device)
        mask = self.lm.tree_mask(positions, ancestors, cached)
        new_ids = torch.tensor([[*rest, *tokens]], device=device)
        rows = self.lm.forward(new_ids, self._cache, positions[None], mask, keep=1 + m)[0]
        self._cache.crop(-m)
        self._ids = list(ids)
        return rows

    def _branch_in_batch(self, ids: Sequence[int], parents: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """The same by one batch of paths, each with its own copy of the cache (or without one)."""
        paths: list[list[int]] = []  # node -> the nodes from the text's end to it
        for i, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), i])
        leaves = [paths[i] for i in sorted(set(range(len(tokens))) - set(parents))]
        width = max(len(path) for path in leaves)
        padded = [[tokens[i] for i in path] + [tokens[path[-1]]] * (width - len(path)) for path in leaves]
        if self.lm.caches:
            root = self.advance(ids)[-1]
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(len(leaves))
            rows = self.lm.forward(torch.tensor(padded, device=self.lm.device), cache)
        else:
            whole = torch.tensor([[*ids, *path] for path in padded], device=self.lm.device)
            everything = self.lm.forward(whole, None, keep=width + 1)
            root, rows = everything[0, 0], everything[:, 1:]
        result: list[torch.Tensor | None] = [None] * len(tokens)
        for row, path in zip(rows, leaves, strict=True):
            for place, i in enumerate(path):
                result[i] = row[place]
        return torch.stack([root, *(row for row in result if row is not None)])
