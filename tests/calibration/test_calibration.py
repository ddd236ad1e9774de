"""Learned weights: the loss against finite differences, weights that are found again, and what is refused or not
written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, Weights, calibrate, evaluate, read_weights
from blackbox_proxy.analysis import Factors, telling
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.calibration.asking import Plan
from blackbox_proxy.calibration.fitting import Learner, fit, folds, rest_weight, spread_of_weights
from blackbox_proxy.calibration.learning import Calibration
from blackbox_proxy.calibration.likelihood import Terms
from blackbox_proxy.calibration.places import Place, Places
from blackbox_proxy.errors import InputError
from blackbox_proxy.learned import models_of, read_learned, write_weights
from blackbox_proxy.maths.equation import tail
from blackbox_proxy.maths.weights import PLAIN_SPREAD, Spread
from blackbox_proxy.report.calibration import lines
from blackbox_proxy.types import How, Scores

Pairs = Callable[[str], TransformersPair]
TRUE = np.array([0.4, 0.8, 0.2, -0.3])


def drawn(documents: int, places: int, weights: np.ndarray = TRUE, seed: int = 0, right: int = 1) -> Terms:
    """Places whose right candidate is drawn from a log-linear mixture of three random rows."""
    rng = np.random.default_rng(seed)
    found = []
    for document in range(documents):
        for _ in range(places):
            rows = np.log(rng.dirichlet(np.full(12, 0.3), 3) + 1e-6)
            x = np.stack([rows[0], rows[1], -rows[2], (np.arange(12) >= 5) * 1.0], axis=1)
            p = np.exp(x @ weights)
            chosen = rng.choice(12, size=right, replace=False, p=p / p.sum())
            found.append((x, np.isin(np.arange(12), chosen), document))
    return Terms.of(found)


@pytest.mark.parametrize("right", [1, 3])
def test_the_gradient_and_the_curvature_against_finite_differences(right: int) -> None:
    terms = drawn(5, 6, right=right)
    counts = np.array(np.arange(terms.count) % 3 * 0.5, dtype=np.float64)
    at, step = np.array([0.7, 0.3, 0.9, 0.1]), 1e-5
    _, gradient, curvature = terms.loss(at, counts)
    for i in range(4):
        away = np.eye(4)[i] * step
        up, down = terms.loss(at + away, counts), terms.loss(at - away, counts)
        assert (up[0] - down[0]) / (2 * step) == pytest.approx(gradient[i], abs=1e-5)
        assert np.allclose((up[1] - down[1]) / (2 * step), curvature[i], atol=1e-4)
    assert np.allclose(terms.gradients(at, 5).sum(axis=0), terms.loss(at)[1])
    assert terms.losses(at).sum() == pytest.approx(terms.loss(at)[0])


def test_weights_are_found_again_and_their_intervals_hold_them() -> None:
    terms = drawn(40, 10)
    learner = Learner(lambda _: terms, (True,), learns_tail=False)
    fitted = learner.learn(list(range(40)))
    assert np.allclose(fitted.weights, TRUE, atol=0.15)
    ends = spread_of_weights(terms, fitted, 40)
    assert all(low - 0.03 < value < high + 0.03 for (low, high), value in zip(ends, TRUE, strict=True))
    assert all(0.02 < high - low < 0.6 for low, high in ends)
    crossed, swept = learner.crossed(list(range(40)), tail=False)
    assert crossed.mean() < swept.mean() < terms.losses(learner.plain(1.0)).mean()


def test_what_is_learned_without_the_tail_is_learned_once() -> None:
    """And the tail after it as if it had not been."""
    terms, other = drawn(12, 5), drawn(12, 5, np.array([0.4, 0.8, 0.2, 0.3]), seed=2)
    asked: list[Any] = []

    def spreads(spread: Spread) -> Terms:
        asked.append(spread)
        return terms if spread == PLAIN_SPREAD else other

    documents = list(range(12))
    learner = Learner(spreads, (True,), learns_tail=True)
    first = learner.learn(documents, tail=False)
    assert len(asked) == 1
    assert learner.learn(documents, tail=False) is first
    assert len(asked) == 1
    alone = Learner(spreads, (True,), learns_tail=True).learn(documents)
    again = learner.learn(documents)
    assert np.array_equal(alone.weights, again.weights)
    assert (alone.alpha, alone.strength, alone.spread) == (again.alpha, again.strength, again.spread)


def test_where_plain_proxy_tuning_is_right_little_is_learned() -> None:
    terms = drawn(30, 5, np.array([1.0, 1.0, 1.0, 0.0]), seed=1)
    learner = Learner(lambda _: terms, (True,), learns_tail=False)
    assert np.allclose(learner.learn(list(range(30))).weights, [1.0, 1.0, 1.0, 0.0], atol=0.2)
    crossed, _ = learner.crossed(list(range(30)), tail=False)
    assert crossed.mean() > terms.losses(learner.plain(1.0)).mean() - 0.02


def test_the_pull_and_the_bound() -> None:
    terms, pull = drawn(10, 5), np.array([1.0, 0.5, 0.5, 0.0])
    assert np.allclose(fit(terms, pull, 1e9), pull, atol=1e-4)
    against = drawn(10, 5, np.array([-0.5, 1.0, 0.0, 0.0]))
    assert fit(against, pull, 0.1)[0] == 0.0, "the base counts for no less than nothing"


def test_every_document_is_left_out_once() -> None:
    assert sorted(d for fold in folds(list(range(13))) for d in fold) == list(range(13))
    assert len(folds([1, 2])) == 2


def test_the_rest_gets_the_share_that_it_has() -> None:
    rest = rest_weight(np.zeros(1000), np.full(1000, -1.0), np.arange(1000) < 400)
    assert 1.0 / (1.0 + np.exp(1.0 - rest)) == pytest.approx(0.4, abs=0.01)
    assert rest_weight(np.zeros(1), np.full(1, -np.inf), np.zeros(1, dtype=bool)) == 0.0


# -- with models ------------------------------------------------------------------------------------------------------

LEARNABLE = Weights(0.3, (1.0,), (0.2,), -0.5)
ROWS = 24
WIDE = 300  # candidates, of about 500 tokens: at any place some of a few short answers are among them


@pytest.fixture(scope="module")
def base(models: dict[str, str]) -> TransformersBase:
    return TransformersBase(models["base"], top_logprobs=20, device="cpu")


@pytest.fixture(scope="module")
def rows(base: TransformersBase, pairs: Pairs) -> list[dict[str, str]]:
    """Texts that weights have written."""
    tuner = ProxyTuner(base, pairs("same"), weights=LEARNABLE, draft=1)
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 1.0}
    texts = [tuner.generate("The mayor of ", seed=seed, **options).text for seed in range(ROWS)]
    return [{"prompt": "The mayor of ", "text": text} for text in texts if text]


@pytest.fixture(scope="module")
def found(base: TransformersBase, pairs: Pairs, rows: list[dict[str, str]]) -> Calibration:
    plans: list[Plan] = []

    def ready(plan: Plan) -> bool:
        plans.append(plan)
        return True

    found = calibrate(ProxyTuner(base, pairs("same")), rows, others=rows[:8], skip_bad=True, ready=ready)
    assert found is not None
    assert plans[0].requests >= found.usage.api_calls > 0
    return found


def test_weights_that_wrote_texts_are_better_on_texts_not_seen(found: Calibration) -> None:
    names = [each.name for each in found.systems]
    assert names == ["weights", "best alpha", "alpha 1", "base alone", "expert alone"]
    assert found.better
    assert all(each.gain > 0.05 for each in found.systems[1:4])
    assert found.places + found.unlisted >= 100
    assert set(found.intervals) == {"q", "E", "A", "tail"}
    assert found.carries_over
    low, high = found.intervals["E"]
    assert low < found.weights.experts[0] < high


def test_weights_that_lose_on_other_texts_are_told_and_not_worth_writing(found: Calibration) -> None:
    """The limit is 0.005 nats for each place."""
    (weights, alpha) = found.others
    assert found.worth_writing
    for gain, carries in ((-0.004, True), (-0.006, False)):
        there = replace(found, others=(weights, replace(alpha, gain=gain)))
        assert (there.better, there.carries_over, there.worth_writing) == (True, carries, carries)
        assert there.learned.found["carries_over"] is carries
        assert any("they lose 0.006 nats against alpha 1" in line for line in lines(there)) is not carries
    nothing = replace(found, others=())
    assert (nothing.carries_over, nothing.worth_writing) == (None, True)


def test_a_file_is_for_its_models(
    found: Calibration, base: TransformersBase, pairs: Pairs, models: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "weights.json"
    write_weights(path, found.learned)
    assert read_weights(path, base, pairs("same")) == found.weights
    other_k = TransformersBase(models["base"], top_logprobs=5, device="cpu")
    for wrong, said in (
        ((base, pairs("digits")), "another pair"),
        ((other_k, pairs("same")), "another k"),
        ((TransformersBase(models["same-expert"], top_logprobs=20, device="cpu"), pairs("same")), "another base"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read_weights(path, *wrong)
        assert "calibrate" in caught.value.hint
    with pytest.raises(InputError, match="another tail: backoff, not floor"):
        read_weights(path, base, pairs("same"), tail="floor")
    with pytest.raises(InputError, match="another tail size: 32, not 4"):
        read_weights(path, base, pairs("same"), tail_size=4)
    models_said = models_of(base, [pairs("same")], "backoff")
    assert "digest" in json.dumps(models_said)


def test_a_file_is_for_models_that_are_shown_prompts_so(
    found: Calibration, base: TransformersBase, pairs: Pairs, models: dict[str, str], tmp_path: Path
) -> None:
    """As they are, or as a chat template writes them; what a function does cannot be told."""
    path, same = tmp_path / "weights.json", (models["same-expert"], models["same-antiexpert"])
    write_weights(path, found.learned)
    assert json.loads(path.read_text())["for"]["prompts"] == ["raw", "raw", "raw"]
    chatty = TransformersBase(models["base"], top_logprobs=20, device="cpu", rendering="chat")
    with pytest.raises(InputError, match="another way to show prompts: raw and raw and raw, not chat and raw and raw"):
        read_weights(path, chatty, pairs("same"))
    with pytest.raises(InputError, match=r"another way to show prompts: .* not raw and chat and raw"):
        read_weights(path, base, TransformersPair(*same, device="cpu", expert_prompt="chat"))
    written = TransformersPair(*same, device="cpu", expert_prompt=str)
    assert read_weights(path, base, written) == found.weights
    record = json.loads(path.read_text())
    del record["for"]["prompts"], record["for"]["tail_size"]  # as they were written before these were told
    path.write_text(json.dumps(record))
    assert read_weights(path, chatty, pairs("same"), tail_size=4) == found.weights


@pytest.mark.parametrize("text", ["nothing", "{}", '{"format": "blackbox-proxy weights", "version": 9}'])
def test_a_file_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_learned(path)
    assert caught.value.hint
    with pytest.raises(InputError):
        read_learned(tmp_path / "none.json")


def test_a_damaged_file_is_refused(found: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    write_weights(path, found.learned)
    record = json.loads(path.read_text())
    del record["weights"]["tail"]
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="damaged"):
        read_learned(path)


def test_too_few_texts_and_mixed_rows_are_refused(base: TransformersBase, pairs: Pairs, rows: Any) -> None:
    tuner = ProxyTuner(base, pairs("same"))
    with pytest.raises(InputError, match="too few"):
        calibrate(tuner, rows[:3], skip_bad=True)
    choice = {"question": "Which?", "choices": ["one", "two"], "answer": 0}
    with pytest.raises(InputError, match="apart"):
        calibrate(tuner, [*rows[:8], choice], skip_bad=True)
    assert calibrate(tuner, rows, skip_bad=True, ready=lambda _: False) is None, "nothing is asked"


def test_a_base_that_scores_nothing_is_asked_along_the_text(
    api_base: Callable[..., OpenAIBase], pairs: Pairs, rows: list[dict[str, str]]
) -> None:
    """The same places, seen from the base's own drafts; and at most one request for each."""
    from blackbox_proxy.answers.choices import Rule
    from blackbox_proxy.calibration.asking import documents_of, question_of
    from blackbox_proxy.evaluation.tasks import task_of
    from blackbox_proxy.tuner import run as wait

    scoring, silent = api_base(), api_base(dialect="openai")
    assert scoring.abilities.scores
    assert not silent.abilities.scores
    row = {"prompt": "The mayor of ", "text": "New York said on 12 March"}
    tuner = ProxyTuner(scoring, pairs("same"))
    seen = []
    for base in (scoring, silent):
        question = question_of(base, tuner.pairs, task_of(row), Rule())
        seen.append(wait(documents_of(base, tuner.pairs, tuner.equation, question, Rule())))
    assert [len(each.every) for each in seen] == [len(seen[0].every)] * 2
    for one, other in zip(seen[0].every, seen[1].every, strict=True):
        assert np.allclose(one.log_q[: one.shown], other.log_q[: other.shown], atol=1e-4)
        assert np.array_equal(one.right, other.right)
    assert 1 < seen[1].usage.api_calls <= len(seen[1].every)


