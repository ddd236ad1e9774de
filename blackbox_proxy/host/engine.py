"""A local causal LM as a black box: the engine over `TransformersBase`, which shows as little as the real API does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from blackbox_proxy.errors import InputError
from blackbox_proxy.host.network import Network, OverNetwork
from blackbox_proxy.host.options import EngineOptions
from blackbox_proxy.host.prompts import Prompts, read_template
from blackbox_proxy.host.remembering import Remembering
from blackbox_proxy.serve.engine import Engine, Event, Placed, TextWanted
from blackbox_proxy.serve.text import Feed, echoed_part, offsets
from blackbox_proxy.types import FinishReason, Prefix, Usage

if TYPE_CHECKING:
    from blackbox_proxy.base.local import TransformersBase
    from blackbox_proxy.base.showing import Showing

_NO_WINDOW = 4096  # tokens written when neither the request nor the model sets a limit


class HostEngine:
    """The engine over a local model. name: what clients call it. top_logprobs: the most they may see."""

    def __init__(self, base: TransformersBase, prompts: Prompts, *, name: str, top_logprobs: int) -> None:
        self._base = base
        self._prompts = prompts
        self._name = name
        self._top_logprobs = min(top_logprobs, base.top_logprobs)

    @property
    def name(self) -> str:
        return self._name

    @property
    def top_logprobs(self) -> int:
        return self._top_logprobs

    @property
    def context(self) -> int | None:
        return self._base.context

    @property
    def own_fields(self) -> Collection[str]:
        return ()

    @property
    def about(self) -> Mapping[str, Any]:
        return {}

    @property
    def source(self) -> str:
        return self._base.name

    def cut(self, text: str) -> tuple[int, ...]:
        return self._prompts.ids(TextWanted(text, 0))

    def check(self, wanted: TextWanted) -> None:
        self._base.check(self._prompts.ids(wanted), 1 if wanted.max_tokens is None else wanted.max_tokens)
        for what, ids in (("logit_bias", wanted.bias), ("logprob_token_ids", wanted.shown_ids)):
            if any(not 0 <= index < self._base.known for index in ids):
                raise InputError(f"{what} has token ids outside the vocabulary: they are 0 to {self._base.known - 1}")

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        ids = await asyncio.to_thread(self._prompts.ids, wanted)
        prefix = Prefix(ids)
        room = self._base.room(prefix)
        n = wanted.max_tokens if wanted.max_tokens is not None else _NO_WINDOW if room is None else room
        echo = await self._echo(wanted, ids) if wanted.echo else Event()
        yield Event(echo.text, echo.entries, "length" if n == 0 else None, Usage(prompt_tokens=len(ids)), ids)
        if n == 0:
            return
        feed = Feed(wanted.stop, start=len(echo.text))
        stream = self._base.positions(
            prefix,
            n,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            seed=wanted.seed,
            showing=self._showing(wanted),
        )
        count = 0
        async with aclosing(stream) as positions:
            async for position in positions:
                count += 1
                text, entries, stopped = feed.push(position)
                stopped = stopped or position.token.end
                if not stopped and count < n:
                    yield Event(text, entries, usage=Usage(completion_tokens=1))
                    continue
                rest, waiting = feed.close()
                finish: FinishReason = "stop" if stopped else "length"
                yield Event(text + rest, entries + waiting, finish, Usage(completion_tokens=1))
                return

    def _showing(self, wanted: TextWanted) -> Showing:
        from blackbox_proxy.base.showing import Showing

        return Showing(
            min(wanted.top_logprobs or 0, self._base.top_logprobs),
            wanted.shown_ids,
            wanted.bias,
            wanted.penalty,
            wanted.after,
        )

    async def _echo(self, wanted: TextWanted, ids: tuple[int, ...]) -> Event:
        """The prompt, or its last tokens, as an event, scored where log probabilities are asked for."""
        vocabulary = self._base.vocabulary
        text, begins = echoed_part(wanted.prompt, ids, vocabulary, wanted.echo_last)
        entries: tuple[Placed, ...] = ()
        if wanted.top_logprobs is not None and wanted.echo_scored:
            positions = await self._base.echo(ids, top_logprobs=wanted.top_logprobs, last=wanted.echo_last)
            found = offsets(text, begins)
            entries = tuple(Placed(p, offset, generated=False) for p, offset in zip(positions, found, strict=True))
        return Event(text.decode("utf-8", "replace"), entries)


def open_engine(model: str | os.PathLike[str], **options: Any) -> Engine:
    """Load a model as an engine. options: the fields of `EngineOptions`. Raises ModelUnavailable, InputError."""
    return engine_of(EngineOptions(model=os.fspath(model), **options))


def engine_of(options: EngineOptions) -> Engine:
    """The same, by options."""
    network = Network(options.first_token, options.per_token)
    template = None if options.chat_template is None else read_template(options.chat_template)
    from blackbox_proxy.base.local import TransformersBase
    from blackbox_proxy.text.spelling import load_tokenizer

    most, trusted = options.most, options.trust_remote_code
    base = TransformersBase(
        options.model,
        top_logprobs=None if most < 0 else max(most, 1),
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=trusted,
    )
    prompts = Prompts(load_tokenizer(base.name, trust_remote_code=trusted), template, window=base.context)
    engine: Engine = HostEngine(base, prompts, name=options.name, top_logprobs=base.size if most < 0 else most)
    if options.remember:
        engine = Remembering(engine)
    return engine if network == Network() else OverNetwork(engine, network)
