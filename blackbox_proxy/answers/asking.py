"""Asking about options that the base does not show, and what the pairs say of all their forms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from blackbox_proxy.answers.forms import ShownForms, text_of
from blackbox_proxy.decoding.rows import Rows, opened, refine, score
from blackbox_proxy.decoding.threads import on_thread
from blackbox_proxy.protocols import Base, Pair, Session
from blackbox_proxy.types import Key, Prefix, Prompt, Token, Usage


async def ask(
    base: Base, pairs: Sequence[Pair], prompt: Prompt, shown: ShownForms
) -> tuple[Mapping[Key, float], Usage]:
    """log q of forms of the missing options. All forms, where a request can name several tokens; else the one that
    looks like the likeliest form shown, or that the expert would write.
    """
    at_once = base.abilities.reveals
    if at_once > 1:
        wanted = [token for option in shown.missing for token in shown.all_forms(option)]
    else:
        wanted = await on_thread(_likeliest_forms, base, pairs, prompt, shown)
    told: dict[Key, float] = {}
    usage = Usage()
    for start in range(0, len(wanted), at_once):
        some = wanted[start : start + at_once]
        answer = await base.reveal(Prefix(prompt), some)
        usage += answer.usage
        told |= {t.key: float(v) for t, v in zip(some, answer.logprobs, strict=True) if not math.isnan(v)}
    return told, usage


def _likeliest_forms(base: Base, pairs: Sequence[Pair], prompt: Prompt, shown: ShownForms) -> list[Token]:
    """One form for each missing option."""
    best = max(
        ((log_q, token, i) for i, found in enumerate(shown.found) for token, log_q in found),
        key=lambda entry: entry[0],
        default=None,
    )
    chosen: dict[int, Token] = {}
    for option in shown.missing:
        like = None if best is None else shown.forms.dressed_like(text_of(best[1]) or "", best[2], option)
        if like is not None:
            same = [token for token in shown.known[option] if token.bytes == like.encode()]
            if same or base.vocabulary is None:
                chosen[option] = same[0] if same else Token(bytes=like.encode(), text=like)
    rest = [option for option in shown.missing if option not in chosen and shown.all_forms(option)]
    if rest:
        with opened(pairs[:1], prompt, base.vocabulary) as (session,):
            rows = rows_of([session], base, shown)
        for option in rest:
            forms = shown.all_forms(option)
            chosen[option] = forms[int(np.argmax(rows[0].score(forms).log_expert))]
    return [chosen[option] for option in shown.missing if option in chosen]


def rows_of(sessions: Sequence[Session], base: Base, shown: ShownForms) -> Rows:
    """What each pair says after the prompt, with the models' own masses of all forms."""
    (rows,) = score(sessions, (), [shown.ahead(base.vocabulary is None)])
    refine(sessions, [(rows, [form for option in range(len(shown.found)) for form in shown.all_forms(option)])])
    return rows
