"""Why a server says that its text ended: every word that is known for it, and what it means here. Pure.

Read without case, and without a prefix such as `FINISH_REASON_`. A server may say it in another place than others, or
in its own words (Gemini's routes, Cohere, Anthropic's and Bedrock's gateways, TGI, SGLang, trtllm): the kinds are four,
and a word that is not known is none of an end or a limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Ended = Literal["stop", "length", "content_filter", "other"]
"""The model's own end, a limit on tokens, a filter that withheld what follows, anything else."""

_WORDS: Mapping[Ended, str] = {
    "stop": "stop stopped stop_sequence stop_sequence_reached stop_token stop_words stop_string eos eos_token eos_found"
    " end end_id end_turn end_of_text end_of_sequence endoftext complete completed finish finished done normal success",
    "length": "length max_length max_token max_tokens max_tokens_reached max_new_tokens max_output_tokens"
    " max_completion_tokens model_length model_context_window_exceeded context_length context_length_exceeded"
    " token_limit error_limit limit truncated incomplete",
    "content_filter": "content_filter content_filtered contentfilter content_filter_error filter filtered moderation"
    " safety image_safety recitation image_recitation blocklist prohibited_content image_prohibited_content spii"
    " language error_toxic guardrail guardrail_intervened guardrails refusal sensitive blocked risk_control",
}
_BROKEN = frozenset(
    ("abort", "aborted", "cancel", "canceled", "cancelled", "error", "timeout", "insufficient_system_resource")
)
_APART = re.compile(r"[-\s]+|(?<=[a-z])(?=[A-Z])")  # max-tokens, maxTokens
_KNOWN: Mapping[str, Ended] = {word: kind for kind, words in _WORDS.items() for word in words.split()}


def said_of(reason: object) -> str | None:
    """The server's word; None where it gave none. SGLang and Mistral-like servers put it into an object."""
    if isinstance(reason, Mapping):
        reason = reason.get("type") or reason.get("reason")
    if reason is None or reason == "":  # "" is what some servers send before the last chunk
        return None
    return str(reason)[:80]


def ended_by(said: str | None) -> Ended | None:
    """What the server's word means; None where the text could have gone on: no word, or one that says that the server
    broke off.
    """
    word = _APART.sub("_", (said or "").strip()).lower().removeprefix("finish_reason_")
    if word in ("", "null", "none", "unspecified", "not_finished", "in_progress") or word in _BROKEN:
        return None
    return _KNOWN.get(word, "other")
