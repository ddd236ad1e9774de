"""What `TransformersBase` reads: given tokens in one pass, little twice, many texts side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TEXTS, ids_of, plain, text_of
from toys import tiny_model, train_tokenizer

from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.errors import ContextTooLong
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.models.trunk import Slots
from blackbox_proxy.protocols import Abilities, Ask
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.text.vocabulary import VocabularyTokens
from blackbox_proxy.types import Prefix, Token

# -- given tokens ---------------------------------------------------------------------------------------------------


def tokens_of(base: TransformersBase, text: str) -> tuple[Token, ...]:
    return tuple(base.vocabulary.token_of(index) for index in base.prompt_ids(text))


def test_what_it_can_do(base: TransformersBase) -> None:
    ids = base.known
    assert base.abilities == Abilities(scores=True, draws=True, reveals=ids, biases=ids, here=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_given_tokens_are_scored_and_continued(
    base: TransformersBase, rows_computed: list[int], temperature: float
) -> None:
    prefix, given = Prefix("The", tokens_of(base, " dog")), tokens_of(base, " ate a soup")
    draft = await base.draft(Ask(prefix, 12, temperature=temperature, seed=5, given=given))
    assert draft.given == len(given)
    assert rows_computed == [len(given) + 1] + [1] * (len(draft.positions) - len(given) - 1)
    assert [position.token for position in draft.positions[: len(given)]] == list(given)
    longer = prefix
    for position in draft.positions[: len(given)]:
        [here] = (await base.draft(Ask(longer, 1))).positions
        assert isinstance(position.tokens, VocabularyTokens)
        np.testing.assert_array_equal(position.tokens.ids, here.tokens.ids)  # type: ignore[attr-defined]
        np.testing.assert_allclose(position.logprobs, here.logprobs, atol=1e-4)
        shown = here.logprobs[position.tokens.ids == position.token.id]
        assert position.logprob == pytest.approx(float(shown[0]), abs=1e-4)
        longer = longer.plus(position.token)
    alone = await base.draft(Ask(longer, 12, temperature=temperature, seed=5))
    own = draft.positions[len(given) :]
    assert ids_of(own) == ids_of(alone.positions)
    assert [p.logprob for p in own] == pytest.approx([p.logprob for p in alone.positions], abs=1e-4)
    assert (draft.finish, alone.given) == (alone.finish, 0)
    assert draft.usage.api_calls == 1
    assert draft.usage.prompt_tokens == alone.usage.prompt_tokens == len(base.prompt_ids("The")) + len(longer.tokens)
    assert draft.usage.completion_tokens == len(own)


async def test_given_tokens_in_several_passes(base: TransformersBase, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tokens_of(base, " dog ate “naïve” soup")
    whole = await base.draft(Ask(Prefix("The"), 4, given=given))
    await base.aclose()
    monkeypatch.setattr("blackbox_proxy.base.local._ECHO_NUMBERS", 300 * 4)
    parts = await base.draft(Ask(Prefix("The"), 4, given=given))
    assert ids_of(parts.positions) == ids_of(whole.positions)
    assert parts.given == whole.given == len(given)
    assert len(parts.positions) == len(given) + 4


@pytest.mark.parametrize("odd", [Token(bytes=b" x"), Token(id=0, bytes=b"", end=True), Token(id=300, bytes=b"x")])
async def test_a_draft_stops_before_a_given_token_that_has_no_continuation(base: TransformersBase, odd: Token) -> None:
    prefix, given = Prefix("The"), tokens_of(base, " dog")
    draft = await base.draft(Ask(prefix, 5, given=(*given, odd, *given)))
    assert [position.token for position in draft.positions] == list(given)
    assert (draft.given, draft.finish) == (len(given), None)
    prompt = len(base.prompt_ids("The"))
    assert (draft.usage.prompt_tokens, draft.usage.completion_tokens) == (prompt + len(given), 0)
    none = await base.draft(Ask(prefix, 5, given=(odd,)))
    assert (none.positions, none.given, none.finish) == ((), 0, None)


async def test_given_tokens_fit_the_window(base: TransformersBase) -> None:
    given = (base.vocabulary.token_of(6),) * 5
    draft = await base.draft(Ask(Prefix([5] * 250), 100, temperature=1.0, seed=1, given=given))
    assert (len(draft.positions), draft.given, draft.finish) == (6, 5, "length")
    with pytest.raises(ContextTooLong):
        await base.draft(Ask(Prefix([5] * 251), 100, given=given))


async def test_a_stream_is_the_draft_in_one_part(base: TransformersBase) -> None:
    given = tokens_of(base, " dog")
    draft = await base.draft(Ask(Prefix("The"), 5, temperature=1.0, seed=2, given=given))
    [part] = [part async for part in base.stream(Ask(Prefix("The"), 5, temperature=1.0, seed=2, given=given))]
    assert ids_of(part.positions) == ids_of(draft.positions)
    assert (part.finish, part.given) == (draft.finish, draft.given)
    assert part.usage == draft.usage


@pytest.mark.parametrize("architecture", ["gpt2", "mamba"])
async def test_given_tokens_with_and_without_a_cache(architecture: str) -> None:
    model = tiny_model(architecture, 300, seed=3)
    vocabulary = from_tokenizer(train_tokenizer("bytes", 300), end_ids=[1])
    base = TransformersBase(CausalLM(model, vocabulary, architecture))
    given = [vocabulary.token_of(index) for index in range(70, 76)]
    draft = await base.draft(Ask(Prefix(list(range(40, 60))), 3, given=given))
    ids = list(range(40, 60)) + ids_of(draft.positions)
    rows = plain(model, ids)
    for place, position in enumerate(draft.positions, start=20):
        assert position.logprob == pytest.approx(rows[place - 1][ids[place]], abs=1e-3)
    await base.aclose()


# -- what is read again ---------------------------------------------------------------------------------------------


@pytest.fixture
def read(base: TransformersBase, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass has read."""
    lengths: list[int] = []
    reader = base._lm.reader
    run = reader._run

    def counting(pack: Any) -> None:
        lengths.append(sum(len(job.segment.ids) for job in pack))
        run(pack)

    monkeypatch.setattr(reader, "_run", counting)
    return lengths