def test_multiple_choice_fits_the_options(models: dict[str, str], pairs: Pairs) -> None:
    base = TransformersBase(models["base"], top_logprobs=WIDE, device="cpu")
    asked = [{"question": f"Number {i}?", "choices": ["one", "two", "three"], "answer": i % 2} for i in range(12)]
    found = calibrate(ProxyTuner(base, pairs("same")), asked)
    assert found is not None
    assert (found.kind, found.documents, found.places) == ("choice", 12, 12)
    assert found.systems[0].loss > 0.0
    assert found.weights.rest == 0.0


def test_the_terms_of_a_candidate_add_up_to_its_log_p(base: TransformersBase, pairs: Pairs) -> None:
    factors = Factors.of({"weights": asdict(LEARNABLE)})
    assert factors is not None
    (step,) = ProxyTuner(base, pairs("same"), weights=LEARNABLE).generate("The mayor of ", max_tokens=1).steps
    rows = telling(step, 6, factors).rows
    rest = [np.log(row.p) - sum(row.terms) for row in rows]
    assert np.ptp(rest) < 1e-9
    assert Factors.of({"alpha": 1.0}) is None
    assert all(row.terms == () for row in telling(step).rows)


def test_eval_has_weights_as_one_more_row(base: TransformersBase, pairs: Pairs, rows: list[dict[str, str]]) -> None:
    """Given text, choices and answers in text, on the same requests."""
    tuner = ProxyTuner(base, pairs("same"), weights=LEARNABLE)
    choice = {"question": "Which?", "choices": ["one", "two"], "answer": 0}
    asked: list[dict[str, Any]] = [*rows[:6], choice, {"prompt": "The mayor of ", "answer": "New York"}]
    table = evaluate(tuner, asked, skip_bad=True, max_tokens=4).tables[-1]
    keys = [result.system.key for result in table.results]
    assert keys == ["base", "expert", "antiexpert", "tuned@1", "tuned@weights"]
    weights, alpha = table.result("tuned@weights"), table.result("tuned@1")
    assert weights is not None
    assert alpha is not None
    assert weights.value < alpha.value, "bits per byte of what these weights wrote"
    assert weights.to_base is not None
    assert weights.to_expert is not None
    assert weights.system.title == "proxy-tuned, learned weights"


