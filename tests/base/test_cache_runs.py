"""The cache with a tuner, over HTTP, and at the command line: a warm run costs nothing and says the same."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from blackbox_proxy.base.cache.base import CachedBase
from blackbox_proxy.base.cache.rows import export
from blackbox_proxy.base.cache.store import Store
from blackbox_proxy.decoding.pace import Drafting, Pace
from blackbox_proxy.types import Generation, Usage

if TYPE_CHECKING:
    from blackbox_proxy import TransformersPair

# -- with a tuner, over HTTP --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(models: dict[str, str]) -> Iterator[tuple[Callable[..., Any], Any]]:
    """open_base on a host of this module's own, and its counts."""
    from blackbox_proxy import open_base
    from blackbox_proxy.door.running import serve_in_thread
    from blackbox_proxy.host.engine import open_engine
    from blackbox_proxy.serve.routes import Stats, create_app

    stats = Stats()
    engine = open_engine(models["base"], served_model_name="big", device="cpu")
    with serve_in_thread(create_app(engine, stats=stats)) as url:

        def make(**options: Any) -> Any:
            usual = {"dialect": "host", "tokenizer": models["base"], "top_logprobs": 5, "max_attempts": 1}
            return open_base("big", base_url=f"{url}/v1", **{**usual, **options})

        yield make, stats


def facts(generation: Generation) -> list[object]:
    """What law 6 compares exactly: everything but the cost, who drafted, and the last digits of the local pair."""
    return [
        (
            *(s.token, s.text, s.token_id, s.covered_mass, s.changed, s.end, s.finish_reason),
            sorted((repr(c.token), c.log_q) for c in s.candidates if not c.tail),
        )
        for s in generation.steps
    ]


CHAT = {"api": "chat", "dialect": "vllm"}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("way", "sampled", "kind", "base_options"),
    [
        ("stream", False, "same", {}),
        ("stream", True, "digits", {}),
        ("fixed", False, "digits", {"tokenizer": None}),
        ("local", False, "same", {}),
        ("stream", False, "same", CHAT),
        *(
            pytest.param(way, sampled, kind, options, marks=SLOW)
            for way in ("stream", "fixed", "one", "local", "by itself")
            for sampled in (False, True)
            for kind, options in (("same", {}), ("digits", CHAT), ("digits", {}), ("digits", {"tokenizer": None}))
            # Without a tokenizer, what is known of the base's vocabulary depends on what had arrived when.
            if (way in ("fixed", "one") or "tokenizer" not in options)
        ),
    ],
)
def test_law_6_a_warm_run_costs_nothing_and_says_the_same(
    way: str,
    sampled: bool,
    kind: str,
    base_options: dict[str, Any],
    request: pytest.FixtureRequest,
    served: tuple[Callable[..., Any], Any],
    pairs: Callable[[str], TransformersPair],
    file: Path,
) -> None:
    from asking import PROMPTS, tuner
    from toys import Always

    from blackbox_proxy.tuner import run

    make, stats = served
    ways: dict[str, Drafting | Pace] = {
        "stream": Drafting(local=False),
        "fixed": Drafting.fixed(5),
        "one": Drafting.fixed(1),
        "local": Always(4, 3, True),
        "by itself": Drafting(),
    }
    drafting = ways[way]
    many = request.node.get_closest_marker("slow") is not None
    options: dict[str, Any] = {"max_tokens": 24 if many else 10, **({"temperature": 1.0, "seed": 3} if sampled else {})}
    found, calls = [], []
    for bare in (True, False, False):
        base = make(**base_options) if bare else CachedBase(make(**base_options), file)
        before = stats.requests
        found.append(tuner(base, pairs(kind), drafting).generate_batch(PROMPTS[6 :: 8 if many else 25], **options))
        calls.append(stats.requests - before)
        usage = sum((g.usage for g in found[-1]), Usage())
        assert usage.api_calls == calls[-1]
        run(base.aclose())
    assert calls[1] > 0
    assert calls[2] == 0
    for bare, cold, warm in zip(*found, strict=True):
        assert facts(warm) == facts(cold)
        assert [s.token for s in cold.steps] == [s.token for s in bare.steps]


def fewest_calls(texts: Sequence[tuple[str, Generation]]) -> int:
    """What these greedy texts cost at least: each prompt is asked about once, and so is each place behind a token that
    the base would not have written there, unless texts share it. The base goes on by itself everywhere else.
    """
    asked = {(prompt, ()) for prompt, _ in texts}
    for prompt, text in texts:
        for place, step in enumerate(text.steps, 1):
            if not step.drafted and step.finish_reason is None:
                asked.add((prompt, tuple(before.token for before in text.steps[:place])))  # type: ignore[arg-type]
    return len(asked)


