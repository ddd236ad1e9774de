"""From a prompt to the ids that a model is shown: its special tokens, its chat template, and no end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blackbox_proxy.errors import InputError
from blackbox_proxy.text.pieces import name_panic
from blackbox_proxy.text.prompts import as_text
from blackbox_proxy.types import Prompt, Rendering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Renderer:
    """How one tokenizer renders prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._appended = count_appended(self._cut)

    def __call__(self, prompt: Prompt, rendering: Rendering) -> list[int]:
        text = as_text(prompt, rendering, self.chat if self._tokenizer.chat_template else None)
        bos = self._tokenizer.bos_token
        # A chat template writes its own special tokens; so may a callable, and then no second BOS is wanted.
        if rendering == "chat" or (bos and text.startswith(str(bos))):
            return self._cut(text, special=False)
        ids = self._cut(text, special=True)
        return ids[: len(ids) - self._appended]

    def chat(self, messages: list[Any]) -> str:
        """The messages as the model's template writes them, up to where its answer begins. Raises InputError."""
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise whatever their author liked
            raise InputError(
                f"the chat template refuses these messages: {' '.join(str(error).split()) or type(error).__name__}",
                hint="Look at its rules about roles and their order, or render the prompt with a function of your own.",
            ) from error

    def _cut(self, text: str, special: bool) -> list[int]:
        try:
            return [int(index) for index in self._tokenizer(text, add_special_tokens=special)["input_ids"]]
        except BaseException as error:
            name_panic(error)
            raise


def count_appended(cut: Callable[[str, bool], Sequence[int]]) -> int:
    """How many tokens a tokenizer writes *after* a text, such as the end that it was saved with for training. cut: a
    text to its ids, with the tokenizer's own special tokens or without.

    A prompt is a text that goes on: they are no part of it.
    """
    for text in ("a", "1", ".", "日"):
        bare, whole = list(cut(text, False)), list(cut(text, True))
        for before in range(len(whole) - len(bare) + 1 if bare else 0):
            if whole[before : before + len(bare)] == bare:
                return len(whole) - before - len(bare)
    return 0
