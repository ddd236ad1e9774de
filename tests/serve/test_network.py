"""The emulated network on a real server: nothing arrives too early, and who hangs up stops the model."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest

from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import ConnectionFailed, InputError
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.host.network import Network, OverNetwork
from blackbox_proxy.host.process import HostProcess
from blackbox_proxy.host.run import run_host
from blackbox_proxy.serve.engine import Engine, Event, TextWanted
from blackbox_proxy.serve.routes import create_app
from blackbox_proxy.types import Usage

FIRST, PER = 0.2, 0.05  # seconds
EARLY = 0.005  # seconds by which clocks may differ
PROMPT = "The mayor of New York"
BODY: dict[str, Any] = {"model": "far", "prompt": PROMPT, "max_tokens": 20, "temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def url(models: dict[str, str]) -> Iterator[str]:
    engine = open_engine(models["base"], served_model_name="far", device="cpu", first_token=FIRST, per_token=PER)
    with serve_in_thread(create_app(engine)) as url:
        yield url


def ask(url: str, timeout: float = 30, **fields: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)
    try:
        connection.request("POST", "/v1/completions", json.dumps(BODY | fields), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
    except BaseException:
        connection.close()
        raise
    return connection, answer


def whole(url: str, **fields: Any) -> tuple[float, Any]:
    """Seconds until the answer, and the answer."""
    start = time.monotonic()
    connection, answer = ask(url, **fields)
    body = json.load(answer)
    connection.close()
    return time.monotonic() - start, body


def streamed(url: str, **fields: Any) -> list[tuple[float, Any]]:
    """The chunks of a stream, each with the seconds until it came."""
    start = time.monotonic()
    connection, answer = ask(url, stream=True, **fields)
    chunks = [(time.monotonic() - start, json.loads(line[6:])) for line in answer if line.startswith(b"data: {")]
    connection.close()
    return chunks


def stats(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/stats", timeout=10) as answer:
        found: dict[str, int] = json.load(answer)
    return found


def wait_for_rest(url: str) -> dict[str, int]:
    """The counts once no text is being written any more."""
    deadline = time.monotonic() + 20
    while (found := stats(url))["active"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


# -- timing ---------------------------------------------------------------------------------------------------------


def test_no_token_comes_before_its_time(url: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = streamed(url, logprobs=1, stream_options=options)
    count = 0
    arrivals = []
    for arrival, chunk in chunks:
        count = chunk["usage"]["completion_tokens"]
        assert arrival >= FIRST + max(0, count - 1) * PER - EARLY
        arrivals.append(arrival)
    assert count > 15
    assert arrivals[-1] - arrivals[1] >= 10 * PER  # it is a stream: the first token does not wait for the last


def test_a_whole_answer_takes_as_long_as_its_tokens(url: str) -> None:
    took, answer = whole(url)
    assert took >= FIRST + (answer["usage"]["completion_tokens"] - 1) * PER - EARLY


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_an_echo_takes_as_long_as_one_token(url: str, stream: bool, logprobs: int | None) -> None:
    fields = {"echo": True, "max_tokens": 0, "logprobs": logprobs}
    if stream:
        chunks = streamed(url, **fields)
        assert "".join(chunk["choices"][0]["text"] for _, chunk in chunks) == PROMPT
        assert chunks[0][0] >= FIRST - EARLY
    else:
        took, answer = whole(url, **fields)
        assert answer["choices"][0]["text"] == PROMPT
        assert took >= FIRST - EARLY


def test_the_text_is_the_same(url: str, models: dict[str, str]) -> None:
    near = open_engine(models["base"], served_model_name="far", device="cpu")
    assert not isinstance(near, OverNetwork)
    with serve_in_thread(create_app(near)) as here:
        assert whole(here, max_tokens=100)[1]["usage"]["completion_tokens"] == 100  # it would go on, if not left
        for fields in ({"logprobs": 2}, {"echo": True}, {"stop": "a"}):
            [far], [close] = (whole(where, **fields)[1]["choices"] for where in (url, here))
            assert (far["text"], far["finish_reason"]) == (close["text"], close["finish_reason"])
            if close["logprobs"]:
                assert far["logprobs"]["tokens"] == close["logprobs"]["tokens"]
                assert far["logprobs"]["text_offset"] == close["logprobs"]["text_offset"]
                logprobs = far["logprobs"]["token_logprobs"]
                assert logprobs == pytest.approx(close["logprobs"]["token_logprobs"], abs=1e-4)


class Slow:
    """An engine that takes its time for everything and notes when it began each token."""

    name, top_logprobs, context = "slow", 5, 100
    own_fields, about = (), dict[str, Any]()

    def __init__(self, per_token: float, fails: bool = False) -> None:
        self.asked: list[TextWanted] = []
        self.began: list[float] = []
        self._per_token = per_token
        self._fails = fails

    def check(self, wanted: TextWanted) -> None:
        self.asked.append(wanted)

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        yield Event("prompt", usage=Usage(prompt_tokens=1))
        if self._fails:
            raise ConnectionFailed("the model is away")
        for index in range(8):
            self.began.append(time.monotonic())
            await asyncio.sleep(self._per_token)
            yield Event(str(index), finish_reason="length" if index == 7 else None, usage=Usage(completion_tokens=1))


async def test_the_time_of_the_model_is_part_of_the_delay() -> None:
    slow = Slow(0.04)
    start = time.monotonic()
    events = [
        (event.text, time.monotonic() - start)
        async for event in OverNetwork(slow, Network(0.1, 0.05)).complete(TextWanted("hi", 8))
    ]
    assert [text for text, _ in events] == ["prompt", *"01234567"]
    assert events[0][1] >= 0.1 - EARLY
    for place, (_, arrival) in enumerate(events[1:]):
        assert arrival >= 0.1 + place * 0.05 - EARLY
        if place > 1:  # at most one token ahead of the one that has been passed on
            assert slow.began[place] - start >= 0.1 + (place - 1) * 0.05 - EARLY
    assert slow.began[0] - start < events[0][1]  # the first token is written while the prompt is under way


async def test_the_rest_of_an_engine_shines_through() -> None:
    slow = Slow(0.0, fails=True)
    far: Engine = OverNetwork(slow, Network(0.01, 0.0))
    assert (far.name, far.top_logprobs, far.context) == ("slow", 5, 100)
    asked = TextWanted("hi", 8)
    far.check(asked)
    assert slow.asked == [asked]
    with pytest.raises(ConnectionFailed):
        _ = [event async for event in far.complete(asked)]


# -- hanging up -----------------------------------------------------------------------------------------------------


def test_hanging_up_stops_the_model(url: str) -> None:
    before = wait_for_rest(url)
    connection, answer = ask(url, max_tokens=100, stream=True, logprobs=0)
    seen = 0
    while seen < 3:
        line = answer.readline()
        seen += line.startswith(b"data: {") and bool(json.loads(line[6:])["choices"][0]["logprobs"]["tokens"])
    answer.close()
    connection.close()
    written = wait_for_rest(url)["completion_tokens"] - before["completion_tokens"]
    assert 3 <= written < 50


def test_hanging_up_on_a_whole_answer_stops_the_model(url: str) -> None:
    before = wait_for_rest(url)
    with pytest.raises(TimeoutError):
        ask(url, timeout=FIRST + 3 * PER, max_tokens=100)
    written = wait_for_rest(url)["completion_tokens"] - before["completion_tokens"]
    assert written < 50


# -- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["first_token", "per_token"])
@pytest.mark.parametrize("take", [Network, lambda **given: open_engine("no model", **given)])
def test_bad_delays_are_refused(take: Callable[..., object], name: str, seconds: float) -> None:
    with pytest.raises(InputError, match=name):
        take(**{name: seconds})


@pytest.mark.slow
def test_the_options_reach_the_process(models: dict[str, str]) -> None:
    with HostProcess(
        models["base"], served_model_name="far", device="cpu", threads=1, first_token=FIRST, per_token=PER
    ) as host:
        took, answer = whole(host.url, max_tokens=5)
    assert took >= FIRST + (answer["usage"]["completion_tokens"] - 1) * PER - EARLY


def test_a_host_refuses_bad_delays(models: dict[str, str]) -> None:
    with pytest.raises(InputError, match="per_token"):
        run_host(models["base"], port=0, per_token=-1)
