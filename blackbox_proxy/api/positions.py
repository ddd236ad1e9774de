"""From the log probabilities of an answer to `Position`s: pure functions over plain JSON, for every dialect.

Both log-probability shapes are recognised from the answer itself: the legacy columns (`tokens`, `token_logprobs`,
`top_logprobs`) and the chat shape (`content`), which llama-server also gives for plain completions. What each token is,
entries.py decides; here it gets its context.

A sampled token outside the k candidates does not join them: which candidates a position shows must not depend on what
was drawn there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from blackbox_proxy.api.against import WAY_OUT
from blackbox_proxy.api.entries import RawToken, as_list, malformed, plain_token, raw_token, token_of, utf8
from blackbox_proxy.errors import Misspelled, NoLogprobs
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Position, Token

_MORE = 1000  # candidates that a server may show beyond those that it was asked for
_REPLACEMENT = "\ufffd"
_SAME = 1e-6  # nats between two log probabilities of one token
_LIKELIER = 0.1  # nats by which a token is likelier than another for certain, in arithmetic of any precision


class RawPosition(NamedTuple):
    """One position as it was answered: the sampled token, the candidates shown, and where its text begins.

    `offset`: in characters from the start of the answer's text; None where the server does not say.
    """

    sampled: RawToken
    shown: Sequence[RawToken]
    offset: int | None = None


# -- the rows ---------------------------------------------------------------------------------------------------------


def rows_of(logprobs: object) -> list[RawPosition]:
    """The rows of a `logprobs` object; [] where it has none."""
    if logprobs is None:
        return []
    if not isinstance(logprobs, Mapping):
        raise malformed("logprobs is not an object")
    content = logprobs.get("content")
    if content is not None:
        return [
            RawPosition(raw_token(item), [raw_token(other) for other in as_list(item["top_logprobs"])])
            for item in _items(content)
        ]
    columns = [logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
    if all(column is None for column in columns):
        return []
    tokens, own, top = (as_list(column) for column in columns)
    if not len(tokens) == len(own) == len(top):
        raise malformed(f"the columns have {len(tokens)}, {len(own)} and {len(top)} entries")
    offsets = _offsets(logprobs.get("text_offset"), len(tokens))
    return [RawPosition(plain_token(tokens[i], own[i]), _legacy_shown(top[i]), offsets[i]) for i in range(len(tokens))]


def _offsets(column: object, count: int) -> list[int | None]:
    """Only a help where text has to be found again, so a malformed column is as good as none."""
    if not isinstance(column, list) or len(column) != count:
        return [None] * count
    return [item if isinstance(item, int) and not isinstance(item, bool) else None for item in column]


def _items(content: object) -> list[Mapping[str, Any]]:
    items = []
    for item in as_list(content):
        if not isinstance(item, Mapping):
            raise malformed("an entry is not an object")
        items.append(item if item.get("top_logprobs") is not None else {**item, "top_logprobs": []})
    return items


def _legacy_shown(column: object) -> list[RawToken]:
    if column is None:
        return []
    if not isinstance(column, Mapping):
        raise malformed("top_logprobs has an entry that is not an object")
    return [plain_token(text, logprob) for text, logprob in column.items()]


# -- the positions ----------------------------------------------------------------------------------------------------


def position_of(
    row: RawPosition,
    k: int,
    vocabulary: Vocabulary | None,
    *,
    went_on: bool,
    listed: bool = False,
    token: Token | None = None,
) -> Position:
    """`went_on`: more text follows, so the sampled token is not the end, however it is spelled. listed: the candidates
    are the k likeliest, so that the sampled token must be one of them if it is likelier than the last. token: the
    sampled one, where it is known already.
    """
    sampled, shown = row.sampled, row.shown
    if len(shown) > 2 * k + _MORE:
        raise malformed(f"{len(shown):,} candidates at a place where {k} were asked for")
    literal = sampled.text if went_on else None
    token = token or token_of(sampled, vocabulary, literal=literal)
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
    if listed and not own and token.bytes and sampled.logprob is not None:
        _check_listed(token, sampled.logprob, kept)
    kept.sort(key=lambda pair: -pair[1])
    return Position(token, logprob, tuple(other for other, _ in kept), np.array([value for _, value in kept]))


def _check_listed(token: Token, logprob: float, kept: Sequence[tuple[Token, float]]) -> None:
    """Raise Misspelled where the sampled token must be a candidate and is none as they are written."""
    unknown = any(other.bytes is None and other.id is None for other, _ in kept)
    if unknown and (_REPLACEMENT in token.text or utf8(token.text) != token.bytes):
        return  # one of them may be it
    twin = any(
        abs(value - logprob) < _SAME and other.text.strip().casefold() == token.text.strip().casefold()
        for other, value in kept
    )
    if twin or logprob > min(value for _, value in kept) + _LIKELIER:
        shown = ", ".join(repr(other.text) for other, _ in kept[:5])
        raise Misspelled(
            f"the answer's own token {token.text!r} must be among its likeliest, and they are written {shown}",
            hint=WAY_OUT,
        )


def _identity(token: Token, place: int) -> object:
    """What tells listed twice from two tokens. Tokens known only by replacement characters are never the same one."""
    if token.id is not None:
        return ("id", token.id)
    if token.end:
        return ("end", token.text)
    return ("unknown", place) if token.bytes is None else ("bytes", token.bytes)


def as_end(position: Position) -> Position:
    """The same position, its own token being the end, also among the candidates."""
    end = replace(position.token, end=True, bytes=b"")
    tokens = list(position.tokens)
    if position.token in tokens:
        tokens[tokens.index(position.token)] = end
    return replace(position, token=end, tokens=tuple(tokens))


def likeliest(position: Position, k: int) -> Position:
    """The same position with its k likeliest candidates."""
    if len(position.tokens) <= k:
        return position
    return replace(position, tokens=position.tokens[:k], logprobs=position.logprobs[:k])


def stands_for_several(row: RawPosition, vocabulary: Vocabulary | None) -> bool:
    """Whether a row stands for several tokens, of which only the last is named by its id and has its candidates here.

    llama-server holds back tokens that end inside a character, and prints them with the one that completes it. Where
    neither the vocabulary nor the candidates tell, more than ASCII is not trusted.
    """
    index, spelled = row.sampled.id, row.sampled.bytes
    if index is None or not spelled:
        return False
    own = vocabulary.token_of(index).bytes if vocabulary is not None else None
    own = own or next((entry.bytes for entry in row.shown if entry.id == index), None)
    return not spelled.isascii() if own is None else own != spelled


def may_be_end(row: RawPosition, vocabulary: Vocabulary | None) -> bool:
    """Whether the spelling of its token makes a difference between a row that ends the text and one that does not."""
    text = row.sampled.text
    alike = (entry for entry in (row.sampled, *row.shown) if entry.text == text)
    return any(token_of(entry, vocabulary) != token_of(entry, vocabulary, literal=text) for entry in alike)
