"""What a probe reads in an answer: pure functions over plain JSON.

A draft is read for its meaning (streaming.py); here the question is what the server *does*: how it writes tokens, which
numbers stand for none, whether two answers say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blackbox_proxy.api.entries import RawToken, token_of
from blackbox_proxy.api.positions import RawPosition, rows_of, stands_for_several
from blackbox_proxy.api.scripts import PLAIN, Writing
from blackbox_proxy.api.streaming import choice_of
from blackbox_proxy.dialects.findings import Bytes, Parts
from blackbox_proxy.dialects.finishing import said_of
from blackbox_proxy.text.vocabulary import Vocabulary

_SENTINEL = -9000.0  # as in entries.py
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: its text, its rows, why it ended, and the choice as it came."""

    text: str
    rows: tuple[RawPosition, ...]
    finish: str | None
    choice: Mapping[str, Any]
    body: Mapping[str, Any]


def read(body: object) -> Answered:
    """Raises BadResponse."""
    choice = choice_of(body) or {}
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    return Answered(
        text if isinstance(text, str) else "",
        tuple(rows_of(choice.get("logprobs"))),
        said_of(choice.get("finish_reason")),
        choice,
        body if isinstance(body, Mapping) else {},
    )


def undone(rows: Sequence[RawPosition], writing: Writing) -> tuple[RawPosition, ...]:
    """The rows with their strings as what they stand for, as far as it is known how they are written."""
    own, listed = writing.own or PLAIN, writing.listed or PLAIN
    if own is PLAIN and listed is PLAIN:
        return tuple(rows)
    return tuple(
        row._replace(sampled=own.entry(row.sampled), shown=[listed.entry(entry) for entry in row.shown]) for row in rows
    )


# -- do two answers agree? --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of two rows of positions: how many were compared, how many wrote the same token (from the front), and the
    largest difference of a log probability that both show, in nats; None where they show nothing in common.
    """

    compared: int
    same: int
    drift: float | None

    @property
    def close(self) -> bool:
        """Whether they are answers about the same place."""
        return self.drift is not None and self.drift < _CLOSE and self.same > 0


_CLOSE = 0.3  # nats: more than quantised arithmetic, less than another text makes


def name_of(entry: RawToken) -> object:
    """What tells one token from another in answers of one kind."""
    if entry.id is not None:
        return entry.id
    return entry.bytes if entry.bytes is not None and _REPLACEMENT not in entry.text else entry.text


def logprobs_by_name(row: RawPosition) -> dict[object, float]:
    """The candidates' log probabilities by name; without those that are written alike, or have none."""
    names = [name_of(entry) for entry in row.shown]
    return {
        name: entry.logprob
        for name, entry in zip(names, row.shown, strict=True)
        if entry.logprob is not None and names.count(name) == 1
    }


def comparison(one: Sequence[RawPosition], other: Sequence[RawPosition]) -> Comparison:
    """Compared from the front up to the first place where the tokens differ, that place included."""
    compared = same = 0
    drift: float | None = None
    for left, right in zip(one, other, strict=False):
        compared += 1
        ours, theirs = logprobs_by_name(left), logprobs_by_name(right)
        common = ours.keys() & theirs.keys()
        if not common:
            return Comparison(compared, same, None)
        drift = max(drift or 0.0, *(abs(ours[name] - theirs[name]) for name in common))
        if name_of(left.sampled) != name_of(right.sampled):
            break
        same += 1
    return Comparison(compared, same, drift)


def sharpened(cold: RawPosition, warm: RawPosition) -> float | None:
    """By how much the distances from the likeliest candidate grew from one row to the other; None where that cannot
    be told. 1 is not at all; at half the temperature it is 2 where the numbers follow it.
    """
    ours, theirs = logprobs_by_name(cold), logprobs_by_name(warm)
    common = ours.keys() & theirs.keys()
    if len(common) < 2:
        return None
    top = max(common, key=lambda name: ours[name])
    before = sum(ours[top] - ours[name] for name in common)
    after = sum(theirs[top] - theirs[name] for name in common)
    return after / before if before > 0.05 else None


def greedy(rows: Sequence[RawPosition]) -> bool:
    """Whether each token written is the likeliest shown."""
    for row in rows:
        found = logprobs_by_name(row)
        own = found.get(name_of(row.sampled)) if row.sampled.logprob is None else row.sampled.logprob
        if found and (own is None or own < max(found.values()) - 1e-4):
            return False
    return True


def overwritten(rows: Sequence[RawPosition]) -> bool:
    """Whether, of candidates that are written alike, another took the place of the likeliest, which was written."""
    for row in rows:
        listed = logprobs_by_name(row).get(name_of(row.sampled))
        if listed is not None and row.sampled.logprob is not None and abs(listed - row.sampled.logprob) > 1e-3:
            return True
    return False


