"""`blackbox-proxy bench`: what it counts, and what it prints, on tiny models over a fast network."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from blackbox_proxy.bench.batch import run_batch
from blackbox_proxy.bench.measure import WAYS, Measured
from blackbox_proxy.bench.run import read_prompts, run_bench, summary, table
from blackbox_proxy.bench.serving import run_serve
from blackbox_proxy.bench.setting import Setting
from blackbox_proxy.errors import InputError
from blackbox_proxy.host.network import Network
from blackbox_proxy.prices import Prices

NETWORK = Network(first_token=0.05, per_token=0.005)
PROMPTS = ["The mayor", "New York", "theory and", "20 people"]


def setting(models: dict[str, str], pair: str, prompts: list[str], network: Network, max_tokens: int) -> Setting:
    return Setting(
        base=models["base"],
        expert=models[f"{pair}-expert"],
        antiexpert=models[f"{pair}-antiexpert"],
        prompts=prompts,
        network=network,
        max_tokens=max_tokens,
    )


@pytest.mark.slow
def test_every_way_of_asking_is_counted_and_leads_to_the_same_texts(models: dict[str, str]) -> None:
    shown = io.StringIO()
    found = run_bench(
        Console(file=shown, width=120),
        setting(models, "same", ["The mayor of", "New York"], NETWORK, 8),
        ways=["one at a time", "stream and cut", "with local drafts"],
    )
    raw, single, streamed, local = found
    assert (raw.tokens, raw.requests) == (16, 2)
    assert (single.tokens, single.requests, single.calls_per_token) == (16, 16, 1.0)
    assert streamed.requests == 2 + streamed.restarts < single.requests
    assert streamed.disagreements == single.disagreements > 0
    assert local.texts == streamed.texts == single.texts
    assert streamed.prompt_tokens < single.prompt_tokens
    assert 0 <= single.wasted == single.disagreements <= streamed.wasted
    for way in found:
        assert way.seconds >= way.requests * NETWORK.first_token
    assert streamed.seconds >= streamed.floor(NETWORK)
    text = shown.getvalue()
    assert all(way.name in text for way in found)
    assert f"{streamed.calls_per_token:.3f}" in text
    assert f"{single.tokens_per_second / raw.tokens_per_second:.2f}" in text


def measured(name: str, requests: int, restarts: int, seconds: float) -> Measured:
    return Measured(name, ("text",) * 2, 40, requests, restarts + 1, restarts, 30, 400, 50, seconds)


def test_the_figures_follow_from_the_counts() -> None:
    row = measured("stream and cut", 8, 6, 4.0)
    assert (row.calls_per_token, row.disagreement_rate, row.tokens_per_second) == (0.2, 7 / 40, 10.0)
    assert row.wasted == 20
    assert row.cost(Prices(1.0, 1.0, 2.0)) == 500.0
    network = Network(0.3, 0.02)
    assert row.floor(network) == pytest.approx(8 * 0.3 + 32 * 0.02)
    found = [measured("base alone", 2, 0, 1.0), measured("one at a time", 40, 6, 16.0), row]
    assert "stream and cut: 4.0 times the tokens per second of one at a time" in summary(found, network)
    console = Console(file=io.StringIO(), width=80)
    console.print(table(found, network, Prices()))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{4.0 / row.floor(network):.2f}" in drawn
    assert max(map(len, drawn.splitlines())) <= 80


def test_what_is_measured_can_be_chosen_and_a_wrong_name_is_refused(tmp_path: Path) -> None:
    nothing = Setting(base="", expert="", antiexpert="", prompts=["x"], network=NETWORK)
    with pytest.raises(InputError) as caught:
        run_bench(Console(), nothing, ways=["fast"])
    assert all(way in caught.value.hint for way in WAYS)
    with pytest.raises(InputError):
        read_prompts(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError):
        read_prompts(tmp_path / "empty")
    (tmp_path / "two").write_text("Q: who?\\nA:\nonce")
    assert read_prompts(tmp_path / "two") == ["Q: who?\nA:", "once"]


@pytest.mark.serve
def test_64_clients_get_four_times_the_tokens_of_one(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    alone, many = run_serve(
        Console(width=120),
        setting(models, "digits", PROMPTS, Network(0.3, 0.02), 16),
    )
    assert (alone.clients, many.clients) == (1, 64)
    assert len(set(many.texts)) > 3
    times = many.tokens_per_second / alone.tokens_per_second
    assert times >= 4.0
    assert f"{times:.1f} times the tokens per second of one" in capsys.readouterr().out


def test_texts_at_a_time_are_measured_beside_the_bases_own(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    one, some = run_batch(
        Console(width=120), setting(models, "digits", PROMPTS, Network(0.05, 0.005), 12), batches=[1, 6]
    )
    assert (one.texts, some.texts) == (1, 6)
    assert (one.tokens, some.tokens) == (8 * 12, 8 * 12)  # one after the other, no fewer texts
    for row in (one, some):
        assert row.tokens_per_second < row.network < row.alone * 1.5
        assert row.processor > 0.0
    assert f"{some.tokens_per_second / one.tokens_per_second:.1f}" in capsys.readouterr().out
