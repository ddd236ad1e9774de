"""What can be said of a prompt before any tokenizer has seen it: its text, whether it is whole, and about how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blackbox_proxy.errors import InputError
from blackbox_proxy.types import Prompt, Rendering

CHARACTERS_PER_TOKEN = 4


def check_text(text: str, what: str = "the prompt") -> None:
    """Raise InputError where `text` holds half a character: JSON and Python can carry one, no tokenizer can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds half a character (a lone surrogate) at {error.start}",
            hint='Read the text with errors="replace", or repair it.',
        ) from error


def joined(prompt: Any) -> Any:
    """A prompt whose messages have text for content: a list of text parts is joined. Raises InputError for a part that
    is no text (an image, a sound), which no model here can be shown.
    """
    if isinstance(prompt, str) or not any(
        isinstance(one, Mapping) and isinstance(one.get("content"), list) for one in prompt
    ):
        return prompt
    return [{**message, "content": _text_of(message["content"])} for message in prompt]


def _text_of(content: Any) -> str:
    if not isinstance(content, list):
        return str(content)
    for part in content:
        kind = part.get("type", "no type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise InputError(f"a message has a part that is no text: {kind}", hint="Give its content as text.")
    return "".join(part["text"] for part in content)


def guessed_tokens(prompt: Prompt) -> float:
    """About how many tokens a prompt is: its ids, or a quarter of its characters."""
    if isinstance(prompt, str):
        return len(prompt) / CHARACTERS_PER_TOKEN
    return sum(len(part["content"]) / CHARACTERS_PER_TOKEN if isinstance(part, Mapping) else 1.0 for part in prompt)


def as_text(prompt: Any, rendering: Rendering, chat: Callable[[list[Any]], str] | None) -> str:
    """A prompt of text or messages as one text; `chat` is the model's template, None where it has none. InputError."""
    if callable(rendering):
        return rendering(prompt)
    if rendering == "chat":
        if chat is None:
            raise InputError(
                "this model has no chat template",
                hint='Render its prompt as "raw", or give a function from the prompt to text.',
            )
        return chat([{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt))
    if rendering != "raw":
        raise InputError(f"unknown rendering {rendering!r}", hint='Use "raw", "chat" or a function.')
    return prompt if isinstance(prompt, str) else "\n\n".join(str(message["content"]) for message in prompt)
