"""Questions about a draft as it is: how it is written, whether it comes again, and how it streams and ends."""

from __future__ import annotations

from blackbox_proxy.errors import BadRequest
from blackbox_proxy.probing.answers import comparison, cuts, greedy, name_of, overwritten, sharpened, sound
from blackbox_proxy.probing.inquiry import IDS_OUT, MOST_BIAS, Inquiry

_DRAFT = 12  # tokens
_LONG = 8  # tokens of a draft that can be cut well
_REPEATS = 2
_COLD = 0.5
_SHARPER = 1.5  # at half the temperature distances double where the numbers follow it


async def drafts(about: Inquiry) -> None:
    """A draft of a prompt that is answered at some length: one that ends at once shows nothing."""
    vocabulary, best = about.vocabulary, -1
    for prompt in about.prompts:
        answer = await about.asker.ask(prompt, _DRAFT, about.k)
        rows = sound(answer.rows, vocabulary)
        length = len(rows) if cuts(rows, vocabulary) else 0
        if length > best:
            best, about.prompt, about.draft, about.text = length, prompt, rows, answer.text
        if length >= _LONG:
            break
    about.found["greedy"] = greedy(about.draft)
    about.found["overwritten"] = overwritten(about.draft) or None
    about.found["ids"] = "shown" if about.asker.spelling.ids else "no"


async def repeats(about: Inquiry) -> None:
    """Asked the same again, does it answer the same?"""
    same, drift = True, 0.0
    for _ in range(_REPEATS):
        answer = await about.ask(_DRAFT)
        compared = comparison(about.draft, sound(answer.rows, about.vocabulary))
        same = same and answer.text == about.text
        drift = max(drift, compared.drift or 0.0)
        about.found |= {"same_text": same, "drift": drift, "repeated": about.found.get("repeated", 0) + 1}


async def ids_out(about: Inquiry) -> None:
    """Does it show token ids where vLLM's fields ask for them?"""
    if about.found.get("ids") == "shown":
        return
    answer = await about.ask(_DRAFT, **IDS_OUT)
    about.draft_with_ids = [row for row in answer.rows if row.sampled.id is not None]
    about.found["ids"] = "on request" if about.draft_with_ids else "no"
    told = answer.choice.get("prompt_token_ids") or answer.body.get("prompt_token_ids")
    about.prompt_ids = [index for index in told if isinstance(index, int)] if isinstance(told, list) else []


async def temperature(about: Inquiry) -> None:
    """Do the log probabilities shown move with the temperature?"""
    answer = await about.ask(1, temperature=_COLD)
    if about.draft and answer.rows:
        grown = sharpened(about.draft[0], answer.rows[0])
        if grown is not None:
            about.found["after"] = "temperature" if grown > _SHARPER else "nothing"


async def sample(about: Inquiry) -> None:
    """Draw at temperature 1 with k = 2: is a drawn token beyond the two a third candidate, or missing?"""
    k = min(2, about.k)
    answer = await about.asker.ask(about.prompt, _DRAFT, k, temperature=1.0)
    for row in answer.rows if "outside" not in about.found else ():
        names = {name_of(entry) for entry in row.shown}
        if len(row.shown) > k:
            about.found["outside"] = "listed"
        elif len(row.shown) == k and name_of(row.sampled) not in names:
            about.found["outside"] = "missing"


async def stream(about: Inquiry) -> None:
    """Does a stream have log probabilities, and its usage at the end?"""
    options = dict(about.asker.dialect.usage_stream) or {"include_usage": True}
    try:
        events, rows, usage = await about.asker.stream(about.prompt, 6, about.k, stream_options=options)
        about.found["stream_options"] = usage
    except BadRequest:
        events, rows, _ = await about.asker.stream(about.prompt, 6, about.k)
        about.found["stream_options"] = False
    streamed = "log probabilities" if rows else "text"
    about.found["streams"] = streamed if events > 1 else "whole"


async def end(about: Inquiry) -> None:
    """How the end of a text shows: forced by a bias where that works, else where some answer came to an end."""
    vocabulary = about.vocabulary
    if vocabulary is not None and vocabulary.end_ids and about.found.get("bias") == "honoured":
        bias = {str(index): MOST_BIAS for index in vocabulary.end_ids}
        await about.ask(2, logit_bias=bias)
    ended = about.asker.ended
    if ended is None:
        return
    row = ended.rows[-1] if ended.rows else None
    if row is None or (ended.text and ended.text.endswith(row.sampled.text) and row.sampled.text):
        about.found["end"] = "no entry"
    elif row.sampled.text == "":
        about.found["end"] = "an empty entry"
    else:
        about.found["end"] = f"written {row.sampled.text!r}"
