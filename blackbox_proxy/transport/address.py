"""Where a server is, and what is secret in its URL."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from blackbox_proxy.secrets import basic, keep_secrets_of

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """A base URL taken apart. bare: scheme, host, port and path; query: its fields; basic: the Basic header that its
    user and password ask for, None without them. What is secret in it is known as such from here on.
    """

    bare: str
    query: tuple[tuple[str, str], ...]
    basic: str | None


def address_of(base_url: str) -> Address:
    parts = urlsplit(base_url.strip())
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    query = tuple(parse_qsl(parts.query, keep_blank_values=True))
    for name, value in query:
        keep_secrets_of({name: value})
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Address(bare, query, basic(user, password) if user or password else None)


def shown_url(url: str) -> str:
    """A URL without what may be secret in it: user, password, query."""
    bare = url.partition("?")[0].partition("#")[0]
    start = bare.find("//") + 2 if "//" in bare else 0
    host, slash, path = bare[start:].partition("/")
    return bare[:start] + host.rpartition("@")[2] + slash + path


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what a key may be sent to. Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme.lower(), (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme.lower())
