"""The cache: the same text again costs nothing."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from told import LENGTH, Told, cached, same, text_of

from blackbox_proxy.base.cache.rows import export
from blackbox_proxy.errors import ServerFailed
from blackbox_proxy.protocols import Ask
from blackbox_proxy.types import Draft, Position, Prefix, Token, Usage

# -- what is served -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 7}], ids=str)
async def test_a_text_is_asked_for_once(options: dict[str, Any], file: Path) -> None:
    base = Told()
    with cached(base, file) as first:
        cold, spent = await text_of(first, "one", 5, **options)
        assert (base.calls, spent.api_calls, spent.cached_positions) == (5, 5, 0)
    with cached(base, file) as again:
        for n in (5, 1, 64) if not options else (5, 1000):
            if options and n > 5:
                prefix, served = Prefix("one"), await again.draft(Ask(Prefix("one"), n, **options))
                assert len(served.positions) == 5
                assert prefix.tokens == ()
                continue
            warm, spent = await text_of(again, "one", n, **options)
            assert (base.calls, spent) == (5, Usage(cached_positions=LENGTH))
            assert all(map(same, warm, cold))
        parts = [part async for part in again.stream(Ask(Prefix("one"), 3, **options))]
        assert [len(part.positions) for part in parts] == [3]
        assert base.calls == 5


async def test_a_seed_serves_its_own_draws_only(file: Path) -> None:
    base = Told()
    with cached(base, file) as one:
        asked = [await one.draft(Ask(Prefix("p"), 4, temperature=1.0, seed=seed)) for seed in (1, 2, 1, None, None)] + [
            await one.draft(Ask(Prefix("p"), 4))
        ]
    assert [draft.usage.api_calls for draft in asked] == [1, 1, 0, 1, 1, 0]
    assert asked[-1].positions[0].token == asked[-1].positions[0].tokens[0]
    assert all(map(same, asked[0].positions, asked[2].positions))


async def test_what_nobody_drew_is_served_as_far_as_it_is_certain(file: Path) -> None:
    """Given text shows candidates, not what the base would write: its likeliest candidate, where there is just one."""
    base = Told()
    with cached(base, file) as one:
        own = (await base.draft(Ask(Prefix("p"), 3))).positions
        base.calls = 0
        given = [own[0].token, Token(bytes=b" x", text=" x")]
        cold = await one.draft(Ask(Prefix("p"), 2, given=given))
        warm = await one.draft(Ask(Prefix("p"), 2, given=given))
        assert (base.calls, warm.given, warm.usage) == (1, 2, Usage(cached_positions=4))
        assert [p.token for p in warm.positions] == [p.token for p in cold.positions]
        short = await one.draft(Ask(Prefix("p"), 2, given=[given[0], Token(bytes=b" y", text=" y"), given[1]]))
        assert (base.calls, short.given, len(short.positions)) == (1, 2, 2)
        greedy = await one.draft(Ask(Prefix("p"), 3))
        assert (base.calls, len(greedy.positions)) == (1, 2)
        assert [p.token for p in greedy.positions] == [p.token for p in own[:2]]


async def test_a_draft_from_the_cache_may_be_too_short(file: Path) -> None:
    """It is served as it is, whatever its last token; who needs a longer one to go on says so, and it is asked for."""

    class Broken(Told):
        def show(self, *arguments: Any) -> Position:
            position = super().show(*arguments)
            token = Token(bytes=b"\xe6", text="�")
            return position if len(arguments[0].tokens) % 2 else replace(position, token=token)

    base = Broken()
    with cached(base, file) as one:
        await one.draft(Ask(Prefix("p"), 1))
        for n in (1, 8):
            assert len((await one.draft(Ask(Prefix("p"), n))).positions) == 1
        assert base.calls == 1
        assert len((await one.draft(Ask(Prefix("p"), 8, useful_from=2))).positions) == 8
        assert base.calls == 2
        for n, least in ((8, 2), (9, 1), (9, 8)):
            assert len((await one.draft(Ask(Prefix("p"), n, useful_from=least))).positions) == 8
        assert base.calls == 2


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 7}], ids=str)
async def test_where_an_answer_was_cut_it_stays_cut(options: dict[str, Any], file: Path) -> None:
    """However long the draft that is wanted: what follows there is the answer to another question."""

    class Cut(Told):
        async def draft(self, ask: Ask) -> Draft:
            whole = await super().draft(ask)
            return Draft(whole.positions[:3], None, whole.usage, cut=True) if ask.n > 3 else whole

    base = Cut()
    with cached(base, file) as one:
        cold = await one.draft(Ask(Prefix("p"), 8, **options))
        beyond = Prefix("p", tuple(position.token for position in cold.positions))
        await one.draft(Ask(beyond, 2, **options))
        for n, least in ((8, 1), (8, 4), (64, 4)):
            warm = await one.draft(Ask(Prefix("p"), n, useful_from=least, **options))
            assert (len(warm.positions), warm.cut, warm.usage) == (3, True, Usage(cached_positions=3))
        short = await one.draft(Ask(Prefix("p"), 2, **options))
        assert (len(short.positions), short.cut, base.calls) == (2, False, 2)


async def test_a_base_without_identity_and_errors_are_not_kept(file: Path) -> None:
    base = Told(identity=None)
    with cached(base, file) as one:
        for _ in range(2):
            await one.draft(Ask(Prefix("p"), 1))
        assert (base.calls, one.store.submit(one.store.stats).result().rows) == (2, 0)
    base = Told()
    base.error = ServerFailed("no")
    with cached(base, file) as one:
        for _ in range(2):
            with pytest.raises(ServerFailed):
                await asyncio.wait_for(one.draft(Ask(Prefix("p"), 1)), 5)
        assert (base.calls, one.store.submit(one.store.stats).result().rows) == (2, 0)
        base.error = None
        assert (await one.draft(Ask(Prefix("p"), 1))).usage.api_calls == 1


# -- many at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 7}], ids=str)
async def test_identical_requests_become_one(options: dict[str, Any], file: Path) -> None:
    base = Told(seconds=0.005)
    with cached(base, file) as one, cached(base, file) as other:
        found = await asyncio.gather(*(text_of(c, "p", 6, **options) for c in [one, other] * 4))
        assert base.calls == 5
        for positions, _ in found:
            assert all(map(same, positions, found[0][0]))


async def test_a_stream_is_followed_while_it_is_read(file: Path) -> None:
    """Whoever wants the same text gets each token as it arrives, not after the last one."""
    base = Told(seconds=0.02)
    with cached(base, file) as one, cached(base, file) as other:
        reading = asyncio.create_task(one.draft(Ask(Prefix("p"), 1)))  # warms up
        await reading

        async def read() -> int:
            return sum([len(part.positions) async for part in one.stream(Ask(Prefix("q"), 20))])

        task = asyncio.create_task(read())
        await asyncio.sleep(0.03)
        prefix, early = Prefix("q"), 0
        while len(prefix.tokens) < 20:
            for position in (await other.draft(Ask(prefix, 20 - len(prefix.tokens)))).positions:
                prefix = prefix.plus(position.token)
            early += not task.done()
        assert await task == 20
        assert base.calls == 2
        assert early > 3


async def test_who_gives_up_makes_nobody_wait(file: Path) -> None:
    base = Told(seconds=0.2)
    with cached(base, file) as one, cached(base, file) as other:
        task = asyncio.create_task(one.draft(Ask(Prefix("p"), 1)))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(other.draft(Ask(Prefix("p"), 1)))
        await asyncio.sleep(0.05)
        task.cancel()
        assert (await asyncio.wait_for(waiting, 2)).usage.api_calls == 1
        async with aclosing(one.stream(Ask(Prefix("q"), 9))) as parts:  # cut after the first part
            await anext(parts)
        assert (await asyncio.wait_for(other.draft(Ask(Prefix("q"), 9)), 2)).usage == Usage(cached_positions=1)
        assert base.calls == 3


# -- whose rows they are ------------------------------------------------------------------------------------------


def test_what_changes_the_answers_changes_the_identity(models: dict[str, str]) -> None:
    from blackbox_proxy import TransformersBase, open_base
    from blackbox_proxy.dialects.table import DIALECTS

    plain: dict[str, Any] = {
        "model": "big",
        "base_url": "http://127.0.0.1:1/v1",
        "dialect": "vllm",
        "tokenizer": models["base"],
        "top_logprobs": 5,
        "api_key": "sk-very-secret",
    }
    others: list[dict[str, Any]] = [
        {"model": "small"},
        {"base_url": "http://127.0.0.1:2/v1"},
        {"base_url": "http://127.0.0.1:1/v1?version=2"},
        {"api": "chat"},
        {"dialect": "host"},
        {"dialect": replace(DIALECTS["vllm"], extra_body={})},
        {"tokenizer": None},
        {"tokenizer": models["digits-expert"]},
        {"top_logprobs": 4},
        {"top_logprobs": None},
        {"rendering": "chat"},
        {"extra_body": {"logit_bias": {"1": 2}}},
    ]
    found = [json.dumps(open_base(**{**plain, **other}).identity, sort_keys=True) for other in ({}, *others)]
    assert len(set(found)) == len(found)
    assert not [spelled for spelled in found if "secret" in spelled]
    alike: list[dict[str, Any]] = [
        {"api_key": "other"},
        {"timeout": 3.0},
        {"base_url": "http://127.0.0.1:1/v1/"},
        {"base_url": "http://me:secret@127.0.0.1:1/v1", "api_key": None},
    ]
    assert {json.dumps(open_base(**{**plain, **other}).identity, sort_keys=True) for other in alike} == {found[0]}
    assert open_base(**{**plain, "rendering": str}).identity is None

    local = [
        TransformersBase(models[name], device="cpu", top_logprobs=limit).identity
        for name in ("base", "same-antiexpert", "same-expert")
        for limit in (None, 3)
    ]
    assert len({json.dumps(identity) for identity in local}) == 6
    assert local[0] == TransformersBase(models["base"], device="cpu").identity
    assert TransformersBase(models["base"], device="cpu", rendering=str).identity is None


async def test_tokens_that_were_asked_about_by_name_are_shown_as_such(models: dict[str, str], file: Path) -> None:
    from blackbox_proxy import TransformersBase

    base = TransformersBase(models["base"], top_logprobs=2, device="cpu")
    with cached(base, file) as one:
        draft = await one.draft(Ask(Prefix("The mayor"), 1))
        rare = base.vocabulary.token_of(max(token.id for token in draft.positions[0].tokens) - 1)  # type: ignore[type-var,operator]
        told = await one.reveal(Prefix("The mayor"), [rare])
        one.store.submit(lambda: None).result()
        drawn, named = sorted(export(one.store), key=lambda row: "named" in row)
    assert ("named" not in drawn, named["named"]) == (True, True)
    assert (named["place"], named["text"]) == (drawn["place"], drawn["text"]) == (0, "")
    shown: Any = named["candidates"]
    assert [(c["id"], c["logprob"]) for c in shown] == [(rare.id, pytest.approx(float(told.logprobs[0])))]
    await base.aclose()


async def test_a_whole_vocabulary_comes_back_as_columns(models: dict[str, str], file: Path) -> None:
    from blackbox_proxy import TransformersBase
    from blackbox_proxy.text.vocabulary import VocabularyTokens

    base = TransformersBase(models["base"], device="cpu")
    with cached(base, file) as one:
        cold = await one.draft(Ask(Prefix("The mayor"), 6))
        warm = await one.draft(Ask(Prefix("The mayor"), 6))
        assert (cold.usage.api_calls, warm.usage) == (1, Usage(cached_positions=6))
        assert all(map(same, warm.positions, cold.positions))
        assert isinstance(warm.positions[0].tokens, VocabularyTokens)
        assert len(warm.positions[0].tokens) == base.size
    await base.aclose()
