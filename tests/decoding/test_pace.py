"""How much is asked for: the formula, the running figures, and what the user's wishes rule out."""

from __future__ import annotations

import math

import pytest

from blackbox_proxy.decoding.pace import Drafting, Line, Pace, Passes, Plan, Rate, run_length
from blackbox_proxy.errors import InputError
from blackbox_proxy.prices import Prices
from blackbox_proxy.protocols import Abilities

WHOLE = Abilities()
STREAMS = Abilities(streams=True)
SCORES = Abilities(streams=True, scores=True)
SCORES_WHOLE = Abilities(scores=True)
BOTH = Abilities(streams=True, scores=True, streams_scored=True)


def pace(drafting: Drafting, *, base: float, local: float = 0.5, first: float = 0.3, per: float = 0.02) -> Pace:
    found = Pace(drafting)
    found.answer = Line(first, per)
    for _ in range(400):
        found.saw_choice(base, local)
    return found


@pytest.mark.parametrize(("rate", "n"), [(0.0, 5), (0.5, 3), (0.9, 20), (1.0, 7)])
def test_run_length_is_the_sum_over_places_that_are_reached(rate: float, n: int) -> None:
    assert run_length(rate, n) == pytest.approx(sum(rate**i for i in range(n)))


def test_a_running_share_forgets() -> None:
    rate = Rate(0.5)
    for value in [1.0] * 300 + [0.0] * 300:
        rate.saw(value)
    assert rate.value < 0.01


def test_latencies_are_learned_from_answers_of_different_length() -> None:
    line = Line(5.0, 1.0)
    for i in range(400):
        n = 1 + i % 30
        line.saw(n, 0.3 + 0.02 * (n - 1))
    assert line.first == pytest.approx(0.3, abs=0.02)
    assert line.per == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize("scale", [0.001, 1.0, 100.0])
def test_what_passes_in_this_process_take_is_learned_whatever_its_size(scale: float) -> None:
    passes = Passes()
    for i in range(400):
        n, given = 1 + i % 7, i % 5
        passes.saw(n, scale * (3.0 + 2.0 * (n - 1) + 0.5 * given), given)
    assert [passes.first, passes.per, passes.given] == pytest.approx([3.0 * scale, 2.0 * scale, 0.5 * scale], rel=0.02)


@pytest.mark.parametrize("seconds", [0.008, 8.0])
def test_a_length_that_was_never_tried_is_priced_by_those_that_were(seconds: float) -> None:
    """Else a small model is never asked for two tokens, and of a large one a single slow answer asks for sixty."""
    found = Pace(Drafting(), here=True)
    found.saw_answer(4, 50.0 * seconds, first=True)  # with the prompt
    for _ in range(20):
        found.saw_choice(1.0, 0.0)
        found.saw_answer(1, seconds)
    assert 2 * found.answer.per == pytest.approx(found.answer.first, rel=0.01) == pytest.approx(seconds, rel=0.03)
    assert 4 < found.plan(SCORES_WHOLE, 100, 40.0).n < 64


def test_a_local_draft_is_worth_what_it_takes_to_draft_and_to_read() -> None:
    def lengths(drafted: float, given: float) -> int:
        found = Pace(Drafting(), here=True)
        for i in range(200):
            found.saw_choice(0.7, 0.95)
            found.saw_local(1, drafted)
            n, m = 1 + i % 3, i % 4
            found.saw_answer(n, 0.1 + 0.05 * (n - 1) + given * m, m)
        return found.plan(SCORES_WHOLE, 100, 40.0).local

    assert lengths(0.001, 0.001) > lengths(0.02, 0.02) > lengths(0.05, 0.09) == 0
    assert lengths(0.001, 0.1) < lengths(0.001, 0.001)


