"""The fit of a pair: figures that are known by construction, and one request a prompt, counted by the server."""

from __future__ import annotations

import json
import math
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import words

from blackbox_proxy import Prices, ProxyTuner, TransformersBase, TransformersPair, cli, measure_fit
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.decoding.weighed import Weighed
from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.fit import Fit, _look, _verdicts
from blackbox_proxy.maths.equation import combine
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import How, Scores, Token

PROMPTS = ["The mayor of", "New York", *(words(seed, 4) for seed in range(2))]


def _requests(url: str) -> int:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=10) as answer:
        return int(json.load(answer)["requests"])


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_a_request_a_prompt_says_how_well_a_pair_fits(
    kind: str,
    api_base: Callable[..., OpenAIBase],
    hosted: Callable[[int], str],
    pairs: Callable[[str], TransformersPair],
) -> None:
    base, pair = api_base(), pairs(kind)
    before = _requests(hosted(5))
    fit = measure_fit(
        ProxyTuner(base, pair), PROMPTS, max_tokens=8, tokens=1000, texts=100, prices=Prices(1.0, 1.0, 2.0)
    )
    assert _requests(hosted(5)) - before == fit.usage.api_calls == fit.texts == len(PROMPTS)
    assert fit.same_spelling is (kind == "same")
    assert fit.vocabulary_overlap is not None
    if kind == "same":
        assert (fit.vocabulary_overlap, fit.candidates_overlap, fit.merging, fit.neutral) == (1.0, 1.0, 0.0, 0.0)
    else:
        assert base.vocabulary is not None
        spelled = {s for s in base.vocabulary.spelling if s}
        assert fit.vocabulary_overlap == pytest.approx(len(spelled & set(pair.vocabulary.spelling)) / len(spelled))
        assert 0.0 < fit.candidates_overlap < 1.0
        assert fit.merging_positions >= fit.merging > 0.0
    assert fit.top_k == 5
    # The base's own text is that of alpha 0.
    own = [ProxyTuner(base, pair, 0.0).generate(prompt, max_tokens=8) for prompt in PROMPTS]
    steps = [step for generation in own for step in generation.steps if len(step.candidates)]
    assert fit.tokens == len(steps)
    assert fit.covered_mass == pytest.approx(np.mean([step.covered_mass for step in steps]))
    # Up to and with its first change, the tuned text goes the same way.
    one = measure_fit(ProxyTuner(base, pair), PROMPTS[:1], max_tokens=1)
    (step,) = ProxyTuner(base, pair).generate(PROMPTS[0], max_tokens=1).steps
    assert one.disagreement == float(step.changed)
    assert fit.disagreement_interval[0] < fit.disagreement < fit.disagreement_interval[1]
    forecast = fit.forecast
    assert forecast.calls_per_token == pytest.approx(1 / forecast.length + fit.disagreement * (1 - 1 / forecast.length))
    assert forecast.usage.api_calls == pytest.approx(100 * forecast.length * forecast.calls_per_token, abs=1)
    assert forecast.cost == forecast.usage.prompt_tokens + 2 * forecast.usage.completion_tokens


def test_the_disagreement_is_that_of_the_tuned_model_at_the_base_s_own_places(
    models: dict[str, str], pairs: Callable[[str], TransformersPair]
) -> None:
    base = TransformersBase(models["base"], device="cpu")
    for alpha in (0.5, 1.0):
        tuner = ProxyTuner(base, pairs("same"), alpha)
        fit = measure_fit(tuner, PROMPTS[:3], max_tokens=8, tokens=1000)
        changed = total = 0
        for prompt in PROMPTS[:3]:
            own = ProxyTuner(base, pairs("same"), 0.0).generate(prompt, max_tokens=8)
            for place in range(len(own.steps)):
                ids = base.prompt_ids(prompt) + tuple(s.token_id or 0 for s in own.steps[:place])
                rows = [lm.forward(_batch(ids), None)[0, -1].numpy() for lm in (base._lm, *_both(pairs("same")))]
                width = min(len(row) for row in rows)
                q, e, a = (row[:width].astype(np.float64) for row in rows)
                changed += int(np.argmax(q + alpha * (e - a))) != int(np.argmax(q))
                total += 1
        assert (fit.tokens, round(fit.disagreement * total)) == (total, changed)
        assert fit.covered_mass == pytest.approx(1.0)


