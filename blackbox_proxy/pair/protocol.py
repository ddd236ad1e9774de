"""What every local pair can do: the one interface between `decode` and the near side.

A pair knows nothing of alpha, of HTTP, or of how a token is chosen. Asked about positions of a draft, it says for any
token of the base how likely expert and anti-expert find the event "this is the base's next token".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from blackbox_proxy.types import Position, Prompt, Scores, Token
from blackbox_proxy.vocabulary import Vocabulary


class Row(Protocol):
    """What the pair knows at one position of a draft, after its forward pass.

    `limit`: how many candidates are worth scoring one by one; None where a whole vocabulary costs nothing.
    """

    limit: int | None

    def score(self, tokens: Sequence[Token]) -> Scores:
        """Log masses of these tokens of the base, shape (len(tokens),) each."""
        ...

    def propose(self, count: int, model: int = 0) -> list[Token]:
        """At most `count` tokens that the expert finds likely, in the base's spelling, most likely first; the end
        included. model: 1 for those of the anti-expert; the expert's where there is none.
        """
        ...


class Session(Protocol):
    """The scoring of one text: holds what is kept between its requests (KV caches)."""

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        """One Row for each position of a draft that follows the issued tokens.

        Fewer rows where a drafted token cannot be identified: what follows it cannot be scored. Row j is what holds
        if the drafted tokens before it are issued as they are. One forward pass of each model for all positions.
        Raises ContextTooLong when the text has outgrown a model's window.
        """
        ...

    def close(self) -> None:
        """Give back the memory of the caches."""
        ...


@runtime_checkable
class Pair(Protocol):
    """A tuned (expert) and an untuned (anti-expert) local model; the anti-expert may be absent, then log A = 0."""

    @property
    def has_antiexpert(self) -> bool: ...

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        """Raise InputError or PairError if this prompt cannot be scored; runs no model."""
        ...

    def open(self, prompt: Prompt, base: Vocabulary | None) -> Session:
        """Start scoring a text. `base` is the spelling of the base, None where it is unknown."""
        ...

    def close(self) -> None: ...
