"""What the experiments on real models share: where the models are, an expert that is tuned once and kept, and the
comparison of base, expert and proxy: weights learned on some rows, everything measured on others.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: busy machines make spinning threads slow
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from platformdirs import user_cache_path

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair
from blackbox_proxy.calibration.run import Told, calibrate
from blackbox_proxy.cli.app import quiet_transformers
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.evaluation.run import Evaluation, Progress, evaluate
from blackbox_proxy.maths.weights import Weights
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.report import calibration
from blackbox_proxy.report import evaluation as report
from blackbox_proxy.tuning.run import tune
from blackbox_proxy.tuning.train import Recipe, Stepped

MODELS = "BLACKBOX_PROXY_REAL_MODELS"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chain:
    """What an experiment runs with. base, small: folders or hub ids; cache: where experts are kept; results: where the
    JSON is written.
    """

    base: str
    small: str
    cache: Path
    results: Path
    seed: int
    threads: int


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every experiment has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", type=Path, help=f"what fetch.py wrote; by default ${MODELS}, or the user's cache")
    made.add_argument("--base", help="another base: folder or hub id")
    made.add_argument("--small", help="another small model, to be tuned and to be the anti-expert: folder or hub id")
    made.add_argument("--cache", type=Path, default=cache(), help="where experts are kept")
    made.add_argument("--results", type=Path, help="the JSON; by default in the cache folder")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=1, help="of torch")
    return made


def cache() -> Path:
    return user_cache_path("blackbox-proxy") / "real-models"


def models_folder(given: Path | None) -> Path:
    """Where fetch.py puts the models, and the experiments look for them."""
    return given or Path(os.environ.get(MODELS) or cache())


def chain(given: argparse.Namespace, name: str) -> Chain:
    """The models that were named, or those that fetch.py wrote. Raises InputError where there are none."""
    folder = models_folder(given.models)
    found = [given.base or folder / "gemma", given.small or folder / "smollm2"]
    for path in found:
        if isinstance(path, Path) and not (path / "config.json").is_file():
            raise InputError(f"there is no model in {path}", hint="python examples/real_models/fetch.py gets both.")
    torch.set_num_threads(given.threads)
    quiet_transformers()
    results = given.results or given.cache / f"{name}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    return Chain(str(found[0]), str(found[1]), given.cache, results, given.seed, given.threads)


# -- the expert -------------------------------------------------------------------------------------------------------


def expert(chain: Chain, name: str, rows: Rows, recipe: Recipe) -> str:
    """The small model tuned on these rows: made once, and taken up again where it was stopped."""
    what = json.dumps([chain.small, list(map(dict, rows)), asdict(recipe)], sort_keys=True)
    folder = chain.cache / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    if (folder / "README.md").is_file():
        say(f"expert: {folder}")
        return str(folder)
    begin, before = time.monotonic(), time.process_time()

    def told(step: Stepped) -> None:
        if step.step % 10 == 0 or step.step == step.steps:
            say(f"tuning: step {step.step} of {step.steps}, loss {step.loss:.3f}, {time.monotonic() - begin:.0f} s")

    found = tune(chain.small, rows, folder, recipe=recipe, dtype=_quick(), device="cpu", observe=told)
    assert found is not None
    spent = {"seconds": time.monotonic() - begin, "processor_seconds": time.process_time() - before}
    facts = {**spent, "resumed": found.resumed, "loss": found.loss, "texts": found.examples, "tokens": found.tokens}
    (folder / "tuned.json").write_text(json.dumps(facts | asdict(recipe), indent=1) + "\n", encoding="utf-8")
    return str(folder)


def _quick() -> str:
    """The numbers that this processor multiplies faster: it needs AVX-512 for bfloat16, which is five times as slow
    without.
    """
    return "bfloat16" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "float32"


# -- the comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What one table is made of. develop: rows that weights are learned from; test: rows that are measured, none of
    them among those; shown: how many candidates the base shows (0: all), each a part of the table.
    """

    name: str
    develop: Rows
    test: Rows
    shown: Sequence[int] = (5,)
    max_tokens: int = 32


def compare(chain: Chain, expert: str, parts: Sequence[Part], alphas: Sequence[float]) -> list[dict[str, Any]]:
    """Every part with every number of candidates: weights learned, everything measured, printed, and kept as JSON."""
    base, pair = load_causal_lm(chain.base, device="cpu"), TransformersPair(expert, chain.small, device="cpu")
    found: list[dict[str, Any]] = []
    for part in parts:
        weights: Weights | None = None
        for shown in part.shown:
            tuner = ProxyTuner(TransformersBase(base, top_logprobs=shown or None), pair)
            before, title = time.process_time(), f"{part.name}, {candidates(shown)}"
            learned = None
            if shown:  # a whole vocabulary at each place is too much to learn from: the weights before it serve
                learned = calibrate(tuner, part.develop, concurrency=1, observe=partial(step, f"{title}: learning"))
                assert learned is not None
                weights = learned.weights
            taken = time.process_time() - before
            equation = tuner.equation if weights is None else tuner.equation.with_weights(weights)
            compared = evaluate(
                tuner.altered(equation=equation),
                part.test,
                alphas=alphas,
                max_tokens=part.max_tokens,
                concurrency=1,
                seed=chain.seed,
                observe=partial(step, f"{title}: measuring"),
            )
            seconds = {"learning": taken, "both": time.process_time() - before}
            found.append(
                {
                    "part": part.name,
                    "shown": shown,
                    "develop": len(part.develop),
                    "learned": None if learned is None else calibration.record(learned),
                    "measured": report.record(compared),
                    "processor_seconds": seconds,
                }
            )
            keep(chain, expert, found)
            print(f"\n**{part.name}**, {len(part.test)} rows, {candidates(shown)}\n\n{table(compared)}", flush=True)
    pair.close()
    return found


def candidates(shown: int) -> str:
    return f"top {shown}" if shown else "whole vocabulary"


def step(what: str, told: Progress | Told) -> None:
    if told.done == told.total or told.done % 10 == 0:
        say(f"{what}, {told.done} of {told.total}")


def table(evaluation: Evaluation) -> str:
    """Systems with their intervals as Markdown, and in words what speaks against the proxy."""
    lines: list[str] = []
    for found in evaluation.tables:
        heads, cells = report.quality(found, evaluation.confidence)
        rule = [":--", *("--:" for _ in heads[1:])]
        lines += ["| " + " | ".join(line) + " |" for line in (heads, rule, *cells)]
        lines += ["", *(f"- {warning}" for warning in found.warnings)]
    return "\n".join(lines).rstrip()


def keep(chain: Chain, expert: str, found: Sequence[Mapping[str, Any]]) -> None:
    """The results so far, with what they were made with and on."""
    tuned = Path(expert) / "tuned.json"
    record = {
        "made": time.strftime("%Y-%m-%d"),
        "base": Path(chain.base).name,
        "small": Path(chain.small).name,
        "seed": chain.seed,
        "tuned": json.loads(tuned.read_text(encoding="utf-8")) if tuned.is_file() else None,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": chain.threads},
        "versions": {name: importlib.metadata.version(name) for name in ("blackbox-proxy", "torch", "transformers")},
        "python": platform.python_version(),
        "parts": list(found),
    }
    chain.results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def processor() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.M) if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> None:
    """A script's main, with errors as one line and its hint."""
    try:
        main()
    except BlackboxError as error:
        say(f"Error: {error}\nHint: {error.hint}")
        sys.exit(2 if isinstance(error, InputError) else 1)
