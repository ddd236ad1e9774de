"""Where a `Vocabulary` comes from: a Hugging Face tokenizer (tokenizer.json) or a tiktoken encoding.

What has to be found out of each: the bytes of every id and how text is cut in the middle of a text (pieces.py), which
ids are special and which end a text, and how a prompt is rendered (rendering.py).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from blackbox_proxy.errors import ModelUnavailable
from blackbox_proxy.text.kept import digest as digest_of
from blackbox_proxy.text.kept import kept
from blackbox_proxy.text.pieces import Pieces, byte_starts, name_panic
from blackbox_proxy.text.prompts import as_text
from blackbox_proxy.text.rendering import Renderer
from blackbox_proxy.text.table import Table
from blackbox_proxy.text.vocabulary import Encode, Vocabulary
from blackbox_proxy.types import Prompt, Rendering

if TYPE_CHECKING:
    import tiktoken
    from transformers import PreTrainedTokenizerBase


_FILES = ("tokenizer", "special_tokens_map", "added_tokens", "chat_template", "vocab", "merges", "spiece", "tekken")


def vocabulary_of(tokenizer: str | os.PathLike[str] | Vocabulary | None) -> Vocabulary | None:
    """Of a tiktoken encoding, a folder or hub id, or as it is given. Raises ModelUnavailable."""
    if tokenizer is None or isinstance(tokenizer, Vocabulary):
        return tokenizer
    name = os.fspath(tokenizer)
    if not os.path.isdir(name):
        import tiktoken

        if name in tiktoken.list_encoding_names():
            return from_tiktoken(name)
    return from_pretrained(name)


def load_tokenizer(name: str, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedTokenizerBase:
    """A Hugging Face tokenizer from a folder or hub id. options: of `from_pretrained`. Raises ModelUnavailable."""
    from transformers import AutoTokenizer

    hint = "Give a folder with tokenizer.json (as saved by save_pretrained), or a Hugging Face hub id."
    files = list(Path(name).iterdir()) if not options and Path(name).is_dir() else None
    if files is not None and not any(file.name.startswith(_FILES) or file.suffix == ".model" for file in files):
        raise ModelUnavailable(f"there is no tokenizer in {name!r}: no tokenizer.json, nor any older kind", hint=hint)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, **options
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError … for one and the same cause
        raise ModelUnavailable(f"no tokenizer could be loaded from {name!r}: {reason(error)}", hint=hint) from error
    except BaseException as error:
        name_panic(error)
        raise
    return tokenizer


def reason(error: BaseException) -> str:
    """What an exception of another library says, on one line and whole."""
    return " ".join(str(error).split()) or type(error).__name__


def from_pretrained(name: str, *, end_ids: Iterable[int] = (), trust_remote_code: bool = False) -> Vocabulary:
    """The vocabulary of a Hugging Face folder or hub id; `end_ids` as for `from_tokenizer`. Raises ModelUnavailable.

    Folders with the same tokenizer files share one vocabulary while it is in use.
    """
    ends = frozenset(end_ids)
    digest = None if trust_remote_code else files_digest(Path(name))
    found = _IN_USE.get((digest, ends))
    if found is not None and digest is not None:
        return found
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    if digest is None and not trust_remote_code:
        digest = files_digest(hub_folder(name))
    found = from_tokenizer(tokenizer, end_ids=ends, digest=digest)
    return _IN_USE.setdefault((digest, ends), found) if digest is not None else found


_IN_USE: WeakValueDictionary[tuple[str | None, frozenset[int]], Vocabulary] = WeakValueDictionary()


def files_digest(folder: Path | None) -> str | None:
    """A digest of the files that make a folder's tokenizer; None where there are none."""
    if folder is None or not folder.is_dir():
        return None
    files = [file for file in sorted(folder.iterdir()) if file.name.startswith(_FILES) and file.is_file()]
    files += sorted(file for file in folder.glob("additional_chat_templates/*") if file.is_file())
    if not files:
        return None
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "tokenizers")]
    try:
        kind = str(json.loads((folder / "config.json").read_bytes()).get("model_type"))
    except (OSError, ValueError, AttributeError):
        kind = ""  # a tokenizer may lie there without a model
    return digest_of([*versions, kind, *(part for file in files for part in (file.name, file.read_bytes()))])


