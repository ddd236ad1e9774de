"""What is made small: the loss of the next token, or that of the combination, both in nats.

    next token    -log E(t)                                        over the small model's own tokens
    combination   -log p(c*),  log p = log q + alpha ( log E - log A ) - log Z
                                                                   over the base's candidates, and the rest as one event

Through the box it is the *combination* that learns to say what stands in the text (Consistent Proxy Tuning, He et al.
2024, arXiv 2407.01155, which has the logits of a base with the same tokenizer; here k candidates and any tokenizer).
A stays as it was. Two things are left to an expert that learns this alone, and what it makes of them is decoded: what
the base did not show, hence the rest; and its tokens where no place of the base is (inside the base's tokens, and the
end), hence the loss of the next token there.
"""

from __future__ import annotations

import math

import torch

from blackbox_proxy.tuning.examples import Example
from blackbox_proxy.tuning.spots import Spots

_IMPOSSIBLE = -1e30  # in the place of minus infinity, of which there is no gradient
_LEAST = math.log(1e-6)  # of the rest of a model's mass, as where p is computed: less is rounding


def next_token_losses(logits: torch.Tensor, example: Example, spots: Spots | None = None) -> torch.Tensor:
    """(t,) for each token after those given; logits (n, V) of one example. spots: but not for those that are learned
    at a place of the base.
    """
    learned = set() if spots is None else set(spots.rows.tolist())
    rows = [row for row in range(example.given - 1, len(example.ids) - 1) if row not in learned]
    targets = torch.tensor([example.ids[row + 1] for row in rows], dtype=torch.long, device=logits.device)
    return torch.nn.functional.cross_entropy(logits[rows].float(), targets, reduction="none")


def masses(logits: torch.Tensor, spots: Spots) -> torch.Tensor:
    """Log mass of each candidate at each spot, and of all ids that are no candidate's, (m, k + 1); `_IMPOSSIBLE` where
    there is no candidate.
    """
    device = logits.device
    rows = torch.log_softmax(logits[torch.from_numpy(spots.rows).to(device)], -1)
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    spot, ids, column = (torch.from_numpy(part).to(device) for part in (spots.spot, spots.ids, spots.column))
    width = spots.log_q.shape[1] - 1
    sums = torch.zeros(len(spots) * width, dtype=rows.dtype, device=device)
    sums = sums.index_add(0, spot * width + column, rows[spot, ids].exp()).reshape(len(spots), width)
    listed = torch.zeros_like(rows, dtype=torch.bool)
    listed[spot, ids] = True
    rest = rows.masked_fill(listed, _IMPOSSIBLE).logsumexp(-1, keepdim=True).clamp_min(_LEAST)
    found = torch.cat([sums.clamp_min(1e-30).log(), rest], -1)
    there = torch.from_numpy(spots.log_q).to(device).isfinite()
    return torch.where(there, found, torch.full_like(found, _IMPOSSIBLE))


def combination_losses(logits: torch.Tensor, spots: Spots, log_antiexpert: torch.Tensor, alpha: float) -> torch.Tensor:
    """-log p of what stands in the text, (m,); log_antiexpert (m, k + 1): `masses` of the untuned model."""
    log_expert = masses(logits, spots)
    log_q = torch.from_numpy(spots.log_q).to(logits.device, log_expert.dtype)
    there = log_q.isfinite()
    score = torch.where(there, log_q + alpha * (log_expert - log_antiexpert), torch.full_like(log_expert, _IMPOSSIBLE))
    return torch.logsumexp(score, -1) - score[:, 0]
