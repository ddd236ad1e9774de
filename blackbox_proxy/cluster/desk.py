"""The one place of a run that all its workers ask: limits, budget, and the lines that are answered. Knows no Ray.

It may be killed and begun again: it finds in its folder what it had granted and what it was given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blackbox_proxy.base.budget import Budget
from blackbox_proxy.cluster.budget import Ledger
from blackbox_proxy.cluster.checkpoint import Checkpoint
from blackbox_proxy.cluster.journal import Journal
from blackbox_proxy.cluster.limits import MARGIN, SPAN, VALID, Grant, Window
from blackbox_proxy.errors import BudgetReached
from blackbox_proxy.types import Usage


@dataclass(frozen=True, slots=True)
class Terms:
    """What may be asked and spent in all. limits: requests_per_minute, tokens_per_minute; budget: the arguments of a
    `Budget`. span, valid, margin: of the window, in seconds.
    """

    limits: Mapping[str, float | None] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    span: float = SPAN
    valid: float = VALID
    margin: float = MARGIN


@dataclass(frozen=True, slots=True)
class Told:
    """How far a run is: rows done and failed, tokens decoded, and what they cost."""

    done: int = 0
    failed: int = 0
    tokens: int = 0
    usage: Usage = field(default_factory=Usage)


class Desk:
    """folder: on this machine. run: the name of the run. What was granted counts for the runs after it, too, as long as
    it is on its way; a budget is one run's.
    """

    def __init__(self, folder: Path, run: str, terms: Terms) -> None:
        self._granted = Checkpoint(folder / "limits")
        self._paid = Checkpoint(folder / f"budget-{run}")
        self._window = Window(
            terms.limits, span=terms.span, valid=terms.valid, margin=terms.margin, note=self._granted.note
        )
        self._window.restore(self._granted.old)
        self._ledger = Ledger(Budget(**terms.budget), self._paid.note)
        self._ledger.restore(self._paid.old)
        self._journal = Journal(folder / f"journal-{run}")
        self._told = Told()
        for line in self._journal.lines():
            record = json.loads(line)
            self._tell("error" in record, int(record["tokens"]), Usage(**record["usage"]))
        self._stopped: tuple[str, str, str] | None = None

    # -- limits and budget --------------------------------------------------------------------------------------------

    def grant(self, needs: Sequence[float]) -> Grant:
        """See `Window.ask`."""
        if self._granted.full:
            self._granted.rewrite(self._window.events())
        return self._window.ask(needs)

    def give_back(self, number: int, requests: int, tokens: float) -> None:
        """See `Window.give_back`."""
        self._window.give_back(number, requests, tokens)

    def learn(self, told: Mapping[str, tuple[float, float | None]]) -> None:
        """See `Window.learn`."""
        self._window.learn(told)

    def allow(self, name: str, prompt_tokens: int, n: int) -> tuple[int | None, str, str]:
        """See `Ledger.allow`: what is granted, or None and why nothing is."""
        if self._paid.full:
            self._paid.rewrite(self._ledger.events())
        try:
            return self._ledger.allow(name, prompt_tokens, n), "", ""
        except BudgetReached as error:
            return None, str(error), error.hint

    def settle(self, name: str, used: Usage) -> None:
        """See `Ledger.settle`."""
        self._ledger.settle(name, used)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def have(self, indices: Iterable[int]) -> dict[int, bytes]:
        """Lines of rows that somebody has answered before."""
        return self._journal.have(indices)

    def put(self, index: int, digest: str, failed: bool, line: bytes, tokens: int, usage: Usage) -> None:
        """Keep the line of a row that is answered. When this returns, it outlives its worker and this process."""
        if self._journal.put(index, digest, failed, line):
            self._tell(failed, tokens, usage)

    def _tell(self, failed: bool, tokens: int, usage: Usage) -> None:
        old = self._told
        self._told = Told(old.done + (not failed), old.failed + failed, old.tokens + tokens, old.usage + usage)

    def told(self) -> Told:
        """How far the run is, as far as this process knows."""
        return self._told

    def stop(self, kind: str, message: str, hint: str) -> None:
        """The run is to end with this error. The first one counts."""
        self._stopped = self._stopped or (kind, message, hint)

    def stopped(self) -> tuple[str, str, str] | None:
        """Why the run is to end: the error's class, its message and its hint."""
        return self._stopped

    def close(self) -> None:
        """Everything is on the disk."""
        self._journal.sync()
        self._journal.close()
        self._granted.close()
        self._paid.close()
