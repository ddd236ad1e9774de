"""What real servers answered (tests/servers/capture.py wrote it down), replayed over HTTP and read.

The same toy weights answered the same questions on vLLM, llama-server and llama-cpp-python, so what is read from them
must agree; where a server shows less, it must be told from the answer and not guessed.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_server import Asking, Server
from starlette.responses import Response

from blackbox_proxy.api.streaming import Incremental, parse
from blackbox_proxy.errors import BadRequest, BaseError, ContextTooLong, ModelNotFound, NoLogprobs
from blackbox_proxy.protocols import Ask
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Prefix, Prompt, Token, joined

CAPTURED = Path(__file__).parents[1] / "servers" / "captured"
SERVERS = ("vllm", "llama-server", "llama-cpp-python")
WITH_IDS = ("vllm", "llama-server")
SHOWS_END = WITH_IDS
PROMPT: Prompt = "20 of 2000"


@cache
def answers(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CAPTURED / f"{kind}.json").read_text(encoding="utf-8"))["answers"]
    return found


@cache
def toy() -> Vocabulary:
    """The spelling of the model that the servers had; it cannot cut text, which nothing here needs."""
    found = json.loads((CAPTURED / "vocabulary.json").read_text(encoding="utf-8"))
    return Vocabulary(
        [None if token is None else bytes.fromhex(token) for token in found["tokens"]],
        special={int(index): text for index, text in found["special"].items()},
        end_ids=found["ends"],
        encode=lambda texts: [[] for _ in texts],
        pretokens=lambda _: [0],
        render=lambda prompt, _: [0, 300],
    )


def replayed(kind: str, name: str) -> Response:
    answer = answers(kind)[name]
    if "events" not in answer:
        return Response(json.dumps(answer["body"]), answer["status"], media_type=answer["type"])
    lines = (event if event == "[DONE]" else json.dumps(event) for event in answer["events"])
    return Response("".join(f"data: {line}\n\n" for line in lines), answer["status"], media_type="text/event-stream")


class Replay:
    """Asks a base whose server answers what a real one did; `names`: the answers to its requests, in turn."""

    def __init__(self, server: Server, asking: Asking) -> None:
        self._server, self._asking = server, asking

    async def __call__(self, kind: str, *names: str, ids: bool = False, k: int = 3, n: int | None = None) -> Draft:
        self._server.answers = [replayed(kind, name) for name in names]
        first = answers(kind)[names[0]]
        base = self._asking(
            api="chat" if first["request"]["route"].startswith("chat") else "completions",
            dialect=kind,
            tokenizer=toy() if ids else None,
            top_logprobs=k,
            max_attempts=1,
        )
        n = n or first["request"]["max_tokens"]
        try:
            if "events" in first:
                return joined([part async for part in base.stream(Ask(Prefix(PROMPT), n))])
            return await base.draft(Ask(Prefix(PROMPT), n))
        finally:
            await base.aclose()


@pytest.fixture
def replay(server: Server, asking: Asking) -> Replay:
    return Replay(server, asking)


def spelled(draft: Draft) -> list[bytes | None]:
    return [position.token.bytes for position in draft.positions]


# -- the same on every server ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text", "chat", "end", "end, stream"])
@pytest.mark.parametrize("kind", SERVERS)
async def test_the_same_weights_show_the_same(name: str, kind: str, replay: Replay) -> None:
    ours, theirs = await replay("vllm", name), await replay(kind, name)
    written = [position for position in ours.positions if not position.token.end]
    for there, here in zip(theirs.positions, written, strict=kind not in SHOWS_END):
        assert there.token.bytes == here.token.bytes
        assert there.logprob == pytest.approx(here.logprob, abs=1e-4)
        both = min(len(there.tokens), len(here.tokens))
        assert [token.bytes for token in there.tokens[:both]] == [token.bytes for token in here.tokens[:both]]
        assert there.logprobs[:both] == pytest.approx(here.logprobs[:both], abs=1e-4)
        assert len(there.tokens) == (2 if (kind, name) == ("vllm", "chat") else 3)  # there the drawn token has a place
        assert there.tokens[0] == there.token  # greedy
    body = answers(kind)[name].get("body")
    if body is not None:
        choice = body["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        assert b"".join(token or b"" for token in spelled(theirs)).decode() == text


@pytest.mark.parametrize("whole", ["end", "end at once"])
@pytest.mark.parametrize("kind", SERVERS)
async def test_the_end_of_text(whole: str, kind: str, replay: Replay) -> None:
    for name in (whole, f"{whole}, stream"):
        for ids in (False, True) if kind in WITH_IDS else (False,):
            draft = await replay(kind, name, ids=ids)
            assert draft.finish == "stop"
            assert [position.token.end for position in draft.positions[:-1]] == [False] * (len(draft.positions) - 1)
            assert len(draft.positions) == (whole == "end") * 2 + (kind in SHOWS_END)
            if kind in SHOWS_END:
                last = draft.positions[-1]
                assert last.token.end
                assert last.token.bytes == b""
                assert last.token in last.tokens
                assert last.logprob == pytest.approx(float(last.logprobs.max()))


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_chat_that_ends_at_once(kind: str, replay: Replay) -> None:
    draft = await replay(kind, "chat, end at once")
    assert draft.finish == "stop"
    assert [position.token.end for position in draft.positions] == [True] * (kind in SHOWS_END)


@pytest.mark.parametrize("kind", WITH_IDS)
async def test_ids(kind: str, replay: Replay) -> None:
    for name in ("text, ids out", "ids", "stream"):
        draft = await replay(kind, name, ids=True)
        for position in draft.positions:
            for token in (position.token, *position.tokens):
                assert token == toy().token_of(token.id if token.id is not None else -1)
        assert spelled(draft) == spelled(await replay(kind, "text"))


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_token_outside_the_candidates_does_not_join_them(kind: str, replay: Replay) -> None:
    for name in ("outside the top k", "outside the top k, ids out"):
        draft = await replay(kind, name, ids=kind in WITH_IDS and "ids" in name)
        assert spelled(draft) == [b"0", b"0"]
        for position in draft.positions:
            assert len(position.tokens) == 3
            assert position.token not in position.tokens
            assert position.logprob is not None
            assert position.logprob < position.logprobs.min()
        expected = (await replay(kind, "text")).positions[0]
        assert draft.positions[0].logprobs == pytest.approx(expected.logprobs, abs=1e-4)  # a bias is not reflected


# -- tokens that are no whole characters -------------------------------------------------------------------------------


async def test_vllm_tells_parts_of_characters_by_id_only(replay: Replay) -> None:
    draft = await replay("vllm", "characters in parts, ids out", ids=True)
    assert b"".join(token or b"" for token in spelled(draft)) == "a👍東".encode()
    assert len(draft.positions) == 8
    assert draft.positions[-1].token.end
    text = await replay("vllm", "characters in parts")
    assert spelled(text)[1:4] == [None, None, None]
    forced = await replay("vllm", "part of a character")
    assert spelled(forced) == [None, None]
    assert all(len(position.tokens) == 3 for position in forced.positions)


async def test_a_masked_token_is_no_candidate(replay: Replay) -> None:
    """vLLM's structured output shows -9999.0 for what the structure rules out."""
    draft = await replay("vllm", "characters in parts, ids out", ids=True)
    assert [len(position.tokens) for position in draft.positions] == [1, 2, 1, 1, 1, 2, 1, 2]
    assert min(float(position.logprobs.min()) for position in draft.positions) > -100


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("name", ["characters in parts", "characters in parts, stream", "cut in a character"])
async def test_llama_server_joins_parts_of_characters_and_is_read_up_to_there(
    name: str, ids: bool, replay: Replay
) -> None:
    """The row of a character made of four tokens has the candidates of the last: they are no answer after "a"."""
    draft = await replay("llama-server", name, ids=ids)
    assert spelled(draft) == [b"a"]
    assert draft.finish in (None, "length")


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("name", ["part of a character", "part of a character, stream", "chat, part of a character"])
async def test_what_llama_server_hides_is_brought_out(name: str, ids: bool, server: Server, replay: Replay) -> None:
    """A second request biases a whole character, and so shows the candidates as they are."""
    draft = await replay("llama-server", name, "biased, by text", ids=ids)
    (position,) = draft.positions
    assert draft.cut
    assert draft.usage.api_calls == 2
    assert server.sent[-1]["logit_bias"] == {"a": 100.0}
    assert server.sent[-1]["max_tokens"] == 1
    assert position.token == position.tokens[0]
    assert position.token.bytes == b" 20"


