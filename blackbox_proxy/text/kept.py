"""What is slow to find out about a vocabulary, kept in files of the user's cache by digest: arrays, never pickled.

A file that is broken, old or not there is no error: what it would have held is found out again and written anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
from platformdirs import user_cache_path

from blackbox_proxy.text.table import Arrays

T = TypeVar("T")
_log = logging.getLogger(__name__)

VARIABLE = "BLACKBOX_PROXY_VOCABULARIES"
"""Environment variable: 0 keeps nothing, anything else but 1 is the folder for these files."""

_SCHEMA = b"1"  # changes with whatever the arrays mean
_FILES = 32  # the newest ones stay


def folder() -> Path | None:
    said = os.environ.get(VARIABLE, "")
    if said == "0":
        return None
    return Path(said) if said not in ("", "1") else user_cache_path("blackbox-proxy") / "vocabularies"


def digest(parts: Iterable[bytes | str]) -> str:
    """A digest of these parts and of their order."""
    found = hashlib.sha256(_SCHEMA)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(b"%d:" % len(data) + data)
    return found.hexdigest()


def kept(key: str | None, read: Callable[[Arrays], T], make: Callable[[], T], arrays: Callable[[T], Arrays]) -> T:
    """`make()`, or what `read` makes of the arrays that were kept of it under `key` (hexadecimal; None: none)."""
    home = folder()
    if key is None or home is None:
        return make()
    path = home / f"{key}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return read({name: found[name] for name in found.files})
    except FileNotFoundError:
        pass
    except Exception as error:  # numpy and zipfile raise whatever they come across in a broken file
        _log.info("%s is not used and written anew: %s", path, error)
    made = make()
    _write(path, arrays(made))
    return made


def _write(path: Path, arrays: Arrays) -> None:
    """Whole or not at all: another process may be reading or writing it."""
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".npz")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(name, path)
        name = None
        files = sorted(path.parent.glob("[0-9a-f]*.npz"), key=lambda one: one.stat().st_mtime)
        for old in files[:-_FILES]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _log.info("%s cannot be kept: %s", path, error)
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)
