"""From a row of log probabilities to a `Position`: what is drawn, and what is shown of it.

Plainly, the k most likely tokens are shown as the model has them, and one is drawn from just these probabilities.
`Showing` says where a server does otherwise: named tokens instead of the k most likely, a bias or a penalty that bends
what is drawn, and whether that can be seen in the log probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from blackbox_proxy.dialects.table import After
from blackbox_proxy.errors import BadResponse
from blackbox_proxy.maths.order import descending
from blackbox_proxy.maths.sampling import Sampling, nucleus
from blackbox_proxy.text.vocabulary import Ids, Vocabulary, VocabularyTokens
from blackbox_proxy.types import Floats, Position

REPEATS_SEEN = 64  # tokens before a place whose repetition costs (llama.cpp's `repeat_last_n`)


@dataclass(frozen=True, slots=True)
class Showing:
    """What is shown at each position, and what bends the draw.

    k: how many of the most likely tokens are shown; `named`: ids that are shown in their place at drawn positions, in
    this order after the token drawn. bias: nats added to the logit of an id before anything is drawn (vLLM's and
    OpenAI's `logit_bias`). penalty: what the log probability of a token among the last 64 is multiplied by before a
    draw (1 is none; llama.cpp does it to logits). after: what the shown log probabilities have been through: nothing
    (they are the model's own), bias and penalty, or these and the temperature; a greedy draw has none.
    """

    k: int
    named: tuple[int, ...] = ()
    bias: Mapping[int, float] = field(default_factory=dict)
    penalty: float = 1.0
    after: After = "nothing"

    def position(
        self,
        row: torch.Tensor,
        index: int | None,
        place: int,
        sampling: Sampling,
        vocabulary: Vocabulary,
        before: Sequence[int] = (),
    ) -> Position:
        """What a row (V,) of log probabilities says of a given token (`index`); of the one drawn, where that is None.

        The draw depends on the seed and the place in the text only. before: the ids of the text so far.
        """
        if index is not None:
            return self._shown(row, index, vocabulary, top(row, max(self.k, 1)))
        bent = self._bent(row, before)
        found = top(bent, max(self.k, 1))
        if sampling.temperature > 0:
            whole = bent.cpu().numpy().astype(np.float64)
            index = draw(whole, sampling, np.random.default_rng([sampling.seed % 2**64, place]))
        else:
            index = int(found[0][0])
        if self.after == "nothing":
            seen = row
        else:
            heat = sampling.temperature if self.after == "temperature" and sampling.temperature > 0 else 1.0
            seen = torch.log_softmax(bent / heat, -1) if heat != 1.0 or bent is not row else row
        if self.named:
            ids = np.array([*dict.fromkeys((index, *self.named))], dtype=np.int64)
            found = ids, seen[torch.from_numpy(ids)].cpu().numpy().astype(np.float64)
        elif seen is not bent:
            found = top(seen, max(self.k, 1))
        return self._shown(seen, index, vocabulary, found)

    def _shown(self, row: torch.Tensor, index: int, vocabulary: Vocabulary, found: tuple[Ids, Floats]) -> Position:
        ids, logprobs = found
        k = len(ids) if self.named else self.k
        return Position(
            vocabulary.token_of(index), float(row[index]), VocabularyTokens(ids[:k], vocabulary), logprobs[:k]
        )

    def _bent(self, row: torch.Tensor, before: Sequence[int]) -> torch.Tensor:
        if not self.bias and self.penalty == 1.0:
            return row
        bent = row.clone()
        if self.penalty != 1.0 and before:
            seen = torch.tensor(sorted(set(before[-REPEATS_SEEN:])), dtype=torch.long)
            bent[seen] *= self.penalty
        if self.bias:
            ids = torch.tensor(list(self.bias), dtype=torch.long)
            bent[ids] += torch.tensor(list(self.bias.values()), dtype=bent.dtype)
        return bent


def top(row: torch.Tensor, k: int) -> tuple[Ids, Floats]:
    """The k most likely ids of a row (V,) of log probabilities, ties by id, and their log probabilities, both (k,).

    Fewer than k where fewer are possible at all. Raises BadResponse if the row is not a distribution.
    """
    ids, values = None, row
    if k < len(row):
        least = torch.topk(row, k).values[-1]
        ids = torch.nonzero(row >= least)[:, 0]  # topk itself does not say which of several equals it takes
        values = row[ids]
    if len(values) == 0 or bool(values.isnan().any()):
        raise BadResponse(
            "the model computes no valid probabilities (NaN)", hint="Its weights may be damaged; try dtype float32."
        )
    order = _descending(values)[:k]
    values = values[order]
    possible = int((values > float("-inf")).sum())
    order = (order if ids is None else ids[order])[:possible]
    return order.cpu().numpy(), values[:possible].cpu().numpy().astype(np.float64)


def _descending(values: torch.Tensor) -> torch.Tensor:
    """The order (n,) that sorts values from high to low, equal ones as they come."""
    if values.is_cpu:  # torch's own takes several times as long here
        return torch.from_numpy(descending(values.numpy()))
    return torch.sort(values, descending=True, stable=True).indices


def draw(logprobs: Floats, sampling: Sampling, rng: np.random.Generator) -> int:
    """An id drawn from log probabilities (V,) at a temperature above 0, within the top-p nucleus."""
    mass = np.cumsum(nucleus(logprobs, sampling))
    return int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))
