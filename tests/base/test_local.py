"""`TransformersBase` against the model run plainly: every number and every choice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import END_TEXT, ids_of, plain, text_of
from toys import tiny_model, train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.base.showing import draw, top
from blackbox_proxy.errors import BadResponse, ContextTooLong, InputError, ModelUnavailable
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.text.vocabulary import VocabularyTokens
from blackbox_proxy.types import Prefix, Prompt, Token

# -- numbers --------------------------------------------------------------------------------------------------------


async def test_the_whole_vocabulary_is_shown_most_likely_first(base: TransformersBase, reference: Any) -> None:
    assert isinstance(base, Base)
    prompt = list(base.prompt_ids("The dog"))
    draft = await base.draft(Ask(Prefix("The dog"), 12))
    rows = plain(reference, prompt + ids_of(draft.positions))
    for place, position in enumerate(draft.positions):
        want = rows[len(prompt) - 1 + place]
        tokens = position.tokens
        assert isinstance(tokens, VocabularyTokens)
        assert tokens.ids.dtype == np.int64
        assert sorted(tokens.ids.tolist()) == list(range(300))
        assert np.all(np.diff(position.logprobs) <= 0)
        np.testing.assert_allclose(position.logprobs, want[tokens.ids], atol=1e-4)
        assert position.token.id == tokens.ids[0] == int(want.argmax())
        assert position.logprob == position.logprobs[0]
        assert np.exp(position.logprobs).sum() == pytest.approx(1.0, abs=1e-5)


async def test_tokens_are_made_only_where_looked_at(base: TransformersBase) -> None:
    [position] = (await base.draft(Ask(Prefix("The"), 1))).positions
    token = position.tokens[0]
    assert token == base.vocabulary.token_of(position.tokens.ids[0])  # type: ignore[attr-defined]
    ends = [token for token in position.tokens if token.end]
    assert [token.text for token in ends] == [END_TEXT]


@pytest.mark.parametrize("k", [1, 5, 299, 300, 10_000])
async def test_top_k_is_the_beginning_of_the_whole(lm: CausalLM, base: TransformersBase, k: int) -> None:
    small = TransformersBase(lm, top_logprobs=k)
    few = (await small.draft(Ask(Prefix("The dog"), 5))).positions
    all_of_them = (await base.draft(Ask(Prefix("The dog"), 5))).positions
    for short, long in zip(few, all_of_them, strict=True):
        assert len(short.tokens) == min(k, 300)
        assert short.tokens.ids.tolist() == long.tokens.ids[:k].tolist()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(short.logprobs, long.logprobs[:k])
    await small.aclose()


def test_ties_go_to_the_lower_id() -> None:
    row = torch.log(torch.tensor([0.1, 0.2, 0.1, 0.2, 0.2, 0.1, 0.1]))
    for k in range(1, 8):
        assert top(row, k)[0].tolist() == [1, 3, 4, 0, 2, 5, 6][:k]


def test_impossible_ids_are_no_candidates() -> None:
    row = torch.log(torch.tensor([0.0, 0.75, 0.0, 0.25]))
    for k in (3, 4):
        ids, logprobs = top(row, k)
        assert ids.tolist() == [1, 3]
        np.testing.assert_allclose(np.exp(logprobs), [0.75, 0.25])


def test_broken_weights_are_said() -> None:
    row = torch.full((5,), float("nan"))
    for k in (2, 5):
        with pytest.raises(BadResponse, match="NaN"):
            top(row, k)


async def test_echo_scores_given_text(base: TransformersBase, reference: Any) -> None:
    ids = list(base.prompt_ids("The dog ate “naïve” soup"))
    positions = await base.echo(ids, top_logprobs=3)
    rows = plain(reference, ids)
    assert ids_of(positions) == ids
    assert positions[0].logprob is None
    assert len(positions[0].tokens) == 0
    for place, position in enumerate(positions[1:], start=1):
        assert position.logprob == pytest.approx(rows[place - 1][ids[place]], abs=1e-4)
        assert position.tokens.ids.tolist() == np.argsort(-rows[place - 1], kind="stable")[:3].tolist()  # type: ignore[attr-defined]


async def test_echo_in_several_passes_is_the_same(base: TransformersBase, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = base.prompt_ids("A fox ran to the sea 👍🏽 and back.")
    whole = await base.echo(ids)
    monkeypatch.setattr("blackbox_proxy.base.local._ECHO_NUMBERS", 300 * 4)
    await base.aclose()
    parts = await base.echo(ids)
    assert ids_of(parts) == ids_of(whole) == list(ids)
    for one, other in zip(parts[1:], whole[1:], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


async def test_the_end_of_an_echo_computes_only_its_rows(base: TransformersBase, rows_computed: list[int]) -> None:
    ids = base.prompt_ids("The dog ate “naïve” soup")
    whole = await base.echo(ids, top_logprobs=3)
    assert rows_computed == [len(ids) - 1]
    for last in (0, 1, 4, len(ids) - 1, len(ids), len(ids) + 5):
        rows_computed.clear()
        found = await base.echo(ids, top_logprobs=3, last=last)
        assert sum(rows_computed) == min(last, len(ids) - 1)
        assert ids_of(found) == list(ids[max(0, len(ids) - last) :])
        for one, other in zip(reversed(found), reversed(whole), strict=False):
            assert one.logprob == (None if other.logprob is None else pytest.approx(other.logprob, abs=1e-4))
            assert [token.id for token in one.tokens] == [token.id for token in other.tokens]


async def test_echo_of_one_token_reads_nothing(base: TransformersBase) -> None:
    [position] = await base.echo([7])
    assert position.token.id == 7
    assert position.logprob is None


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "mamba"])
async def test_other_architectures_with_and_without_a_cache(architecture: str) -> None:
    model = tiny_model(architecture, 300, seed=3)
    vocabulary = from_tokenizer(train_tokenizer("bytes", 300), end_ids=[1])
    lm = CausalLM(model, vocabulary, architecture)
    base = TransformersBase(lm, top_logprobs=4)
    prompt = list(range(40, 60))
    draft = await base.draft(Ask(Prefix(prompt), 6))
    given = prompt + ids_of(draft.positions)
    rows = plain(model, given)
    for place, position in enumerate(draft.positions, start=len(prompt) - 1):
        assert position.logprob == pytest.approx(rows[place].max(), abs=1e-3)
    scored = await base.echo(given)
    for place, position in enumerate(scored[1:]):
        assert position.logprob == pytest.approx(rows[place][given[place + 1]], abs=1e-3)
    await base.aclose()


# -- drafts ---------------------------------------------------------------------------------------------------------


async def test_a_draft_ends_with_the_end_token(base: TransformersBase) -> None:
    draft = await base.draft(Ask(Prefix("The dog"), 60))
    assert draft.finish == "stop"
    assert text_of(draft.positions) == " ate “naïve” soup — 日本語 €5!"
    assert [position.token.end for position in draft.positions] == [False] * (len(draft.positions) - 1) + [True]
    assert (draft.usage.api_calls, draft.usage.prompt_tokens) == (1, len(base.prompt_ids("The dog")))
    assert draft.usage.completion_tokens == len(draft.positions)


async def test_a_draft_that_is_cut_says_length(base: TransformersBase) -> None:
    draft = await base.draft(Ask(Prefix("The dog"), 3))
    assert draft.finish == "length"
    assert len(draft.positions) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_one_at_a_time_is_the_same_text(base: TransformersBase, temperature: float) -> None:
    whole = (await base.draft(Ask(Prefix("The"), 25, temperature=temperature, seed=5))).positions
    prefix = Prefix("The")
    for position in whole:
        [single] = (await base.draft(Ask(prefix, 1, temperature=temperature, seed=5))).positions
        assert single.token == position.token
        np.testing.assert_allclose(single.logprobs, position.logprobs, atol=1e-4)
        assert base.can_continue(prefix)
        prefix = prefix.plus(single.token)


async def test_a_prompt_is_text_or_ids_or_messages(base: TransformersBase, folder: Path) -> None:
    ids = base.prompt_ids("The dog")
    from_ids = await base.draft(Ask(Prefix(ids), 8))
    from_text = await base.draft(Ask(Prefix("The dog"), 8))
    from_messages = await base.draft(Ask(Prefix([{"role": "user", "content": "The dog"}]), 8))
    assert ids_of(from_ids.positions) == ids_of(from_text.positions) == ids_of(from_messages.positions)
    shouting = TransformersBase(folder, rendering=lambda prompt: f"The {prompt}")
    assert shouting.prompt_ids("dog") == ids
    await shouting.aclose()


async def test_chat_rendering_uses_the_template(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}User: {{ m['content'] }}\nAssistant:{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    base = TransformersBase(tmp_path, rendering="chat")
    draft = await base.draft(Ask(Prefix([{"role": "user", "content": "hi"}]), 30))
    assert text_of(draft.positions) == " hello there, friend."
    await base.aclose()


# -- sampling -------------------------------------------------------------------------------------------------------


async def test_a_seed_repeats_and_another_differs(base: TransformersBase) -> None:
    async def sample(seed: int | None) -> list[int]:
        draft = await base.draft(Ask(Prefix("The"), 25, temperature=1.5, seed=seed))
        return ids_of(draft.positions)

    first = await sample(1)
    assert await sample(1) == first
    assert len({tuple(await sample(seed)) for seed in [2, 3, -4, 2**80]} | {tuple(first)}) == 5
    assert len({tuple(await sample(None)) for _ in range(8)}) > 1  # drawn anew; short texts may coincide


async def test_shown_log_probabilities_do_not_depend_on_the_temperature(base: TransformersBase, reference: Any) -> None:
    prompt = list(base.prompt_ids("The"))
    draft = await base.draft(Ask(Prefix("The"), 10, temperature=2.0, seed=8))
    ids = ids_of(draft.positions)
    rows = plain(reference, prompt + ids)
    for place, position in enumerate(draft.positions):
        want = rows[len(prompt) - 1 + place]
        assert position.logprob == pytest.approx(want[ids[place]], abs=1e-4)
        np.testing.assert_allclose(position.logprobs, want[position.tokens.ids], atol=1e-4)  # type: ignore[attr-defined,arg-type]
    assert any(position.token.id != position.tokens[0].id for position in draft.positions)


async def test_a_drawn_token_may_lie_outside_the_top_k(folder: Path) -> None:
    base = TransformersBase(folder, top_logprobs=1)
    draft = await base.draft(Ask(Prefix("The"), 25, temperature=2.0, seed=8))
    outside = [p for p in draft.positions if p.token.id != p.tokens[0].id]
    assert outside
    assert all(p.logprob is not None and p.logprob < p.logprobs[0] for p in outside)
    await base.aclose()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    p = np.array([0.4, 0.05, 0.3, 0.0, 0.15, 0.1])
    want = p ** (1 / temperature)
    want /= want.sum()
    if top_p < 1:
        order = np.argsort(-want)
        want[order[np.cumsum(want[order]) - want[order] >= top_p]] = 0
        want /= want.sum()
    rng = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        logprobs = np.log(p)
    seen = Counter(draw(logprobs, Sampling(temperature, top_p), rng) for _ in range(20_000))
    assert set(seen) == set(np.flatnonzero(want).tolist())
    expected = 20_000 * want[want > 0]
    counts = np.array([seen[int(index)] for index in np.flatnonzero(want)])
    assert ((counts - expected) ** 2 / expected).sum() < 25.7  # chi-square, 5 degrees of freedom, p = 1e-4


async def test_a_small_nucleus_is_greedy(base: TransformersBase) -> None:
    greedy = await base.draft(Ask(Prefix("The dog"), 20))
    narrow = [p async for p in base.positions(Prefix("The dog"), 20, temperature=1.0, top_p=1e-6, seed=0)]
    assert ids_of(narrow) == ids_of(greedy.positions)


# -- limits ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_refused(folder: Path) -> None:
    base = TransformersBase(folder)
    nothing: list[Prompt] = ["", [], ()]
    for empty in nothing:
        with pytest.raises(InputError, match="empty"):
            base.check(empty, 1)
    for broken in ("half \ud83d", [{"role": "user", "content": "half \ud83d"}]):
        with pytest.raises(InputError, match="half a character"):
            base.check(broken, 1)
    for ids in ([300], [5, -1]):
        with pytest.raises(InputError, match="outside the vocabulary"):
            base.check(ids, 1)
    base.check([5] * 250, 6)
    with pytest.raises(ContextTooLong, match="256"):
        base.check([5] * 250, 7)
    assert base.room(Prefix([5] * 250)) == 6
    assert base.room(Prefix([5] * 250, (Token(id=5),) * 9)) == 0
    with pytest.raises(InputError):
        TransformersBase(folder, top_logprobs=0)


async def test_a_draft_stops_at_the_window(base: TransformersBase) -> None:
    draft = await base.draft(Ask(Prefix([5] * 250), 100, temperature=1.0, seed=1))
    assert len(draft.positions) == 6
    assert draft.finish == "length"
    with pytest.raises(ContextTooLong):
        await base.draft(Ask(Prefix([5] * 256), 1))
    with pytest.raises(ContextTooLong):
        await base.echo([5] * 257)
    with pytest.raises(InputError):
        await base.draft(Ask(Prefix("The"), 0))
    with pytest.raises(InputError):
        await base.draft(Ask(Prefix("The"), 1, temperature=-1.0))


async def test_a_token_without_an_id_cannot_be_continued(base: TransformersBase) -> None:
    prefix = Prefix("The", (Token(bytes=b" cat"),))
    assert not base.can_continue(prefix)
    with pytest.raises(InputError, match="id"):
        await base.draft(Ask(prefix, 1))


def test_a_missing_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable):
        TransformersBase(tmp_path / "nothing")