def test_the_command_writes_what_is_better_and_nothing_else(
    run: Callable[..., tuple[int, str, str]], models: dict[str, str], rows: list[dict[str, str]], tmp_path: Path
) -> None:
    dev, output = tmp_path / "dev.jsonl", tmp_path / "weights.json"
    dev.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = ["--local", "--base", models["base"], "--top-logprobs", "20", "--device", "cpu"]
    pair = ["--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"]]
    learn = ["calibrate", str(dev), "-o", str(output), "--skip-bad", *shared, *pair]
    status, out, err = run(*learn, "--dry-run")
    assert (status, out, output.exists()) == (0, "", False)
    assert "At most" in err
    status, out, err = run(*learn)
    assert status == 0, err
    assert "w_q" in out
    assert "alpha 1" in out
    assert read_learned(output).found["better"]
    trace, page = tmp_path / "trace.jsonl", tmp_path / "report.html"
    asked = ("generate", "The mayor of", "-n", "4", "--weights", str(output), "--trace", str(trace))
    status, out, _ = run(*asked, *shared, *pair)
    assert status == 0
    assert run("report", str(trace), "-o", str(page))[0] == 0
    html = page.read_text(encoding="utf-8")
    assert "<th>+q<th>+E<th>+A<th>+tail" in html, "what each term adds to log p"
    assert "weights <b>" in html
    status, _, err = run("generate", "A", "--weights", str(output), *shared[:-4], *pair)
    assert status == 2
    assert "another k" in err
    status, _, err = run("generate", "A", "--weights", str(output), "--alpha", "0.5", *shared, *pair)
    assert (status, "leave one of them out" in err) == (2, True)
    output.unlink()
    few = ["{" + f'"question": "Number {i}?", "choices": ["one", "two"], "answer": {i % 2}' + "}\n" for i in range(9)]
    dev.write_text("".join(few))
    status, out, err = run(*learn)
    assert (status, output.exists()) == (2, False)
    assert "of 9 documents something right is among the candidates: too few" in err
    status, out, err = run(*learn, "--top-logprobs", str(WIDE))
    assert (status, output.exists()) == (1, False), "no better than chance"
    assert "Nothing is written" in err


