"""What a request carries of a question: made once, and read by all who need it. Pure, no I/O.

    carried(Ask, Settings) -> Sent     payload: the request; echo: the given text in the answer;
                                       recut: where text is cut anew; meter: how much was sent

A prefix travels in one of two ways: as token ids (exact), or as text, which the server cuts into tokens again.
`travels` decides which, and says None where neither carries exactly the issued tokens; `can_continue` is that answer.
`check` refuses what cannot be asked before anything is spent.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

from blackbox_proxy.api.scripts import Writing
from blackbox_proxy.dialects.table import Api, Dialect
from blackbox_proxy.errors import CannotContinue, ContextTooLong, InputError
from blackbox_proxy.protocols import Ask
from blackbox_proxy.text.prompts import as_text as rendered
from blackbox_proxy.text.prompts import check_text
from blackbox_proxy.text.vocabulary import Vocabulary, is_ids
from blackbox_proxy.types import Prefix, Prompt, Rendering, Token

Way = Literal["ids", "text"]
_MOST_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """What all requests of one base have in common. `top_logprobs` is k; `vocabulary` None where it is unknown.
    `trusts_drafts`: where it is unknown, drafts count as far as they go, however text sent anew would be cut.
    `writing`: how its answers were seen to write tokens so far.
    """

    model: str
    api: Api
    dialect: Dialect
    top_logprobs: int
    vocabulary: Vocabulary | None = None
    rendering: Rendering = "raw"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    trusts_drafts: bool = False
    writing: Writing = field(default_factory=Writing, repr=False, compare=False)
    _remembered: dict[Hashable, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def kept(self) -> int:
        """How many candidates of a position do not depend on what was drawn there."""
        own = self.api == "chat" and self.dialect.chat_counts_own
        return max(1, self.top_logprobs - own)

    def prompt_ids(self, prompt: Prompt, rendering: Rendering | None = None) -> tuple[int, ...]:
        """The prompt's ids in this rendering, by default that of completions; where the vocabulary is known.

        A prompt is rendered and cut once: every request of a text has it again.
        """
        assert self.vocabulary is not None
        rendering = self.rendering if rendering is None else rendering
        key = None if callable(rendering) else _key(prompt)
        if key is None:
            return self.vocabulary.prompt_ids(prompt, rendering)
        found = self._remembered.get((rendering, key))
        if found is None:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[rendering, key] = self.vocabulary.prompt_ids(prompt, rendering)
        return found


def _key(prompt: Prompt) -> Hashable | None:
    """What a prompt is remembered by: its text, or the fields of its messages; None where they hold more than text."""
    if isinstance(prompt, str):
        return prompt
    messages = [message for message in prompt if isinstance(message, Mapping)]
    if is_ids(prompt) or not all(isinstance(value, str) for message in messages for value in message.values()):
        return None
    return tuple(frozenset(message.items()) for message in messages)


# -- what travels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    """One question as a request carries it.

    way: how its tokens travel. prompt: the ids or the text of a completion, the messages of a chat. prefill: the fields
    of the body that make a chat go on with its last message. given: those of `ask.given` that are sent, at the end of
    the prompt. before: the prompt of a completion without them.

    Given tokens are sent up to the first that could not be continued from in the same way: say the second of three ends
    inside a character and all travel as text; then the first is sent alone. What follows it is not wanted (`goes_on` is
    False), but no API writes nothing at all, so one token is asked for.
    """

    ask: Ask
    way: Way
    prompt: list[int] | str | list[dict[str, Any]]
    prefill: Mapping[str, Any] = field(default_factory=dict)
    given: tuple[Token, ...] = ()
    before: list[int] | str = ""

    @property
    def goes_on(self) -> bool:
        """Whether the continuation after the given tokens is what was asked for."""
        return len(self.given) == len(self.ask.given)

    @property
    def n(self) -> int:
        """How many tokens to draft."""
        return self.ask.n if self.goes_on else 1


def carried(ask: Ask, settings: Settings) -> Sent | None:
    """How this is asked; None where nothing of the given tokens can be sent.

    Raises InputError, and CannotContinue where `can_continue` is false.
    """
    prefix = ask.prefix
    _check_prompt(prefix.prompt, settings)
    way = travels(prefix, settings)
    if way is None:
        raise CannotContinue(
            f"the {settings.dialect.name!r} dialect's {settings.api} API cannot continue from exactly these tokens",
            hint="Where tokens travel as text, they must be whole characters. A server that takes token ids "
            '(api="completions", tokenizer=…) continues from any token.',
        )
    given = tuple(takewhile(lambda token: _travels_on(token, way), ask.given))
    if ask.given and not given:
        return None
    if settings.api == "chat":
        messages, prefill = _as_messages(prefix, settings.dialect)
        return Sent(ask, way, messages, prefill)
    if way == "ids":
        ids = _as_ids(prefix, settings)
        return Sent(ask, way, ids + _ids_of(given), given=given, before=ids)
    text = _as_text(prefix, settings)
    return Sent(ask, way, text + (_text_of(given) or ""), given=given, before=text)


def travels(prefix: Prefix, settings: Settings) -> Way | None:
    """How a request can carry exactly this prefix; None where it cannot.

    The end of a text is never continued from. Ids need every issued id; text needs every token's bytes, together whole
    UTF-8, and no special tokens among them, because those leave no trace in text.
    """
    tokens = prefix.tokens
    if any(token.end for token in tokens):
        return None
    if settings.api == "chat":
        if not tokens:
            return "text"
        if settings.dialect.prefill is None:
            return None
        text = _text_of(prefix.tokens)
        keeps = settings.dialect.prefill.keeps_space or (text is not None and not text[-1].isspace())
        return "text" if text is not None and keeps else None
    known = settings.vocabulary is not None
    takes_ids = settings.dialect.prefix == "ids"
    if takes_ids and (known or is_ids(prefix.prompt)) and all(token.id is not None for token in tokens):
        return "ids"
    if (known or not is_ids(prefix.prompt)) and _text_of(prefix.tokens) is not None:
        return "text"
    return None


def can_continue(prefix: Prefix, settings: Settings) -> bool:
    """Whether a request can continue from exactly these tokens. Looks at the issued tokens only, so it is cheap."""
    return travels(prefix, settings) is not None


def _travels_on(token: Token, way: Way) -> bool:
    """Whether a prefix that travels this way still does with this token behind it."""
    if token.end:
        return False
    return token.id is not None if way == "ids" else bool(_text_of([token]))


def _text_of(tokens: Sequence[Token]) -> str | None:
    """Issued tokens as text; None where text cannot carry them. "" only where there are none."""
    if not all(token.bytes for token in tokens):
        return None
    try:
        return b"".join(token.bytes or b"" for token in tokens).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _ids_of(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens if token.id is not None]


def _as_ids(prefix: Prefix, settings: Settings) -> list[int]:
    """The prompt of a completion where it travels as ids."""
    prompt = prefix.prompt
    ids = settings.prompt_ids(prompt) if settings.vocabulary is not None else prompt if is_ids(prompt) else ()
    _check_not_empty(found := [*ids, *_ids_of(prefix.tokens)])
    return found


def _as_text(prefix: Prefix, settings: Settings) -> str:
    """The prompt of a completion where it travels as text."""
    prompt, vocabulary, rendering = prefix.prompt, settings.vocabulary, settings.rendering
    if vocabulary is not None and (is_ids(prompt) or rendering == "chat"):
        # A server with this tokenizer puts what stands before any text, usually BOS, there by itself.
        text = _spelled(vocabulary, settings.prompt_ids(prompt), settings.prompt_ids("", "raw"))
    else:
        text = rendered(prompt, rendering, chat=None)
    _check_not_empty(text := text + (_text_of(prefix.tokens) or ""))
    return text


def _check_not_empty(prompt: list[int] | str) -> None:
    if not prompt:
        raise InputError("the rendered prompt is empty", hint="The base needs at least one token to continue from.")


def _spelled(vocabulary: Vocabulary, ids: tuple[int, ...], added: tuple[int, ...]) -> str:
    """Ids as the text that a server with this tokenizer turns into them again, special tokens written out."""
    if ids[: len(added)] == added:
        ids = ids[len(added) :]
    spelled = b"".join(vocabulary.special.get(i, "").encode() or vocabulary.token_of(i).bytes or b"" for i in ids)
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            "these prompt ids are not whole characters, and this server takes a prompt only as text",
            hint="Give ids that end at a character, or use a server that takes token ids.",
        ) from error


def _as_messages(prefix: Prefix, dialect: Dialect) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """The messages, and the fields of the body that make the last one a beginning to continue from."""
    prompt: Any = prefix.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    issued, prefill = _text_of(prefix.tokens) or "", dialect.prefill
    begun = messages[-1].get("role") == "assistant"
    if prefill is None or not (issued or begun):
        return messages, {}
    if not begun:
        messages.append({"role": "assistant", "content": ""})
    last = messages[-1]
    messages[-1] = {**last, **prefill.message, "content": f"{last['content']}{issued}"}
    return messages, prefill.body


# -- can it be asked? -------------------------------------------------------------------------------------------------


def check(prompt: Prompt, max_tokens: int, settings: Settings, context: int | None = None) -> None:
    """Raise InputError (ContextTooLong) or CannotContinue if this cannot be asked; `context`: tokens."""
    carried(Ask(Prefix(prompt), 1), settings)
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise InputError(f"max_tokens must be a whole number of at least 1, not {max_tokens!r}")
    if max_tokens > 1:
        _check_continues(prompt, settings)
    length = None if context is None else prompt_length(prompt, settings)
    if context is not None and length is not None and length + max_tokens > context:
        raise ContextTooLong(
            f"the prompt has {length} tokens and {max_tokens} are to follow, but the window of {settings.model} is "
            f"{context}",
            hint="Shorten the prompt or lower max_tokens.",
        )


def _check_prompt(prompt: Prompt, settings: Settings) -> None:
    if isinstance(prompt, bytes) or not hasattr(prompt, "__len__"):
        raise InputError(f"a prompt is text, messages or token ids, not {type(prompt).__name__}")
    if len(prompt) == 0:
        raise InputError("the prompt is empty", hint="The base needs at least one token to continue from.")
    if isinstance(prompt, str):
        check_text(prompt)
    elif is_ids(prompt):
        _check_ids(prompt, settings)
    else:
        for message in prompt:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise InputError(
                    "a prompt that is not text must be all token ids or all messages",
                    hint='A message looks like {"role": "user", "content": "…"}.',
                )
            check_text(str(message["content"]))
        if settings.api == "completions" and settings.rendering == "chat" and settings.vocabulary is None:
            raise InputError(
                "the chat template is part of the tokenizer, and this base's tokenizer is unknown",
                hint='Give tokenizer=…, a function as rendering=…, or use api="chat".',
            )


def _check_ids(ids: Any, settings: Settings) -> None:
    if settings.api == "chat":
        raise InputError(
            "a chat API takes messages, not token ids",
            hint='Give text or messages, or use api="completions" where the server has it.',
        )
    known = settings.vocabulary
    if known is None and settings.dialect.prefix != "ids":
        raise InputError(
            f"the {settings.dialect.name!r} dialect takes text, and these ids cannot be spelled without a tokenizer",
            hint="Give tokenizer=…, or the prompt as text.",
        )
    if min(ids) < 0 or (known is not None and max(ids) >= len(known)):
        raise InputError(
            "the prompt has token ids outside the base's vocabulary",
            hint="" if known is None else f"Its ids are 0 to {len(known) - 1}.",
        )


def _check_continues(prompt: Prompt, settings: Settings) -> None:
    if settings.api == "chat" and settings.dialect.prefill is None:
        raise CannotContinue(
            f"the {settings.dialect.name!r} chat API cannot continue an answer that was begun: only one token can be "
            "decoded through it",
            hint=_other_ways(settings.dialect)
            + 'a server that continues the last message (dialect="vllm"); or ask for max_tokens=1, which is enough for '
            "multiple choice.",
        )
    if is_ids(prompt) and settings.vocabulary is None:
        raise CannotContinue(
            "a prompt of token ids is continued by token ids, and without a tokenizer the base's are unknown",
            hint="Give tokenizer=…, or the prompt as text; or ask for max_tokens=1.",
        )


def _other_ways(dialect: Dialect) -> str:
    return 'Use api="completions", or ' if dialect.continues("completions") else "Use "


def prompt_length(prompt: Prompt, settings: Settings) -> int | None:
    """Tokens of the prompt as the base sees it; None where that cannot be known here."""
    if is_ids(prompt):
        return len(prompt)
    vocabulary = settings.vocabulary
    if vocabulary is None:
        return None
    if settings.api == "completions":
        return len(settings.prompt_ids(prompt))
    try:
        return len(settings.prompt_ids(prompt, "chat"))
    except Exception:  # no template, or one that refuses these roles: the server's own may still take them
        return None
