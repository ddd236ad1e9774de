"""What one client may take of a server: bytes, time, places; over real sockets, with an engine that does nothing."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hosting import KEY, get, post

from blackbox_proxy.door.limits import Limits
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import InputError
from blackbox_proxy.gateway.app import Porter, Room, create_gateway
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.host.process import HostProcess
from blackbox_proxy.serve.engine import Engine, Event, TextWanted
from blackbox_proxy.serve.routes import create_app
from blackbox_proxy.types import Usage

TIGHT = Limits(
    max_body=0.1,
    max_bodies=0.2,
    max_prompts=3,
    max_connections=8,
    header_seconds=0.5,
    body_seconds=0.5,
    send_seconds=0.5,
    allow_host="box",
    allow_origin="http://localhost:3000",
)
BODY = b'{"model": "idle", "prompt": "hi"}'


class Idle:
    """An engine that writes `size` characters at once, and never more than it is let."""

    name, top_logprobs, context = "idle", 5, None
    own_fields, about = (), dict[str, Any]()

    def __init__(self, size: int = 1, wait: float = 0.0) -> None:
        self.size, self.wait, self.open = size, wait, 0

    def check(self, wanted: TextWanted) -> None:
        time.sleep(self.wait)

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        self.open += 1
        try:
            yield Event("", usage=Usage(prompt_tokens=1))
            for _ in range(self.size // 10_000):
                yield Event("x" * 10_000, usage=Usage(completion_tokens=1))
            yield Event("x", finish_reason="stop", usage=Usage(completion_tokens=1))
        finally:
            self.open -= 1


@pytest.fixture(scope="module", params=["host", "gateway"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """What `host` and `serve` stand behind."""
    if request.param == "host":
        app = create_app(Idle(), limits=TIGHT)
    else:
        app = create_gateway([Idle()], Porter(Room()), limits=TIGHT)
    with serve_in_thread(app, limits=TIGHT) as url:
        yield url


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged: no traceback for what a client does."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def head(*fields: str, method: str = "POST", host: str = "localhost") -> bytes:
    lines = [f"{method} /v1/completions HTTP/1.1", f"host: {host}", "content-type: application/json", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, Any]:
    """Status and JSON of what comes until the server closes; 0 where it closes without a word."""
    read = bytearray()
    try:
        while part := connection.recv(1 << 16):
            read += part
    except ConnectionResetError:
        pass
    if not read:
        return 0, None
    first, _, rest = bytes(read).partition(b"\r\n\r\n")
    start = rest.find(b"{")
    return int(first.split()[1]), json.loads(rest[start : rest.rfind(b"}") + 1])


def ask(url: str, sent: bytes) -> tuple[int, Any]:
    with closing(connect(url)) as connection:
        connection.sendall(sent)
        return answer(connection)


def asked(url: str, *fields: str, body: bytes = BODY, host: str = "localhost") -> tuple[int, Any]:
    return ask(url, head(f"content-length: {len(body)}", "connection: close", *fields, host=host) + body)


# -- bodies ---------------------------------------------------------------------------------------------------------


def test_what_is_within_the_limits_is_answered(url: str) -> None:
    assert asked(url)[0] == 200
    chunked = head("transfer-encoding: chunked", "connection: close") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert ask(url, chunked)[0] == 200


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("length", [200_000, 1_500_000, 30 * 10**9])
def test_a_large_body_is_refused_before_it_is_read(url: str, length: int) -> None:
    status, body = ask(url, head(f"content-length: {length}") + b"x" * min(length, 1_500_000))
    assert (status, body["error"]["code"]) == (413, "request_too_large")


def test_a_client_that_asks_first_is_told_without_sending(url: str) -> None:
    start = time.monotonic()
    assert ask(url, head("content-length: 200000", "expect: 100-continue"))[0] == 413
    assert time.monotonic() - start < 1


@pytest.mark.usefixtures("quiet")
def test_a_chunked_body_without_end_is_refused(url: str) -> None:
    with closing(connect(url)) as connection:
        connection.sendall(head("transfer-encoding: chunked"))
        sent = 0
        try:
            while sent < 50 << 20:
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                sent += 0x10000
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert answer(connection)[0] in (413, 0)  # who does not listen while it speaks may miss it
    assert sent < 10 << 20
    assert asked(url)[0] == 200


@pytest.mark.usefixtures("quiet")
def test_bodies_count_together(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            waiting = stack.enter_context(closing(connect(url)))
            waiting.sendall(head("content-length: 90000") + b" " * 80_000)
        time.sleep(0.1)
        assert asked(url)[0] == 200
        status, body = asked(url, body=BODY + b" " * 80_000)
    assert (status, body["error"]["type"]) == (503, "server_error")
    wait_until(lambda: asked(url)[0] == 200)  # they have gone, and their bytes with them


@pytest.mark.usefixtures("quiet")
def test_a_body_has_its_time(url: str) -> None:
    start = time.monotonic()
    with closing(connect(url)) as connection:
        connection.sendall(head("content-length: 100"))
        status, body = trickle(connection, b"x")
    assert (status, body["error"]["type"]) == (408, "invalid_request_error")
    assert time.monotonic() - start < 3


@pytest.mark.usefixtures("quiet")
def test_a_dropped_body_leaves_no_traceback(url: str) -> None:
    with closing(connect(url)) as connection:
        connection.sendall(head("content-length: 100") + b"{")
    time.sleep(0.1)
    assert asked(url)[0] == 200


def test_a_stranger_with_no_key_is_not_read() -> None:
    with (
        serve_in_thread(create_app(Idle(), api_key=KEY, limits=TIGHT), limits=TIGHT) as url,
        closing(connect(url)) as connection,
    ):
        connection.sendall(head("content-length: 100") + b"{")
        assert answer(connection)[0] == 401  # and the connection ends, though the body never came


# -- what is in them ------------------------------------------------------------------------------------------------


def test_prompts_are_counted(url: str) -> None:
    assert asked(url, body=json.dumps({"model": "idle", "prompt": ["hi"] * 3}).encode())[0] == 200
    status, answered = asked(url, body=json.dumps({"model": "idle", "prompt": ["hi"] * 4}).encode())
    assert (status, answered["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"model": "idle", "prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"model": "idle", "prompt": [' + b"1.5," * 20_000 + b"1.5]}",
        b'{"model": "idle", "prompt": "hi", "logit_bias": {"' + b"5" * 5000 + b'": 1}}',
        b'{"model": "' + b"i" * 90_000 + b'", "prompt": "hi"}',
        b'{"model": "idle", "prompt": "hi", "max_tokens": ' + b"9" * 5000 + b"}",
    ],
)
@pytest.mark.usefixtures("quiet")
def test_no_body_is_an_error_of_the_server(url: str, body: bytes) -> None:
    status, answered = asked(url, body=body)
    assert status in (400, 404)
    assert len(json.dumps(answered)) < 1000


def test_others_are_answered_while_a_request_is_read() -> None:
    with serve_in_thread(create_app(Idle(wait=1.0))) as url, closing(connect(url)) as slow:
        slow.sendall(head(f"content-length: {len(BODY)}", "connection: close") + BODY)
        time.sleep(0.1)
        start = time.monotonic()
        get(f"{url}/health")
        assert time.monotonic() - start < 0.5
        assert answer(slow)[0] == 200


def test_a_text_far_beyond_the_window_is_not_cut_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Engine = open_engine(folder, served_model_name="tiny")
    cut: list[int] = []
    original = type(engine._prompts)._ids  # type: ignore[attr-defined]
    monkeypatch.setattr(
        type(engine._prompts),  # type: ignore[attr-defined]
        "_ids",
        lambda self, text, special: cut.append(len(text)) or original(self, text, special),  # type: ignore[func-returns-value]
    )
    with serve_in_thread(create_app(engine)) as url:
        for body in ({"prompt": "The dog " * 500_000}, {"messages": [{"role": "user", "content": "dog " * 500_000}]}):
            path = "completions" if "prompt" in body else "chat/completions"
            status, answered = post(f"{url}/v1/{path}", json.dumps({"model": "tiny", **body}).encode())
            assert (status, answered["error"]["code"]) == (400, "context_length_exceeded")
    assert sum(cut) <= 2 << 16


# -- connections ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"P", b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"])
@pytest.mark.usefixtures("quiet")
def test_a_header_has_its_time(url: str, said: bytes) -> None:
    start = time.monotonic()
    with closing(connect(url)) as connection:
        connection.sendall(said)
        assert trickle(connection, b"x" if said else b"")[0] == 0
    assert 0.4 < time.monotonic() - start < 3


def test_a_second_header_has_its_time_too(url: str) -> None:
    with closing(connect(url)) as connection:
        connection.sendall(head(f"content-length: {len(BODY)}") + BODY)
        start = time.monotonic()
        assert trickle(connection, b"P")[0] == 200
    assert time.monotonic() - start < 3


@pytest.mark.usefixtures("quiet")
def test_connections_are_counted(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(closing(connect(url))).sendall(b"POST /")
        time.sleep(0.1)
        status, body = ask(url, b"")
        assert (status, body["error"]["type"]) == (503, "server_error")
        wait_until(lambda: asked(url)[0] == 200)  # the silent ones have been let go, though they hold on


@pytest.mark.usefixtures("quiet")
def test_who_does_not_read_is_let_go() -> None:
    engine = Idle(size=50_000_000)
    with serve_in_thread(create_app(engine, limits=TIGHT), limits=TIGHT) as url, closing(connect(url)) as connection:
        body = b'{"model": "idle", "prompt": "hi", "stream": true}'
        connection.sendall(head(f"content-length: {len(body)}") + body)
        wait_until(lambda: engine.open == 1)
        wait_until(lambda: engine.open == 0)


# -- strangers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "a.localhost", "box:1"])
def test_own_names(url: str, host: str) -> None:
    assert asked(url, host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", "x]"]
)
def test_a_name_that_is_not_ours(url: str, host: str) -> None:
    status, body = asked(url, host=host)
    assert (status, body["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("origin", ["http://localhost", "https://localhost", "http://localhost:3000"])
def test_pages_that_may(url: str, origin: str) -> None:
    assert asked(url, f"origin: {origin}")[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3001", "http://localhost.evil"])
def test_pages_that_may_not(url: str, origin: str) -> None:
    status, body = asked(url, f"origin: {origin}")
    assert (status, body["error"]["code"]) == (403, "origin_not_allowed")


def test_a_page_that_may_is_told_so(url: str) -> None:
    with closing(connect(url)) as connection:
        asks = ("origin: http://localhost:3000", "access-control-request-method: POST", "connection: close")
        connection.sendall(head(*asks, method="OPTIONS"))
        first = connection.recv(1 << 16)
    assert b" 200 " in first.split(b"\r\n")[0]
    assert b"access-control-allow-origin: http://localhost:3000" in first.lower()


# -- the limits themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["max_body", "max_prompts", "max_connections", "header_seconds", "send_seconds"])
def test_what_is_no_limit_is_refused(field: str) -> None:
    with pytest.raises(InputError, match=field):
        replace(TIGHT, **{field: 0})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_bounded_whatever_a_body_holds(folder: Path) -> None:
    size = (8 << 20) - 100
    texts = [b"[],", b"{},", b"1.5,", b"1,", b"[1],", b'"",', b'{"role": "u", "content": "x"},']
    bodies = [b'{"model": "tiny", "%s": [%s0]}' % (name, text * (size // len(text) - 10))
              for name in (b"prompt", b"messages", b"logit_bias", b"else") for text in texts]  # fmt: skip
    bodies += [b'{"model": "tiny", "prompt": "%s"}' % (b"The dog " * (size // 8 - 10)), b"x" * (100 << 20)]
    with HostProcess(folder, served_model_name="tiny", threads=1) as host:
        asked(host.url, body=b'{"model": "tiny", "prompt": "A"}')
        idle = peak_memory(host.pid)
        for body in bodies:
            with closing(connect(host.url)) as connection:
                connection.settimeout(60)
                connection.sendall(head(f"content-length: {len(body)}", "connection: close") + body)
                start = time.monotonic()
                get(f"{host.url}/health")
                assert time.monotonic() - start < 5
                assert answer(connection)[0] in (400, 413)
        assert peak_memory(host.pid) - idle < 300


def peak_memory(pid: int) -> int:
    """MiB."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10


def trickle(connection: socket.socket, piece: bytes) -> tuple[int, Any]:
    """Send a piece ten times a second until the server has had enough; its answer."""
    connection.settimeout(0.1)
    deadline, read = time.monotonic() + 5, b""
    while time.monotonic() < deadline:
        try:
            connection.sendall(piece)
            part = connection.recv(1 << 16)
            read += part
            if not part:
                break
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            break
    else:
        raise AssertionError("the server waits for ever")
    if not read:
        return 0, None
    first, _, rest = read.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(rest)


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
