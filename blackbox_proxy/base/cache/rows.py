"""Rows of the cache as bytes, and as objects for people. Pure: no file, no base.

Candidates are JSON; ids of a known vocabulary are columns, since there may be all of them. Both are compressed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from blackbox_proxy.base.cache.store import Store
from blackbox_proxy.text.vocabulary import Ids, Vocabulary, VocabularyTokens
from blackbox_proxy.types import Floats, Position, Token

GREEDY = b"greedy"
"""`StoredRow.draw` of what the base wrote greedily."""

STOP = "stop"
"""`StoredRow.drawn` where the base ended its text without showing the end."""


def digest(*parts: bytes) -> bytes:
    """A key of these parts, in this order."""
    made = hashlib.blake2b(digest_size=20)
    for part in parts:
        made.update(b"%d:" % len(part) + part)
    return made.digest()


def after(key: bytes, token: Token) -> bytes:
    """The key of the place behind `token`, which stands at the place `key`."""
    kind, value = token.key
    spelled = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return digest(key, kind.encode(), spelled)


def reveal_key(key: bytes, token: Token) -> bytes:
    """The key of log q of one token at a place, told by name: it may lie outside the k candidates."""
    return digest(after(key, token), b"revealed")


def token_to(token: Token) -> list[object]:
    """[id, bytes as Latin-1, text if the bytes do not tell it, end]: what JSON can hold."""
    raw = token.bytes
    told = raw is not None and raw.decode("utf-8", "replace") == token.text
    return [token.id, None if raw is None else raw.decode("latin-1"), None if told else token.text, int(token.end)]


def token_from(spelled: Sequence[Any]) -> Token:
    index, raw, text, end = spelled
    spelling = None if raw is None else str(raw).encode("latin-1")
    return Token(index, spelling, (spelling or b"").decode("utf-8", "replace") if text is None else text, bool(end))


class Drawn(NamedTuple):
    """What was drawn at a place. `cut`: the answer was cut after it (`Draft.cut`), whoever asks."""

    token: Token
    logprob: float | None
    cut: bool = False


def drawn_to(drawn: Drawn) -> str:
    """`StoredRow.drawn`: JSON of [token, log probability], and true where the answer was cut."""
    return json.dumps([token_to(drawn.token), drawn.logprob, *([True] if drawn.cut else [])])


def drawn_from(spelled: str) -> Drawn:
    token, *rest = json.loads(spelled)
    return Drawn(token_from(token), *rest)


def packed(position: Position) -> bytes:
    """The candidates of a position."""
    tokens, logprobs = position.tokens, np.asarray(position.logprobs, np.float64)
    if not isinstance(tokens, VocabularyTokens):
        spelled = {"tokens": [token_to(token) for token in tokens], "logprobs": logprobs.tolist()}
        return b"j" + zlib.compress(json.dumps(spelled, separators=(",", ":")).encode())
    narrow = logprobs.astype(np.float32)
    exact = bool(np.array_equal(narrow.astype(np.float64), logprobs))
    columns = np.asarray(tokens.ids, "<i8").tobytes() + (narrow if exact else logprobs).tobytes()
    return (b"f" if exact else b"d") + zlib.compress(columns, 1)


def _columns(value: bytes) -> tuple[Ids, Floats]:
    raw, width = zlib.decompress(value[1:]), 4 if value[:1] == b"f" else 8
    count = len(raw) // (8 + width)
    ids = np.frombuffer(raw, "<i8", count).astype(np.int64)
    logprobs = np.frombuffer(raw, np.float32 if width == 4 else np.float64, count, 8 * count)
    return ids, logprobs.astype(np.float64)


def unpacked(value: bytes, vocabulary: Vocabulary | None) -> tuple[Sequence[Token], Floats]:
    if value[:1] == b"j":
        spelled = json.loads(zlib.decompress(value[1:]))
        return tuple(map(token_from, spelled["tokens"])), np.array(spelled["logprobs"], np.float64)
    if value[:1] not in (b"f", b"d") or vocabulary is None:
        raise ValueError("candidates in a form that is not known here")
    ids, logprobs = _columns(value)
    return VocabularyTokens(ids, vocabulary), logprobs


# -- for people -------------------------------------------------------------------------------------------------------


def export(store: Store) -> Iterator[dict[str, object]]:
    """Every row as an object for JSON: base, prompt, place, the text so far, the candidates, what was drawn there.

    "text" is None where earlier rows of the text are not in the file any more. "named" is true where the base was asked
    about this one candidate by name. Log probabilities are natural.
    """
    texts: dict[bytes, bytes] = {}
    current: bytes | None = None
    for root, row, draws in store.rows():
        if root.root != current:
            current, texts = root.root, {root.root: b""}
        place, asked = row.key, False
        if row.before is not None and row.token is not None:
            token = token_from(json.loads(row.token))
            asked = row.key == reveal_key(row.before, token)
            if asked:
                place = row.before
            elif row.before in texts and token.bytes is not None:
                texts[row.key] = texts[row.before] + token.bytes
        text = texts.get(place)
        kind, prompt = json.loads(root.prompt)
        yield {
            "base": json.loads(root.base),
            "prompt": {kind: prompt},
            "place": row.place,
            "text": None if text is None else text.decode("utf-8", "replace"),
            "candidates": _candidates(row.value),
            "drawn": [_shown_draw(draw, drawn) for draw, drawn in draws.items()],
            **({"named": True} if asked else {}),
        }


def _candidates(value: bytes) -> list[dict[str, object]] | None:
    if not value:
        return None
    with suppress(ValueError, TypeError, KeyError, zlib.error):
        if value[:1] == b"j":
            spelled = json.loads(zlib.decompress(value[1:]))
            return [
                {**_shown(token), "logprob": logprob}
                for token, logprob in zip(spelled["tokens"], spelled["logprobs"], strict=True)
            ]
        return [
            {"id": index, "logprob": logprob}
            for index, logprob in zip(*(column.tolist() for column in _columns(value)), strict=True)
        ]
    return None


def _shown(spelled: Sequence[Any]) -> dict[str, object]:
    token = token_from(spelled)
    return {"id": token.id, "text": token.text, **({"end": True} if token.end else {})}


def _shown_draw(draw: bytes, drawn: str) -> dict[str, object]:
    how: dict[str, object] = {"how": "greedy" if draw == GREEDY else draw.hex()}
    if drawn == STOP:
        return {**how, "end": True}
    return {**how, **_shown(json.loads(drawn)[0])}
