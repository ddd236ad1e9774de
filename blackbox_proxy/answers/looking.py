"""What base and pair say of each option of a question, before any weights are: what weights are learned from.

Asked about as for `choose`, whose figures come of the same: options of one token from the candidates at one place,
longer ones token by token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from blackbox_proxy.answers import scoring
from blackbox_proxy.answers.choices import Rule, asked_about, check, scored_forms
from blackbox_proxy.decoding.rows import Scored, Weigher
from blackbox_proxy.decoding.threads import on_thread
from blackbox_proxy.decoding.weighed import Weighed
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.types import Prompt, Usage

Looked = TypeVar("Looked")


@dataclass(frozen=True, slots=True, eq=False)
class ByForms:
    """The candidates of the one place at which it is decided, and those of them that count for each option."""

    weighed: Weighed
    found: Sequence[Sequence[int]]


async def forms(
    base: Base, pairs: Sequence[Pair], prompt: Prompt, options: Sequence[str], equation: Equation, rule: Rule
) -> tuple[ByForms | None, Usage]:
    """Of options that are told apart by one token, under an equation, and what it cost. None where the base shows
    nothing. Raises InputError before anything is sent, BaseError, PairError.
    """
    by = check(base, pairs, prompt, options, rule)
    assert by != "scores", "options of several tokens are looked at whole"
    asked = await asked_about(base, pairs, prompt, options, rule, by)
    weigher = Weigher(pairs, [equation], temperature=1.0)
    _, counted, _, scored = await on_thread(scored_forms, base, prompt, weigher, rule, asked)
    if scored is None:
        return None, asked.usage
    weighed = scored.under(0)
    found = [[weighed.index_of(token) for token, _ in each] for each in counted]
    return ByForms(weighed, [[i for i in indices if i is not None] for indices in found]), asked.usage


async def whole(
    base: Base,
    pairs: Sequence[Pair],
    prompt: Prompt,
    options: Sequence[str],
    equations: Sequence[Equation],
    at: Callable[[Scored], Looked],
) -> tuple[list[list[Looked]], Usage]:
    """What `at` makes of each token of each option, for a base that scores given text, and what it cost: one request
    for each option. Raises as `scoring.look`.
    """
    looked = await asyncio.gather(*(scoring.look(base, pairs, prompt, each, equations, at) for each in options))
    return [found for found, _ in looked], sum((usage for _, usage in looked), Usage())
