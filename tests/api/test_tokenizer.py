"""`tokenizer="auto"`: what a server tells of its tokenizer is used where it holds, and what does not hold is unknown.

Real servers on loopback: the project's own, as itself and as others, and one that answers whatever it is told to.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hosting import KEY
from raw_server import Asked, Kind, Out, raw_server
from watched import Watched

from blackbox_proxy import CachedBase, open_base
from blackbox_proxy.api import tokenizer
from blackbox_proxy.api.telling import TEXTS
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.dialects.table import DIALECTS
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import BadRequest, Misspelled
from blackbox_proxy.host.engine import HostEngine, open_engine
from blackbox_proxy.protocols import Ask
from blackbox_proxy.serve.emulation import emulation_of
from blackbox_proxy.serve.engine import Engine
from blackbox_proxy.serve.routes import create_app
from blackbox_proxy.text.here import encoding_here, tokenizer_here
from blackbox_proxy.text.spelling import from_pretrained
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Prefix, Token

pytestmark = pytest.mark.usefixtures("probes")

PROMPT = "The mayor of the town said"
TELLING = [name for name, dialect in DIALECTS.items() if dialect.telling is not None]


def opened(url: str, dialect: str = "auto", **options: Any) -> OpenAIBase:
    return open_base("big", base_url=url, dialect=dialect, top_logprobs=5, max_attempts=1, **options)


def asked(base: OpenAIBase, n: int = 6) -> list[Token]:
    async def ask() -> list[Token]:
        try:
            return [position.token for position in (await base.draft(Ask(Prefix(PROMPT), n))).positions]
        finally:
            await base.aclose()

    return run(ask())


# -- where it is from -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", TELLING)
def test_what_a_server_tells_is_found_said_and_kept(
    dialect: str, host: Callable[..., Watched], models: dict[str, str], told: Callable[[], list[str]]
) -> None:
    server = host(dialect)
    base = opened(server.url, dialect)
    given = opened(server.url, dialect, tokenizer=models["base"])
    assert base.vocabulary is given.vocabulary
    assert base.identity == given.identity
    telling = DIALECTS[dialect].telling
    assert telling is not None
    first = f"/v1{telling.route}" if telling.route == "/models" else telling.route
    assert server.since() == [first, *[telling.cut] * len(TEXTS)]  # nothing that costs
    [line] = told()
    assert models["base"] in line
    assert server.url in line
    again = opened(server.url, dialect)
    assert again.vocabulary is base.vocabulary
    shows_ids = DIALECTS[dialect].ids_shown or DIALECTS[dialect].ids_out
    assert server.since() == [] if shows_ids else [first, *[telling.cut] * len(TEXTS)]
    assert asked(again) == asked(given)


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "llama-server", "openai", "together"])
def test_an_unknown_server_is_asked_what_it_is(
    dialect: str, host: Callable[..., Watched], models: dict[str, str]
) -> None:
    server = host(dialect)
    base = opened(server.url)
    assert (base.vocabulary is None) == (DIALECTS[dialect].telling is None)
    assert base.settings.dialect.name == "openai"  # that is not what was asked for
    assert server.since()[0] == "/v1/models"
    assert asked(base)


def test_whoever_says_none_is_asked_nothing(host: Callable[..., Watched], told: Callable[[], list[str]]) -> None:
    server = host("host")
    assert opened(server.url, "host", tokenizer=None).vocabulary is None
    assert opened(server.url, "openai").vocabulary is None  # of which it is known that it does not tell
    assert server.paths == []
    assert told() == []


def test_a_hub_id_is_looked_for_in_the_cache_only(
    host: Callable[..., Watched],
    models: dict[str, str],
    told: Callable[[], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HostEngine, "source", "org/big")
    server = host("vllm")
    connect = socket.socket.connect
    elsewhere: list[Any] = []

    def watched(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            elsewhere.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    assert opened(server.url, "vllm").vocabulary is None
    [line] = told()
    assert "org/big" in line
    assert "not on this machine" in line
    snapshot = tmp_path / "models--org--big" / "snapshots" / "0a1b"
    shutil.copytree(models["base"], snapshot)
    (tmp_path / "models--org--big" / "refs").mkdir()
    (tmp_path / "models--org--big" / "refs" / "main").write_text("0a1b")
    found = opened(server.url, "vllm").vocabulary
    assert found is not None
    assert found.spells_like(from_pretrained(models["base"]))
    assert elsewhere == []


def test_a_gguf_needs_its_reader(tmp_path: Path, host: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF that is none")
    monkeypatch.setattr(HostEngine, "source", str(path))
    assert opened(host("llama-server").url, "llama-server").vocabulary is None


def test_a_gguf_is_read(tmp_path: Path, models: dict[str, str]) -> None:
    gguf = pytest.importorskip("gguf", reason="reads GGUF files: pip install gguf")
    told = json.loads((Path(models["base"]) / "tokenizer.json").read_bytes())
    words = sorted(told["model"]["vocab"], key=told["model"]["vocab"].get)
    special = {word["content"] for word in told["added_tokens"]}
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges([" ".join(pair) for pair in told["model"]["merges"]])
    writer.add_block_count(1)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    found, right = tokenizer_here(str(path)), from_pretrained(models["base"])
    assert found is not None
    assert found.spells_like(right)
    assert [found.prompt_ids(text) for text in TEXTS[:4]] == [right.prompt_ids(text) for text in TEXTS[:4]]


# -- what does not hold -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["digits-expert", "pieces-expert"])
@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_another_tokenizer_is_not_used_and_that_is_said(
    named: str,
    dialect: str,
    host: Callable[..., Watched],
    models: dict[str, str],
    told: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    probes: Path,
) -> None:
    monkeypatch.setattr(HostEngine, "source", models[named])
    base = opened(host(dialect).url, dialect)
    assert base.vocabulary is None
    [line] = told()
    assert models[named] in line
    assert "otherwise" in line
    assert not probes.exists()
    assert asked(base)


def test_one_id_that_is_another_is_enough(models: dict[str, str]) -> None:
    vocabulary = from_pretrained(models["base"])
    cuts = [list(vocabulary.prompt_ids(text)) for text in TEXTS]
    assert opened_from(models["base"], cuts).vocabulary is vocabulary
    for place in range(len(TEXTS)):
        wrong = [[*ids[:-1], ids[-1] + 1] if i == place else ids for i, ids in enumerate(cuts)]
        assert opened_from(models["base"], wrong, model=f"m{place}").vocabulary is None


def telling(root: Any, cuts: Any, model: str = "big") -> Kind:
    """Answers as vLLM does: where its tokenizer is from, and how it cuts the texts, in turn."""

    async def answer(asked: Asked, out: Out) -> None:
        if asked.path.startswith("/v1/models"):
            body: Any = {"data": [{"id": model, "owned_by": "vllm", "root": root}]}
        else:
            body = {"tokens": cuts[TEXTS.index(asked.json["prompt"])] if isinstance(cuts, list) else cuts}
        await out.whole(json.dumps(body).encode())

    return answer


def opened_from(root: Any, cuts: Any, model: str = "big") -> OpenAIBase:
    with raw_server(telling(root, cuts, model)) as server:
        return open_base(model, base_url=server.url, dialect="vllm")


@pytest.mark.parametrize(
    "root",
    [None, 7, "", " ", "../..", "/etc", "/dev/null", "a\x1b[2Jb", "a\0b", "x" * 10_000, "/" + "x" * 900, ["/etc"], "."],
    ids=lambda root: repr(root)[:12],
)
def test_names_that_are_none(root: Any, told: Callable[[], list[str]]) -> None:
    assert opened_from(root, [[1, 2]] * len(TEXTS)).vocabulary is None
    assert all(line.isprintable() for line in told())


@pytest.mark.parametrize("cuts", [None, "1 2", [["1"]] * 5, [[True]] * 5, [[1.0]] * 5, [[-1]] * 5, [[]] * 5, {"a": 1}])
def test_cuts_that_are_none(cuts: Any, models: dict[str, str]) -> None:
    assert opened_from(models["base"], cuts).vocabulary is None


async def _closes(asked: Asked, out: Out) -> None:
    pass


async def _silent(asked: Asked, out: Out) -> None:
    await asyncio.sleep(30)


async def _drips(asked: Asked, out: Out) -> None:
    await out.head()
    while True:
        await out.raw(b" ")
        await asyncio.sleep(0.05)


async def _endless(asked: Asked, out: Out) -> None:
    await out.head()
    while True:
        await out.raw(b" " * 65_536)


async def _page(asked: Asked, out: Out) -> None:
    await out.whole(b"<html>", content_type="text/html")


async def _refuses(asked: Asked, out: Out) -> None:
    await out.whole(json.dumps({"error": {"message": f"no, {asked.headers['authorization']}"}}).encode(), "401 No")


async def _nested(asked: Asked, out: Out) -> None:
    await out.whole(b"[" * 100_000)


async def _list(asked: Asked, out: Out) -> None:
    await out.whole(b'{"data": [7, null, {"id": 3}, {"owned_by": []}]}')


@pytest.mark.parametrize("kind", [_closes, _silent, _drips, _endless, _page, _refuses, _nested, _list])
@pytest.mark.parametrize("dialect", ["auto", "llama-server"])
def test_whatever_a_server_does_is_unknown_in_time(
    kind: Kind, dialect: str, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "_PATIENCE", 0.4)
    with raw_server(kind) as server:
        began = time.monotonic()
        for _ in range(2):
            assert open_base("m", base_url=server.url, dialect=dialect, api_key=KEY, timeout=0.3).vocabulary is None
        assert time.monotonic() - began < 2 * 2.0
    lines = told()
    assert len(lines) == 1 or (not lines and (kind, dialect) == (_list, "auto"))  # once
    assert KEY not in " ".join(lines)


def test_a_server_that_is_not_there_is_said_once(told: Callable[[], list[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    for _ in range(3):
        assert opened(url, "vllm").vocabulary is None
    [line] = told()
    assert url in line


@pytest.mark.parametrize("place", ["/v1/models", "/tokenize"])
def test_the_key_goes_to_no_other_origin(place: str, models: dict[str, str], told: Callable[[], list[str]]) -> None:
    cuts = [[1]] * len(TEXTS)
    with raw_server(telling(models["base"], cuts)) as other:

        async def elsewhere(asked: Asked, out: Out) -> None:
            if asked.path == place:
                await out.whole(b"", "307 Moved", location=other.url.removesuffix("/v1") + place)
            else:
                await telling(models["base"], cuts)(asked, out)

        with raw_server(elsewhere) as server:
            assert opened(server.url, "vllm", api_key=KEY).vocabulary is None
            assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in server.seen)
        assert other.seen == []
    assert KEY not in " ".join(told())


def test_user_and_query_of_a_url_go_along_and_are_not_shown(
    models: dict[str, str], told: Callable[[], list[str]], probes: Path
) -> None:
    vocabulary = from_pretrained(models["base"])
    cuts = [list(vocabulary.prompt_ids(text)) for text in TEXTS]
    with raw_server(telling(models["base"], cuts)) as server:
        url = server.url.replace("//", "//me:hunter2@") + "?sig=hunter3"
        assert opened(url, "vllm").vocabulary is vocabulary
        assert {seen.path.partition("?")[2] for seen in server.seen} == {"sig=hunter3"}
        assert {seen.headers["authorization"][:6] for seen in server.seen} == {"Basic "}
    assert "hunter" not in " ".join(told())
    assert all("hunter" not in file.read_text() + file.name for file in probes.iterdir())


# -- what was kept ----------------------------------------------------------------------------------------------------


@pytest.fixture
def swapped(engine: Engine, models: dict[str, str]) -> Callable[..., AbstractContextManager[Any]]:
    """A server whose model can be exchanged: its URL, and what does it."""

    @contextmanager
    def swap(dialect: str, other: str = "digits-expert") -> Iterator[tuple[str, Callable[[], None]]]:
        another = open_engine(models[other], top_logprobs=5, served_model_name="big", device="cpu")
        apps = [create_app(each, emulation=emulation_of(dialect)) for each in (engine, another)]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await apps[0](scope, receive, send)

        with serve_in_thread(app) as url:
            yield f"{url}/v1", lambda: apps.reverse()

    return swap


@pytest.mark.parametrize("smaller", [True, False])
def test_answers_of_another_model_are_refused_and_what_was_kept_is_forgotten(
    smaller: bool, swapped: Callable[..., Any], models: dict[str, str], probes: Path
) -> None:
    with swapped("vllm", "digits-expert" if smaller else "pieces-expert") as (url, swap):
        assert asked(opened(url, "vllm"))
        swap()
        late = opened(url, "vllm")  # asks nothing
        with pytest.raises(BadRequest if smaller else Misspelled) as caught:
            asked(late)
        assert "forgotten" in caught.value.hint
        assert list(probes.iterdir()) == []
        found = opened(url, "vllm")
        assert found.vocabulary is from_pretrained(models["digits-expert" if smaller else "pieces-expert"])
        assert asked(found)


@pytest.mark.parametrize("dialect", ["sglang", "auto"])
def test_where_answers_have_no_ids_the_server_is_asked_again(
    dialect: str, swapped: Callable[[str], Any], models: dict[str, str]
) -> None:
    with swapped("sglang") as (url, swap):
        assert opened(url, dialect).vocabulary is from_pretrained(models["base"])
        swap()
        assert opened(url, dialect).vocabulary is from_pretrained(models["digits-expert"])


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_a_warm_cache_needs_no_server(dialect: str, engine: Engine, tmp_path: Path) -> None:
    async def ask(base: CachedBase) -> tuple[list[Token], int]:
        draft = await base.draft(Ask(Prefix(PROMPT), 4))
        await base.aclose()
        return [position.token for position in draft.positions], draft.usage.api_calls

    with serve_in_thread(create_app(engine, emulation=emulation_of(dialect))) as server:
        url = f"{server}/v1"
        tokens, calls = run(ask(CachedBase(opened(url, dialect), tmp_path / "cache")))
        assert calls == 1
    assert run(ask(CachedBase(opened(url, dialect), tmp_path / "cache"))) == (tokens, 0)


def test_a_tokenizer_whose_files_have_changed_is_asked_for_again(
    host: Callable[..., Watched], models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(models["base"], folder)
    monkeypatch.setattr(HostEngine, "source", str(folder))
    server = host("vllm")
    assert opened(server.url, "vllm").vocabulary is not None
    shutil.rmtree(folder)
    shutil.copytree(models["digits-expert"], folder)
    server.since()
    assert opened(server.url, "vllm").vocabulary is None
    assert server.since() != []


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"schema": 1}', '{"schema": 1, "url": 7}'])
def test_a_kept_file_that_is_none_is_written_anew(text: str, host: Callable[..., Watched], probes: Path) -> None:
    server = host("vllm")
    assert opened(server.url, "vllm").vocabulary is not None
    [file] = probes.iterdir()
    before = file.read_text()
    file.write_text(text)
    assert opened(server.url, "vllm").vocabulary is not None
    assert file.read_text() == before


def test_nothing_is_kept_where_that_is_turned_off(host: Callable[..., Watched], monkeypatch: Any) -> None:
    monkeypatch.setenv("BLACKBOX_PROXY_PROBES", "0")
    server = host("vllm")
    for _ in range(2):
        assert opened(server.url, "vllm").vocabulary is not None
        assert server.since() != []


# -- OpenAI's own service ---------------------------------------------------------------------------------------------


@pytest.fixture
def encodings(tokenizers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiktoken's cache, with one file, and no way out."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a download")

    folder = tmp_path / "encodings"
    folder.mkdir()
    shutil.copy(tokenizers / "tiktoken" / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4", folder)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    monkeypatch.setattr("tiktoken.load.read_file", refuse)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return folder


def test_openais_models_by_name(encodings: Path, told: Callable[[], list[str]]) -> None:
    base = open_base("gpt-3.5-turbo-instruct", api_key=KEY)
    assert base.vocabulary is not None
    assert len(base.vocabulary) == 100_277
    [line] = told()
    assert "cl100k_base" in line
    assert open_base("gpt-4o", api="chat", api_key=KEY).vocabulary is None
    [line] = told()
    assert "o200k_base" in line
    assert "not on this machine" in line
    assert open_base("nobody-knows", api_key=KEY).vocabulary is None
    # A name at another server, or of a deployment, is whatever somebody has given it.
    elsewhere = {"base_url": "http://127.0.0.1:9/v1", "dialect": "openai"}
    for options in (elsewhere, {"base_url": "https://me.openai.azure.com", "api_key": KEY}):
        assert open_base("gpt-4", **options).vocabulary is None  # type: ignore[arg-type]
    assert told() == []


def test_a_damaged_file_is_left_alone(encodings: Path) -> None:
    [file] = encodings.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert encoding_here("cl100k_base") is None
    assert file.exists()
    assert encoding_here("gpt2") is None


def test_answers_hold_an_assumed_tokenizer(models: dict[str, str], hosted: Callable[[int], str]) -> None:
    """The base of a service whose table is wrong: each of its tokens must be one of the tokenizer's."""
    right, wrong = from_pretrained(models["base"]), from_pretrained(models["digits-expert"])
    for vocabulary, streamed in ((right, False), (right, True), (wrong, False), (wrong, True)):
        base = opened(hosted(5), "openai", tokenizer=vocabulary)
        base._found = tokenizer.Found(vocabulary, "assumed", assumed=True)

        async def ask(base: OpenAIBase = base, streamed: bool = streamed) -> int:
            question = Ask(Prefix("x"), 24)
            try:
                if streamed:
                    return sum([len(part.positions) async for part in base.stream(question)])
                return len((await base.draft(question)).positions)
            finally:
                await base.aclose()

        if vocabulary is right:
            assert run(ask()) > 0
        else:
            with pytest.raises(Misspelled, match="no token of assumed"):
                run(ask())


def test_what_is_here(models: dict[str, str], tmp_path: Path) -> None:
    assert tokenizer_here(models["base"]) is from_pretrained(models["base"])
    assert tokenizer_here(str(tmp_path / "nowhere")) is None
    assert tokenizer_here("org/never-heard-of-it") is None
