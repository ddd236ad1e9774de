"""The text that is being decoded: its prefix, what of it may be shown, and whether it has ended."""

from __future__ import annotations

from dataclasses import dataclass

from blackbox_proxy.decoding.weighed import Weighed
from blackbox_proxy.errors import InputError
from blackbox_proxy.protocols import Base
from blackbox_proxy.text.writer import Writer
from blackbox_proxy.types import FinishReason, Prefix, Prompt, Step, Token, no_candidates


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a text ends if its end does not come before: after so many tokens, or at a stop string, which is not part
    of it. Raises InputError.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, not {self.max_tokens}", hint="Leave it out for 256.")
        if not all(self.stop):
            raise InputError("a stop string is empty", hint="Leave out stop to go on to the end of the text.")


class Text:
    """The text so far. A token that is taken is never taken back."""

    def __init__(self, base: Base, prompt: Prompt, limits: Limits) -> None:
        self.prefix = Prefix(prompt)
        self.finished = False
        self._base = base
        self._limits = limits
        self._writer = Writer(limits.stop)

    @property
    def place(self) -> int:
        """Where the next token will stand."""
        return len(self.prefix.tokens)

    @property
    def left(self) -> int:
        """How many tokens it may still get."""
        return self._limits.max_tokens - self.place

    def can_rest_after(self, prefix: Prefix) -> bool:
        """Whether the text may stand at `prefix`: a request can go on from there, or none needs to."""
        return len(prefix.tokens) >= self._limits.max_tokens or self._base.can_continue(prefix)

    def take(self, token: Token, weighed: Weighed | None = None, *, drafted: bool = False, local: bool = False) -> Step:
        """The step of the next token; `weighed`: what it was chosen from, where there was a list."""
        self.prefix = self.prefix.plus(token)
        last = self.left <= 0 or self._base.room(self.prefix) == 0
        text, finish = self._writer.release(token, last)
        self.finished = finish is not None
        return Step(
            token=b"" if token.end else token.bytes or b"",
            text=text,
            token_id=token.id,
            candidates=no_candidates() if weighed is None else weighed.candidates(token),
            covered_mass=0.0 if weighed is None else weighed.covered_mass,
            drafted=drafted,
            changed=weighed is not None and weighed.changed,
            end=token.end,
            finish_reason=finish,
            local=local,
        )

    def close(self, finish: FinishReason, reason: str | None = None) -> Step:
        """The last step where no token led to it: the base or its server ended unseen, or a window is full."""
        self.finished, end = True, finish == "stop"
        return Step(b"", self._writer.close(), None, no_candidates(), 0.0, end, False, end, finish, reason=reason)
