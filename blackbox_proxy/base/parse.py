"""From a response to a `Draft`: pure functions over plain JSON, for every dialect.

Both log-probability shapes are recognised from the answer itself: the legacy columns (`tokens`, `token_logprobs`,
`top_logprobs`) and the chat shape (`content`), which llama-server also gives for plain completions. What each token is,
entries.py decides; here it gets its context. A sampled token that the text went on after was written literally, even if
it looks like the end; and the last token of a text that "stop" ended is the end, whatever it looks like, if it added
nothing to the text.

A sampled token outside the k candidates does not join them: which candidates a position shows must not depend on what
was drawn there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from blackbox_proxy.errors import BadResponse, NoLogprobs
from blackbox_proxy.types import Draft, FinishReason, Position, Token, Usage
from blackbox_proxy.vocabulary import Vocabulary

from .entries import Entry, as_list, entry_of, malformed, plain_entry, token_of, utf8

_STOPS = ("stop", "eos", "eos_token", "end_turn")
_REPLACEMENT = "\ufffd"


def decode_body(content: bytes) -> object:
    """The JSON of a body, or its text where it is none (a gateway's HTML page in a 200)."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")


def parse(body: object, *, n: int, top_logprobs: int, vocabulary: Vocabulary | None = None) -> Draft:
    """The draft in a completion or chat completion; `n` positions and k = `top_logprobs` candidates were asked for.

    `finish` is "stop" where the API says that the text ended after the last position, whether or not that position is
    the end itself. `usage` counts one call, and tokens where the API does. Raises BadResponse and NoLogprobs.
    """
    choice = _choice(body)
    reason = choice.get("finish_reason")
    stopped = isinstance(reason, str) and reason in _STOPS
    text = _text(choice)
    rows = _rows(choice.get("logprobs"))
    if not rows:
        if stopped and text == "":
            return Draft((), "stop", _usage(body))
        raise _no_logprobs(text, reason)
    if len(rows) > n:
        raise BadResponse(
            f"the API answered with {len(rows)} tokens where {n} were asked for",
            hint="It ignores the limit that was sent, or repeats the prompt. Another dialect may spell the limit "
            "as this server expects it.",
        )
    last = len(rows) - 1
    positions = [
        _position(sampled, shown, top_logprobs, vocabulary, went_on=i < last) for i, (sampled, shown) in enumerate(rows)
    ]
    if stopped and _adds_nothing(positions, text):
        positions[-1] = _as_end(positions[-1])
    finish: FinishReason | None = "stop" if stopped else "length" if reason == "length" else None
    return Draft(tuple(positions), finish, _usage(body))


# -- the frame --------------------------------------------------------------------------------------------------------


def _choice(body: object) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        shown = " ".join(body.split())[:80] if isinstance(body, str) else type(body).__name__
        raise BadResponse(
            f"the API answered with something that is not a completion: {shown!r}",
            hint="A page instead of JSON usually comes from a proxy or gateway. Check base_url, usually ending in /v1.",
        )
    if body.get("error"):
        error = body["error"]
        said = error.get("message") if isinstance(error, Mapping) else error
        raise BadResponse(
            f"the API reported an error inside a successful answer: {said[:300] if isinstance(said, str) else '?'}",
            hint="Its message is all that is known; routers answer so when the provider behind them fails.",
        )
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise BadResponse(
            "the API's answer has no choices", hint="Check that base_url belongs to an OpenAI-compatible API."
        )
    return choices[0]


def _text(choice: Mapping[str, Any]) -> str | None:
    """The generated text; None where the answer has no place for it, or shows only a part of what was generated."""
    message = choice.get("message")
    if not isinstance(message, Mapping):
        text = choice.get("text")
    elif message.get("reasoning_content") or message.get("reasoning") or message.get("refusal"):
        return None
    else:
        text = message.get("content") or ""
    return text if isinstance(text, str) else None


def _usage(body: object) -> Usage:
    counts = body.get("usage") if isinstance(body, Mapping) else None

    def count(name: str) -> int:
        value = counts.get(name) if isinstance(counts, Mapping) else None
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0

    return Usage(api_calls=1, prompt_tokens=count("prompt_tokens"), completion_tokens=count("completion_tokens"))


def _no_logprobs(text: str | None, reason: object) -> NoLogprobs | BadResponse:
    if text:
        return NoLogprobs(
            "the API answers without log probabilities",
            hint="Some servers ignore the parameter (transformers serve, several models behind routers), others need "
            "an option at start (llama-cpp-python: --logits_all true). Take a model or server that gives them.",
        )
    return BadResponse(
        f"the API answered with neither text nor log probabilities (finish_reason {str(reason)[:40]!r})",
        hint="A reasoning model may have spent its tokens unseen, or a filter withheld the text.",
    )


# -- the rows ---------------------------------------------------------------------------------------------------------


def _rows(logprobs: object) -> list[tuple[Entry, list[Entry]]]:
    """Per position, the sampled token and the candidates shown; [] where the answer has none."""
    if logprobs is None:
        return []
    if not isinstance(logprobs, Mapping):
        raise malformed("logprobs is not an object")
    content = logprobs.get("content")
    if content is not None:
        return [
            (entry_of(item), [entry_of(other) for other in as_list(item["top_logprobs"])]) for item in _items(content)
        ]
    columns = [logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
    if all(column is None for column in columns):
        return []
    tokens, own, top = (as_list(column) for column in columns)
    if not len(tokens) == len(own) == len(top):
        raise malformed(f"the columns have {len(tokens)}, {len(own)} and {len(top)} entries")
    return [(plain_entry(tokens[i], own[i]), _legacy_shown(top[i])) for i in range(len(tokens))]


def _items(content: object) -> list[Mapping[str, Any]]:
    items = []
    for item in as_list(content):
        if not isinstance(item, Mapping):
            raise malformed("an entry is not an object")
        items.append(item if item.get("top_logprobs") is not None else {**item, "top_logprobs": []})
    return items


def _legacy_shown(column: object) -> list[Entry]:
    if column is None:
        return []
    if not isinstance(column, Mapping):
        raise malformed("top_logprobs has an entry that is not an object")
    return [plain_entry(text, logprob) for text, logprob in column.items()]


# -- the positions ----------------------------------------------------------------------------------------------------


def _position(
    sampled: Entry, shown: Sequence[Entry], k: int, vocabulary: Vocabulary | None, *, went_on: bool
) -> Position:
    """`went_on`: more text follows, so the sampled token is not the end, however it is spelled."""
    literal = sampled.text if went_on else None
    token = token_of(sampled, vocabulary, literal=literal)
    found: dict[object, int] = {}
    kept: list[tuple[Token, float]] = []
    for entry in shown:
        if entry.logprob is None:
            continue
        other = token_of(entry, vocabulary, literal=literal)
        place = found.setdefault(_identity(other, len(kept)), len(kept))
        if place == len(kept):
            kept.append((other, entry.logprob))
        else:
            kept[place] = (other, max(entry.logprob, kept[place][1]))
    own = [(value, place) for place, (other, value) in enumerate(kept) if other == token]
    logprob = sampled.logprob if sampled.logprob is not None or not own else min(own)[0]
    missing = sum(entry.logprob is None for entry in shown)
    if len(kept) + missing > k and own and min(own)[0] <= min(value for _, value in kept):
        del kept[min(own)[1]]  # the sampled token in place k + 1
    if not kept:
        raise NoLogprobs(
            "the API shows no candidates, only its own token",
            hint="Ask for top_logprobs of at least 1, or take a server that gives the most likely tokens.",
        )
    kept.sort(key=lambda pair: -pair[1])
    return Position(token, logprob, tuple(other for other, _ in kept), np.array([value for _, value in kept]))


def _identity(token: Token, place: int) -> object:
    """What tells listed twice from two tokens. Tokens known only by replacement characters are never the same one."""
    if token.id is not None:
        return ("id", token.id)
    if token.end:
        return ("end", token.text)
    return ("unknown", place) if token.bytes is None else ("bytes", token.bytes)


# -- the end ----------------------------------------------------------------------------------------------------------


def _adds_nothing(positions: Sequence[Position], text: str | None) -> bool:
    """Whether the last token of a text that ended by itself is the end: special, or absent from the text."""
    last = positions[-1].token
    if last.bytes == b"" or not last.text:
        return True
    before = [position.token.bytes for position in positions[:-1]]
    if text is None or last.end or _REPLACEMENT in last.text:
        return False
    return all(before) and b"".join(spelled or b"" for spelled in before) == utf8(text)


def _as_end(position: Position) -> Position:
    """The same position, its own token being the end, also among the candidates."""
    end = replace(position.token, end=True, bytes=b"")
    tokens = list(position.tokens)
    if position.token in tokens:
        tokens[tokens.index(position.token)] = end
    return replace(position, token=end, tokens=tuple(tokens))
