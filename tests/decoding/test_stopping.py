"""Who no longer waits stops the thread that scores: a text that is cancelled costs nothing more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair
from blackbox_proxy.background import Stopped, checkpoint
from blackbox_proxy.decoding.threads import Turns, on_thread


class Long:
    """Work that asks whether it should go on, for ten seconds."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended: type[BaseException] | None = None

    def __call__(self) -> None:
        self.begun.set()
        try:
            for _ in range(1000):
                checkpoint()
                time.sleep(0.01)
        except Stopped as error:
            self.ended = type(error)
            raise


async def until(done: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:  # noqa: ASYNC110 (what is waited for happens on threads)
        await asyncio.sleep(0.005)
    assert done()


async def on_turns(work: Long) -> None:
    await Turns().run(work)


@pytest.mark.parametrize("way", [on_thread, on_turns])
async def test_a_cancelled_wait_stops_the_work(way: Callable[[Long], Awaitable[None]]) -> None:
    work = Long()
    waiting = asyncio.ensure_future(way(work))
    await until(work.begun.is_set)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: work.ended is Stopped, 2.0)


async def test_what_was_not_begun_is_not_begun() -> None:
    turns, first, second = Turns(), Long(), Long()
    one = asyncio.ensure_future(turns.run(first))
    await until(first.begun.is_set)
    two = asyncio.ensure_future(turns.run(second))
    await asyncio.sleep(0.02)
    for waiting in (two, one):
        waiting.cancel()
    await asyncio.gather(one, two, return_exceptions=True)
    await turns.idle()
    assert first.ended is Stopped
    assert not second.begun.is_set()


async def test_nobody_is_stopped_for_another() -> None:
    """Threads are used again; what was told to stop on one is over with it."""
    for _ in range(3):
        work = Long()
        waiting = asyncio.ensure_future(on_thread(work))
        await asyncio.sleep(0.03)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await on_thread(checkpoint)


async def test_a_cancelled_text_reads_no_more(models: dict[str, str]) -> None:
    pair = TransformersPair(expert=models["digits-expert"], antiexpert=models["digits-antiexpert"])
    tuner = ProxyTuner(TransformersBase(models["base"], top_logprobs=5), pair)
    readers = [model.lm.reader for model, _ in pair._models]  # type: ignore[attr-defined]
    text = asyncio.ensure_future(tuner.agenerate("The mayor of", max_tokens=100))
    await until(lambda: all(reader.passes for reader in readers), 20.0)
    text.cancel()
    await asyncio.gather(text, return_exceptions=True)
    passes = [reader.passes for reader in readers]
    await asyncio.sleep(0.2)
    assert [reader.passes for reader in readers] == passes
