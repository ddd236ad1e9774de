"""The parts in which a text is scored that outgrows a window: each sees at least half a window of what comes before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from blackbox_proxy.errors import ContextTooLong, InputError
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.text.vocabulary import Vocabulary, utf8_prefix
from blackbox_proxy.types import Prefix, Prompt


class Window:
    """A part of a text with what it is scored after. `shorten` halves it where a window turned out to be smaller."""

    def __init__(self, prompt: Prompt, units: Sequence[str], begun: bool) -> None:
        self.prompt = prompt
        self.units = list(units)
        self._begun = begun  # the prompt is the text's own and may be cut, too

    @property
    def text(self) -> str:
        return "".join(self.units)

    def shorten(self) -> bool:
        if not isinstance(self.prompt, str):
            return False
        shorter = self._begun and len(self.prompt) > 1
        if shorter:
            self.prompt = self.prompt[len(self.prompt) // 2 :]
        if len(self.units) == 1:
            return shorter
        del self.units[(len(self.units) + 1) // 2 :]
        return True


def windows(base: Base, pairs: Sequence[Pair], prompt: Prompt, text: str) -> Iterator[Window]:
    """The parts in which a text is scored: one where it fits, else as long as they can be, each after half of the
    last. Only after plain text: messages are part of every request, so the whole text must fit.
    """
    if not isinstance(prompt, str) or _fits(base, pairs, prompt, text):
        window = Window(prompt, _units(base.vocabulary, text), False)
        yield window
        if len(window.text) == len(text):
            return
        prompt, text, before = window.prompt, text[len(window.text) :], window.units
    else:
        before = []
    units = _units(base.vocabulary, text)
    while units:
        context: Prompt = prompt if not before else "".join(before[len(before) // 2 :])
        count = min(len(units), 2 * len(before)) if before else len(units)
        while count > 1 and not _fits(base, pairs, context, "".join(units[:count])):
            count = count * 3 // 4
        window = Window(context, units[:count], bool(before))
        yield window
        before = window.units
        units = units[len(before) :]


def _fits(base: Base, pairs: Sequence[Pair], prompt: Prompt, text: str) -> bool:
    """Whether prompt and text fit all windows whose size is known."""
    assert isinstance(prompt, str)
    room = base.room(Prefix(prompt))
    if room is not None:
        length = len(text.encode()) if base.vocabulary is None else len(encoded(base.vocabulary, text))
        if length + 1 > room:
            return False
    try:
        for pair in pairs:
            pair.check(prompt + text, 1)
    except ContextTooLong:
        return False
    return True


def _units(vocabulary: Vocabulary | None, text: str) -> list[str]:
    """What a text may be cut between: tokens of the base as far as they are whole characters, else words."""
    if vocabulary is None:
        return re.findall(r"\s*\S+|\s+$", text)
    units, waiting = [], b""
    for index in encoded(vocabulary, text):
        waiting += vocabulary.spelling[index] or b""
        if utf8_prefix(waiting) == len(waiting):
            units.append(waiting.decode("utf-8"))
            waiting = b""
    return units


def encoded(vocabulary: Vocabulary, text: str) -> list[int]:
    ids = vocabulary.encode([text.encode()])[0]
    if b"".join(vocabulary.spelling[index] or b"" for index in ids) != text.encode():
        raise InputError(
            "the base's vocabulary cannot write this text", hint="It has characters that no token of the base spells."
        )
    return ids
