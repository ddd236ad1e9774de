"""Real servers with a tiny model made on the spot, and `host` with the same weights beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from servers.install import INSTALLED
from servers.launch import MODEL, Served, running
from servers.toy_weights import make_models

if TYPE_CHECKING:
    from blackbox_proxy import TransformersPair
    from blackbox_proxy.base.openai import OpenAIBase

Open = Callable[..., "OpenAIBase"]


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session", params=list(INSTALLED))
def served(
    request: pytest.FixtureRequest, toys: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One server after the other, each started once; one that is not installed is skipped."""
    kind: str = request.param
    if not INSTALLED[kind]():
        pytest.skip(f"{kind} is not installed; to install it: python tests/servers/install.py {kind}")
    with running(kind, toys, tmp_path_factory.mktemp("logs") / f"{kind}.log") as server:
        yield server


@pytest.fixture(scope="session")
def host_url(toys: dict[str, str]) -> Iterator[str]:
    """This project's own `host` with the servers' weights."""
    from blackbox_proxy.door.running import serve_in_thread
    from blackbox_proxy.host.engine import open_engine
    from blackbox_proxy.serve.routes import create_app

    engine = open_engine(toys["base"], top_logprobs=-1, served_model_name=MODEL, device="cpu")
    with serve_in_thread(create_app(engine)) as url:
        yield f"{url}/v1"


@pytest.fixture
def far(served: Served) -> Iterator[Open]:
    """open_base on the real server, in its dialect unless told otherwise."""
    yield from _opener(served.base_url, served.kind)


@pytest.fixture
def near(host_url: str) -> Iterator[Open]:
    """The same on `host`."""
    yield from _opener(host_url, "host")


def _opener(url: str, dialect: str) -> Iterator[Open]:
    from blackbox_proxy import open_base
    from blackbox_proxy.tuner import run

    opened: list[OpenAIBase] = []

    def make(**options: Any) -> OpenAIBase:
        opened.append(open_base(MODEL, base_url=url, **{"dialect": dialect, "max_attempts": 2, **options}))
        return opened[-1]

    yield make
    for base in opened:
        run(base.aclose())


@pytest.fixture(scope="session")
def toy_pairs(toys: dict[str, str]) -> Callable[[str], TransformersPair]:
    """The pair of a kind ("same", "digits"), loaded once."""
    from blackbox_proxy import TransformersPair

    return cache(lambda kind: TransformersPair(toys[f"{kind}-expert"], toys[f"{kind}-antiexpert"], device="cpu"))
