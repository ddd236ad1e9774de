"""Questions about text that is given: does a continuation of half the draft say what the draft said, and is a prompt
scored?
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blackbox_proxy.dialects.findings import EXACT
from blackbox_proxy.dialects.table import Prefill
from blackbox_proxy.errors import BadRequest, BadResponse, BlackboxError, BudgetReached, ServerFailed
from blackbox_proxy.probing.answers import Answered, comparison, cuts, sound
from blackbox_proxy.probing.client import said
from blackbox_proxy.probing.inquiry import ANY_ID, IDS_OUT, Inquiry

_WAYS = (
    Prefill(),
    Prefill(body={"continue_final_message": True, "add_generation_prompt": False}),
    Prefill(body={"continue_final_message": True}),
    Prefill(message={"prefix": True}),
)


# -- going on from a prefix -------------------------------------------------------------------------------------------


async def prefix_ids(about: Inquiry) -> None:
    """Sent the ids of the prompt and of half the draft, does it write the other half?"""
    try:
        await _continued_ids(about)
    except (BadRequest, BadResponse, ServerFailed):
        about.found["ids_in"] = False
        raise


async def _continued_ids(about: Inquiry) -> None:
    ids, rows = about.drawn_ids()
    extra = IDS_OUT if about.draft_with_ids else {}
    vocabulary = about.vocabulary
    known = about.prompt_ids
    if not known and vocabulary is not None:
        known = list(vocabulary.prompt_ids(about.prompt))
    if len(ids) < 4:
        await about.asker.ask([ANY_ID, ANY_ID - 1, ANY_ID - 2], 1, about.k)
        about.found["ids_in"] = True
        return
    if not known:  # then the draft's own tokens are the prompt
        known = ids[:4]
        answer = await about.asker.ask(known, 6, about.k, **extra)
        about.found["ids_in"] = True
        rows = sound(answer.rows, vocabulary)
        ids = [row.sampled.id for row in rows if row.sampled.id is not None]
        if len(ids) < max(2, len(rows)):
            return
    half = len(ids) // 2
    answer = await about.asker.ask([*known, *ids[:half]], len(ids) - half, about.k, **extra)
    about.found["ids_in"] = True
    about.found["ids_drift"] = comparison(rows[half:], answer.rows).drift


async def prefix_text(about: Inquiry) -> None:
    """The same with text, cut where a word ends."""
    for count, text in cuts(about.draft, about.vocabulary)[:2]:
        answer = await about.asker.ask(f"{about.prompt}{text}", min(3, len(about.draft) - count), about.k)
        drift = comparison(about.draft[count:], answer.rows).drift
        if drift is not None:
            about.found["text_drift"] = min(drift, about.found.get("text_drift") or drift)
        if drift is not None and drift < EXACT:
            return


async def prefill(about: Inquiry) -> None:
    """Sent half the draft as the assistant's last message, which way makes it write the other half?"""
    places = cuts(about.draft, about.vocabulary)
    if not places:
        about.refused["prefill"] = "the draft could not be cut at whole characters"
        return
    own = about.asker.dialect.prefill
    ways = [way for way in (own, *_WAYS) if way is not None]
    ways = [way for place, way in enumerate(ways) if (way.body, way.message) not in [_of(w) for w in ways[:place]]]
    why: list[str] = []
    for count, text in places[:2]:
        for way in ways:
            try:
                answer = await _begun(about, text, way)
            except BudgetReached:
                raise
            except BlackboxError as error:
                why.append(said(error))
                continue
            found = comparison(about.draft[count:], answer.rows)
            if found.close:
                about.found |= {"prefill": {"body": dict(way.body), "message": dict(way.message)}}
                about.found |= {"prefill_drift": found.drift, "repeats": answer.text.startswith(text)}
                await _space(about, text, way, answer)
                return
            why.append("a new turn was begun")
        ways = ways[:1]
    about.found["prefill"] = {}
    about.refused["prefill"] = "; ".join(dict.fromkeys(why))[:200]


async def _begun(about: Inquiry, text: str, way: Prefill) -> Answered:
    messages = [{"role": "user", "content": about.prompt}, {"role": "assistant", "content": text, **way.message}]
    return await about.asker.ask(messages, 2, about.k, **way.body)


async def _space(about: Inquiry, text: str, way: Prefill, without: Answered) -> None:
    """Whether a space at the end of what is continued makes a difference."""
    answer = await _begun(about, f"{text} ", way)
    drift = comparison(without.rows[:1], answer.rows[:1]).drift
    about.found["keeps_space"] = drift is None or drift > max(EXACT, 2 * (about.found.get("drift") or 0.0))


# -- scoring a prompt -------------------------------------------------------------------------------------------------


async def echo(about: Inquiry) -> None:
    """Sent prompt and half the draft, does `echo` give that half the log probabilities that it had when drafted?"""
    for count, text in [*cuts(about.draft, about.vocabulary)[:2], (0, "")]:
        prompt = f"{about.prompt}{text}"
        try:
            answer = await about.asker.ask(prompt, 1, about.k, echo=True)
        except BadRequest as error:
            about.found["echo"] = "refused"
            about.refused["echo"] = said(error)
            await _prompt_logprobs(about)
            return
        scored = sum(bool(row.shown) and row.sampled.logprob is not None for row in answer.rows)
        if scored < 4:
            about.found["echo"] = "text" if answer.text.startswith(prompt) else "ignored"
            await _prompt_logprobs(about)
            return
        about.found["echo"] = "scored"
        about.found["prompt_logprobs"] = isinstance(answer.choice.get("prompt_logprobs"), list) or None
        given = answer.rows[len(answer.rows) - 1 - count : len(answer.rows) - 1]
        drift = comparison(about.draft[:count], given).drift if count else None
        if drift is not None:
            about.found["echo_drift"] = min(drift, about.found.get("echo_drift") or drift)
        if drift is None or drift < EXACT:
            break
    await _echo_more(about)


async def _echo_more(about: Inquiry) -> None:
    if about.native:
        return
    try:
        answer = await about.ask(1, echo=True, echo_last=2)
        about.found["echo_last"] = 1 < len(answer.rows) <= 4
    except BadRequest:
        about.found["echo_last"] = False
    try:
        _, rows, _ = await about.asker.stream(about.prompt, 1, about.k, echo=True)
        about.found["echo_streams"] = rows >= 4
    except BadRequest:
        about.found["echo_streams"] = False


async def _prompt_logprobs(about: Inquiry) -> None:
    if about.native:
        return
    try:
        answer = await about.asker.ask(about.prompt, 1, 1, prompt_logprobs=1)
        about.found["prompt_logprobs"] = isinstance(answer.choice.get("prompt_logprobs"), list)
    except BadRequest as error:
        about.found["prompt_logprobs"] = False
        about.refused["prompt_logprobs"] = said(error)


def _of(way: Prefill) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return way.body, way.message
