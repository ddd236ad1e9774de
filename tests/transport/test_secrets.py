"""The API key is nowhere but in the request; what is asked is in no log of this package."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from api_answers import legacy
from api_server import Asking, Server
from raw_server import Asked, Out, raw_server
from starlette.responses import HTMLResponse, JSONResponse, Response

from blackbox_proxy.base.opening import open_base
from blackbox_proxy.errors import BaseError, InputError
from blackbox_proxy.protocols import Ask
from blackbox_proxy.types import Prefix

KEY = "sk-very-secret-1234"
PROMPT = "what nobody should read"
ECHO = f"{KEY} was sent with {PROMPT!r}"
"""What a careless server says."""


def event(value: Any) -> Response:
    text = value if isinstance(value, str) else json.dumps(value)
    return Response(f"data: {text}\n\n", media_type="text/event-stream")


def refused(status: int, **headers: str) -> Response:
    return JSONResponse({"error": {"message": ECHO}}, status, headers=headers)


async def hangs_up(sent: dict[str, Any]) -> Response:
    logging.getLogger("uvicorn.error").disabled = True  # it reports the short body, rightly
    return Response(json.dumps(ECHO)[:-1], headers={"content-length": "500"})


FAILURES = {
    "401": refused(401),
    "429": refused(429, **{"retry-after": "1"}),
    "500": refused(500),
    "400, retried": refused(400, **{"x-should-retry": "true"}),
    "page": HTMLResponse(f"<html>{ECHO}"),
    "cut": Response(json.dumps({"choices": [ECHO]})[:-2], media_type="application/json"),
    "cut in a character": Response(f'{{"{ECHO} é'.encode()[:-1], media_type="application/json"),
    "hangs up": hangs_up,
    "error inside": JSONResponse({"error": {"message": ECHO, "code": KEY}}),
    "event": event({"error": {"message": ECHO, KEY: [KEY]}}),
    "no JSON in an event": event(f'{{"{ECHO}'),
    "no characters in an event": Response(f"data: {ECHO}".encode() + b"\xff\n\n", media_type="text/event-stream"),
    "string": event(json.dumps(ECHO)),
    "malformed": JSONResponse({"choices": [{"text": ECHO, "logprobs": {"tokens": [ECHO]}}]}),
    "without logprobs": JSONResponse({"choices": [{"text": ECHO, "finish_reason": "stop"}]}),
}


def chain(error: BaseException) -> Iterator[BaseException]:
    left: list[BaseException | None] = [error]
    while left:
        link = left.pop()
        if link is not None:
            yield link
            left += [link.__cause__, link.__context__]


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failing_request_tells_nobody(
    server: Server, asking: Asking, caplog: pytest.LogCaptureFixture, failure: Any, stream: bool
) -> None:
    """Over HTTP, with every logger at DEBUG (those of the client library do print what is asked)."""
    caplog.set_level(logging.DEBUG)
    server.answers = [failure]
    base = asking(api_key=KEY, max_attempts=2)

    async def ask() -> None:
        if stream:
            _ = [part async for part in base.stream(Ask(Prefix(PROMPT), 4))]
        else:
            await base.draft(Ask(Prefix(PROMPT), 4))

    with pytest.raises(BaseError) as caught:
        await ask()
    await base.aclose()
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    shown = ["".join(traceback.format_exception(caught.value)), caught.value.hint, repr(base)]
    for link in chain(caught.value):
        shown += [str(link), repr(link), repr({name: value for name, value in vars(link).items() if name != "request"})]
    assert not [text for text in shown if KEY in text]
    logged = [(record.name, record.getMessage() + (record.exc_text or "")) for record in caplog.records]
    assert any(name.startswith(("openai", "httpx2")) for name, _ in logged)
    assert not [line for line in logged if KEY in line[1]]
    assert not [line for name, line in logged if name.startswith("blackbox_proxy") and PROMPT in line]
    assert len(server.sent) == 1 or any(name == "blackbox_proxy.transport.retry" for name, _ in logged)


async def test_a_stream_that_breaks_is_one_line(
    server: Server, asking: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="blackbox_proxy")
    chunk = legacy((" the", -0.1, {" the": -0.1}), text=" the", finish=None)
    server.answers = [event(json.dumps(chunk) + "\n\ndata: " + json.dumps({"error": {"message": ECHO, "code": 503}}))]
    base = asking(api_key=KEY)
    parts = [part async for part in base.stream(Ask(Prefix(PROMPT), 4))]
    await base.aclose()
    assert parts[-1].usage.retries == 1
    assert [record.getMessage() for record in caplog.records] == [
        "a stream broke after 1 positions (ServerFailed 503), the next goes on from there"
    ]


async def test_nothing_of_the_key_in_what_a_base_shows(asking: Asking) -> None:
    base = asking(base_url=f"http://me:{KEY}@127.0.0.1:9/v1?key={KEY}", max_attempts=1)
    assert KEY not in repr(base) + str(base) + base.url + repr(base.settings) + repr(base._connection)
    with pytest.raises(BaseError) as caught:
        await base.draft(Ask(Prefix(PROMPT), 1))
    assert KEY not in "".join(traceback.format_exception(caught.value))
    await base.aclose()


def test_a_key_and_a_password_do_not_replace_each_other(asking: Asking) -> None:
    with pytest.raises(InputError, match="only one can be sent"):
        asking(api_key=KEY, base_url="http://me:password@127.0.0.1:9/v1")
    asking(api_key=KEY, base_url="http://me:password@127.0.0.1:9/v1", dialect="azure")  # has a header of its own


@pytest.mark.parametrize("stream", [False, True])
async def test_what_else_is_secret_is_shown_nowhere(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    """A password and a key in the URL, a key in extra_body; the server repeats what it was sent in all its parts."""
    password, query, body = "hunter2-of-mine", "qk-1234567890", "bk-abcdef1234567890"

    async def repeats(asked: Asked, out: Out) -> None:
        said = f"{asked.path} {asked.headers} {asked.body.decode()}"
        await out.whole(json.dumps({"error": {"message": said}}).encode(), f"400 {asked.path}", x_said=asked.path)

    caplog.set_level(logging.DEBUG)
    with raw_server(repeats) as server:
        url = server.url.replace("//", f"//me:{password}@") + f"?api-key={query}"
        extra = {"provider": {"api_key": body}}
        base = open_base("m", base_url=url, extra_body=extra, max_attempts=1, tokenizer=None)
        assert body not in str(base.identity)
        asked = base.stream(Ask(Prefix(PROMPT), 1)) if stream else None
        with pytest.raises(BaseError) as caught:
            await (anext(asked) if asked is not None else base.draft(Ask(Prefix(PROMPT), 1)))
        await base.aclose()
        (seen,) = server.seen
    assert query in seen.path
    assert body in seen.body.decode()
    basic = seen.headers["authorization"].removeprefix("Basic ")
    shown = ["".join(traceback.format_exception(caught.value)), caught.value.hint, repr(base)]
    shown += [record.getMessage() + (record.exc_text or "") for record in caplog.records]
    assert "[secret]" in shown[0]
    assert [secret for secret in (password, query, body, basic) if any(secret in text for text in shown)] == []
