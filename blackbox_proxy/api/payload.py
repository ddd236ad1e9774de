"""From what is sent to a request: pure functions, no I/O.

`request` builds the arguments of openai-python's `create` for both APIs and every dialect. What a caller's further
fields may be, and whether they bend what is drawn, stands here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blackbox_proxy.api.sent import Sent, Settings
from blackbox_proxy.dialects.table import Dialect

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


def draws_what_it_shows(settings: Settings) -> bool:
    """Whether drafts at temperature 1 are drawn from the very probabilities shown, as far as the request decides."""
    bent = (
        # null leaves the choice to the server: harmless, unless the dialect says something because it is not
        value not in neutral and not (value is None and name not in settings.dialect.extra_body)
        for name, neutral in _NEUTRAL.items()
        for value in (settings.extra_body.get(name, neutral[0]),)
    )
    return settings.dialect.draws and not any(bent)


def request(
    sent: Sent, settings: Settings, *, stream: bool = False, fields: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The keyword arguments of `client.completions.create` or `client.chat.completions.create` for one draft.

    stream: whether the tokens shall arrive one by one. fields: further ones of the body.
    """
    dialect, seed = settings.dialect, sent.ask.seed
    extra: dict[str, Any] = dict(dialect.extra_body)
    if settings.vocabulary is not None:
        extra |= dialect.ids_out
    arguments: dict[str, Any] = {"model": settings.model, "temperature": sent.ask.temperature, "top_p": 1.0}
    if settings.api == "completions":
        arguments |= {"prompt": sent.prompt, "max_tokens": sent.n, "logprobs": settings.top_logprobs}
    else:
        extra |= sent.prefill
        arguments |= {"messages": sent.prompt, dialect.chat_length: sent.n, "logprobs": True}
        arguments["logprobs" if dialect.chat_logprobs == "number" else "top_logprobs"] = settings.top_logprobs
    if seed is not None and dialect.seed == "seed":
        arguments["seed"] = seed
    elif seed is not None and dialect.seed is not None:
        extra[dialect.seed] = seed
    if stream:
        arguments["stream"] = True
        if dialect.usage_stream:
            arguments["stream_options"] = dict(dialect.usage_stream)
    extra |= {**settings.extra_body, **_echo(sent, dialect), **(fields or {})}
    for name in dialect.omit:
        arguments.pop(name, None)
    if extra:
        arguments["extra_body"] = extra
    return arguments


def _echo(sent: Sent, dialect: Dialect) -> dict[str, Any]:
    """The fields that make a server repeat given text."""
    if not sent.given:
        return {}
    fields = dict(dialect.echo or {})
    if dialect.echo_last is not None and sent.way == "ids":  # as text, nobody knows how many tokens it will be
        fields[dialect.echo_last] = len(sent.given)
    return fields
