"""A model's spelling: id <-> bytes, its end ids, and how it cuts text into tokens.

`Vocabulary` is made from a Hugging Face tokenizer or a tiktoken encoding. `LearnedVocabulary` stands in for a base
whose tokenizer is unknown: it knows the tokens seen so far in candidate lists. Both answer the one question alignment
asks of a base: *which token comes first when this text is cut?* Nothing here imports torch, and transformers and
tiktoken only when a vocabulary is loaded from them.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, overload

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.errors import InputError, ModelUnavailable
from blackbox_proxy.types import Prompt, Rendering, Token

if TYPE_CHECKING:
    import tiktoken
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int64]
_APOSTROPHES = ("'", "’")
_MEMO_LIMIT = 500_000


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
        self._first: dict[bytes, bytes] = {}
        self._tokens: dict[int, Token] = {}
        self._less_preferred = frozenset(less_preferred)

    def __len__(self) -> int:
        return len(self.spelling)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids, {self.fingerprint[:12]})"

    @classmethod
    def from_pretrained(cls, name: str, *, trust_remote_code: bool = False) -> Vocabulary:
        """The vocabulary of a Hugging Face folder or hub id. Raises ModelUnavailable."""
        return cls.from_tokenizer(load_tokenizer(name, trust_remote_code=trust_remote_code))

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, *, end_ids: Iterable[int] = ()) -> Vocabulary:
        """From a fast Hugging Face tokenizer; `end_ids` are added to those that the tokenizer itself names.

        Raises ModelUnavailable if the tokenizer is slow, or changes text so that its tokens do not spell it back.
        """
        return _from_tokenizer(tokenizer, end_ids)

    @classmethod
    def from_tiktoken(cls, encoding: str | tiktoken.Encoding) -> Vocabulary:
        """From a tiktoken encoding or its name, e.g. "cl100k_base". Raises ModelUnavailable."""
        return _from_tiktoken(encoding)

    # -- id <-> bytes ---------------------------------------------------------------------------------------------

    def token(self, spelling: bytes) -> Token:
        return Token(id=self._by_bytes.get(spelling), bytes=spelling, text=spelling.decode("utf-8", "replace"))

    def token_of(self, index: int) -> Token:
        """The token of an id. An id outside the vocabulary, or a hole, is a token without bytes."""
        found = self._tokens.get(index)
        if found is None:
            spelling = self.spelling[index] if 0 <= index < len(self.spelling) else None
            text = self.special.get(index) or (spelling or b"").decode("utf-8", "replace")
            found = self._tokens[index] = Token(id=index, bytes=spelling, text=text, end=index in self.end_ids)
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
        missing = list(dict.fromkeys(text for text in texts if text not in self._first))
        if missing:
            if len(self._first) > _MEMO_LIMIT:
                self._first.clear()
                missing = list(dict.fromkeys(texts))
            whole = [utf8_prefix(text) for text in missing]
            cut = self._encode([text[:end].decode("utf-8") for text, end in zip(missing, whole, strict=True)])
            for text, end, ids in zip(missing, whole, cut, strict=True):
                self._first[text] = self._first_of(text, end, ids)
        return [self._first[text] for text in texts]

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


# -- loading ------------------------------------------------------------------------------------------------------


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A Hugging Face tokenizer from a folder or hub id. Raises ModelUnavailable with what to do about it."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError … for one and the same cause
        raise ModelUnavailable(
            f"no tokenizer could be loaded from {name!r}: {_first_line(error)}",
            hint="Give a folder with tokenizer.json (as saved by save_pretrained), or a Hugging Face hub id.",
        ) from error
    return tokenizer


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _from_tiktoken(encoding: str | tiktoken.Encoding) -> Vocabulary:
    import tiktoken

    if isinstance(encoding, str):
        try:
            encoding = tiktoken.get_encoding(encoding)
        except ValueError as error:
            known = ", ".join(tiktoken.list_encoding_names())
            raise ModelUnavailable(f"tiktoken knows no encoding {encoding!r}", hint=f"It knows: {known}.") from error
        except Exception as error:  # requests' errors: the BPE file is downloaded on first use
            raise ModelUnavailable(
                f"the BPE file of {encoding!r} could not be downloaded: {_first_line(error)}",
                hint="Connect once, or set TIKTOKEN_CACHE_DIR to a folder that holds the file.",
            ) from error
    special = {index: text for text, index in encoding._special_tokens.items()}
    spelling: list[bytes | None] = [None] * encoding.n_vocab
    for index in range(encoding.n_vocab):
        try:
            spelling[index] = b"" if index in special else encoding.decode_single_token_bytes(index)
        except KeyError:  # cl100k_base has gaps
            continue
    compiled = _compiled(encoding._pat_str)

    def pretokens(text: str) -> list[int]:
        return _byte_starts(text, [match.start() for match in compiled.finditer(text)])

    def render(prompt: Prompt, rendering: Rendering) -> list[int]:
        return encoding.encode(as_text(prompt, rendering, chat=None), allowed_special="all")

    return Vocabulary(
        spelling,
        special=special,
        end_ids=[encoding.eot_token],
        # tiktoken's own batch method starts a thread pool per call, which costs more than these short strings do.
        encode=lambda texts: [encoding.encode_ordinary(text) for text in texts],
        pretokens=pretokens,
        render=render,
    )


def _compiled(pattern: str) -> Any:
    import regex

    return regex.compile(pattern)


def _byte_starts(text: str, starts: Sequence[int]) -> list[int]:
    """Character offsets -> byte offsets in UTF-8."""
    if text.isascii():
        return list(starts)
    result, done, offset = [], 0, 0
    for start in starts:
        offset += len(text[done:start].encode("utf-8"))
        done = start
        result.append(offset)
    return result


def as_text(prompt: Any, rendering: Rendering, chat: Callable[[list[Any]], str] | None) -> str:
    """A prompt of text or messages as one text; `chat` is the model's template, None where it has none. InputError."""
    if callable(rendering):
        return rendering(prompt)
    if rendering == "chat":
        if chat is None:
            raise InputError(
                "this model has no chat template",
                hint='Render its prompt as "raw", or give a function from the prompt to text.',
            )
        return chat([{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt))
    if rendering != "raw":
        raise InputError(f"unknown rendering {rendering!r}", hint='Use "raw", "chat" or a function.')
    return prompt if isinstance(prompt, str) else "\n\n".join(str(message["content"]) for message in prompt)


def _from_tokenizer(tokenizer: Any, end_ids: Iterable[int]) -> Vocabulary:
    if not getattr(tokenizer, "is_fast", False):
        raise ModelUnavailable(
            "this model has only a slow (pure Python) tokenizer",
            hint="Save it once as tokenizer.json with transformers' AutoTokenizer, and load that folder.",
        )
    from tokenizers import Tokenizer

    description = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {int(a["id"]): str(a["content"]) for a in description["added_tokens"] if a["special"]}
    continuing = Tokenizer.from_str(json.dumps(_continuing(description)))
    continuing.encode_special_tokens = True
    spell = _speller(description)
    pieces = continuing.get_vocab(with_added_tokens=True)
    added = {int(a["id"]): str(a["content"]).encode() for a in description["added_tokens"] if not a["special"]}
    spelling: list[bytes | None] = [None] * (max([*pieces.values(), *special, *added], default=-1) + 1)
    fallback = []
    for piece, index in pieces.items():
        spelling[index] = b"" if index in special else added[index] if index in added else spell(piece)
        if _byte_of(piece) is not None:
            fallback.append(index)
    for index in special:
        spelling[index] = b""
    if tokenizer.unk_token_id is not None:
        spelling[tokenizer.unk_token_id] = b""
        special.setdefault(tokenizer.unk_token_id, str(tokenizer.unk_token))

    def encode(texts: list[str]) -> list[list[int]]:
        if len(texts) == 1:
            return [continuing.encode(texts[0], add_special_tokens=False).ids]
        return [found.ids for found in continuing.encode_batch_fast(texts, add_special_tokens=False)]

    splitter = continuing.pre_tokenizer

    def pretokens(text: str) -> list[int]:
        if splitter is None or not text:
            return [0] if text else []
        return _byte_starts(text, [start for _, (start, _) in splitter.pre_tokenize_str(text)])

    def chat(messages: list[Any]) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def render(prompt: Prompt, rendering: Rendering) -> list[int]:
        text = as_text(prompt, rendering, chat if tokenizer.chat_template else None)
        # A chat template writes its own special tokens; so may a callable, and then no second BOS is wanted.
        bare = rendering == "chat" or bool(tokenizer.bos_token and text.startswith(str(tokenizer.bos_token)))
        return [int(index) for index in tokenizer(text, add_special_tokens=not bare)["input_ids"]]

    ends = {int(index) for index in end_ids} | _own_ends(tokenizer)
    for index in ends:
        if index < len(spelling):
            spelling[index] = b""
            special.setdefault(index, str(tokenizer.convert_ids_to_tokens(index)))
    vocabulary = Vocabulary(
        spelling,
        special=special,
        end_ids=ends,
        encode=encode,
        pretokens=pretokens,
        render=render,
        less_preferred=fallback,
    )
    _check_spelling(vocabulary, str(getattr(tokenizer, "name_or_path", "")))
    return vocabulary


_PROBES = ["Hello world", " a  b\n\n\tc", "Zürich’s 2023: 3.14%", "日本語 text", "👍🏽 ok", "שלום"]


def _check_spelling(vocabulary: Vocabulary, name: str) -> None:
    for probe, ids in zip(_PROBES, vocabulary._encode(_PROBES), strict=True):
        if any(index in vocabulary.special for index in ids):
            continue  # a character this vocabulary has no way to write
        spelled = b"".join(vocabulary.spelling[index] or b"" for index in ids)
        if spelled != probe.encode("utf-8"):
            raise ModelUnavailable(
                f"the tokenizer of {name or 'this model'} does not spell text back: {probe!r} becomes {spelled!r}",
                hint="Tokenizers that change text (lower case, stripped accents) cannot be aligned byte by byte.",
            )


def _own_ends(tokenizer: Any) -> set[int]:
    """The tokenizer's end token, and the one its chat template writes after an answer."""
    ends = {tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set()
    if tokenizer.chat_template:
        marker = "\ue000answer\ue000"
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
        try:
            after = str(tokenizer.apply_chat_template(messages, tokenize=False)).partition(marker)[2]
        except Exception:  # templates raise whatever their author liked; then only eos_token ends a text
            after = ""
        written = {str(a): i for i, a in tokenizer.added_tokens_decoder.items() if getattr(a, "special", False)}
        places = [(after.find(text), index) for text, index in written.items() if text in after]
        if places:
            ends.add(min(places)[1])
    return ends


def _nodes(description: Any) -> list[dict[str, Any]]:
    """A component of tokenizer.json and everything inside it."""
    if not isinstance(description, dict):
        return []
    inner = [child for key in ("pretokenizers", "normalizers", "decoders") for child in description.get(key, [])]
    return [description, *(node for child in inner for node in _nodes(child))]


def _continuing(description: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer for text in the middle of a text: it prepends nothing and normalises nothing away."""
    changed = dict(description, post_processor=None, truncation=None, padding=None)
    keep = [node for node in _nodes(description["normalizer"]) if node["type"] == "Replace" and _is_metaspace(node)]
    changed["normalizer"] = {"type": "Sequence", "normalizers": keep} if keep else None
    splitter = json.loads(json.dumps(description["pre_tokenizer"]))
    for node in _nodes(splitter):
        if node["type"] == "ByteLevel":
            node["add_prefix_space"] = False
        elif node["type"] == "Metaspace":
            node["prepend_scheme"] = "never"
    changed["pre_tokenizer"] = splitter
    return changed


def _is_metaspace(node: dict[str, Any]) -> bool:
    return node.get("content") == "▁" and node.get("pattern") == {"String": " "}


def _speller(description: dict[str, Any]) -> Callable[[str], bytes]:
    """How the pieces of this tokenizer.json are turned into bytes."""
    everything = [*_nodes(description["pre_tokenizer"]), *_nodes(description["decoder"])]
    if any(node["type"] == "ByteLevel" for node in everything):
        return _spell_byte_level
    metaspace = any(node["type"] == "Metaspace" for node in everything) or any(
        _is_metaspace(node) for node in _nodes(description["normalizer"])
    )
    byte_fallback = bool(description["model"].get("byte_fallback"))

    def spell(piece: str) -> bytes:
        byte = _byte_of(piece) if byte_fallback else None
        if byte is not None:
            return byte
        return (piece.replace("▁", " ") if metaspace else piece).encode("utf-8")

    return spell


def _byte_of(piece: str) -> bytes | None:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return None


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable ones are themselves, the others follow at 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _spell_byte_level(piece: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in piece)
    except KeyError:  # added words are written as they are
        return piece.encode("utf-8")
