"""Token strings that do not spell the text beside them: undone where that is certain, else refused, over real HTTP.

Whatever a server does to its strings, with alpha = 0 the text is its own or there is an error. Each bend is one member
of the kind; they are what `serve/emulation.py` can do to a host.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import pytest
from api_answers import chat, entry, legacy
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import build_tiny

from blackbox_proxy import open_base
from blackbox_proxy.api.scripts import SCRIPTS, Writing
from blackbox_proxy.api.streaming import Incremental, parse
from blackbox_proxy.dialects.table import Api
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import Misspelled
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.probing.run import probe
from blackbox_proxy.probing.verdict import verdicts
from blackbox_proxy.protocols import Ask
from blackbox_proxy.serve.emulation import BENDS, EMULATIONS, Emulation
from blackbox_proxy.serve.routes import create_app
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Prefix, joined

Scope = Literal["all", "own", "listed"]
UNDONE = {"byte letters", "pieces", "open boxes", "word ends"}
PROMPTS = ("The cat", "The dog", "User: hi\n")
N, K = 12, 5
Hosts = Callable[[Emulation], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny(tmp_path_factory.mktemp("bent")))


@pytest.fixture(scope="module")
def host(folder: str) -> Iterator[Hosts]:
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

    options = {"tokenizer": None, "top_logprobs": K, **options}

    async def ask() -> list[Draft]:
        base = open_base("big", base_url=url, api=api, dialect=dialect, **options)
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


def cases() -> Iterator[Any]:
    """Every bend in every place over both routes; quick: every bend once a route, in one place or another."""
    for i, bend in enumerate(BENDS):
        quick = {("all", "completions"), (("own", "listed")[i % 2], "chat")}
        for case in itertools.product(("all", "own", "listed"), ("completions", "chat")):
            yield pytest.param(bend, *case, marks=() if case in quick else pytest.mark.slow)


@pytest.mark.parametrize(("bend", "bends", "api"), [*cases()])
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


@pytest.mark.parametrize(
    "bend", ["", "byte letters", pytest.param("without a blank", marks=pytest.mark.slow), "quoted"]
)
def test_a_probe_says_so(bend: str, host: Hosts) -> None:
    found = probe("big", base_url=host(Emulation(bend=bend)), api="completions", dialect="openai")
    generate = verdicts(found)[0]
    if bend in UNDONE | {""}:
        assert found.strings == (bend or "plain")
        assert generate.how != "not here"
        assert ("undone" in generate.why) == bool(bend)
        assert found.text_drift is None or found.text_drift < 1e-4
    else:
        assert found.strings == "refused"
        assert "token strings do not spell its text" in generate.why
        assert generate.how == "not here" or "tokenizer=" in generate.why


@pytest.fixture(scope="module")
def right(host: Hosts, folder: str) -> Callable[[bool], list[Draft]]:
    """What SGLang's own route says where nothing is bent; with a tokenizer or without."""
    url = host(Emulation(native="/generate"))
    return cache(lambda known: drafts(url, dialect="sglang-generate", tokenizer=folder if known else None))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("bend", ["byte letters", "without a blank", "quoted", "a constant"])
def test_sglangs_own_route(
    bend: str, known: bool, host: Hosts, folder: str, right: Callable[[bool], list[Draft]]
) -> None:
    """It has ids and strings side by side: with a tokenizer the ids are spelled, whatever the strings say."""
    options: dict[str, Any] = {"dialect": "sglang-generate"} | ({"tokenizer": folder} if known else {})
    url = host(Emulation(bend=bend, native="/generate"))
    if known or bend in UNDONE:
        assert [spelled(draft) for draft in drafts(url, **options)] == [spelled(draft) for draft in right(known)]
        return
    with pytest.raises(Misspelled, match=r"do not spell|must be among"):
        drafts(url, **options)


def test_ids_that_do_not_spell_the_text_are_another_tokenizers(vocabulary: Vocabulary) -> None:
    body = legacy(("token_id:256", -0.1, {"token_id:256": -0.1, "token_id:257": -2.0}), text=" dog")
    with pytest.raises(Misspelled, match="ids") as refused:
        parse(body, Incremental(1, 2, vocabulary))
    assert "tokenizer given is not" in refused.value.hint


# -- any text, cut in any way: pure -----------------------------------------------------------------------------------


def columns(tokens: list[str], bent: Callable[[str, bytes], str], scope: Scope, text: str) -> Any:
    """A completion whose text is this, of these tokens and their rivals, as a server with this bend writes them."""
    own = bent if scope in ("all", "own") else lambda text, _: text
    shown = bent if scope in ("all", "listed") else lambda text, _: text
    rows = []
    for token in tokens:
        rivals = [token, " the", "the", " é", "."]
        listed = {shown(rival, rival.encode()): -0.1 - i for i, rival in reversed(list(enumerate(rivals)))}
        rows.append((own(token, token.encode()), -0.1, listed))
    return legacy(*rows, text=text)