async def test_one_token_at_a_time_reads_one_token_at_a_time(base: TransformersBase, read: list[int]) -> None:
    prompt = list(base.prompt_ids(TEXTS[2]))
    prefix = Prefix(prompt)
    for _ in range(6):
        [position] = (await base.draft(Ask(prefix, 1))).positions
        prefix = prefix.plus(position.token)
    assert read == [len(prompt), 1, 1, 1, 1, 1]


async def test_texts_decoded_in_turn_keep_their_caches(base: TransformersBase, read: list[int]) -> None:
    prompt = [5 + i % 90 for i in range(100)]
    prefixes = [Prefix(prompt).plus(base.vocabulary.token_of(40 + i)) for i in range(3)]
    streams = [base.positions(prefix, 30, temperature=1.0, seed=i) for i, prefix in enumerate(prefixes)]
    for _ in range(30):
        await asyncio.gather(*(anext(stream, None) for stream in streams))
    assert read[0] == 101
    assert sum(read) < 101 + 3 * 30 + 3 * 40  # while a text is short, reading it again is cheaper than a copy …
    assert read[-45:] == [1] * 45  # … and from then on each has a cache of its own


async def test_copied_caches_give_the_same_numbers(base: TransformersBase, reference: Any) -> None:
    prompt = [5 + i % 90 for i in range(60)]
    for branch in ([7] * 20, [8] * 20, [7] * 20, [9] * 20, [8] * 25, [7] * 21):
        ids = prompt + branch
        scored = await base.echo(ids)
        rows = plain(reference, ids)
        for place, position in enumerate(scored[1:]):
            assert position.logprob == pytest.approx(rows[place][ids[place + 1]], abs=1e-3)
        [following] = (await base.draft(Ask(Prefix(ids), 1))).positions
        assert following.logprob == pytest.approx(rows[-1].max(), abs=1e-3)


