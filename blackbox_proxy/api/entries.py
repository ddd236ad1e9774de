"""One token as an API prints it, and which token of the base that is.

What a token *is* is decided in this order:

1. its id, where the server gives one (an `id` field, or "token_id:17"), spelled by the vocabulary if that is known;
2. its `bytes`, unless they are the bytes of a replacement character or of the string "token_id:17";
3. its text: OpenAI's `bytes:\\xe2\\x80` escapes are decoded, replacement characters mean unknown bytes.

**End of text** by spelling: with a vocabulary, a text that is how one of its end ids is written and no ordinary token;
without one, the markers in `END_MARKERS`, with or without bytes: no vocabulary has them as an ordinary token. "</s>" is
also HTML, so it counts only where the API gives no bytes for it.

A log probability that the API did not give (null, -inf, -9999, -3.4e38) is None, never a number. NaN and what is above
0 are refused: another candidate would win without a word. So is a token longer than any that is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from blackbox_proxy.errors import BadResponse
from blackbox_proxy.text.vocabulary import Vocabulary, utf8_prefix
from blackbox_proxy.types import Token

END_MARKERS = frozenset(
    [
        "<|endoftext|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end|>",
        "<|return|>",
        "<|eot|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|EOT|>",
        "<|end_of_turn|>",
        "<end_of_turn>",
        "<eos>",
        "[EOS]",
        "<EOS_TOKEN>",
        "<｜end▁of▁sentence｜>",
    ]
)
_HTML_END = "</s>"

_LONGEST = 1024  # characters, or bytes, of a token; the longest that are known have 128 to 512
_MISSING = -9000.0  # no log probability is this low; the sentinels -9999 (in any precision) and -3.4e38 are
_ROUNDING = 0.01  # how far above 0 rounding can lift a log probability
_REPLACEMENT = "\ufffd"
_ID = re.compile(r"token_id:([0-9]{1,9})")
_ESCAPED = re.compile(r"bytes:((?:[^\\]|\\x[0-9a-f]{2}|\\[nrt\\'\"])+)", re.ASCII)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|([nrt\\'\"]))")
_SHORT = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


@dataclass(frozen=True, slots=True)
class RawToken:
    """One token as the API printed it. `bytes` and `logprob` are None where it gave none."""

    text: str
    logprob: float | None
    bytes: bytes | None = None
    id: int | None = None


def raw_token(item: object) -> RawToken:
    if not isinstance(item, Mapping) or not isinstance(item.get("token"), str):
        raise malformed("an entry has no token")
    index = item.get("id", item.get("token_id"))
    entry = plain_token(item["token"], item.get("logprob"), _bytes(item.get("bytes")))
    if isinstance(index, int) and not isinstance(index, bool) and index >= 0:
        entry = replace(entry, id=index)
    return entry


def plain_token(text: object, logprob: object, spelled: bytes | None = None) -> RawToken:
    if not isinstance(text, str):
        raise malformed("a token is not text")
    if len(text) > _LONGEST:
        raise malformed(f"a token has {len(text):,} characters")
    found = _ID.fullmatch(text) if text.startswith("token_id:") else None
    if found:  # whatever bytes came with it are those of this string
        return RawToken(text, _logprob(logprob), id=int(found[1]))
    return RawToken(text, _logprob(logprob), spelled)


def _logprob(value: object) -> float | None:
    """A log probability in nats, at most 0; None where the API did not give it."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise malformed("a log probability is not a number")
    if value <= _MISSING:
        return None
    if not value <= _ROUNDING:
        raise malformed("a log probability is not a number" if value != value else "a log probability is positive")
    return min(float(value), 0.0)


def _bytes(value: object) -> bytes | None:
    """None for null and for an empty list, which servers give where they know no bytes."""
    if value is None:
        return None
    numbers = as_list(value)
    if len(numbers) > _LONGEST:
        raise malformed(f"a token has {len(numbers):,} bytes")
    try:
        return bytes(numbers) or None
    except (TypeError, ValueError) as error:
        raise malformed("bytes are not numbers from 0 to 255") from error


def as_list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise malformed("a list is missing")
    return value


def malformed(what: str) -> BadResponse:
    return BadResponse(
        f"the log probabilities of the answer are malformed: {what}",
        hint="This server does not keep to the OpenAI format; the problem is on its side.",
    )


def token_of(entry: RawToken, vocabulary: Vocabulary | None = None, *, literal: str | None = None) -> Token:
    """Which token an entry is; one spelled `literal` is known to be no end of text."""
    if vocabulary is not None and entry.id is not None:
        return vocabulary.token_of(entry.id)
    spelled, text = _spelling(entry), entry.text
    if vocabulary is not None:
        special = vocabulary.special_ids.get(text)
        plain = utf8(text)
        if special is not None and text != literal and spelled == plain and vocabulary.id_of(plain or b"") is None:
            return vocabulary.token_of(special)
        return Token(vocabulary.id_of(spelled) if spelled else None, spelled, text)
    if text != literal and (text in END_MARKERS or (text == _HTML_END and entry.bytes is None)):
        return Token(entry.id, b"", text, end=True)
    return Token(entry.id, spelled, text)


def _spelling(entry: RawToken) -> bytes | None:
    text = entry.text
    plain = utf8(text)
    if entry.bytes is not None:
        # Bytes made from text that was already replaced say no more than the text does.
        made = entry.bytes == _REPLACEMENT.encode() or (_REPLACEMENT in text and entry.bytes == plain)
        return None if made else entry.bytes
    escaped = _ESCAPED.fullmatch(text) if text.startswith("bytes:") else None
    if escaped and text.isascii():
        raw = _ESCAPE.sub(_unescape, escaped[1].encode())
        if utf8_prefix(raw) < len(raw):  # nothing else is escaped, so otherwise it is just text
            return raw
    if not text or _REPLACEMENT in text or (text.startswith("token_id:") and _ID.fullmatch(text)):
        return None
    return plain


def _unescape(found: re.Match[bytes]) -> bytes:
    return bytes.fromhex(found[1].decode()) if found[1] else _SHORT.get(found[2], found[2])


def utf8(text: str) -> bytes | None:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a character, from a "\ud83d" in the JSON
        return None
