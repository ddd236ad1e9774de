"""The file, the environment and the options: what wins, what is refused, and where a mistake is said to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blackbox_proxy.config.keys import Key, keys, tables
from blackbox_proxy.config.settings import Settings, load
from blackbox_proxy.errors import InputError

Write = Callable[[str], Path]

TWO_PAIRS = """
[base]
model = "big"
url = "http://127.0.0.1:9/v1"
top_logprobs = 5

[pairs.news]
expert = "./tuned"
antiexpert = "gpt2"
alpha = 2

[pairs.style]
expert = "style"
tokenizer = "elsewhere"
expert_url = "http://127.0.0.1:9/v1"

[cache]
file = "answers.sqlite"

[serve.models."big-news"]
pairs = ["news"]
alpha = 0.5

[serve.models.base]
pairs = []
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.delenv("BLACKBOX_PROXY_CACHE", raising=False)
    path = tmp_path / "proxy.toml"

    def written(text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    return written


def test_options_win_over_the_environment_and_that_over_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(TWO_PAIRS)
    assert load(file).base.top_logprobs == 5
    monkeypatch.setenv("BLACKBOX_PROXY_BASE_TOP_LOGPROBS", "7")
    monkeypatch.setenv("BLACKBOX_PROXY_BUDGET_PRICES", "1,0.5,4")
    monkeypatch.setenv("BLACKBOX_PROXY_DECODING_STOP", '["\\n"]')
    settings = load(file)
    assert (settings.base.top_logprobs, settings.budget.prices, settings.decoding.stop) == (7, (1, 0.5, 4), ["\n"])
    assert load(file, {"base.top_logprobs": 9}).base.top_logprobs == 9
    assert load(file, {"base.top_logprobs": 9}).base.model == "big"


def test_the_environment_may_say_all_of_a_cache_at_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLACKBOX_PROXY_CACHE", "1")
    monkeypatch.setenv("BLACKBOX_PROXY_CACHE_FILE", "other.sqlite")
    cache = load(write(TWO_PAIRS)).cache
    assert (cache.use, cache.file) == (True, Path("other.sqlite"))


def test_files_and_folders_are_looked_for_beside_the_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "style").mkdir()
    settings = load(write(TWO_PAIRS))
    assert settings.cache.file == tmp_path / "answers.sqlite"
    assert settings.pairs["news"].expert == str(tmp_path / "tuned")
    assert settings.pairs["news"].antiexpert == "gpt2", "no folder of that name: a hub id"
    assert settings.pairs["style"].expert == str(tmp_path / "style")
    assert load(write(TWO_PAIRS), {"cache.file": Path("mine")}).cache.file == Path("mine"), "options are from here"


def test_options_of_a_pair_are_about_the_one_that_is_meant(write: Write) -> None:
    file = write(TWO_PAIRS)
    with pytest.raises(InputError, match="news, style"):
        load(file, {"pairs.alpha": 0.5})
    chosen = load(file, {"pairs.alpha": 0.5}, pairs=["style"])
    assert {name: pair.alpha for name, pair in chosen.pairs.items()} == {"style": 0.5}
    assert [pair.alpha for pair in load(file).pairs.values()] == [2.0, 1.0]
    with pytest.raises(InputError) as caught:
        load(file, pairs=["stile"])
    assert "'style'" in caught.value.hint
    only = load(write('[pairs.news]\nexpert = "a"\n'), {"pairs.antiexpert": "b"})
    assert (only.pairs["news"].expert, only.pairs["news"].antiexpert) == ("a", "b")
    assert load(None, {"pairs.expert": "a"}).pairs["pair"].expert == "a"


