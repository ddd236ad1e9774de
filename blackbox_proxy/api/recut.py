"""Where text that travels as text would be cut into other tokens than it was written in.

A base that is sent its text anew cuts it anew: asked for one token at a time, it sees what its tokenizer makes of the
whole text. A draft sees the tokens that it wrote itself. Say it wrote "a" and then "b", and the tokenizer makes one
token "ab" of that text: what the draft says after its "b" is not what a later request would be told after "ab". So a
draft counts up to the first place where the two differ, and no further: `Recut` where the tokenizer is known. Where it
is not, `Unspelled` takes for such a place whatever could be one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from blackbox_proxy.api.sent import Sent, Settings
from blackbox_proxy.text.vocabulary import Vocabulary, utf8_prefix
from blackbox_proxy.text.words import REACH, stands_alone
from blackbox_proxy.types import Draft, Prompt, Token

_TAIL = 2048  # bytes at the end of a text among which there is always a place that no continuation reaches beyond
_LONG = 256  # bytes from which on looking for a place to forget what lies before it costs less than cutting it again


class Watch(Protocol):
    """Follows a text as it is written."""

    def add(self, token: Token, given: bool = False) -> bool:
        """Whether the text up to here, sent anew, would still be the tokens that it was written in.

        given: the server has read it as text, and cut it into this token itself. Of a token that ends inside a
        character this is not asked before the character is whole.
        """
        ...


class Unspelled:
    """Follows a text of which nobody knows how it is cut, from `text` on: only before words is that certain."""

    def __init__(self, text: bytes) -> None:
        self._before = text.decode("utf-8", "replace")[-REACH:]
        self._begun = b""  # of a character

    def add(self, token: Token, given: bool = False) -> bool:
        if not token.bytes:
            self._before, self._begun = "", b""
            return given
        written, whole = self._begun + token.bytes, not self._begun
        if utf8_prefix(written) < len(written):
            self._begun = written
            return True
        text = written.decode("utf-8")
        certain = given or (whole and stands_alone(self._before, text))
        self._before, self._begun = (self._before + text)[-REACH:], b""
        return certain


class Recut:
    """Follows a text as it is written, from `text` on."""

    def __init__(self, text: bytes, vocabulary: Vocabulary) -> None:
        text = text[: utf8_prefix(text)][-_TAIL:]
        while text and text[0] & 0xC0 == 0x80:  # in the middle of a character
            text = text[1:]
        self._vocabulary = vocabulary
        self._text = text[vocabulary.boundary(text) :]
        self._keys = self._cut()

    def add(self, token: Token, given: bool = False) -> bool:
        if not token.bytes:
            return False  # leaves no trace in text, or one that nobody knows
        self._text += token.bytes
        self._keys.append(token.bytes if token.id is None else token.id)
        if utf8_prefix(self._text) < len(self._text):
            return True
        cut = self._cut()
        if len(cut) != len(self._keys):
            return False
        if any(
            found != key and (isinstance(key, int) or self._spelling(found) != key)
            for found, key in zip(cut, self._keys, strict=True)
        ):
            return False
        if len(self._text) > _LONG:
            self._forget()
        return True

    def _cut(self) -> list[int | bytes]:
        return list(self._vocabulary.encode([self._text])[0]) if self._text else []

    def _spelling(self, key: int | bytes) -> bytes:
        return key if isinstance(key, bytes) else self._vocabulary.token_of(key).bytes or b""

    def _forget(self) -> None:
        """Leave out what no continuation can change."""
        boundary, passed, count = self._vocabulary.boundary(self._text), 0, 0
        while passed < boundary and count < len(self._keys):
            passed += len(self._spelling(self._keys[count]))
            count += 1
        if passed == boundary:
            self._text, self._keys = self._text[boundary:], self._keys[count:]


def until_recut(draft: Draft, recut: Watch | None) -> Draft:
    """The draft as far as its text, sent anew, would be cut into the tokens that it was written in.

    The position that makes the difference stays (the "b" of "a", "b" where "ab" is one token): its candidates follow
    "a" in both. The end of a text is never sent.
    """
    for i, position in enumerate(draft.positions if recut is not None else ()):
        if not position.token.end and recut is not None and not recut.add(position.token, i < draft.given):
            return replace(
                draft,
                positions=draft.positions[: i + 1],
                finish=None,
                reason=None,
                given=min(draft.given, i + 1),
                cut=True,
            )
    return draft


def recut_of(sent: Sent, settings: Settings) -> Watch | None:
    """What watches a draft, where a later request sends its text and the server cuts that anew; else None."""
    vocabulary = settings.vocabulary
    if vocabulary is None and settings.trusts_drafts:
        return None
    if sent.way != "text" or (settings.api == "chat" and settings.dialect.prefill is None):
        return None
    if settings.api == "completions":
        text = str(sent.before)
        return Unspelled(text.encode()) if vocabulary is None else Recut(after_special(text, vocabulary), vocabulary)
    before = chat_opening(sent.ask.prefix.prompt, settings) + sent.ask.prefix.generated
    return Unspelled(before) if vocabulary is None else Recut(before, vocabulary)


def after_special(text: str, vocabulary: Vocabulary) -> bytes:
    """What of a text follows the last special token that is written out in it: nothing before can join with it."""
    places = (text.rfind(mark) + len(mark) for mark in vocabulary.special_ids if mark and mark in text)
    return text[max(places, default=0) :].encode("utf-8")


def chat_opening(prompt: Prompt, settings: Settings) -> bytes:
    """The text between the last special token of a rendered chat and the answer; b"" where that cannot be known."""
    last = prompt[-1] if prompt else None
    if isinstance(last, Mapping) and last.get("role") == "assistant":  # begun by the caller, and continued
        return str(last.get("content") or "").encode("utf-8")
    vocabulary = settings.vocabulary
    if vocabulary is None:
        return b""
    try:
        ids = settings.prompt_ids(prompt, "chat")
    except Exception:  # no template, or one that refuses these roles: the server's own may still take them
        return b""
    special = [i for i, index in enumerate(ids) if index in vocabulary.special]
    opening = b"".join(vocabulary.token_of(i).bytes or b"" for i in ids[special[-1] + 1 if special else 0 :])
    return opening if utf8_prefix(opening) == len(opening) else b""
