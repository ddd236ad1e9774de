"""From a prefix to a request: pure functions, no I/O.

`request` builds the arguments of openai-python's `create` for both APIs and every dialect. A prefix travels in one of
two ways: as token ids (exact), or as text, which the server cuts into tokens again. `travels` decides which, and says
None where neither carries exactly the issued tokens; `can_continue` is that answer. `check` refuses what cannot be
asked before anything is spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from blackbox_proxy.dialects.table import Api, Dialect
from blackbox_proxy.errors import CannotContinue, ContextTooLong, InputError
from blackbox_proxy.text.prompts import as_text as rendered
from blackbox_proxy.text.prompts import check_text
from blackbox_proxy.text.vocabulary import Vocabulary, is_ids
from blackbox_proxy.types import Prefix, Prompt, Rendering

Way = Literal["ids", "text"]
_Sent = TypeVar("_Sent", str, list[int])
_MOST_REMEMBERED = 256

RESERVED = frozenset(
    {"model", "prompt", "messages", "suffix", "n", "best_of", "echo", "stream", "stream_options", "stop", "seed"}
    | {"temperature", "top_p", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens"}
)
"""Fields that `extra_body` may not set: the meaning of an answer depends on them."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "top_k": (-1, 0),
    "min_p": (0,),
    "top_a": (0,),
    "top_n_sigma": (-1, 0),
    "typical_p": (1,),
    "tfs_z": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dynatemp_range": (0,),
    "smoothing_factor": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "grammar": ("",),
    "json_schema": ({},),
    "regex": ("",),
    "ebnf": ("",),
    "guided_json": ({}, ""),
    "guided_regex": ("",),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "structured_outputs": ({},),
    "response_format": ({"type": "text"},),
}
"""Fields that bend what is drawn away from what is shown -> the values with which they do not."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all requests of one base have in common. `top_logprobs` is k; `vocabulary` None where it is unknown."""

    model: str
    api: Api
    dialect: Dialect
    top_logprobs: int
    vocabulary: Vocabulary | None = None
    rendering: Rendering = "raw"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    _remembered: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def kept(self) -> int:
        """How many candidates of a position do not depend on what was drawn there."""
        own = self.api == "chat" and self.dialect.chat_counts_own
        return max(1, self.top_logprobs - own)

    def prompt_ids(self, vocabulary: Vocabulary, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's ids in the completions rendering. Text is cut once: every request of a text has it again."""
        if not isinstance(prompt, str) or callable(self.rendering):
            return vocabulary.prompt_ids(prompt, self.rendering)
        if prompt not in self._remembered:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[prompt] = vocabulary.prompt_ids(prompt, self.rendering)
        return self._remembered[prompt]


# -- can it be asked? -------------------------------------------------------------------------------------------------


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
        text = _issued(prefix)
        keeps = settings.dialect.prefill.keeps_space or (text is not None and not text[-1].isspace())
        return "text" if text is not None and keeps else None
    known = settings.vocabulary is not None
    takes_ids = settings.dialect.prefix == "ids"
    if takes_ids and (known or is_ids(prefix.prompt)) and all(token.id is not None for token in tokens):
        return "ids"
    if (known or not is_ids(prefix.prompt)) and _issued(prefix) is not None:
        return "text"
    return None


def can_continue(prefix: Prefix, settings: Settings) -> bool:
    """Whether a request can continue from exactly these tokens. Looks at the issued tokens only, so it is cheap."""
    return travels(prefix, settings) is not None


def _issued(prefix: Prefix) -> str | None:
    """The issued tokens as text; None where text cannot carry them. "" only where there are none."""
    if not all(token.bytes for token in prefix.tokens):
        return None
    try:
        return prefix.generated.decode("utf-8")
    except UnicodeDecodeError:
        return None


def check(prompt: Prompt, max_tokens: int, settings: Settings, context: int | None = None) -> None:
    """Raise InputError (ContextTooLong) or CannotContinue if this cannot be asked; `context`: tokens."""
    request(Prefix(prompt), settings, 1, temperature=0.0, seed=None)
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
        return len(settings.prompt_ids(vocabulary, prompt))
    try:
        return len(vocabulary.prompt_ids(prompt, "chat"))
    except Exception:  # no template, or one that refuses these roles: the server's own may still take them
        return None


def draws_what_it_shows(settings: Settings) -> bool:
    """Whether drafts at temperature 1 are drawn from the very probabilities shown, as far as the request decides."""
    bent = (
        # null leaves the choice to the server: harmless, unless the dialect says something because it is not
        value not in neutral and not (value is None and name not in settings.dialect.extra_body)
        for name, neutral in _NEUTRAL.items()
        for value in (settings.extra_body.get(name, neutral[0]),)
    )
    return settings.dialect.draws and not any(bent)


# -- the request ------------------------------------------------------------------------------------------------------


def request(
    prefix: Prefix,
    settings: Settings,
    n: int,
    *,
    temperature: float,
    seed: int | None,
    stream: bool = False,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The keyword arguments of `client.completions.create` or `client.chat.completions.create` for one draft.

    n: the most tokens to draft. stream: whether they shall arrive one by one. fields: further ones of the body.
    Raises InputError, and CannotContinue where `can_continue` is false.
    """
    _check_prompt(prefix.prompt, settings)
    way = travels(prefix, settings)
    if way is None:
        raise CannotContinue(
            f"the {settings.dialect.name!r} dialect's {settings.api} API cannot continue from exactly these tokens",
            hint="Where tokens travel as text, they must be whole characters. A server that takes token ids "
            '(api="completions", tokenizer=…) continues from any token.',
        )
    dialect = settings.dialect
    extra: dict[str, Any] = dict(dialect.extra_body)
    if settings.vocabulary is not None:
        extra |= dialect.ids_out
    arguments: dict[str, Any] = {"model": settings.model, "temperature": temperature, "top_p": 1.0}
    if settings.api == "completions":
        arguments["prompt"] = as_ids(prefix, settings) if way == "ids" else as_text(prefix, settings)
        arguments |= {"max_tokens": n, "logprobs": settings.top_logprobs}
    else:
        arguments["messages"], begins = _as_messages(prefix, dialect)
        extra |= begins
        arguments |= {dialect.chat_length: n, **_chat_logprobs(settings)}
    if seed is not None and dialect.seed == "seed":
        arguments["seed"] = seed
    elif seed is not None and dialect.seed is not None:
        extra[dialect.seed] = seed
    if stream:
        arguments["stream"] = True
        if dialect.usage_stream:
            arguments["stream_options"] = dict(dialect.usage_stream)
    extra |= settings.extra_body
    extra |= fields or {}
    for name in dialect.omit:
        arguments.pop(name, None)
    if extra:
        arguments["extra_body"] = extra
    return arguments


def _chat_logprobs(settings: Settings) -> dict[str, Any]:
    if settings.dialect.chat_logprobs == "number":
        return {"logprobs": settings.top_logprobs}
    return {"logprobs": True, "top_logprobs": settings.top_logprobs}


def as_ids(prefix: Prefix, settings: Settings) -> list[int]:
    """The prompt of a completion where it travels as ids."""
    prompt = prefix.prompt
    if settings.vocabulary is not None:
        ids = list(settings.prompt_ids(settings.vocabulary, prompt))
    else:
        ids = list(prompt) if is_ids(prompt) else []
    ids += [token.id for token in prefix.tokens if token.id is not None]
    return _not_empty(ids)


def as_text(prefix: Prefix, settings: Settings) -> str:
    """The prompt of a completion where it travels as text."""
    prompt, vocabulary, rendering = prefix.prompt, settings.vocabulary, settings.rendering
    if vocabulary is not None and (is_ids(prompt) or rendering == "chat"):
        text = _spelled(vocabulary, settings.prompt_ids(vocabulary, prompt))
    else:
        text = rendered(prompt, rendering, chat=None)
    return _not_empty(text + (_issued(prefix) or ""))


def _spelled(vocabulary: Vocabulary, ids: tuple[int, ...]) -> str:
    """Ids as the text that a server with this tokenizer turns into them again, special tokens written out."""
    added = vocabulary.prompt_ids("")  # usually BOS: the server will put it there by itself
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
    issued, prefill = _issued(prefix) or "", dialect.prefill
    begun = messages[-1].get("role") == "assistant"
    if prefill is None or not (issued or begun):
        return messages, {}
    if not begun:
        messages.append({"role": "assistant", "content": ""})
    last = messages[-1]
    messages[-1] = {**last, **prefill.message, "content": f"{last['content']}{issued}"}
    return messages, prefill.body


def _not_empty(sent: _Sent) -> _Sent:
    if not sent:
        raise InputError("the rendered prompt is empty", hint="The base needs at least one token to continue from.")
    return sent
