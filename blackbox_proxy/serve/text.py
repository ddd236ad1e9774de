"""From tokens to text that may be shown: stop strings across token borders, whole characters, and text offsets.

Everything is searched and cut in bytes: UTF-8 cannot be matched in the middle of a character, and a token may end
there. As OpenAI's API does, bytes that belong to no character become U+FFFD in the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from blackbox_proxy.serve.engine import Placed
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Position


class Characters:
    """Counts and decodes a text that arrives in pieces of bytes."""

    def __init__(self, count: int = 0, errors: str = "replace") -> None:
        self.count = count
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def add(self, piece: bytes, last: bool = False) -> str:
        """The characters that this piece completes."""
        text = self._decoder.decode(piece, last)
        self.count += len(text)
        return text


class Feed:
    """The generated text: what of it, and which of its tokens, can no longer be cut off by a stop string.

    A stop string is not part of the text; the tokens kept are those that begin before it. `start` is the offset of
    the first generated character. errors: "ignore" where bytes that belong to no character are no text.
    """

    def __init__(self, stop: Sequence[str] = (), start: int = 0, errors: str = "replace") -> None:
        self._stop = tuple(text.encode("utf-8") for text in stop)
        self._longest = max((len(text) for text in self._stop), default=0)
        self._bytes = bytearray()
        self._waiting: list[tuple[int, Placed]] = []  # where a token begins, in bytes
        self._shown = 0
        self._read, self._written = Characters(start, errors), Characters(start, errors)

    def push(self, position: Position) -> tuple[str, tuple[Placed, ...], bool]:
        """Text and entries that this token releases, and whether a stop string is complete: then it was the last."""
        begins = len(self._bytes)
        self._waiting.append((begins, Placed(position, self._read.count)))
        spelling = position.token.bytes or b""
        self._read.add(spelling)
        self._bytes += spelling
        search = max(0, begins - self._longest + 1)
        found = [place for place in (self._bytes.find(stop, search) for stop in self._stop) if place >= 0]
        if found:
            released = self._release(min(found), last=True)
            self._waiting = []
            del self._bytes[min(found) :]
            return *released, True
        return *self._release(len(self._bytes) - self._held()), False

    def close(self) -> tuple[str, tuple[Placed, ...]]:
        """What was held back, now that the text has ended."""
        text, entries = self._release(len(self._bytes), last=True)
        entries += tuple(entry for _, entry in self._waiting)  # tokens without bytes at the very end
        self._waiting = []
        return text, entries

    def _release(self, until: int, last: bool = False) -> tuple[str, tuple[Placed, ...]]:
        text = self._written.add(bytes(self._bytes[self._shown : until]), last)
        self._shown = max(self._shown, until)
        entries = tuple(entry for begins, entry in self._waiting if begins < until)
        self._waiting = self._waiting[len(entries) :]
        return text, entries

    def _held(self) -> int:
        """Length of the longest proper beginning of a stop string that the text ends with."""
        sizes = range(min(self._longest - 1, len(self._bytes)), 0, -1)
        return next((n for n in sizes if any(s.startswith(self._bytes[-n:]) for s in self._stop if len(s) > n)), 0)


def written(ids: Iterable[int], vocabulary: Vocabulary) -> bytes:
    """Token ids as text, special tokens written out."""
    return b"".join(_spelling(index, vocabulary) for index in ids)


def places(text: bytes, ids: Iterable[int], vocabulary: Vocabulary) -> list[int]:
    """Where in `text` (bytes) each of its tokens begins.

    Special tokens count where the text spells them out, not where the tokenizer added them; a space that the tokenizer
    put before the text is not in it either.
    """
    result, place = [], 0
    for index in ids:
        spelling = _spelling(index, vocabulary)
        if not text.startswith(spelling, place):
            spelling = b"" if index in vocabulary.special else spelling.removeprefix(b" ")
        result.append(place)
        place += len(spelling)
    return result


def echoed_part(
    prompt: object, ids: Sequence[int], vocabulary: Vocabulary, last: int | None
) -> tuple[bytes, list[int]]:
    """The prompt's text, or that of its `last` tokens only, and where in it each of these begins."""
    text = prompt.encode("utf-8") if isinstance(prompt, str) else written(ids, vocabulary)
    begins = places(text, ids, vocabulary)
    first = 0 if last is None else max(0, len(ids) - last)
    cut = 0 if not first else begins[first] if first < len(ids) else len(text)
    return text[cut:], [place - cut for place in begins[first:]]


def offsets(text: bytes, places: Iterable[int]) -> list[int]:
    """The same places in characters, counted as the text is decoded."""
    result, read, characters = [], 0, Characters()
    for place in places:
        characters.add(text[read:place])
        result.append(characters.count)
        read = place
    return result


def _spelling(index: int, vocabulary: Vocabulary) -> bytes:
    return vocabulary.special.get(index, "").encode("utf-8") or vocabulary.token_of(index).bytes or b""
