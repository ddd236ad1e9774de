"""Each dialect against `host` behaving as that server: what can be decoded comes out the same, what cannot is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from blackbox_proxy import ProxyTuner, open_base
from blackbox_proxy.base.dialects import DIALECTS, Api, Dialect
from blackbox_proxy.base.emulation import emulation_of
from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.lm import load_causal_lm
from blackbox_proxy.serve.host import HostEngine
from blackbox_proxy.serve.process import serve_in_thread
from blackbox_proxy.serve.prompts import Prompts
from blackbox_proxy.serve.routes import create_app
from blackbox_proxy.spelling import load_tokenizer
from blackbox_proxy.tuner import run
from blackbox_proxy.vocabulary import utf8_prefix

if TYPE_CHECKING:
    from blackbox_proxy.base.openai import OpenAIBase
    from blackbox_proxy.pair.transformers import TransformersPair

PROMPT = "The mayor of New York"
ROUTES: list[tuple[str, Api]] = [(name, api) for name, dialect in DIALECTS.items() for api in dialect.apis]


def whole_engine(folder: str) -> HostEngine:
    """A host of a model that writes whole characters only: what a part of one is, most servers do not tell, and texts
    would differ for that good reason.
    """
    lm = load_causal_lm(folder, device="cpu")
    spelled = [lm.vocabulary.token_of(index).bytes or b"" for index in range(len(lm.vocabulary))]
    parts = torch.tensor([utf8_prefix(raw) < len(raw) for raw in spelled])
    lm.model.get_output_embeddings().register_forward_hook(
        lambda layer, given, logits: logits - 100.0 * torch.nn.functional.pad(parts, (0, logits.shape[-1] - len(parts)))
    )
    return HostEngine(
        TransformersBase(lm), Prompts(load_tokenizer(folder)), name="big", top_logprobs=len(lm.vocabulary)
    )


@pytest.fixture(scope="module")
def emulated(models: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """The base behaving as another server: its name -> base_url. One model behind all of them."""
    engine = whole_engine(models["base"])
    urls: dict[str, str] = {}
    with ExitStack() as stack:

        def url(name: str) -> str:
            if name not in urls:
                emulation = emulation_of(name)
                root = emulation.roots[0].format(model="big")
                urls[name] = stack.enter_context(serve_in_thread(create_app(engine, emulation=emulation))) + root
            return urls[name]

        yield url


@pytest.fixture
def speak(emulated: Callable[[str], str], models: dict[str, str]) -> Iterator[Callable[..., OpenAIBase]]:
    """A base that speaks a dialect with the server of that name (or `behind` another); closed after the test."""
    opened: list[OpenAIBase] = []

    def make(dialect: Dialect, api: Api, behind: str, **options: Any) -> OpenAIBase:
        options = {"tokenizer": models["base"], "top_logprobs": 5, "max_attempts": 1, **options}
        opened.append(open_base("big", base_url=emulated(behind), dialect=dialect, api=api, **options))
        return opened[-1]

    yield make
    for base in opened:
        run(base.aclose())


@pytest.fixture(scope="module")
def plain() -> dict[object, str]:
    """How a prefix travels, the API, whether the tokenizer is known, the length -> the text over plain `host`."""
    return {}


@pytest.mark.parametrize("known", [True, False], ids=["ids", "text"])
@pytest.mark.parametrize(("name", "api"), ROUTES)
def test_greedy_text_is_that_of_plain_host(
    name: str,
    api: Api,
    known: bool,
    plain: dict[object, str],
    speak: Callable[..., OpenAIBase],
    pairs: Callable[[str], TransformersPair],
) -> None:
    options = {} if known else {"tokenizer": None}
    dialect = DIALECTS[name]
    length = 8 if dialect.continues(api) else 1

    def text(spoken: Dialect, behind: str) -> str:
        base = speak(spoken, api, behind, **options)
        return ProxyTuner(base, pairs("same"), tail="truncate").generate(PROMPT, max_tokens=length).text

    way = (dialect.prefix, api, known, length)
    if way not in plain:
        plain[way] = text(replace(DIALECTS["host"], prefix=dialect.prefix, named=None), "host")
    assert text(dialect, name) == plain[way] != ""
