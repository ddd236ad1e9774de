"""What must not be shown: keys and passwords that this process sends, told once, and taken out of whatever is shown.

`keep_secret` is called where something secret is first seen (transport/connection.py). Every error of this package and
every line that the HTTP libraries log (transport/quiet.py) goes through `hidden`: a server may repeat what it was sent.

A text that a server wrote as its answer is not an error: there only long secrets are taken out (`answer=True`),
because a key such as "token" is also a word, and a text must stay the server's own.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

_SHORTEST = 4  # characters; what is shorter stands in every other word
_LONG = 16  # characters; no word of an answer is one of these by chance
_MOST = 1000  # secrets that are remembered
_NONE = ("not-needed", "empty", "none", "null", "no-key")  # keys that say that there is none
_NAMED = re.compile(
    r"(?:^|[-_.])(?:api|access|auth|private|secret)?[-_.]?(?:key|token|secret|sig|signature|jwt)$", re.I
)
_PASSWORD = re.compile("password|passwd|credential|authorization|bearer|cookie|apikey|secret", re.I)
_KEYLIKE = re.compile(r"(?:sk|pk|rk|hf|gsk|xai|key|ghp|glpat)[-_][\w-]{8,}|(?=\S*\d)(?=\S*[A-Za-z])[\w+=~-]{24,}", re.A)
_ONE_WORD = re.compile(r"[\w+=~./-]+", re.A)
_SCHEME = re.compile(r"(?:bearer|basic|token|key)\s+(\S+)", re.I)

_lock = threading.Lock()
_known: dict[str, tuple[str, bool]] = {}
"""A spelling of a secret -> what stands in its place, and whether it may be taken out of answers; longest first."""


def keep_secret(secret: str, shown: str = "[secret]", *, certain: bool = True) -> None:
    """Take this out of everything that is shown from now on, also as URLs, JSON and Basic headers spell it.

    certain: False for what only looks like one; it is left alone in answers.
    """
    secret = secret.strip()
    if len(secret) < _SHORTEST or secret.lower() in _NONE:
        return
    spellings = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)}
    spellings |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    with _lock:
        found = dict(_known)
        for spelling in spellings:
            found[spelling] = (shown, certain and len(spelling) >= _LONG)
        kept = list(found.items())[-_MOST:]
        kept.sort(key=lambda item: -len(item[0]))
        _known.clear()
        _known.update(kept)


def basic(user: str, password: str) -> str:
    """The value of a Basic header; it, and what is secret in it, are kept secret."""
    made = base64.b64encode(f"{user}:{password}".encode()).decode()
    keep_secret(made)
    keep_secret(password or user)
    return f"Basic {made}"


def keep_secrets_of(fields: Mapping[str, Any]) -> None:
    """Keep secret what looks like keys and passwords in a query, headers or a body: by name, or as keys are spelled."""
    for name, value in _strings(fields):
        if names_secret(name) or _KEYLIKE.fullmatch(value):
            found = _SCHEME.fullmatch(value)
            secret = found[1] if found else value
            keep_secret(secret, certain=names_secret(name) and bool(_ONE_WORD.fullmatch(secret)))


def names_secret(name: str) -> bool:
    """Whether a field of this name holds what should not be shown."""
    return bool(_NAMED.search(name) or _PASSWORD.search(name))


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for inner_name, inner in value.items():
            yield from _strings(inner, str(inner_name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner, name)


# -- taking out -------------------------------------------------------------------------------------------------------


def hidden(text: str, *, answer: bool = False) -> str:
    """A text to be shown, without what is secret; answer: a server's text, which loses long secrets only."""
    for secret, (shown, everywhere) in list(_known.items()):
        if secret in text and (everywhere or not answer):
            text = text.replace(secret, shown)
    return text


def hidden_value(value: Any, *, answer: bool = False) -> Any:
    """JSON, or bytes, with what is secret taken out of all its texts; answer: the long ones only."""
    if isinstance(value, str):
        return hidden(value, answer=answer)
    if isinstance(value, bytes):
        for secret, (shown, everywhere) in list(_known.items()):
            spelled = secret.encode("utf-8", "replace")
            if spelled in value and (everywhere or not answer):
                value = value.replace(spelled, shown.encode())
        return value
    if isinstance(value, Mapping):
        return {hidden_value(name, answer=answer): hidden_value(inner, answer=answer) for name, inner in value.items()}
    return [hidden_value(inner, answer=answer) for inner in value] if isinstance(value, list) else value


def take_out(error: BaseException) -> None:
    """Take what is secret out of an exception's texts, and out of those it came from: a traceback prints them too."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while _known and left:
        link = left.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.args = tuple(hidden_value(value) for value in link.args)
        for name in ("message", "body", "doc", "object"):  # the last two hold what could not be read
            if hasattr(link, name):
                setattr(link, name, hidden_value(getattr(link, name)))
        left += [link.__cause__, link.__context__]
