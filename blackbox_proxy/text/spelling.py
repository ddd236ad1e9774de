"""Where a `Vocabulary` comes from: a Hugging Face tokenizer (tokenizer.json) or a tiktoken encoding.

What has to be found out of each: the bytes of every id, which ids are special and which end a text, where its
pre-tokenizer cuts, how a prompt is rendered, and how text is cut *in the middle of a text*, with nothing prepended
and nothing normalised away.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from blackbox_proxy.errors import InputError, ModelUnavailable
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Prompt, Rendering

if TYPE_CHECKING:
    import tiktoken
    from transformers import PreTrainedTokenizerBase


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


def from_pretrained(name: str, *, trust_remote_code: bool = False) -> Vocabulary:
    """The vocabulary of a Hugging Face folder or hub id. Raises ModelUnavailable."""
    return from_tokenizer(load_tokenizer(name, trust_remote_code=trust_remote_code))


def from_tiktoken(encoding: str | tiktoken.Encoding) -> Vocabulary:
    """The vocabulary of a tiktoken encoding or its name, e.g. "cl100k_base". Raises ModelUnavailable."""
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


def from_tokenizer(tokenizer: PreTrainedTokenizerBase, *, end_ids: Iterable[int] = ()) -> Vocabulary:
    """The vocabulary of a fast Hugging Face tokenizer; `end_ids` are added to those that the tokenizer itself names.

    Raises ModelUnavailable if the tokenizer is slow, or changes text so that its tokens do not spell it back.
    """
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
