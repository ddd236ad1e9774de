"""The systems that the demo compares, and how each is asked: over HTTP, or with the weights in a process of its own.

What only a demo can show (the full vocabulary, the base tuned directly) and the expert alone need no black box, so
they answer in a second process while the first one talks to the API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Self

from blackbox_proxy.demo.evaluate import Answer, Task
from blackbox_proxy.demo.models import DemoModels
from blackbox_proxy.protocols import Ask

if TYPE_CHECKING:
    from blackbox_proxy.protocols import Base
    from blackbox_proxy.tuner import ProxyTuner
    from blackbox_proxy.types import Generation, TailPolicy

TOP_LOGPROBS = 5
_LONGEST = 96  # tokens of an answer
_AT_ONCE = 4


class BlackBox:
    """The base behind HTTP, with the top 5 log probabilities of each token and nothing else, and the pair beside it."""

    def __init__(self, models: DemoModels) -> None:
        from blackbox_proxy import TransformersPair, open_base
        from blackbox_proxy.host.process import HostProcess

        self._host = HostProcess(models.base, top_logprobs=TOP_LOGPROBS, served_model_name="black-box", threads=1)
        with ThreadPoolExecutor(1) as pool:  # the host starts while the pair is loaded
            started = pool.submit(self._host.start)
            _one_thread()
            self._pair = TransformersPair(str(models.expert), str(models.antiexpert), device="cpu")
            base_url = started.result().base_url
        self._base = open_base(
            "black-box",
            base_url=base_url,
            dialect="host",
            tokenizer=str(models.base),
            top_logprobs=TOP_LOGPROBS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        from blackbox_proxy.tuner import run

        run(self._base.aclose())
        self._host.close()

    def alone(self, todo: Sequence[Task]) -> list[Answer]:
        """The base's own answers."""
        return _alone(self._base, todo)

    def tuned(self, todo: Sequence[Task], tail: TailPolicy) -> list[Generation]:
        """Its proxy-tuned answers."""
        from blackbox_proxy import Drafting, ProxyTuner

        # Local drafts would save further calls, how many depends on the speed of the machine.
        return _tuned(ProxyTuner(self._base, self._pair, tail=tail, draft=Drafting(local=False)), todo)


@contextmanager
def answering_in_another_process(models: DemoModels, todo: Sequence[Task]) -> Iterator[dict[str, Future[list[Answer]]]]:
    """Start the systems that need the weights only; name -> their answers, when they come."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            yield {
                "expert": pool.submit(_with_weights, models.expert, todo),
                "direct": pool.submit(_with_weights, models.direct, todo),
                "full": pool.submit(_with_full_vocabulary, models, todo),
            }
        finally:
            pool.shutdown(cancel_futures=True)


def _with_weights(folder: Path, todo: Sequence[Task]) -> list[Answer]:
    from blackbox_proxy import TransformersBase

    _one_thread()
    return _alone(TransformersBase(folder, device="cpu"), todo)


def _with_full_vocabulary(models: DemoModels, todo: Sequence[Task]) -> list[Answer]:
    from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair

    _one_thread()
    pair = TransformersPair(str(models.expert), str(models.antiexpert), device="cpu")
    return answers(_tuned(ProxyTuner(TransformersBase(models.base, device="cpu"), pair), todo))


def _one_thread() -> None:
    """Models this small gain nothing from a second one, and the other process needs it."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


def answers(generations: Sequence[Generation]) -> list[Answer]:
    return [Answer(g.text, g.usage.api_calls, len(g.steps)) for g in generations]


def _alone(base: Base, todo: Sequence[Task]) -> list[Answer]:
    """A model's own greedy answers: one draft each."""
    from blackbox_proxy.tuner import run
    from blackbox_proxy.types import Prefix

    async def one(task: Task) -> Answer:
        draft = await base.draft(Ask(Prefix(task.prompt), _LONGEST))
        tokens = [position.token for position in draft.positions]
        text = b"".join(token.bytes or b"" for token in tokens if not token.end).decode("utf-8", "ignore")
        return Answer(text, draft.usage.api_calls, len(tokens))

    async def everything() -> list[Answer]:
        limit = asyncio.Semaphore(_AT_ONCE)

        async def within(task: Task) -> Answer:
            async with limit:
                return await one(task)

        return list(await asyncio.gather(*(within(task) for task in todo)))

    return run(everything())


def _tuned(tuner: ProxyTuner, todo: Sequence[Task]) -> list[Generation]:
    return tuner.generate_batch([task.prompt for task in todo], max_tokens=_LONGEST, concurrency=_AT_ONCE)
