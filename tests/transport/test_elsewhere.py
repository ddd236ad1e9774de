"""A key and a prompt go to the server they were meant for: redirects, cookies, proxies that the environment names."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
from typing import Any

import pytest
from api_answers import legacy
from raw_server import Asked, Kind, Out, raw_server

from blackbox_proxy.api.scorer import Scorer
from blackbox_proxy.base.opening import open_base
from blackbox_proxy.dialects.table import DIALECTS
from blackbox_proxy.errors import BadResponse, BaseError, ConnectionFailed, InputError
from blackbox_proxy.protocols import Ask
from blackbox_proxy.transport.proxies import proxy_for
from blackbox_proxy.types import Prefix

KEY = "sk-very-secret-5678"
GOOD = json.dumps(legacy((" the", -0.1, {" the": -0.1, " a": -3.0}))).encode()
CODES = (301, 302, 303, 307, 308)


def to(where: str, code: int = 307) -> Kind:
    async def redirect(asked: Asked, out: Out) -> None:
        await out.whole(b"", f"{code} Moved", location=where)

    return redirect


async def good(asked: Asked, out: Out) -> None:
    await out.whole(GOOD, set_cookie="session=of-the-server; Path=/")


async def drafted(url: str, **options: Any) -> Any:
    base = open_base("m", base_url=url, api_key=KEY, max_attempts=1, tokenizer=None, **options)
    try:
        return await base.draft(Ask(Prefix("Hi"), 1))
    finally:
        await base.aclose()


def with_a_header_of_their_own() -> list[str]:
    return [name for name, dialect in DIALECTS.items() if dialect.key_header is not None]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dialect", ["openai", "sglang-generate", *with_a_header_of_their_own()])
async def test_no_redirect_leads_to_another_origin(dialect: str, code: int) -> None:
    with raw_server(good) as other, raw_server(to(f"{other.url}/completions?key={KEY}", code)) as first:
        with pytest.raises(BadResponse) as caught:
            await drafted(first.url, dialect=dialect)
        assert other.seen == []
        assert len(first.seen) == 1
    for url in (first.url, other.url):  # both are named
        assert url.removesuffix("/v1") in str(caught.value)
    assert KEY not in str(caught.value)
    assert "base_url" in caught.value.hint


@pytest.mark.parametrize(
    "where", ["https://127.0.0.1/v1", "//evil.example/v1", "http://localhost:{port}/", "http://[", "\\\\x"]
)
async def test_what_is_another_origin(where: str) -> None:
    """Another scheme, host or port; or no URL at all."""

    async def redirect(asked: Asked, out: Out) -> None:
        if asked.path.startswith("/v1/completions"):
            await to(where.replace("{port}", first.url.split(":")[2][:-3]))(asked, out)

    with raw_server(redirect) as first:
        with pytest.raises(BaseError):
            await drafted(first.url)
        assert all(seen.path.startswith("/v1/completions") or "x" in seen.path for seen in first.seen)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dialect", ["openai", "azure"])
async def test_within_an_origin_the_request_stays_what_it_was(dialect: str, code: int) -> None:
    async def moved(asked: Asked, out: Out) -> None:
        await (good if asked.path.startswith("/new") else to("/new/place", code))(asked, out)

    with raw_server(moved) as server:
        draft = await drafted(server.url, dialect=dialect)
        before, after = server.seen
    assert draft.positions[0].token.text == " the"
    assert (after.method, after.body) == ("POST", before.body)
    header = "api-key" if dialect == "azure" else "authorization"
    assert KEY in after.headers[header]
    assert after.headers[header] == before.headers[header]
    assert ("authorization" in after.headers) == (dialect != "azure")


async def test_a_circle_of_redirects_ends() -> None:
    with raw_server(to("/v1/completions")) as server:
        with pytest.raises(BadResponse, match="every request on"):
            await drafted(server.url)
        assert len(server.seen) == 6


async def test_user_and_password_in_a_redirect_change_nothing() -> None:
    async def moved(asked: Asked, out: Out) -> None:
        here = server.url.removesuffix("/v1").replace("//", "//mallory:pw@")
        await (good if asked.path == "/new" else to(f"{here}/new"))(asked, out)

    with raw_server(moved) as server:
        await drafted(server.url)
        assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {KEY}"}


async def test_cookies_are_not_sent_back() -> None:
    with raw_server(good) as server:
        base = open_base("m", base_url=server.url, api_key=KEY, tokenizer=None)
        for _ in range(2):
            await base.draft(Ask(Prefix("Hi"), 1))
        await base.aclose()
        assert [seen.headers.get("cookie") for seen in server.seen] == [None, None]


async def test_what_a_url_holds_is_sent_as_it_was_meant() -> None:
    with raw_server(good) as server:
        url = server.url.replace("//", "//me:p%40ss@") + "?api-version=1&key=abc"
        base = open_base("m", base_url=url, tokenizer=None)
        await base.draft(Ask(Prefix("Hi"), 1))
        await base.aclose()
        seen = server.seen[0]
    assert seen.path == "/v1/completions?api-version=1&key=abc"
    assert seen.headers["authorization"] == "Basic bWU6cEBzcw=="


async def test_the_server_of_a_pair_is_no_other() -> None:
    with raw_server(good) as other, raw_server(to(other.url)) as first:
        scorer = Scorer("m", base_url=first.url, api_key=KEY, top_logprobs=2, max_attempts=1)
        with pytest.raises(BadResponse, match="another server"):
            await scorer.after([(1, 2)])
        await scorer.aclose()
        assert other.seen == []


# -- proxies ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY"])
def test_a_socks_proxy_names_its_variable_and_its_extra(
    monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    monkeypatch.setenv(variable, f"{scheme}://me:hunter22@10.1.1.1:1080")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        open_base("m", base_url="https://host.example/v1", api_key=KEY, tokenizer=None)
    said = str(caught.value)
    assert variable in said
    assert "blackbox-proxy[socks]" in said
    assert "hunter22" not in said + caught.value.hint
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert (
        proxy_for("https://host.example/v1")
        == f"{'socks5' if scheme == 'socks' else scheme}://me:hunter22@10.1.1.1:1080"
    )


@pytest.mark.parametrize("value", ["foo://proxy:1", "http://", "http://proxy:99999", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("http_proxy", value)
    with pytest.raises(InputError, match="http_proxy"):
        open_base("m", base_url="http://host.example/v1", tokenizer=None)
    open_base("m", base_url="https://host.example/v1", api_key=KEY, tokenizer=None)  # is not asked through it


@pytest.mark.parametrize(
    "no_proxy", ["*", "127.0.0.1", "127.0.0.0/8", "localhost, 127.0.0.1", "foo.example,127.0.0.1:{port}"]
)
async def test_no_proxy_comes_first(monkeypatch: pytest.MonkeyPatch, no_proxy: str) -> None:
    with raw_server(good) as server:
        monkeypatch.setenv("ALL_PROXY", "socks5://10.1.1.1:1080")
        monkeypatch.setenv("NO_PROXY", no_proxy.replace("{port}", server.url.split(":")[2][:-3]))
        assert (await drafted(server.url)).positions


async def test_a_proxy_is_asked_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_server(good) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//me:secret99@").removesuffix("/v1"))
        await drafted("http://host.example/v1")
        (seen,) = proxy.seen
    assert seen.path == "http://host.example/v1/completions"
    assert seen.headers["proxy-authorization"] == "Basic bWU6c2VjcmV0OTk="


async def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ALL_PROXY", f"http://me:hunter22@127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(ConnectionFailed, match=r"through the proxy http://.*ALL_PROXY") as caught:
            await drafted("http://host.example/v1")
        assert "NO_PROXY" in caught.value.hint
        assert "hunter22" not in str(caught.value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(ConnectionFailed) as caught:
            await drafted(f"http://127.0.0.1:{nobody.getsockname()[1]}/v1")
        assert "proxy" not in str(caught.value).lower()


async def test_a_socks_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("socksio")
    said: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (
            b"\x05\x00",
            b"\x05\x00\x00\x01" + bytes(6),
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + GOOD,
        ):
            said.append(await reader.read(1000))
            writer.write(reply)
            await writer.drain()
        writer.close()

    listening = await asyncio.start_server(proxy, "127.0.0.1", 0)
    monkeypatch.setenv("ALL_PROXY", f"socks://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    assert (await drafted("http://host.example/v1")).positions
    listening.close()
    assert said[0] == b"\x05\x01\x00"
    assert b"host.example" in said[1]
