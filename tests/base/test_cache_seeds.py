"""A cache as a seed for other machines: what it has is asked for nowhere, and nothing is written to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from blackbox_proxy import CachedBase, ProxyTuner
from blackbox_proxy.base.cache.rows import export
from blackbox_proxy.base.cache.seeds import write_seed
from blackbox_proxy.base.cache.store import Root, Store, StoredRow
from blackbox_proxy.errors import InputError

pytest.importorskip("pyarrow", reason="seeds are parquet: pip install 'blackbox-proxy[bulk]'")

PROMPT = "The mayor of New York said"
SAMPLED: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0, "seed": 3}


def test_what_a_seed_has_is_not_asked_for(api_base: Any, pairs: Callable[[str], Any], tmp_path: Path) -> None:
    seed = tmp_path / "seed.parquet"
    first = CachedBase(api_base(), tmp_path / "first")
    tuner = ProxyTuner(first, pairs("same"))
    greedy, sampled = tuner.generate(PROMPT, max_tokens=12), tuner.generate(PROMPT, **SAMPLED)
    assert greedy.usage.api_calls + sampled.usage.api_calls > 0
    first.store.close()
    assert write_seed(first.store, seed) == first.store.stats().rows
    before = seed.read_bytes()
    with closing(Store(tmp_path / "empty")) as empty:
        write_seed(empty, tmp_path / "empty.parquet")
    for cache in ("second", "third"):  # on another machine, and in another process there
        second = CachedBase(api_base(), tmp_path / "there" / cache, seeds=[tmp_path / "empty.parquet", seed])
        tuner = ProxyTuner(second, pairs("same"))
        again, drawn = tuner.generate(PROMPT, max_tokens=12), tuner.generate(PROMPT, **SAMPLED)
        assert (again.text, drawn.text) == (greedy.text, sampled.text)
        assert again.usage.api_calls + drawn.usage.api_calls == 0
        assert second.store.stats().rows == 0
        other = tuner.generate(f"{PROMPT} that", max_tokens=4)
        assert other.usage.api_calls > 0
        assert tuner.generate(f"{PROMPT} that", max_tokens=4).usage.api_calls == 0
        second.store.close()
        assert second.store.stats().rows > 0
        second.store.close()
    first.store.close()
    assert seed.read_bytes() == before
    assert sorted(place.name.partition("-")[0] for place in (tmp_path / "there").glob("*.seed-*[!k]")) == (
        ["second.seed"] * 2 + ["third.seed"] * 2
    )


def test_a_seed_gives_back_every_row(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "a")) as store, closing(Store(tmp_path / "b")) as other:
        root = Root(b"root", json.dumps({"model": "m"}), json.dumps(["text", "ü"]))
        rows = [
            StoredRow(b"root", 0, None, None, b"value", b"greedy", '[[1, "a", null, 0], -0.5]'),
            StoredRow(b"next", 1, b"root", '[1, "a", null, 0]', b"", b"drawn", "stop"),
        ]
        store.put(root, rows)
        store.put(root, [rows[0]._replace(draw=b"drawn", drawn="stop")])
        assert write_seed(store, tmp_path / "x.parquet") == 2
        from blackbox_proxy.base.cache.seeds import _rows

        other.fill(_rows(tmp_path / "x.parquet"))
        assert list(other.rows()) == list(store.rows())
        assert list(export(other)) == list(export(store))


def test_of_two_files_the_one_that_says_most_is_taken_whole(tmp_path: Path) -> None:
    root = Root(b"r", "{}", '["text", "x"]')
    seed = Store(tmp_path / "seed")
    with closing(Store(tmp_path / "own", seeds=[seed])) as own:
        seed.put(root, [StoredRow(b"a", 0, None, None, b"seed", b"greedy", "drawn there")])
        seed.put(root, [StoredRow(b"b", 0, None, None, b"seed")])
        own.put(root, [StoredRow(b"a", 0, None, None, b"own")])
        own.put(root, [StoredRow(b"b", 0, None, None, b"own", b"greedy", "drawn here")])
        assert own.find(b"a") == (b"own", None)
        assert own.find(b"a", b"greedy") == (b"seed", "drawn there")
        assert own.find(b"b", b"greedy") == (b"own", "drawn here")
        assert own.find(b"b", b"another") == (b"own", None)
        assert own.find(b"c") is None


def test_what_is_no_seed_is_refused(tmp_path: Path, api_base: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    text, other = tmp_path / "x.txt", tmp_path / "y.parquet"
    text.write_text("no seed")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), other)
    for seed, what in ((tmp_path / "none", "cannot be read"), (text, "is no seed"), (other, "no seed of this version")):
        with pytest.raises(InputError, match=what) as caught:
            CachedBase(api_base(), tmp_path / "cache", seeds=[seed])
        assert caught.value.hint
    assert sorted(place.name for place in tmp_path.iterdir()) == ["x.txt", "y.parquet"]


def test_the_commands_write_and_read_a_seed(
    run: Callable[..., tuple[int, str, str]], hosted: Callable[[int], str], models: dict[str, str], tmp_path: Path
) -> None:
    base = ["--base", "big", "--base-url", hosted(5), "--dialect", "host", "--tokenizer", models["base"]]
    pair = ["--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device", "cpu"]
    given = ["generate", PROMPT, *base, *pair, "--top-logprobs", "5", "-n", "4", "--json", "--cache", "--cache-file"]
    status, first, _ = run(*given, str(tmp_path / "a"))
    assert (status, json.loads(first)["usage"]["api_calls"] > 0) == (0, True)
    status, said, _ = run("cache", "export", "--cache-file", str(tmp_path / "a"), "-o", str(tmp_path / "s.parquet"))
    assert (status, "positions written" in said) == (0, True)
    status, again, told = run(*given, str(tmp_path / "b"), "--cache-seed", str(tmp_path / "s.parquet"))
    assert (status, json.loads(again)["usage"]["api_calls"]) == (0, 0), told
    assert json.loads(again)["text"] == json.loads(first)["text"]