def test_the_tuners_own_equation_is_measured(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    """With a tail of no tokens p moves as far from q as without a tail, and less far than with one of 32."""

    def divergence(**equation: Any) -> float:
        tuner = ProxyTuner(api_base(), pairs("same"), 2.0, **equation)
        return measure_fit(tuner, PROMPTS[:2], max_tokens=6).divergence

    assert divergence(tail_size=0) == divergence(tail="truncate")
    assert divergence(tail_size=0) != pytest.approx(divergence(), rel=1e-3)
    assert divergence(tail_size=32) == divergence()


def _batch(ids: tuple[int, ...]) -> Any:
    import torch

    return torch.tensor([ids])


def _both(pair: TransformersPair) -> list[Any]:
    return [lm for lm, _ in pair.models]


def test_a_pair_of_one_model_moves_nothing(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    expert = pairs("digits").models[0][0]
    fit = measure_fit(ProxyTuner(api_base(), TransformersPair(expert, expert)), PROMPTS[:2], max_tokens=8)
    assert (fit.disagreement, fit.fits) == (0.0, False)
    assert fit.divergence == pytest.approx(0.0, abs=1e-12)
    assert any("hardly moves" in verdict.text for verdict in fit.verdicts)
    assert fit.forecast.calls_per_token == pytest.approx(1 / fit.forecast.length)


# -- one position, by hand --------------------------------------------------------------------------------------------


def _position(columns: list[tuple[bytes, float, float, float, How]], shown: int, alpha: float) -> Weighed:
    """Candidates with q, E and A, weighed."""
    spelled, *probabilities, how = zip(*columns, strict=True)
    q, e, a = (np.log(np.array(column)) for column in probabilities)
    offset = np.where([kind == "neutral" for kind in how], 0.0, e - a)
    tokens = tuple(Token(bytes=text, text=text.decode()) for text in spelled)
    return Weighed(tokens, shown, q, combine(q, [offset], [alpha]), (Scores(e, a, offset, how),), 0.95)


def _vocabulary(*spelled: bytes) -> Vocabulary:
    """A vocabulary that cuts text at its longest tokens."""

    def encode(texts: list[str]) -> list[list[int]]:
        found = []
        for text in texts:
            rest, ids = text.encode(), []
            while rest:
                best = max((s for s in spelled if rest.startswith(s)), key=len)
                ids.append(spelled.index(best))
                rest = rest[len(best) :]
            found.append(ids)
        return found

    return Vocabulary(
        list(spelled), special={}, end_ids=[], encode=encode, pretokens=lambda _: [0], render=lambda *_: []
    )


def test_candidates_that_begin_with_one_local_token_merge() -> None:
    local = _vocabulary(b" ", b" New", b" York", b"a", b"b", b"N", b"e", b"w")
    columns: list[tuple[bytes, float, float, float, How]] = [
        (b" New York", 0.4, 0.1, 0.1, "exact"),
        (b" New", 0.3, 0.6, 0.2, "exact"),
        (b"a", 0.2, 0.1, 0.1, "prefix"),
        (b"b", 0.05, 0.1, 0.9, "neutral"),
        (b"ab", 0.01, 0.1, 0.1, "exact"),
    ]
    look = _look(_position(columns, 4, 1.0), local)
    assert (look.shown, look.known, look.merging, look.neutral, look.approximate) == (4, 3, 2, 1, 1)
    assert (look.changed, look.agreed) == (True, False), "0.3 · 0.6 / 0.2 is more than 0.4"
    assert _look(_position(columns, 4, 0.0), local).changed is False
    assert _look(_position(columns, 4, 1.0), None).merging == 0
    p = np.array([0.4, 0.9, 0.2, 0.05, 0.01]) / 1.56
    q = np.array([0.4, 0.3, 0.2, 0.05, 0.01]) / 0.96
    assert look.divergence == pytest.approx(float(np.sum(p * np.log(p / q))))


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({}, "good", "would change 20% of the base's tokens"),
        ({"disagreement": 0.001}, "bad", "hardly moves"),
        ({"disagreement": 0.7}, "bad", "little of the base is left"),
        ({"covered_mass": 0.7}, "note", "70% of its probability"),
        ({"covered_mass": 0.3}, "bad", "30% of its probability"),
        ({"neutral": 0.2}, "bad", "knows nothing of 20%"),
        ({"merging_positions": 0.6}, "note", "At 60% of the positions"),
        ({"expert_agreement": 0.1}, "bad", "very different models"),
        ({"tokens": 20}, "note", "Only 20 tokens"),
        ({"same_spelling": True}, "good", "same vocabulary"),
    ],
)
def test_verdicts_say_what_figures_mean(change: dict[str, Any], level: str, words: str, plain_fit: Fit) -> None:
    found = _verdicts(replace(plain_fit, **change), True)
    matching = [verdict for verdict in found if words in verdict.text]
    assert [verdict.level for verdict in matching] == [level]
    assert level == "good" or matching[0].hint
    others = [verdict for verdict in found if verdict not in matching]
    assert all(verdict.level == "good" for verdict in others)


@pytest.fixture
def plain_fit(api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]) -> Fit:
    """A real one, with figures that nothing speaks against."""
    fit = measure_fit(ProxyTuner(api_base(), pairs("digits")), PROMPTS[:1], max_tokens=2)
    figures: dict[str, Any] = {"disagreement": 0.2, "covered_mass": 0.97, "neutral": 0.0, "merging_positions": 0.1}
    return replace(fit, **figures, expert_agreement=0.7, tokens=300)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_and_what_it_refuses(
    hosted: Callable[[int], str],
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    prompts = tmp_path / "tasks.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p, "answer": "x"}) + "\n" for p in PROMPTS))
    options = ["--base", "big", "--base-url", hosted(5), "--dialect", "vllm", "--tokenizer", models["base"]]
    options += ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"]

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["blackbox-proxy", "fit", *arguments, *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    status, out, _ = call("-f", str(prompts), "--tokens", "40", "-n", "10", "--texts", "50", "--prices", "1,1,2")
    assert status in (0, 1)
    assert "of the base's tokens are tokens of the pair" in out
    assert "Expected for 50 texts" in out
    assert "cost" in out
    status, out, _ = call("The mayor of", "--json", "-n", "5", "--alpha", "0.5")
    record = json.loads(out)
    assert (record["alpha"], record["texts"], status) == (0.5, 1, 0 if record["fits"] else 1)
    for arguments in (
        [],
        ["a", "-f", str(prompts)],
        ["-f", "nowhere.txt"],
        ["a", "--tokens", "0"],
        ["a", "--texts", "0"],
    ):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert "Hint:" in err


def test_nothing_to_look_at(api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]) -> None:
    tuner = ProxyTuner(api_base(), pairs("digits"))
    for prompts in ([], ["x " * 4000]):
        with pytest.raises(InputError) as caught:
            measure_fit(tuner, prompts)
        assert caught.value.hint
    assert math.isfinite(measure_fit(tuner, ["a"], max_tokens=1).divergence)
