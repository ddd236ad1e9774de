"""Rows are complete before they are weighed: what is made exact, in how many passes, and that p is the text's alone."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tables import SETTINGS, Settings, Table, TableBase, TablePair, TableRow, decoded, pace_of, text_of, token

from blackbox_proxy.decoding.contenders import contenders, hidden_bound, matters, noticeable
from blackbox_proxy.decoding.rows import Weigher, complete, refine
from blackbox_proxy.decoding.threads import Turns, on_thread
from blackbox_proxy.decoding.weighed import Known
from blackbox_proxy.maths.equation import Equation, hidden_mass, tail, uncovered
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.protocols import Ask, Row
from blackbox_proxy.types import Draft, Position, Scores, Step, Token

# -- who contends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_p", "bar", "expected"),
    [
        ([-1.0, -1.3, -4.0], [0.1, 0.4, 0.5], [0, 1]),  # the example of the module
        ([-1.0, -1.3, -4.0], [0.0, 0.0, 0.0], []),
        ([-1.0, -1.3, -4.0], [0.0, 0.2, 0.5], []),  # b reaches -1.1, and a is surely -1
        ([-1.0, -1.3, -4.0], [0.0, 0.3, 0.5], [1]),  # what is exact needs no pass, whoever reaches it does
        ([-1.0, -1.3, -4.0], [0.1, 0.1, 0.5], []),  # what a is exactly is not known, but it has won
        ([-1.0, -9.0], [np.inf, np.inf], [0, 1]),
    ],
)
def test_greedy_whoever_could_be_the_likeliest_contends(
    log_p: list[float], bar: list[float], expected: list[int]
) -> None:
    assert contenders(np.array(log_p), np.array(bar), 0.0).tolist() == expected


def test_sampled_whoever_moves_p_contends_too() -> None:
    log_p = np.log([0.7, 0.2, 0.09, 0.01])
    bar = np.array([0.0, 0.05, 0.3, 1.0])  # of all probability: 0, 0.010, 0.031, 0.017
    assert contenders(log_p, bar, 0.0).tolist() == []
    assert contenders(log_p, bar, 1.0).tolist() == [2]
    assert contenders(log_p, bar, 2.0).tolist() == [2, 3], "a flatter p gives the unlikely more to move"
    assert noticeable(log_p, bar).tolist() == [2]


def test_a_bar_is_the_errors_of_all_pairs_times_their_weights() -> None:
    error = np.array([0.1, 0.2])
    scores = Scores(np.zeros(2), np.zeros(2), np.zeros(2), ("exact", "exact"), error)
    assert Equation((2.0, -1.0)).error([scores, scores], 0) == pytest.approx(3.0 * error)
    unknown = replace(scores, error=np.full(2, np.inf))
    assert Equation((0.0, 1.0)).error([unknown, scores], 0) == pytest.approx(error), "alpha 0 leaves a pair out"


@pytest.mark.parametrize(
    "factors", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.5), (1.0, 0.0, 0.0), (0.4, 0.8, 0.2), (1.0, 0.3, -0.5)]
)
def test_no_hidden_token_of_an_event_can_be_better_than_the_bound(factors: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(3)
    of_q, of_e, of_a = factors
    tight = 0
    for _ in range(40):
        log_q = np.log(0.99 * rng.dirichlet([0.3] * 6)[:5] + 1e-6)
        log_a = np.log(rng.dirichlet([0.5] * 6)[:5] + 1e-9)
        of_event = np.log(rng.uniform(0.0, 1.0, 2))  # E and A of the event that has the hidden token
        parts = np.stack(np.meshgrid(np.linspace(-8.0, 0.0, 9), np.linspace(-30.0, 0.0, 61)), -1).reshape(-1, 2)
        hidden_e, hidden_a = (of_event + parts).T  # its own part of both
        tails = np.array([float(tail(log_q, log_a, np.array([a]), "backoff")[0]) for a in hidden_a])
        best = float(np.max(of_q * tails + of_e * hidden_e - of_a * hidden_a))
        hidden = math.log(hidden_mass(log_q))
        most = min(float(np.min(log_q)), hidden)
        e, a = of_event[:, None]
        (bound,) = hidden_bound(e, a, factors, hidden, most, math.log(uncovered(np.exp(log_a), Parts.of([5]))[0]))
        assert best <= bound + 1e-9
        tight += best > bound - 0.3
    assert tight > 20, "and it is no more than is needed"


def test_nothing_bounds_a_hidden_token_whose_score_grows_as_the_untuned_model_knows_less_of_it() -> None:
    e = a = np.array([-1.0, -2.0])
    for factors in ((1.0, 1.5, 1.5), (0.2, 0.8, 0.4), (1.0, -0.5, -0.5)):
        assert hidden_bound(e, a, factors, -1.0, -4.0, -1.0).tolist() == [np.inf, np.inf]


def test_a_bound_matters_where_it_reaches_the_best_or_a_part_of_p() -> None:
    log_p, bar = np.log([0.9, 0.1]), np.array([0.0, 0.3])
    bound = np.log([0.9, 0.5, 0.1, 0.001])
    of = Parts.of([2]), np.zeros(4, dtype=np.intp)
    assert matters(bound, log_p, bar, 0.0, *of).tolist() == [True, False, False, False]
    assert matters(bound, log_p, bar, 1.0, *of).tolist() == [True, True, True, False]


# -- a pair that estimates first --------------------------------------------------------------------------------------


class RoughRow(TableRow):
    """Offsets are off by up to `off` until they are asked for, and the row knows by how much."""

    limit: int | None = 64

    def __init__(self, offsets: dict[bytes | None, float], proposals: Sequence[Token], off: float, text: bytes) -> None:
        super().__init__(offsets, proposals)
        self.off, self.text = off, text
        self.exact: set[tuple[str, object]] = set()

    def score(self, tokens: Sequence[Token]) -> Scores:
        true = super().score(tokens)
        rough = np.array([t.key not in self.exact for t in tokens], dtype=np.bool_)
        noise = np.array([np.sin(sum(self.text) + 7.0 * sum(t.bytes or b"") + len(self.text)) for t in tokens])
        offset = true.offset + np.where(rough, self.off * noise, 0.0)
        return replace(true, offset=offset, error=np.where(rough, self.off, 0.0))


class RoughPair(TablePair):
    def __init__(self, offsets: dict[bytes, dict[bytes | None, float]], off: float, **more: Any) -> None:
        super().__init__(offsets, **more)
        self.off = off
        self.rows: list[RoughRow] = []
        self.passes: list[list[tuple[bytes, list[bytes | None]]]] = []

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        texts, text = list[bytes](), b"".join(t.bytes or b"" for t in issued)
        for position in positions:
            texts.append(text)
            text += position.token.bytes or b""
        self.rows = [RoughRow(self.offsets.get(text, {}), self.proposals, self.off, text) for text in texts]
        return list(self.rows)

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        self.passes.append([])
        for row, tokens in wanted:
            assert isinstance(row, RoughRow)
            assert row in self.rows, "rows are those of the last score"
            assert not row.exact.intersection(t.key for t in tokens), "a token is refined once"
            row.exact.update(t.key for t in tokens)
            self.passes[-1].append((row.text, [t.bytes for t in tokens]))


class Spelled(TableBase):
    """Its spelling is known, so that a draft is scored in one pass."""

    vocabulary: Any = object()


def close_calls() -> tuple[Table, dict[bytes, dict[bytes | None, float]]]:
    """Every text of up to six letters: two likely next ones, close together, and what a pair changes; it seldom
    decides, so that drafts are long.
    """
    table: Table = {}
    moved: dict[bytes, dict[bytes | None, float]] = {}
    letters = [b"a", b"b", b"c"]
    for length in range(6):
        for text in map(b"".join, itertools.product(letters, repeat=length)):
            rng = np.random.default_rng([5, *text])
            first, second, third = (letters[int(i)] for i in rng.permutation(3))
            table[text] = {first: 0.45, second: 0.35, third: 0.15, b"d": 0.05}
            moved[text] = {second: float(rng.choice([0.0, 0.1, 0.1, 0.4])), third: float(rng.uniform(0, 0.4))}
    return table, moved


WIDE, MOVED = close_calls()


@pytest.mark.parametrize("off", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("way", ["1", "3", "8", "stream", "local-3"])
async def test_a_greedy_text_is_that_of_the_exact_pair(off: float, way: str) -> None:
    exact = await decoded(Spelled(WIDE), [TablePair(MOVED)], SETTINGS, pace_of("1"))
    found = await decoded(Spelled(WIDE), [RoughPair(MOVED, off)], SETTINGS, pace_of(way))
    assert text_of(found) == text_of(exact)


def figures(steps: list[Step]) -> list[Any]:
    return [(step.token, [(c.token.key, c.log_p) for c in step.candidates]) for step in steps]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=5), Sampling(0.7, 0.9, 6)])
async def test_p_is_the_same_for_every_draft_length(sampling: Sampling) -> None:
    """To the last bit, estimates included; greedy texts are the same, sampled ones as far as the draft was accepted."""
    settings = replace(SETTINGS, sampling=sampling)
    proposals = [token(b"d"), token(b"e")]
    one = await decoded(Spelled(WIDE), [RoughPair(MOVED, 0.3, proposals=proposals)], settings, pace_of("1"))
    seen = {b"".join(step.token for step in one[:i]): figures([step])[0][1] for i, step in enumerate(one)}
    common = 0
    for way in ("2", "8", "stream", "local-3"):
        other = await decoded(Spelled(WIDE), [RoughPair(MOVED, 0.3, proposals=proposals)], settings, pace_of(way))
        if sampling.temperature == 0.0:
            assert figures(other) == figures(one)
        for i, step in enumerate(other):
            text = b"".join(step.token for step in other[:i])
            common += text in seen
            assert seen.get(text, figures([step])[0][1]) == figures([step])[0][1]
    assert common >= 8


async def test_what_contends_in_a_draft_is_one_pass_for_all_its_positions() -> None:
    pair = RoughPair({}, 0.2)
    await decoded(Spelled(WIDE), [pair], replace(SETTINGS, max_tokens=3), pace_of("8"))
    first, *_ = pair.passes
    assert [len(text) for text, _ in first] == [0, 1, 2]
    for text, tokens in first:
        likely = sorted((-share, letter) for letter, share in WIDE[text].items() if letter)[:2]
        assert set(tokens) == {letter for _, letter in likely}, "the third is 1.1 nats below the first"


def test_only_what_some_pair_estimates_is_asked_of_it() -> None:
    rough, exact = RoughPair({}, 0.5), TablePair({})
    place = [Position.ahead([token(b"a"), token(b"b")])]
    rows = (rough.score((), place)[0], exact.score((), place)[0])
    refine([rough, exact], [(rows, [token(b"a")])])  # the exact one would complain
    assert rough.passes == [[(b"", [b"a"])]]
    refine([rough, exact], [(rows, [token(b"a")])])
    assert len(rough.passes) == 1


def test_passes_are_bounded_and_a_token_is_asked_about_once() -> None:
    """A row that stays unsure whatever it is asked, and a new contender after every pass."""

    class Stubborn(RoughPair):
        def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
            self.passes.append([(b"", [t.bytes for _, tokens in wanted for t in tokens])])

    pair = Stubborn({}, 1.0)
    rows = [tuple(pair.score((), [Position.ahead()]))]
    complete([pair], rows, lambda _: [[token(b"a")]])
    assert len(pair.passes) == 1
    names = iter(range(1000))
    complete([pair], rows, lambda _: [[token(b"x%d" % next(names))]])
    assert len(pair.passes) < 10


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_that_are_asked_for_by_name_are_the_models_own(temperature: float) -> None:
    pair = RoughPair({b"": {b"d": 0.7}}, 0.4)
    named = token(b"d")
    position = Position(token(b"a"), -0.2, [token(b"a"), token(b"b")], np.log([0.8, 0.1]))
    weigher = Weigher([pair], [Equation(), Equation((0.0,))], temperature)
    (scored,) = weigher.score([pair], (), [position], [Known.of([(named, math.log(0.01))])])
    index = scored.under(0).index_of(named)
    assert index is not None
    assert scored.under(0).scores[0].error[index] == 0.0
    assert scored.under(0).scores[0].offset[index] == pytest.approx(0.7)


# -- whose turn it is -------------------------------------------------------------------------------------------------


class Watched(TablePair):
    """Notes its calls, and fails where two overlap."""

    def __init__(self) -> None:
        super().__init__({})
        self.calls: list[str] = []
        self._busy = threading.Lock()

    def _note(self, name: str, seconds: float = 0.0) -> None:
        assert self._busy.acquire(blocking=False), "session calls must not overlap"
        time.sleep(seconds)
        self.calls.append(name)
        self._busy.release()

    def read(self, issued: Sequence[Token]) -> None:
        self._note("read", 0.05)

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        self._note("score")
        return super().score(issued, positions)

    def close(self) -> None:
        self._note("close")


@pytest.mark.parametrize("way", ["8", "stream"])
async def test_the_prompt_is_read_while_the_first_request_is_under_way(way: str) -> None:
    pair = Watched()

    class Slow(Spelled):
        async def draft(self, ask: Ask) -> Draft:
            await asyncio.sleep(0.02)
            pair.calls.append("answer")
            return await super().draft(ask)

    await decoded(Slow(WIDE), [pair], Settings(2), pace_of(way))
    assert pair.calls[:3] == ["answer", "read", "score"]
    assert pair.calls.count("read") == 1


async def test_what_is_under_way_is_waited_for_before_a_session_is_closed() -> None:
    pair = Watched()

    class Failing(Spelled):
        async def draft(self, ask: Ask) -> Draft:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await decoded(Failing(WIDE), [pair], SETTINGS, pace_of("8"))
    assert pair.calls == ["read", "close"]


async def test_turns_do_not_overlap_and_survive_a_cancelled_one() -> None:
    turns, order = Turns(), list[str]()

    def work(name: str, seconds: float) -> str:
        order.append(f"{name} begins")
        time.sleep(seconds)
        order.append(f"{name} ends")
        return name

    slow = asyncio.create_task(turns.run(work, "slow", 0.1))
    await asyncio.sleep(0.02)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert await turns.run(work, "next", 0.0) == "next"
    assert order == ["slow begins", "slow ends", "next begins", "next ends"]


async def test_many_texts_can_wait_for_their_scores_at_once() -> None:
    """More than asyncio's own pool has threads for on a machine of few cores."""
    gathered = threading.Barrier(64)
    await asyncio.wait_for(asyncio.gather(*(on_thread(gathered.wait, 20.0) for _ in range(64))), 30.0)
