"""A tiny model behind a host, as these tests share it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import client_of
from openai import AsyncOpenAI
from tiny import build_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.serve.engine import Engine
from blackbox_proxy.serve.routes import create_app


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="session")
def engine(folder: Path) -> Engine:
    return open_engine(folder, top_logprobs=5, served_model_name="tiny")


@pytest.fixture(scope="session")
def url(engine: Engine) -> Iterator[str]:
    """A host that shows 5 log probabilities."""
    with serve_in_thread(create_app(engine)) as url:
        yield url


@pytest.fixture(scope="session")
def open_url(folder: Path) -> Iterator[str]:
    """A host that shows the whole vocabulary."""
    with serve_in_thread(create_app(open_engine(folder, top_logprobs=-1, served_model_name="tiny"))) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(url) as client:
        yield client


@pytest.fixture
async def open_client(open_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(open_url) as client:
        yield client
