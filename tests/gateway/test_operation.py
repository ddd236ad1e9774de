"""How a gateway is run: keys, logs, metrics, requests that are none, failures of the far side, and SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from gateways import Gateway, Pairs, gateway
from hosting import client_of, post
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from blackbox_proxy import errors
from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.errors import InputError
from blackbox_proxy.gateway.failures import as_answer
from blackbox_proxy.gateway.keys import Keys, new_key
from blackbox_proxy.gateway.run import Operation
from blackbox_proxy.gateway.watch import JsonLines

SECRET = "a prompt that nobody else may read"


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_file_of_keys_holds_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key = new_key("alice", path)
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    other = new_key("bob", path)
    keys = Keys.read(path)
    assert (len(keys), keys.caller(key), keys.caller(other), keys.caller("bbp-x")) == (2, "alice", "bob", None)
    with pytest.raises(InputError, match="has a key of alice already"):
        new_key("alice", path)
    path.write_text('alice = "bbp-as-it-is"\n')
    with pytest.raises(InputError, match="no hashed key") as wrong:
        Keys.read(path)
    assert "as-it-is" not in str(wrong.value)


def test_others_come_in_with_keys_only() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        assert Operation(host=host).keys is None
    for host in ("0.0.0.0", "::", "192.168.1.4", "box"):
        with pytest.raises(InputError, match="there are no keys"):
            Operation(host=host)
    assert Operation(host="0.0.0.0", keys=Path("keys.toml"))


async def test_keys_logs_and_metrics(
    models: dict[str, str],
    pairs: Pairs,
    hosted: Callable[[int], str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = new_key("alice", tmp_path / "keys.toml")
    with (
        caplog.at_level(logging.INFO, "blackbox_proxy.gateway"),
        gateway(models, pairs, hosted(5), keys=Keys.read(tmp_path / "keys.toml")) as running,
    ):
        async with client_of(running.url, "bbp-wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with client_of(running.url, key) as client:
            answer = await client.completions.with_raw_response.create(
                model="tuned",
                prompt=SECRET,
                max_tokens=5,
                temperature=0,
                extra_headers={"x-request-id": "mine-1"},
            )
            assert answer.headers["x-request-id"] == "mine-1"
            odd = await client.completions.with_raw_response.create(
                model="tuned", prompt=SECRET, max_tokens=1, extra_headers={"x-request-id": "<script>"}
            )
            assert odd.headers["x-request-id"].startswith("req-")
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model="tuned", prompt=SECRET, max_tokens=5, suffix="x")
            text = (await client.get("/../metrics", cast_to=str)).strip()
        assert (await asyncio.to_thread(post, f"{running.url}/v1/completions", b"{}"))[0] == 401
    assert 'blackbox_proxy_requests_total{model="tuned",status="200"} 2.0' in text
    assert 'blackbox_proxy_tokens_total{kind="completion",model="tuned"} 6.0' in text
    assert re.search(r'blackbox_proxy_upstream_total\{kind="calls",model="tuned"\} [1-9]', text)
    assert "blackbox_proxy_active 0.0" in text
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.msg == "request"]
    mine = next(line for line in lines if line["request_id"] == "mine-1")
    assert (mine["caller"], mine["model"], mine["status"], mine["completion_tokens"]) == ("alice", "tuned", 200, 5)
    assert mine["upstream_calls"] >= 1
    assert [line["status"] for line in lines].count(401) == 2
    everything = "\n".join(JsonLines().format(record) for record in caplog.records)
    assert SECRET not in everything
    assert key not in everything


# -- what comes in ----------------------------------------------------------------------------------------------------

_FIELDS = ("prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stop", "logprobs", "top_logprobs", "echo")
_MORE = ("stream", "seed", "alpha", "tail", "logit_bias", "stream_options", "continue_final_message", "echo_last", "x")
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**70, -(2**70), 1e308, float("nan"), "tuned", "", "\ud800", "a\x00b", "backoff"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("role", "content", "1")), inner),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(st.sampled_from(_FIELDS + _MORE), _VALUES, max_size=5),
    chat=st.booleans(),
    model=st.sampled_from(["tuned", "base", 3, None]),
)
@example(body={"tail": []}, chat=False, model="tuned")
def test_no_request_is_a_failure_of_the_server(running: Gateway, body: dict[str, Any], chat: bool, model: Any) -> None:
    body = {"prompt": "The mayor", "messages": [{"role": "user", "content": "hi"}], **body, "model": model}
    del body["prompt" if chat else "messages"]
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] > 3:
        body["max_tokens"] = 2
    if isinstance(body.get("n"), int):
        body["n"] = min(body["n"], 2)
    body["stream"] = False
    route = "chat/completions" if chat else "completions"
    status, answer = post(f"{running.url}/v1/{route}", json.dumps(body).encode())
    assert status in (200, 400, 404), answer
    assert ("error" in answer) == (status != 200)


def test_what_is_no_json(running: Gateway) -> None:
    for raw in (
        b"",
        b"[]",
        b"nul",
        b"{" * 10_000,
        b"[" * 100_000,
        b'{"model": "tuned", "prompt": %s}' % (b"[" * 10_000 + b"]" * 10_000),
        b'{"model": "tuned", "prompt": "a", "x": %s}' % (b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        b'{"model": "tuned", "prompt": "\xff"}',
        b'"\\ud800"',
    ):
        status, answer = post(f"{running.url}/v1/completions", raw)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_body_of_100_mb_is_refused_and_not_kept(running: Gateway) -> None:
    def memory() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    at = urlsplit(running.url)
    before, most, said = memory(), 0.0, b""
    with socket.create_connection((at.hostname or "", at.port or 0), timeout=10) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):  # it has answered and closed
            for _ in range(100):
                connection.sendall(b"100000\r\n" + b" " * 2**20 + b"\r\n")
                most = max(most, memory())
        with contextlib.suppress(ConnectionError):
            said = connection.recv(1 << 16)
    assert b" 413 " in said.splitlines()[0]
    assert most < before + 64.0  # MiB: eight of a body, and what passes through


# -- what goes wrong behind it ----------------------------------------------------------------------------------------

_EVERY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BlackboxError)]


@pytest.mark.parametrize("kind", _EVERY)
def test_failures_behind_the_server_say_what_kind_they_are_and_no_more(kind: type[errors.BlackboxError]) -> None:
    error = kind("http://operator.internal says sk-123", "Look at OPENAI_API_KEY")
    found = as_answer(error)
    if isinstance(error, InputError) or kind is errors.BlackboxError:
        assert found is error
        return
    assert isinstance(found, ApiError)
    assert "internal" not in str(found)
    assert "OPENAI" not in str(found)
    assert found.status in (429, 500, 502)
    assert ("retry-after" in found.headers) == error.retryable


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.serve
@pytest.mark.parametrize("drain", [0.5, None], ids=["short", "default"])
async def test_sigterm_lets_32_streams_end(
    models: dict[str, str], hosted: Callable[[int], str], drain: float | None
) -> None:
    command = [sys.executable, "-m", "blackbox_proxy", "serve", "--base", "big", "--base-url", hosted(5), "--port", "0"]
    command += ["--dialect", "vllm", "--tokenizer", models["base"], "--expert", models["digits-expert"]]
    command += ["--antiexpert", models["digits-antiexpert"]]
    command += [] if drain is None else ["--drain-seconds", str(drain)]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, env=os.environ)
    assert process.stderr is not None
    url, said = "", b""
    while not url:
        line = await process.stderr.readline()
        assert line, said.decode()
        said += line
        found = re.search(rb"http://\S+/v1", line)
        url = found[0].decode().removesuffix("/v1") if found else ""
    reading = asyncio.create_task(process.stderr.read())
    async with client_of(url) as client:
        begun = asyncio.Semaphore(0)

        async def one(number: int) -> str:
            stream = await client.completions.create(
                model="tuned", prompt=f"The mayor {number}", max_tokens=20, temperature=0, stream=True
            )
            begun.release()
            try:
                chunks = [chunk async for chunk in stream]
            except openai.APIError as error:
                return str(error)
            return str(chunks[-1].choices[0].finish_reason)

        tasks = [asyncio.create_task(one(number)) for number in range(32)]
        for _ in tasks:
            await begun.acquire()
        process.send_signal(signal.SIGTERM)
        ends = await asyncio.gather(*tasks)
    assert set(ends) <= {"length", "stop", "The server is being stopped."}
    if drain is None:
        assert "The server is being stopped." not in ends
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert b"Traceback" not in await reading
