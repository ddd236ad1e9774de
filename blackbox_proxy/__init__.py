"""blackbox_proxy: decode a language model behind an API as if it had been fine-tuned.

    from blackbox_proxy import ProxyTuner, TransformersPair, open_base

    base = open_base("big-model", base_url="http://localhost:8000/v1", dialect="vllm")
    pair = TransformersPair(expert="small-tuned", antiexpert="small")
    print(ProxyTuner(base, pair, alpha=1.0).generate("Once upon a time", max_tokens=64).text)

Importing this package loads nothing heavy; torch, transformers and openai come with the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blackbox_proxy.version import __version__

if TYPE_CHECKING:
    from blackbox_proxy.answers.choices import Choice as Choice
    from blackbox_proxy.answers.scoring import Score as Score
    from blackbox_proxy.base.budget import Budget as Budget
    from blackbox_proxy.base.budget import BudgetedBase as BudgetedBase
    from blackbox_proxy.base.cache.base import CachedBase as CachedBase
    from blackbox_proxy.base.local import TransformersBase as TransformersBase
    from blackbox_proxy.base.opening import open_base as open_base
    from blackbox_proxy.calibration.run import acalibrate as acalibrate
    from blackbox_proxy.calibration.run import calibrate as calibrate
    from blackbox_proxy.decoding.pace import Drafting as Drafting
    from blackbox_proxy.dialects.findings import Findings as Findings
    from blackbox_proxy.evaluation.fit import measure_fit as measure_fit
    from blackbox_proxy.evaluation.run import evaluate as evaluate
    from blackbox_proxy.jobs import run_job as run_job
    from blackbox_proxy.learned import read_weights as read_weights
    from blackbox_proxy.maths.weights import Spread as Spread
    from blackbox_proxy.maths.weights import Weights as Weights
    from blackbox_proxy.pair.remote import ServedPair as ServedPair
    from blackbox_proxy.pair.transformers import TransformersPair as TransformersPair
    from blackbox_proxy.prices import Prices as Prices
    from blackbox_proxy.probing.run import aprobe as aprobe
    from blackbox_proxy.probing.run import probe as probe
    from blackbox_proxy.trace import read_trace as read_trace
    from blackbox_proxy.trace import write_trace as write_trace
    from blackbox_proxy.transport.limits import Limiter as Limiter
    from blackbox_proxy.tuner import ProxyTuner as ProxyTuner
    from blackbox_proxy.tuning.run import tune as tune
    from blackbox_proxy.types import Candidate as Candidate
    from blackbox_proxy.types import Generation as Generation
    from blackbox_proxy.types import Step as Step
    from blackbox_proxy.types import Usage as Usage

_HOMES = {
    "CachedBase": "base.cache.base",
    "Budget": "base.budget",
    "BudgetedBase": "base.budget",
    "Candidate": "types",
    "Choice": "answers.choices",
    "Drafting": "decoding.pace",
    "Findings": "dialects.findings",
    "Generation": "types",
    "Limiter": "transport.limits",
    "Prices": "prices",
    "ProxyTuner": "tuner",
    "Score": "answers.scoring",
    "ServedPair": "pair.remote",
    "Spread": "maths.weights",
    "Step": "types",
    "TransformersBase": "base.local",
    "TransformersPair": "pair.transformers",
    "Usage": "types",
    "Weights": "maths.weights",
    "acalibrate": "calibration.run",
    "aprobe": "probing.run",
    "calibrate": "calibration.run",
    "errors": "errors",
    "evaluate": "evaluation.run",
    "measure_fit": "evaluation.fit",
    "open_base": "base.opening",
    "probe": "probing.run",
    "read_trace": "trace",
    "read_weights": "learned",
    "run_job": "jobs",
    "tune": "tuning.run",
    "write_trace": "trace",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOMES[name]}")
    return module if name == "errors" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
