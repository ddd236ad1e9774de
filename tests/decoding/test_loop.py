"""The loop, on tables instead of models: drafts, cuts, ends, unfinished characters, stop strings, limits, tails."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tables import (
    SETTINGS,
    WAYS,
    Settings,
    Table,
    TableBase,
    TablePair,
    TableRow,
    decoded,
    pace_of,
    run,
    text_of,
    token,
)

from blackbox_proxy.decoding.loop import decode
from blackbox_proxy.decoding.rows import Scored, Weigher
from blackbox_proxy.decoding.weigh import one_end
from blackbox_proxy.errors import CannotContinue, ContextTooLong, InputError
from blackbox_proxy.maths.sampling import Sampling, nucleus
from blackbox_proxy.protocols import Ask
from blackbox_proxy.types import END, Draft, Position, Token

CHAIN: Table = {
    b"": {b"the ": 0.9, b"a ": 0.1},
    b"the ": {b"red ": 0.7, b"blue ": 0.3},
    b"the red ": {b"fox": 0.8, b"hen": 0.2},
    b"the blue ": {b"fox": 0.5, b"hen": 0.5},
    b"the red fox": {None: 1.0},
    b"the red hen": {None: 1.0},
    b"the blue fox": {b"!": 0.6, None: 0.4},
    b"the blue hen": {None: 0.9, b"?": 0.1},
    b"the blue fox!": {None: 1.0},
}
TO_BLUE = TablePair({b"the ": {b"blue ": 2.0}})


@pytest.mark.parametrize("way", WAYS)
async def test_the_text_is_the_same_for_every_draft_length(way: str) -> None:
    base = TableBase(CHAIN)
    steps = await run(base, TO_BLUE, SETTINGS, way)
    assert text_of(steps) == "the blue fox!"
    assert [step.changed for step in steps] == [False, True, False, False, False]
    assert [step.drafted for step in steps] == [True, False, True, True, True]
    assert (steps[-1].end, steps[-1].finish_reason) == (True, "stop")
    assert sum(step.usage.api_calls for step in steps) == len(base.asked)
    if way == "8":
        assert base.asked == [(b"", 8), (b"the blue ", 8)]  # 1 + disagreements


@pytest.mark.parametrize("way", WAYS)
async def test_an_end_that_the_api_leaves_out_ends_the_text(way: str) -> None:
    steps = await run(TableBase(CHAIN, hide_end=True), TablePair({}), SETTINGS, way)
    assert text_of(steps) == "the red fox"
    assert (steps[-1].end, steps[-1].finish_reason, len(steps[-1].candidates)) == (True, "stop", 0)


async def test_fewer_positions_than_asked_are_taken_as_they_are() -> None:
    base = TableBase(CHAIN, limit=1)
    assert text_of(await run(base, TablePair({}), SETTINGS, "8")) == "the red fox"
    assert len(base.asked) == 4


async def test_limits() -> None:
    steps = await run(TableBase(CHAIN), TablePair({}), replace(SETTINGS, max_tokens=2), "8")
    assert (text_of(steps), steps[-1].finish_reason) == ("the red ", "length")
    steps = await run(TableBase(CHAIN), TablePair({}, window=2), SETTINGS, "8")
    assert (text_of(steps), steps[-1].finish_reason) == ("the red ", "length")


@pytest.mark.parametrize("way", WAYS)
async def test_stop_strings_across_tokens(way: str) -> None:
    steps = await run(TableBase(CHAIN), TO_BLUE, replace(SETTINGS, stop=("e fo",)), way)
    assert (text_of(steps), steps[-1].finish_reason, steps[-1].end) == ("the blu", "stop", False)


@pytest.mark.parametrize("way", WAYS)
async def test_what_was_paid_for_is_kept_when_the_apis_window_is_full(way: str) -> None:
    """An API of unknown window refuses a request that does not fit, in the middle of a text."""

    class Narrow(TableBase):
        async def draft(self, ask: Ask) -> Draft:
            if len(ask.prefix.tokens) + ask.n > 3:
                raise ContextTooLong("full")
            return await super().draft(ask)

    steps = await run(Narrow(CHAIN), TablePair({}), SETTINGS, way)
    assert (text_of(steps), steps[-1].finish_reason) == ("the red fox", "length")


THUMB = "👍".encode()
SPLIT: Table = {
    b"": {THUMB[:2]: 0.6, b"x": 0.4},
    THUMB[:2]: {THUMB[2:3]: 0.9, b"?": 0.1},
    THUMB[:3]: {THUMB[3:]: 1.0},
    THUMB: {None: 1.0},
    b"x": {None: 1.0},
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_split_character_is_finished_inside_one_draft(way: str) -> None:
    steps = await run(TableBase(SPLIT), TablePair({}), SETTINGS, way)
    assert text_of(steps) == "👍"
    assert [step.token for step in steps] == [THUMB[:2], THUMB[2:3], THUMB[3:], b""]


async def test_an_unfinished_character_is_not_chosen_at_a_cut() -> None:
    """The proxy wants the emoji, the base drafts x: its first half could not be issued back as text, but as ids it
    can.
    """
    table: Table = {**SPLIT, b"": {b"x": 0.6, THUMB[:2]: 0.4}}
    wanted = TablePair({b"": {THUMB[:2]: 3.0}})
    assert text_of(await run(TableBase(table), wanted)) == "x"
    assert text_of(await run(TableBase(table, as_text=False), wanted)) == "👍"


async def test_a_character_that_the_proxy_breaks_off_is_not_begun() -> None:
    """Inside the emoji the proxy wants "?", which would leave half a character behind: another token is chosen before
    it.
    """
    broken = TablePair({THUMB[:2]: {b"?": 9.0}})
    for way in WAYS:
        assert text_of(await run(TableBase({**SPLIT, THUMB[:2]: {b"?": 1.0}}), broken, SETTINGS, way)) == "x"


async def test_a_stray_byte_is_never_taken_as_text() -> None:
    table: Table = {b"": {b"\x80": 0.9, b"x": 0.1}, b"\x80": {b"y": 1.0}, b"x": {None: 1.0}}
    for way in WAYS:
        assert text_of(await run(TableBase(table), TablePair({}), SETTINGS, way)) == "x"


async def test_nothing_that_can_be_issued_is_an_error_with_a_hint() -> None:
    unknown = Token(bytes=None, text="�")
    base = TableBase({})

    async def draft(ask: Ask) -> Draft:
        return Draft((Position(unknown, 0.0, [unknown], np.zeros(1)),))

    base.draft = draft  # type: ignore[method-assign]
    with pytest.raises(CannotContinue) as caught:
        await run(base, TablePair({}))
    assert "tokenizer" in caught.value.hint


@pytest.mark.parametrize(("tail", "expected"), [("truncate", "aa"), ("floor", "zz"), ("backoff", "zz")])
async def test_the_expert_reaches_what_the_base_does_not_show(tail: str, expected: str) -> None:
    table: Table = {b"": {b"aa": 0.5, b"bb": 0.3}, b"aa": {None: 1.0}, b"zz": {None: 1.0}}
    pair = TablePair({b"": {b"zz": 4.0}}, [token(b"zz"), token(b"aa")])
    steps = await run(TableBase(table), pair, replace(SETTINGS, tail=tail))  # type: ignore[arg-type]
    assert text_of(steps) == expected
    assert steps[0].covered_mass == pytest.approx(0.8)
    assert [c.tail for c in steps[0].candidates if c.token.bytes == b"zz"] == ([] if tail == "truncate" else [True])


async def test_alpha_may_be_a_schedule_and_zero_is_the_base() -> None:
    assert text_of(await run(TableBase(CHAIN), TO_BLUE, replace(SETTINGS, alphas=(0.0,)))) == "the red fox"
    early = replace(SETTINGS, alphas=(lambda place: 1.0 if place == 1 else 0.0,))
    assert text_of(await run(TableBase(CHAIN), TO_BLUE, early)) == "the blue fox!"
    with pytest.raises(InputError):
        await run(TableBase(CHAIN), TO_BLUE, replace(SETTINGS, alphas=(lambda place: math.nan,)))


async def test_several_pairs_each_with_its_alpha() -> None:
    to_hen = TablePair({b"the blue ": {b"hen": 2.0}})
    steps = await decoded(TableBase(CHAIN), [TO_BLUE, to_hen], Settings(20, (1.0, 0.5)), pace_of("1"))
    assert text_of(steps) == "the blue hen"


async def test_of_a_long_list_the_likeliest_and_the_proposed_are_scored() -> None:
    """A whole vocabulary and a pair that scores one by one: what neither the base nor the expert likes is left out."""
    rest: dict[bytes | None, float] = {f"t{i}".encode(): 0.0005 for i in range(200)}
    table: Table = {b"": {b"aa": 0.5, b"bb": 0.39, b"zz": 0.0001, **rest}}
    pair = TablePair({b"": {b"zz": 12.0}}, [token(b"zz")])
    settings = replace(SETTINGS, max_tokens=1)
    everything = await run(TableBase(table), pair, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TableRow, "limit", 4)
        few = await run(TableBase(table), pair, settings)
    assert (text_of(few), text_of(everything)) == ("zz", "zz")
    assert few[0].covered_mass == everything[0].covered_mass
    assert few[0].candidates[0].log_q == pytest.approx(math.log(0.0001))
    assert {c.token.bytes for c in few[0].candidates} == {b"aa", b"bb", b"zz", b"t0", b"t1"}


def test_all_end_tokens_are_one_event() -> None:
    ends = [Token(id=1, bytes=b"", end=True), Token(id=5, bytes=b"a"), Token(id=2, bytes=b"", end=True)]
    tokens, log_q = one_end(ends, np.log([0.3, 0.2, 0.1]))
    assert [t.id for t in tokens] == [1, 5]
    assert np.allclose(np.exp(log_q), [0.4, 0.2])


def test_impossible_candidates_are_left_out() -> None:
    tokens, log_q = one_end([token(b"a"), token(b"b")], np.array([-0.1, -np.inf]))
    assert [t.bytes for t in tokens] == [b"a"]
    assert np.allclose(log_q, [-0.1])


@pytest.mark.parametrize("way", ["local-1", "local-3", "local-3-stream"])
async def test_the_local_pairs_drafts_save_requests_and_count_as_drafted(way: str) -> None:
    """The expert would write what the tuned model writes; its tokens and the base's after them are one request."""
    pair = TablePair({b"the ": {b"blue ": 2.0}}, writes={b"": b"the ", b"the ": b"blue ", b"the blue ": b"fox"})
    base = TableBase(CHAIN)
    steps = await run(base, pair, SETTINGS, way)
    assert text_of(steps) == "the blue fox!"
    assert len(base.asked) < 1 + sum(step.changed for step in steps) or way == "local-1"
    assert steps[1].drafted is (way != "local-1")


