"""Which dialect a server speaks, and where exactly it is asked: pure functions over names and URLs.

Safe guesses only. A service is known by its host name; what runs behind any other URL says so in its list of models
(`by_models`, for who asks for that list), and without asking it is taken for a server that does what OpenAI's API does
and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from blackbox_proxy.dialects.table import ALIASES, DIALECTS, Dialect
from blackbox_proxy.errors import InputError

AUTO = "auto"
_PLAIN = "openai"


def dialect_of(name: str, url: str | None = None) -> Dialect:
    """The dialect of this name; for "auto", the one of the service at `url`, else the plain one. Raises InputError."""
    if name == AUTO:
        return (by_url(url) if url else None) or DIALECTS[_PLAIN]
    found = DIALECTS.get(ALIASES.get(name, name))
    if found is None:
        raise InputError(f"unknown dialect {name!r}", hint=f"Known: {AUTO}, {', '.join(DIALECTS)}.")
    return found


def by_url(url: str) -> Dialect | None:
    """The dialect of the service that this URL belongs to; None where the host name tells nothing."""
    try:
        host = (urlsplit(url).hostname or "").lower().rstrip(".")
    except ValueError:
        return None
    for dialect in DIALECTS.values():
        if any(host == known or host.endswith(f".{known}") for known in dialect.hosts):
            return dialect
    return None


def by_models(body: object) -> Dialect | None:
    """The dialect of the server that answered `GET /v1/models` with this JSON; None where it does not tell.

    Services that many models' makers sell through write the makers' names, so only a server's own name counts.
    """
    models = body.get("data") if isinstance(body, Mapping) else None
    for model in models if isinstance(models, list) else ():
        owner = model.get("owned_by") if isinstance(model, Mapping) else None
        for dialect in DIALECTS.values():
            if owner in dialect.owners:
                return dialect
    return None


def located(url: str, dialect: Dialect, model: str) -> str:
    """The URL under which a dialect's routes lie: the path of the service's API where only its host was given, the
    deployment and the version of the API where those are part of the URL.
    """
    parts = urlsplit(url)
    path, query = parts.path.rstrip("/"), dict(parse_qsl(parts.query, keep_blank_values=True))
    home = urlsplit(dialect.home) if dialect.home else None
    if home is not None and parts.netloc == home.netloc and path in ("", "/v1"):
        return urlunsplit((parts.scheme, parts.netloc, home.path, parts.query, ""))
    if dialect.deployment is None:
        return url
    if path == "":
        path = dialect.deployment.format(model=model)
    if dialect.deployment.partition("{")[0] in f"{path}/":  # routes without a deployment name their version themselves
        query = {**dialect.query, **query}
    return urlunsplit((parts.scheme, parts.netloc, path, urlencode(query), ""))
