"""Given text: finding in an answer the candidates that a server shows at it.

A completions API that repeats its prompt (`echo`) shows its candidates at every token of it. An `Echo` tells, token by
token, what in the answer is prompt, given text, or continuation. Sent as ids, tokens are counted. Sent as text, their
bytes are matched with it from the front; tokens whose bytes the server does not show are skipped by its text offsets,
as long as those have agreed with the text so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from blackbox_proxy.api.entries import malformed
from blackbox_proxy.api.sent import Sent
from blackbox_proxy.dialects.table import Dialect
from blackbox_proxy.types import Token

Place = Literal["before", "given", "after", "lost"]


class Echo(Protocol):
    """What an answer repeats before it goes on. It has the state of one answer: make one for each.

    `goes_on`: whether what follows is wanted. `literal`: tokens spelled like the end are not the end in given text.
    """

    @property
    def goes_on(self) -> bool: ...

    @property
    def literal(self) -> bool: ...

    def place(self, token: Token, offset: int | None, *, has_candidates: bool) -> Place:
        """Where the next token of the answer belongs, read as text even where it is spelled like the end. offset: where
        it begins, in characters of the answer's text, if the server says so. "lost": it is not kept apart from its
        neighbours, so nothing after it counts.
        """
        ...

    def rest(self, text: str) -> str | None:
        """The text without what is repeated in it; None where that cannot be told."""
        ...


@dataclass(slots=True)
class EchoedIds:
    """Sent as ids: `before` of them, then those of `given`. `last`: only the given ones were asked to be repeated."""

    before: int
    given: Sequence[Token]
    goes_on: bool = True
    last: bool = False
    literal: bool = field(default=True, init=False)
    _next: int = field(default=0, init=False)

    def place(self, token: Token, offset: int | None, *, has_candidates: bool) -> Place:
        if self._next == 0 and self.last and has_candidates:
            self._next = self.before  # the first token of a prompt has none: a server that ignores the limit
        at, self._next = self._next - self.before, self._next + 1
        if at < 0:
            return "before"
        if at >= len(self.given):
            return "after"
        sent = self.given[at]
        self.literal = sent.bytes != b""
        if (token.bytes and sent.bytes and token.bytes != sent.bytes) or (
            token.id is not None and sent.id is not None and token.bytes is None and token.id != sent.id
        ):
            raise malformed("the prompt is not repeated as it was sent")
        return "given"

    def rest(self, text: str) -> str | None:
        return None


@dataclass(slots=True)
class EchoedText:
    """Sent as text: `before`, then `given`."""

    before: str
    given: str
    goes_on: bool = True
    literal: bool = field(default=True, init=False)
    _sent: bytes = field(default=b"", init=False)
    _border: int = field(default=0, init=False)
    _at: int | None = field(default=0, init=False)  # bytes; None behind a token of unknown bytes
    _first: bool = field(default=True, init=False)
    _offsets_agree: bool = field(default=True, init=False)
    _anchor: tuple[int, int] = field(default=(0, 0), init=False)  # a place in bytes and in characters

    def __post_init__(self) -> None:
        self._sent = (self.before + self.given).encode()
        self._border = len(self.before.encode())

    def place(self, token: Token, offset: int | None, *, has_candidates: bool) -> Place:
        if self._at is None:
            self._at = self._by_offset(offset)
            if self._at is None:
                return "lost"
        if self._at >= len(self._sent):
            return "after"
        start = self._at
        size = self._size(token, has_candidates)
        if size is None:
            self._at = None
            readable_again = token.bytes is None and offset is not None and self._offsets_agree
            return "before" if start < self._border and readable_again else "lost"
        if offset is not None and offset != self._characters(start):
            self._offsets_agree = False
        self._at = start + size
        if start >= self._border and size:
            return "given"
        return "before" if self._at <= self._border else "lost"

    def rest(self, text: str) -> str | None:
        sent = self.before + self.given
        if text.startswith(sent):
            return text[len(sent) :]
        return "" if sent.startswith(text) else None

    def _size(self, token: Token, has_candidates: bool) -> int | None:
        """How many bytes of the text the token is; None where that cannot be told."""
        first, self._first = self._first, self._first and not token.bytes
        start = self._at or 0
        for spelled in (token.bytes, token.text.encode("utf-8", "replace") if token.bytes == b"" else None):
            if spelled and self._sent.startswith(spelled, start):
                return len(spelled)
        if token.bytes == b"":
            return 0  # special, and not written in the text
        if first and token.bytes:
            if token.bytes[:1] == b" " and self._sent.startswith(token.bytes[1:]):
                return len(token.bytes) - 1  # the space that some tokenizers put before a text
            if not has_candidates:
                self._first = True
                return 0  # a special token that the server put before the text, printed like text
        return None

    def _characters(self, place: int) -> int:
        """How many characters end before a place in the text; places must not go back."""
        begin, count = self._anchor
        count += len(self._sent[begin:place].decode("utf-8", "ignore"))
        if self._sent[place : place + 1] and self._sent[place] & 0xC0 != 0x80:
            self._anchor = place, count
        return count

    def _by_offset(self, offset: int | None) -> int | None:
        """The place of a text offset; None beyond the border, for then it was passed unseen."""
        sent = self.before + self.given
        if offset is None or not self._offsets_agree or offset > len(self.before):
            return None
        return len(sent[:offset].encode())


def echo_of(sent: Sent, dialect: Dialect) -> Echo | None:
    """A new reader of what one answer repeats; None where nothing was given."""
    if not sent.given:
        return None
    if sent.way == "ids":
        return EchoedIds(len(sent.before), sent.given, sent.goes_on, last=dialect.echo_last is not None)
    before, prompt = str(sent.before), str(sent.prompt)
    return EchoedText(before, prompt[len(before) :], sent.goes_on)
