"""One prompt, said to the base and to the pair each in its own way.

A pair has a vocabulary of its own and takes text or messages. Where the base is given token ids, `Both` holds the text
that stands for them at the pair, and what cannot be part of it (half a character, text that was cut in an unusual way)
as tokens that were issued already. Pure, but for the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blackbox_proxy.errors import InputError
from blackbox_proxy.text.prompts import joined
from blackbox_proxy.text.vocabulary import Vocabulary, is_ids, utf8_prefix
from blackbox_proxy.types import Prompt, Token

_TRIES = 16  # to find where a text stops being cut as its tokenizer would cut it


class Both(tuple[Any, ...]):
    """A prompt of the base, with what stands for it at the pair: `shown`, and then the tokens `issued`."""

    shown: Prompt
    issued: tuple[Token, ...]

    @classmethod
    def of(cls, asked: Sequence[Any], shown: Prompt, issued: Sequence[Token]) -> Both:
        both = cls(asked)
        both.shown, both.issued = shown, tuple(issued)
        return both


def told(prompt: Prompt, base: Vocabulary | None) -> Prompt:
    """A prompt as a caller gives it, ready for base and pair: text parts joined, ids of the base as `Both`. base: its
    vocabulary, None where it is unknown. Raises InputError.
    """
    if isinstance(prompt, Both) or not is_ids(prompt):
        return prompt if isinstance(prompt, Both) else joined(prompt)
    if base is None:
        raise InputError(
            "a prompt of token ids is text for the pair only where the base's tokenizer is known",
            hint="Give open_base the base's tokenizer, or the prompt as text.",
        )
    return of_ids(prompt, base)


def shown(prompt: Prompt) -> Prompt:
    """What a pair is shown of a prompt."""
    return prompt.shown if isinstance(prompt, Both) else prompt


def of_ids(ids: Sequence[int], vocabulary: Vocabulary) -> Both:
    """Token ids of the base. Raises InputError for one that is none of its own."""
    if not all(0 <= index < len(vocabulary) for index in ids):
        raise InputError(f"the prompt has token ids outside the vocabulary: they are 0 to {len(vocabulary) - 1}")
    return Both.of(ids, *spelled(ids, vocabulary))


def spelled(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[str, list[Token]]:
    """Ids as text, special tokens written out, but for those that the tokenizer puts before any text; and the tokens
    from the first on that is no whole character, or that the tokenizer itself would not cut there (a text that goes on
    from what a model wrote): they have to be issued as they are.
    """
    added = vocabulary.prompt_ids("", "raw")
    start = len(added) if tuple(ids[: len(added)]) == tuple(added) else 0
    parts = [vocabulary.special.get(i, "").encode() or vocabulary.token_of(i).bytes or b"" for i in ids[start:]]
    whole = text = _whole(parts, len(parts))
    for _ in range(_TRIES):
        found = vocabulary.prompt_ids(b"".join(parts[:text]).decode("utf-8"), "raw")
        wanted = (*added, *ids[start : start + text])
        if tuple(found) == wanted:
            break
        same = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(found))
        text = _whole(parts, min(max(same - len(added), 0), text - 1))
        if text <= 0:
            text = whole  # it is cut in another way from the beginning on
            break
    return b"".join(parts[:text]).decode("utf-8"), [vocabulary.token_of(i) for i in ids[start + text :]]


def _whole(parts: Sequence[bytes], most: int) -> int:
    """How many of the first `most` parts are whole characters together."""
    good, length = utf8_prefix(b"".join(parts[:most])), sum(map(len, parts[:most]))
    while most and length > good:
        most -= 1
        length -= len(parts[most])
        if length <= good:
            good = utf8_prefix(b"".join(parts[:most]))
    return most
