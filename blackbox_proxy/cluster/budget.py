"""One budget for many processes: a `Ledger` around a `Budget`, and what each process sees of it.

What a killed process had reserved stays reserved: its requests may have been answered and billed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from typing import Any

from blackbox_proxy.base.budget import Budget
from blackbox_proxy.cluster.limits import Asks
from blackbox_proxy.errors import BudgetReached
from blackbox_proxy.types import Usage


class Ledger:
    """A budget with a name for every reservation, so that one that is asked for twice is made once. note: is told,
    before it is answered, what `restore` must know after a restart.
    """

    def __init__(self, budget: Budget, note: Callable[[list[Any]], None] = lambda _: None) -> None:
        self.budget = budget
        self._note = note
        self._open: dict[str, tuple[int, int]] = {}  # name -> prompt tokens, output tokens granted

    def allow(self, name: str, prompt_tokens: int, n: int) -> int:
        """Set aside one request under this name; the output tokens that it may ask for. Raises BudgetReached."""
        if name not in self._open:
            granted = self.budget.reserve(prompt_tokens, n)
            self._note(["allowed", name, prompt_tokens, granted])
            self._open[name] = prompt_tokens, granted
        return self._open[name][1]

    def settle(self, name: str, used: Usage) -> None:
        """The request of this name is over, and has cost `used`."""
        if name in self._open:
            self._note(["settled", name, *astuple(used)])
            self.budget.settle(*self._open.pop(name), used)

    def restore(self, events: Iterable[Sequence[Any]]) -> None:
        """What was noted before."""
        spent = Usage()
        for event in events:
            if event[0] == "allowed":
                self._open[event[1]] = event[2], event[3]
            elif event[0] == "settled":
                self._open.pop(event[1], None)
                spent += Usage(*event[2:])
            elif event[0] == "spent":
                spent += Usage(*event[1:])
        self.budget.restore(spent, list(self._open.values()))

    def events(self) -> list[list[Any]]:
        """The same in short: what is spent, and what is set aside."""
        spent: list[list[Any]] = [["spent", *astuple(self.budget.usage)]]
        return spent + [["allowed", name, *amounts] for name, amounts in self._open.items()]


class SharedBudget:
    """The budget of one process (see `base.budget.Pays`). holder: a name that no other process has."""

    def __init__(self, desk: Asks, holder: str) -> None:
        self._desk = desk
        self._holder = holder
        self._count = 0
        self._open: dict[tuple[int, int], list[str]] = defaultdict(list)  # alike reservations, by their names

    async def allow(self, prompt_tokens: int, n: int) -> int:
        """As `Budget.allow`."""
        self._count += 1
        name = f"{self._holder}-{self._count}"
        try:
            granted, reached, hint = await self._desk.ask("allow", name, prompt_tokens, n)
        except asyncio.CancelledError:
            self._desk.tell("settle", name, Usage())
            raise
        if granted is None:
            raise BudgetReached(reached, hint)
        self._open[prompt_tokens, granted].append(name)
        return int(granted)

    def settle(self, prompt_tokens: int, granted: int, used: Usage) -> None:
        """As `Budget.settle`."""
        self._desk.tell("settle", self._open[prompt_tokens, granted].pop(), used)