@pytest.mark.parametrize("minimise", ["latency", "cost"])
@pytest.mark.parametrize("rate", [0.3, 0.6, 0.85, 0.95])
def test_whole_answers_have_the_length_of_least_price(rate: float, minimise: str) -> None:
    """Against the formula written out: (F + n v) / (1 + a + … + a^(n-1)), over every n."""
    drafting = Drafting(minimise=minimise, prices=Prices(1.0, 0.5, 3.0))  # type: ignore[arg-type]
    found = pace(drafting, base=rate)
    plan = found.plan(WHOLE, left=128, prompt_tokens=40.0)
    fixed, each = (0.3 - 0.02, 0.02) if minimise == "latency" else (40.0 * 1.0, 3.0)
    prices = {n: (fixed + n * each) / sum(rate**i for i in range(n)) for n in range(1, 129)}
    assert (plan.local, plan.stream) == (0, False)
    assert prices[plan.n] <= 1.01 * min(prices.values())


def test_longer_drafts_where_more_is_accepted_and_shorter_ones_where_output_is_dear() -> None:
    lengths = [pace(Drafting(), base=rate).plan(WHOLE, 128, 40.0).n for rate in (0.2, 0.5, 0.8, 0.95)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    cheap, dear = (Drafting(minimise="cost", prices=Prices(1.0, 1.0, output)) for output in (0.5, 20.0))
    assert pace(cheap, base=0.8).plan(WHOLE, 128, 40.0).n > pace(dear, base=0.8).plan(WHOLE, 128, 40.0).n


def test_a_cached_prompt_is_cheaper_to_ask_again() -> None:
    drafting = Drafting(minimise="cost", prices=Prices(1.0, 0.1, 1.0))
    plain, cached = pace(drafting, base=0.9), pace(drafting, base=0.9)
    for _ in range(100):
        cached.saw_prompt(2000, 1900)
    assert cached.plan(WHOLE, 128, 2000.0).n < plain.plan(WHOLE, 128, 2000.0).n


def test_a_stream_may_go_on_to_the_end() -> None:
    assert pace(Drafting(), base=0.5).plan(STREAMS, 77, 40.0) == Plan(0, 77, True)


@pytest.mark.parametrize(
    ("drafting", "abilities", "expected"),
    [
        (Drafting.fixed(8), BOTH, Plan(0, 8, False)),
        (Drafting(n=8, local=False), BOTH, Plan(0, 8, True)),
        (Drafting(stream=False, local=False), BOTH, None),
        (Drafting(local=False), WHOLE, None),
    ],
)
def test_wishes_and_abilities_rule_ways_out(drafting: Drafting, abilities: Abilities, expected: Plan | None) -> None:
    plan = pace(drafting, base=0.8, local=0.99).plan(abilities, 100, 40.0)
    assert plan == expected if expected else (plan.local == 0 and not plan.stream)


@pytest.mark.parametrize("minimise", ["latency", "cost"])
def test_the_local_pair_drafts_where_it_agrees_more_often(minimise: str) -> None:
    drafting = Drafting(minimise=minimise)  # type: ignore[arg-type]
    assert pace(drafting, base=0.5, local=0.95).plan(BOTH, 100, 40.0).local >= 4
    assert pace(drafting, base=0.95, local=0.3).plan(BOTH, 100, 40.0).local == 0


def test_a_local_draft_that_is_not_streamed_brings_a_bounded_continuation() -> None:
    plan = pace(Drafting(), base=0.5, local=0.95).plan(SCORES, 100, 40.0)
    assert plan.local >= 4
    assert not plan.stream
    assert plan.n < 50


def test_one_token_left_is_one_token_asked_for() -> None:
    for abilities in (WHOLE, STREAMS, BOTH):
        plan = pace(Drafting(), base=0.9, local=0.9).plan(abilities, 1, 40.0)
        assert (plan.local, plan.n) == (0, 1)


def test_times_do_not_count_where_a_text_must_come_out_the_same_again() -> None:
    one, other = Pace(Drafting(stream=False), measures=False), Pace(Drafting(stream=False), measures=False)
    other.saw_answer(10, 30.0)
    other.saw_local(1, 9.0)
    assert one.plan(BOTH, 100, 40.0) == other.plan(BOTH, 100, 40.0)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Drafting(n=0),
        lambda: Drafting(minimise="both"),  # type: ignore[arg-type]
        lambda: Prices(-1.0),
        lambda: Prices(math.nan),
    ],
)
def test_bad_wishes_are_refused(bad: object) -> None:
    with pytest.raises(InputError) as caught:
        bad()  # type: ignore[operator]
    assert caught.value.hint
