"""What is counted along a text is right: kinds, shifts, sweeps over alpha, calls and cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from steps import step

from blackbox_proxy import ProxyTuner, TransformersPair, analysis
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.prices import Prices
from blackbox_proxy.types import Usage

KINDS: list[tuple[bytes, bytes, analysis.Kind]] = [
    (b" London", b"in", "word start"),
    (b"The", b"", "word start"),
    (b"The", b". ", "word start"),
    (b"don", b"Lon", "continuation"),
    (b"'s", b"dog", "continuation"),
    ("’t".encode(), b"don", "continuation"),
    (b"'s", b"dog ", "punctuation"),
    ("é".encode(), b"caf", "continuation"),
    ("京".encode(), "東".encode(), "unspaced letter"),
    ("день".encode(), b" ", "word start"),
    (b" 1,024", b"of", "number"),
    ("½".encode(), b"", "number"),
    (b".\n", b"end", "punctuation"),
    (b" \xe2\x80\x9c", b"said", "punctuation"),
    (b"+", b"1", "symbol"),
    ("👍".encode(), b"", "symbol"),
    (b"\n\n", b".", "white space"),
    (b" ", b"a", "white space"),
    (b"\xe6\x9d", b"", "part of a character"),
    (b"\xb1", b"\xe6\x9d", "part of a character"),
    (b"", b"a", "other"),
    (b"\x00", b"a", "other"),
]


@pytest.mark.parametrize(("token", "before", "kind"), KINDS, ids=lambda value: repr(value))
def test_kinds(token: bytes, before: bytes, kind: str) -> None:
    assert analysis.kind_of(token, before) == kind
    assert analysis.kind_of(token, before, end=True) == "end"


def test_a_place_compares_p_with_q_over_the_same_candidates() -> None:
    # q is 0.3, 0.2 of a base that showed half: 0.6, 0.4 over these candidates
    (place,) = analysis.measure([step(b"a", (0.3, 0.2), (0.9, 0.1), tail=(1,), covered_mass=0.5)])
    assert (place.q, place.p, place.shift) == pytest.approx((0.6, 0.9, 0.3))
    assert (place.distance, place.tail_mass) == pytest.approx((0.3, 0.1))
    assert (place.beyond, place.covered_mass, place.chosen) == (False, 0.5, 0)
    (same,) = analysis.measure([step(b"a", (0.3, 0.2), (0.6, 0.4))])
    assert (same.shift, same.distance) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_groups_by_hand() -> None:
    steps = [
        step(b"The", (0.5, 0.5), (0.9, 0.1)),  # +0.4
        step(b" end", (0.5, 0.5), (0.7, 0.3), changed=True),  # +0.2
        step(b"ing", (0.5, 0.5), (0.4, 0.6)),  # -0.1
        step(b".", (0.5, 0.5), (0.5, 0.5)),
        step(b" 12", (0.9, 0.1), (0.5, 0.5), tail=(0,), changed=True),  # -0.4
    ]
    places = analysis.measure(steps)
    kinds = {one.name: one for one in analysis.by_kind(places)}
    assert list(kinds) == ["number", "word start", "continuation", "punctuation"]
    word = kinds["word start"]
    assert (word.tokens, word.changed) == (2, 0.5)
    assert (word.shift, word.distance) == pytest.approx((0.3, 0.3))
    assert kinds["number"].beyond == 1.0
    positions = analysis.by_position(places)
    assert [(one.name, one.tokens) for one in positions] == [("1", 1), ("2", 1), ("3–4", 2), ("5–8", 1)]
    assert [one.shift for one in positions] == pytest.approx([0.4, 0.2, -0.05, -0.4])


def test_sides_of_equations() -> None:
    tokens = [b"It", b" is", b" 3", b" *", b" 5", b" =", b" 15", b" eggs", b".", b" x", b" =", b" y"]
    places = analysis.measure([step(token) for token in tokens])
    assert [place.side for place in places[:9]] == ["", "", "left", "left", "left", "", "right", "", ""]
    assert all(place.side == "" for place in places[9:])
    assert [(one.name, one.tokens) for one in analysis.by_side(places)] == [("left of =", 3), ("right of =", 1)]


def test_most_moved_tokens_and_where_they_stand() -> None:
    up, flat = ((0.2, 0.8), (0.8, 0.2)), ((0.5, 0.5), (0.5, 0.5))
    steps = [step(b"a"), step(b" b", *up), step(b" c", *flat), step(b"a"), step(b" b", *up), step(b" c", *flat)]
    once = [step(b" rare", (0.1, 0.9), (1.0, 0.0))]
    moved = analysis.most_moved([analysis.measure(steps), analysis.measure(once)])
    assert [(one.token, one.count) for one in moved] == [
        (b" b", 2),
        (b" c", 2),
        (b"a", 2),
    ]  # what occurs once is no type
    assert moved[0].shift == pytest.approx(0.6)
    assert moved[0].context == (b"a", b" c")
    assert [one.token for one in analysis.most_moved([analysis.measure(once)])] == [b" rare"]


def test_calls_cost_and_acceptance_along_the_text() -> None:
    usages = [Usage(1, 100, 3), Usage(), Usage(1, 101, 2, cached_prompt_tokens=50)]
    steps = [step(b"a", usage=usage, drafted=i != 1) for i, usage in enumerate(usages)]
    prices = Prices(2.0, 1.0, 4.0)
    places = analysis.measure(steps)
    course = analysis.course(places, prices)
    assert course.calls == (1, 1, 2)
    assert course.cost == pytest.approx((212.0, 212.0, 212.0 + 102.0 + 50.0 + 8.0))
    assert course.accepted == pytest.approx((1.0, 0.5, 2 / 3))
    summary = analysis.summarise([places], prices)
    assert (summary.usage.api_calls, summary.cost) == (2, 372.0)
    assert summary.calls_per_token == pytest.approx(2 / 3)
    assert analysis.course(places).cost == ()


def test_sweep_by_hand() -> None:
    """q = 0.6, 0.4 and p / q = 0.5, 1.75: the first token leads while 0.6 * 0.5^s > 0.4 * 1.75^s, up to s = 0.324."""
    (low, high) = analysis.sweep([step(b"a")], (0.25, 0.5))
    assert (low.changed, low.kept, high.changed, high.kept) == (0.0, 1.0, 1.0, 0.0)
    (base, used, double) = analysis.sweep([step(b"a")], (0.0, 1.0, 2.0))
    assert (base.distance, used.distance) == pytest.approx((0.0, 0.3))
    assert double.distance == pytest.approx(0.6 - 0.6 * 0.25 / (0.6 * 0.25 + 0.4 * 1.75**2))


def test_a_sweep_from_alpha_0_takes_expert_and_antiexpert() -> None:
    one = step(b"a", (0.6, 0.4), (0.6, 0.4))
    columns = one.candidates
    columns.log_expert[:] = np.log([0.2, 0.8])
    columns.log_antiexpert[:] = np.log([0.5, 0.5])
    (point,) = analysis.sweep([one], (1.0,), alpha=0.0)
    p = 0.6 * 0.4 / (0.6 * 0.4 + 0.4 * 1.6)
    assert point.changed == 1.0
    assert point.distance == pytest.approx(0.6 - p)
    assert analysis.sweep([], (1.0,)) == ()


def test_what_cannot_be_is_never_chosen_at_any_alpha() -> None:
    points = analysis.sweep([step(b"a", (0.6, 0.4), (1.0, 0.0))], (0.0, 1.0, 2.0))
    assert [point.changed for point in points] == [0.0, 0.0, 0.0]
    assert points[0].distance == pytest.approx(0.0)


def test_the_sweep_is_what_decoding_at_that_alpha_would_weigh(
    api_base: Callable[..., OpenAIBase], models: dict[str, str]
) -> None:
    """At the first place, where no text has gone its own way yet: real models, several alphas from one trace. All is
    summed, as another alpha may sum what this one leaves estimated.
    """
    prompts = ["The mayor of", "New York said", "There they", "On 12 March"]
    pair = TransformersPair(models["digits-expert"], models["digits-antiexpert"], device="cpu", exact=True)
    base = api_base()
    first = [ProxyTuner(base, pair, alpha=1.0).generate(prompt, max_tokens=1).steps[0] for prompt in prompts]
    for alpha in (0.5, 2.0):
        really = [ProxyTuner(base, pair, alpha=alpha).generate(prompt, max_tokens=1).steps[0] for prompt in prompts]
        (point,) = analysis.sweep(first, (alpha,), alpha=1.0)
        assert point.changed == pytest.approx(np.mean([one.changed for one in really]))
        measured = [analysis.measure([one])[0].distance for one in really]
        assert point.distance == pytest.approx(np.mean(measured), abs=1e-6)  # six decimals are kept


def test_the_candidates_that_tell_most_and_what_is_left_of_the_others() -> None:
    q, p = (0.02, 0.5, 0.3, 0.1, 0.08), (0.01, 0.09, 0.1, 0.2, 0.6)
    found = analysis.telling(step(b"a", q, p, [b"b", b"c", b"d", b"e"], tail=(4,)), 2)
    assert [row.token for row in found.rows] == [b"e", b"b", b"a"]  # likeliest under p, likeliest under q, the chosen
    assert [row.chosen for row in found.rows] == [False, False, True]
    assert [row.estimated for row in found.rows] == [True, False, False]
    assert found.others == 2
    assert (found.others_q, found.others_p) == pytest.approx((0.4, 0.3))
