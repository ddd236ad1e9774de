"""Requests as another server reads them, in the terms of this one: pure functions.

`adapt` turns the JSON that a client of the emulated server sends into what requests.py reads, or into that server's
refusal; `ordered` puts on the `Order` what has no field there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.serve.emulation import Emulation
from blackbox_proxy.serve.requests import Order


def adapt(body: Any, emulation: Emulation, *, chat: bool) -> Any:
    """The body of a request in `host`'s own terms. Raises ApiError."""
    if not isinstance(body, Mapping):
        return body
    _refuse(body, emulation)
    found = {name: value for name, value in body.items() if name not in emulation.ignored}
    if emulation.seed != "seed":
        found.pop("seed", None)
        if emulation.seed in found:
            found["seed"] = found.pop(emulation.seed)
    if ("chat" if chat else "completions") not in emulation.scores:
        found.pop("logprobs", None)
        found.pop("top_logprobs", None)
    if chat:
        return _continued(_by_number(found, emulation), emulation)
    prompt = found.get("prompt")
    if not emulation.ids_in and isinstance(prompt, list) and any(not isinstance(item, str) for item in prompt):
        raise ApiError("Invalid type for 'prompt': token ids are not taken.", param="prompt", code="invalid_type")
    if found.get("echo"):
        if emulation.echo == "refused" and found.get("logprobs") is not None:
            raise ApiError("Setting 'echo' and 'logprobs' at the same time is not supported.", param="logprobs")
        if emulation.echo == "ignored":
            del found["echo"]
        elif emulation.zero and found.get("max_tokens") == 0:
            found["max_tokens"] = 1
    return found


def ordered(order: Order, body: Any, emulation: Emulation) -> Order:
    """The order with what the emulated server does unasked."""
    sent = body.get(emulation.penalty_field) if isinstance(body, Mapping) else None
    penalty = float(sent) if isinstance(sent, (int, float)) and sent > 0 else emulation.penalty
    scored = emulation.echo == "scored"
    texts = tuple(replace(wanted, after=emulation.after, penalty=penalty, echo_scored=scored) for wanted in order.texts)
    first = texts[0].prompt if texts and texts[0].ending == "continue" and emulation.repeats_prefill else ()
    last = first[-1] if isinstance(first, tuple) and first else None
    begun = last["content"] if isinstance(last, Mapping) else ""
    return replace(order, texts=texts, style=replace(order.style, emulation=emulation), begun=begun)


def _refuse(body: Mapping[str, Any], emulation: Emulation) -> None:
    for name, value in body.items():
        if emulation.strict is not None and name not in emulation.strict:
            raise ApiError(f"Extra inputs are not permitted: '{name}'.", param=name, code="extra_forbidden")
        values = emulation.refused.get(name)
        if values is not None and value is not None and (not values or value in values):
            raise ApiError(f"Invalid value for '{name}': {value!r}.", param=name, code="invalid_value")


def _by_number(body: dict[str, Any], emulation: Emulation) -> dict[str, Any]:
    number = body.get("logprobs")
    if emulation.chat_logprobs != "number" or isinstance(number, bool) or not isinstance(number, int):
        return body
    return body | {"logprobs": True, "top_logprobs": number}


def _continued(body: dict[str, Any], emulation: Emulation) -> dict[str, Any]:
    """The same with `continue_final_message` wherever that server would continue the last message."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    begun = isinstance(last, Mapping) and last.get("role") == "assistant"
    goes_on = {
        "asked": bool(body.get("continue_final_message")),
        "alone": bool(body.get("continue_final_message")),
        "trailing": begun,
        "marked": begun and isinstance(last, Mapping) and last.get("prefix") is True,
        "none": False,
    }[emulation.prefill]
    if emulation.prefill != "asked":
        body = {name: value for name, value in body.items() if name not in _CONTINUING}
        if goes_on:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
    if goes_on and emulation.strips and isinstance(last, Mapping) and isinstance(messages, list):
        body["messages"] = [*messages[:-1], {**last, "content": str(last.get("content") or "").rstrip()}]
    return body


_CONTINUING = ("continue_final_message", "add_generation_prompt")
