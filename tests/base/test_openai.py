"""`open_base` and `OpenAIBase` over real HTTP: real client, real sockets, a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest
from api_answers import chat, entry, legacy
from api_server import Asking, Server
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.opening import open_base
from blackbox_proxy.dialects.table import DIALECTS, Dialect
from blackbox_proxy.errors import (
    AccessDenied,
    BadRequest,
    BadResponse,
    BlackboxError,
    CannotContinue,
    ConnectionFailed,
    ContextTooLong,
    InputError,
    ModelNotFound,
    ModelUnavailable,
    NoLogprobs,
    QuotaExhausted,
    RateLimited,
    ServerFailed,
)
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Prefix, Token, Usage

KEY = "sk-very-secret-1234"
GOOD = legacy((" the", -0.1, {" the": -0.1, " a": -2.5}), (" cat", -0.2, {" cat": -0.2}), text=" the cat")
THE = Token(256, b" the", " the")


def refusal(status: int, message: str = "no", headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    return JSONResponse({"error": {"message": message, **more}}, status_code=status, headers=headers)


async def draft(base: OpenAIBase, prefix: Prefix | None = None, n: int = 4, **more: Any) -> Any:
    try:
        return await base.draft(Ask(prefix or Prefix("Hi"), n, **more))
    finally:
        await base.aclose()


# -- the plain way ----------------------------------------------------------------------------------------------------


async def test_a_draft_from_completions(server: Server, asking: Asking) -> None:
    server.answers = [GOOD]
    base = asking(api_key=KEY)
    found = await draft(base, Prefix("Hi", (THE,)), temperature=1.0, seed=3)
    assert [position.token.bytes for position in found.positions] == [b" the", b" cat"]
    assert [token.bytes for token in found.positions[0].tokens] == [b" the", b" a"]
    assert found.finish == "length"
    assert found.usage == Usage(api_calls=1, prompt_tokens=3, completion_tokens=2)
    assert server.paths == ["/v1/completions"]
    assert server.sent == [
        {"model": "m", "prompt": "Hi the", "max_tokens": 4, "logprobs": 5, "temperature": 1.0, "top_p": 1.0, "seed": 3}
    ]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_a_draft_from_chat(server: Server, asking: Asking, vocabulary: Vocabulary) -> None:
    top = [entry("token_id:256", -0.1, list(b"token_id:256")), entry("token_id:261", -3.0, list(b"token_id:261"))]
    server.answers = [chat(top[0] | {"top_logprobs": top}, text=" the")]
    found = await draft(asking(api="chat", dialect="vllm", tokenizer=vocabulary), Prefix("Hi", (THE,)), n=1)
    assert found.positions[0].tokens == (THE, Token(261, b"", "<|endoftext|>", end=True))
    assert server.paths == ["/v1/chat/completions"]
    (sent,) = server.sent
    assert sent["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " the"}]
    assert (sent["logprobs"], sent["top_logprobs"], sent["max_tokens"]) == (True, 20, 1)
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert sent["return_tokens_as_token_ids"] is True


async def test_ids_travel_where_the_tokenizer_is_known(server: Server, asking: Asking, vocabulary: Vocabulary) -> None:
    server.answers = [GOOD]
    found = await draft(asking(tokenizer=vocabulary), Prefix("Hi", (THE,)))
    assert server.sent[0]["prompt"] == [258, 256]
    assert [position.token.id for position in found.positions] == [256, 257]


async def test_an_immediate_end(server: Server, asking: Asking) -> None:
    server.answers = [{"choices": [{"message": {"content": ""}, "finish_reason": "stop", "logprobs": {"content": []}}]}]
    found = await draft(asking(api="chat"), n=1)
    assert (found.positions, found.finish) == ((), "stop")


async def test_numbers_that_are_not_json_are_read(server: Server, asking: Asking) -> None:
    """Minus infinity is a token without a probability; what is no number at all is refused."""

    def answer(number: str) -> Response:
        columns = f'"tokens": ["a"], "token_logprobs": [{number}], "top_logprobs": [{{"a": {number}, "c": -1}}]'
        body = f'{{"choices": [{{"text": "a", "logprobs": {{{columns}}}}}]}}'
        return Response(body, media_type="application/json")

    server.answers = [answer("-Infinity")]
    (position,) = (await draft(asking())).positions
    assert position.logprob is None
    assert [token.text for token in position.tokens] == ["c"]
    server.answers = [answer("NaN")]
    with pytest.raises(BadResponse, match="not a number"):
        await draft(asking())


async def test_nothing_is_sent_from_where_the_api_cannot_continue(server: Server, asking: Asking) -> None:
    base = asking(api="chat")
    assert isinstance(base, Base)
    with pytest.raises(CannotContinue):
        await draft(base, Prefix("Hi", (THE,)))
    assert not base.can_continue(Prefix("Hi", (THE,)))
    base.check("Hi", 1)
    with pytest.raises(CannotContinue):
        base.check("Hi", 2)
    assert server.sent == []


def test_room(vocabulary: Vocabulary) -> None:
    base = open_base("m", base_url="http://localhost/v1", tokenizer=vocabulary, context=10)
    assert base.room(Prefix("Hi the")) == 8
    assert base.room(Prefix("Hi the", (THE,) * 3)) == 5
    assert base.room(Prefix("Hi the", (THE,) * 30)) == 0
    with pytest.raises(ContextTooLong):
        base.check("Hi the", 9)
    assert open_base("m", base_url="http://localhost/v1", context=10, tokenizer=None).room(Prefix("Hi")) is None
    assert open_base("m", base_url="http://localhost/v1", tokenizer=vocabulary).room(Prefix("Hi")) is None
    assert (base.name, base.vocabulary, base.context) == ("m", vocabulary, 10)


LOST = [
    (HTMLResponse(f"<html>gateway {KEY}</html>"), BadResponse),
    (Response("", media_type="application/json"), BadResponse),
    (Response('{"choices": [{"te', media_type="application/json"), BadResponse),
    (Response(status_code=204), BadResponse),
    (JSONResponse({"error": {"message": f"upstream failed {KEY}"}}), ServerFailed),
    (JSONResponse({"error": {"message": "slow down", "code": 429}}), RateLimited),
]
"""Answers with a good status that did not arrive whole, and what is raised when that does not end."""


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (refusal(401, f"Incorrect API key provided: {KEY}"), AccessDenied, "Incorrect API key"),
        (refusal(403), AccessDenied, "403"),
        (refusal(404, "The model `m` does not exist", code="model_not_found"), ModelNotFound, "'m'"),
        (HTMLResponse("<h1>Not Found", 404), ModelNotFound, "404"),
        (refusal(400, "logprobs: max is 5"), BadRequest, "max is 5"),
        (refusal(400, "4097 tokens", code="context_length_exceeded"), ContextTooLong, "4097"),
        (refusal(429, "no money", code="insufficient_quota"), QuotaExhausted, "no money"),
        (JSONResponse("gateway"), BadResponse, "not a completion"),
        (JSONResponse({"error": {"message": f"too odd {KEY}", "code": 400}}), BadRequest, "too odd"),
        (JSONResponse({"error": {"message": "x", "code": "insufficient_quota"}}), QuotaExhausted, "no money"),
        (refusal(500, headers={"x-should-retry": "false"}), ServerFailed, "500"),
        (JSONResponse({"object": "list", "data": []}), BadResponse, "no choices"),
        (JSONResponse({"choices": [{"text": "Hi", "finish_reason": "stop"}]}), NoLogprobs, "without"),
        (Response(status_code=304), BadResponse, "304"),
    ],
)
async def test_what_no_retry_cures(
    server: Server, asking: Asking, answer: Response, kind: type[BlackboxError], says: str
) -> None:
    server.answers = [answer]
    with pytest.raises(kind, match=says) as caught:
        await draft(asking(api_key=KEY))
    assert caught.value.hint
    assert len(server.sent) == 1
    assert KEY not in "".join(traceback.format_exception(caught.value))


async def test_rate_limits_are_waited_out(server: Server, asking: Asking) -> None:
    server.answers = [
        refusal(429, headers={"Retry-After": "7"}),
        refusal(429, headers={"retry-after-ms": "250", "Retry-After": "7"}),
        refusal(503, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
        GOOD,
    ]
    found = await draft(asking())
    assert 7.0 <= asking.slept[0] <= 7.7
    assert 0.25 <= asking.slept[1] <= 0.275
    assert 0.0 < asking.slept[2] <= 2.0  # of its own accord
    assert len(asking.slept) == 3
    assert found.usage == Usage(api_calls=1, prompt_tokens=3, completion_tokens=2, retries=3)
    assert len(server.sent) == 4
    assert all(sent == server.sent[0] for sent in server.sent)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(429), RateLimited),
        (refusal(500), ServerFailed),
        (refusal(408), ConnectionFailed),
        (refusal(409), ServerFailed),
        (refusal(400, headers={"x-should-retry": "true"}), BadRequest),
        (HTMLResponse("<html>", 502), ServerFailed),
        *LOST,
    ],
)
async def test_attempts_run_out(server: Server, asking: Asking, answer: Response, kind: type[BlackboxError]) -> None:
    server.answers = [answer]
    with pytest.raises(kind):
        await draft(asking(max_attempts=3))
    assert len(server.sent) == 3
    assert len(asking.slept) == 2


@pytest.mark.parametrize("answer", [answer for answer, _ in LOST])
async def test_an_answer_that_got_lost_is_asked_for_again(server: Server, asking: Asking, answer: Response) -> None:
    server.answers = [answer, answer, GOOD]
    found = await draft(asking())
    assert (len(found.positions), found.usage) == (2, Usage(1, 3, 2, retries=2))


async def test_the_time_for_retries_is_bounded(server: Server, asking: Asking) -> None:
    server.answers = [refusal(429, headers={"Retry-After": "7"})]
    with pytest.raises(RateLimited):
        await draft(asking(max_retry_seconds=6.0))
    assert (len(server.sent), asking.slept) == (1, [])


async def test_an_answer_that_cannot_be_read_is_not_bought_again(server: Server, asking: Asking) -> None:
    server.answers = [{"choices": [{"text": "a", "logprobs": {"tokens": ["a"]}}]}]
    with pytest.raises(BadResponse):
        await draft(asking())
    assert len(server.sent) == 1


async def test_an_answer_that_breaks_off_is_asked_for_again(server: Server, asking: Asking) -> None:
    async def broken(sent: dict[str, Any]) -> Response:
        return Response(b'{"choices"', headers={"content-length": "500"})

    server.answers = [broken, GOOD]
    logging.getLogger("uvicorn.error").disabled = True  # it reports the short body, rightly
    found = await draft(asking())
    assert (len(found.positions), found.usage.retries) == (2, 1)


async def test_timeouts(server: Server, asking: Asking) -> None:
    async def slow(sent: dict[str, Any]) -> Any:
        await asyncio.sleep(1.0)
        return JSONResponse(GOOD)

    server.answers = [slow]
    with pytest.raises(ConnectionFailed, match="did not answer in time") as caught:
        await draft(asking(timeout=0.1, max_attempts=2))
    assert (caught.value.retryable, len(server.sent)) == (True, 2)
    server.answers = [slow, GOOD]
    assert (await draft(asking(timeout=0.4))).usage.retries == 1


async def test_a_stream_that_stalls_in_the_middle(server: Server, asking: Asking) -> None:
    async def stalls(sent: dict[str, Any]) -> Any:
        async def body() -> AsyncIterator[bytes]:
            yield b'{"choices": ['
            await asyncio.sleep(0.5)

        return StreamingResponse(body(), media_type="application/json")

    server.answers = [stalls]
    with pytest.raises(ConnectionFailed, match="in time"):
        await draft(asking(timeout=0.05, max_attempts=1))


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    base = open_base("m", base_url=url, max_attempts=1, tokenizer=None)
    with pytest.raises(ConnectionFailed, match=url) as caught:
        await draft(base)
    assert "server runs" in caught.value.hint
    assert caught.value.__cause__ is not None


async def test_a_cancelled_draft_ends_at_once(server: Server, asking: Asking) -> None:
    async def slow(sent: dict[str, Any]) -> Any:
        await asyncio.sleep(1.0)
        return JSONResponse(GOOD)

    server.answers = [slow]
    base = asking()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(base.draft(Ask(Prefix("Hi"), 1)), 0.1)
    assert time.monotonic() - started < 0.8
    await base.aclose()


# -- connections ------------------------------------------------------------------------------------------------------


def test_one_base_in_several_event_loops(server: Server, asking: Asking) -> None:
    server.answers = [GOOD]
    base = asking()
    for _ in range(3):
        assert len(asyncio.run(draft(base)).positions) == 2
    assert len(base._connection._clients) == 0


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_clients_of_dead_loops_are_let_go(server: Server, asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    """A caller who forgets to close: no pile of clients, and no complaint from a task that nobody started."""
    server.answers = [GOOD]
    base = asking()

    async def once() -> None:
        await base.draft(Ask(Prefix("Hi"), 4))
        gc.collect()
        await asyncio.sleep(0)

    for _ in range(3):
        asyncio.run(once())
    assert len(base._connection._clients) == 1
    base._connection._clients.clear()
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_concurrent_drafts_share_a_client_and_closing_is_not_the_end(server: Server, asking: Asking) -> None:
    server.answers = [GOOD]
    base = asking()
    await asyncio.gather(*(base.draft(Ask(Prefix(f"Hi {i}"), 4)) for i in range(8)))
    assert len(base._connection._clients) == 1
    assert {sent["prompt"] for sent in server.sent} == {f"Hi {i}" for i in range(8)}
    await base.aclose()
    assert len((await draft(base)).positions) == 2


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model": ""}, "name of its model"),
        ({"api": "responses"}, "unknown api"),
        ({"dialect": "klingon"}, "unknown dialect"),
        ({"top_logprobs": 6}, "completions API gives at most 5"),
        ({"top_logprobs": 21, "api": "chat"}, "chat API gives at most 20"),
        ({"top_logprobs": 0}, "at least 1"),
        ({"top_logprobs": True}, "at least 1"),
        ({"top_logprobs": 2.5}, "at least 1"),
        ({"base_url": "localhost:8000"}, "not a URL"),
        ({"base_url": "ftp://host/v1"}, "not a URL"),
        ({"base_url": "http://"}, "not a URL"),
        ({"base_url": "http://host:port/v1"}, "not a URL"),
        ({"base_url": "http://[::1/v1"}, "not a URL"),
        ({"base_url": "http://host/v1/chat/completions"}, "one route"),
        ({"base_url": "http://host/v1/completions/"}, "one route"),
        ({"rendering": "html"}, "unknown rendering"),
        ({"rendering": str, "api": "chat"}, "renders its prompts by itself"),
        ({"timeout": 0}, "positive"),
        ({"timeout": math.nan}, "positive"),
        ({"max_attempts": 0}, "positive"),
        ({"max_retry_seconds": 0}, "positive"),
        ({"context": 0}, "positive"),
        ({"extra_body": {"stop": ["x"]}}, "may not set stop"),
        ({"extra_body": {"max_tokens": 3, "n": 2}}, "may not set max_tokens, n"),
        ({"extra_body": {"x": object()}}, "JSON"),
        ({"extra_body": {"x": math.inf}}, "JSON"),
        ({"api_key": "sk\u2013x"}, "characters"),
        ({"api_key": "sk\nx"}, "characters"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        open_base(**{"model": "m", "base_url": "http://localhost/v1", "api_key": KEY, **arguments})
    assert KEY not in str(caught.value) + caught.value.hint


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    base = open_base("m", tokenizer=None)
    assert (base.url, base.settings.top_logprobs, base.settings.api) == ("https://api.openai.com/v1", 5, "completions")
    assert open_base("m", api="chat", tokenizer=None).settings.top_logprobs == 20
    assert open_base("m", dialect="vllm", tokenizer=None).settings.top_logprobs == 20
    assert open_base("m", dialect="vllm", top_logprobs=500, tokenizer=None).settings.top_logprobs == 500
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere/v1")
    assert open_base("m", tokenizer=None).url == "http://elsewhere/v1"
    own = Dialect("own", completions_k=7, chat_k=None)
    assert open_base("m", dialect=own, tokenizer=None).settings.top_logprobs == 7


async def test_a_key_is_needed_only_by_openai(server: Server, asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="needs a key") as caught:
        open_base("m")
    assert "OPENAI_API_KEY" in caught.value.hint
    server.answers = [GOOD]
    assert (await draft(asking())).positions
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert (await draft(asking())).positions
    assert server.headers[1]["authorization"] == f"Bearer {KEY}"


def test_nothing_secret_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    base = open_base("m", base_url="http://user:hunter2@host:8000/v1?sig=hunter3", tokenizer=None)
    assert repr(base) == "OpenAIBase('m', completions at http://host:8000/v1, dialect 'openai')"
    with pytest.raises(InputError) as caught:
        open_base("m", base_url="htp//user:hunter2@host", api_key=KEY)
    assert "hunter" not in str(caught.value)
    with pytest.raises(InputError, match="only one can be sent") as caught:
        open_base("m", base_url="http://user:hunter2@host:8000/v1", api_key=KEY)
    assert "hunter" not in f"{caught.value} {caught.value.hint}"
    assert KEY not in f"{caught.value} {caught.value.hint}"


async def test_the_key_is_not_logged(server: Server, asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.answers = [refusal(500, f"I was sent {KEY}"), GOOD]
    await draft(asking(api_key=KEY))
    assert caplog.records
    assert KEY not in caplog.text


def test_tokenizers(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, vocabulary: Vocabulary) -> None:
    loaded: list[str] = []

    def load(kind: str) -> Any:
        def loader(name: str) -> Vocabulary:
            loaded.append(f"{kind} {name}")
            return vocabulary

        return loader

    monkeypatch.setattr("blackbox_proxy.text.spelling.from_tiktoken", load("tiktoken"))
    monkeypatch.setattr("blackbox_proxy.text.spelling.from_pretrained", load("folder"))
    for tokenizer in ("cl100k_base", "org/model", tmp_path, vocabulary, None):
        base = open_base("m", base_url="http://localhost/v1", tokenizer=tokenizer)
        assert base.vocabulary is (None if tokenizer is None else vocabulary)
    assert loaded == ["tiktoken cl100k_base", "folder org/model", f"folder {tmp_path}"]


def test_a_tokenizer_that_is_not_there(tmp_path: Any) -> None:
    with pytest.raises(ModelUnavailable):
        open_base("m", base_url="http://localhost/v1", tokenizer=tmp_path)


def test_every_dialect_has_its_own_name() -> None:
    assert all(dialect.name == name for name, dialect in DIALECTS.items())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import blackbox_proxy; dir(blackbox_proxy)", "openai torch transformers httpx2 tiktoken"),
        ("from blackbox_proxy import open_base", "torch transformers tiktoken"),
        ("from blackbox_proxy.dialects.table import Dialect, DIALECTS", "openai torch transformers httpx2 tiktoken"),
    ],
)
def test_nothing_heavy_is_imported_until_used(statement: str, absent: str) -> None:
    check = f"{statement}; import sys; print(*(set({absent.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_offers_its_names() -> None:
    import blackbox_proxy as package

    assert package.open_base is open_base
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
