"""Keys of callers: only their hashes are kept, in a file of `name = "sha256:…"` lines (TOML).

    new_key("alice", path) -> "bbp-…"        shown once, nowhere kept
    Keys.read(path).caller("bbp-…") -> "alice"

A key has 256 random bits, so that a plain hash cannot be searched back.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.errors import InputError
from blackbox_proxy.text.reading import own_text

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
OPEN = ("/health", "/ready", "/", "/page.css", "/page.js")  # for who looks after the server, and the bare page


class Keys:
    """Hashes of keys, by the caller's name."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Raises InputError where the file cannot be read or holds something else."""
        try:
            found = tomllib.loads(own_text(path))
        except (InputError, ValueError) as error:
            raise InputError(f"the keys in {path} cannot be read: {error}", hint="`key` makes such a file.") from error
        for name, value in found.items():
            if not (_NAME.fullmatch(name) and isinstance(value, str) and _HASH.fullmatch(value)):
                raise InputError(
                    f"{path} holds something that is no hashed key: {name!r}",
                    hint='Its lines look like alice = "sha256:…"; never write a key itself into it.',
                )
        return cls(found)

    def caller(self, key: str) -> str | None:
        """Whose key this is; every hash is compared, so that the time tells nothing."""
        given, whose = hashed(key), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(given, known):
                whose = name
        return whose


def hashed(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def new_key(name: str, path: Path) -> str:
    """A new key for a caller, whose hash is added to the file. Raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a caller", hint="Letters, digits, - and _; at most 64.")
    if path.exists() and Keys.read(path)._hashes.get(name):
        raise InputError(f"{path} has a key of {name} already", hint="Take its line out, or choose another name.")
    key = f"bbp-{secrets.token_urlsafe(32)}"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(f'{name} = "{hashed(key)}"\n')
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", hint="Choose another file.") from error
    return key


class KeyCheck:
    """Middleware: refuses requests without a known key, and says whose it was in the request's state (`caller`)."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            caller = self._keys.caller(key.strip()) if kind.lower() == "bearer" else None
            if caller is None:
                error = ApiError("Incorrect API key provided.", status=401, code="invalid_api_key")
                await JSONResponse(error.body, error.status)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)
