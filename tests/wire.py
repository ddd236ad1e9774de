"""Fixtures of the tests of bases and of the wire: a vocabulary, a server, and bases on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from api_answers import make_vocabulary
from api_server import Asking, Server, running

from blackbox_proxy.text.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return make_vocabulary()


@pytest.fixture(scope="session")
def _running() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def server(_running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    _running.answers, _running.sent, _running.paths, _running.headers = [], [], [], []
    return _running


@pytest.fixture
def asking(server: Server) -> Asking:
    return Asking(server)