words = st.sampled_from([" the", " cat", "cat", "s", ".", "\n", " naïve", "é", " 日本", "日", " ", "  ", "x_y", "a b"])


@settings(deadline=None, max_examples=100)
@given(
    tokens=st.lists(words, min_size=1, max_size=8),
    bend=st.sampled_from(sorted(BENDS)),
    scope=st.sampled_from(("all", "own", "listed")),
)
def test_the_text_is_the_servers_or_refused(tokens: list[str], bend: str, scope: Scope) -> None:
    text = "".join(tokens)
    body = columns(tokens, BENDS[bend], scope, text)
    try:
        draft = parse(body, Incremental(len(tokens), 5))
    except Misspelled:
        return
    if all(position.token.bytes is not None for position in draft.positions):  # else it is known to be unknown
        assert b"".join(p.token.bytes or b"" for p in draft.positions).decode() == text
        assert draft.finish == "length"


@pytest.mark.parametrize("tokens", [[" the"], ["a", " the"]])
def test_a_last_token_that_is_cut_short(tokens: list[str]) -> None:
    """All that were asked for are told, and the text goes on: what is told is not what was written."""
    body = columns(tokens, BENDS["cut short"], "all", "".join(tokens))
    with pytest.raises(Misspelled, match="goes on with 'the'"):
        parse(body, Incremental(len(tokens), 5))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_token_that_is_not_told(lost: int) -> None:
    """Where the first or one in the middle is left out, nothing fits; behind the last one told it is gone on."""
    tokens = ["Hi", " the", " cat"]
    rows = [(t, -0.1, {t: -0.1, "!": -2.0}) for i, t in enumerate(tokens) if i != lost]
    body = legacy(*rows, text="Hi the cat", finish="stop")
    if lost < 2:
        with pytest.raises(Misspelled):
            parse(body, Incremental(5, 2))
    else:
        draft = parse(body, Incremental(5, 2))
        assert (len(draft.positions), draft.finish) == (2, None)


@pytest.mark.parametrize("text", ["Hi the ", " Hi the", "Hi the", "Hi the\n\n", "\nHi the"])
def test_blanks_at_the_ends_of_a_text_may_be_missing(text: str) -> None:
    tokens = ["\nHi", " the", "\n", "\n"] if text != " Hi the" else [" Hi", " the"]
    rows = [(t, -0.1, {t: -0.1, "!": -2.0}) for t in tokens]
    assert len(parse(legacy(*rows, text=text.strip(" ")), Incremental(5, 2)).positions) == len(tokens)


def test_positions_of_a_stream_wait_for_their_text() -> None:
    reader = Incremental(5, 2)

    def chunk(*tokens: str, text: str) -> Any:
        return legacy(*((t, -0.1, {t: -0.1, "!": -2.0}) for t in tokens), text=text, finish=None)

    assert len(reader.feed(chunk("Hi", text="Hi")).positions) == 1
    assert len(reader.feed(chunk(" the", " cat", text=" the")).positions) == 1
    with pytest.raises(Misspelled):
        reader.feed(chunk(text="cat"))


def test_a_server_is_remembered_by_how_it_writes() -> None:
    """A first answer tells; the next, which could not, is read alike."""
    writing = Writing()
    told = legacy(("Ġthe", -0.1, {"Ġthe": -0.1, "Ġa": -2.0}), text=" the")
    short = legacy(("s", -0.1, {"s": -0.1, "Ġa": -2.0}), text="s")
    with pytest.raises(Misspelled, match="does not tell"):
        parse(short, Incremental(1, 2))
    parse(told, Incremental(1, 2, writing=writing))
    (position,) = parse(short, Incremental(1, 2, writing=writing)).positions
    assert [token.bytes for token in position.tokens] == [b"s", b" a"]


@pytest.mark.parametrize("name", [script.name for script in SCRIPTS])
def test_a_script_undoes_its_bend(name: str) -> None:
    (script,) = (script for script in SCRIPTS if script.name == name)
    for text in (" the", "é", "日本", "<b>", "\n" if name == "byte letters" else "a"):
        assert script.read(BENDS[name](text, text.encode()) if name in BENDS else text) == text.encode()


def test_what_is_not_listed_though_it_must_be() -> None:
    shown = [entry(" the", -2.0), entry(" a", -3.0)]
    with pytest.raises(Misspelled, match="must be among"):
        parse(chat(entry(" cat", -0.5) | {"top_logprobs": shown}, text=" cat"), Incremental(1, 2))
    drawn = chat(entry(" cat", -5.0) | {"top_logprobs": shown}, text=" cat")
    assert len(parse(drawn, Incremental(1, 2)).positions) == 1