async def test_what_the_base_cannot_keep_apart_is_asked_without_a_local_draft() -> None:
    class Joining(TableBase):
        async def draft(self, ask: Ask) -> Draft:
            whole = await super().draft(ask)
            return Draft((), None, whole.usage) if ask.given else whole

    base = Joining(CHAIN)
    pair = TablePair(TO_BLUE.offsets, writes={b"": b"the "})
    assert text_of(await run(base, pair, SETTINGS, "local-3")) == "the blue fox!"


async def test_a_stream_is_closed_at_the_first_disagreement() -> None:
    endless: Table = {b"the red " + b"ha" * i: {b"ha": 1.0} for i in range(40)}
    base = TableBase({**CHAIN, **endless}, slow=0.02)
    await run(base, TO_BLUE, replace(SETTINGS, max_tokens=40), "stream")
    assert base.asked == [(b"", 40), (b"the blue ", 38)]
    assert base.streamed < 20  # of the first stream not all 40: it was closed about when its second token came


async def test_steps_before_an_error_are_delivered() -> None:
    unknown = Token(bytes=None, text="\ufffd")

    class Broken(TableBase):
        async def draft(self, ask: Ask) -> Draft:
            whole = await super().draft(ask)
            return Draft((*whole.positions[:1], Position(unknown, 0.0, [unknown], np.zeros(1))), None, whole.usage)

    seen = []

    async def collect() -> None:
        base: Any = Broken(CHAIN)
        given = (SETTINGS.equation, SETTINGS.limits, SETTINGS.sampling, pace_of("8"))
        async for step in decode(base, [TablePair({})], "prompt", *given):
            seen.append(step.token)  # noqa: PERF401

    with pytest.raises(CannotContinue):
        await collect()
    assert seen == [b"the "]


