"""A gateway over a hosted base."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
from hosting import CERTIFICATES, client_of
from openai import AsyncOpenAI, OpenAI
from starlette.requests import Request

from blackbox_proxy import open_base
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.gateway.app import Porter, Room, create_gateway
from blackbox_proxy.gateway.engine import Bounds, Model, models_of
from blackbox_proxy.gateway.keys import Keys
from blackbox_proxy.gateway.prompts import Reader
from blackbox_proxy.host.prompts import DEFAULT_CHAT_TEMPLATE
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.prices import Prices
from blackbox_proxy.serve.requests import Order

Pairs = Callable[[str], TransformersPair]


class Found(Porter):
    """A porter that can be called from outside of its loop."""

    loop: asyncio.AbstractEventLoop

    def ordered(self, request: Request, model: str, order: Order) -> None:
        self.loop = asyncio.get_running_loop()
        super().ordered(request, model, order)


@dataclass
class Gateway:
    """One that runs, and what it is compared with."""

    url: str
    porter: Found
    base: OpenAIBase

    def call(self, what: Callable[[], None]) -> None:
        """Do something in the server's loop."""
        self.porter.loop.call_soon_threadsafe(what)

    def client(self, key: str = "none") -> AsyncOpenAI:
        return client_of(self.url, key)

    def sync(self) -> OpenAI:
        http_client = openai.DefaultHttpxClient(verify=CERTIFICATES)
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30, http_client=http_client)


@contextmanager
def gateway(
    models: dict[str, str],
    pairs: Pairs,
    base_url: str,
    *,
    kind: str = "digits",
    api: Any = "completions",
    top_logprobs: int = 5,
    room: Room | None = None,
    keys: Keys | None = None,
    max_logprobs: int = 20,
    page: bool = True,
    **options: Any,
) -> Iterator[Gateway]:
    """A gateway with the models "tuned", "half" and "base"."""
    options = {"dialect": "vllm", "tokenizer": models["base"], "top_logprobs": top_logprobs, **options}
    base = open_base("big", base_url=base_url, api=api, **options)
    pair = pairs(kind)
    bounds = Bounds((0.0, 2.0), ("truncate",), page)
    served = [
        Model("tuned", (pair,), (1.0,), bounds=bounds, top_logprobs=max_logprobs, prices=Prices(2.0, 1.0, 3.0)),
        Model("half", (pair,), (0.5,)),
        Model("base", (), bounds=Bounds(steps=page)),
    ]
    reader = Reader(base.vocabulary, api, template=DEFAULT_CHAT_TEMPLATE if api == "completions" else None)
    porter = Found(room or Room())
    app = create_gateway(models_of(base, served, reader), porter, keys=keys, page=page)
    with serve_in_thread(app, left=base.aclose) as url:
        yield Gateway(url, porter, base)
