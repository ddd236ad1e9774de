"""What every base can do: the one interface between `decode` and the far side.

A base knows nothing of alpha, of the pair, or of how a token is chosen. It answers a prefix with its own continuation
and shows its candidates at every position of it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from blackbox_proxy.types import Draft, Prefix, Prompt
from blackbox_proxy.vocabulary import Vocabulary


@runtime_checkable
class Base(Protocol):
    """A model that continues a prefix and shows log probabilities.

    `name` is for people; `vocabulary` the base's spelling, None where it is unknown; `context` the window in tokens
    (prompt plus text), None where it is unknown.
    """

    @property
    def name(self) -> str: ...

    @property
    def vocabulary(self) -> Vocabulary | None: ...

    @property
    def context(self) -> int | None: ...

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        """Raise InputError if this prompt cannot be asked, or `max_tokens` tokens not be decoded; sends nothing."""
        ...

    def can_continue(self, prefix: Prefix) -> bool:
        """Whether a request can continue from exactly these tokens.

        False, for instance, where the prefix travels as text and its last token ends inside a character: such a token
        can only stay if the base drafted it and its draft goes on.
        """
        ...

    def room(self, prefix: Prefix) -> int | None:
        """How many more tokens fit the window after this prefix; None where that is unknown."""
        ...

    async def draft(self, prefix: Prefix, n: int, *, temperature: float = 0.0, seed: int | None = None) -> Draft:
        """The base's own continuation of `prefix`: at most n >= 1 positions, at least one unless the base ends at once.

        `temperature` 0 drafts greedily, 1 draws from the base's distribution. The log probabilities shown are the
        model's own (at temperature 1) in both cases. Raises BaseError.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections and memory."""
        ...
