"""Tokens held against the text that stands beside them in the same answer: pure, no I/O.

With alpha = 0 the text must be the server's own, so what its tokens spell must be what it says that it wrote. `Against`
walks along the text as both arrive. What servers do to a text without changing it is allowed for: blanks taken off its
two ends, U+FFFD in place of part of a character, special tokens written out or not, a beginning repeated.
"""

from __future__ import annotations

import codecs
from typing import Literal

from blackbox_proxy.errors import Misspelled
from blackbox_proxy.types import Token

Verdict = Literal["yes", "no", "wait"]
_REPLACEMENT = "\ufffd"
_DECODER = codecs.getincrementaldecoder("utf-8")


class Against:
    """The text of one answer. text: what has come of it; None where there is none to hold anything against. repeated:
    what the text may begin with that is no part of the answer.
    """

    def __init__(self, repeated: str = "") -> None:
        self.text: str | None = None
        self._repeated = repeated.rstrip()  # until the first token
        self._at = 0  # as far as the tokens go
        self._pending = b""  # of a character that the tokens so far have not completed
        self._loose = 0  # characters that may be anything, since a token of unknown bytes stands for them
        self._blind = False  # nothing can be told from here on

    @property
    def told(self) -> bool:
        """Whether anything can be told."""
        return bool(self.text) and not self._blind

    @property
    def rest(self) -> str | None:
        """What of the text no token has spelled yet; None where that cannot be told."""
        if self.text is None or self._blind or self._loose:
            return None
        return self.text[self._at :]

    @property
    def at_end(self) -> bool:
        """Whether the tokens go exactly as far as the text."""
        return self.text is not None and not self._blind and not self._loose and self._at == len(self.text)

    def take(self, token: Token, *, certain: bool) -> Verdict:
        """Whether the text goes on with this token; "wait" where more of it must come first. Only "yes" moves.

        certain: the token is known by its id, so that only blanks may differ.
        """
        if self.text is None or self._blind:
            return "yes"
        if self._repeated and self.text:
            # Whether a text that begins like this repeats it, or says it again, cannot be told.
            self._blind = self.text.startswith(self._repeated) or self._repeated.startswith(self.text)
            self._repeated = ""
            if self._blind:
                return "yes"
        at, spelled = self._at, token.bytes
        if spelled is None:
            if token.id is not None:
                self._blind = True  # known by its id only
            else:
                self._loose += max(1, len(token.text))
            return "yes"
        if not spelled:  # special: written out or not
            if token.text and self.text.startswith(token.text, at):
                self._at = at + len(token.text)
            return "yes"
        if not self._pending and not self._loose:
            try:
                whole = spelled.decode()
            except UnicodeDecodeError:
                pass
            else:
                if self.text.startswith(whole, at):
                    self._at = at + len(whole)
                    return "yes"
                return self._stumble(whole, at, b"", certain)
        decoder = _DECODER("replace")
        decoder.setstate((self._pending, 0))
        whole = decoder.decode(spelled)
        return self._stumble(whole, at, decoder.getstate()[0], certain)

    def close(self, token: Token) -> Verdict:
        """The same, now that the whole text is there; "wait": the text has ended before this token."""
        assert self.text is not None
        at, spelled = self._at, (self._pending + (token.bytes or b"")).decode("utf-8", "ignore")
        rest = self.text[at:]
        if spelled.strip() and spelled.rstrip() != rest.rstrip() and spelled.strip() != rest.strip():
            return "wait" if _nothing(rest) else "no"
        self._at = len(self.text) if spelled.strip() else at
        return "yes"

    def refuse(self, token: Token, *, certain: bool) -> Misspelled:
        """What is said where a token is not what the text goes on with."""
        found = repr((self.text or "")[self._at :][:20])
        if certain:
            return Misspelled(
                f"the ids of the answer do not spell its text: {token.text!r} where the text goes on with {found}",
                hint="The tokenizer given is not the one of the model that this server runs.",
            )
        return Misspelled(
            f"the tokens of the answer do not spell its text: {token.text!r} where the text goes on with {found}",
            hint=WAY_OUT,
        )

    def refuse_rest(self) -> Misspelled:
        """What is said where the text goes on, and there is no token for it."""
        found = repr((self.text or "")[self._at :][:20])
        return Misspelled(
            f"the tokens of the answer do not spell its text: all of them are told, and it goes on with {found}",
            hint=WAY_OUT,
        )

    def refuse_list(self, shown: list[str]) -> Misspelled:
        """What is said where it cannot be known how the candidates are written."""
        return Misspelled(
            f"the answer does not tell how its candidates are written: {', '.join(map(repr, shown[:5]))}", hint=WAY_OUT
        )

    # -- how it is walked -----------------------------------------------------------------------------------------

    def _stumble(self, whole: str, at: int, pending: bytes, certain: bool) -> Verdict:
        """A token that is not simply the next of the text, or of which that cannot be told simply."""
        assert self.text is not None
        text, found = self.text, -1
        if not whole:
            found = at
        elif self._loose:
            found = text.find(whole, at, at + self._loose + len(whole))
            if found < 0 and len(text) < at + self._loose + len(whole):
                return "wait"
            found = found + len(whole) if found >= 0 else -1
        else:
            found = self._replaced(whole, at)
            while found < 0 and text.startswith(_REPLACEMENT, at):  # of a character before
                at += 1
                found = self._replaced(whole, at)
            if found < 0 and (certain or at == 0):
                found = self._but_for_blanks(whole, at, both=certain)
        if found < 0:
            rest = text[at:]
            ended = (certain or rest.startswith(_REPLACEMENT)) and _nothing(rest)
            return "wait" if ended or whole.startswith(rest) else "no"
        self._at, self._pending = found, pending
        if whole:
            self._loose = 0
        return "yes"

    def _replaced(self, whole: str, at: int) -> int:
        """Where the text goes on behind `whole`, any character of which may be U+FFFD there; -1 if it does not."""
        assert self.text is not None
        text = self.text
        for letter in whole:
            if text.startswith(letter, at):
                at += 1
            elif not letter.isascii() and text.startswith(_REPLACEMENT, at):
                size = len(letter.encode("utf-8", "replace"))
                while size and text.startswith(_REPLACEMENT, at):
                    at, size = at + 1, size - 1
            elif letter != _REPLACEMENT:  # of bytes that are no character, which may be left out
                return -1
        return at

    def _but_for_blanks(self, whole: str, at: int, *, both: bool) -> int:
        """The same, without the blanks before it; both: nor those of the text, nor those behind it."""
        assert self.text is not None
        bare = whole.lstrip()
        if both:
            while at < len(self.text) and self.text[at].isspace():
                at += 1
            bare = bare.rstrip()
        if not bare:
            return at if self.text[at:] else -1
        return at + len(bare) if self.text.startswith(bare, at) else -1


def _nothing(rest: str) -> bool:
    """Whether what is left of a text is blank, or the rest of a character that was not finished before the end."""
    return not rest.strip().strip(_REPLACEMENT)


WAY_OUT = (
    "Give tokenizer=… to open_base, so that tokens are known by their ids where the server shows them "
    '(dialect="vllm" asks for ids); else ask another server: what its tokens are cannot be known.'
)
