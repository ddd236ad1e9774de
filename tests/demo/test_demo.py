"""The demo's world is fair, its models are built in one piece, and (slow) its table shows what it claims."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from blackbox_proxy.demo import models as demo_models_module
from blackbox_proxy.demo.evaluate import Answer, Figures, Task, gap_closed, row_of, score, tasks
from blackbox_proxy.demo.models import demo_models, is_built
from blackbox_proxy.demo.recipe import Recipe
from blackbox_proxy.demo.world import build_world, held_out_lines, leaks, library_text, news_text, questions, reports
from blackbox_proxy.errors import ModelUnavailable

WORLD = build_world(3)


def test_nothing_that_is_asked_was_read_by_any_model() -> None:
    recipe = Recipe()
    world = recipe.world()
    asked = {task.prompt for task in tasks(world)}
    assert asked <= held_out_lines(world)
    for edition in range(3):
        for text in (
            recipe.library(world, edition, familiar_only=False),
            recipe.library(world, edition, familiar_only=True),
            recipe.news(world, edition),
        ):
            assert leaks(world, text) == []
            assert not any(document.startswith(tuple(asked)) for document in text)
    assert leaks(world, [next(iter(asked)) + " something"]) != []  # the check itself can fail


def test_the_world_changes_and_stays_as_it_says() -> None:
    changed = [fact for fact in WORLD.facts if fact.changed]
    assert 0.15 < len(changed) / len(WORLD.facts) < 0.35
    assert all(fact.mentioned and fact.familiar for fact in changed)
    assert {q.fact.changed for q in questions(WORLD, "test", changed=True, count=99)} == {True}
    assert {q.fact.changed for q in questions(WORLD, "test", changed=False, count=99)} == {False}
    dev = {q.fact.key for q in questions(WORLD, "dev", changed=True, count=99)}
    test = {q.fact.key for q in questions(WORLD, "test", changed=True, count=99)}
    assert dev
    assert not dev & test
    assert not {r.town for r in reports(WORLD, "dev", count=99)} & {r.town for r in reports(WORLD, "test", count=99)}


def test_the_news_tell_the_new_and_the_library_the_old() -> None:
    fact = next(fact for fact in WORLD.facts if fact.changed and fact.relation == "mayor")
    line = "The mayor of {} is {}."
    library = "\n".join(library_text(WORLD, 0, familiar_only=True, errors=0.0))
    news = "\n".join(news_text(WORLD, 0, errors=0.0))
    assert line.format(fact.town, fact.old) in library
    assert line.format(fact.town, fact.new) not in library
    assert line.format(fact.town, fact.new) in news
    assert line.format(fact.town, fact.old) not in news


def test_a_seed_makes_one_world() -> None:
    assert build_world(3) == WORLD
    assert build_world(4).facts != WORLD.facts
    assert Recipe().key() == Recipe().key()
    assert Recipe(seed=1).key() != Recipe().key()
    assert Recipe.from_json(Recipe(seed=5).to_json()) == Recipe(seed=5)


def test_scores() -> None:
    town = WORLD.facts[0].town
    mayor, river = WORLD.value(town, "mayor"), WORLD.value(town, "river")
    report = Task("free", "", town)
    assert score(WORLD, Task("changed", "", "a b"), " a b") == 1.0
    assert score(WORLD, Task("changed", "", "a b"), "a") == 0.0
    assert score(WORLD, report, f"The mayor of {town} is {mayor}. {town} lies on the river {river}.") == 1.0
    assert score(WORLD, report, f"The mayor of {town} is {mayor}. {town} lies on the river Nowhere.") == 0.5
    assert score(WORLD, report, f"The mayor of {town} is {mayor}. Nonsense, and more.") == 0.5
    other = next(fact.town for fact in WORLD.facts if fact.town != town)
    assert score(WORLD, report, f"The mayor of {other} is {WORLD.value(other, 'mayor')}.") == 0.0
    assert score(WORLD, report, "") == 0.0


def test_rows_and_the_gap() -> None:
    todo = [Task("changed", "", "x"), Task("changed", "", "y"), Task("unchanged", "", "z")]
    row = row_of("some", WORLD, todo, [Answer("x", 1, 4), Answer("n", 2, 4), Answer("z", 1, 2)])
    assert row.scores == {"changed": 0.5, "unchanged": 1.0, "free": 0.0}
    assert row.calls_per_token == 0.4
    base, ceiling = (Figures("", {"changed": c, "unchanged": 1.0, "free": 0.0}, 0.0, ()) for c in (0.1, 0.9))
    assert gap_closed(row, base, ceiling, "changed") == pytest.approx(0.5)
    assert gap_closed(row, base, base, "changed") is None


@pytest.fixture
def quick() -> Recipe:
    """The demo's recipe with next to no reading: everything but the effect."""
    recipe = Recipe(seed=9)
    student = {
        "layers": 1,
        "hidden": 16,
        "inner": 24,
        "heads": 2,
        "library_editions": 1,
        "news_editions": 1,
        "batch": 256,
    }
    return dataclasses.replace(
        recipe, big=dataclasses.replace(recipe.big, **student), small=dataclasses.replace(recipe.small, **student)
    )


