"""What a fast Hugging Face tokenizer is made of: the bytes of its pieces, its added words, and how it cuts text *in the
middle of a text*, with nothing prepended and nothing normalised away.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any

from blackbox_proxy.errors import InputError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

Encode = Callable[[list[str]], list[list[int]]]


class Pieces:
    """A tokenizer's parts. `special` and `added` map ids to how those words are written (added ones are ordinary text);
    `lonely`: the ids of those added words that count only where no letter or digit stands beside them.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._parts = _without_pieces(backend)
        words: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        self._words = [words[index] for index in sorted(words)]
        self.special = {int(i): str(word.content) for i, word in words.items() if word.special}
        in_text = {int(i): word for i, word in words.items() if not word.special}
        normal = any(_is_metaspace(node) for node in _nodes(self._parts["normalizer"]))
        self.added = {
            i: word.content.replace("▁", " ") if normal and word.normalized else str(word.content)
            for i, word in in_text.items()
        }
        self.lonely = frozenset(i for i, word in in_text.items() if word.single_word)

    def spelled(self) -> tuple[list[bytes | None], list[int]]:
        """The bytes of every id, and the ids of the pieces that stand for a single byte that nothing else spells."""
        pieces = self._backend.get_vocab(with_added_tokens=True)
        spell = _speller(self._parts, self._byte_fallback())
        spelling: list[bytes | None] = [None] * (max([*pieces.values(), *self.special, *self.added], default=-1) + 1)
        fallback = []
        for piece, index in pieces.items():
            spelling[index] = spell(piece)
            if _byte_of(piece) is not None:
                fallback.append(index)
        for index, word in self.added.items():
            spelling[index] = word.encode()
        for index in self.special:
            spelling[index] = b""
        return spelling, fallback

    def _byte_fallback(self) -> bool:
        found = getattr(self._backend.model, "byte_fallback", None)
        if found is None:  # only the BPE model tells; the others are asked for their whole description
            found = json.loads(self._backend.to_str())["model"].get("byte_fallback")
        return bool(found)

    def encode(self, without: Collection[int] = ()) -> Encode:
        """Cuts texts as continuations. The added words `without` are not recognised, as special ones are not."""
        from tokenizers import Tokenizer

        continuing = Tokenizer.from_str(json.dumps(_continuing(self._parts)))
        continuing.model = self._backend.model  # shared: a second copy of the pieces would take longer than all else
        ignored = {self.added[index] for index in without if index in self.added}
        continuing.add_tokens([_in_text(word, ignored) for word in self._words])
        continuing.encode_special_tokens = True
        shifted = {continuing.token_to_id(word): index for index, word in self.added.items()}
        shifted = {found: index for found, index in shifted.items() if found is not None and found != index}

        def encode(texts: list[str]) -> list[list[int]]:
            try:
                if len(texts) == 1:
                    found = [continuing.encode(texts[0], add_special_tokens=False).ids]
                else:
                    found = [one.ids for one in continuing.encode_batch_fast(texts, add_special_tokens=False)]
            except BaseException as error:
                name_panic(error)
                raise
            return [[shifted.get(i, i) for i in ids] for ids in found] if shifted else found

        return encode

    def pretokens(self, text: str) -> list[int]:
        """Where the pre-tokenizer starts a piece, in bytes."""
        splitter = self._splitter
        if splitter is None or not text:
            return [0] if text else []
        try:
            return byte_starts(text, [start for _, (start, _) in splitter.pre_tokenize_str(text)])
        except BaseException as error:
            name_panic(error)
            raise

    @cached_property
    def _splitter(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(json.dumps(_continuing(self._parts))).pre_tokenizer


def name_panic(error: BaseException) -> None:
    """Raise InputError for a panic inside the tokenizers library, which is no Exception: a pattern that gives up."""
    if type(error).__name__ == "PanicException":
        raise InputError(
            f"the tokenizer's own pattern fails on this text: {' '.join(str(error).split())[:200]}",
            hint="The pattern in its tokenizer.json takes too long. Take the model's original tokenizer.",
        ) from error


def byte_starts(text: str, starts: list[int]) -> list[int]:
    """Character offsets -> byte offsets in UTF-8."""
    if text.isascii():
        return starts
    result, done, offset = [], 0, 0
    for start in starts:
        offset += len(text[done:start].encode("utf-8"))
        done = start
        result.append(offset)
    return result


def _without_pieces(backend: Tokenizer) -> dict[str, Any]:
    """The description of a tokenizer (tokenizer.json) with no pieces and no added words: quickly read and written."""
    from tokenizers import Tokenizer, models

    bare = Tokenizer(models.BPE())
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(backend, part) is not None:
            setattr(bare, part, getattr(backend, part))
    description: dict[str, Any] = json.loads(bare.to_str())
    return description


def _in_text(word: AddedToken, ignored: Collection[str]) -> AddedToken:
    """An added word as it is matched in the middle of a text: it takes no white space with it."""
    from tokenizers import AddedToken

    return AddedToken(
        word.content,
        single_word=word.single_word,
        normalized=word.normalized,
        special=word.special or word.content in ignored,
    )


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


def _speller(description: dict[str, Any], byte_fallback: bool) -> Callable[[str], bytes]:
    """How the pieces of this tokenizer.json are turned into bytes."""
    everything = [*_nodes(description["pre_tokenizer"]), *_nodes(description["decoder"])]
    if any(node["type"] == "ByteLevel" for node in everything):
        return _spell_byte_level
    metaspace = any(node["type"] == "Metaspace" for node in everything) or any(
        _is_metaspace(node) for node in _nodes(description["normalizer"])
    )

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


def _byte_level_alphabet() -> dict[int, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable ones are themselves, the others follow at 256.

    What stands for no byte is no letter here; it maps beyond Latin-1, whose letters are the bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    free = dict.fromkeys(others, 256)
    return free | {byte: byte for byte in printable} | {256 + n: byte for n, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def byte_level(piece: str) -> bytes | None:
    """The bytes that a piece of GPT-2's letters stands for; None where it holds anything else."""
    try:
        return piece.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return None


def _spell_byte_level(piece: str) -> bytes:
    spelled = byte_level(piece)
    return piece.encode("utf-8") if spelled is None else spelled  # added words are written as they are