# -- sampling ---------------------------------------------------------------------------------------------------------

SHOWN: Table = {  # the base shows two of its tokens; the pair knows of two more
    b"": {b"aa": 0.5, b"bb": 0.3, b"cc": 0.15, b"dd": 0.05},
    b"aa": {b"bb": 0.6, None: 0.3, b"cc": 0.1},
    b"bb": {None: 0.7, b"aa": 0.2, b"dd": 0.1},
}
OFFSETS: dict[bytes, dict[bytes | None, float]] = {
    b"": {b"aa": -0.7, b"bb": 0.4, b"cc": 1.0, b"dd": 1.5},
    b"aa": {b"bb": -0.5, None: 0.8, b"cc": 1.2},
}


class ShortBase(TableBase):
    """Draws from its whole table, shows the two likeliest."""

    async def draft(self, ask: Ask) -> Draft:
        whole = await super().draft(ask)
        shown = [Position(p.token, p.logprob, p.tokens[:2], p.logprobs[:2]) for p in whole.positions]
        return replace(whole, positions=tuple(shown))


def expected_texts(settings: Settings) -> dict[tuple[bytes, ...], float]:
    """Every text of two tokens and its probability, from the table and the equation alone."""
    proposals = [token(s) for s in (b"cc", b"dd")]

    def rows(text: bytes) -> dict[bytes, float]:
        row = sorted(SHOWN.get(text, {None: 1.0}).items(), key=lambda item: -item[1])[:2]
        position = Position(END, None, [token(s) for s, _ in row], np.log([p for _, p in row]))
        pair = TablePair(OFFSETS, proposals)
        weigher = Weigher([pair], (settings.equation,))
        weighed = Scored(weigher, position, [TableRow(OFFSETS.get(text, {}), proposals)], 0).under(0)
        p = nucleus(weighed.log_p, settings.sampling)
        return {b"" if t.end else t.bytes or b"": float(x) for t, x in zip(weighed.tokens, p, strict=True) if x > 0}

    return {
        (first, second): p * p2
        for first, p in rows(b"").items()
        for second, p2 in (rows(first).items() if first else [(b"-", 1.0)])
    }


