"""What a model says at some places of a text: `Logits` stay where the model is, `Shown` came from elsewhere.

Both answer the same few questions, and only what is asked for is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from blackbox_proxy.models.wide import log_norm, top
from blackbox_proxy.text.vocabulary import Ids
from blackbox_proxy.types import Floats

Rows = NDArray[np.float32]

_FEW = 256  # ids: so many are looked for at all places at once, because who asks for one place asks for others


class Outputs(Protocol):
    """Log probabilities over V ids at m places, nats.

    `hidden` (m,): -inf where a row is whole. Where a model showed only some ids, the mass of the others is spread
    evenly over them, none above the least that was shown (`least`, (m,)), and `hidden` is what each of them got.
    """

    @property
    def hidden(self) -> Rows: ...
    @property
    def least(self) -> Rows: ...

    @property
    def width(self) -> int:
        """V."""
        ...

    def __len__(self) -> int: ...

    def row(self, place: int) -> Rows:
        """All of one place, (V,)."""
        ...

    def gather(self, places: Ids | int, ids: Ids) -> Floats:
        """Of id ids[i] at places[i], or all at one place, (c,)."""
        ...

    def at(self, place: int, index: int) -> float:
        """Of one id at one place."""
        ...

    def top(self, place: int, count: int) -> tuple[Ids, Floats]:
        """The `count` likeliest ids of a place that the model showed itself, most likely first."""
        ...


class Logits:
    """Logits (m, V) float32 of a model on this machine, normalised only where they are looked at."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self._array: Rows | None = logits.numpy() if logits.device.type == "cpu" else None  # the same memory
        self._top: tuple[int, Ids, Floats] | None = None

    @cached_property
    def _norm(self) -> Floats:
        norm: Floats = log_norm(self._logits).double().cpu().numpy()
        return norm

    @cached_property
    def hidden(self) -> Rows:
        return np.full(len(self), -np.inf, dtype=np.float32)

    @property
    def least(self) -> Rows:
        return self.hidden

    @property
    def width(self) -> int:
        return int(self._logits.shape[1])

    def __len__(self) -> int:
        return len(self._logits)

    def row(self, place: int) -> Rows:
        row: Rows = np.array(self._logits[place].cpu().numpy(), dtype=np.float32)
        np.subtract(row, np.float32(self._norm[place]), out=row)
        return row

    def gather(self, places: Ids | int, ids: Ids) -> Floats:
        if self._array is not None:
            own: Floats = self._array[places, ids].astype(np.float64)
            own -= self._norm[places]
            return own
        device = self._logits.device
        at = places if isinstance(places, int) else torch.from_numpy(places).to(device)
        found = self._logits[at, torch.from_numpy(ids).to(device)]
        values: Floats = found.double().cpu().numpy() - self._norm[places]
        return values

    def at(self, place: int, index: int) -> float:
        said = self._logits[place, index] if self._array is None else self._array[place, index]
        return float(said) - float(self._norm[place])

    def top(self, place: int, count: int) -> tuple[Ids, Floats]:
        count = min(count, self._logits.shape[1])
        if count > _FEW:
            ids, values = self._best(slice(place, place + 1), count)
            return ids[0], values[0]
        if self._top is None or self._top[0] < count:
            self._top = (count, *self._best(slice(None), count))
        _, ids, values = self._top
        return ids[place, :count], values[place, :count]

    def _best(self, places: slice, count: int) -> tuple[Ids, Floats]:
        values, ids = top(self._logits[places], count)
        return ids.cpu().numpy(), values.double().cpu().numpy() - self._norm[places, None]


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Log probabilities `rows` (m, V) as a server has shown them."""

    rows: Rows
    hidden: Rows
    least: Rows

    @property
    def width(self) -> int:
        return int(self.rows.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, place: int) -> Rows:
        row: Rows = self.rows[place]
        return row

    def gather(self, places: Ids | int, ids: Ids) -> Floats:
        found: Floats = self.rows[places, ids].astype(np.float64)
        return found

    def at(self, place: int, index: int) -> float:
        return float(self.rows[place, index])

    def top(self, place: int, count: int) -> tuple[Ids, Floats]:
        row = np.where(self.rows[place] == self.hidden[place], -np.inf, self.rows[place])
        ids = np.argpartition(row, -count)[-count:] if len(row) > count else np.arange(len(row))
        ids = ids[np.argsort(-row[ids], kind="stable")]
        ids = ids[np.isfinite(row[ids])]
        return ids, row[ids].astype(np.float64)