@pytest.mark.parametrize(
    ("alphas", "length"),
    [
        ((1.0, 0.96, 0.98, 1.02, 1.04), 16),
        pytest.param((1.0, 0.9, 0.95, 1.05, 1.1), 48, marks=SLOW),
        pytest.param((1.0, 0.5, 0.75, 1.5, 2.0), 48, marks=SLOW),
    ],
    ids=["close", "near", "wide"],
)
def test_a_sweep_of_alpha_costs_little_more_than_its_texts_demand(
    alphas: Sequence[float],
    length: int,
    served: tuple[Callable[..., Any], Any],
    pairs: Callable[[str], TransformersPair],
    file: Path,
) -> None:
    """With models that change most of what the base would write. Less than two runs for nearby values; a wider sweep
    leads to texts that share less: greedy texts that have parted have no prefix in common. `-s` prints the figures.
    """
    from asking import PROMPTS

    from blackbox_proxy import Drafting, ProxyTuner
    from blackbox_proxy.tuner import run

    make, stats = served
    base = CachedBase(make(), file)
    calls: list[int] = []
    alone: list[int] = []
    texts: list[tuple[str, Generation]] = []
    for alpha in alphas:
        before = stats.requests
        tuner = ProxyTuner(base, pairs("same"), alpha=alpha, draft=Drafting(local=False))
        found = list(zip(PROMPTS[::25], tuner.generate_batch(PROMPTS[::25], max_tokens=length), strict=True))
        calls.append(stats.requests - before)
        alone.append(fewest_calls(found))
        texts += found
    run(base.aclose())
    fewest = fewest_calls(texts)
    print(
        f"\nalpha {alphas}: {sum(calls)} calls {calls}, at least {fewest}; without a cache {sum(alone)} {alone}; "
        f"{sum(calls) / calls[0]:.2f} times the first run, at least {fewest / calls[0]:.2f}"
    )
    assert calls[0] == alone[0]
    assert fewest <= sum(calls) <= 1.3 * fewest
    if max(alphas) - min(alphas) < 0.1:
        assert sum(calls) < 2 * calls[0]


def test_the_key_is_nowhere_in_the_file(
    served: tuple[Callable[..., Any], Any], pairs: Callable[[str], TransformersPair], file: Path
) -> None:
    from blackbox_proxy import ProxyTuner
    from blackbox_proxy.tuner import run

    secret = "sk-1234567890-very-secret"
    base = CachedBase(served[0](api_key=secret), file)
    ProxyTuner(base, pairs("same")).generate("The mayor of", max_tokens=8)
    run(base.aclose())
    for part in file.parent.iterdir():
        assert secret.encode() not in part.read_bytes()
    store = Store(file)
    assert secret not in json.dumps(list(export(store)))
    store.close()


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_keeps_answers_and_shows_them(
    served: tuple[Callable[..., Any], Any],
    models: dict[str, str],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from blackbox_proxy import cli

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["blackbox-proxy", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    monkeypatch.delenv("BLACKBOX_PROXY_CACHE", raising=False)
    where = ["--cache-file", file]
    pair = ["--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device", "cpu"]
    make, stats = served
    base = ["--base", "big", "--base-url", make().url, "--dialect", "host", "--tokenizer", models["base"]]
    asked = ["generate", "The mayor of", *base, *pair, "-n", 8, *where]
    before = stats.requests
    first = call(*asked)
    assert stats.requests > before
    before = stats.requests
    assert call(*asked) == first
    assert stats.requests == before
    assert call(*asked, "--no-cache") == first
    assert stats.requests > before
    shown = call("cache", "stats", *where)
    assert f"big at {make().url}" in shown
    counted = json.loads(call("cache", "stats", "--json", *where))
    lines = [json.loads(line) for line in call("cache", "export", *where).splitlines()]
    assert len(lines) == counted["rows"] >= 8
    assert lines[0]["prompt"] == {"text": "The mayor of"}
    assert {line["text"] is None for line in lines} == {False}
    whole = [line for line in lines if line["candidates"]]
    assert {"id", "text", "logprob"} == whole[0]["candidates"][0].keys() - {"end"}
    call("cache", "export", "-o", file.with_name("out.jsonl"), *where)
    assert len(file.with_name("out.jsonl").read_text().splitlines()) == len(lines)
    assert f"{len(lines)} positions" in call("cache", "clear", *where)
    assert call("cache", "export", *where) == ""
    mine = file.with_name("mine.sqlite3")
    call("generate", "The mayor", "--local", "--base", models["base"], *pair, "-n", 2, "--cache-file", mine)
    assert not mine.exists()


def test_the_default_file_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store()
    store.close()
    assert store.path == tmp_path / "blackbox-proxy" / "cache.sqlite3"
    if os.geteuid() != 0:
        (tmp_path / "shut").mkdir(mode=0o500)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shut"))
        Store().close()
