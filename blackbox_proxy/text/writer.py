"""Bytes of tokens -> text to show: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from blackbox_proxy.types import FinishReason, Token


class Writer:
    """Releases text as soon as it is certain.

    Bytes that can belong to no character are left out of the text (they remain in the steps' tokens); a replacement
    character is never written.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._held = ""

    def write(self, token: bytes) -> tuple[str, bool]:
        """The text that this token releases, and whether a stop string was completed (which is not released)."""
        self._held += self._decoder.decode(token)
        found = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            released, self._held = self._held[: min(found)], ""
            return released, True
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        released, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return released, False

    def release(self, token: Token, last: bool) -> tuple[str, FinishReason | None]:
        """The text that a token of the base releases, and why the text ends with it; `last`: no further one fits."""
        text, stopped = self.write(b"" if token.end else token.bytes or b"")
        finish: FinishReason | None = "stop" if token.end or stopped else "length" if last else None
        return text + (self.close() if finish is not None and not stopped else ""), finish

    def close(self) -> str:
        """What was still held back when the text ended; an unfinished character is not text."""
        released, self._held = self._held, ""
        return released


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
