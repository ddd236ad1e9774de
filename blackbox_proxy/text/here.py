"""Tokenizers of which all files lie on this machine: nothing is downloaded, and no code of a model's is run."""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from blackbox_proxy.errors import ModelUnavailable
from blackbox_proxy.text.spelling import from_pretrained, from_tiktoken, from_tokenizer, hub_folder, load_tokenizer
from blackbox_proxy.text.vocabulary import Vocabulary

_FILES = {
    "o200k_base": ("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    "o200k_harmony": ("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    "cl100k_base": ("cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
    "p50k_base": ("p50k_base", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"),
    "r50k_base": ("r50k_base", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
}
"""tiktoken's encodings: the name of the file, and its sha256. Of any other file tiktoken would download a new one."""


def tokenizer_here(name: str) -> Vocabulary | None:
    """The vocabulary of a folder, a hub id in the hub's cache, or a GGUF file; None where there is no such thing here.
    Raises ModelUnavailable where there is, and it cannot be used.
    """
    path = Path(name)
    try:
        if path.is_dir():
            return from_pretrained(name)
        if path.suffix == ".gguf" and path.is_file():
            return _from_gguf(path)
        folder = hub_folder(name)
        return None if folder is None else from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{name} cannot be read: {error}") from error


def _from_gguf(path: Path) -> Vocabulary:
    if find_spec("gguf") is None:
        raise ModelUnavailable(
            f"the vocabulary of {path} cannot be read: the package gguf is not installed", hint="pip install gguf"
        )
    return from_tokenizer(load_tokenizer(str(path.parent), gguf_file=path.name))


def encoding_of(model: str) -> str | None:
    """The name of the encoding of one of OpenAI's models, by tiktoken's table."""
    import tiktoken

    try:
        return tiktoken.encoding_name_for_model(model)
    except KeyError:
        return None


def encoding_here(name: str) -> Vocabulary | None:
    """The vocabulary of a tiktoken encoding of which the file is in tiktoken's cache; None where it is not."""
    if name not in _FILES:
        return None
    file, digest = _FILES[name]
    home = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = Path(tempfile.gettempdir()) / "data-gym-cache" if home is None else Path(home)
    url = f"https://openaipublic.blob.core.windows.net/encodings/{file}.tiktoken"
    try:
        content = (folder / hashlib.sha1(url.encode()).hexdigest()).read_bytes() if home != "" else b""
    except OSError:
        return None
    return from_tiktoken(name) if hashlib.sha256(content).hexdigest() == digest else None
