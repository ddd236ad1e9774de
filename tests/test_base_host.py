"""`OpenAIBase` against a real model behind real HTTP: what comes through the API is what the model says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.base.openai import OpenAIBase, open_base
from blackbox_proxy.errors import BadRequest, ContextTooLong, ModelNotFound
from blackbox_proxy.types import Draft, Prefix, Token

PROMPTS = ["The mayor of New York", "In Zürich the café", "東京は", "def area(r):\n    return"]
MESSAGES = [{"role": "user", "content": "Who opened the café?"}]
Open = Callable[..., OpenAIBase]


@pytest.fixture(scope="session")
def local(models: dict[str, str]) -> TransformersBase:
    return TransformersBase(models["base"], top_logprobs=5, device="cpu")


@pytest.fixture
def far(hosted: Callable[[int], str]) -> Open:
    return lambda model="big", limit=5, **options: open_base(model, base_url=hosted(limit), max_attempts=1, **options)


async def closing(base: OpenAIBase, *asked: Any, **options: Any) -> Draft:
    try:
        return await base.draft(*asked, **options)
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
    ours = await local.draft(Prefix(prompt), 8)
    theirs = await closing(base, Prefix(prompt), 8)
    same(theirs, ours)
    assert theirs.usage == ours.usage


@pytest.mark.parametrize("seed", range(3))
async def test_sampled_tokens_outside_the_candidates(seed: int, far: Open, local: TransformersBase) -> None:
    base = far(dialect="vllm", tokenizer=local.vocabulary, top_logprobs=5)
    ours = await local.draft(Prefix(PROMPTS[0]), 8, temperature=1.0, seed=seed)
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
    ours = await local.draft(Prefix(prompt), 8)
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
    whole = [position.token for position in (await base.draft(Prefix(prompt), 8)).positions]
    for cut in range(1, len(whole)):
        prefix = Prefix(prompt, tuple(whole[:cut]))
        assert base.can_continue(prefix)
        rest = (await base.draft(prefix, len(whole) - cut)).positions
        assert [position.token for position in rest] == whole[cut:], cut
    await base.aclose()


@pytest.mark.parametrize(
    ("options", "prompt", "shown"),
    [
        ({"dialect": "openai"}, PROMPTS[0], PROMPTS[0]),
        ({"dialect": "vllm"}, PROMPTS[0], PROMPTS[0]),
        ({"dialect": "openai"}, MESSAGES, "Who opened the café?"),
        ({"dialect": "openai", "rendering": lambda prompt: f"Q: {prompt}"}, "Who?", "Q: Who?"),
        ({"dialect": "vllm", "api": "chat"}, MESSAGES, "User: Who opened the café?\nAssistant:"),
        ({"dialect": "vllm", "api": "chat"}, "Who?", "User: Who?\nAssistant:"),
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
        ours = await local.draft(Prefix(shown + issued), 3)
        theirs = await base.draft(Prefix(prompt, tokens), 3)
        written = [position.token.bytes for position in ours.positions if not position.token.end]
        assert [position.token.bytes for position in theirs.positions] == written
        assert theirs.positions[0].logprobs == pytest.approx(ours.positions[0].logprobs, abs=1e-4)
    await base.aclose()


async def test_the_end_is_shown_by_one_dialect_and_left_out_by_the_other(far: Open, local: TransformersBase) -> None:
    prefix = Prefix(PROMPTS[0])
    for seed in range(1000):
        ours = await local.draft(prefix, 6, temperature=1.0, seed=seed)
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
    alone = [await base.draft(prefix, 4) for prefix in prefixes]
    together = await asyncio.gather(*(base.draft(prefix, 4) for prefix in prefixes))
    for one, other in zip(alone, together, strict=True):
        same(other, one)
    await base.aclose()
