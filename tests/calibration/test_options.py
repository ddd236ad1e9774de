"""Multiple choice whose options have several tokens: what is fitted is what `choose` does and `eval` prints."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, Weights, calibrate, evaluate
from blackbox_proxy.answers.choices import Normalise, Rule, choose
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.calibration.asking import Plan, documents_of, question_of
from blackbox_proxy.calibration.fitting import Learner
from blackbox_proxy.calibration.learning import Calibration, weights_of
from blackbox_proxy.calibration.likelihood import Terms
from blackbox_proxy.calibration.options import Choices, choices_of
from blackbox_proxy.calibration.places import ALPHAS
from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.tasks import task_of
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.parts import Parts
from blackbox_proxy.maths.weights import PLAIN_SPREAD
from blackbox_proxy.tuner import run as wait

Pairs = Callable[[str], TransformersPair]
Bases = Callable[..., OpenAIBase]
LEARNABLE = Weights(0.1, (6.0,), (0.1,))
WORDS = ("the", "mayor", "New York", "Haven", "Newark", "said", "theory", "rain", "spaces", "stay", "tabs", "café")


def table(seed: int = 0) -> Choices:
    """Twenty questions of two to four options, each of one to four tokens, with random terms."""
    rng = np.random.default_rng(seed)
    tokens: list[tuple[Any, Any, int]] = []
    owners: list[int] = []
    counts: list[int] = []
    right: list[bool] = []
    for question in range(20):
        counts.append(int(rng.integers(2, 5)))
        own = rng.random(counts[-1]) < 0.4
        own[rng.integers(counts[-1])] = True
        for option in own:
            for _ in range(rng.integers(1, 5)):
                size = int(rng.integers(3, 8))
                tokens.append((rng.normal(size=(size, 5)), np.arange(size) == rng.integers(size), question))
                owners.append(len(right))
            right.append(bool(option))
    plain = rng.random((20, len(ALPHAS)))
    sizes = rng.integers(1, 4, len(right)).astype(float)
    return Choices(
        Terms.of(tokens),
        np.array(owners),
        rng.normal(size=len(right)),
        sizes,
        Parts.of(counts),
        np.array(right),
        np.arange(20) // 2,
        plain,
        np.empty(20),
    )


def test_the_gradient_and_the_curvature_against_finite_differences() -> None:
    choices = table()
    counts = np.array(np.arange(20) % 3 * 0.5, dtype=np.float64)
    at, step = np.array([0.7, 0.3, -0.9, 0.1, 0.4]), 1e-5
    value, gradient, curvature = choices.loss(at, counts)
    assert value == pytest.approx(counts @ choices.losses(at))
    for i in range(5):
        away = np.eye(5)[i] * step
        up, down = choices.loss(at + away, counts), choices.loss(at - away, counts)
        assert (up[0] - down[0]) / (2 * step) == pytest.approx(gradient[i], abs=1e-6)
        assert np.allclose((up[1] - down[1]) / (2 * step), curvature[i], atol=1e-5)
    assert np.allclose(choices.gradients(at, 10).sum(axis=0), choices.loss(at)[1])


def test_the_loss_of_some_documents_is_theirs() -> None:
    choices, at = table(), np.array([0.7, 0.3, -0.9, 0.1, 0.4])
    some = choices.only([1, 4, 9]).only([4, 9])
    assert some.documents.tolist() == [4, 4, 9, 9]
    assert np.allclose(some.losses(at), choices.losses(at)[np.isin(choices.documents, [4, 9])])
    assert np.allclose(some.gradients(at, 10)[4], choices.gradients(at, 10)[4])
    assert np.allclose(some.loss(at)[1], choices.gradients(at, 10)[[4, 9]].sum(axis=0))


# -- with models, over HTTP -------------------------------------------------------------------------------------------


def asked(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions whose options are a few words each."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        options = [" ".join(rng.sample(WORDS, rng.randint(2, 4))) for _ in range(3)]
        rows.append({"prompt": f"Number {i}: the mayor", "choices": options, "answer": 0})
    return rows


@pytest.fixture(scope="module")
def rows(models: dict[str, str], pairs: Pairs) -> list[dict[str, Any]]:
    """The right ones are drawn with weights that plain proxy-tuning does not have."""
    base = TransformersBase(models["base"], top_logprobs=5, device="cpu")
    tuner, rng, found = ProxyTuner(base, pairs("same"), weights=LEARNABLE), random.Random(1), []
    for row in asked(60):
        options = [f" {option}" for option in row["choices"]]
        log_p = tuner.choose(row["prompt"], options, normalise="tokens").log_p
        found.append(row | {"answer": rng.choices(range(3), [np.exp(value) for value in log_p])[0]})
    return found


def nats(tuner: ProxyTuner, rows: Sequence[dict[str, Any]], weights: Weights, **options: Any) -> dict[str, float]:
    """-log p of the right options, on average, from what `eval` says of each row."""
    with_weights = tuner.altered(equation=tuner.equation.with_weights(weights))
    report = evaluate(with_weights, rows, alphas=[1.0], **options)
    found: dict[str, list[float]] = {}
    for row in report.rows:
        for key, outcome in row.outcomes.items():
            found.setdefault(key, []).append(-outcome.log_p[row.task.right[0]])
    return {key: float(np.mean(values)) for key, values in found.items()}


@pytest.mark.parametrize(
    ("kind", "normalise", "close"), [("same", "none", 1e-6), ("same", "tokens", 1e-6), ("digits", "bytes", 0.02)]
)
def test_the_figures_are_those_of_eval_with_these_weights(
    api_base: Bases, pairs: Pairs, rows: list[dict[str, Any]], kind: str, normalise: Normalise, close: float
) -> None:
    """close: by how much a pair with another vocabulary may leave its estimates as they are, nats."""
    tuner = ProxyTuner(api_base(), pairs(kind))
    plans: list[Plan] = []

    def ready(plan: Plan) -> bool:
        plans.append(plan)
        return True

    rule = Rule(normalise=normalise)
    some = rows[:12]
    found = calibrate(tuner, some, others=some, rule=rule, ready=ready)
    assert found is not None
    assert (plans[0].way, plans[0].requests) == ("options", 3 * 24)
    assert found.usage.api_calls == 3 * 12, "the others are the same, and asked about already"
    assert (found.kind, found.documents, found.places, found.unlisted) == ("choice", 12, 12, 0)
    assert set(found.intervals) == {"q", "E", "A", "tail", "rest"}
    said = nats(tuner, some, found.weights, rule=rule)
    weights, alpha = found.others
    assert weights.loss == pytest.approx(said["tuned@weights"], abs=close)
    assert alpha.loss == pytest.approx(said["tuned@1"], abs=close)
    by_name = {each.name: each.loss for each in found.systems}
    assert by_name["alpha 1"] == pytest.approx(said["tuned@1"], abs=close)
    assert by_name["base alone"] == pytest.approx(said["base"], abs=close)
    assert by_name["expert alone"] == pytest.approx(said["expert"], abs=close)


@pytest.fixture(scope="module")
def learned(models: dict[str, str], pairs: Pairs, rows: list[dict[str, Any]]) -> tuple[ProxyTuner, Calibration]:
    """In this process."""
    tuner = ProxyTuner(TransformersBase(models["base"], top_logprobs=5, device="cpu"), pairs("same"))
    found = calibrate(tuner, rows, learn_tail=False, rule=Rule(normalise="tokens"))
    assert found is not None
    return tuner, found


def test_the_fitted_weights_are_the_maximum_of_what_choose_says(
    learned: tuple[ProxyTuner, Calibration], rows: list[dict[str, Any]]
) -> None:
    """Of the log probability of the right options less the pull, by finite differences of `choose` alone."""
    tuner, found = learned
    at = found.weights
    step, names = 1e-3, ("base", "experts", "antiexperts", "tail", "rest")

    def value(weights: Weights, name: str) -> float:
        one = getattr(weights, name)
        return float(one[0] if isinstance(one, tuple) else one)

    def moved(name: str, by: float) -> Weights:
        to = value(at, name) + by
        changed: dict[str, Any] = {name: (to,) if name in ("experts", "antiexperts") else to}
        return replace(at, **changed)

    assert at.base > 0.0, "not at its bound"
    tried = [(name, by) for name in names for by in (step, -step)]
    equations = [tuner.equation.with_weights(moved(*each)) for each in tried]
    totals = np.zeros(len(tried))
    for row in rows:
        options = [f" {option}" for option in row["choices"]]
        choices = wait(
            choose(tuner.base, tuner.pairs, row["prompt"], options, equations, rule=Rule(normalise="tokens"))
        )
        totals += [each.log_p[row["answer"]] for each in choices]
    pull = dict(zip(names, (1.0, found.alpha, found.alpha, 0.0, 0.0), strict=True))
    for i, name in enumerate(names):
        slope = (totals[2 * i] - totals[2 * i + 1]) / (2 * step)
        assert slope == pytest.approx(found.strength * (value(at, name) - pull[name]), abs=0.01), name


def test_weights_that_chose_are_better_on_questions_not_seen(
    learned: tuple[ProxyTuner, Calibration], rows: list[dict[str, Any]]
) -> None:
    _, found = learned
    by_name = {each.name: each for each in found.systems}
    assert by_name["alpha 1"].gain > 0.05
    assert found.better


def test_options_of_one_token_and_of_several_in_one_file(api_base: Bases, pairs: Pairs) -> None:
    """Each is asked as `choose` would; the loss of both is over the options of a question."""
    base = api_base(300)
    tuner = ProxyTuner(base, pairs("same"))
    several = asked(1)[0]
    one: dict[str, Any] = {"question": "Which number?", "choices": ["one", "two", "three"], "answer": 1}
    documents = []
    for row, way in ((several, "options"), (one, "choice")):
        question = question_of(base, tuner.pairs, task_of(row), Rule())
        assert question.way == way
        documents.append(wait(documents_of(base, tuner.pairs, tuner.equation, question, Rule())))
    assert [document.usage.api_calls for document in documents] == [3, 1]
    made = choices_of([each.options for each in documents], PLAIN_SPREAD, "backoff", tuner.pairs)
    at = np.array([0.4, 0.9, 0.2, -0.3, 0.2])
    equation = Equation().with_weights(Weights(0.4, (0.9,), (0.2,), -0.3, 0.2))
    for row, loss, plain in zip((several, one), made.losses(at), made.plain[:, ALPHAS.index(1.0)], strict=True):
        task = task_of(row)
        learned, alpha = wait(choose(base, tuner.pairs, task.prompt, task.options, [equation, Equation()]))
        assert loss == pytest.approx(-learned.log_p[row["answer"]], abs=1e-4)
        assert plain == pytest.approx(-alpha.log_p[row["answer"]], abs=1e-4)


def test_the_numbers_of_the_table_are_those_of_the_weights() -> None:
    learner = Learner(lambda _: table(), (True,), learns_tail=False, learns_rest=True)
    fitted = learner.learn(list(range(10)))
    weights = weights_of(fitted, (True,), None)
    assert (weights.tail, weights.rest) == (fitted.weights[3], fitted.weights[4])


def test_a_base_that_scores_nothing_says_so_before_anything_is_sent(api_base: Bases, pairs: Pairs) -> None:
    base = api_base(dialect="openai")
    assert not base.abilities.scores
    same_start = [
        {"prompt": "Which?", "choices": ["New York", "New Haven", "Newark"], "answer": 0, "id": i} for i in range(9)
    ]
    with pytest.raises(InputError, match="9 of the rows cannot be used") as caught:
        calibrate(ProxyTuner(base, pairs("same")), same_start)
    assert "27 requests for the options of these 9 questions" in caught.value.hint
    assert "scores no given text" in caught.value.hint


def test_the_command_writes_weights_for_options(
    run: Callable[..., tuple[int, str, str]], models: dict[str, str], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    dev, output = tmp_path / "dev.jsonl", tmp_path / "weights.json"
    dev.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, err = run(
        *("calibrate", str(dev), "-o", str(output), "--normalise", "tokens", "--no-learn-tail"),
        *("--local", "--base", models["base"], "--top-logprobs", "5", "--device", "cpu"),
        *("--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"]),
    )
    assert status == 0, err
    assert "At most 180 requests (each option is scored in one request)" in err
    assert "Learned from 60 questions" in out
    assert "w_rest" in out
    assert "-log p of the right options among all" in " ".join(out.split())
    assert json.loads(output.read_text())["found"]["kind"] == "choice"
