"""A model's spelling: id <-> bytes, its end ids, and how it cuts text into tokens.

`Vocabulary` is made by spelling.py, from a Hugging Face tokenizer or a tiktoken encoding. `LearnedVocabulary` stands in
for a base whose tokenizer is unknown: it knows the tokens seen so far in candidate lists. Both answer the one question
alignment asks of a base: *which token comes first when this text is cut?*
"""

from __future__ import annotations

import codecs
import hashlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeGuard, overload

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.text.memo import Memo
from blackbox_proxy.types import Prompt, Rendering, Token

Ids = NDArray[np.int64]
_APOSTROPHES = ("'", "’")
_FIRST_TOKENS = 500_000  # texts of which the first token is remembered


def is_unfinished(text: bytes) -> bool:
    """Whether `text` is the beginning of one character whose end is still to come."""
    try:
        return bool(text) and codecs.getincrementaldecoder("utf-8")("strict").decode(text) == ""
    except UnicodeDecodeError:
        return False


def utf8_prefix(text: bytes) -> int:
    """Length of the longest prefix of `text` that is whole, valid UTF-8."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(text)


def is_ids(prompt: Prompt) -> TypeGuard[Sequence[int]]:
    """Whether a prompt is given as token ids."""
    return not isinstance(prompt, str) and len(prompt) > 0 and all(isinstance(item, int) for item in prompt)


class Cutter(Protocol):
    """What alignment needs to know of the base's tokenizer, all in bytes."""

    def first(self, texts: Sequence[bytes]) -> list[bytes]:
        """The first token of each (non-empty) text when the base's tokenizer cuts it."""
        ...

    def extensions(self, text: bytes) -> list[bytes]:
        """The shortest u (none a prefix of another) for which text + u begins a token longer than `text`."""
        ...

    def token(self, spelling: bytes) -> Token:
        """The base's token of that spelling; without id where it has none or ids are unknown."""
        ...


def _range(keys: Sequence[bytes], prefix: bytes) -> tuple[int, int]:
    """Where the sorted `keys` that begin with `prefix` start and end."""
    low = bisect_left(keys, prefix)
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return low, len(keys)
    return low, bisect_left(keys, stem[:-1] + bytes([stem[-1] + 1]), low)


