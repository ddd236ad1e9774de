"""The vocabulary that expert and anti-expert share, where their tokenizers are nearly the same.

Tuning adds to a tokenizer: a padding token, an end of turn, `<think>`. What only one of the two has:

    an end                  an end of both; the model without it gives it no mass
    any other special token nothing: no mass in either, as if it were not there
    an added word           nothing either, and text is not cut into it: it is decoded by its letters, which both know
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from blackbox_proxy.errors import VocabularyMismatch
from blackbox_proxy.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)
_NAMED = 5  # words that a message names


@dataclass(frozen=True, slots=True)
class Shared:
    """For expert and anti-expert: its vocabulary (the same spelling, its own prompts), and the ids that get no mass."""

    vocabularies: tuple[Vocabulary, Vocabulary]
    holes: tuple[list[int], list[int]]


def shared(expert: Vocabulary, antiexpert: Vocabulary, names: tuple[str, str]) -> Shared | None:
    """What the two share; None where they are the same already. Raises VocabularyMismatch where ids differ."""
    size = max(len(expert), len(antiexpert))
    ours, theirs = (_padded(vocabulary, size) for vocabulary in (expert, antiexpert))
    renamed = {i for i in {*expert.special, *antiexpert.special} if expert.special.get(i) != antiexpert.special.get(i)}
    differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b or i in renamed]
    ends = expert.end_ids | antiexpert.end_ids
    if not differing and expert.end_ids == antiexpert.end_ids:
        return None
    nothing = [i for i in differing if i not in ends]
    words = [i for i in nothing if ours[i] or theirs[i]]
    for i in words:
        if (ours[i] and theirs[i]) or i not in (expert.added if ours[i] else antiexpert.added):
            raise mismatch(expert, antiexpert, names, i)
    if words:
        _say_unknown([ours[i] or theirs[i] or b"" for i in words], names)
    leave = [i for i in (*words, *ends) if i in expert.added]
    common = expert.without(leave).resized(size, ends)
    holes = tuple(
        sorted({*nothing, *(i for i, spelling in enumerate(spelled) if spelling is None)}) for spelled in (ours, theirs)
    )
    return Shared((common, common.prompted_as(antiexpert)), (holes[0], holes[1]))


def _padded(vocabulary: Vocabulary, size: int) -> Sequence[bytes | None]:
    return (*vocabulary.spelling, *[None] * (size - len(vocabulary)))


def _say_unknown(words: Sequence[bytes], names: tuple[str, str]) -> None:
    shown = ", ".join(word.decode("utf-8", "replace") for word in words[:_NAMED])
    _log.warning(
        "%s and %s do not both have %d of their words (%s%s), which cannot be weighed as words: they are decoded "
        "letter by letter",
        *names,
        len(words),
        shown,
        " …" if len(words) > _NAMED else "",
    )


def mismatch(
    expert: Vocabulary, antiexpert: Vocabulary, names: tuple[str, str], place: int | None = None
) -> VocabularyMismatch:
    """The error for two vocabularies that are not those of one model, naming the first id (or `place`) that differs."""
    ours, theirs = expert.spelling, antiexpert.spelling
    if place is None:
        pairs = enumerate(zip(ours, theirs, strict=False))
        differing = next((i for i, (a, b) in pairs if (a or b"") != (b or b"")), None)
        place = min(len(ours), len(theirs)) if differing is None else differing
    a, b = (spelling[place] if place < len(spelling) else None for spelling in (ours, theirs))
    return VocabularyMismatch(
        f"expert {names[0]} and anti-expert {names[1]} have different vocabularies: "
        f"id {place} is {a!r} in one and {b!r} in the other",
        hint="The anti-expert must be the expert before tuning. The base may have any vocabulary.",
    )