COMBINATIONS = [
    (temperature, top_p, tail, way)
    for temperature in (0.7, 1.0)
    for top_p in (0.9, 1.0)
    for tail in ("truncate", "floor", "backoff")
    for way in ("2", "local-1")
]
QUICK = (0.7, 0.9, "backoff", "2", 500)


@pytest.mark.parametrize(
    ("temperature", "top_p", "tail", "way", "texts"),
    [QUICK, *(pytest.param(*c, 10_000, marks=pytest.mark.slow) for c in COMBINATIONS)],
)
async def test_law_5_sampled_texts_follow_p(
    temperature: float, top_p: float, tail: str, way: str, texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chi-square over texts of two tokens (the long form has 20,000 draws): exceeded once in ten thousand if p is
    right.
    """

    def here(work: Callable[..., object], *arguments: object) -> asyncio.Future[object]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(work(*arguments))
        return done

    monkeypatch.setattr(
        "blackbox_proxy.decoding.threads.start", here
    )  # tables need no thread, and 10,000 texts no hops between them
    settings = Settings(2, (1.0,), Sampling(temperature, top_p), tail=tail)  # type: ignore[arg-type]
    expected = expected_texts(settings)
    assert sum(expected.values()) == pytest.approx(1.0)
    pair = TablePair(OFFSETS, [token(b"cc"), token(b"dd")])
    seen: Counter[tuple[bytes, ...]] = Counter()
    for seed in range(texts):
        settings = replace(settings, sampling=Sampling(temperature, top_p, seed))
        steps = await run(ShortBase(SHOWN), pair, settings, way)
        seen[tuple(step.token for step in steps) if len(steps) == 2 else (b"", b"-")] += 1
    assert set(seen) <= set(expected)
    chi = sum((seen[text] - texts * p) ** 2 / (texts * p) for text, p in expected.items())
    freedom = len(expected) - 1
    assert chi < freedom + 3.72 * math.sqrt(2 * freedom) + 9.2  # bounds the 0.9999 quantile from above