def test_the_least_recently_used_text_is_forgotten(lm: CausalLM) -> None:
    slots = Slots(lm, 2)
    one, two, three = ([start + i for i in range(20)] for start in (10, 40, 70))
    for ids in (one, two, one, three):
        slots.advance(ids, 1)
    assert [trunk.ids for trunk in slots._kept] == [one, three]


async def test_a_failed_pass_leaves_no_half_written_cache(
    base: TransformersBase, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await base.draft(Ask(Prefix([5] * 10), 1))
    reader = base._lm.reader
    run = reader._run

    def failing(pack: Any) -> None:
        run(pack)
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(reader, "_run", failing)
        with pytest.raises(RuntimeError):
            await base.draft(Ask(Prefix([5] * 12), 1))
    [position] = (await base.draft(Ask(Prefix([5] * 12), 1))).positions
    assert position.logprob == pytest.approx(plain(reference, [5] * 12)[-1].max(), abs=1e-4)


# -- side by side ---------------------------------------------------------------------------------------------------


async def test_many_at_once_are_as_one_by_one(base: TransformersBase) -> None:
    prompts = ["The", "The dog", "A fox", "User:", "A", "User: where"] * 3
    alone = [
        ids_of((await base.draft(Ask(Prefix(p), 20, temperature=0.8, seed=i))).positions) for i, p in enumerate(prompts)
    ]
    drafts = await asyncio.gather(
        *(base.draft(Ask(Prefix(p), 20, temperature=0.8, seed=i)) for i, p in enumerate(prompts))
    )
    assert [ids_of(draft.positions) for draft in drafts] == alone


def test_it_serves_several_loops_and_threads(folder: Path) -> None:
    base = TransformersBase(folder)

    def decode(text: str) -> str:
        return text_of(asyncio.run(base.draft(Ask(Prefix(text), 60))).positions)

    async def in_threads() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(decode, text) for text in ["The dog", "A", "User: hi"] * 3))

    want = [" ate “naïve” soup — 日本語 €5!", " fox ran to the sea 👍🏽 and back.", "\nAssistant: hello there, friend."]
    assert asyncio.run(in_threads()) == want * 3
    asyncio.run(base.aclose())
    assert decode("A") == want[1]  # it can be used again
    asyncio.run(base.aclose())


async def test_the_event_loop_runs_on_while_the_model_reads(base: TransformersBase) -> None:
    beats = 0
    done = asyncio.Event()

    async def beat() -> None:
        nonlocal beats
        while not done.is_set():
            beats += 1
            await asyncio.sleep(0)

    heart = asyncio.create_task(beat())
    await base.draft(Ask(Prefix("The dog"), 5))
    done.set()
    await heart
    assert beats > 5


async def test_closing_a_stream_stops_the_model(base: TransformersBase, read: list[int]) -> None:
    stream = base.positions(Prefix("The dog"), 60, temperature=1.0, seed=0)
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    before = len(read)
    await base.draft(Ask(Prefix("A"), 1))
    assert len(read) == before + 1
    assert before == 2


async def test_a_text_that_is_gone_through_again_is_not_read_anew_at_each_token(base: TransformersBase) -> None:
    """The longer text that is kept from before shares a token more with it than its own cache does."""
    prefix, text = Prefix("The"), tokens_of(base, " dog ate a soup. The cat ate a fish and the dog a bone")
    await base.draft(Ask(prefix, 1, given=text))
    before = base._lm.reader.read_tokens
    for token in text:
        await base.draft(Ask(prefix, 1))
        prefix = prefix.plus(token)
    assert len(text) > 16
    assert base._lm.reader.read_tokens - before <= len(base.prompt_ids("The")) + len(text)
