"""Asking about tokens by name, and bending a choice towards them: what both need of ids. Pure, no I/O.

`reveal` asks for log q of tokens that may lie outside the k candidates: ids in a field of the body where the dialect
has one (`Dialect.named`), else one request for each token, given as text to score. `steer` sends a bias for tokens and
lets the server choose, for APIs that show few log probabilities or none (`Dialect.bias_keys`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from blackbox_proxy.api.entries import plain_token, token_of
from blackbox_proxy.api.positions import rows_of
from blackbox_proxy.api.streaming import choice_of, usage_of
from blackbox_proxy.dialects.finishing import ended_by, said_of
from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.logspace import logsumexp
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import END, Draft, Floats, Position, Token

BIAS_LIMIT = 100.0  # what the APIs take, in nats


def ids_of(token: Token, vocabulary: Vocabulary | None) -> tuple[int, ...]:
    """The ids that make up the event "this token comes next": all end ids for the end; () where none is known."""
    if token.end and vocabulary is not None:
        return tuple(sorted(vocabulary.end_ids))
    return () if token.id is None else (token.id,)


def from_row(tokens: Sequence[Token], row: Floats, vocabulary: Vocabulary) -> Floats:
    """log q (t,) of tokens from a whole row (V,) of it, nats; NaN for a token without an id."""
    return _gathered(tokens, lambda index: float(row[index]) if index < len(row) else None, vocabulary)


def from_draft(tokens: Sequence[Token], draft: Draft, vocabulary: Vocabulary | None) -> Floats:
    """log q (t,) of tokens from the candidates that a draft shows first; NaN for those that are not among them."""
    listed: list[tuple[Token, float | None]] = []
    for position in draft.positions[:1]:
        listed = [*zip(position.tokens, position.logprobs.tolist(), strict=True), (position.token, position.logprob)]
    shown = {token.id: value for token, value in reversed(listed) if token.id is not None and value is not None}
    return _gathered(tokens, shown.get, vocabulary)


def _gathered(
    tokens: Sequence[Token], value_of: Callable[[int], float | None], vocabulary: Vocabulary | None
) -> Floats:
    values = np.full(len(tokens), np.nan)
    for place, token in enumerate(tokens):
        found = [value for index in ids_of(token, vocabulary) if (value := value_of(index)) is not None]
        if found:
            values[place] = logsumexp(np.array(found))
    return values


def given_logprobs(tokens: Sequence[Token], drafts: Sequence[Draft]) -> Floats:
    """log q (t,) from a draft for each token that it was given to; NaN where it was cut into other tokens."""
    values = np.full(len(tokens), np.nan)
    for place, (token, draft) in enumerate(zip(tokens, drafts, strict=True)):
        if draft.given and draft.positions[0].token.bytes == token.bytes:
            logprob = draft.positions[0].logprob
            values[place] = np.nan if logprob is None else logprob
    return values


def in_requests(tokens: Sequence[Token], vocabulary: Vocabulary, limit: int) -> Iterator[list[Token]]:
    """The tokens in groups of at most `limit` ids."""
    group: list[Token] = []
    used = 0
    for token in tokens:
        count = len(ids_of(token, vocabulary))
        if group and used + count > limit:
            yield group
            group, used = [], 0
        group.append(token)
        used += count
    if group:
        yield group


# -- bending a choice -------------------------------------------------------------------------------------------------


def logit_bias(bias: Mapping[Token, float], vocabulary: Vocabulary | None, keys: int) -> dict[str, float]:
    """`logit_bias` as the APIs take it. Raises InputError for a token without an id, and for more keys than allowed."""
    spelled: dict[str, float] = {}
    for token, value in bias.items():
        ids = ids_of(token, vocabulary)
        if not ids:
            raise InputError("a token without an id cannot be biased", hint="Give tokenizer=… to open_base.")
        for index in ids:
            spelled[str(index)] = max(-BIAS_LIMIT, min(BIAS_LIMIT, value))
    if len(spelled) > keys:
        raise InputError(f"a bias for {len(spelled)} tokens, but this API takes {keys}", hint="Bias fewer tokens.")
    return spelled


def without_logprobs(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same request for a server that refuses log probabilities."""
    return {name: value for name, value in arguments.items() if name not in ("logprobs", "top_logprobs")}


def has_logprobs(body: object) -> bool:
    choice = choice_of(body)
    return choice is not None and bool(rows_of(choice.get("logprobs")))


def text_only(body: object, vocabulary: Vocabulary | None) -> Draft:
    """The one token of an answer without log probabilities, known by its text; no candidates.

    An empty text that stopped is the end, one that the server ended ends the text; half a character has unknown bytes,
    since only a replacement is shown.
    """
    choice = choice_of(body) or {}
    message = choice.get("message")
    text = (message.get("content") if isinstance(message, Mapping) else choice.get("text")) or ""
    said = said_of(choice.get("finish_reason"))
    finish = ended_by(said)
    if text == "":
        end = (Position(END, None, (), np.empty(0)),) if finish == "stop" else ()
        return Draft(end, finish, usage_of(body), reason=said if finish in ("content_filter", "other") else None)
    token = token_of(plain_token(text, None), vocabulary, literal=text)
    return Draft((Position(token, None, (), np.empty(0)),), "length", usage_of(body))