class _Sorted:
    """Byte strings in order, so that all those beginning with a prefix are one range."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self.keys = sorted(set(keys))

    def longest(self, text: bytes) -> bytes | None:
        """The longest key that `text` begins with."""
        best, low, high = None, 0, len(self.keys)
        for end in range(1, len(text) + 1):
            prefix = text[:end]
            low = bisect_left(self.keys, prefix, low, high)
            if low == high or not self.keys[low].startswith(prefix):
                break
            if self.keys[low] == prefix:
                best = prefix
        return best

    def extensions(self, text: bytes) -> list[bytes]:
        low, high = _range(self.keys, text)
        shortest: list[bytes] = []
        for key in self.keys[low:high]:
            rest = key[len(text) :]
            if rest and not (shortest and rest.startswith(shortest[-1])):
                shortest.append(rest)
        return shortest


class Vocabulary:
    """A known vocabulary of V ids.

    `spelling[i]` is the bytes of id i, b"" for special tokens (they add no text), None for ids that mean nothing (holes
    and padding). `special` maps the special ids to how they are written; `end_ids` are those that end a text.
    """

    def __init__(
        self,
        spelling: Sequence[bytes | None],
        *,
        special: Mapping[int, str],
        end_ids: Iterable[int],
        encode: Callable[[list[str]], list[list[int]]],
        pretokens: Callable[[str], list[int]],
        render: Callable[[Any, Rendering], list[int]],
        less_preferred: Iterable[int] = (),
    ) -> None:
        self.spelling = tuple(spelling)
        self.special = dict(special)
        self.end_ids = frozenset(end_ids)
        self._encode = encode
        self._pretokens = pretokens
        self._render = render
        self._first: Memo[bytes, bytes] = Memo(_FIRST_TOKENS)
        self._tokens: dict[int, Token] = {}  # of this vocabulary's own ids, so it cannot grow beyond them
        self._less_preferred = frozenset(less_preferred)

    def __len__(self) -> int:
        return len(self.spelling)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids, {self.fingerprint[:12]})"

    # -- id <-> bytes ---------------------------------------------------------------------------------------------

    def token(self, spelling: bytes) -> Token:
        return Token(id=self._by_bytes.get(spelling), bytes=spelling, text=spelling.decode("utf-8", "replace"))

    def token_of(self, index: int) -> Token:
        """The token of an id. An id outside the vocabulary, or a hole, is a token without bytes."""
        found = self._tokens.get(index)
        if found is None:
            known = 0 <= index < len(self.spelling)
            spelling = self.spelling[index] if known else None
            text = self.special.get(index) or (spelling or b"").decode("utf-8", "replace")
            found = Token(id=index, bytes=spelling, text=text, end=index in self.end_ids)
            if known:
                self._tokens[index] = found
        return found

    def id_of(self, spelling: bytes) -> int | None:
        return self._by_bytes.get(spelling)

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """How each special token is written -> its id."""
        return {text: index for index, text in self.special.items()}

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for index, spelling in enumerate(self.spelling):
            if spelling and (spelling not in found or found[spelling] in self._less_preferred):
                found[spelling] = index
        return found

    @cached_property
    def _sorted(self) -> _Sorted:
        return _Sorted(spelling for spelling in self.spelling if spelling)

    @cached_property
    def _ranges(self) -> tuple[list[bytes], Ids]:
        order = sorted((spelling, index) for index, spelling in enumerate(self.spelling) if spelling)
        return [spelling for spelling, _ in order], np.array([index for _, index in order], dtype=np.int64)

    def beginning_with(self, prefix: bytes) -> Ids:
        """The ids of all tokens whose bytes begin with `prefix`: one range of the vocabulary in byte order."""
        keys, ids = self._ranges
        low, high = _range(keys, prefix)
        return ids[low:high]

    @cached_property
    def longest(self) -> int:
        """Length in bytes of the longest token."""
        return max((len(spelling) for spelling in self.spelling if spelling), default=0)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of id -> bytes over the ordinary tokens: equal exactly where two vocabularies spell alike."""
        digest = hashlib.sha256()
        for index, spelling in enumerate(self.spelling):
            if spelling:
                digest.update(b"%d:%d:" % (index, len(spelling)) + spelling)
        return digest.hexdigest()

    def spells_like(self, other: Vocabulary) -> bool:
        """Whether both map the same ids to the same bytes; special tokens and padding may differ."""
        return self.fingerprint == other.fingerprint

    # -- text -> ids ----------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The tokens of each text as a *continuation*: nothing prepended, special tokens not recognised.

        The texts must be valid UTF-8 (see `utf8_prefix`).
        """
        return self._encode([text.decode("utf-8") for text in texts])

    def prompt_ids(self, prompt: Prompt, rendering: Rendering = "raw") -> tuple[int, ...]:
        """The ids a model is shown for a prompt, special tokens included.

        "raw" is the text as it is (of messages: their contents, a blank line between); "chat" the model's own
        template (plain text counts as one user message); a callable makes the text itself. Raises InputError.
        """
        if is_ids(prompt):
            return tuple(prompt)
        return tuple(self._render(prompt, rendering))

    def boundary(self, text: bytes) -> int:
        """The last place in `text` before which no continuation can change the tokens; 0 if there is none.

        Two reasons make a place safe: the pre-tokenizer starts its last piece there; or no token of the vocabulary
        contains the two bytes on both sides of it, and the text from there on is split as before (always so without a
        pre-tokenizer, and between two letters with one).
        """
        text = text[: utf8_prefix(text)]
        if not text:
            return 0
        whole = text.decode("utf-8")
        start = self._last_final_piece(text, self._pretokens(whole))
        place = len(text)
        for before, after in zip(whole[-2::-1], whole[:0:-1], strict=True):
            place -= len(after.encode("utf-8"))
            if place <= start:
                break
            as_before = not self._splits or (before.isalpha() and after.isalpha())
            if as_before and not self._joined[text[place - 1], text[place]]:
                return place
        return start

    @staticmethod
    def _last_final_piece(text: bytes, starts: list[int]) -> int:
        """Start of the last piece whose start is final: the last one, but for two habits of pre-tokenizers."""
        pieces = [text[start:end].decode("utf-8") for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
        last = len(pieces) - 1
        while last > 0 and pieces[last].isspace() and pieces[last - 1].isspace():
            last -= 1  # "\n" + " " may become "\n \n"
        if last > 0 and pieces[last].strip() in _APOSTROPHES:
            last -= 1  # "don" + "'" may become "don't"
        elif last > 0 and pieces[last - 1].strip() in _APOSTROPHES:
            last -= min(2, last)  # "'" + "l" may become "'ll"
        return starts[last]

    @cached_property
    def _splits(self) -> bool:
        """Whether there is a pre-tokenizer that cuts text into pieces."""
        return len(self._pretokens("two words\n2")) > 1

    @cached_property
    def _joined(self) -> NDArray[np.bool_]:
        """(256, 256): whether some token contains byte a followed by byte b."""
        joined = np.zeros((256, 256), dtype=np.bool_)
        spellings = [spelling for spelling in self.spelling if spelling and len(spelling) > 1]
        everything = np.frombuffer(b"".join(spellings), dtype=np.uint8)
        last = np.cumsum([len(spelling) for spelling in spellings], dtype=np.int64) - 1
        inside = np.ones(max(len(everything) - 1, 0), dtype=np.bool_)
        inside[last[:-1]] = False
        joined[everything[:-1][inside], everything[1:][inside]] = True
        return joined

    # -- Cutter ---------------------------------------------------------------------------------------------------

    def first(self, texts: Sequence[bytes]) -> list[bytes]:
        found = self._first.find(texts)
        if None not in found:
            return found  # type: ignore[return-value]
        missing = list(dict.fromkeys(text for text, first in zip(texts, found, strict=True) if first is None))
        whole = [utf8_prefix(text) for text in missing]
        cut = self._encode([text[:end].decode("utf-8") for text, end in zip(missing, whole, strict=True)])
        firsts = {
            text: self._first.keep(text, self._first_of(text, end, ids))
            for text, end, ids in zip(missing, whole, cut, strict=True)
        }
        return [firsts[text] if first is None else first for text, first in zip(texts, found, strict=True)]

    def _first_of(self, text: bytes, whole: int, ids: list[int]) -> bytes:
        token = (self.spelling[ids[0]] or b"") if ids else b""
        if token and (len(token) < whole or whole == len(text)):
            return token
        # What is left is part of a character: no tokenizer cuts that, so take the longest token it begins with.
        longest = self._sorted.longest(text) or b""
        return max(token, longest, key=len) or text[:1]

    def extensions(self, text: bytes) -> list[bytes]:
        return self._sorted.extensions(text)


class VocabularyTokens(Sequence[Token]):
    """Tokens given by their ids, `ids` (k,); a `Token` is made when one is looked at, so a whole vocabulary costs
    nothing.
    """

    def __init__(self, ids: Ids, vocabulary: Vocabulary) -> None:
        self.ids = ids
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Token: ...
    @overload
    def __getitem__(self, index: slice) -> VocabularyTokens: ...
    def __getitem__(self, index: int | slice) -> Token | VocabularyTokens:
        if isinstance(index, slice):
            return VocabularyTokens(self.ids[index], self.vocabulary)
        return self.vocabulary.token_of(int(self.ids[index]))


class LearnedVocabulary:
    """The tokens of a base whose tokenizer is unknown, as far as its candidate lists have shown them (a `Cutter`).

    Cuts by longest match over the tokens seen; text that begins with none of them is taken whole, as one token.
    """

    def __init__(self) -> None:
        self._sorted = _Sorted(())
        self._known: set[bytes] = set()

    def learn(self, spellings: Iterable[bytes]) -> None:
        for spelling in spellings:
            if spelling and spelling not in self._known:
                self._known.add(spelling)
                insort(self._sorted.keys, spelling)

    @property
    def version(self) -> int:
        """Grows with every new token: what was derived from an older version may be stale."""
        return len(self._known)

    def first(self, texts: Sequence[bytes]) -> list[bytes]:
        return [self._sorted.longest(text) or text for text in texts]

    def extensions(self, text: bytes) -> list[bytes]:
        return self._sorted.extensions(text)

    def token(self, spelling: bytes) -> Token:
        return Token(bytes=spelling, text=spelling.decode("utf-8", "replace"))
