"""A gateway over a hosted base, as these tests share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from gateways import Gateway, Pairs, gateway

from blackbox_proxy import ProxyTuner, open_base
from blackbox_proxy.tuner import run


@pytest.fixture(scope="session")
def running(models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str]) -> Iterator[Gateway]:
    with gateway(models, pairs, hosted(5)) as found:
        yield found


@pytest.fixture(scope="session")
def tuner(models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str]) -> Iterator[ProxyTuner]:
    """The same without the gateway."""
    base = open_base("big", base_url=hosted(5), dialect="vllm", tokenizer=models["base"], top_logprobs=5)
    yield ProxyTuner(base, pairs("digits"), 1.0)
    run(base.aclose())
