"""What this machine does for a draft, against bare forward passes over the same text: `blackbox-proxy bench --near`.

No API and no network: positions of a given text, each with its candidates, are scored and weighed as decoding does it,
and in turn the bare models read what the local tokenizer makes of the same text, with a cache: as transformers runs
them, and with their weights laid out as ours are (models/frozen.py). The figures are ratios, so they hold on a busy
machine as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from blackbox_proxy.decoding import rows
from blackbox_proxy.decoding.rows import Weigher, opened
from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.models.frozen import freeze, thawed
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.models.packed import Reader
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.screen.tables import Table
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Position

SHAPES = {"0.8M": (128, 4, 4, 2, 256), "10M": (256, 8, 4, 2, 768), "100M": (768, 12, 12, 4, 2048)}
"""Name -> hidden size, layers, heads, key-value heads, inner size: about so many parameters without the embeddings."""

LENGTHS = (1, 8, 32)
_ROUNDS = 48  # positions of a measurement, at least
_FEWEST = 5  # drafts of one
_DRIFT = 0.05  # how far the expert is from the anti-expert, of the spread of each weight
_FALL = 1.5  # the candidates' log q falls by so much with the logarithm of their rank
_TEXT = ("loop.py", "verify.py", "pace.py", "rows.py")  # of this package's own, English and code


@dataclass(frozen=True, slots=True)
class NearMeasured:
    """One row of the table. near, bare: seconds a draft of n, medians. frozen: as bare, with weights laid out. nodes:
    read a position and model beyond the draft's own path. parts: name -> share of the near side's time.
    """

    n: int
    near: float
    bare: float
    frozen: float
    nodes: float
    parts: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.near / self.bare


def random_models(shape: str, vocabulary: Vocabulary) -> tuple[CausalLM, CausalLM]:
    """An expert and its anti-expert with random weights. Raises InputError for a shape that is not in `SHAPES`."""
    return random_model(shape, vocabulary, _DRIFT), random_model(shape, vocabulary)


def random_model(shape: str, vocabulary: Vocabulary, drift: float = 0.0, spread: float | None = None) -> CausalLM:
    """A model with random weights, `drift` of each weight's spread away from what the shape always gets. spread: of its
    logits, nats (about 3 is as sure of itself as a trained model). Raises InputError.
    """
    if shape not in SHAPES:
        raise InputError(f"unknown shape {shape!r}", hint=f"Use one of {', '.join(SHAPES)}.")
    hidden, layers, heads, shared, inner = SHAPES[shape]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=shared,
            intermediate_size=inner,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            if drift and weight.dim() > 1:
                weight.add_(drift * weight.std() * torch.randn_like(weight))
        if spread is not None:
            model.model.norm.weight.mul_(spread / (float(model.lm_head.weight.std()) * hidden**0.5))
    freeze(model)
    return CausalLM(model, vocabulary, f"random, {shape}")


def own_text() -> str:
    """A text to score that is always there."""
    return "\n".join((Path(rows.__file__).parent / name).read_text(encoding="utf-8") for name in _TEXT)


def positions_of(text: str, base: Vocabulary, candidates: int, count: int) -> list[Position]:
    """The text's first tokens under the base, each as the likeliest of so many candidates of the same text."""
    ids = base.encode([text.encode()])[0][:count]
    others = list(dict.fromkeys(ids))
    rng = np.random.default_rng(0)
    log_q = -_FALL * np.log(np.arange(1, candidates + 1)) - 1.0
    found = []
    for index in ids:
        some = [int(i) for i in rng.choice(others, min(2 * candidates, len(others)), replace=False) if i != index]
        shown = [base.token_of(i) for i in [index, *some[: candidates - 1]]]
        found.append(Position(shown[0], float(log_q[0]), shown, log_q[: len(shown)]))
    return found