WRONG: dict[str, tuple[str, list[str], str]] = {
    "table": ("[bsae]\nmodel = 'x'", ["[bsae]", "no such table"], "'base'"),
    "key": ("[base]\nmodle = 'x'", ["[base] modle", "no such key"], "'model'"),
    "key of a pair": ("[pairs.a]\nexpert = 'x'\nalhpa = 1", ["[pairs.a] alhpa"], "'alpha'"),
    "key of a served model": ("[serve.models.a]\npiars = []", ["[serve.models.a] piars"], "'pairs'"),
    "nothing near": ("[cache]\nzzz = 1", ["[cache] zzz"], "use, file"),
    "choice": ("[base]\napi = 'soap'", ["[base] api", "'completions' or 'chat'", "'soap'"], "API"),
    "number": ("[pairs.a]\nexpert = 'x'\nalpha = 'high'", ["[pairs.a] alpha", "'high'"], "Weight"),
    "not finite": ("[pairs.a]\nexpert = 'x'\nalpha = nan", ["[pairs.a] alpha", "nan"], "Weight"),
    "range": ("[drafting]\ntokens = 0", ["[drafting] tokens", "0"], "request"),
    "prices": ("[budget]\nprices = [1, 2, -3]", ["[budget] prices", "-3"], "output"),
    "item": ("[decoding]\nstop = ['a', '']", ["[decoding] stop"], "Stop"),
    "no expert": ("[pairs.a]\nantiexpert = 'x'", ["[pairs.a] expert", "missing"], "--expert"),
    "pair without a name": ("[pairs]\nexpert = 'x'", ["table of its own"], "[pairs.news]"),
    "half a server": ("[pairs.a]\nexpert = 'x'\nantiexpert_url = 'http://h/v1'", ["[pairs.a]", "expert_url"], ""),
    "served pair": ("[pairs.a]\nexpert = 'x'\n[serve.models.m]\npairs = ['b']", ["[serve.models.m]", "'b'"], "pairs."),
    "alphas": ("[pairs.a]\nexpert = 'x'\n[serve.models.m]\nalpha = [1, 2]", ["1 pairs but 2 alphas"], "one each"),
    "no table": ("base = 3", ["[base]"], ""),
    "syntax": ("[base\n", ["not TOML", "line 1"], ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_said_by_its_place(case: str, write: Write) -> None:
    text, expected, hint = WRONG[case]
    file = write(text)
    with pytest.raises(InputError) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert [part for part in expected if part not in str(caught.value)] == []
    assert caught.value.hint
    assert hint in caught.value.hint


def test_all_mistakes_are_said_at_once(write: Write) -> None:
    with pytest.raises(InputError, match=r"\[base\] modle.*\[equation\] tail"):
        load(write("[base]\nmodle = 'x'\n[equation]\ntail = 'cut'"))


def test_a_mistake_of_an_option_or_a_variable_is_said_to_be_there(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^--tail"):
        load(write(TWO_PAIRS), {"equation.tail": "cut"})
    monkeypatch.setenv("BLACKBOX_PROXY_BASE_MODLE", "x")
    with pytest.raises(InputError, match=r"^\$BLACKBOX_PROXY_BASE_MODLE"):
        load(write(TWO_PAIRS))
    monkeypatch.delenv("BLACKBOX_PROXY_BASE_MODLE")
    monkeypatch.setenv("BLACKBOX_PROXY_DECODING_STOP", "no json")
    with pytest.raises(InputError, match="decoding"):
        load(write(TWO_PAIRS))


@pytest.mark.parametrize(
    "text",
    [
        "[base]\napi_key = 'sk-secret'",
        "[base]\napi_key_env = 'sk-secret'",
        "[base]\nurl = 'http://me:sk-secret@h/v1'",
        "[pairs.a]\nexpert = 'x'\napi_key = 'sk-secret'",
        "[pairs.a]\nexpert = 'x'\napi_key_env = 'sk-secret'",
    ],
)
def test_a_key_in_the_file_is_refused_and_not_repeated(text: str, write: Write) -> None:
    with pytest.raises(InputError) as caught:
        load(write(text))
    assert "sk-secret" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
    assert "NAME" in f"{caught.value} {caught.value.hint}" or "api_key_env" in str(caught.value)


def test_every_setting_is_described_and_is_good_as_it_comes(write: Write) -> None:
    everything = list(keys())
    assert {key.table for key in everything} == set(tables())
    assert [str(key) for key in everything if not key.description.endswith((".", "…"))] == []
    assert [name for name, kind in tables().items() if not kind.__doc__] == []
    flags = [flag for key in everything for flag in key.flags]
    assert len(flags) == len(set(flags)), "two settings have the same option"

    def at(settings: Settings, key: Key) -> Any:
        return getattr(getattr(settings, key.table), key.name)

    settings = load(None)
    assert [str(k) for k in everything if k.table in Settings.model_fields and k.table != "pairs"
            if at(settings, k) != k.default] == []  # fmt: skip
