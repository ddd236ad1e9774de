"""Taking what is secret out of what a server said, and out of exceptions that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def take_out(error: BaseException, secret: str) -> None:
    """Take the key out of an exception's texts, and out of those it came from."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while secret and left:
        link = left.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.args = tuple(without_secret(value, secret) for value in link.args)
        for name in ("message", "body", "doc", "object"):  # the last two hold what could not be read
            if hasattr(link, name):
                setattr(link, name, without_secret(getattr(link, name), secret))
        left += [link.__cause__, link.__context__]


def without_secret(value: Any, secret: str) -> Any:
    """JSON, or bytes, with the key taken out of all its texts."""
    if isinstance(value, str):
        return value.replace(secret, "[api key]")
    if isinstance(value, bytes):
        return value.replace(secret.encode(), b"[api key]")
    if isinstance(value, Mapping):
        return {without_secret(name, secret): without_secret(inner, secret) for name, inner in value.items()}
    return [without_secret(inner, secret) for inner in value] if isinstance(value, list) else value
