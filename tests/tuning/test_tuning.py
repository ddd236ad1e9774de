"""Training the expert: gradients against finite differences, what each loss makes better, going on, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, tune
from blackbox_proxy.aligning.alignment import Alignment
from blackbox_proxy.aligning.crossing import Crossing
from blackbox_proxy.answers.scoring import ask_whole
from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.tasks import task_of
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.tuner import run as wait
from blackbox_proxy.tuning.examples import example_of
from blackbox_proxy.tuning.losses import combination_losses, masses, next_token_losses
from blackbox_proxy.tuning.spots import Spots, spots_of
from blackbox_proxy.tuning.train import CHECKPOINT, Recipe, Stepped, Trainer

ROWS = [{"prompt": f"The number {i} is", "text": " New York bakoli the."} for i in range(8)]


@pytest.fixture(scope="module")
def base(models: dict[str, str]) -> TransformersBase:
    return TransformersBase(models["base"], top_logprobs=5, device="cpu")


def looked(
    base: TransformersBase, models: dict[str, str], kind: str, row: dict[str, str] = ROWS[0]
) -> tuple[Any, Any, Spots]:
    assert base.vocabulary is not None
    lm = load_causal_lm(models[f"{kind}-antiexpert"], device="cpu")
    example = example_of(task_of(row), lm.vocabulary, lm.context)
    positions, _ = wait(ask_whole(base, example.prompt, example.text))
    return lm, example, spots_of(example, positions, Crossing(Alignment(lm.vocabulary, base.vocabulary)))


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_the_gradient_through_the_box_against_finite_differences(
    kind: str, base: TransformersBase, models: dict[str, str]
) -> None:
    lm, example, spots = looked(base, models, kind)
    assert len(spots) >= 3
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(example.ids), len(lm.vocabulary), dtype=torch.float64, generator=generator)
    untuned = masses(torch.randn(logits.shape, dtype=torch.float64, generator=generator), spots)
    logits.requires_grad_(True)
    loss = combination_losses(logits, spots, untuned, 0.7).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    at = torch.nonzero(gradient.abs() > 1e-3)[:12].tolist()
    assert len(at) == 12
    for row, index in at:
        values = []
        for away in (1e-5, -1e-5):
            moved = logits.detach().clone()
            moved[row, index] += away
            values.append(float(combination_losses(moved, spots, untuned, 0.7).sum()))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient[row, index]), abs=1e-6)


def test_with_one_vocabulary_the_loss_is_that_of_the_equation(base: TransformersBase, models: dict[str, str]) -> None:
    """-log p of the text's own tokens over the whole vocabulary, as `ProxyTuner` combines base and pair."""
    lm, example, spots = looked(base, models, "same")
    expert = load_causal_lm(models["same-expert"], device="cpu")
    with torch.inference_mode():
        e, a = (each.model(input_ids=torch.tensor([example.ids])).logits[0] for each in (expert, lm))
    a = a[:, : e.shape[1]]  # its rows beyond the vocabulary are no tokens
    found = combination_losses(e, spots, masses(a, spots), 0.5).numpy()
    pair = TransformersPair(models["same-expert"], models["same-antiexpert"], device="cpu")
    score = ProxyTuner(base, pair, 0.5, tail="truncate").score(example.prompt, example.text)
    assert len(found) == len(score.tokens)
    assert np.allclose(found, [-token.log_p for token in score.tokens], atol=1e-4)
    assert abs(score.log_p - score.log_q) > 0.01


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_every_token_of_the_small_model_is_learned_in_one_way(
    kind: str, base: TransformersBase, models: dict[str, str]
) -> None:
    """At a place of the base by the combination; elsewhere, the end included, by its own loss."""
    lm, example, spots = looked(base, models, kind, {"prompt": "It was", "text": " 12 March 1989 in New York"})
    logits = torch.randn(len(example.ids), len(lm.vocabulary), generator=torch.Generator().manual_seed(0))
    alone, besides = next_token_losses(logits, example), next_token_losses(logits, example, spots)
    assert (len(alone), len(besides)) == (len(example.ids) - example.given, len(alone) - len(spots))
    assert besides[-1] == alone[-1], "the end"
    assert (len(besides) == 1) is (kind == "same"), "with one vocabulary nothing but the end"
    logits[torch.from_numpy(spots.rows)] += torch.randn(len(spots), len(lm.vocabulary))
    assert torch.equal(next_token_losses(logits, example, spots), besides)


def test_an_untuned_expert_has_the_loss_of_the_base(base: TransformersBase, models: dict[str, str]) -> None:
    lm, example, spots = looked(base, models, "digits")
    with torch.inference_mode():
        logits = lm.model(input_ids=torch.tensor([example.ids])).logits[0]
    found = combination_losses(logits, spots, masses(logits, spots), 1.0).numpy()
    assert np.allclose(np.logaddexp.reduce(spots.log_q, axis=1), 0.0, atol=1e-4), "candidates, and everything else"
    assert np.allclose(found, -spots.log_q[:, 0], atol=1e-4)


