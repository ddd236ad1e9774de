"""LoRA (Hu et al. 2021, arXiv 2106.09685) by peft, one optimiser step at a time, from a checkpoint on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from blackbox_proxy.errors import InputError
from blackbox_proxy.models.frozen import thawed
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.tuning.examples import Example, in_order
from blackbox_proxy.tuning.losses import combination_losses, masses, next_token_losses
from blackbox_proxy.tuning.spots import Spots

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How it is trained. steps: of the optimiser, with `batch` examples each; rate: AdamW's, after a short warm-up and
    then down to a tenth on half a cosine; rank: of the adapter, which counts for 2; through: the combination's loss,
    with this alpha, wherever the base has a place. Raises InputError.
    """

    steps: int = 200
    batch: int = 4
    rate: float = 5e-4
    rank: int = 16
    through: bool = False
    alpha: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}", hint="Leave it out.")
        if not (math.isfinite(self.rate) and self.rate > 0.0):
            raise InputError(f"the rate must be above 0, not {self.rate}", hint="Leave it out for 0.0005.")
        if not math.isfinite(self.alpha) or (self.through and self.alpha == 0.0):
            raise InputError("through the box, alpha is a number other than 0", hint="Leave it out for 1.")


@dataclass(frozen=True, slots=True)
class Stepped:
    """How far it is; loss: of the last step, nats for each token or place."""

    step: int
    steps: int
    loss: float


class Trainer:
    """A small model with an adapter in training. spots: of each example, where it is trained through the box."""

    def __init__(
        self, lm: CausalLM, examples: Sequence[Example], recipe: Recipe, spots: Sequence[Spots] | None = None
    ) -> None:
        from peft import LoraConfig, get_peft_model

        assert recipe.through == (spots is not None)
        self._examples = examples
        self._spots = spots
        self._recipe = recipe
        self._device = lm.device
        self._size = lm.size
        model = thawed(lm.model)
        # What the untuned model says does not change: it is read once.
        self._untuned = [] if spots is None else self._read(model, spots)
        torch.manual_seed(recipe.seed)
        config = LoraConfig(
            r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        with warnings.catch_warnings():  # peft asks transformers by a name that is on its way out
            warnings.simplefilter("ignore", FutureWarning)
            self.model: Any = get_peft_model(model, config)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(self._trained, lr=recipe.rate, weight_decay=0.0)
        self._step = 0

    def _read(self, model: Any, spots: Sequence[Spots]) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [
                masses(self._logits(model, example), own).clone()
                for example, own in zip(self._examples, spots, strict=True)
            ]

    def _logits(self, model: Any, example: Example) -> torch.Tensor:
        """Of the tokens that there are, (n, V): a checkpoint may have rows beyond them."""
        ids = torch.tensor([example.ids], device=self._device)
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
        return logits[:, : self._size]

    def run(self, folder: Path | None, every: int, told: Callable[[Stepped], None]) -> float:
        """All steps that are left; a checkpoint after `every` of them, in `folder`. The mean loss of the last tenth."""
        recipe, last = self._recipe, list[float]()
        self.model.train()
        while self._step < recipe.steps:
            loss = self._one()
            last.append(loss)
            self._step += 1
            told(Stepped(self._step, recipe.steps, loss))
            if folder is not None and (self._step % every == 0 or self._step == recipe.steps):
                self._keep(folder)
        self.model.eval()
        tenth = last[-max(1, recipe.steps // 10) :]
        return sum(tenth) / len(tenth) if tenth else math.nan

    def _one(self) -> float:
        recipe = self._recipe
        wave = 0.55 + 0.45 * math.cos(math.pi * self._step / recipe.steps)
        warm = min(1.0, (self._step + 1) / (0.05 * recipe.steps + 1))
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.rate * warm * wave
        losses = [self._losses(i) for i in self._batch()]
        every = torch.cat(losses)
        loss = every.mean() if len(every) else torch.zeros((), device=self._device)
        if len(every):
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _batch(self) -> list[int]:
        """The examples of this step: round after round, each in an order of its own."""
        count, found = len(self._examples), []
        for place in range(self._step * self._recipe.batch, (self._step + 1) * self._recipe.batch):
            epoch, within = divmod(place, count)
            found.append(in_order(count, self._recipe.seed * 1000003 + epoch)[within])
        return found

    def _losses(self, i: int) -> torch.Tensor:
        example = self._examples[i]
        logits = self._logits(self.model, example)
        if self._spots is None:
            return next_token_losses(logits, example)
        spots = self._spots[i]
        combined = combination_losses(logits, spots, self._untuned[i], self._recipe.alpha)
        return torch.cat([combined, next_token_losses(logits, example, spots)])

    # -- going on -------------------------------------------------------------------------------------------------

    def _keep(self, folder: Path) -> None:
        state = {
            "recipe": asdict(self._recipe),
            "examples": len(self._examples),
            "step": self._step,
            "adapter": {name: p.detach().cpu() for name, p in self.model.named_parameters() if p.requires_grad},
            "optimiser": self._optimiser.state_dict(),
        }
        written = folder / f"{CHECKPOINT}.part"
        torch.save(state, written)
        written.replace(folder / CHECKPOINT)

    def go_on(self, folder: Path) -> int:
        """Take up a checkpoint, if there is one; how many steps it has. Raises InputError for another recipe's."""
        path = folder / CHECKPOINT
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self._device, weights_only=True)
        if state["recipe"] != asdict(self._recipe) or state["examples"] != len(self._examples):
            raise InputError(
                f"{folder} holds a training with other settings or rows", hint="Name another folder, or --overwrite."
            )
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["adapter"].items():
                own[name].copy_(value)
        self._optimiser.load_state_dict(state["optimiser"])
        self._step = int(state["step"])
        return self._step
