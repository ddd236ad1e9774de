"""Each dialect against `host` behaving as that server: what can be decoded is the same, what cannot is refused."""

from __future__ import annotations

import json
import tokenize
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from blackbox_proxy import ProxyTuner, open_base
from blackbox_proxy.api.native import native_request
from blackbox_proxy.api.payload import request
from blackbox_proxy.api.sent import Settings, carried
from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.cli import app
from blackbox_proxy.dialects import support
from blackbox_proxy.dialects.guessing import by_models, dialect_of, located
from blackbox_proxy.dialects.table import DIALECTS, Api, Dialect
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import CannotContinue, InputError
from blackbox_proxy.host.engine import HostEngine, open_engine
from blackbox_proxy.host.prompts import Prompts
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.protocols import Ask
from blackbox_proxy.serve.emulation import EMULATIONS, emulation_of
from blackbox_proxy.serve.engine import Engine
from blackbox_proxy.serve.routes import create_app
from blackbox_proxy.text.spelling import load_tokenizer
from blackbox_proxy.text.vocabulary import utf8_prefix
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Draft, Position, Prefix, Token

if TYPE_CHECKING:
    from blackbox_proxy.base.openai import OpenAIBase
    from blackbox_proxy.pair.transformers import TransformersPair

ROOT = Path(__file__).parents[2]
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
    with ExitStack() as stack:
        yield cache(lambda name: serve(stack, engine, name))


@pytest.fixture(scope="module")
def faulty(models: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """The same of the model as it is, parts of characters and all."""
    engine = open_engine(models["base"], top_logprobs=-1, served_model_name="big", device="cpu")
    with ExitStack() as stack:
        yield cache(lambda name: serve(stack, engine, name))


def serve(stack: ExitStack, engine: Engine, name: str) -> str:
    emulation = emulation_of(name)
    app = create_app(engine, emulation=emulation)
    return stack.enter_context(serve_in_thread(app)) + emulation.roots[0].format(model="big")


def ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and JSON."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {field: value for field, value in body.items() if field != name}


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


@pytest.mark.parametrize(
    ("name", "api", "known"),
    [  # quick: each route once, with ids or with text by turns
        pytest.param(*route, known, marks=() if i % 2 == known else pytest.mark.slow)
        for i, route in enumerate(ROUTES)
        for known in (True, False)
    ],
)
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
    length = 6 if dialect.continues(api) else 1

    def text(spoken: Dialect, behind: str) -> str:
        own = spoken.chat_counts_own and api == "chat"  # one of the places is the drawn token's
        base = speak(spoken, api, behind, top_logprobs=5 + own, **options)
        return ProxyTuner(base, pairs("same"), tail="truncate").generate(PROMPT, max_tokens=length).text

    way = (dialect.prefix, api, known, length)
    if way not in plain:
        plain[way] = text(replace(DIALECTS["host"], prefix=dialect.prefix, named=None), "host")
    assert text(dialect, name) == plain[way] != ""


STEERED = [(name, api) for name, api in ROUTES if DIALECTS[name].bias_keys and DIALECTS[name].continues(api)]


@pytest.mark.parametrize(("name", "api"), STEERED)
def test_a_bias_steers_a_text_as_it_does_over_plain_host(
    name: str, api: Api, speak: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    """Several tokens, so that a chat is continued, and may repeat what it is continued from."""
    texts = [
        ProxyTuner(speak(DIALECTS[each], api, each), pairs("digits"), steer="bias").generate(PROMPT, max_tokens=4).text
        for each in (name, "host")
    ]
    assert texts[0] == texts[1] != ""


# -- what is sent -----------------------------------------------------------------------------------------------------

COMPLETION = {"model": "m", "prompt": "Hi the", "max_tokens": 3, "logprobs": 5, "temperature": 1.0, "top_p": 1.0}
CHAT = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " the"}],
    "max_tokens": 3,
    "logprobs": True,
    "top_logprobs": 5,
    "temperature": 1.0,
    "top_p": 1.0,
}
FIRST = {**CHAT, "messages": [{"role": "user", "content": "Hi"}]}
MARKED = {
    **CHAT,
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " the", "prefix": True}],
}
SEED = {"seed": 7}
VLLM = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
GOES_ON = {"continue_final_message": True, "add_generation_prompt": False}
LLAMA = {"min_p": 0.0, "repeat_penalty": 1.0, "top_k": 0}
LLAMA_SERVER = {**LLAMA, "typical_p": 1.0, "dry_multiplier": 0.0, "xtc_probability": 0.0}

