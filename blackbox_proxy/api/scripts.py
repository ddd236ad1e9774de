"""How servers write tokens as strings, where that is not the text that they stand for: pure, no I/O.

Some show a tokenizer's own pieces: "Ġthe" or "▁the" for " the". Each way of writing here can be undone with certainty,
and none has a blank in any string, so one blank anywhere refutes them all. What cannot be undone ("the" for " the") is
no script: against.py finds out that it does not spell the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from blackbox_proxy.api.entries import END_MARKERS, RawToken, utf8
from blackbox_proxy.text.pieces import byte_level


@dataclass(frozen=True, slots=True)
class Script:
    """marks: what tells it apart from plain text. read: a string to bytes; None for one that is not written so."""

    name: str
    marks: tuple[str, ...]
    read: Callable[[str], bytes | None]

    def entry(self, entry: RawToken) -> RawToken:
        """The same token, its string undone, unless its bytes are told besides."""
        if self is PLAIN or entry.text in END_MARKERS:
            return entry
        if entry.bytes is not None and entry.bytes != utf8(entry.text):
            return entry
        raw = self.read(entry.text)
        return entry if raw is None else replace(entry, text=raw.decode("utf-8", "replace"), bytes=raw)


_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _read_pieces(text: str) -> bytes | None:
    byte = _BYTE.fullmatch(text)
    return bytes.fromhex(byte[1]) if byte else _read_with("▁", text)


def _read_with(mark: str, text: str) -> bytes | None:
    return None if " " in text else utf8(text.replace(mark, " "))


PLAIN = Script("plain", (), utf8)
SCRIPTS = (
    PLAIN,
    Script("byte letters", ("Ġ", "Ċ", "ĉ"), byte_level),
    Script("pieces", ("▁", "<0x"), _read_pieces),
    Script("open boxes", ("␣",), lambda text: _read_with("␣", text)),
    Script("word ends", ("</w>",), lambda text: _read_with("</w>", text)),
)
_DOUBTFUL = re.compile("[\u00a1-\u0143▁␣]|</w>|<0x")  # what any of them would read otherwise than it stands there


@dataclass(slots=True)
class Writing:
    """How one server was seen to write: the tokens that it wrote itself, and its candidates. None: not known yet."""

    own: Script | None = None
    listed: Script | None = None

    @property
    def name(self) -> str:
        """The script that had to be undone; "plain" where none had to."""
        return next((s.name for s in (self.own, self.listed) if s is not None and s is not PLAIN), PLAIN.name)

    def see(self, entries: Iterable[RawToken]) -> bool:
        """Whether it does not matter how these candidates are written, or is known, perhaps by them."""
        if self.listed is not None:
            return True
        texts = [entry.text for entry in entries if entry.text not in END_MARKERS]
        if any(" " in text for text in texts):
            self.listed = PLAIN
            return True
        return _DOUBTFUL.search("\n".join(texts)) is None

    def decide(self, entries: Iterable[RawToken], spelled: bytes) -> None:
        """Learn from a list that must show a token spelled so, with a blank in it."""
        texts = [entry.text for entry in entries]
        self.listed = next((s for s in SCRIPTS if any(s.read(text) == spelled for text in texts)), self.listed)

    def guess(self, entries: Iterable[RawToken]) -> bool:
        """At the end of an answer that has not told: whether it is plain, or what the tokens written are."""
        joined = "\n".join(entry.text for entry in entries if entry.text not in END_MARKERS)
        marked = [script for script in SCRIPTS if any(mark in joined for mark in script.marks)]
        if self.own is not None and self.own in marked:
            self.listed = self.own
        return not marked or self.listed is not None
