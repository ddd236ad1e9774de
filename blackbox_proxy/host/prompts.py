"""From what a request gives to the token ids a model is shown.

Messages go through the model's own chat template, or through a plain one ("User: …\\nAssistant: …") where it has none.
To continue an answer, its beginning is put behind the opening that the template writes for an answer: exactly the text
the model would have seen had it written that beginning itself, with all its white space. (Rendering it as a message
would let the template strip it.)
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from blackbox_proxy.errors import ContextTooLong, InputError
from blackbox_proxy.serve.engine import Ending, TextWanted
from blackbox_proxy.text.reading import own_text
from blackbox_proxy.text.rendering import count_appended

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

_PIECE = 1 << 16  # characters of a long text that are cut at a time, to see whether it fits
_BORDER = 16  # tokens by which such a piece may have more than its part of the text


class Prompts:
    """One tokenizer's way of reading prompts. template: a chat template in place of the tokenizer's own. window: the
    model's, in tokens; a text far beyond it is refused before all of it has been cut.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, window: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._window = window
        self._cutting = threading.Lock()  # requests come from threads, and a tokenizer is for one at a time
        own = template or tokenizer.chat_template
        self._template = own or DEFAULT_CHAT_TEMPLATE
        self._template_writes_special = bool(own)
        self._appended = count_appended(self._ids)  # no part of a prompt, which goes on

    def ids(self, wanted: TextWanted) -> tuple[int, ...]:
        """The token ids of the prompt. Raises InputError where the template refuses the messages, ContextTooLong."""
        if isinstance(wanted.prompt, str):
            return self._cut(wanted.prompt, wanted.add_special_tokens)
        if not _are_messages(wanted.prompt):
            return tuple(int(index) for index in wanted.prompt if isinstance(index, int))
        special = wanted.add_special_tokens
        if special is None and self._template_writes_special:
            special = False
        return self._cut(self.render(wanted.prompt, wanted.ending), special)

    def render(self, messages: Sequence[Mapping[str, str]], ending: Ending) -> str:
        """Messages as text."""
        begun = ""
        if ending == "continue":
            *messages, last = messages
            begun = last["content"]
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=ending != "none",
            )
        except Exception as error:  # templates raise whatever their author liked
            raise InputError(
                f"the chat template refuses these messages: {error}", hint="Look at its rules about roles and order."
            ) from error
        return f"{text}{begun}"

    def _cut(self, text: str, special: bool | None) -> tuple[int, ...]:
        if self._window is not None and len(text) > max(_PIECE, self._window):
            self._fits(text, self._window)
        if special is None:  # a text that begins with BOS wants no second one
            bos = self._tokenizer.bos_token
            special = not (bos and text.startswith(str(bos)))
        ids = self._ids(text, special)
        return ids[: len(ids) - self._appended] if special else ids

    def _ids(self, text: str, special: bool) -> tuple[int, ...]:
        with self._cutting:
            return tuple(int(index) for index in self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _fits(self, text: str, window: int) -> None:
        """Raise ContextTooLong where the pieces of a text have more tokens than the window, borders allowed for: cut
        whole, a text takes a hundred times its size in memory.
        """
        count = 0
        for place in range(0, len(text), _PIECE):
            count += len(self._ids(text[place : place + _PIECE], special=False)) - _BORDER
            if count > window:
                raise ContextTooLong(
                    f"the prompt has more than {count} tokens, but the window is {window}", hint="Shorten the prompt."
                )


def _are_messages(prompt: tuple[Any, ...]) -> TypeGuard[tuple[Mapping[str, str], ...]]:
    return bool(prompt) and isinstance(prompt[0], Mapping)


def read_template(given: str) -> str:
    """A chat template given as text or as the path of a file. Raises InputError."""
    if "{%" in given or "{{" in given:
        return given
    try:
        return own_text(Path(given), "the chat template")
    except InputError as error:
        raise InputError(
            f"no chat template in {given!r}: {error}", hint="Give a file, or the Jinja template itself."
        ) from error
