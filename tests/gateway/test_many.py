"""Many users at once: the same texts, fair turns, places that come free, and ends in good order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from faults import Fault, Faulty
from gateways import Gateway, Pairs, gateway
from openai import AsyncOpenAI

from blackbox_proxy import ProxyTuner
from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.gateway.app import Room
from blackbox_proxy.gateway.places import Places

WORDS = ("The mayor", "New York", "theory and", "20 people", "café in", "there they", "Whether it", "Newark is")

SPARE = 20  # connections to the base that may be kept for the next request
MOST_KEPT = 32.0  # MiB that memory may grow by, whether 20 clients drop or 1,000


def prompts(count: int) -> list[str]:
    return [f"{WORDS[i % len(WORDS)]} {WORDS[i // len(WORDS) % len(WORDS)].lower()}" for i in range(count)]


async def streamed(client: AsyncOpenAI, prompt: str, max_tokens: int = 8, **more: Any) -> str:
    stream = await client.completions.create(
        model="tuned", prompt=prompt, max_tokens=max_tokens, temperature=0, stream=True, **more
    )
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def together(running: Gateway, count: int) -> list[str]:
    async with running.client() as client:
        return list(await asyncio.gather(*(streamed(client, prompt) for prompt in prompts(count))))


async def settled(running: Gateway) -> None:
    """Wait until nothing is answered any more."""
    deadline = time.monotonic() + 10
    while running.porter.places.active or running.porter.places.waiting:
        assert time.monotonic() < deadline, "a place is still taken"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("count", [6, pytest.param(64, marks=pytest.mark.serve)])
async def test_texts_of_many_at_once_are_those_of_one_alone(running: Gateway, tuner: ProxyTuner, count: int) -> None:
    found = await together(running, count)
    assert found == [tuner.generate(prompt, max_tokens=8).text for prompt in prompts(count)]
    await settled(running)


@dataclass(frozen=True)
class Held:
    """What is held on to: tasks of the gateway's loop, open files (connections to clients and to the base are sockets
    of this process), live threads, MiB of memory.
    """

    tasks: int
    files: int
    threads: int
    memory: float

    @classmethod
    def by(cls, running: Gateway) -> Held:
        tasks = concurrent.futures.Future[int]()
        running.call(lambda: tasks.set_result(len(asyncio.all_tasks())))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        threads = sum(thread.is_alive() for thread in threading.enumerate())
        files = len(os.listdir("/proc/self/fd"))
        return cls(tasks.result(10), files, threads, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.serve)])
async def test_clients_that_go_away_leave_nothing_behind(running: Gateway, count: int) -> None:
    host, port = urlsplit(running.url).hostname, urlsplit(running.url).port
    body = json.dumps({"model": "tuned", "prompt": "The mayor", "max_tokens": 200, "stream": True}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request)
        if number % 3:
            await writer.drain()
        if number % 3 == 2:  # has begun to read
            await reader.read(1)
        writer.transport.abort()

    async def dropped(count: int) -> Held:
        for start in range(0, count, 20):
            await asyncio.gather(*(one(start + i) for i in range(20)))
            await settled(running)
        deadline = time.monotonic() + 10  # what was cancelled needs a moment to end
        while (held := Held.by(running)).tasks > quiet.tasks or held.files > quiet.files + SPARE:
            assert time.monotonic() < deadline, f"{held} after {quiet}"
            gc.collect()
            await asyncio.sleep(0.05)
        return held

    await together(running, 2)
    await settled(running)
    quiet = Held.by(running)
    warm = await dropped(20 if count < 1000 else 200)
    held = await dropped(count)
    assert held.threads < 150  # of the pool that scores texts, and no more
    assert held.memory < warm.memory + MOST_KEPT
    before = time.monotonic()
    assert await together(running, 2)
    assert time.monotonic() - before < 10


async def test_a_client_that_goes_away_frees_its_place_within_a_step(
    models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str]
) -> None:
    with gateway(models, pairs, hosted(5), room=Room(active=1, waiting=1)) as running:
        async with running.client() as client:
            stream = await client.completions.create(
                model="tuned", prompt="The mayor", max_tokens=400, temperature=0, stream=True
            )
            await anext(stream)
            waiting = asyncio.create_task(streamed(client, "New York", max_tokens=2))
            while not running.porter.places.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with pytest.raises(openai.RateLimitError, match="Try again later") as refused:
                await streamed(client, "Newark", max_tokens=2)
            assert int(refused.value.response.headers["retry-after"]) >= 1
            assert running.porter.places.active == 1
            await stream.close()
            assert await asyncio.wait_for(waiting, 10)


async def test_places_go_round_the_callers() -> None:
    places, order = Places(active=1, waiting=10), list[str]()

    async def one(caller: str) -> None:
        async with places.taken(caller):
            order.append(caller)
            await asyncio.sleep(0)

    async with places.taken("greedy"):
        tasks = [asyncio.create_task(one(caller)) for caller in ["greedy"] * 5 + ["modest", "other"]]
        await asyncio.sleep(0)
        assert (places.active, places.waiting) == (1, 7)
        tasks[0].cancel()  # who leaves the queue holds up nobody
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["modest", "other", *["greedy"] * 4]
    assert (places.active, places.waiting) == (0, 0)


async def test_a_full_queue_says_when_to_come_back() -> None:
    places = Places(active=1, waiting=0)
    async with places.taken("a"):
        with pytest.raises(ApiError, match="Try again later") as refused:
            async with places.taken("b"):
                pass
    assert refused.value.status == 429
    assert refused.value.headers["retry-after"] == "1"


@pytest.mark.parametrize("count", [6, pytest.param(32, marks=pytest.mark.serve)])
async def test_the_far_side_dies_and_comes_back(
    models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str], count: int
) -> None:
    address, dead = urlsplit(hosted(5)), False
    fails = lambda: Fault("rejected") if dead else None  # noqa: E731
    with Faulty(str(address.hostname), int(address.port or 0), fails) as network:  # noqa: SIM117
        with gateway(models, pairs, network.url, max_attempts=1) as running:
            async with running.client() as client:
                alive = await streamed(client, "The mayor")

                async def failing(prompt: str) -> str:
                    stream = await client.completions.create(
                        model="tuned", prompt=prompt, max_tokens=300, temperature=0, stream=True
                    )
                    async with stream:
                        await anext(stream)
                        begun.release()
                        try:  # with pytest.raises the client's generators would be left to the collector, in any thread
                            async for _ in stream:
                                pass
                        except openai.APIError as error:
                            return str(error)
                    return "no error"

                begun = asyncio.Semaphore(0)
                tasks = [asyncio.create_task(failing(prompt)) for prompt in prompts(count)]
                for _ in tasks:
                    await begun.acquire()
                dead = True
                said = await asyncio.gather(*tasks)
                assert set(said) == {"The model behind this server cannot be reached."}
                with pytest.raises(openai.InternalServerError) as down:
                    await streamed(client, "New York")
                assert down.value.status_code == 502
                dead = False
                assert await streamed(client, "The mayor") == alive
            await settled(running)


@pytest.fixture
def ending(models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str]) -> Iterator[Gateway]:
    with gateway(models, pairs, hosted(5), room=Room(active=8, waiting=8)) as running:
        yield running


async def test_who_is_being_answered_when_the_time_is_up_is_told(ending: Gateway) -> None:
    async with ending.client() as client:
        stream = await client.completions.create(
            model="tuned", prompt="The mayor", max_tokens=400, temperature=0, stream=True
        )
        await anext(stream)
        ending.call(ending.porter.break_off)
        with pytest.raises(openai.APIError, match="being stopped"):
            async for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError, match="being stopped"):
            await streamed(client, "New York")
    with socket.create_connection((urlsplit(ending.url).hostname or "", urlsplit(ending.url).port or 0)) as connection:
        connection.sendall(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert b"503" in connection.recv(100)
