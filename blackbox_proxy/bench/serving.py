"""What `serve` is worth to many users: one streaming client, then many at once, over a base behind a network.

Everything is in processes of its own, as it would be: the base (`host`), the gateway (`serve`), and here the clients.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from openai import AsyncOpenAI
from rich.console import Console

from blackbox_proxy.bench.setting import Setting, table_over
from blackbox_proxy.errors import ServerFailed
from blackbox_proxy.host.network import Network
from blackbox_proxy.host.process import HostProcess
from blackbox_proxy.screen.tables import Table

_URL = re.compile(rb" at (http://\S+/v1)")


@dataclass(frozen=True, slots=True)
class Served:
    """What clients saw that streamed at the same time. first, between: seconds to the first token, and between tokens,
    of all texts. texts: in the order of the prompts.
    """

    clients: int
    texts: tuple[str, ...]
    first: tuple[float, ...]
    between: tuple[float, ...]
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


async def measure_clients(url: str, model: str, prompts: Sequence[str], clients: int, max_tokens: int) -> Served:
    """Greedy texts of all prompts, `clients` of them streamed at a time."""
    first: list[float] = []
    between: list[float] = []
    tokens = 0
    turn = asyncio.Semaphore(clients)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:

        async def one(prompt: str) -> str:
            nonlocal tokens
            async with turn:
                last, text = time.perf_counter(), ""
                stream = await client.completions.create(
                    model=model,
                    prompt=prompt,
                    max_tokens=max_tokens,
                    temperature=0,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                begun = False
                async for chunk in stream:
                    if chunk.usage is not None:
                        tokens += chunk.usage.completion_tokens
                    if chunk.choices and chunk.choices[0].text:
                        now = time.perf_counter()
                        (between if begun else first).append(now - last)
                        last, begun = now, True
                        text += chunk.choices[0].text
                return text

        start = time.perf_counter()
        texts = await asyncio.gather(*(one(prompt) for prompt in prompts))
        return Served(clients, tuple(texts), tuple(first), tuple(between), tokens, time.perf_counter() - start)


@asynccontextmanager
async def serving(host: HostProcess, setting: Setting) -> AsyncIterator[str]:
    """`blackbox-proxy serve` over this host; its URL. Raises ServerFailed with what it said."""
    command = [sys.executable, "-m", "blackbox_proxy", "serve", "--base", host.model, "--base-url", host.base_url]
    command += ["--dialect", "host", "--tokenizer", setting.base]
    command += ["--expert", setting.expert, "--antiexpert", setting.antiexpert]
    command += ["--port", "0", "--no-cache", "--device", "cpu", "--drain-seconds", "1"]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, env=os.environ)
    assert process.stderr is not None
    said = b""
    try:
        while (found := _URL.search(said)) is None:
            line = await process.stderr.readline()
            if not line:
                raise ServerFailed(f"serve did not start: {said.decode('utf-8', 'replace').strip()}")
            said += line
        reading = asyncio.create_task(process.stderr.read())  # a pipe that nobody reads stops the writer
        yield found[1].decode()
        reading.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def run_serve(console: Console, setting: Setting, *, clients: int = 64) -> tuple[Served, Served]:
    """Everything that `bench --serve` does: one client, then many. As many texts as clients; the one asks for a few of
    them. Raises ServerFailed; AssertionError if a text depends on the company, which would be a defect.
    """
    told, max_tokens = setting.told(clients), setting.max_tokens

    async def both(host: HostProcess) -> tuple[Served, Served]:
        async with serving(host, setting) as url:
            await measure_clients(url, "tuned", told[:1], 1, 4)  # connections, the first pass of the models
            alone = await measure_clients(url, "tuned", told[: max(1, min(4, clients))], 1, max_tokens)
            return alone, await measure_clients(url, "tuned", told, clients, max_tokens)

    with setting.host() as host:
        alone, many = asyncio.run(both(host))
    assert many.texts[: len(alone.texts)] == alone.texts, "a text depends on who else is there"
    console.print(_table([alone, many], setting.network))
    console.print(
        f"{many.clients} clients at once: {many.tokens_per_second / alone.tokens_per_second:.1f} times the tokens per "
        "second of one. Their texts are those of one client, byte for byte, where it asked for them, too.",
        highlight=False,
        soft_wrap=True,
    )
    return alone, many


def _table(found: Sequence[Served], network: Network) -> Table:
    titles = ("clients", "tokens", "tokens/s", "first p50", "p99", "between p50", "p99")
    drawn = table_over(network, *titles)
    for row in found:
        times = [_ms(row.first, 50), _ms(row.first, 99), _ms(row.between, 50), _ms(row.between, 99)]
        drawn.add_row(str(row.clients), str(row.tokens), f"{row.tokens_per_second:.1f}", *times)
    return drawn


def _ms(seconds: Sequence[float], percent: float) -> str:
    return f"{1000.0 * float(np.percentile(seconds, percent)):.0f} ms" if seconds else ""
