"""Where the base is looked through: its candidates at places of a text that the small model has a row for.

A candidate's mass under the small model is the sum over those of its ids whose base's first token the candidate is, in
the row after the text (crossing.R), or, of one that goes beyond any local token, what the first of its pieces has. That
is a sum of probabilities, so the loss of the combination has a gradient in the small model's weights. Places that lie
inside a local token are left out: no row is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.aligning.crossing import Crossing
from blackbox_proxy.maths.equation import hidden_mass
from blackbox_proxy.tuning.examples import Example
from blackbox_proxy.types import Floats, Position

_MOST = 32  # candidates of a place, the likeliest first


@dataclass(frozen=True, slots=True, eq=False)
class Spots:
    """The places of one example, m of them, with up to k candidates each. rows (m,): whose logits speak there. ids (n,)
    of the small model, each for one candidate: `spot` (n,) and `column` (n,) say which. log_q (m, k + 1): -inf where
    there is no candidate. The first column is what stands in the text, the last everything that is no candidate.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    spot: NDArray[np.int64]
    column: NDArray[np.int64]
    log_q: Floats

    def __len__(self) -> int:
        return len(self.rows)


def spots_of(example: Example, positions: Sequence[Position], crossing: Crossing, start: int = 0) -> Spots:
    """positions: the base's, along the example's text from byte `start` on, each with the text's own token and its log
    q.
    """
    row_at = {end: example.given + i for i, end in enumerate(example.ends)}
    row_at[example.begins] = example.given - 1
    rows, ids, spot, column = list[int](), list[int](), list[int](), list[int]()
    columns: list[list[float]] = []
    reached = start
    for position in positions:
        own = position.token.bytes or b""
        row = row_at.get(reached)
        reached += len(own)
        if row is None or not own or position.logprob is None or position.token.end:
            continue
        found = [(own, position.logprob)]
        order = np.argsort(-position.logprobs, kind="stable")[:_MOST]
        for i in order:
            token = position.tokens[int(i)]
            if token.bytes and not token.end and token.bytes != own and np.isfinite(position.logprobs[int(i)]):
                found.append((token.bytes, float(position.logprobs[int(i)])))
        kept = [
            (_ids(relations.covering, relations.begins), log_q)
            for relations, (_, log_q) in zip(crossing.of([text for text, _ in found]), found, strict=True)
        ]
        if not len(kept[0][0]):
            continue
        kept = [entry for entry in kept if len(entry[0])]
        for j, (own_ids, _) in enumerate(kept):
            ids += own_ids
            spot += [len(rows)] * len(own_ids)
            column += [j] * len(own_ids)
        rows.append(row)
        columns.append([log_q for _, log_q in kept])
    width = max(map(len, columns), default=1)
    log_q = np.full((len(columns), width + 1), -np.inf)
    for i, values in enumerate(columns):
        log_q[i, : len(values)] = values
        if (hidden := hidden_mass(np.array(values))) > 0.0:
            log_q[i, -1] = np.log(hidden)
    return Spots(_array(rows), _array(ids), _array(spot), _array(column), log_q)


def _array(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _ids(covering: Sequence[int] | NDArray[np.int64], begins: int) -> list[int]:
    if len(covering):
        return [int(i) for i in covering]
    return [begins] if begins >= 0 else []