def sound(rows: Sequence[RawPosition], vocabulary: Vocabulary | None) -> list[RawPosition]:
    """The rows up to the first that stands for several tokens."""
    found: list[RawPosition] = []
    for row in rows:
        if stands_for_several(row, vocabulary):
            break
        found.append(row)
    return found


def cuts(rows: Sequence[RawPosition], vocabulary: Vocabulary | None) -> list[tuple[int, str]]:
    """Where a draft can be cut so that its beginning is text: how many tokens, and that text; the best places first.

    Best is where words begin before and behind, since text is then cut into the same tokens again.
    """
    found: list[tuple[tuple[bool, bool, int], int, str]] = []
    spelled, words = b"", True
    for count, row in enumerate(rows[:-1], 1):
        token = token_of(row.sampled, vocabulary)
        if token.end or not token.bytes:
            break
        spelled += token.bytes
        words = words and token.bytes[:1] in (b" ", b"\n", b",", b".")
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            continue
        if text[-1].isspace():
            continue
        following = token_of(rows[count].sampled, vocabulary).bytes or b"-"
        splits = following[:1] in (b" ", b"\n", b",", b".")
        stable = vocabulary is None or _stable(spelled, rows[:count], vocabulary)
        found.append(((not stable, not (splits and words), abs(count - len(rows) // 2)), count, text))
    return [(count, text) for _, count, text in sorted(found)]


def _stable(spelled: bytes, rows: Sequence[RawPosition], vocabulary: Vocabulary) -> bool:
    written = [token_of(row.sampled, vocabulary).id for row in rows]
    return vocabulary.encode([spelled])[0] == written


# -- how tokens are written -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Spelling:
    """What all answers together tell of how tokens are written."""

    ids: bool = False  # candidates have them
    bytes: Bytes | None = None  # "whole": true so far, but only whole characters were seen
    parts: Parts | None = None  # how a token that is no whole UTF-8 is written; None: none was seen
    wrong: int = 0  # ids whose bytes are not those of the vocabulary, of so many `checked`
    checked: int = 0
    joined: bool = False  # some rows stand for several tokens
    sentinels: frozenset[float] = frozenset()  # numbers that stand for none, as -9999.0

    def note(self, choice: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> None:
        logprobs = choice.get("logprobs")
        self.sentinels |= frozenset(_sentinels(logprobs))
        self.joined = self.joined or any(_several(row, vocabulary) for row in rows_of(logprobs))
        for item in _items(logprobs):
            text = str(item.get("token"))
            if text.startswith("token_id:"):
                continue
            index = item.get("id", item.get("token_id"))
            self.ids = self.ids or isinstance(index, int)
            if _REPLACEMENT in text:
                self.parts = "replaced"
            elif "\\x" in text and self.parts is None:
                self.parts = "escaped"
            if "columns" not in item:
                self._note_bytes(item, text)
            # Those of a token that was written may be the bytes of several.
            if vocabulary is not None and isinstance(index, int) and item.get("bytes") and "top_logprobs" not in item:
                known = vocabulary.token_of(index).bytes
                self.checked += bool(known)
                self.wrong += bool(known) and known != bytes(item["bytes"])

    def _note_bytes(self, item: Mapping[str, Any], text: str) -> None:
        spelled = item.get("bytes")
        seen: Bytes
        if "bytes" not in item:
            seen = "absent"
        elif spelled is None:
            seen = "null"
        elif _whole(bytes(spelled)):
            seen = "of the text" if _REPLACEMENT in text and _REPLACEMENT.encode() in bytes(spelled) else "whole"
        else:
            seen = "true"
        order: list[Bytes | None] = [None, "absent", "null", "whole", "of the text", "true"]
        if order.index(seen) > order.index(self.bytes):
            self.bytes = seen


def _several(row: RawPosition, vocabulary: Vocabulary | None) -> bool:
    """Whether a row certainly stands for several tokens."""
    known = vocabulary is not None or any(entry.id == row.sampled.id and entry.bytes for entry in row.shown)
    return known and stands_for_several(row, vocabulary)


def _whole(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _items(logprobs: object) -> Iterator[Mapping[str, Any]]:
    """Every token of an answer as it is written; of columns only the text."""
    if not isinstance(logprobs, Mapping):
        return
    for item in logprobs.get("content") or ():
        if isinstance(item, Mapping):
            yield item
            yield from (other for other in item.get("top_logprobs") or () if isinstance(other, Mapping))
    for text in logprobs.get("tokens") or ():
        yield {"token": text, "columns": True}
    for column in logprobs.get("top_logprobs") or ():
        yield from ({"token": text, "columns": True} for text in column or ())


def _sentinels(value: object) -> Iterator[float]:
    """Numbers too low to be log probabilities; nothing else in `logprobs` is negative."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _sentinels(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _sentinels(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value < _SENTINEL:
        yield float(value)
