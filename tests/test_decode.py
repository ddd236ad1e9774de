"""The loop, on tables instead of models: drafts, cuts, ends, unfinished characters, stop strings, limits, tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from blackbox_proxy.decode import decode
from blackbox_proxy.errors import CannotContinue, ContextTooLong, InputError
from blackbox_proxy.pair.protocol import Row
from blackbox_proxy.sampling import Sampling
from blackbox_proxy.types import END, Draft, Position, Prefix, Scores, Step, Token, Usage
from blackbox_proxy.weigh import Settings, one_end

Table = dict[bytes, dict[bytes | None, float]]
"""Text so far -> next token (None: the end) -> probability."""


def token(spelling: bytes | None) -> Token:
    return END if spelling is None else Token(bytes=spelling, text=spelling.decode("utf-8", "replace"))


class TableBase:
    """A base whose next-token table is written down. `as_text`: prefixes must be whole UTF-8."""

    name, vocabulary, context = "table", None, None

    def __init__(self, table: Table, *, as_text: bool = True, limit: int = 100, hide_end: bool = False) -> None:
        self.table, self.as_text, self.limit, self.hide_end = table, as_text, limit, hide_end
        self.asked: list[tuple[bytes, int]] = []

    def check(self, prompt: Any, max_tokens: int) -> None: ...

    def can_continue(self, prefix: Prefix) -> bool:
        try:
            prefix.generated.decode("utf-8")
        except UnicodeDecodeError:
            return not self.as_text
        return True

    def room(self, prefix: Prefix) -> int | None:
        return None

    async def draft(self, prefix: Prefix, n: int, *, temperature: float = 0.0, seed: int | None = None) -> Draft:
        text = prefix.generated
        self.asked.append((text, n))
        positions: list[Position] = []
        finish = None
        for _ in range(min(n, self.limit)):
            row = sorted(self.table.get(text, {None: 1.0}).items(), key=lambda item: -item[1])
            tokens, logprobs = [token(s) for s, _ in row], np.log([p for _, p in row])
            if tokens[0].end and self.hide_end:
                finish = "stop"
                break
            positions.append(Position(tokens[0], float(logprobs[0]), tokens, logprobs))
            if tokens[0].end:
                finish = "stop"
                break
            text += tokens[0].bytes or b""
            if text not in self.table:
                break
        return Draft(tuple(positions), finish, Usage(1, len(prefix.tokens), len(positions)))  # type: ignore[arg-type]

    async def aclose(self) -> None: ...


class TableRow:
    limit: int | None = None

    def __init__(self, offsets: dict[bytes | None, float], proposals: Sequence[Token]) -> None:
        self.offsets, self.proposals = offsets, proposals

    def score(self, tokens: Sequence[Token]) -> Scores:
        offset = np.array([self.offsets.get(None if t.end else t.bytes, 0.0) for t in tokens])
        antiexpert = np.full(len(tokens), math.log(0.1))
        return Scores(antiexpert + offset, antiexpert, offset, ("exact",) * len(tokens))

    def propose(self, count: int) -> list[Token]:
        return list(self.proposals)[:count]


class TablePair:
    """Offsets per text so far; `window` is how many issued tokens it can still score."""

    has_antiexpert = True

    def __init__(
        self, offsets: dict[bytes, dict[bytes | None, float]], proposals: Sequence[Token] = (), window: int = 99
    ):
        self.offsets, self.proposals, self.window = offsets, proposals, window

    def check(self, prompt: Any, max_tokens: int) -> None: ...

    def open(self, prompt: Any, base: Any) -> TablePair:
        return self

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        if len(issued) + len(positions) > self.window:
            raise ContextTooLong("full")
        text = b"".join(t.bytes or b"" for t in issued)
        rows: list[Row] = []
        for position in positions:
            rows.append(TableRow(self.offsets.get(text, {}), self.proposals))
            text += position.token.bytes or b""
        return rows

    def close(self) -> None: ...


SETTINGS = Settings(20, (1.0,), Sampling())


async def run(base: TableBase, pair: TablePair, settings: Settings = SETTINGS) -> list[Step]:
    return [step async for step in decode(base, [pair], "prompt", settings)]


def text_of(steps: list[Step]) -> str:
    return "".join(step.text for step in steps)


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


@pytest.mark.parametrize("draft", [1, 2, 3, 8])
async def test_the_text_is_the_same_for_every_draft_length(draft: int) -> None:
    base = TableBase(CHAIN)
    steps = await run(base, TO_BLUE, replace(SETTINGS, draft=draft))
    assert text_of(steps) == "the blue fox!"
    assert [step.changed for step in steps] == [False, True, False, False, False]
    assert [step.drafted for step in steps] == [True, False, True, True, True]
    assert (steps[-1].end, steps[-1].finish_reason) == (True, "stop")
    assert sum(step.usage.api_calls for step in steps) == len(base.asked)
    if draft == 8:
        assert base.asked == [(b"", 8), (b"the blue ", 8)]  # 1 + disagreements


@pytest.mark.parametrize("draft", [1, 8])
async def test_an_end_that_the_api_leaves_out_ends_the_text(draft: int) -> None:
    steps = await run(TableBase(CHAIN, hide_end=True), TablePair({}), replace(SETTINGS, draft=draft))
    assert text_of(steps) == "the red fox"
    assert (steps[-1].end, steps[-1].finish_reason, len(steps[-1].candidates)) == (True, "stop", 0)


async def test_fewer_positions_than_asked_are_taken_as_they_are() -> None:
    base = TableBase(CHAIN, limit=1)
    assert text_of(await run(base, TablePair({}), replace(SETTINGS, draft=8))) == "the red fox"
    assert len(base.asked) == 4


async def test_limits() -> None:
    steps = await run(TableBase(CHAIN), TablePair({}), replace(SETTINGS, max_tokens=2, draft=8))
    assert (text_of(steps), steps[-1].finish_reason) == ("the red ", "length")
    steps = await run(TableBase(CHAIN), TablePair({}, window=2), replace(SETTINGS, draft=8))
    assert (text_of(steps), steps[-1].finish_reason) == ("the red ", "length")


@pytest.mark.parametrize("draft", [1, 2, 8])
async def test_stop_strings_across_tokens(draft: int) -> None:
    steps = await run(TableBase(CHAIN), TO_BLUE, replace(SETTINGS, stop=("e fo",), draft=draft))
    assert (text_of(steps), steps[-1].finish_reason, steps[-1].end) == ("the blu", "stop", False)


@pytest.mark.parametrize("draft", [1, 2, 8])
async def test_what_was_paid_for_is_kept_when_the_apis_window_is_full(draft: int) -> None:
    """An API of unknown window refuses a request that does not fit, in the middle of a text."""

    class Narrow(TableBase):
        async def draft(self, prefix: Prefix, n: int, **options: Any) -> Draft:
            if len(prefix.tokens) + n > 3:
                raise ContextTooLong("full")
            return await super().draft(prefix, n, **options)

    steps = await run(Narrow(CHAIN), TablePair({}), replace(SETTINGS, draft=draft))
    assert (text_of(steps), steps[-1].finish_reason) == ("the red fox", "length")


THUMB = "👍".encode()
SPLIT: Table = {
    b"": {THUMB[:2]: 0.6, b"x": 0.4},
    THUMB[:2]: {THUMB[2:3]: 0.9, b"?": 0.1},
    THUMB[:3]: {THUMB[3:]: 1.0},
    THUMB: {None: 1.0},
    b"x": {None: 1.0},
}


@pytest.mark.parametrize("draft", [1, 2, 3, 4, 8])
async def test_a_split_character_is_finished_inside_one_draft(draft: int) -> None:
    steps = await run(TableBase(SPLIT), TablePair({}), replace(SETTINGS, draft=draft))
    assert text_of(steps) == "👍"
    assert [step.token for step in steps] == [THUMB[:2], THUMB[2:3], THUMB[3:], b""]


async def test_an_unfinished_character_is_not_chosen_at_a_cut() -> None:
    """The proxy wants the emoji, the base drafts x: its first half could not be issued back as text, but as ids it
    can.
    """
    table = {**SPLIT, b"": {b"x": 0.6, THUMB[:2]: 0.4}}
    wanted = TablePair({b"": {THUMB[:2]: 3.0}})
    assert text_of(await run(TableBase(table), wanted)) == "x"
    assert text_of(await run(TableBase(table, as_text=False), wanted)) == "👍"


async def test_a_character_that_the_proxy_breaks_off_is_not_begun() -> None:
    """Inside the emoji the proxy wants "?", which would leave half a character behind: another token is chosen before
    it.
    """
    broken = TablePair({THUMB[:2]: {b"?": 9.0}})
    for draft in (1, 2, 8):
        assert (
            text_of(await run(TableBase({**SPLIT, THUMB[:2]: {b"?": 1.0}}), broken, replace(SETTINGS, draft=draft)))
            == "x"
        )


async def test_a_stray_byte_is_never_taken_as_text() -> None:
    table: Table = {b"": {b"\x80": 0.9, b"x": 0.1}, b"\x80": {b"y": 1.0}, b"x": {None: 1.0}}
    for draft in (1, 8):
        assert text_of(await run(TableBase(table), TablePair({}), replace(SETTINGS, draft=draft))) == "x"


async def test_nothing_that_can_be_issued_is_an_error_with_a_hint() -> None:
    unknown = Token(bytes=None, text="�")
    base = TableBase({})

    async def draft(prefix: Prefix, n: int, **_: Any) -> Draft:
        return Draft((Position(unknown, 0.0, [unknown], np.zeros(1)),))

    base.draft = draft  # type: ignore[assignment,method-assign]
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
    settings = Settings(20, (1.0, 0.5), Sampling())
    steps = [step async for step in decode(TableBase(CHAIN), [TO_BLUE, to_hen], "prompt", settings)]
    assert text_of(steps) == "the blue hen"


async def test_of_a_long_list_the_likeliest_and_the_proposed_are_scored() -> None:
    """A whole vocabulary and a pair that scores one by one: what neither the base nor the expert likes is left out."""
    rest = {f"t{i}".encode(): 0.0005 for i in range(200)}
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


@pytest.mark.parametrize("draft", [1, 2, 8])
async def test_sampled_text_does_not_depend_on_the_draft_length(draft: int) -> None:
    texts = [
        text_of(await run(TableBase(CHAIN), TO_BLUE, replace(SETTINGS, sampling=Sampling(1.0, 1.0, seed), draft=d)))
        for seed in range(12)
        for d in (1, draft)
    ]
    assert texts[::2] == texts[1::2]
    assert len(set(texts)) > 2