def hub_folder(name: str) -> Path | None:
    """Where the files of a hub id lie on this machine."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "tokenizer.json")
    except ValueError:  # not a hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def from_tiktoken(encoding: str | tiktoken.Encoding) -> Vocabulary:
    """The vocabulary of a tiktoken encoding or its name, e.g. "cl100k_base". Raises ModelUnavailable."""
    import regex
    import tiktoken

    if isinstance(encoding, str):
        try:
            encoding = tiktoken.get_encoding(encoding)
        except ValueError as error:
            known = ", ".join(tiktoken.list_encoding_names())
            raise ModelUnavailable(f"tiktoken knows no encoding {encoding!r}", hint=f"It knows: {known}.") from error
        except Exception as error:  # requests' errors: the BPE file is downloaded on first use
            raise ModelUnavailable(
                f"the BPE file of {encoding!r} could not be downloaded: {reason(error)}",
                hint="Connect once, or set TIKTOKEN_CACHE_DIR to a folder that holds the file.",
            ) from error
    special = {index: text for text, index in encoding._special_tokens.items()}
    spelling: list[bytes | None] = [None] * encoding.n_vocab
    for index in range(encoding.n_vocab):
        try:
            spelling[index] = b"" if index in special else encoding.decode_single_token_bytes(index)
        except KeyError:  # cl100k_base has gaps
            continue
    compiled = regex.compile(encoding._pat_str)

    def pretokens(text: str) -> list[int]:
        return byte_starts(text, [match.start() for match in compiled.finditer(text)])

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


def from_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, end_ids: Iterable[int] = (), digest: str | None = None
) -> Vocabulary:
    """The vocabulary of a fast Hugging Face tokenizer; `end_ids` are added to those that the tokenizer itself names.

    `digest` names the files that it is from; what is slow is then kept (kept.py).
    Raises ModelUnavailable if the tokenizer is slow, or changes text so that its tokens do not spell it back.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelUnavailable(
            "this model has only a slow (pure Python) tokenizer",
            hint="Save it once as tokenizer.json with transformers' AutoTokenizer, and load that folder.",
        )
    pieces = Pieces(tokenizer.backend_tokenizer)
    special = dict(pieces.special)
    if tokenizer.unk_token_id is not None:
        special.setdefault(tokenizer.unk_token_id, str(tokenizer.unk_token))
    ends = {int(index) for index in end_ids} | _own_ends(tokenizer)
    table = kept(digest, Table.of, lambda: _table(pieces, special), lambda made: made.arrays)
    encode = pieces.encode()
    silent = _silent_ends(ends, table, special, pieces, encode)
    if silent:
        table = Table([b"" if i in silent else text for i, text in enumerate(table.spelling)], table.rare)
        encode = pieces.encode(silent)
        special |= {index: str(tokenizer.convert_ids_to_tokens(index)) for index in silent}
    vocabulary = Vocabulary(
        table,
        special=special,
        end_ids=ends,
        encode=encode,
        pretokens=pieces.pretokens,
        render=Renderer(tokenizer),
        added={index: word for index, word in pieces.added.items() if index not in silent},
        lonely=pieces.lonely,
        recut=lambda ids: pieces.encode({*silent, *ids}),
        digest=None if silent else digest,
    )
    _check_spelling(vocabulary, str(getattr(tokenizer, "name_or_path", "")))
    return vocabulary


def _table(pieces: Pieces, special: Iterable[int]) -> Table:
    spelling, fallback = pieces.spelled()
    for index in special:
        spelling[index] = b""
    return Table(spelling, fallback)


def _silent_ends(
    ends: Iterable[int], table: Table, special: Collection[int], pieces: Pieces, encode: Encode
) -> set[int]:
    """The ends that are no special tokens but stand for no text either.

    Added words that end a text do so only, and so do pieces that no text is cut into. An ordinary word ("\\n") that
    ends a text is still that word wherever it is read.
    """
    found = set()
    for index in ends:
        spelling = table.spelling[index] if index < len(table.spelling) else None
        if spelling and index not in special:
            text = spelling.decode("utf-8", "replace")
            if index in pieces.added or encode([text]) != [[index]]:
                found.add(index)
    return found


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
