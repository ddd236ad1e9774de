"""The questions of a probe, each on its own: one that fails is a finding, and the next is asked all the same.

All use one prompt and one greedy draft of it. What is compared is always two answers of the server: what it says with a
field and without, or a draft and its own continuation from a prefix of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from blackbox_proxy.dialects.findings import Findings
from blackbox_proxy.dialects.table import Dialect
from blackbox_proxy.errors import BlackboxError, BudgetReached, ConnectionFailed
from blackbox_proxy.probing import bending, continuing, drafting
from blackbox_proxy.probing.client import said
from blackbox_proxy.probing.inquiry import Inquiry

Question = Callable[[Inquiry], Awaitable[None]]


async def ask_all(about: Inquiry, told: Callable[[str], None]) -> None:
    """told: called with the name of each question. Raises ConnectionFailed where the server is gone."""
    lost = 0
    for name, question in _questions(about).items():
        told(name)
        try:
            await question(about)
            lost = 0
        except BudgetReached as error:
            about.refused[name] = f"not asked: {error}"
        except BlackboxError as error:
            lost += isinstance(error, ConnectionFailed)
            if lost > 1:
                raise
            about.refused[name] = said(error)


def _questions(about: Inquiry) -> dict[str, Question]:
    if not about.k:
        return {"logit_bias": bending.bias_unseen}
    asked: dict[str, Question] = {"draft": drafting.drafts, "repeats": drafting.repeats}
    asked |= {} if about.native else {"ids": drafting.ids_out}
    asked |= {"logit_bias": bending.bias, "temperature": drafting.temperature, "sample": drafting.sample}
    asked |= {"named tokens": bending.shown_ids}
    if about.asker.api == "completions":
        asked |= {"token-id prompt": continuing.prefix_ids, "text prefix": continuing.prefix_text}
        asked |= {"echo": continuing.echo}
    else:
        asked |= {"prefill": continuing.prefill}
    asked |= {} if about.native else {"streaming": drafting.stream}
    return asked | {"end of text": drafting.end}


def findings(about: Inquiry, before: Dialect, gives: Mapping[str, str], headers: Mapping[str, str]) -> Findings:
    """What was found. before: the dialect that was asked in first. gives: API -> what it gives."""
    asker, spelling = about.asker, about.asker.spelling
    found = {
        "chat_length": asker.dialect.chat_length if asker.api == "chat" else None,
        "omit": tuple(name for name in asker.dialect.omit if name not in before.omit),
        "joined": spelling.joined or None,
        "strings": "refused" if asker.misspelled else asker.writing.name if about.k else None,
        "bytes": spelling.bytes,
        "parts": spelling.parts,
        "wrong": spelling.wrong if spelling.checked else None,
        "sentinels": tuple(sorted(spelling.sentinels)),
    }
    return Findings(
        url=asker.url,
        model=asker.model,
        api=asker.api,
        dialect=asker.dialect.name,
        asked_at=datetime.now(UTC).isoformat(timespec="seconds"),
        apis=dict(gives),
        limits=dict(headers),
        refused=about.refused,
        calls=asker.purse.calls,
        prompt_tokens=asker.purse.usage.prompt_tokens,
        completion_tokens=asker.purse.usage.completion_tokens,
        **(found | about.found),
    )