@pytest.mark.parametrize("spread", [PLAIN_SPREAD, Spread(0.7, 0.0), Spread(1.0, 1.0), Spread(1.4, 0.25)])
def test_places_are_spread_anew_as_the_tail_of_each_is(spread: Spread) -> None:
    rng, places = np.random.default_rng(1), []
    for shown, beyond in ((5, 3), (4, 0), (1, 6), (3, 2)):
        count = shown + beyond
        log_e, log_a = (np.log(rng.dirichlet(np.ones(count + 1))[:count]) for _ in range(2))
        log_q = np.log(rng.dirichlet(np.ones(shown + 1))[:shown])
        if shown == 3:
            log_q = log_q - np.log(np.exp(log_q).sum())  # which hides nothing
        exact: How = "exact"
        scores = Scores(log_e, log_a, log_e - log_a, (exact,) * count)
        every = np.concatenate([log_q, np.full(beyond, -9.0)])
        marks = np.zeros(count, dtype=np.bool_)
        places.append(Place(every, shown, [scores], marks, ~marks))
    pair: Any = SimpleNamespace(has_antiexpert=True)
    together = Places.of(places)
    found = together.parts.split(together.spread_anew(spread, "backoff", [pair]))
    for place, own in zip(places, found, strict=True):
        scores, log_q = place.scores[0], place.log_q[: place.shown]
        log_mass = spread.log_mass(scores.log_expert, scores.log_antiexpert)
        rest = tail(log_q, log_mass[: place.shown], log_mass[place.shown :], "backoff", None, spread.temperature)
        expected = place.log_q if spread == PLAIN_SPREAD else np.concatenate([log_q, rest])
        assert np.allclose(own, expected, atol=1e-12)
