"""The prompt of a completion as part of the answer (`echo`), with log probabilities of the tuned model where asked for.

The base must score given text. The first token has nothing before it and no log probability; nor has the second one
where the first is the base's own beginning of a text, which a pair may not have; nor any of the first word where a pair
has no beginning of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blackbox_proxy.answers.shown import shown_at
from blackbox_proxy.decoding.prompted import check_prompt
from blackbox_proxy.errors import InputError
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.serve.engine import Event, Placed, TextWanted
from blackbox_proxy.serve.text import echoed_part, offsets, written
from blackbox_proxy.text.shown import of_ids
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.tuner import ProxyTuner
from blackbox_proxy.types import Position, Prompt, Usage


def check_echo(base: Base, wanted: TextWanted) -> None:
    """Raise InputError where this base's prompts cannot be repeated, or not be scored; sends nothing."""
    if base.vocabulary is None:
        raise InputError("'echo' needs the base's tokenizer, which this server does not know")
    if wanted.top_logprobs is not None and not base.abilities.scores:
        raise InputError("'echo' with 'logprobs' needs a base that scores given text, and this one does not")


async def echoed(base: Base, tuner: ProxyTuner, wanted: TextWanted, ids: Sequence[int]) -> Event:
    """The prompt, or its last tokens (`echo_last`), as the first event of an answer. Raises BlackboxError."""
    vocabulary = base.vocabulary
    assert vocabulary is not None, "checked"
    text, begins = echoed_part(wanted.prompt, ids, vocabulary, wanted.echo_last)
    entries: tuple[Placed, ...] = ()
    usage = Usage()
    if wanted.top_logprobs is not None:
        positions, usage = await _scored(base, tuner, vocabulary, ids, wanted.top_logprobs)
        shown = zip(positions[len(positions) - len(begins) :], offsets(text, begins), strict=True)
        entries = tuple(Placed(position, offset, generated=False) for position, offset in shown)
    return Event(text.decode("utf-8", "ignore"), entries, upstream=usage)


async def _scored(
    base: Base, tuner: ProxyTuner, vocabulary: Vocabulary, ids: Sequence[int], k: int
) -> tuple[list[Position], Usage]:
    tokens = [vocabulary.token_of(index) for index in ids]
    begun = _beginning(tuner.pairs, vocabulary, ids)
    nothing = [Position(token, None, (), np.empty(0)) for token in tokens[:begun]]
    if begun == len(ids):
        return nothing, Usage()
    prompt = of_ids(ids[:begun], vocabulary)
    positions, usage = await shown_at(base, tuner.pairs, prompt, tokens[begun:], tuner.equation, k)
    return [*nothing, *positions], usage


def _beginning(pairs: Sequence[Pair], vocabulary: Vocabulary, ids: Sequence[int]) -> int:
    """How many of the first ids everything else is scored after: as few as every pair can be shown. A pair that has no
    beginning of its own reads the first of its tokens before it can say what follows: it is shown a whole word, or it
    would have cut the text where its tokenizer does not.
    """
    counts = iter(range(1, len(ids)))
    first = next((count for count in counts if _takes(pairs, of_ids(ids[:count], vocabulary))), len(ids))
    if first == len(ids) or _takes(pairs, "") or _ends_a_word(vocabulary, ids, first):
        return first
    return next((count for count in counts if _ends_a_word(vocabulary, ids, count)), first)


def _takes(pairs: Sequence[Pair], prompt: Prompt) -> bool:
    try:
        check_prompt(pairs, prompt, 1)
    except InputError:
        return False
    return True


def _ends_a_word(vocabulary: Vocabulary, ids: Sequence[int], count: int) -> bool:
    before, after = (written(part, vocabulary) for part in (ids[:count], ids[count : count + 1]))
    return bool(before) and not before[-1:].isspace() and after[:1].isspace()
