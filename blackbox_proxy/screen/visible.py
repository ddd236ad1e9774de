"""Bytes of tokens as text that can be shown anywhere: every byte is seen, none does anything.

What a model writes may hold control characters, marks that turn the direction of writing, and bytes that are no
character. Here each becomes a sign: a terminal and a page then show it, and neither obeys it.
"""

from __future__ import annotations

import json
import unicodedata

_JOINERS = "\u200c\u200d"  # they shape what they stand in, as emoji and some scripts need
_SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\x7f": "␡"}


def visible(token: bytes, *, breaks: bool = False) -> str:
    """The bytes as text. breaks: line breaks and tabs also do what they are for."""
    pieces, at = [], 0
    while at < len(token):
        try:
            pieces.append(visible_text(token[at:].decode("utf-8"), breaks=breaks))
            break
        except UnicodeDecodeError as error:
            whole, bad = token[at : at + error.start], token[at + error.start : at + error.end]
            pieces.append(visible_text(whole.decode("utf-8"), breaks=breaks))
            pieces.append("".join(f"\\x{byte:02x}" for byte in bad))
            at += error.end
    return "".join(pieces)


def visible_text(text: str, *, breaks: bool = False) -> str:
    """The same for text; half characters (lone surrogates) are signs, too."""
    return "".join(_sign(character, breaks) for character in text)


def piece(text: bytes) -> tuple[str, bytes]:
    """What can be shown of bytes that go on: characters that are whole, made visible with their breaks, and bytes that
    are none. And what waits for the rest of its character.
    """
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.end == len(text):
            return visible(text[: error.start], breaks=True), text[error.start :]
    return visible(text, breaks=True), b""


def shown(text: str) -> str:
    """Text for a terminal: line breaks and tabs do what they are for, nothing else does anything."""
    if text.isprintable():
        return text
    return "".join(character if character in "\n\t" else _sign(character, breaks=False) for character in text)


def escaped(text: str) -> str:
    """JSON in which every character that is a sign above is written as an escape. It stands in strings only."""
    if text.isprintable():
        return text
    return "".join(
        character if _sign(character, breaks=False) == character else json.dumps(character)[1:-1] for character in text
    )


def _sign(character: str, breaks: bool) -> str:
    if character in _SIGNS:
        return _SIGNS[character] + (character if breaks and character in "\n\t" else "")
    category = unicodedata.category(character)
    if category == "Cc":
        code = ord(character)
        return chr(0x2400 + code) if code < 0x20 else f"\\x{code:02x}"
    if category in ("Zl", "Zp", "Cs", "Co", "Cn") or (category == "Cf" and character not in _JOINERS):
        code = ord(character)
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character


def quoted(token: bytes, *, end: bool = False, most: int = 40) -> str:
    """A token in a table: spaces seen at its ends, long ones cut in the middle."""
    if end:
        return "end of text"
    text = visible(token)
    if not text:
        return "(nothing)"
    core = text.strip(" ")
    lead, trail = (len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))) if core else (len(text), 0)
    text = "␣" * lead + core + "␣" * trail
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"
