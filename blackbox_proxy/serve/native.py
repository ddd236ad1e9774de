"""SGLang's `/generate`, for an emulated server: a body -> `Order`, and what was written -> an answer. Pure functions.

Of its fields: `text` or `input_ids`, `sampling_params`, `return_logprob`, `top_logprobs_num`, `token_ids_logprob`,
`logprob_start_len`, `return_text_in_logprobs`. It does not stream here. A token is a triple: log probability, id, text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.serve.engine import Placed
from blackbox_proxy.serve.requests import Order, read_completion
from blackbox_proxy.serve.wire import Json, Style, lowered, spell
from blackbox_proxy.types import FinishReason, Usage

_SAMPLING = ("temperature", "top_p", "logit_bias", "top_k", "min_p", "repetition_penalty", "stop")


def read_generate(body: Any, model: str, limit: int) -> Order:
    """A request to generate one text. Raises ApiError."""
    if not isinstance(body, Mapping) or ("text" in body) == ("input_ids" in body):
        raise ApiError("Either 'text' or 'input_ids' is needed.")
    if body.get("stream"):
        raise ApiError("Streams of this route are not emulated.", param="stream")
    sampling = body.get("sampling_params") or {}
    start = body.get("logprob_start_len", -1)
    scored = bool(body.get("return_logprob"))
    asked: Json = {name: sampling[name] for name in _SAMPLING if name in sampling}
    asked |= {"model": model, "prompt": body.get("text", body.get("input_ids"))}
    asked |= {"max_tokens": sampling.get("max_new_tokens", 128), "seed": sampling.get("sampling_seed")}
    asked["echo"] = scored and start >= 0
    if scored:
        asked["logprobs"] = body.get("top_logprobs_num") or 0
        asked["logprob_token_ids"] = body.get("token_ids_logprob") or []
    order = read_completion(asked, model, limit)
    return replace(order, start=max(start, 0))


def generated(
    text: str,
    entries: Sequence[Placed],
    finish: FinishReason | None,
    usage: Usage,
    order: Order,
    prompt_ids: Sequence[int],
) -> Json:
    """The answer. `text` without the prompt."""
    wanted, style = order.texts[0], order.style
    meta: Json = {
        "id": "0",
        "finish_reason": {"type": finish},
        "prompt_tokens": len(prompt_ids),
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": 0,
    }
    written = [entry for entry in entries if entry.generated]
    if wanted.top_logprobs is not None:
        given = [entry for entry in entries if not entry.generated][order.start :]
        meta |= _columns("input", given, order.start, wanted.top_logprobs, style, by_id=False)
        meta |= _columns("output", written, -1, wanted.top_logprobs, style, by_id=bool(wanted.shown_ids))
    return {"text": text, "output_ids": [entry.position.token.id for entry in written], "meta_info": meta}


def _columns(side: str, entries: Sequence[Placed], start: int, k: int, style: Style, *, by_id: bool) -> Json:
    """The first token from `start` on has no log probability: what comes before it is not looked at."""
    own: list[list[Any]] = []
    tops: list[list[list[Any]] | None] = []
    for place, entry in enumerate(entries):
        position = entry.position
        hidden = start >= 0 and place == 0
        logprob = None if hidden or position.logprob is None else lowered(position.logprob, style)
        own.append([logprob, position.token.id, spell(position.token, style)])
        pairs = zip(position.tokens, position.logprobs.tolist(), strict=True)
        row = [[lowered(value, style), token.id, spell(token, style, listed=True)] for token, value in pairs]
        tops.append(None if hidden else row)
    columns: Json = {f"{side}_token_logprobs": own}
    if by_id:
        columns[f"{side}_token_ids_logprobs"] = [None if row is None else row[1:] for row in tops]
    if k and not by_id:
        columns[f"{side}_top_logprobs"] = tops
    return columns
