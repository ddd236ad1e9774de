"""Words that a tokenizer cuts out of a text before anything else: `<think>`, tool tags, an emoji of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


class AddedWords:
    """The added words of a vocabulary, and where a text that is still growing can no longer become one of them.

    They are matched in the whole text, leftmost and then longest first, and what lies between them is cut on its own.
    `lonely` words count only where no letter or digit stands beside them.
    """

    def __init__(self, words: Iterable[str] = (), lonely: Iterable[str] = ()) -> None:
        self._lonely = frozenset(word for word in lonely if word)
        self.words = frozenset(word for word in words if word) | self._lonely
        self._beginnings = frozenset(word[:end] for word in self.words for end in range(1, len(word)))
        self._longest = max(map(len, self.words), default=0)
        self._lengths = sorted({len(word) for word in self.words}, reverse=True)
        firsts = "".join(map(re.escape, sorted({word[0] for word in self.words})))
        self._starts = re.compile(f"[{firsts}]") if firsts else None

    def open_part(self, text: str) -> tuple[int, int]:
        """(start, end) of the last stretch of `text` that is sure to be cut by itself, character offsets.

        What is before `start` ends with an added word and is final. What is from `end` on may still become a word.
        """
        if self._starts is None or self._starts.search(text) is None:
            return 0, len(text)
        beginnings = self._may_go_on(self._starts, text)
        start = 0
        for place, end in self._found(text):
            if beginnings and beginnings[0] <= place:
                break
            start = end
            beginnings = [beginning for beginning in beginnings if beginning >= start]
        return start, beginnings[0] if beginnings else len(text)

    def cannot_begin(self, text: str, place: int) -> bool:
        """Whether a text that is cut off at `place` would find a word there that is none in the whole text."""
        if not self._lonely or place == 0 or not _is_of_word(text[place - 1]):
            return False
        return any(text.startswith(word, place) or word.startswith(text[place:]) for word in self._lonely)

    def _may_go_on(self, starts: re.Pattern[str], text: str) -> list[int]:
        """The places from which `text` is the beginning of a word, or a lonely word that may get a neighbour."""
        places = [match.start() for match in starts.finditer(text, max(0, len(text) - self._longest))]
        return [place for place in places if text[place:] in self._beginnings or text[place:] in self._lonely]

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of each word in `text`."""
        done = 0
        for match in self._starts.finditer(text) if self._starts is not None else ():
            place = match.start()
            words = (text[place : place + length] for length in self._lengths) if place >= done else ()
            word = next((word for word in words if word in self.words), None)
            if word is not None and self._stands_alone(word, text, place):
                done = place + len(word)
                yield place, done

    def _stands_alone(self, word: str, text: str, place: int) -> bool:
        if word not in self._lonely:
            return True
        return not (_is_of_word(text[:place][-1:]) or _is_of_word(text[place + len(word) :][:1]))


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_"
