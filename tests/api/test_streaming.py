"""Read in chunks, however it was cut, an answer is what it is when read whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from api_answers import END, TURN, chat, entry, legacy

from blackbox_proxy.api.streaming import Incremental, parse
from blackbox_proxy.errors import BadResponse, BaseError, NoLogprobs
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Position, Usage


def row(token: str, **more: Any) -> tuple[str, float, dict[str, float]]:
    return token, -0.1, {token: -0.1, "!": -3.0, **more}


def item(token: str, spelled: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return entry(token, -0.1, spelled, **more) | {"top_logprobs": [entry(token, -0.1, spelled, **more)]}


def llama(*content: dict[str, Any], text: str, finish: str | None = "length") -> Any:
    return {"choices": [{"text": text, "finish_reason": finish, "logprobs": {"content": list(content)}}]}


HI, THE = item("Hi", [72, 105], id=258), item(" the", None, id=256)
BODIES = {
    "legacy": legacy(row("Hi"), row(" the"), row(" cat"), text="Hi the cat"),
    "an end that is shown": legacy(row("Hi"), row("<|endoftext|>"), text="Hi", finish="stop"),
    "an end of unknown spelling": legacy(row("Hi"), row(" the"), row("<END>"), text="Hi the", finish="stop"),
    "no end after all": legacy(row("Hi"), row("<END>"), text="Hi<END>", finish="stop"),
    "literal ends": legacy(row("</s>"), row("<|endoftext|>"), row("Hi"), text="</s><|endoftext|>Hi"),
    "a literal end at last": legacy(row("Hi"), row("</s>"), text="Hi</s>", finish="length"),
    "ids": legacy(row("token_id:258"), row(f"token_id:{TURN}"), row(f"token_id:{END}"), text="Hi", finish="stop"),
    "a special token at a stop": legacy(row("token_id:258"), row(f"token_id:{TURN}"), text="Hi", finish="stop"),
    "an unfinished character": legacy(row("Hi"), row("\ufffd"), text="Hi", finish="stop"),
    "only the end": legacy(row("<END>"), text="", finish="stop"),
    "no reason": legacy(row("Hi"), row(" the"), text="Hi the", finish=None),
    "an immediate end": legacy(text="", finish="stop"),
    "no text": {"choices": [{**legacy(row("Hi"), row("<END>"))["choices"][0], "text": None, "finish_reason": "stop"}]},
    "chat": chat(HI, THE, text="Hi the"),
    "chat at its end": chat(HI, THE, text="Hi the", finish="stop"),
    "chat with an end": chat(HI, item("<|im_end|>"), text="Hi", finish="stop"),
    "chat ends at once": chat(text="", finish="stop"),
    "llama-server": llama(HI, THE, item("", [], id=END), text="Hi the", finish="stop"),
    "llama-server goes on": llama(HI, item("", [], id=TURN), THE, text="Hi the"),
}


def shape(choice: dict[str, Any], text: str | None, rows: slice, finish: Any) -> dict[str, Any]:
    """A chunk of a whole answer's choice."""
    logprobs = choice["logprobs"]
    part = {name: column[rows] for name, column in logprobs.items()} if logprobs else None
    if "message" in choice:
        return {"choices": [{"delta": {"content": text}, "logprobs": part, "finish_reason": finish}]}
    return {"choices": [{"text": text, "logprobs": part, "finish_reason": finish}]}


def cuts(body: Any) -> Iterator[list[Any]]:
    """Ways to stream a body: rows apart or together, the text with them, before or after, the reason with or after."""
    choice = body["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    logprobs = choice["logprobs"]
    count = len(next(iter(logprobs.values())))
    extra = [{"choices": [], "usage": body["usage"]}] if "usage" in body else []
    role = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}] if "message" in choice else []
    nothing = shape(choice, None if text is None else "", slice(0, 0), None)
    for inner in itertools.chain.from_iterable(itertools.combinations(range(1, count), k) for k in range(count)):
        edges = [0, *inner, count]
        slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
        for ends, late in itertools.product(text_cuts(text, len(slices)), (False, True)):
            texts = [None if text is None else text[a:b] for a, b in itertools.pairwise(ends)]
            chunks = [shape(choice, part, rows, None) for part, rows in zip(texts, slices, strict=True)]
            if late:
                chunks.append(shape(choice, None if text is None else "", slice(0, 0), choice["finish_reason"]))
            else:
                chunks[-1]["choices"][0]["finish_reason"] = choice["finish_reason"]
            yield [*role, nothing, *chunks, *extra]