BODIES: dict[tuple[str, Api], dict[str, Any]] = {
    ("openai", "completions"): COMPLETION | SEED,
    ("openai", "chat"): without(FIRST, "max_tokens") | {"max_completion_tokens": 3} | SEED,
    ("azure", "completions"): COMPLETION | SEED,
    ("azure", "chat"): without(FIRST, "max_tokens") | {"max_completion_tokens": 3} | SEED,
    ("vllm", "completions"): COMPLETION | SEED | VLLM,
    ("vllm", "chat"): CHAT | SEED | VLLM | GOES_ON,
    ("sglang", "completions"): COMPLETION | SEED | VLLM,
    ("sglang", "chat"): CHAT | SEED | VLLM | {"continue_final_message": True},
    ("sglang-generate", "completions"): {
        "text": "Hi the",
        "sampling_params": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 3, "sampling_seed": 7, **VLLM},
        "return_logprob": True,
        "top_logprobs_num": 5,
        "logprob_start_len": -1,
        "return_text_in_logprobs": True,
    },
    ("llama-server", "completions"): COMPLETION | SEED | LLAMA_SERVER,
    ("llama-server", "chat"): CHAT | SEED | LLAMA_SERVER,
    ("llama-cpp-python", "completions"): COMPLETION | SEED | LLAMA,
    ("llama-cpp-python", "chat"): FIRST | SEED | LLAMA,
    ("tgi", "chat"): without(CHAT, "top_p") | SEED,
    ("together", "completions"): COMPLETION | SEED | {"repetition_penalty": 1.0},
    ("together", "chat"): without(FIRST, "top_logprobs") | {"logprobs": 5, "repetition_penalty": 1.0} | SEED,
    ("fireworks", "completions"): COMPLETION | SEED,
    ("fireworks", "chat"): FIRST | SEED,
    ("deepseek", "completions"): COMPLETION | SEED,
    ("deepseek", "chat"): MARKED | SEED,
    ("mistral", "chat"): MARKED | {"random_seed": 7},
    ("openrouter", "completions"): COMPLETION | SEED | {"provider": {"require_parameters": True}},
    ("openrouter", "chat"): FIRST | SEED | {"provider": {"require_parameters": True}},
    ("ollama", "chat"): FIRST | SEED,
    ("trtllm", "completions"): COMPLETION | SEED,
    ("trtllm", "chat"): FIRST | SEED,
    ("host", "completions"): COMPLETION | SEED | VLLM,
    ("host", "chat"): CHAT | SEED | VLLM | GOES_ON,
    ("serve", "completions"): COMPLETION | SEED,
    ("serve", "chat"): CHAT | SEED | GOES_ON,
}


def test_every_dialect_has_its_body_here() -> None:
    assert sorted(BODIES) == sorted(ROUTES)


@pytest.mark.parametrize(("name", "api"), ROUTES)
def test_the_body_of_a_request(name: str, api: Api) -> None:
    dialect = DIALECTS[name]
    tokens = (Token(None, b" the", " the"),) if dialect.continues(api) else ()
    settings = Settings("m", api, dialect, 5)
    sent = carried(Ask(Prefix("Hi", tokens), 3, temperature=1.0, seed=7), settings)
    assert sent is not None
    arguments = request(sent, settings)
    if dialect.native:
        assert native_request(arguments) == BODIES[name, api]
        return
    extra = arguments.pop("extra_body", {})
    assert not arguments.keys() & extra.keys()
    assert arguments | extra == BODIES[name, api]


@pytest.mark.parametrize("name", [name for name, api in ROUTES if api == "chat" and not DIALECTS[name].continues(api)])
def test_an_api_that_cannot_continue_says_so(name: str) -> None:
    base = open_base("m", base_url="http://127.0.0.1:9/v1", dialect=name, api="chat", tokenizer=None)
    base.check("Hi", 1)
    with pytest.raises(CannotContinue, match=name):
        base.check("Hi", 2)


