"""A model's spelling: id <-> bytes, its end ids, and how it cuts text into tokens.

`Vocabulary` is made by spelling.py, from a Hugging Face tokenizer or a tiktoken encoding. `LearnedVocabulary` stands in
for a base whose tokenizer is unknown: it knows the tokens seen so far in candidate lists. Both answer the one question
alignment asks of a base: *which token comes first when this text is cut?*
"""

from __future__ import annotations

import codecs
import copy
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeGuard, overload

import numpy as np

from blackbox_proxy.text.added import AddedWords
from blackbox_proxy.text.kept import digest, kept
from blackbox_proxy.text.memo import Memo
from blackbox_proxy.text.table import Arrays, Sorted, Table, joined_up, range_of, split
from blackbox_proxy.text.table import Ids as Ids
from blackbox_proxy.types import Prompt, Rendering, Token

Encode = Callable[[list[str]], list[list[int]]]
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

    def following(self, text: bytes) -> frozenset[bytes]:
        """The single bytes with which tokens that begin with `text`, and are longer, go on."""
        ...

    def token(self, spelling: bytes) -> Token:
        """The base's token of that spelling; without id where it has none or ids are unknown."""
        ...


class Vocabulary:
    """A known vocabulary of V ids.

    `spelling[i]` is the bytes of id i, b"" for special tokens (they add no text), None for ids that mean nothing (holes
    and padding). `special` maps the special ids to how they are written; `end_ids` are those that end a text, some of
    which may be ordinary words as well. `added`: the ids of ordinary words that are cut out of a text before anything
    else, `lonely` those that do not count beside a letter; `recut` makes an `encode` that does not know some of them.
    `digest` names the files that the tokenizer is from.
    """

    def __init__(
        self,
        spelling: Sequence[bytes | None] | Table,
        *,
        special: Mapping[int, str],
        end_ids: Iterable[int],
        encode: Encode,
        pretokens: Callable[[str], list[int]],
        render: Callable[[Any, Rendering], list[int]],
        added: Mapping[int, str] | None = None,
        lonely: Collection[int] = (),
        recut: Callable[[Collection[int]], Encode] | None = None,
        digest: str | None = None,
    ) -> None:
        self._table = spelling if isinstance(spelling, Table) else Table(spelling)
        self.special = dict(special)
        self.end_ids = frozenset(end_ids)
        self.added = dict(added or {})
        self.digest = digest
        self._encode = encode
        self._pretokens = pretokens
        self._render = render
        self._lonely = frozenset(lonely)
        self._recut = recut
        self._unknown: frozenset[int] = frozenset()
        self._prepare()

    def _prepare(self) -> None:
        """Everything that depends on the table, the ends and the added words."""
        self.spelling = self._table.spelling
        self._first: Memo[bytes, bytes] = Memo(_FIRST_TOKENS)
        self._tokens: dict[int, Token] = {}  # of this vocabulary's own ids, so it cannot grow beyond them
        lonely = [word for index, word in self.added.items() if index in self._lonely]
        self._words = AddedWords(self.added.values(), lonely)
        ordinary = [i for i in self.end_ids if i < len(self.spelling) and self.spelling[i]]
        self._ending_words: Ids | None = np.array(sorted(ordinary), dtype=np.int64) if ordinary else None

    def __len__(self) -> int:
        return len(self.spelling)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids, {self.fingerprint[:12]})"

    # -- the same with something changed --------------------------------------------------------------------------

    def without(self, ids: Collection[int]) -> Vocabulary:
        """The same, but that these added words mean nothing: text is not cut into them any more."""
        if not ids:
            return self
        if self._recut is None or not all(index in self.added for index in ids):
            raise ValueError("only added words can be left out")
        other = copy.copy(self)
        other._unknown = self._unknown.union(ids)
        spelling = [None if index in other._unknown else text for index, text in enumerate(self.spelling)]
        other._table = Table(spelling, self._table.rare)
        other.added = {index: word for index, word in self.added.items() if index not in other._unknown}
        other._encode = self._recut(other._unknown)
        other.digest = None
        other._prepare()
        return other

    def resized(self, size: int, end_ids: Iterable[int]) -> Vocabulary:
        """The same with so many ids (those added mean nothing but the end, where they are ends) and these ends."""
        other = copy.copy(self)
        other.end_ids = frozenset(end_ids)
        more = [b"" if index in other.end_ids else None for index in range(len(self), size)]
        if more:
            other._table = Table([*self.spelling, *more], self._table.rare)
        other._prepare()
        return other

    def prompted_as(self, other: Vocabulary) -> Vocabulary:
        """The same, but that prompts are rendered as `other` renders them."""
        mixed = copy.copy(self)
        mixed._render = other._render
        return mixed

    # -- id <-> bytes ---------------------------------------------------------------------------------------------

    def token(self, spelling: bytes) -> Token:
        return Token(id=self._table.by_bytes.get(spelling), bytes=spelling, text=spelling.decode("utf-8", "replace"))

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
        return self._table.by_bytes.get(spelling)

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """How each special token is written -> its id."""
        return {text: index for index, text in self.special.items()}

    def beginning_with(self, prefix: bytes) -> Ids:
        """The ids of all tokens whose bytes begin with `prefix`, but for those that end a text: one range of the
        vocabulary in byte order.
        """
        low, high = range_of(self._table.in_order, prefix)
        ids = self._table.order[low:high]
        return ids if self._ending_words is None else ids[~np.isin(ids, self._ending_words)]

    @property
    def longest(self) -> int:
        """Length in bytes of the longest token."""
        return self._table.longest

    @property
    def fingerprint(self) -> str:
        """A digest of id -> bytes over the ordinary tokens: equal exactly where two vocabularies spell alike."""
        return self._table.fingerprint

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
        pre-tokenizer, and between two letters with one). Added words go before both: they are cut out first, so a place
        behind one is safe, and none is where one has begun.
        """
        text = text[: utf8_prefix(text)]
        if not text:
            return 0
        whole = text.decode("utf-8")
        start, end = self._words.open_part(whole) if self.added else (0, len(whole))
        if end - start == len(whole) and not self._lonely:
            return self._boundary(text, whole)
        part = whole[start:end]
        before = len(whole[:start].encode("utf-8"))
        place = before + (self._boundary(part.encode("utf-8"), part) if part else 0)
        for found in (place, before):
            if not self._words.cannot_begin(whole, len(text[:found].decode("utf-8"))):
                return found
        return 0

    def _boundary(self, text: bytes, whole: str) -> int:
        """`boundary` of a text that the added words leave alone."""
        start = self._last_final_piece(text, self._pretokens(whole))
        place = len(text)
        for before, after in zip(whole[-2::-1], whole[:0:-1], strict=True):
            place -= len(after.encode("utf-8"))
            if place <= start:
                break
            as_before = not self._splits or (before.isalpha() and after.isalpha())
            if as_before and not self._table.joined[text[place - 1], text[place]]:
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

    def joins(self, before: int, after: int) -> bool:
        """Whether some token contains these two bytes in a row."""
        return bool(self._table.joined[before, after])

    @cached_property
    def _splits(self) -> bool:
        """Whether there is a pre-tokenizer that cuts text into pieces."""
        return len(self._pretokens("two words\n2")) > 1

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
        longest = self._table.sorted.longest(text) or b""
        return max(token, longest, key=len) or text[:1]

    def extensions(self, text: bytes) -> list[bytes]:
        return self._table.sorted.extensions(text)

    def following(self, text: bytes) -> frozenset[bytes]:
        return self._table.sorted.following(text)

    # -- two vocabularies -----------------------------------------------------------------------------------------

    def on_the_way_to(self, base: Vocabulary) -> frozenset[bytes]:
        """The texts that this tokenizer has written when it is about to go on with a token of `base`.

        Seconds for a large vocabulary; kept in the user's cache where it is known which files this one is from.
        """
        key = None if self.digest is None else digest([self.digest, *map(str, sorted(self._unknown)), base.fingerprint])
        return kept(key, _texts, lambda: self._find_on_the_way(base), _arrays)

    def _find_on_the_way(self, base: Vocabulary) -> frozenset[bytes]:
        whole = [text for text in {*base.spelling} if text and utf8_prefix(text) == len(text)]
        found = set()
        for ids in self.encode(whole):
            written = b""
            for index in ids[:-1]:
                written += self.spelling[index] or b""
                found.add(written)
        return frozenset(found)


def _texts(arrays: Arrays) -> frozenset[bytes]:
    return frozenset(text for text in split(arrays["bytes"], arrays["lengths"]) if text is not None)


def _arrays(texts: Collection[bytes]) -> Arrays:
    everything, lengths = joined_up(sorted(texts))
    return {"bytes": everything, "lengths": lengths}


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

    def __iter__(self) -> Iterator[Token]:
        return map(self.vocabulary.token_of, self.ids.tolist())


class LearnedVocabulary:
    """The tokens of a base whose tokenizer is unknown, as far as its candidate lists have shown them (a `Cutter`).

    Cuts by longest match over the tokens seen; text that begins with none of them is taken whole, as one token.
    """

    def __init__(self, spellings: Iterable[bytes] = ()) -> None:
        self._sorted = Sorted(spelling for spelling in spellings if spelling)

    def with_more(self, spellings: Iterable[bytes]) -> LearnedVocabulary:
        """This with further tokens; itself where it knows them all."""
        keys = self._sorted.keys
        new = {text for text in spellings if text and not _among(keys, text)}
        if not new:
            return self
        return LearnedVocabulary([*keys, *new])

    def first(self, texts: Sequence[bytes]) -> list[bytes]:
        return [self._sorted.longest(text) or text for text in texts]

    def extensions(self, text: bytes) -> list[bytes]:
        return self._sorted.extensions(text)

    def following(self, text: bytes) -> frozenset[bytes]:
        return self._sorted.following(text)

    def token(self, spelling: bytes) -> Token:
        return Token(bytes=spelling, text=spelling.decode("utf-8", "replace"))


def _among(keys: Sequence[bytes], key: bytes) -> bool:
    """Whether `key` is one of the sorted keys."""
    place = bisect_left(keys, key)
    return place < len(keys) and keys[place] == key