@dataclass
class _Clock:
    """Seconds inside what is watched, by name."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def watching(self, owner: Any, name: str, part: str) -> Iterator[None]:
        call = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                self.spent[part] = self.spent.get(part, 0.0) + time.perf_counter() - start

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, call)


def measure_near(
    expert: CausalLM, antiexpert: CausalLM, base: Vocabulary, n: int, *, candidates: int = 20, exact: bool = False
) -> NearMeasured:
    """Drafts of n tokens of `own_text`, each scored and weighed, and in turn read by the bare models."""
    frozen = [expert.model, antiexpert.model]
    models = [[thawed(model) for model in frozen], frozen]
    text = own_text()
    drafts = max(_FEWEST, _ROUNDS // n)
    positions = positions_of(text, base, candidates, n * (drafts + 1))
    local = expert.vocabulary.encode([text.encode()])[0]
    ends = np.cumsum([len(position.token.bytes or b"") for position in positions])
    pair = TransformersPair(expert, antiexpert, exact=exact)
    weigher = Weigher([pair], (Equation((1.0,)),))
    caches = [[DynamicCache(), DynamicCache()] for _ in models]
    clock, near, bare = _Clock(), list[float](), [list[float]() for _ in models]
    read = 0
    with (
        opened([pair], text[:1], base) as sessions,
        clock.watching(Reader, "read", "forwards"),
        clock.watching(type(sessions[0]), "score", "score"),
        clock.watching(type(sessions[0]), "refine", "refine"),
        clock.watching(Weigher, "weigh", "weigh"),
    ):
        for start in range(0, n * (drafts + 1), n):
            issued = [position.token for position in positions[:start]]
            begin = time.perf_counter()
            for scored in weigher.score(sessions, issued, positions[start : start + n]):
                scored.under(0)
            near.append(time.perf_counter() - begin)
            if start == 0:
                clock.spent.clear()  # what is made once and kept
            upto = max(read + 1, len(expert.vocabulary.encode([text.encode()[: ends[start + n - 1]]])[0]))
            for one, own, seconds in zip(models, caches, bare, strict=True):
                seconds.append(_bare(one, own, local[read:upto]))
            read = upto
        nodes = getattr(sessions[0], "nodes", 0) / 2 / (start + n)
    ours, plain, laid = (statistics.median(seconds[1:]) for seconds in (near, *bare))
    return NearMeasured(n, ours, plain, laid, nodes, _parts(clock, sum(near[1:])))


@torch.inference_mode()
def _bare(models: Sequence[Any], caches: Sequence[Any], ids: Sequence[int]) -> float:
    """Seconds of a forward pass of each model over these tokens, behind what its cache has."""
    begin = time.perf_counter()
    for model, cache in zip(models, caches, strict=True):
        model(input_ids=torch.tensor([list(ids)]), past_key_values=cache, use_cache=True)
    return time.perf_counter() - begin


def _parts(clock: _Clock, whole: float) -> dict[str, float]:
    """Shares of the near side's time; forwards happen inside scoring and refining, and are taken out of them."""
    spent = {name: clock.spent.get(name, 0.0) for name in ("forwards", "score", "refine", "weigh")}
    inside = spent["score"] + spent["refine"]
    work = max(inside - spent["forwards"], 0.0)
    by = {"score": spent["score"] / inside, "refine": spent["refine"] / inside} if inside else {"score": 0, "refine": 0}
    return {
        "forwards": spent["forwards"] / whole,
        "estimates": work * by["score"] / whole,
        "sums": work * by["refine"] / whole,
        "weigh": spent["weigh"] / whole,
        "rest": max(1.0 - (inside + spent["weigh"]) / whole, 0.0),
    }


def run_near(
    console: Console,
    models: tuple[CausalLM, CausalLM],
    base: Vocabulary,
    *,
    lengths: Sequence[int] = LENGTHS,
    candidates: int = 20,
    exact: bool = False,
) -> list[NearMeasured]:
    """Measure and print one row for each draft length."""
    kind = "the same tokenizer" if base.spells_like(models[0].vocabulary) else "another tokenizer"
    table = Table(
        title=f"{models[0].name}, {len(models[0].vocabulary)} words; base with {len(base)} words, {kind}, "
        f"{candidates} candidates",
        box=SIMPLE_HEAD,
    )
    for column in (
        "draft",
        "ratio",
        "near ms",
        "bare ms",
        "laid out",
        "nodes",
        "forwards",
        "estimates",
        "sums",
        "weigh",
        "rest",
    ):
        table.add_column(column, justify="right")
    found = []
    for n in lengths:
        measured = measure_near(*models, base, n, candidates=candidates, exact=exact)
        found.append(measured)
        shares = [f"{100 * measured.parts[name]:.0f} %" for name in measured.parts]
        times = [f"{1e3 * seconds:.1f}" for seconds in (measured.near, measured.bare, measured.frozen)]
        table.add_row(str(n), f"{measured.ratio:.2f}", *times, f"{measured.nodes:.2f}", *shares)
    console.print(table)
    return found
