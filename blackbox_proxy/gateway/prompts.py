"""What a request gives -> what the base is asked and what the pair is shown. Pure, but for the tokenizer.

A pair has a vocabulary of its own and takes text or messages. Where the base is given token ids, or an answer that was
begun, both stand for the same text, said to each in its own way (text/shown.py): what cannot be part of the
pair's prompt (the beginning of an answer, half a character) is shown to it as tokens that were issued already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from blackbox_proxy.errors import InputError
from blackbox_proxy.serve.engine import Ending, TextWanted
from blackbox_proxy.text.shown import Both, of_ids
from blackbox_proxy.text.vocabulary import Vocabulary, is_ids
from blackbox_proxy.types import Message, Prompt, Rendering, Token


@dataclass(frozen=True, slots=True)
class Reader:
    """How one base is given prompts. rendering: how it sees them, if `api` is completions; template: a Jinja template
    that makes messages one text, for the base and the pair alike, in place of what each does with messages.
    """

    vocabulary: Vocabulary | None
    api: Literal["completions", "chat"] = "completions"
    rendering: Rendering = "raw"
    template: str | None = None

    def read(self, wanted: TextWanted) -> Prompt:
        """The prompt for a tuner. Raises InputError."""
        prompt = wanted.prompt
        if wanted.add_special_tokens is not None:
            raise InputError("'add_special_tokens' cannot be chosen here", hint="The tokenizer's own way is used.")
        if isinstance(prompt, str):
            return prompt
        if is_ids(prompt):
            return self.of_ids(prompt)
        return self._of_messages([message for message in prompt if isinstance(message, Mapping)], wanted.ending)

    def of_ids(self, ids: Sequence[int]) -> Prompt:
        """Token ids of the base. Raises InputError."""
        vocabulary = self.vocabulary
        if vocabulary is None:
            raise InputError(
                "a prompt of token ids needs the base's tokenizer, which this server does not know",
                hint="Send the prompt as text.",
            )
        return of_ids(ids, vocabulary)

    def length(self, prompt: Prompt) -> int | None:
        """Tokens of the prompt as the base sees it; None where only the API knows."""
        ids = self.ids(prompt)
        return None if ids is None else len(ids)

    def ids(self, prompt: Prompt) -> tuple[int, ...] | None:
        """The prompt as ids of the base; None where only the API knows them."""
        if is_ids(prompt):
            return tuple(prompt)
        if self.vocabulary is None or self.api == "chat":
            return None
        return self.vocabulary.prompt_ids(prompt, self.rendering)

    def _of_messages(self, messages: list[Message], ending: Ending) -> Prompt:
        begun = ""
        if ending == "none":
            raise InputError(
                "'add_generation_prompt' must be true, unless the last message is continued",
                hint="Leave it out.",
            )
        if ending == "continue":
            begun = str(messages[-1]["content"])
        asked = messages[:-1] if ending == "continue" else messages
        if self.template is not None:
            return f"{render(self.template, asked)}{begun}"
        if self.api == "completions" and self.rendering == "raw":
            self._check_flat(asked)
        if ending != "continue":
            if asked[-1]["role"] == "assistant" and self.api == "chat":
                raise InputError(
                    "the last message is the assistant's, and some servers continue that",
                    hint="Send 'continue_final_message': true and 'add_generation_prompt': false, or a user's message.",
                )
            return asked
        return self._begun(asked, messages[-1], begun) if begun else asked

    def _check_flat(self, messages: Sequence[Message]) -> None:
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise InputError(
                "this model is served without a chat template, so it takes a single message of the user",
                hint="The server's --chat-template or --base-prompt chat say how messages become text.",
            )

    def _begun(self, asked: Sequence[Message], last: Message, begun: str) -> Prompt:
        """An answer that was begun is continued: for the pair its beginning is text that was issued."""
        if not asked:
            raise InputError("there is no message before the one to continue", hint="Send the question, too.")
        vocabulary = self.vocabulary
        issued = [Token(bytes=begun.encode(), text=begun)]
        if vocabulary is not None:
            issued = [vocabulary.token_of(index) for index in vocabulary.encode([begun.encode()])[0]]
        if self.api == "chat":
            return Both.of([*asked, {**last, "content": begun}], asked, issued)
        if vocabulary is None:
            raise InputError(
                "a message can be continued only where the base's tokenizer is known", hint="Send the prompt as text."
            )
        ids = [*vocabulary.prompt_ids(asked, self.rendering), *(token.id for token in issued if token.id is not None)]
        return Both.of(ids, asked, issued)


def render(template: str, messages: Sequence[Message]) -> str:
    """Messages as text, up to where an answer begins. Raises InputError where the template refuses them."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(why: str) -> None:
        raise ValueError(why)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(messages=list(messages), add_generation_prompt=True)
    except Exception as error:  # templates raise whatever their author liked
        raise InputError(
            f"the chat template refuses these messages: {' '.join(str(error).split()) or type(error).__name__}",
            hint="Look at its rules about roles and their order.",
        ) from error
