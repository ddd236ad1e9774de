"""Given text: asking a server for its candidates there, and finding them in the answer.

A completions API that repeats its prompt (`echo`) shows its candidates at every token of it. `plan` decides what can be
sent; the `Echo` it makes then tells, row by row, what in the answer is prompt, given text, or continuation. Sent as
ids, rows are counted. Sent as text, the rows' bytes are matched with it from the front; tokens whose bytes the server
does not show are skipped by its text offsets, as long as those have agreed with the text so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from blackbox_proxy.api.entries import malformed, token_of
from blackbox_proxy.api.payload import Settings, as_ids, as_text, travels
from blackbox_proxy.api.positions import Row
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Prefix, Token

Place = Literal["before", "given", "after", "lost"]


class Echo(Protocol):
    """What an answer repeats before it goes on. It has the state of one answer: make one for each.

    `goes_on`: whether what follows is wanted. `literal`: tokens spelled like the end are not the end in given text.
    """

    @property
    def goes_on(self) -> bool: ...

    @property
    def literal(self) -> bool: ...

    def place(self, row: Row, vocabulary: Vocabulary | None) -> Place:
        """Where the next row belongs. "lost": it is not kept apart from its neighbours, so nothing after it counts."""
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
    _row: int = field(default=0, init=False)

    def place(self, row: Row, vocabulary: Vocabulary | None) -> Place:
        if self._row == 0 and self.last and row.shown:
            self._row = self.before  # the first token of a prompt has no candidates: a server that ignores the limit
        at, self._row = self._row - self.before, self._row + 1
        if at < 0:
            return "before"
        if at >= len(self.given):
            return "after"
        sent = self.given[at]
        self.literal = sent.bytes != b""
        found = token_of(row.sampled, vocabulary, literal=row.sampled.text if self.literal else None)
        if (found.bytes and sent.bytes and found.bytes != sent.bytes) or (
            found.id is not None and sent.id is not None and found.bytes is None and found.id != sent.id
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

    def place(self, row: Row, vocabulary: Vocabulary | None) -> Place:
        if self._at is None:
            self._at = self._by_offset(row.offset)
            if self._at is None:
                return "lost"
        if self._at >= len(self._sent):
            return "after"
        start = self._at
        size = self._size(row, vocabulary)
        if size is None:
            self._at = None
            return "before" if start < self._border and self._skipped(row, vocabulary) else "lost"
        if row.offset is not None and row.offset != self._characters(start):
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

    def _size(self, row: Row, vocabulary: Vocabulary | None) -> int | None:
        """How many bytes of the text the row is; None where that cannot be told."""
        token = token_of(row.sampled, vocabulary, literal=row.sampled.text)
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
            if not row.shown:
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

    def _skipped(self, row: Row, vocabulary: Vocabulary | None) -> bool:
        """Whether the next rows can be found although this one cannot be read."""
        token = token_of(row.sampled, vocabulary, literal=row.sampled.text)
        return token.bytes is None and row.offset is not None and self._offsets_agree

    def _by_offset(self, offset: int | None) -> int | None:
        """The place of a text offset; None beyond the border, for then it was passed unseen."""
        sent = self.before + self.given
        if offset is None or not self._offsets_agree or offset > len(self.before):
            return None
        return len(sent[:offset].encode())


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask: a prefix (`given` included as far as it can be), how many tokens to draft, fields of the body.

    `before` is the prefix without given text; `given` what was put after it.
    """

    prefix: Prefix
    n: int
    before: Prefix
    given: tuple[Token, ...] = ()
    goes_on: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)
    way: Literal["ids", "text"] | None = None

    def echo(self, settings: Settings) -> Echo | None:
        """A new reader of what one answer to this repeats; None where nothing was given."""
        if not self.given:
            return None
        if self.way == "ids":
            before = len(as_ids(self.before, settings))
            return EchoedIds(before, self.given, self.goes_on, last=settings.dialect.echo_last is not None)
        before_text = as_text(self.before, settings)
        return EchoedText(before_text, as_text(self.prefix, settings)[len(before_text) :], self.goes_on)


def plan(prefix: Prefix, n: int, given: Sequence[Token], settings: Settings) -> Plan | None:
    """How to ask for n tokens after `prefix` and `given`; None where nothing of `given` can be sent.

    `given` is cut before the first token from which the prefix could not be continued in the way it travels now:
    what follows the rest is then not wanted, but no API writes nothing at all, so one token is asked for.
    """
    way = travels(prefix, settings)
    if not given or way is None:
        return Plan(prefix, n, prefix, way=way)
    kept = 0
    while kept < len(given) and travels(_extended(prefix, given[: kept + 1]), settings) == way:
        kept += 1
    if kept == 0:
        return None
    fields = dict(settings.dialect.echo or {})
    if settings.dialect.echo_last is not None and way == "ids":
        fields[settings.dialect.echo_last] = kept
    goes_on = kept == len(given)
    return Plan(_extended(prefix, given[:kept]), n if goes_on else 1, prefix, tuple(given[:kept]), goes_on, fields, way)


def _extended(prefix: Prefix, given: Sequence[Token]) -> Prefix:
    return Prefix(prefix.prompt, (*prefix.tokens, *given))
