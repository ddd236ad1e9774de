"""Shared fixtures: folders of tiny models in three vocabularies, and hosts that serve them over loopback."""

from __future__ import annotations

import os

# Threads that spin while they wait make tiny models slow on a busy machine; set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("BLACKBOX_PROXY_CACHE", "0")  # the user's own cache is not for tests
os.environ.setdefault("BLACKBOX_PROXY_PROBES", "0")  # nor is what the user's endpoints were found to do
os.environ.setdefault("BLACKBOX_PROXY_VOCABULARIES", "0")  # nor what was found out about the user's tokenizers

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from api_server import Asking, Server

    from blackbox_proxy.base.openai import OpenAIBase
    from blackbox_proxy.pair.transformers import TransformersPair
    from blackbox_proxy.text.vocabulary import Vocabulary

DATA = Path(os.environ.get("BLACKBOX_PROXY_TEST_DATA", Path(__file__).parents[2] / "shared"))
"""Where real data is looked for: tokenizers/{gpt2,qwen2,llama-spm,tiktoken} and data/realtimeqa/{qa,articles} in it."""

DRIFT = 0.01  # how far the experts are from their anti-experts: 15 to 40 % of the tokens change


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first (mypy over everything), so that no worker waits for it alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_project.py")


@pytest.fixture(autouse=True)
def _own_secrets() -> None:
    """What one test sends as a key is a word in the messages of the next one."""
    from blackbox_proxy import secrets

    secrets._known.clear()


@pytest.fixture(autouse=True)
def _nothing_draws() -> Iterator[None]:
    """A bar or a spinner that outlives its test would draw on the next one's terminal."""
    yield
    left = [thread for thread in threading.enumerate() if type(thread).__name__ == "_RefreshThread"]
    for thread in left:
        thread.join(5)
    assert not any(thread.is_alive() for thread in left)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders: base, and pairs with its vocabulary ("same"), digits one by one ("digits"), metaspace ("pieces")."""
    from toys import save, train_tokenizer

    root = tmp_path_factory.mktemp("models")
    same, digits, pieces = (
        train_tokenizer("bytes", 500),
        train_tokenizer("digits", 400, 1),
        train_tokenizer("pieces", 500, 2),
    )
    return {
        "base": save(root / "base", same, 1),
        "same-expert": save(root / "same-expert", same, 2, drift=DRIFT),
        "same-antiexpert": save(root / "same-antiexpert", same, 2, extra=12),
        "digits-expert": save(root / "digits-expert", digits, 4, "qwen2", drift=DRIFT),
        "digits-antiexpert": save(root / "digits-antiexpert", digits, 4, "qwen2"),
        "pieces-expert": save(root / "pieces-expert", pieces, 6, "gpt2", drift=DRIFT),
        "pieces-antiexpert": save(root / "pieces-antiexpert", pieces, 6, "gpt2"),
    }


@pytest.fixture(scope="session")
def hosted(models: dict[str, str]) -> Iterator[Callable[[int], str]]:
    """The base behind HTTP, in a thread: top_logprobs -> base_url. One host for each limit, shared by the session."""
    from blackbox_proxy.door.running import serve_in_thread
    from blackbox_proxy.host.engine import open_engine
    from blackbox_proxy.serve.routes import create_app

    urls: dict[int, str] = {}
    with ExitStack() as stack:

        def url(top_logprobs: int) -> str:
            if top_logprobs not in urls:
                engine = open_engine(models["base"], top_logprobs=top_logprobs, served_model_name="big", device="cpu")
                urls[top_logprobs] = stack.enter_context(serve_in_thread(create_app(engine))) + "/v1"
            return urls[top_logprobs]

        yield url


@pytest.fixture
def api_base(models: dict[str, str], hosted: Callable[[int], str]) -> Iterator[Callable[..., OpenAIBase]]:
    """open_base on the hosted base (top 5, ids known unless told otherwise); closed after the test."""
    from blackbox_proxy import open_base
    from blackbox_proxy.tuner import run

    opened: list[OpenAIBase] = []

    def make(limit: int = 5, **options: Any) -> OpenAIBase:
        options = {"dialect": "vllm", "tokenizer": models["base"], "top_logprobs": limit, **options}
        opened.append(open_base("big", base_url=hosted(limit if limit <= 5 else -1), **options))
        return opened[-1]

    yield make
    for base in opened:
        run(base.aclose())


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """One that is small enough to read."""
    from api_answers import make_vocabulary

    return make_vocabulary()


@pytest.fixture(scope="session")
def _running() -> Iterator[Server]:
    from api_server import running

    with running() as server:
        yield server


@pytest.fixture
def server(_running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that answers as it is told."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    _running.answers, _running.sent, _running.paths, _running.headers = [], [], [], []
    return _running


@pytest.fixture
def asking(server: Server) -> Asking:
    """Opens bases on that server."""
    from api_server import Asking

    return Asking(server)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit status, standard output, standard error."""
    from blackbox_proxy import cli

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["blackbox-proxy", *arguments])
        monkeypatch.setenv("COLUMNS", "140")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def pairs(models: dict[str, str]) -> Callable[[str], TransformersPair]:
    """The pair of a kind ("same", "digits", "pieces"), loaded once."""
    from blackbox_proxy import TransformersPair

    return cache(lambda kind: TransformersPair(models[f"{kind}-expert"], models[f"{kind}-antiexpert"], device="cpu"))


@pytest.fixture(scope="session")
def tokenizers() -> Path:
    """The folder of real vocabularies, or a skip that says why."""
    folder = DATA / "tokenizers"
    if not folder.is_dir():
        pytest.skip(
            f"real vocabularies are not at {folder}; set BLACKBOX_PROXY_TEST_DATA to the folder that holds tokenizers/"
        )
    return folder


@pytest.fixture(scope="session")
def realtimeqa() -> Path:
    """The folder of RealTimeQA's files, or a skip that says why."""
    folder = DATA / "data" / "realtimeqa"
    if not folder.is_dir():
        pytest.skip(
            f"RealTimeQA is not at {folder}; set BLACKBOX_PROXY_TEST_DATA to the folder that holds data/realtimeqa/"
        )
    return folder