@pytest.mark.parametrize("name", [name for name, dialect in DIALECTS.items() if len(dialect.apis) == 1])
def test_an_api_without_log_probabilities_is_refused(name: str) -> None:
    [api] = DIALECTS[name].apis
    other: Api = "chat" if api == "completions" else "completions"
    with pytest.raises(InputError, match="no log probabilities"):
        open_base("m", base_url="http://127.0.0.1:9/v1", dialect=name, api=other)


# -- which dialect, and where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name", "asked"),
    [
        ("https://api.together.xyz/v1", "together", "https://api.together.xyz/v1"),
        ("https://api.fireworks.ai", "fireworks", "https://api.fireworks.ai/inference/v1"),
        ("https://api.deepseek.com/v1", "deepseek", "https://api.deepseek.com/beta"),
        ("https://api.mistral.ai/v1", "mistral", "https://api.mistral.ai/v1"),
        ("https://openrouter.ai/api/v1", "openrouter", "https://openrouter.ai/api/v1"),
        ("https://api.openai.com/v1", "openai", "https://api.openai.com/v1"),
        ("https://api.openai.com.evil.example/v1", "openai", "https://api.openai.com.evil.example/v1"),
        ("http://localhost:8000/v1", "openai", "http://localhost:8000/v1"),
        (
            "https://me.openai.azure.com",
            "azure",
            "https://me.openai.azure.com/openai/deployments/m?api-version=2024-10-21",
        ),
        (
            "https://me.openai.azure.com/openai/deployments/d?api-version=2025-01-01",
            "azure",
            "https://me.openai.azure.com/openai/deployments/d?api-version=2025-01-01",
        ),
        ("https://me.openai.azure.com/openai/v1", "azure", "https://me.openai.azure.com/openai/v1"),
    ],
)
def test_services_are_known_by_their_urls(url: str, name: str, asked: str) -> None:
    base = open_base("m", base_url=url, api="chat", api_key="k", tokenizer=None)
    assert base.settings.dialect.name == name
    assert located(url, dialect_of("auto", url), "m") == asked
    assert base.url == asked.partition("?")[0]


def test_names_and_further_names() -> None:
    assert dialect_of("openai-chat") is dialect_of("openai-completions") is DIALECTS["openai"]
    with pytest.raises(InputError, match="klingon"):
        dialect_of("klingon")


def test_a_service_takes_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's key goes to somebody else unasked."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"api\.deepseek\.com") as caught:
        open_base("m", dialect="deepseek", api="chat")
    assert "DEEPSEEK_API_KEY" in caught.value.hint
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-theirs")
    assert open_base("m", dialect="deepseek", api="chat").url == "https://api.deepseek.com/beta"


@pytest.mark.parametrize("name", [name for name in EMULATIONS if name not in ("azure", "transformers-serve")])
def test_a_server_is_known_by_its_list_of_models(name: str, emulated: Callable[[str], str]) -> None:
    status, body = ask(f"{emulated(name)}/models")
    found = by_models(body)
    assert status == 200
    assert (found and found.name) == (name if DIALECTS[name].owners else None)


# -- the servers' faults ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(models: dict[str, str]) -> TransformersBase:
    return TransformersBase(models["base"], device="cpu")


@pytest.fixture(scope="module")
def drawn(
    truth: TransformersBase, faulty: Callable[[str], str], models: dict[str, str]
) -> Callable[[Api, int], Position]:
    """What plain `host` draws with a seed, and its whole row."""

    def position(api: Api, seed: int) -> Position:
        options: dict[str, Any] = {"tokenizer": models["base"], "top_logprobs": truth.size}
        plain = open_base("big", base_url=faulty("host"), dialect="host", api=api, **options)
        [real] = run(_once(plain, seed)).positions
        run(plain.aclose())
        return real

    return cache(position)


