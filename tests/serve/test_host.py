"""The rest of the server, and a host in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from hosting import KEY, SOUP, client_of, get, post
from openai import AsyncOpenAI
from tiny import TEXTS

from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import InputError, ModelUnavailable, ServerFailed
from blackbox_proxy.host.process import HostProcess
from blackbox_proxy.host.run import run_host
from blackbox_proxy.serve.engine import Engine
from blackbox_proxy.serve.routes import create_app

# -- the rest of the server -----------------------------------------------------------------------------------------


async def test_models(client: AsyncOpenAI) -> None:
    [model] = (await client.models.list()).data
    assert (model.id, model.object, (model.model_extra or {})["max_model_len"]) == ("tiny", "model", 256)
    assert (await client.models.retrieve("tiny")).id == "tiny"


async def test_the_server_counts(engine: Engine) -> None:
    with serve_in_thread(create_app(engine)) as url:
        async with client_of(url) as client:
            used = []
            for prompt in ("The", "A"):
                answer = await client.completions.create(model="tiny", prompt=prompt, max_tokens=4, temperature=0)
                used.append(answer.usage)
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model="tiny", prompt="")
        stats = get(f"{url}/stats")
    assert stats["requests"] == 3
    assert stats["refused"] == 1
    assert stats["active"] == 0
    assert stats["prompt_tokens"] == sum(usage.prompt_tokens for usage in used if usage)
    assert stats["completion_tokens"] == sum(usage.completion_tokens for usage in used if usage) == 8


async def test_many_clients_at_once(client: AsyncOpenAI) -> None:
    prompts = ["The dog", "A", "User: hi", "The dog"] * 4
    answers = await asyncio.gather(
        *(client.completions.create(model="tiny", prompt=p, max_tokens=60, temperature=0) for p in prompts)
    )
    texts = [answer.choices[0].text for answer in answers]
    assert texts == [SOUP, TEXTS[2][1:], TEXTS[3][len("User: hi") :], SOUP] * 4


async def test_middleware_stands_in_front(engine: Engine) -> None:
    from starlette.middleware import Middleware

    seen = []

    class Watch:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await self.app(scope, receive, send)

    with serve_in_thread(create_app(engine, api_key=KEY, middleware=[Middleware(Watch)])) as url:
        assert post(f"{url}/v1/completions", b"{}")[0] == 401
    assert seen == ["/v1/completions"]


def test_a_taken_port_is_said(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot listen"):
        run_host(folder, port=taken.getsockname()[1])


def test_run_host_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable):
        run_host(tmp_path / "nothing", port=0)
    with pytest.raises(InputError, match="top_logprobs"):
        run_host(tmp_path, port=0, top_logprobs=-2)


def test_importing_the_routes_loads_no_torch() -> None:
    code = (
        "import sys, blackbox_proxy.serve, blackbox_proxy.host.run, blackbox_proxy.host.process, "
        "blackbox_proxy.serve.routes\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


# -- a process of its own -------------------------------------------------------------------------------------------


async def test_a_host_in_its_own_process(folder: Path) -> None:
    with HostProcess(folder, top_logprobs=3, api_key=KEY, served_model_name="black", threads=1) as host:
        pid = host.pid
        async with client_of(host.url, KEY) as client:
            answer = await client.completions.create(
                model=host.model, prompt="The dog", max_tokens=60, temperature=0, logprobs=3
            )
            assert answer.choices[0].text == SOUP
            with pytest.raises(openai.BadRequestError, match="<= 3"):
                await client.completions.create(model=host.model, prompt="x", logprobs=4)
            stream = await client.completions.create(
                model=host.model, prompt="The", max_tokens=200, temperature=2, stream=True
            )
            await anext(stream)
            assert host.stats()["requests"] == 3
            host.close()  # with a stream still open
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(host.url.rpartition(":")[2])), timeout=5)


def test_a_host_that_cannot_start_says_why(folder: Path) -> None:
    with pytest.raises(ServerFailed, match="did not start: no chat template"):
        HostProcess(folder, chat_template="no/such/file.jinja").start()


def test_a_host_that_takes_too_long_is_ended(folder: Path) -> None:
    host = HostProcess(folder, timeout=0.01)
    with pytest.raises(ServerFailed, match="did not answer within"):
        host.start()
    with pytest.raises(ServerFailed, match="not running"):
        _ = host.pid


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_host_does_not_outlive_its_parent(folder: Path) -> None:
    program = (
        "import sys\n"
        "from blackbox_proxy.host.process import HostProcess\n"
        "host = HostProcess(sys.argv[1], threads=1).start()\n"
        "print(host.url, flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().strip().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            parent.kill()
            with suppress(ConnectionResetError):  # the connection ends when the process that holds it does
                assert connection.recv(1) == b""
