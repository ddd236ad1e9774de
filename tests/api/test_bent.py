"""Token strings that do not spell the text beside them: undone where that is certain, else refused, over real HTTP.

Whatever a server does to its strings, with alpha = 0 the text is its own or there is an error. Each bend is one member
of the kind; they are what `serve/emulation.py` can do to a host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import pytest
from tiny import build_tiny

from blackbox_proxy import open_base
from blackbox_proxy.dialects.table import Api
from blackbox_proxy.errors import Misspelled
from blackbox_proxy.protocols import Ask
from blackbox_proxy.serve.emulation import BENDS, EMULATIONS, Emulation
from blackbox_proxy.serve.host import open_engine
from blackbox_proxy.serve.process import serve_in_thread
from blackbox_proxy.serve.routes import create_app
from blackbox_proxy.types import Draft, Prefix, joined

Scope = Literal["all", "own", "listed"]
UNDONE = {"byte letters", "pieces", "open boxes", "word ends"}
PROMPTS = ("The cat", "The dog", "User: hi\n")
N, K = 20, 5
Hosts = Callable[[Emulation], str]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    folder = build_tiny(tmp_path_factory.mktemp("bent"))
    engine = open_engine(folder, top_logprobs=K, served_model_name="big", device="cpu")
    with ExitStack() as stack:

        @cache
        def start(bend: str, bends: Scope, native: bool) -> str:
            emulation = replace(EMULATIONS["sglang" if native else "host"], bend=bend, bends=bends)
            emulation = replace(emulation, bytes="text", partial="replaced")
            emulation = replace(emulation, native="/generate") if native else emulation
            return stack.enter_context(serve_in_thread(create_app(engine, emulation=emulation))) + "/v1"

        yield lambda emulation: start(emulation.bend, emulation.bends, emulation.native is not None)


def drafts(url: str, *, api: Api = "completions", dialect: str = "host", **options: Any) -> list[Draft]:
    """What the server writes after each prompt, whole and streamed, all asked by one base."""

    async def ask() -> list[Draft]:
        base = open_base("big", base_url=url, api=api, dialect=dialect, top_logprobs=K, **options)
        try:
            asks = [Ask(Prefix(prompt), N) for prompt in PROMPTS]
            whole = [await base.draft(wanted) for wanted in asks]
            return [*whole, *[joined([part async for part in base.stream(wanted)]) for wanted in asks]]
        finally:
            await base.aclose()

    return asyncio.run(ask())


def spelled(draft: Draft) -> list[tuple[bytes | None, list[bytes]]]:
    """Each token, and its candidates; without parts of characters, which some strings tell and some do not."""

    def whole(raw: bytes | None) -> bool:
        return raw is not None and raw.decode("utf-8", "ignore").encode() == raw

    return [
        (p.token.bytes if whole(p.token.bytes) else None, [t.bytes for t in p.tokens if t.bytes and whole(t.bytes)])
        for p in draft.positions
    ]


@pytest.fixture(scope="module")
def plain(host: Hosts) -> Callable[[Api], list[Draft]]:
    return cache(lambda api: drafts(host(Emulation()), api=api))


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("bends", ["all", "own", "listed"])
@pytest.mark.parametrize("bend", BENDS)
def test_a_bend_is_undone_or_refused(
    bend: str, bends: Scope, api: Api, host: Hosts, plain: Callable[[Api], list[Draft]]
) -> None:
    url = host(Emulation(bend=bend, bends=bends))
    if bend in UNDONE:
        assert [spelled(draft) for draft in drafts(url, api=api)] == [spelled(draft) for draft in plain(api)]
        return
    with pytest.raises(Misspelled) as refused:
        drafts(url, api=api)
    assert "tokenizer=" in refused.value.hint