@pytest.mark.parametrize(("name", "api"), ROUTES)
def test_no_sentinel_and_no_wrong_bytes_get_through(
    name: str,
    api: Api,
    truth: TransformersBase,
    drawn: Callable[[Api, int], Position],
    faulty: Callable[[str], str],
    models: dict[str, str],
) -> None:
    """Of a model that does write parts of characters, with what is drawn often outside the candidates."""
    k = min(5, DIALECTS[name].default_k(api))
    base = open_base(
        "big", base_url=faulty(name), dialect=name, api=api, tokenizer=models["base"], top_logprobs=k, max_attempts=1
    )
    for seed in range(3):
        real = drawn(api, seed)
        [position] = run(_once(base, seed)).positions or [None]
        row = {token.id: value for token, value in zip(real.tokens, real.logprobs.tolist(), strict=True)}
        if position is None:
            assert real.token.end
            continue
        shown = [*zip(position.tokens, position.logprobs.tolist(), strict=True)]
        shown += [(position.token, position.logprob)] if position.logprob is not None else []
        for token, value in shown:
            assert -50 < value <= 0
            if token.id is not None and not token.end:
                assert value == pytest.approx(row[token.id], abs=1e-3)
                assert token.bytes == truth.vocabulary.token_of(token.id).bytes
            elif token.bytes:
                assert "\ufffd".encode() not in token.bytes
        whole = [
            token
            for token in real.tokens[: base.settings.kept]
            if token.bytes and utf8_prefix(token.bytes) == len(token.bytes)
        ]
        assert {token.id for token in whole} <= {token.id for token in position.tokens}
    run(base.aclose())


async def _once(base: OpenAIBase, seed: int) -> Draft:
    return await base.draft(Ask(Prefix(PROMPT), 1, temperature=1.0, seed=seed))


def test_the_default_penalty_bends_greedy_text(emulated: Callable[[str], str]) -> None:
    """llama-cpp-python without the neutral value that its dialect sends."""
    body = {"model": "big", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    texts = [
        ask(f"{emulated('llama-cpp-python')}/completions", body | more)[1]["choices"][0]["text"]
        for more in ({}, {"repeat_penalty": 1.1}, {"repeat_penalty": 1.0})
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("name", "route", "body", "param"),
    [
        ("openai", "/completions", {"prompt": "Hi", "logprobs": 6}, "logprobs"),
        ("openai", "/completions", {"prompt": "Hi", "logprobs": 2, "echo": True}, "logprobs"),
        ("openai", "/chat/completions", {"messages": "Hi", "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("trtllm", "/completions", {"prompt": "Hi", "nonsense": 1}, "nonsense"),
        ("mistral", "/chat/completions", {"messages": "Hi", "seed": 1}, "seed"),
        ("tgi", "/chat/completions", {"messages": "Hi", "top_p": 1.0}, "top_p"),
        ("llama-cpp-python", "/completions", {"prompt": [5, 6]}, "prompt"),
    ],
)
def test_refusals(name: str, route: str, body: dict[str, Any], param: str, emulated: Callable[[str], str]) -> None:
    if "messages" in body:
        body = body | {"messages": [{"role": "user", "content": "Hi"}]}
    status, answer = ask(f"{emulated(name)}{route}", body | {"model": "big", "max_tokens": 1})
    assert (status, answer["error"]["param"]) == (400, param)


def test_some_servers_ignore_what_they_do_not_know(emulated: Callable[[str], str]) -> None:
    body = {"model": "big", "prompt": "Hi", "max_tokens": 1, "logprobs": 2}
    status, answer = ask(f"{emulated('transformers-serve')}/completions", body)
    assert (status, answer["choices"][0]["logprobs"]) == (200, None)
    status, answer = ask(f"{emulated('llama-server')}/completions", body | {"echo": True})
    assert (status, len(answer["choices"][0]["logprobs"]["content"])) == (200, 1)


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_table() -> None:
    for arguments, expected in (([], support.text()), (["--markdown"], support.markdown())):
        result = CliRunner().invoke(app, ["dialects", *arguments])
        assert (result.exit_code, result.stdout.strip()) == (0, expected.strip())
    assert {row[0] for row in support.rows()} == set(DIALECTS)


def test_only_the_far_side_knows_a_dialect() -> None:
    """No string in the code is a dialect's name, but for `host` and `serve`, which are our own commands."""
    names = {*DIALECTS, *EMULATIONS} - {"host", "serve"}
    package = ROOT / "blackbox_proxy"
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in ("api", "base", "dialects", "probing", "serve"):
            with tokenize.open(path) as file:
                found = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.STRING]
            strings = {token.string.strip("\"'") for token in found}
            package_too = {"openai"} if path.name == "live.py" else set()  # whose version is said there
            assert not strings & names - package_too, path
