"""examples/domain_adaptation.py and examples/instruction_tuning.py: their texts, a quick run of each, real models, and
(slow) the whole of each with what it claims.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from blackbox_proxy.errors import InputError

FOLDER = Path(__file__).parents[2] / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


domain = script("domain_adaptation")
chat = script("instruction_tuning")


def by_system(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["system"]: row for row in results["rows"]}


# -- domain adaptation: the texts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus() -> Any:
    return domain.standard_library(every=8)


def test_no_line_of_a_held_out_file_is_much_read(corpus: Any) -> None:
    read = set().union(*map(domain.long_lines, (*corpus.code, *corpus.prose)))
    assert len(corpus.held_out) > 3
    for name, text in corpus.held_out:
        own = domain.long_lines(text)
        assert len(own & read) < 0.2 * max(10, len(own)), name


def test_held_out_packages_are_held_out_as_a_whole(corpus: Any) -> None:
    code = set(corpus.code)
    packages = {name.split("/")[0] for name, _ in corpus.held_out}
    folder = Path(domain.sysconfig.get_path("stdlib"))
    for package in packages:
        path = folder / package
        files = path.rglob("*.py") if path.is_dir() else [path]
        assert not code & {file.read_text(encoding="utf-8", errors="replace") for file in files}


def test_prose_is_docstrings_and_comments_without_examples() -> None:
    long = "This is said at such a length that nobody could take it for a mere remark."
    text = (
        f'"""{long}\n\n>>> hidden()\n"""\n\n\ndef f():\n    # {long[:-1]}\n    # twice.\n    return hidden()  # short\n'
    )
    assert domain.said_in(text) == f"{long}\n\n{long[:-1]}\ntwice."


def test_sections_begin_with_a_line_and_do_not_overlap() -> None:
    text = "".join(f"line {i} = {'x' * (i % 17)}\n" for i in range(200))
    found = domain.sections(text, 300, 3)
    assert len(found) == 3
    places = [text.index(part) for part in found]
    assert all(place == 0 or text[place - 1] == "\n" for place in places)
    assert all(b >= a + 300 for a, b in itertools.pairwise(places))
    assert domain.sections("short\n", 300, 3) == []


# -- domain adaptation: the runs --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_domain_adaptation_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """alpha = 0 is the base, whatever it shows; alpha = 1 brings it nearer to the directly tuned base."""
    options = ["--quick", "--cache", str(tmp_path), "--files", "2", "--length", "120"]
    out = tmp_path / "results.json"
    results = domain.main([*options, "--top-logprobs", "0", "5", "--alpha", "0", "1", "--json", str(out)])
    rows = by_system(results)
    base, direct = (rows[name]["bits_per_byte"] for name in ("base", "direct"))
    assert direct < base
    for k in (None, 5):
        assert rows[domain.tuned(0.0, k)]["bits_per_byte"] == pytest.approx(base, abs=1e-6)
        row = rows[domain.tuned(1.0, k)]
        assert row["bits_per_byte"] < base
        assert row["closed"] == pytest.approx((base - row["bits_per_byte"]) / (base - direct))
    assert results["covered"]["top 5"] < 0.99 < results["covered"]["all"]
    assert json.loads(out.read_text()) == json.loads(json.dumps(results))
    printed = capsys.readouterr().out
    assert f"{results['bytes']:,} bytes" in printed
    assert f"closes {100 * rows[domain.tuned(1.0, 5)]['closed']:.0f} % of the gap" in printed
    assert len(list(tmp_path.glob("code-*"))) == 1
    assert not list(tmp_path.glob(".building-*"))


def test_domain_adaptation_of_real_models(
    tmp_path: Path, models: dict[str, str], hosted: Callable[[int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same figures from the base in this process and behind an API."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"There came {i} people of New York, she said.\n" for i in range(30)))
    pair = ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--texts", str(text)]
    short = ["--length", "60", "--alpha", "1"]
    here = domain.main(["--base", models["base"], *pair, *short, "--top-logprobs", "5"])
    api = ["--base", "big", "--base-url", hosted(5), "--dialect", "vllm", "--tokenizer", models["base"]]
    there = domain.main([*api, *pair, *short, "--top-logprobs", "5"])
    assert [row["system"] for row in here["rows"]] == ["base", "expert", "antiexpert", domain.tuned(1.0, 5)]
    for row, other in zip(here["rows"], there["rows"], strict=True):
        assert row["system"] == other["system"]
        assert row["bits_per_byte"] == pytest.approx(other["bits_per_byte"], abs=1e-4)
    assert "closes" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--base", "x"], ["--expert", "x"], ["--base-url", "http://localhost:1/v1"]])
@pytest.mark.parametrize("module", [domain, chat])
def test_half_of_a_real_setting_is_refused(
    module: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        module.main(arguments)
    assert "need" in capsys.readouterr().err


def test_texts_that_are_too_short(tmp_path: Path, models: dict[str, str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("short")
    with pytest.raises(InputError, match="long enough"):
        domain.main(["--base", models["base"], "--expert", models["digits-expert"], "--texts", str(text)])


@pytest.mark.slow
def test_domain_adaptation_closes_most_of_the_gap(tmp_path: Path) -> None:
    rows = by_system(domain.main(["--cache", str(tmp_path)]))
    for k in (None, 5):
        assert rows[domain.tuned(1.0, k)]["closed"] >= 0.6
    assert rows["direct"]["bits_per_byte"] < rows["base"]["bits_per_byte"]


# -- instruction tuning -----------------------------------------------------------------------------------------------


def test_pages_say_everything_and_the_pair_reads_less() -> None:
    plan = chat.Plan()
    world = chat.atlas(plan)
    assert len(world) == plan.countries
    countries = list(world)
    pages = chat.pages(world, countries, countries[: plan.known], random.Random(0))
    asking = [page for page in pages if "?" in page]
    assert 0 < len(asking) < len(pages)
    assert all(page.count("?\n") == 1 for page in asking)
    for page in pages:
        (country,) = (country for country in countries if country in page)
        said = [value in page for value in world[country].values()]
        assert all(said) if country in countries[: plan.known] else not any(said)


@pytest.fixture(scope="module")
def quick_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the quick run's models are kept, made once."""
    return tmp_path_factory.mktemp("quick")