@pytest.mark.slow
def test_models_are_built_once_and_in_one_piece(tmp_path: Path, quick: Recipe) -> None:
    from blackbox_proxy import TransformersBase, TransformersPair

    told: list[str] = []
    results: list[Path] = []

    def build() -> None:
        results.append(demo_models(tmp_path, recipe=quick, progress=lambda stage, done: told.append(stage)).folder)

    both = [threading.Thread(target=build) for _ in range(2)]  # two at the same time do not spoil each other's work
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert results == [results[0]] * 2
    assert is_built(results[0])
    assert set(told) == {"base", "direct", "antiexpert", "expert"}
    assert [path.name for path in tmp_path.iterdir()] == [results[0].name]
    told.clear()
    models = demo_models(tmp_path, recipe=quick, progress=lambda stage, done: told.append(stage))
    assert told == []
    base = TransformersBase(models.base, device="cpu")
    pair = TransformersPair(str(models.expert), str(models.antiexpert), device="cpu")
    assert not pair.vocabulary.spells_like(base.vocabulary)
    (models.folder / "manifest.json").unlink()
    assert not is_built(models.folder)


def test_a_failed_training_leaves_nothing_behind(
    tmp_path: Path, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelUnavailable) as caught:
        demo_models(tmp_path, recipe=quick)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo's own models are kept, once a test has built them."""
    return tmp_path_factory.mktemp("demo")


@pytest.mark.slow
def test_estimates_choose_what_the_sums_choose(built: Path) -> None:
    """The demo's tokenizers are far apart: texts of the default pair are those of `exact=True`."""
    from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair

    models = demo_models(built)
    base = TransformersBase(models.base, top_logprobs=5, device="cpu")
    pairs = [
        TransformersPair(str(models.expert), str(models.antiexpert), device="cpu", exact=exact)
        for exact in (False, True)
    ]
    prompts = [task.prompt for task in tasks(build_world(0))][::4]
    texts = [[ProxyTuner(base, pair).generate(prompt, max_tokens=24).text for prompt in prompts] for pair in pairs]
    same = sum(one == other for one, other in zip(*texts, strict=True))
    print(f"{same} of {len(prompts)} texts are the same")
    assert same >= 0.95 * len(prompts)


@pytest.mark.slow
@pytest.mark.parametrize("k", [5, 20])
def test_given_text_comes_as_near_to_direct_tuning_by_estimates_as_by_sums(built: Path, k: int) -> None:
    """NLL of texts that the directly tuned model writes: the closed share of the distance from the base to it."""
    from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair

    models = demo_models(built)
    direct = TransformersBase(models.direct, device="cpu")
    base = TransformersBase(models.base, top_logprobs=k, device="cpu")
    nothing = ProxyTuner(direct, TransformersPair(str(models.expert), str(models.antiexpert), device="cpu"), 0.0)
    prompts = [report.prompt for report in reports(build_world(0), "test", count=16)]
    texts = [(prompt, nothing.generate(prompt, max_tokens=60).text) for prompt in prompts]
    nll = {"direct": -sum(nothing.score(*text).log_q for text in texts)}
    for exact in (False, True):
        pair = TransformersPair(str(models.expert), str(models.antiexpert), device="cpu", exact=exact)
        scores = [ProxyTuner(base, pair).score(*text) for text in texts]
        nll["base"] = -sum(score.log_q for score in scores)
        nll["summed" if exact else "estimated"] = -sum(score.log_p for score in scores)
    closed = {name: (nll["base"] - nll[name]) / (nll["base"] - nll["direct"]) for name in ("summed", "estimated")}
    print(f"k = {k}: closed {closed['estimated']:.2%} by estimates, {closed['summed']:.2%} by sums")
    assert closed["estimated"] == pytest.approx(closed["summed"], rel=0.005)


@pytest.mark.slow
def test_the_demo_shows_what_it_claims(built: Path) -> None:
    """The claims of the README on its table: pytest -m slow tests/demo (minutes)."""
    from blackbox_proxy.demo.run import run_demo

    out = io.StringIO()
    rows = {row.name: row for row in run_demo(Console(file=out, width=140), cache=built)}
    base, expert = rows["base"], rows["expert alone"]
    ceiling, proxy = rows["base tuned directly"], rows["proxy, top 5, backoff"]
    closed = gap_closed(proxy, base, ceiling, "changed")
    assert closed is not None
    assert closed >= 0.8
    assert abs(proxy.scores["unchanged"] - base.scores["unchanged"]) <= 0.05
    assert expert.scores["unchanged"] < base.scores["unchanged"] - 0.15
    assert proxy.scores["changed"] > rows["proxy, top 5, truncate"].scores["changed"] + 0.2
    assert proxy.calls_per_token < 1.0
    assert "changed by the proxy" in out.getvalue()


@pytest.mark.slow
def test_the_readmes_lines_print_what_stands_below_them(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words; numbers as near as another machine's training may bring them."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    use = readme.partition("<!-- use -->")[2].partition("<!-- /use -->")[0]
    (code, printed) = (re.findall(rf"^```{kind}\n(.*?)^```$", use, re.S | re.M)[0] for kind in ("python", "text"))
    monkeypatch.setattr(demo_models_module, "default_cache", lambda: built)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    number = re.compile(r"\d\.\d{3}")
    assert number.sub("_", out.getvalue()) == number.sub("_", printed)
    came, claimed = (np.array([float(each) for each in number.findall(text)]) for text in (out.getvalue(), printed))
    assert np.abs(came - claimed).max() < 0.1
