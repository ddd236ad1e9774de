"""`OpenAIBase` against a real model behind real HTTP: what comes through the API is what the model says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest

from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.opening import open_base
from blackbox_proxy.dialects.table import Dialect
from blackbox_proxy.errors import BadRequest, ContextTooLong, ModelNotFound
from blackbox_proxy.protocols import Ask
from blackbox_proxy.text.vocabulary import utf8_prefix
from blackbox_proxy.types import Draft, Prefix, Token

PROMPTS = ["The mayor of New York", "In Zürich the café", "東京は", "def area(r):\n    return"]
MESSAGES = [{"role": "user", "content": "Who opened the café?"}]
Open = Callable[..., OpenAIBase]


@pytest.fixture(scope="session")
def local(models: dict[str, str]) -> TransformersBase:
    return TransformersBase(models["base"], top_logprobs=5, device="cpu")


@pytest.fixture
def far(hosted: Callable[[int], str]) -> Open:
    options = {
        "tokenizer": None,
        "max_attempts": 1,
        "trust_drafts": True,
    }  # what was written is looked at, not gone on from
    return lambda model="big", limit=5, **more: open_base(model, base_url=hosted(limit), **{**options, **more})


async def closing(base: OpenAIBase, *asked: Any, **options: Any) -> Draft:
    try:
        return await base.draft(Ask(*asked, **options))
    finally:
        await base.aclose()


def ids(draft: Draft) -> list[int | None]:
    return [position.token.id for position in draft.positions]


def same(theirs: Draft, ours: Draft) -> None:
    assert len(theirs.positions) == len(ours.positions)
    for there, here in zip(theirs.positions, ours.positions, strict=True):
        assert there.token == here.token
        assert there.logprob == pytest.approx(here.logprob, abs=1e-4)
        expected = {token.id: logprob for token, logprob in zip(here.tokens, here.logprobs, strict=True)}
        found = {token.id: logprob for token, logprob in zip(there.tokens, there.logprobs, strict=True)}
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_ids_come_through_unchanged(prompt: str, far: Open, local: TransformersBase) -> None:
    base = far(dialect="vllm", tokenizer=local.vocabulary, top_logprobs=5)
    ours = await local.draft(Ask(Prefix(prompt), 8))
    theirs = await closing(base, Prefix(prompt), 8)
    same(theirs, ours)
    assert theirs.usage == ours.usage


@pytest.mark.parametrize("seed", range(3))
async def test_sampled_tokens_outside_the_candidates(seed: int, far: Open, local: TransformersBase) -> None:
    base = far(dialect="vllm", tokenizer=local.vocabulary, top_logprobs=5)
    ours = await local.draft(Ask(Prefix(PROMPTS[0]), 8, temperature=1.0, seed=seed))
    theirs = await closing(base, Prefix(PROMPTS[0]), 8, temperature=1.0, seed=seed)
    same(theirs, ours)
    assert any(position.token not in position.tokens for position in theirs.positions)


async def test_the_whole_vocabulary(far: Open, local: TransformersBase) -> None:
    base = far(limit=-1, dialect="vllm", tokenizer=local.vocabulary, top_logprobs=local.size)
    (position,) = (await closing(base, Prefix(PROMPTS[0]), 1)).positions
    assert len({token.id for token in position.tokens}) == local.size
    assert np.exp(position.logprobs).sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_text_tells_the_bytes_where_ids_are_unknown(prompt: str, far: Open, local: TransformersBase) -> None:
    ours = await local.draft(Ask(Prefix(prompt), 8))
    theirs = await closing(far(), Prefix(prompt), 8)
    written = [position for position in ours.positions if not position.token.end]
    for there, here in zip(theirs.positions, written, strict=True):
        assert there.token == Token(bytes=here.token.bytes, text=there.token.text)
        assert [token.bytes for token in there.tokens] == [token.bytes for token in here.tokens]


@pytest.mark.parametrize("dialect", ["openai", "vllm"])
@pytest.mark.parametrize("prompt", PROMPTS)
async def test_ids_continue_their_own_draft(dialect: str, prompt: str, far: Open, local: TransformersBase) -> None:
    """Issued back, the tokens of a draft lead to the rest of it, whole characters or not."""
    base = far(dialect=dialect, tokenizer=local.vocabulary, top_logprobs=5)
    whole = [position.token for position in (await base.draft(Ask(Prefix(prompt), 8))).positions]
    for cut in range(1, len(whole)):
        prefix = Prefix(prompt, tuple(whole[:cut]))
        assert base.can_continue(prefix)
        rest = (await base.draft(Ask(prefix, len(whole) - cut))).positions
        assert [position.token for position in rest] == whole[cut:], cut
    await base.aclose()


@pytest.mark.parametrize(
    ("options", "prompt", "shown"),
    [
        ({"dialect": "openai"}, PROMPTS[0], PROMPTS[0]),
        ({"dialect": "vllm"}, PROMPTS[0], PROMPTS[0]),
        ({"dialect": "openai"}, MESSAGES, "Who opened the café?"),
        ({"dialect": "openai", "rendering": lambda prompt: f"Q: {prompt}"}, "Who?", "Q: Who?"),
        ({"dialect": "host", "api": "chat"}, MESSAGES, "User: Who opened the café?\nAssistant:"),
        ({"dialect": "host", "api": "chat"}, "Who?", "User: Who?\nAssistant:"),
    ],
)
async def test_text_continues_where_it_left_off(
    options: dict[str, Any], prompt: Any, shown: str, far: Open, local: TransformersBase
) -> None:
    """Issued tokens come back to the model as their text behind the prompt: exactly as if both were one text."""
    base = far(top_logprobs=5, **options)
    for pieces in ([], [b" the"], [b" the", b" caf\xc3", b"\xa9"], [b"\n\n", b"In Z", "ürich".encode()]):
        tokens = tuple(Token(bytes=piece) for piece in pieces)
        issued = b"".join(pieces).decode()
        ours = await local.draft(Ask(Prefix(shown + issued), 3))
        theirs = await base.draft(Ask(Prefix(prompt, tokens), 3))
        written = [position.token.bytes for position in ours.positions if not position.token.end]
        assert [position.token.bytes for position in theirs.positions] == written
        assert theirs.positions[0].logprobs == pytest.approx(ours.positions[0].logprobs, abs=1e-4)
    await base.aclose()


async def test_the_end_is_shown_by_one_dialect_and_left_out_by_the_other(far: Open, local: TransformersBase) -> None:
    prefix = Prefix(PROMPTS[0])
    for seed in range(1000):
        ours = await local.draft(Ask(prefix, 6, temperature=1.0, seed=seed))
        if ours.finish == "stop":
            break
    shown = await closing(
        far(dialect="vllm", tokenizer=local.vocabulary, top_logprobs=5), prefix, 6, temperature=1.0, seed=seed
    )
    same(shown, ours)
    assert shown.positions[-1].token.end
    left_out = await closing(far(tokenizer=local.vocabulary), prefix, 6, temperature=1.0, seed=seed)
    assert ids(left_out) == ids(ours)[:-1]
    assert shown.finish == left_out.finish == "stop"


async def test_an_end_among_the_candidates(far: Open, local: TransformersBase) -> None:
    whole = {"limit": -1, "top_logprobs": local.size}
    for options in ({"dialect": "vllm", "tokenizer": local.vocabulary}, {"dialect": "vllm"}):
        (position,) = (await closing(far(**whole, **options), Prefix(PROMPTS[0]), 1)).positions
        (end,) = [token for token in position.tokens if token.end]
        assert (end.bytes, end.text) == (b"", "</s>")


async def test_refusals_of_a_real_server(far: Open, local: TransformersBase) -> None:
    with pytest.raises(ModelNotFound, match="small"):
        await closing(far("small"), Prefix("Hi"), 1)
    with pytest.raises(BadRequest, match="logprobs"):
        await closing(far(dialect="vllm", top_logprobs=6), Prefix("Hi"), 1)
    with pytest.raises(ContextTooLong, match="512"):
        await closing(far(), Prefix("Hi " * 600), 1)


async def test_concurrent_drafts_do_not_mix(far: Open, local: TransformersBase) -> None:
    base = far(dialect="vllm", tokenizer=local.vocabulary, top_logprobs=5)
    prefixes = [
        Prefix(prompt, (Token(id=i + 40, bytes=local.vocabulary.spelling[i + 40]),))
        for prompt in PROMPTS
        for i in range(3)
    ]
    alone = [await base.draft(Ask(prefix, 4)) for prefix in prefixes]
    together = await asyncio.gather(*(base.draft(Ask(prefix, 4)) for prefix in prefixes))
    for one, other in zip(alone, together, strict=True):
        same(other, one)
    await base.aclose()


# -- streams ----------------------------------------------------------------------------------------------------------


async def streamed(base: OpenAIBase, *asked: Any, **options: Any) -> tuple[list[Draft], Draft]:
    """The parts, and what they are together."""
    parts = [part async for part in base.stream(Ask(*asked, **options))]
    usage = parts[0].usage
    for part in parts[1:]:
        usage += part.usage
    positions = tuple(position for part in parts for position in part.positions)
    return parts, Draft(positions, parts[-1].finish, usage, sum(part.given for part in parts))


@pytest.mark.parametrize("options", [{"dialect": "vllm"}, {"dialect": "openai"}, {"dialect": "vllm", "api": "chat"}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_stream_is_the_draft_in_parts(
    options: dict[str, Any], temperature: float, far: Open, local: TransformersBase
) -> None:
    base = far(tokenizer=local.vocabulary, top_logprobs=5, **options)
    for seed, prompt in enumerate(PROMPTS):
        whole = await base.draft(Ask(Prefix(prompt), 8, temperature=temperature, seed=seed))
        parts, joined = await streamed(base, Prefix(prompt), 8, temperature=temperature, seed=seed)
        same(joined, whole)
        assert (joined.finish, joined.usage) == (whole.finish, whole.usage)
        assert len(parts) > 2 or len(whole.positions) < 2
    await base.aclose()


async def stats(base: OpenAIBase) -> dict[str, int]:
    async with httpx2.AsyncClient() as client:
        found: dict[str, int] = (await client.get(base.url.removesuffix("/v1") + "/stats")).json()
        return found


@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_a_stream_stops_the_server(cancelled: bool, far: Open, local: TransformersBase) -> None:
    base = far(dialect="vllm", tokenizer=local.vocabulary, top_logprobs=5)
    before = await stats(base)
    assert (await local.draft(Ask(Prefix(PROMPTS[1]), 480))).finish == "length"
    arrived = asyncio.Event()

    async def read() -> None:
        async with aclosing(base.stream(Ask(Prefix(PROMPTS[1]), 480))) as stream:
            async for _ in stream:
                arrived.set()
                if not cancelled:
                    return

    task = asyncio.create_task(read())
    await asyncio.wait_for(arrived.wait(), 10)
    if cancelled:
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() == cancelled
    for _ in range(100):
        after = await stats(base)
        if after["active"] == 0:
            break
        await asyncio.sleep(0.02)
    assert after["active"] == 0
    assert after["completion_tokens"] - before["completion_tokens"] < 200
    await base.aclose()


# -- given text -------------------------------------------------------------------------------------------------------

TEXTUAL = Dialect("textual", completions_k=None, chat_k=None, echo={"echo": True}, echo_streams=True)
GIVEN = [" the", " caf", "é", " of", " New"]


@pytest.fixture
def pieces(local: TransformersBase) -> tuple[Token, ...]:
    vocabulary = local.vocabulary
    return tuple(vocabulary.token_of(i) for piece in GIVEN for i in vocabulary.encode([piece.encode()])[0])


async def one_by_one(local: TransformersBase, prefix: Prefix, given: Sequence[Token]) -> list[Any]:
    """What the model shows at each given token, asked for one at a time."""
    return [
        (await local.draft(Ask(Prefix(prefix.prompt, (*prefix.tokens, *given[:j])), 1))).positions[0]
        for j in range(len(given))
    ]


def shows(position: Any, expected: Any) -> None:
    assert [token.bytes for token in position.tokens] == [token.bytes for token in expected.tokens]
    assert position.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.parametrize("dialect", ["vllm", "host"])
@pytest.mark.parametrize("prompt", PROMPTS)
async def test_given_ids(
    dialect: str, prompt: str, pieces: tuple[Token, ...], far: Open, local: TransformersBase
) -> None:
    base = far(dialect=dialect, tokenizer=local.vocabulary, top_logprobs=5)
    prefix = Prefix(prompt, pieces[:1])
    ours = await local.draft(Ask(Prefix(prompt, pieces), 4))
    expected = await one_by_one(local, prefix, pieces[1:])
    whole = await base.draft(Ask(prefix, 4, given=pieces[1:]))
    parts, joined = await streamed(base, prefix, 4, given=pieces[1:])
    assert (len(parts) > 2) == (dialect == "host")
    for found in (whole, joined):
        assert found.given == len(pieces) - 1
        assert [position.token for position in found.positions[: found.given]] == list(pieces[1:])
        for position, wanted in zip(found.positions, expected, strict=False):
            shows(position, wanted)
        same(Draft(found.positions[found.given :]), ours)
        assert found.finish == ours.finish
        assert found.usage.completion_tokens == len(ours.positions)
    await base.aclose()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", PROMPTS)
async def test_given_text(
    stream: bool, prompt: str, pieces: tuple[Token, ...], far: Open, local: TransformersBase
) -> None:
    """The server cuts the text anew; at each of its own tokens it shows what the model says there."""
    base = far(dialect=TEXTUAL, top_logprobs=5)
    given = tuple(Token(bytes=piece.encode()) for piece in GIVEN)
    if stream:
        _, found = await streamed(base, Prefix(prompt), 3, given=given)
    else:
        found = await base.draft(Ask(Prefix(prompt), 3, given=given))
    ids = local.vocabulary.prompt_ids(prompt + "".join(GIVEN))
    before = len(ids) - found.given
    assert (
        b"".join(position.token.bytes or b"" for position in found.positions[: found.given]) == "".join(GIVEN).encode()
    )
    tokens = [local.vocabulary.token_of(i) for i in ids]
    for j, position in enumerate(found.positions[: found.given]):
        assert position.token.bytes == tokens[before + j].bytes
        shows(position, (await local.draft(Ask(Prefix(ids[: before + j]), 1))).positions[0])
    ours = await local.draft(Ask(Prefix(ids), 3))
    written = [position.token.bytes for position in ours.positions if not position.token.end]
    assert [position.token.bytes for position in found.positions[found.given :]] == written
    await base.aclose()


async def test_a_token_across_the_border(far: Open, local: TransformersBase) -> None:
    base = far(dialect=TEXTUAL, top_logprobs=5)
    for given in ([b"k"], [b"k", b" City"]):
        found = await base.draft(Ask(Prefix("The mayor of New Yor"), 3, given=[Token(bytes=piece) for piece in given]))
        assert (found.positions, found.given, found.finish) == ((), 0, None)
        assert found.usage.api_calls == 1
    await base.aclose()


async def test_what_is_given_is_cut_where_it_cannot_be_continued(far: Open, local: TransformersBase) -> None:
    prefix, half = Prefix("In"), Token(bytes=b" caf\xc3")
    text = far(dialect=TEXTUAL, top_logprobs=5)
    found = await text.draft(Ask(prefix, 5, given=[Token(bytes=b" the"), half, Token(bytes=b"\xa9")]))
    assert (found.given, len(found.positions), found.finish) == (found.given, found.given, None)
    assert b"".join(position.token.bytes or b"" for position in found.positions) == b" the"
    assert await text.draft(Ask(prefix, 5, given=[half])) == Draft(())
    assert [part async for part in text.stream(Ask(prefix, 5, given=[half]))] == [Draft(())]
    await text.aclose()
    known = far(dialect="host", tokenizer=local.vocabulary, top_logprobs=5)
    (the,) = (local.vocabulary.token_of(i) for i in local.vocabulary.encode([b" the"])[0])
    _, joined = await streamed(known, prefix, 5, given=[the, Token(bytes=b"no token of it")])
    assert ([position.token for position in joined.positions], joined.given, joined.finish) == ([the], 1, None)
    await known.aclose()


async def test_text_is_drafted_only_as_far_as_it_would_be_cut_so(far: Open, local: TransformersBase) -> None:
    """Through a text API with a known tokenizer, drafts are what one token at a time gives."""
    base = far(
        dialect=replace(TEXTUAL, ids_out={"return_tokens_as_token_ids": True}),
        tokenizer=local.vocabulary,
        top_logprobs=5,
    )
    cut_short = 0
    for prompt in PROMPTS:
        prefix = Prefix(prompt)
        for seed in range(6):
            draft = await base.draft(Ask(prefix, 6, temperature=1.0, seed=seed))
            _, joined = await streamed(base, prefix, 6, temperature=1.0, seed=seed)
            same(joined, draft)
            cut_short += len(draft.positions) < 6 and draft.finish is None
            text = prompt.encode()
            for position in draft.positions:
                if text[-1] < 128:
                    shows(position, (await local.draft(Ask(Prefix(text.decode()), 1))).positions[0])
                text += position.token.bytes or b""
                if utf8_prefix(text) < len(text):
                    break
    assert cut_short > 0
    await base.aclose()