def test_instruction_tuning_quick(quick_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = chat.main(["--quick", "--cache", str(quick_models), "--limit", "4", "--alpha", "0", "1"])
    rows = by_system(results)
    tuned = rows["proxy-tuned, alpha 1"]
    assert list(rows["base"]["by_kind"]) == ["known", "unknown"]
    assert results["answers"]["proxy-tuned, alpha 0"] == results["answers"]["base"]
    assert len(results["questions"]) == tuned["n"] == 4
    for row in rows.values():
        answers = results["answers"][row["system"]]
        assert row["stopped"] == sum(answer["stopped"] for answer in answers) / 4
    assert "McNemar" in capsys.readouterr().out


def test_instruction_tuning_of_real_models(
    tmp_path: Path, quick_models: Path, models: dict[str, str], hosted: Callable[[int], str]
) -> None:
    """The same answers from the base in this process and behind an API."""
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Who came?", "answer": ""}\n')
    quick = chat.models(chat.QUICK, quick_models)
    expert = str(quick / "expert")
    pair = ["--expert", expert, "--antiexpert", str(quick / "antiexpert"), "--questions", str(path)]
    given = ["--base", models["base"], *pair]
    results = chat.main([*given, "--max-tokens", "5"])
    api = ["--base", "big", "--base-url", hosted(5), "--dialect", "vllm", "--tokenizer", models["base"]]
    assert chat.main([*api, *pair, "--max-tokens", "5"])["answers"] == results["answers"]
    assert [row["system"] for row in results["rows"]] == ["base", "expert alone", "proxy-tuned, alpha 1"]
    assert all(row["right"] == 1.0 for row in results["rows"])  # every answer contains the empty one
    path.write_text("{}\n")
    with pytest.raises(InputError, match="cannot be read"):
        chat.main(given)


@pytest.mark.slow
def test_instruction_tuning_answers_and_stops(tmp_path: Path) -> None:
    rows = by_system(chat.main(["--cache", str(tmp_path)]))
    base, expert, tuned = (rows[name] for name in ("base", "expert alone", "proxy-tuned, alpha 1"))
    assert tuned["right"] > max(base["right"], expert["right"]) + 0.1
    assert tuned["by_kind"]["unknown"] > expert["by_kind"]["unknown"] + 0.2  # what only the base knows
    assert tuned["stopped"] > 0.9
    assert tuned["bytes"] < 0.5 * base["bytes"]
