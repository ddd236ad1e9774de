"""Questions about fields that name tokens: does a bias bend the choice, are log probabilities of given ids shown?"""

from __future__ import annotations

from typing import Any

from blackbox_proxy.api.positions import RawPosition
from blackbox_proxy.errors import BadRequest, ServerFailed
from blackbox_proxy.probing.answers import Answered, comparison, logprobs_by_name, name_of
from blackbox_proxy.probing.inquiry import ANY_ID, IDS_OUT, MOST_BIAS, Inquiry


async def bias(about: Inquiry) -> None:
    """Does another token come under the largest bias, and do the numbers show it?"""
    answer, keys = await _biased(about)
    if not about.draft:
        return
    before, after = about.draft[0], answer.rows[0] if answer.rows else None
    honoured = after is None or name_of(after.sampled) != name_of(before.sampled)
    about.found |= {"bias": "honoured", "bias_keys": keys} if honoured else {"bias": "ignored"}
    if not honoured or after is None:
        return
    drift = comparison([before], [after]).drift
    about.found["reflected"] = drift is None or drift > 1.0
    if not about.found["reflected"]:
        _note_outside(about, before, after)


async def bias_unseen(about: Inquiry) -> None:
    """The same where no log probabilities are shown: by the text."""
    plain = await about.asker.ask(about.prompt, 1, None)
    bent, keys = await _biased(about)
    about.found |= {"bias": "honoured", "bias_keys": keys} if bent.text != plain.text else {"bias": "ignored"}


async def _biased(about: Inquiry) -> tuple[Answered, int]:
    """One token under the largest bias for another id; with as many keys as are usually taken, else with one."""
    index = about.other_ids()[0]
    others = {str(i): 0.0 for i in [i for i in range(ANY_ID) if i != index][: ANY_ID - 1]}
    for bias in (others | {str(index): MOST_BIAS}, {str(index): MOST_BIAS}):
        try:
            return await about.asker.ask(about.prompt, 1, about.k or None, logit_bias=bias), len(bias)
        except (BadRequest, ServerFailed) as error:
            if len(bias) == 1 or isinstance(error, ServerFailed):
                about.found["bias"] = "refused"
                raise
    raise AssertionError("one of the two returns or raises")


def _note_outside(about: Inquiry, before: RawPosition, after: RawPosition) -> None:
    """With k = 5 and another token forced: is it listed as the sixth, in place of the fifth ("cut"), or missing?"""
    own = name_of(after.sampled)
    if own in logprobs_by_name(before):
        return
    listed = own in {name_of(entry) for entry in after.shown}
    if not listed:
        about.found["outside"] = "missing"
    else:
        about.found["outside"] = "listed" if len(after.shown) > len(before.shown) else "cut"


async def shown_ids(about: Inquiry) -> None:
    """Are the log probabilities of two other ids shown in place of the likeliest tokens'?"""
    field = about.asker.dialect.named or "logprob_token_ids"
    ids = about.other_ids()[:2]
    fields: dict[str, Any] = {field: ids}
    fields |= IDS_OUT if about.found.get("ids") == "on request" else {}
    try:
        answer = await about.ask(1, **fields)
    except (BadRequest, ServerFailed):
        about.found["named"] = ""
        raise
    rows, usual = answer.rows[:1], (about.draft_with_ids or about.draft)[:1]
    if not rows or not usual:
        return
    names = {entry.id for entry in rows[0].shown}
    if names - {None}:
        honoured = set(ids) <= names
    else:
        honoured = set(logprobs_by_name(rows[0])) != set(logprobs_by_name(usual[0])) and len(rows[0].shown) in (2, 3)
    about.found["named"] = field if honoured else ""
