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

if TYPE_CHECKING:
    from blackbox_proxy.base.budget import Budget, BudgetedBase
    from blackbox_proxy.base.cache import CachedBase
    from blackbox_proxy.base.findings import Findings
    from blackbox_proxy.base.limits import Limiter
    from blackbox_proxy.base.local import TransformersBase
    from blackbox_proxy.base.opening import open_base
    from blackbox_proxy.base.probe import aprobe, probe
    from blackbox_proxy.drafting import Drafting, Prices
    from blackbox_proxy.evaluation.fit import measure_fit
    from blackbox_proxy.evaluation.run import evaluate
    from blackbox_proxy.jobs import run_job
    from blackbox_proxy.pair.transformers import TransformersPair
    from blackbox_proxy.scoring import Score
    from blackbox_proxy.served import ServedPair
    from blackbox_proxy.trace import read_trace, write_trace
    from blackbox_proxy.tuner import ProxyTuner
    from blackbox_proxy.types import Candidate, Generation, Step, Usage

__version__ = "0.1.0"

_HOMES = {
    "CachedBase": "base.cache",
    "Budget": "base.budget",
    "BudgetedBase": "base.budget",
    "Candidate": "types",
    "Choice": "choices",
    "Drafting": "drafting",
    "Findings": "base.findings",
    "Generation": "types",
    "Limiter": "base.limits",
    "Prices": "drafting",
    "ProxyTuner": "tuner",
    "Score": "scoring",
    "ServedPair": "served",
    "Step": "types",
    "TransformersBase": "base.local",
    "TransformersPair": "pair.transformers",
    "Usage": "types",
    "aprobe": "base.probe",
    "errors": "errors",
    "evaluate": "evaluation.run",
    "measure_fit": "evaluation.fit",
    "open_base": "base.opening",
    "probe": "base.probe",
    "read_trace": "trace",
    "run_job": "jobs",
    "write_trace": "trace",
}

__all__ = [
    "Budget",
    "BudgetedBase",
    "CachedBase",
    "Candidate",
    "Choice",
    "Drafting",
    "Findings",
    "Generation",
    "Limiter",
    "Prices",
    "ProxyTuner",
    "Score",
    "ServedPair",
    "Step",
    "TransformersBase",
    "TransformersPair",
    "Usage",
    "__version__",
    "aprobe",
    "evaluate",
    "measure_fit",
    "open_base",
    "probe",
    "read_trace",
    "run_job",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOMES[name]}")
    return module if name == "errors" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
