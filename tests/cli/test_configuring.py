"""`config init`, `check`, `show`, `doctor`: the file, the options and the page say the same of every setting."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from blackbox_proxy.cli import app
from blackbox_proxy.cli.configuring import FileOptions
from blackbox_proxy.cli.options import DecodingOptions
from blackbox_proxy.config.keys import NAMED, Key, keys, tables
from blackbox_proxy.config.settings import load
from blackbox_proxy.config.writing import commented, in_effect, markdown
from blackbox_proxy.learned import Learned, write_weights
from blackbox_proxy.maths.weights import Weights

Run = Callable[..., tuple[int, str, str]]
PAGE = Path(__file__).parents[2] / "docs" / "config.md"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(hosted: Callable[[int], str], models: dict[str, str]) -> list[str]:
    return [
        *("--base", "big", "--base-url", hosted(5), "--dialect", "vllm", "--tokenizer", models["base"]),
        *("--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"),
    ]


def command(*names: str) -> Any:
    found: Any = typer.main.get_command(app)
    for name in names:
        found = found.commands[name]
    return found


def commands(found: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in getattr(found, "commands", {}).items():
        yield from commands(inner, *names, name)
    if names and not hasattr(found, "commands"):
        yield names, found


# -- one description ----------------------------------------------------------------------------------------------


def test_the_option_the_file_and_the_page_describe_a_setting_in_the_same_words() -> None:
    """A walk over all settings on the one side and over all options of `config check`, which has all, on the other."""
    flags = {flag: option for option in command("config", "check").params for flag in option.opts}
    file, page = " ".join(commented().replace("\n# ", " ").split()), markdown()
    walked = set()
    for key in keys():
        assert key.description in file, str(key)
        assert f"| `{key.name}` |" in page, str(key)
        if key.told.option:
            option = flags[key.told.option[0].split("/")[0]]
            assert option.help.startswith(key.description), str(key)
            walked.add(option.name)
    others = {option.name for option in command("config", "check").params} - walked
    assert others == {"config", "pair", "api_key", "online", "as_json"}, "an option that is no setting"


def test_no_command_describes_a_setting_in_words_of_its_own() -> None:
    described = {flag: key.description for key in keys() for flag in key.flags if flag.startswith("--")}
    of_their_own = {  # they mean something else there, or have another default
        "eval": {"--alpha", "--max-tokens", "--stop"},
        "fit": {"--max-tokens"},
        "tune": {"--alpha"},
        "probe": {"--api", "--max-calls"},
        "bench": {"--base", "--expert", "--antiexpert", "--alpha", "--max-tokens", "--temperature", "--top-logprobs",
                  "--pair-tokenizer", "--exact", "--cache", "--requests-per-minute", "--tokens-per-minute"},
        "demo": {"--cache"},
        "choose": {"--exact"},
        "key": {"--keys"},
    }  # fmt: skip
    for names, found in commands(typer.main.get_command(app)):
        if names[0] == "host":
            continue
        for option in found.params:
            for flag in option.opts:
                if flag in described and flag not in of_their_own.get(names[0], set()):
                    assert option.help == described[flag], f"{' '.join(names)} {flag}"


def test_every_command_that_has_settings_takes_a_file() -> None:
    flags = {flag for key in keys() for flag in key.flags}
    without = {"host", "demo", "dialects", "init", "key"}
    for names, found in commands(typer.main.get_command(app)):
        has = {flag for option in found.params for flag in option.opts}
        assert "--config" in has or names[-1] in without, names
        assert "--config" in has or not (has & flags) or names[-1] in without, names


def test_the_page_holds_the_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0].strip() == markdown()


# -- the file -----------------------------------------------------------------------------------------------------


def test_a_new_file_is_good_and_says_nothing_but_its_examples(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(commented(), encoding="utf-8")
    settings = load(file)
    assert settings.base.model == "big-model"
    assert settings.pairs["news"].expert == str(tmp_path / "small-tuned")
    assert settings.model_dump(exclude={"base", "pairs"}) == load().model_dump(exclude={"base", "pairs"})


def test_every_commented_line_of_a_new_file_is_good(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    lines = re.sub(r"^# (\w+ = |\[)", r"\1", commented(), flags=re.M).replace('pairs = ["news"]', "pairs = []")
    file.write_text(lines.replace("alpha = 1.0", "alpha = 0.5"), encoding="utf-8")
    written = tomllib.loads(file.read_text(encoding="utf-8"))
    for key in keys():
        table = written
        for part in f"{key.table}.{'news' if key.table == 'pairs' else 'NAME'}".split("."):
            table = table.get(part, table) if part != "NAME" or key.table in NAMED else table
        assert key.name in table, str(key)
    assert load(file).pairs["news"].top_logprobs == -1
    assert {key.table for key in keys()} == set(tables())


@pytest.mark.parametrize("text", ['quotes " and \\', "ünïcode\n\x7f", "\u202e", "'"])
def test_what_is_shown_says_the_same_when_it_is_read(text: str, tmp_path: Path) -> None:
    given = {"base.model": text, "decoding.stop": [text], "pairs.expert": "org/e", "budget.prices": "1e-9,0,2"}
    settings = load(None, given)
    file = tmp_path / "shown.toml"
    file.write_text(in_effect(settings), encoding="utf-8")
    assert load(file).model_dump() == settings.model_dump()


# -- the commands -------------------------------------------------------------------------------------------------


def test_options_written_into_a_file_do_what_they_do(run: Run, settings: list[str], tmp_path: Path) -> None:
    typed = ["-n", "9", "--alpha", "0.7", "--no-local-drafts"]
    expected = run("generate", "The mayor of", *settings, *typed)[:2]
    assert expected[0] == 0
    assert run("config", "init", *settings, *typed)[0] == 0
    assert run("generate", "The mayor of", "--config", "proxy.toml")[:2] == expected
    assert run("generate", "The mayor of", "--config", "proxy.toml", "-n", "3")[1] != expected[1]
    assert run("config", "init")[0] == 2, "a file that is there is not written over"
    status, out, _ = run("config", "show", "--alpha", "0.25", "--json")
    shown = json.loads(out)
    assert (status, shown["pairs"]["pair"]["alpha"], shown["decoding"]["max_tokens"]) == (0, 0.25, 9)
    (tmp_path / "inner").mkdir()
    (tmp_path / "model").mkdir()
    run("config", "init", "inner/p.toml", "--expert", "model")
    assert load(Path("inner/p.toml")).pairs["pair"].expert == "./model"


def test_several_pairs_of_a_file_weigh_each_with_its_alpha(
    run: Run, settings: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    base = settings[:8]
    run("config", "init", *base, "--device", "cpu")
    text = Path("proxy.toml").read_text(encoding="utf-8").replace("# [pairs.pair]", "[pairs.unused]\nexpert = 'x'")
    for name, kind, alpha in (("one", "digits", 1.0), ("other", "same", -0.5)):
        pair = f"expert = '{models[f'{kind}-expert']}'\nantiexpert = '{models[f'{kind}-antiexpert']}'"
        text += f"\n[pairs.{name}]\n{pair}\nalpha = {alpha}\n"
    Path("proxy.toml").write_text(text, encoding="utf-8")
    asked = ["generate", "The mayor of", "-n", "6", "--config", "proxy.toml"]
    one = run(*asked, "--pair", "one", "--json")
    alone = run("generate", "The mayor of", "-n", "6", *settings, "--json")
    assert json.loads(one[1])["text"] == json.loads(alone[1])["text"]
    both = run(*asked, "--pair", "one", "--pair", "other", "--json")
    assert both[0] == 0
    assert json.loads(both[1])["steps"] != json.loads(one[1])["steps"]
    status, _, err = run(*asked, "--pair", "one", "--pair", "other", "--alpha", "2")
    assert status == 2
    assert "one, other" in err


def test_check_looks_before_anything_is_sent_and_asks_when_it_is_told_to(
    run: Run, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("config", "init", *settings)
    assert run("config", "check")[0] == 0
    status, out, _ = run("config", "check", "--online", "--json")
    assert (status, json.loads(out)[-1]["what"], json.loads(out)[-1]["level"]) == (0, "one token", "ok")
    status, out, _ = run("config", "check", "--online", "--base", "other")
    assert status == 1
    assert "fails  one token" in out
    (tmp_path / "empty").mkdir()
    status, out, _ = run("config", "check", "--expert", "./empty", "--antiexpert", "./nowhere")
    assert status == 1
    assert "no config.json" in out
    assert "there is no folder ./nowhere" in out
    monkeypatch.delenv("MY_KEY", raising=False)
    status, out, _ = run("config", "check", "--api-key-env", "MY_KEY")
    assert status == 1
    assert "MY_KEY" in out
    status, _, err = run("config", "check", "--config", "nowhere.toml")
    assert status == 2
    assert "nowhere.toml" in err


def test_doctor_goes_through_everything_and_names_the_next_command(run: Run, settings: list[str]) -> None:
    run("config", "init", *settings, "--prices", "1,1,2")
    status, out, _ = run("doctor", "The mayor of", "--texts", "10", "--json", "--max-tokens", "8")
    found = json.loads(out)
    assert [each["what"] for each in found if each["level"] == "fails" and each["what"] != "fit"] == []
    names = list(dict.fromkeys(each["what"] for each in found))
    assert names[0] == "versions"
    assert {"base", "pair pair, expert", "one token", "probe", "fit", "cost"} <= set(names)
    assert "10 texts" in found[-1]["text"]
    status, out, _ = run("doctor", "--no-probe", "--expert", "./nowhere")
    assert status == 1
    assert "there is no folder ./nowhere" in out
    assert "one token" not in out, "nothing is asked where something fails before"


def test_weights_for_something_else_are_found_before_anything_is_asked(
    run: Run, settings: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    """By their names and numbers, which costs nothing; by the models themselves before the first request."""
    pair = {"name": f"TransformersPair({models['digits-expert']}, {models['digits-antiexpert']})", "digest": "0" * 33}
    known = {"base": {"name": "big", "digest": None}, "pairs": [pair], "top_logprobs": 5, "tail": "backoff"}
    path = tmp_path / "weights.json"
    settings = [*settings, "--top-logprobs", "5", "--weights", str(path)]

    def told(command: str, changed: dict[str, Any]) -> tuple[int, list[list[str]]]:
        write_weights(path, Learned(Weights(0.5), {**known, **changed}, {}))
        how = ["--no-probe"] if command == "doctor" else []
        status, out, _ = run(*command.split(), *how, "--json", *settings)
        found = json.loads(out)
        assert not any(each["what"] == "one token" for each in found)
        return status, [[each["level"], each["text"]] for each in found if each["what"] == "weights"]

    status, ((level, text),) = told("config check", {})
    assert (status, level, "these names, k, tail and prompts" in text) == (0, "ok", True)
    for changed, said in (
        ({"top_logprobs": 20}, "another k: 20, not 5"),
        ({"tail": "floor"}, "another tail"),
        ({"base": {"name": "other", "digest": None}}, "another base: other, not big"),
        ({"pairs": [pair, pair]}, "another pair"),
    ):
        for command in ("config check", "doctor"):
            status, ((level, text),) = told(command, changed)
            assert (status, level, said in text) == (1, "fails", True), text
    status, ((level, text),) = told("config check", {"pairs": [pair | {"name": "TransformersPair(elsewhere)"}]})
    assert (status, level, "another pair" in text) == (0, "warns", True), "it may be the same in another folder"
    status, found = told("doctor", {})
    assert (status, [level for level, _ in found]) == (1, ["ok", "fails"]), "the same name, and other weights"
    assert "another pair" in found[1][1]
    path.write_text("{}")
    status, out, _ = run("config", "check", *settings)
    assert (status, "fails  weights" in out) == (1, True)


def test_flags_belong_to_one_setting_each() -> None:
    assert {str(key) for key in FileOptions.taken()} - {str(key) for key in DecodingOptions.taken()} == {
        str(key) for key in keys("serve") if key.told.option
    }
    assert isinstance(next(keys()), Key)