async def test_an_answer_that_hides_everything_is_an_error(replay: Replay) -> None:
    with pytest.raises(NoLogprobs):
        await replay("llama-server", "part of a character")
    with pytest.raises(NoLogprobs):
        await replay("llama-server", "nothing asked")


async def test_llama_cpp_python_completes_a_character_beyond_the_limit(replay: Replay) -> None:
    assert len(answers("llama-cpp-python")["cut in a character"]["body"]["choices"][0]["logprobs"]["tokens"]) == 5
    draft = await replay("llama-cpp-python", "cut in a character")
    assert spelled(draft) == [b"a", None]
    assert draft.positions[1].tokens[0].bytes == b"\x1c"
    whole = await replay("llama-cpp-python", "characters in parts")
    assert spelled(whole) == [b"a", None, None, None, None, None, None]


# -- what else was asked ----------------------------------------------------------------------------------------------


def test_named_ids_take_the_place_of_the_top_k() -> None:
    asked = answers("vllm")["named"]["request"]["logprob_token_ids"]
    draft = parse(answers("vllm")["named"]["body"], Incremental(1, len(asked) + 1, toy()))
    (position,) = draft.positions
    assert {token.id for token in position.tokens} == {position.token.id, *asked}


@pytest.mark.parametrize("kind", WITH_IDS)
async def test_several_prompts_are_answered_in_order(kind: str, replay: Replay) -> None:
    choices = answers(kind)["list"]["body"]["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    first = await replay(kind, "list", ids=True)
    expected = await replay(kind, "ids", ids=True)
    assert first.positions[0].logprobs == pytest.approx(expected.positions[0].logprobs, abs=1e-4)


async def test_given_text(server: Server, asking: Asking) -> None:
    """vLLM repeats ids that it was sent, with its candidates at each; here all but the first two were given."""
    sent = answers("vllm")["echo, ids"]["request"]["prompt"]
    server.answers = [replayed("vllm", "echo, ids")]
    base = asking(dialect="vllm", tokenizer=toy(), top_logprobs=3)
    given = [toy().token_of(index) for index in sent[2:]]
    draft = await base.draft(Ask(Prefix(tuple(sent[:2])), 1, given=given))
    await base.aclose()
    assert draft.given == len(given) > 1
    assert [position.token for position in draft.positions[:-1]] == given
    assert all(len(position.tokens) == 3 for position in draft.positions)


async def test_given_text_as_text(server: Server, asking: Asking) -> None:
    server.answers = [replayed("llama-cpp-python", "echo")]
    base = asking(dialect="llama-cpp-python", top_logprobs=3)
    pieces = [b"rich", b" the", b" ca"]
    prompt = answers("llama-cpp-python")["echo"]["request"]["prompt"]
    assert prompt == "In Zürich the café"
    draft = await base.draft(Ask(Prefix("In Zü"), 1, given=[Token(bytes=piece) for piece in pieces]))
    await base.aclose()
    assert spelled(draft)[: draft.given] == pieces[: draft.given]


@pytest.mark.parametrize("kind", SERVERS)
async def test_refusals(kind: str, replay: Replay) -> None:
    with pytest.raises(ContextTooLong):
        await replay(kind, "too long")
    with pytest.raises(BaseError) as found:
        await replay(kind, "bad parameter")
    assert "temperature" in str(found.value)
    if kind == "vllm":
        with pytest.raises(ModelNotFound):
            await replay(kind, "no such model")
        with pytest.raises(BadRequest, match="25"):
            await replay(kind, "too many log probabilities", k=25)
        with pytest.raises(BadRequest, match="100000"):
            await replay(kind, "no such token")
    else:
        assert len((await replay(kind, "too many log probabilities", k=25)).positions[0].tokens) == 25
        assert (await replay(kind, "no such model")).positions


@pytest.mark.parametrize("kind", SERVERS)
def test_no_candidate_is_made_of_nothing(kind: str) -> None:
    """Whatever was answered: no log probability of a sentinel, no bytes of a replacement, none twice."""
    read = 0
    for answer in answers(kind).values():
        body, asked = answer.get("body"), answer["request"]
        if answer["status"] != 200 or body is None or asked.get("echo") or "prompt" not in asked:
            continue
        try:
            draft = parse(body, Incremental(8, asked.get("logprobs", 1)))
        except NoLogprobs:
            continue
        for position in draft.positions:
            keys = [token.key for token in position.tokens if token.bytes]
            assert len(keys) == len(set(keys))
            assert all("\ufffd".encode() not in (token.bytes or b"") for token in position.tokens)
            assert np.exp(position.logprobs).sum() < 1.001
            read += 1
    assert read > 20
