"""Fixtures about the tokenizers of servers: where findings are kept, what is said, and hosts that tell theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware import Middleware
from watched import Watched

from blackbox_proxy.api import tokenizer
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.serve.emulation import emulation_of
from blackbox_proxy.serve.engine import Engine
from blackbox_proxy.serve.routes import create_app


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own for what is kept, and nothing said yet."""
    monkeypatch.setenv("BLACKBOX_PROXY_PROBES", str(tmp_path / "probes"))
    monkeypatch.setattr(tokenizer, "_said", set())
    return tmp_path / "probes"


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said since the last look."""
    caplog.set_level(logging.INFO, logger=tokenizer.log.name)

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == tokenizer.log.name]
        caplog.clear()
        return found

    return lines


@pytest.fixture(scope="module")
def engine(models: dict[str, str]) -> Engine:
    return open_engine(models["base"], top_logprobs=5, served_model_name="big", device="cpu")


@pytest.fixture
def host(engine: Engine) -> Iterator[Callable[..., Watched]]:
    """A host of that engine, or another, that behaves like a kind of server."""
    with ExitStack() as stack:

        def start(dialect: str, *, of: Engine = engine, **options: Any) -> Watched:
            paths: list[str] = []

            class Watch:
                def __init__(self, app: Any) -> None:
                    self._app = app

                async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                    if scope["type"] == "http":
                        paths.append(scope["path"])
                    await self._app(scope, receive, send)

            app = create_app(of, emulation=emulation_of(dialect), middleware=[Middleware(Watch)], **options)
            return Watched(stack.enter_context(serve_in_thread(app)) + "/v1", paths)

        yield start