def text_cuts(text: str | None, parts: int) -> Iterator[list[int]]:
    size = len(text or "")
    for inner in itertools.combinations_with_replacement(sorted({0, 1, 2, size // 2, size}), parts - 1):
        yield [0, *(min(place, size) for place in inner), size]


def same(here: Position, there: Position) -> bool:
    return (
        here.token == there.token
        and here.logprob == there.logprob
        and tuple(here.tokens) == tuple(there.tokens)
        and np.array_equal(here.logprobs, there.logprobs)
    )


def read(chunks: list[Any], known: Vocabulary | None, n: int = 10) -> tuple[list[Position], Any, Incremental]:
    reader = Incremental(n, 5, known)
    positions = [position for chunk in chunks for position in reader.feed(chunk).positions]
    last = reader.finish()
    return [*positions, *last.positions], last.finish, reader


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_every_way_of_cutting_an_answer(name: str, known: bool, vocabulary: Vocabulary) -> None:
    body, spelling = BODIES[name], vocabulary if known else None
    whole = parse(body, Incremental(10, 5, spelling))
    for chunks in cuts(body):
        positions, finish, reader = read(chunks, spelling)
        assert finish == whole.finish
        assert len(positions) == len(whole.positions)
        assert all(same(here, there) for here, there in zip(positions, whole.positions, strict=True)), chunks
        assert reader.usage == (whole.usage if "usage" in body else None)


def test_positions_come_at_once_unless_they_may_be_the_end() -> None:
    for name, counts in {
        "legacy": [1, 1, 1],
        "an end of unknown spelling": [1, 1, 0],
        "literal ends": [0, 1, 2],
        "chat": [1, 1],
        "llama-server goes on": [1, 0, 2],
    }.items():
        choice = BODIES[name]["choices"][0]
        texts = {"an end of unknown spelling": ["Hi", " the", ""], "llama-server goes on": ["Hi", "", " the"]}
        reader = Incremental(10, 5)
        for i, count in enumerate(counts):
            rows = next(iter(choice["logprobs"].values()))
            token = rows[i]["token"] if isinstance(rows[i], dict) else rows[i]
            text = texts[name][i] if name in texts else token
            assert len(reader.feed(shape(choice, text, slice(i, i + 1), None)).positions) == count, (name, i)


def test_a_message_shown_in_part_tells_nothing_of_the_end() -> None:
    reader = Incremental(10, 5)
    hidden = {"choices": [{"delta": {"reasoning_content": "Hm"}, "logprobs": {"content": [item("Hm")]}}]}
    assert len(reader.feed(hidden).positions) == 1
    reader.feed({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    assert reader.finish() == Draft((), "stop")


def test_more_than_was_asked_for() -> None:
    reader = Incremental(2, 5)
    choice = BODIES["legacy"]["choices"][0]
    assert len(reader.feed(shape(choice, "Hi", slice(0, 1), None)).positions) == 1
    with pytest.raises(BadResponse, match="3 tokens where 2"):
        reader.feed(shape(choice, " the cat", slice(1, 3), None))


@pytest.mark.parametrize(
    ("chunk", "kind"),
    [
        ("<html>", BadResponse),
        ({"error": {"message": "no"}}, BadResponse),
        ({"choices": ["x"]}, BadResponse),
        ({"choices": [{"text": "a", "logprobs": {"tokens": ["a"]}}]}, BadResponse),
        ({"choices": [{"text": "a", "logprobs": [3]}]}, BadResponse),
        (legacy(("a", -0.1, {}), text="a"), NoLogprobs),
    ],
)
def test_malformed_chunks(chunk: Any, kind: type[BaseError]) -> None:
    with pytest.raises(kind):
        Incremental(10, 5).feed(chunk)


def test_text_without_log_probabilities_is_seen_at_once() -> None:
    reader: Any = Incremental(10, 5)
    assert reader.feed({"choices": [{"text": "", "logprobs": None}]}) == Draft(())
    assert not reader.unscored
    reader.feed({"choices": [{"text": "Hi", "logprobs": None}]})
    assert reader.unscored
    with pytest.raises(NoLogprobs):
        reader.finish()


def test_usage_is_the_last_that_was_reported() -> None:
    reader = Incremental(10, 5)
    assert reader.usage is None
    details = {"prompt_tokens_details": {"cached_tokens": 5}}
    for count in (1, 2):
        reader.feed({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count, **details}})
        reader.feed({"choices": [], "usage": None})
    assert reader.usage == Usage(1, 7, 2, cached_prompt_tokens=5)


def test_an_empty_reason_is_none() -> None:
    reader: Any = Incremental(10, 5)
    reader.feed(legacy(row("Hi"), text="Hi", finish=""))
    assert not reader.complete
    reader.feed(legacy(text="", finish="length"))
    assert reader.complete
    assert reader.finish() == Draft((), "length")
