"""What can be said of a prompt before any tokenizer has seen it: whether it is whole text, and about how long it is."""

from __future__ import annotations

from collections.abc import Mapping

from blackbox_proxy.errors import InputError
from blackbox_proxy.types import Prompt

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


def guessed_tokens(prompt: Prompt) -> float:
    """About how many tokens a prompt is: its ids, or a quarter of its characters."""
    if isinstance(prompt, str):
        return len(prompt) / CHARACTERS_PER_TOKEN
    return sum(len(part["content"]) / CHARACTERS_PER_TOKEN if isinstance(part, Mapping) else 1.0 for part in prompt)