@pytest.mark.parametrize(("through", "kind"), [(False, "same"), (True, "digits")])
def test_training_makes_the_texts_likelier_under_the_combination(
    through: bool, kind: str, base: TransformersBase, models: dict[str, str], tmp_path: Path
) -> None:
    losses: list[float] = []
    recipe = Recipe(steps=16, batch=2, rate=5e-3, rank=4, through=through)
    tuned = tune(
        models[f"{kind}-antiexpert"],
        ROWS,
        tmp_path / "expert",
        recipe=recipe,
        base=base if through else None,
        device="cpu",
        observe=lambda stepped: losses.append(stepped.loss),
    )
    assert tuned is not None
    assert losses[-1] < losses[0] - 0.5
    assert (tuned.examples, tuned.resumed, (tmp_path / "expert" / CHECKPOINT).exists()) == (8, 0, False)
    assert (tuned.usage.api_calls > 0, tuned.spots > 0) == (through, through)
    card = (tmp_path / "expert" / "README.md").read_text()
    assert "LoRA adapter" in card
    pair = TransformersPair(tmp_path / "expert", models[f"{kind}-antiexpert"], device="cpu")
    plain = ProxyTuner(base, pair, 0.0).score(ROWS[0]["prompt"], ROWS[0]["text"])
    assert ProxyTuner(base, pair).score(ROWS[0]["prompt"], ROWS[0]["text"]).log_p > plain.log_p + 1.0
    with pytest.raises(InputError, match="there already"):
        tune(models[f"{kind}-antiexpert"], ROWS, tmp_path / "expert", recipe=Recipe(steps=1))


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(models: dict[str, str], tmp_path: Path) -> None:
    def weights(stop: int | None, folder: Path) -> dict[str, torch.Tensor]:
        folder.mkdir()
        recipe, seen = Recipe(steps=6, batch=2, rank=2), list[int]()

        def told(stepped: Stepped) -> None:
            seen.append(stepped.step)
            if stepped.step == stop:
                raise KeyboardInterrupt

        for _ in range(1 if stop is None else 2):
            lm = load_causal_lm(models["same-antiexpert"], device="cpu")
            examples = [example_of(task_of(row), lm.vocabulary, lm.context) for row in ROWS]
            trainer = Trainer(lm, examples, recipe)
            resumed = trainer.go_on(folder)
            try:
                trainer.run(folder, 2, told)
            except KeyboardInterrupt:
                stop = None
        assert resumed == (0 if len(seen) == 6 else 2)
        return {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}

    whole, stopped = weights(None, tmp_path / "whole"), weights(3, tmp_path / "stopped")
    assert all(torch.allclose(whole[name], stopped[name], atol=1e-6) for name in whole)
    lm = load_causal_lm(models["same-antiexpert"], device="cpu")
    other = Trainer(lm, [example_of(task_of(ROWS[0]), lm.vocabulary, lm.context)], Recipe(steps=6, batch=2, rank=2))
    with pytest.raises(InputError, match="other settings"):
        other.go_on(tmp_path / "stopped")


def test_what_cannot_be_trained_is_refused(base: TransformersBase, models: dict[str, str], tmp_path: Path) -> None:
    small = models["same-antiexpert"]
    choice = {"question": "Which?", "choices": ["one", "two"], "answer": 0}
    for rows, how, said in (
        ([choice], {}, "nothing to write"),
        (ROWS, {"recipe": Recipe(through=True)}, "no base"),
        ([{"text": "ba " * 600}], {}, "window"),
    ):
        with pytest.raises(InputError, match=said):
            tune(small, rows, tmp_path / "expert", device="cpu", **how)
    for wrong in ({"steps": 0}, {"rate": 0.0}, {"through": True, "alpha": 0.0}):
        with pytest.raises(InputError):
            Recipe(**wrong)
    nothing = tune(
        small, ROWS, tmp_path / "expert", recipe=Recipe(through=True), base=base, device="cpu", ready=lambda _: False
    )
    assert nothing is None


def test_the_command(run: Callable[..., tuple[int, str, str]], models: dict[str, str], tmp_path: Path) -> None:
    rows, out = tmp_path / "train.jsonl", tmp_path / "expert"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    shared = [models["digits-antiexpert"], str(rows), "-o", str(out), "--steps", "2", "--device", "cpu"]
    through = ["--through", "--local", "--base", models["base"], "--top-logprobs", "5"]
    status, said, err = run("tune", *shared, *through, "--dry-run")
    assert (status, said) == (0, "")
    assert "8 requests" in err
    status, said, err = run("tune", *shared, *through)
    assert status == 0, err
    assert "8 texts" in said
    assert "places of the base" in said
    assert (out / "adapter_model.safetensors").exists()
    status, _, err = run("tune", *shared)
    assert (status, "there already" in err) == (2, True)
    status, said, _ = run("tune", *shared, "--overwrite")
    assert (status, "2 steps" in said) == (0, True)
