"""The simulation of many texts, where there is a closed form to hold it to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from steps import step

from blackbox_proxy.bench.scale import Work, between, near_of, work_of
from blackbox_proxy.bench.simulate import Far, Load, Near, binding, runs_at, runs_of, simulate
from blackbox_proxy.errors import InputError
from blackbox_proxy.host.network import Network
from blackbox_proxy.prices import Prices
from blackbox_proxy.types import Usage

NETWORK = Network(0.3, 0.02)


def test_one_text_takes_what_the_network_takes() -> None:
    """Ten tokens a request: each is 0.3 s and nine times 0.02 s, and near sides of no time add nothing."""
    found = simulate(Load(streams=1, tokens=100, runs=(10,), prompt_tokens=7, texts=1), Near(), Far(network=NETWORK))
    assert found.tokens == 100
    assert found.seconds == pytest.approx(10 * (0.3 + 9 * 0.02))
    assert found.usage.api_calls == 10
    assert found.usage.prompt_tokens == sum(7 + 10 * i for i in range(10))
    assert found.usage.completion_tokens == 100  # the last token that is read is the one that disagrees
    assert found.saturated == ()
    assert found.cost(Prices(2.0, 2.0, 3.0)) == pytest.approx((2 * 520 + 3 * 100) / 100)


def test_a_near_side_reads_the_last_token_later_and_the_base_writes_on_meanwhile() -> None:
    near = Near(of_pass=0.05)
    found = simulate(Load(streams=1, tokens=10, runs=(5,), texts=1), near, Far(network=NETWORK))
    # Passes begin with the first token and as soon as the one before is done: at 0, 0.05 (3 there), 0.1 (6 there).
    assert found.seconds == pytest.approx(2 * (0.3 + 0.15))
    assert found.usage.completion_tokens == 8 + 5  # 0.15 s after the first there would be 8; the second may write 5
    assert found.busy["near side"] == pytest.approx(0.3 / 0.9)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_saturated_near_side_gives_what_it_can(workers: int) -> None:
    """All 20 tokens of a request are there at once; a pass of one text takes 0.01 + 0.002 + 20 * 0.001 s."""
    near = Near(of_pass=0.01, of_text=0.002, of_position=0.001, workers=workers)
    far = Far(network=Network(0.05, 0.0))
    found = simulate(Load(streams=40, tokens=20, runs=(20,), seconds=10.0), near, far)
    assert found.tokens_per_second == pytest.approx(workers * 20 / 0.032, rel=0.01)
    assert found.saturated == ("near side",)


def test_texts_that_share_a_pass_share_its_cost() -> None:
    near = Near(of_pass=0.01, of_position=0.001, together=8)
    found = simulate(Load(streams=64, tokens=5, runs=(5,), seconds=10.0), near, Far(network=Network(0.01, 0.0)))
    assert found.tokens_per_second == pytest.approx(8 * 5 / (0.01 + 8 * 5 * 0.001), rel=0.01)


def test_a_base_that_is_slower_than_its_network_is_as_slow_as_it_is() -> None:
    """One text: 0.1 s and 10 tokens of 0.05 s, of which the network would let 0.3 + 9 * 0.02 s pass."""
    far = Far(network=NETWORK, of_request=0.1, of_token=0.05)
    found = simulate(Load(streams=1, tokens=10, runs=(10,), texts=1), Near(), far)
    assert found.seconds == pytest.approx(0.3 + 9 * 0.05)
    assert found.usage.completion_tokens == 10
    quick = simulate(
        Load(streams=1, tokens=10, runs=(10,), texts=1), Near(), Far(network=NETWORK, of_request=0.1, of_token=0.01)
    )
    assert quick.seconds == pytest.approx(0.3 + 9 * 0.02)


def test_texts_take_turns_at_a_base_that_works() -> None:
    """A token of each text in turn, a request every 8: 0.004 + 8 * 0.002 s; what is written past the run is lost."""
    far = Far(network=Network(0.05, 0.0), of_request=0.004, of_token=0.002)
    found = simulate(Load(streams=32, tokens=8, runs=(8,), seconds=20.0), Near(), far)
    assert found.tokens_per_second == pytest.approx(8 / 0.020, rel=0.01)
    assert found.saturated == ("base",)
    cut = simulate(Load(streams=32, tokens=8, runs=(4,), seconds=20.0), Near(), far)
    assert cut.usage.api_calls / cut.texts == pytest.approx(2.0, rel=0.01)
    assert 4 / 0.014 < cut.tokens_per_second < 4 / 0.010  # at most a token past each run


def test_what_this_side_does_for_a_request_is_part_of_the_pass_before_it() -> None:
    load = Load(streams=1, tokens=20, runs=(5,), texts=1)
    near = Near(of_pass=0.01, of_request=0.03)
    found = simulate(load, near, Far(network=Network(0.3, 0.0)))
    assert found.seconds == pytest.approx(4 * (0.3 + 0.01 + 0.03))


def test_work_is_told_apart_by_requests_of_two_lengths() -> None:
    work = work_of(0.011, 0.011 + 9 * 0.002, 10.0)
    assert work.of_request == pytest.approx(0.009)
    assert work.of_token == pytest.approx(0.002)
    assert work_of(0.01, 0.009, 10.0).of_token == 0.0


@pytest.mark.parametrize(
    ("given", "wanted", "name"),
    [
        ({"requests_per_minute": 600.0}, 10.0 * 4, "requests/min"),
        ({"tokens_per_minute": 6000.0}, 100.0 / (50 + 2 + 4) * 4, "tokens/min"),  # prompts of 50 and of 54
        ({"bits": 8000.0, "request_bytes": 60.0, "token_bytes": 10.0}, 1000.0 / 100 * 4, "network"),
    ],
)
def test_a_limit_is_used_up_and_not_passed(given: dict[str, Any], wanted: float, name: str) -> None:
    """Four tokens a request, of texts of eight."""
    load = Load(streams=20, tokens=8, runs=(4,), prompt_tokens=50, seconds=120.0)
    found = simulate(load, Near(), Far(network=NETWORK, **given))
    assert found.tokens_per_second == pytest.approx(wanted, rel=0.02)
    assert name in found.saturated
    assert found.busy[name] <= 1.02


def test_no_more_texts_are_at_work_than_memory_has_room_for() -> None:
    near, far = Near(memory=3.5e6, text_bytes=1e6), Far(network=NETWORK)
    few, three = (
        simulate(Load(streams=n, tokens=20, runs=(5,), seconds=60.0), near, far).tokens_per_second for n in (100, 3)
    )
    assert few == pytest.approx(three, rel=0.02) == pytest.approx(3 * 5 / 0.38, rel=0.02)
    assert simulate(Load(streams=100, tokens=20, runs=(5,)), near, far).saturated == ("memory",)


def test_what_binds_is_what_more_of_would_help() -> None:
    """A near side that reads all that waits in a pass is never idle, and yet the limit is what holds the texts up."""
    load = Load(streams=50, tokens=20, runs=(5,), seconds=60.0)
    near = Near(of_pass=0.05, together=50)
    far = Far(network=NETWORK, requests_per_minute=600.0)
    found = simulate(load, near, far)
    assert found.saturated == ("near side", "requests/min")
    assert binding(load, near, far, found) == "requests/min"
    slow = Near(of_text=0.05)
    found = simulate(load, slow, Far(network=NETWORK))
    assert binding(load, slow, Far(network=NETWORK), found) == "near side"
    idle = simulate(replace(load, streams=1), Near(), Far(network=NETWORK))
    assert binding(load, Near(), Far(network=NETWORK), idle) is None


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_texts_that_arrive_by_chance_wait_as_in_a_queue_with_one_server(share: float) -> None:
    """M/D/1: the mean wait is rho D / (2 (1 - rho))."""
    near = Near(of_pass=0.1)
    load = Load(streams=10**6, tokens=1, runs=(1,), arrivals=share / 0.1, texts=40_000)
    found = simulate(load, near, Far())
    assert found.texts == 40_000
    assert found.waited == pytest.approx(0.1 + share * 0.1 / (2 * (1 - share)), rel=0.04)
    assert found.busy["near side"] == pytest.approx(share, rel=0.03)


def test_runs_follow_from_a_rate_or_from_texts() -> None:
    assert runs_at(1.0) == (1,)
    drawn = runs_at(0.2)
    assert sum(drawn) / len(drawn) == pytest.approx(5.0, rel=0.05)
    assert drawn.count(1) / len(drawn) == pytest.approx(0.2, rel=0.1)
    texts = [[step(b"t", drafted=mark == "d") for mark in marks] for marks in ("ddx", "xd", "dxd")]
    assert runs_of(texts) == (3, 1, 3)
    assert runs_of([texts[0][:2]]) == (2,)
    with pytest.raises(InputError):
        runs_of([])


def test_a_near_side_is_known_by_its_drafts() -> None:
    """2 ms a pass, 3 ms a text, 1 ms a position, told apart by drafts of several lengths and by eight at a time."""
    drafts = [(n, 0.005 + 0.001 * n) for n in (1, 2, 3, 6)]
    found = near_of(drafts, many=0.002 / 8 + 0.003 + 0.001 * 3, streams=8)
    told = (found.of_pass, found.of_text, found.of_position)
    assert told == pytest.approx((0.002, 0.003, 0.001))
    assert near_of(drafts, many=0.0, streams=1).of_text == pytest.approx(0.005)


def test_what_is_neither_the_pairs_nor_the_clients_is_between_them() -> None:
    """40 positions in 300 ms, of which the pair took 100, the client 5 for each request and 1 for each token."""
    usage = Usage(api_calls=8, prompt_tokens=90, completion_tokens=60)
    assert between(0.3, 0.1, usage, Work(0.005, 0.001), 40) == pytest.approx((0.3 - 0.1 - 0.04 - 0.06) / 40)
    assert between(0.1, 0.1, usage, Work(0.005, 0.001), 40) == 0.0


@pytest.mark.parametrize("wrong", [{"streams": 0}, {"tokens": 0}, {"runs": ()}, {"arrivals": 0.0}, {"seconds": 0.0}])
def test_what_cannot_be_simulated_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Load(**{"streams": 1, "tokens": 1, "runs": (1,), **wrong})
    with pytest.raises(InputError):
        runs_at(1.5)
