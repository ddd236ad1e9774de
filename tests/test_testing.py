"""The laws that users can import: our own bases, pairs and tuner keep them, and each law is broken by something."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackbox_proxy import Budget, BudgetedBase, CachedBase, ProxyTuner, TransformersBase, TransformersPair
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.protocols import Ask, Base, Pair, Revealed, Row
from blackbox_proxy.testing import (
    BASE_LAWS,
    EQUAL_LAWS,
    PAIR_LAWS,
    TUNER_LAWS,
    acheck_base,
    check_base,
    check_equal_models,
    check_pair,
    check_tuner,
)
from blackbox_proxy.text.spelling import from_pretrained
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Position, Prefix, Prompt, Scores, Token, Usage

PROMPTS = ["The mayor of New York", "日本 in 2023 "]
REFINED = "what_is_refined_is_known_better"
# Until pairs estimate first; then it is true, and goes.
ALL_BASE_LAWS = {law.__name__ for law in BASE_LAWS}


@pytest.fixture(scope="module")
def lm(models: dict[str, str]) -> CausalLM:
    return load_causal_lm(models["base"], device="cpu")


@pytest.fixture(scope="module")
def spelling(models: dict[str, str]) -> Vocabulary:
    return from_pretrained(models["base"])


# -- ours keep them ---------------------------------------------------------------------------------------------------


def test_the_models_own_weights_keep_every_law_of_a_base(lm: CausalLM) -> None:
    assert set(check_base(lambda: TransformersBase(lm), PROMPTS, draws=100)) == ALL_BASE_LAWS


def test_a_base_over_http_keeps_the_laws(api_base: Callable[..., OpenAIBase]) -> None:
    kept = check_base(lambda: api_base(dialect="host"), PROMPTS)
    assert set(kept) == ALL_BASE_LAWS - {"draws_follow_what_is_shown", "room_shrinks_by_one_a_token"}


@pytest.mark.parametrize("known", [True, False])
def test_a_base_whose_prefixes_travel_as_text_keeps_the_laws(api_base: Callable[..., OpenAIBase], known: bool) -> None:
    """Text that is sent anew may be cut into other tokens: a draft ends before that, tokenizer known or not."""
    given = {"dialect": "together"} if known else {"dialect": "openai", "tokenizer": None}
    kept = check_base(lambda: api_base(**given), PROMPTS)
    assert "a_draft_of_n_is_n_drafts_of_one" in kept
    assert "named_tokens_have_the_probabilities_shown" not in kept


async def test_bases_around_a_base_keep_the_laws(lm: CausalLM, tmp_path: Path) -> None:
    """Also from a running loop."""
    files = itertools.count()
    around: list[Callable[[], Base]] = [
        lambda: CachedBase(TransformersBase(lm), tmp_path / f"{next(files)}.sqlite"),
        lambda: BudgetedBase(TransformersBase(lm), Budget(max_calls=1000)),
    ]
    for make in around:
        assert set(await acheck_base(make, PROMPTS[:1], draws=40)) == ALL_BASE_LAWS


@pytest.mark.parametrize("kind", ["same", "digits", pytest.param("pieces", marks=pytest.mark.slow)])
def test_local_pairs_keep_every_law(
    kind: str, models: dict[str, str], pairs: Callable[[str], TransformersPair], spelling: Vocabulary
) -> None:
    """What spells like the base has nothing to estimate. What is written in pieces is summed to a few thousandths: of
    what goes on behind a token the likeliest ids are looked at.
    """
    how: dict[str, Any] = {} if kind == "same" else {"tolerance": 2e-3}
    every = {law.__name__ for law in PAIR_LAWS} - (set() if kind != "same" else {REFINED})
    alone = TransformersPair(models[f"{kind}-expert"], device="cpu")
    for pair in (pairs(kind), alone):
        assert set(check_pair(pair, spelling, PROMPTS, **how)) >= every
    itself = TransformersPair(models[f"{kind}-expert"], models[f"{kind}-expert"], device="cpu")
    assert len(check_equal_models(itself, spelling, PROMPTS)) == len(EQUAL_LAWS)


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("process", "same"),
        ("http", "digits"),
        pytest.param("http", "same", marks=pytest.mark.slow),
        pytest.param("process", "pieces", marks=pytest.mark.slow),
    ],
)
def test_the_tuner_keeps_every_law(
    where: str,
    kind: str,
    lm: CausalLM,
    api_base: Callable[..., OpenAIBase],
    pairs: Callable[[str], TransformersPair],
) -> None:
    def make(**options: Any) -> ProxyTuner:
        base: Base = TransformersBase(lm, top_logprobs=5) if where == "process" else api_base(dialect="host")
        return ProxyTuner(base, pairs(kind), **options)

    assert len(check_tuner(make, PROMPTS[1:])) == len(TUNER_LAWS)


# -- and each can be broken -------------------------------------------------------------------------------------------


class Changed(BaseAround):
    """A base whose drafts are changed by `change(ask, draft)`; streamed ones by `change_part`, where that is given."""

    change_part: Callable[[Draft], Draft] | None = None

    def __init__(self, base: Base, change: Callable[[Ask, Draft], Draft] = lambda _, draft: draft) -> None:
        super().__init__(base)
        self.change = change

    async def draft(self, ask: Ask) -> Draft:
        return self.change(ask, await self.base.draft(ask))

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        yield await self.draft(ask)


def at(place: int, **fields: Any) -> Callable[[Ask, Draft], Draft]:
    """Other fields of one position, where a draft has it."""

    def change(ask: Ask, draft: Draft) -> Draft:
        positions = list(draft.positions)
        if len(positions) > place:
            positions[place] = replace(positions[place], **fields)
        return replace(draft, positions=tuple(positions))

    return change


def second_best(ask: Ask, draft: Draft) -> Draft:
    position = draft.positions[0]
    other = replace(position, token=position.tokens[1], logprob=float(position.logprobs[1]))
    return replace(draft, positions=(other, *draft.positions[1:]))


def shifted_when_long(ask: Ask, draft: Draft) -> Draft:
    """What a draft of several shows at its second position is not what is shown there alone."""
    if len(draft.positions) < 2:
        return draft
    return at(1, logprobs=draft.positions[1].logprobs - 0.5)(ask, draft)


class Forgetful(Changed):
    """Answers otherwise the second time."""

    async def draft(self, ask: Ask) -> Draft:
        draft = await self.base.draft(ask)
        self.asked = getattr(self, "asked", 0) + 1
        return at(0, logprobs=draft.positions[0].logprobs - 0.1 * self.asked)(ask, draft)


class Halved(Changed):
    """Loses the end of what it streams."""

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        whole = await self.base.draft(ask)
        yield replace(whole, positions=whole.positions[: len(whole.positions) // 2])


class Twice(Changed):
    """Counts the request in each part."""

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        whole = await self.base.draft(ask)
        yield replace(whole, finish=None)
        yield Draft((), whole.finish, whole.usage)

    @property
    def abilities(self) -> Any:
        return replace(self.base.abilities, streams=True)


class Broken(Changed):
    """Writes something else after a stream was closed in the middle."""

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        try:
            yield await self.base.draft(ask)
        finally:
            self.change = second_best


class DeafToGiven(Changed):
    """Ignores the given text and writes its own."""

    async def draft(self, ask: Ask) -> Draft:
        draft = await self.base.draft(replace(ask, given=(), n=ask.n + len(ask.given)))
        return replace(draft, given=len(ask.given))


class Confused(Changed):
    """Says the named tokens' probabilities in an order of its own."""

    async def reveal(self, prefix: Prefix, tokens: Sequence[Token]) -> Revealed:
        told = await self.base.reveal(prefix, tokens)
        return Revealed(np.sort(told.logprobs)[::-1] - 0.01 * len(tokens[0].text), told.usage)


class Stubborn(Changed):
    """Takes a bias and does not listen to it."""

    async def steer(self, prefix: Prefix, bias: Mapping[Token, float], **options: Any) -> Draft:
        return await self.base.steer(prefix, {}, **options)


class Endless(Changed):
    """Has the same room left wherever it is."""

    def room(self, prefix: Prefix) -> int | None:
        return 100


class Unsure(Changed):
    """Another identity each time."""

    made = itertools.count()

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._mine = next(Unsure.made)

    @property
    def identity(self) -> Mapping[str, object] | None:
        return {"made": self._mine}


class Sharp(Changed):
    """Draws greedily, and shows what it does not draw from."""

    async def draft(self, ask: Ask) -> Draft:
        return await self.base.draft(replace(ask, temperature=0.0))


class Boundless(Changed):
    """Takes a text of any length, though it has a window."""

    def check(self, prompt: Prompt, max_tokens: int) -> None: ...


def sentinel(ask: Ask, draft: Draft) -> Draft:
    logprobs = draft.positions[0].logprobs.copy()
    logprobs[-1] = -9999.0
    return at(0, logprobs=logprobs)(ask, draft)


def replacement(ask: Ask, draft: Draft) -> Draft:
    tokens = [Token(bytes="\ufffd".encode(), text="\ufffd"), *list(draft.positions[0].tokens)[1:]]
    return at(0, tokens=tokens)(ask, draft)


def repeated(ask: Ask, draft: Draft) -> Draft:
    tokens = list(draft.positions[0].tokens)
    return at(0, tokens=[tokens[0], tokens[0], *tokens[2:]])(ask, draft)


def changed(change: Callable[[Ask, Draft], Draft]) -> Callable[[Base], Base]:
    return lambda base: Changed(base, change)


BROKEN_BASES: list[tuple[str, Callable[[Base], Base]]] = [
    ("it_is_a_base", Boundless),
    ("positions_show_what_is_there", changed(sentinel)),
    ("positions_show_what_is_there", changed(replacement)),
    ("positions_show_what_is_there", changed(repeated)),
    ("a_greedy_draft_takes_the_likeliest", changed(second_best)),
    ("a_greedy_draft_takes_the_likeliest", changed(at(0, logprob=-50.0))),
    ("a_draft_of_n_is_n_drafts_of_one", changed(shifted_when_long)),
    ("asking_again_gives_the_same", Forgetful),
    ("a_stream_is_the_draft_in_parts", Halved),
    ("a_stream_is_the_draft_in_parts", Twice),
    ("usage_counts_what_was_written", changed(lambda _, draft: replace(draft, usage=Usage(1, 5, 0)))),
    ("a_closed_stream_leaves_the_base_as_it_was", Broken),
    ("given_text_is_scored_as_if_it_had_been_written", DeafToGiven),
    ("named_tokens_have_the_probabilities_shown", Confused),
    ("a_bias_bends_the_choice", Stubborn),
    ("room_shrinks_by_one_a_token", Endless),
    ("its_identity_is_what_it_answers", Unsure),
    ("draws_follow_what_is_shown", Sharp),
]


@pytest.mark.parametrize(("law", "break_it"), BROKEN_BASES)
def test_a_broken_base_is_caught_and_the_law_named(law: str, break_it: Callable[[Base], Base], lm: CausalLM) -> None:
    laws = [each for each in BASE_LAWS if each.__name__ == law]
    with pytest.raises(AssertionError, match=rf"breaks {law} \(.*\) at the prompt 'The mayor.*\n.*expected .* came"):
        check_base(lambda: break_it(TransformersBase(lm, top_logprobs=5)), PROMPTS[:1], laws=laws, draws=100)


class ChangedPair:
    """A pair whose rows are changed by `row(row, session, place, place in the draft)`."""

    def __init__(self, pair: Pair, row: Callable[..., Row] = lambda row, *_: row, checks: bool = True) -> None:
        self.pair, self.row, self.checks = pair, row, checks
        self.has_antiexpert = pair.has_antiexpert

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        if self.checks:
            self.pair.check(prompt, max_tokens)

    def open(self, prompt: Prompt, base: Vocabulary | None) -> ChangedSession:
        return ChangedSession(self, self.pair.open(prompt, base))

    def close(self) -> None: ...


class ChangedSession:
    opened = 0

    def __init__(self, pair: ChangedPair, session: Any) -> None:
        self.pair, self.session, self.seen, self.reads = pair, session, 0, 0
        ChangedSession.opened += 1
        self.number = ChangedSession.opened

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        self.seen = max(self.seen, len(issued) + len(positions))
        rows = self.session.score(issued, positions)
        return [self.pair.row(row, self, len(issued) + place, place) for place, row in enumerate(rows)]

    def read(self, issued: Sequence[Token]) -> None:
        self.reads += 1

    def refine(self, wanted: Any) -> None:
        self.session.refine([(row.row if isinstance(row, ChangedRow) else row, tokens) for row, tokens in wanted])

    def close(self) -> None:
        self.session.close()


class ChangedRow:
    """A row with other scores or proposals."""

    def __init__(
        self,
        row: Row,
        scores: Callable[[Scores, Sequence[Token]], Scores] = lambda scores, _: scores,
        proposals: Callable[[list[Token]], list[Token]] = lambda tokens: tokens,
    ) -> None:
        self.row, self.limit, self._scores, self._proposals = row, row.limit, scores, proposals

    def score(self, tokens: Sequence[Token]) -> Scores:
        return self._scores(self.row.score(tokens), tokens)

    def propose(self, count: int, model: int = 0) -> list[Token]:
        return self._proposals(self.row.propose(count, model))


class TurnedRow(ChangedRow):
    """Scored with others, what is the last one's comes first."""

    draft: object = None

    def score_all(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> Scores:
        one, *more = (row.score(tokens) for row, tokens in reversed(wanted))
        return one.then(*more)


def changed_pair(pair: Pair, row: Callable[..., Row] = lambda row, *_: row, checks: bool = True) -> Pair:
    return ChangedPair(pair, row, checks)


def moved(scores: Scores, by: Any) -> Scores:
    """The expert's masses, and with them the offsets, are others."""
    return replace(scores, log_expert=scores.log_expert + by, offset=scores.offset + by)


def by_order(scores: Scores, tokens: Sequence[Token]) -> Scores:
    return moved(scores, -0.1 * np.arange(len(tokens)))


def unexplained(scores: Scores, tokens: Sequence[Token]) -> Scores:
    return replace(scores, offset=scores.offset + 1.0)


def certain(scores: Scores, tokens: Sequence[Token]) -> Scores:
    return moved(scores, -scores.log_expert)


def worse(row: Row, *_: Any) -> Row:
    """Says each time that it is less sure."""
    asked = itertools.count(1)
    return ChangedRow(
        row,
        lambda scores, _: replace(scores, error=np.full(len(scores.offset), float(next(asked)))),
    )


def lower(how_much: Callable[[ChangedSession, int, int], float]) -> Callable[..., Row]:
    return lambda row, session, place, within: ChangedRow(
        row, lambda scores, _: moved(scores, -how_much(session, place, within))
    )


BROKEN_PAIRS: list[tuple[str, Callable[[Pair], Pair]]] = [
    ("it_is_a_pair", lambda pair: changed_pair(pair, checks=False)),
    ("scores_are_explained_numbers", lambda pair: changed_pair(pair, lambda row, *_: ChangedRow(row, unexplained))),
    (
        "the_order_of_candidates_changes_nothing",
        lambda pair: changed_pair(pair, lambda row, *_: ChangedRow(row, by_order)),
    ),
    ("n_positions_at_once_are_n_single_ones", lambda pair: changed_pair(pair, lower(lambda s, place, within: within))),
    ("rows_scored_in_one_go_are_rows_scored_alone", lambda pair: changed_pair(pair, lambda row, *_: TurnedRow(row))),
    ("a_draft_taken_back_leaves_nothing", lambda pair: changed_pair(pair, lower(lambda s, place, _: s.seen - place))),
    (REFINED, lambda pair: changed_pair(pair, worse)),
    ("reading_ahead_changes_nothing", lambda pair: changed_pair(pair, lower(lambda s, *_: s.reads))),
    ("texts_do_not_disturb_each_other", lambda pair: changed_pair(pair, lower(lambda s, *_: s.number % 2))),
    ("events_are_disjoint", lambda pair: changed_pair(pair, lambda row, *_: ChangedRow(row, certain))),
    (
        "proposals_are_likely_words_of_the_base",
        lambda pair: changed_pair(pair, lambda row, *_: ChangedRow(row, proposals=lambda tokens: tokens[:1] * 2)),
    ),
    ("equal_models_give_no_offset", lambda pair: pair),
]


@pytest.mark.parametrize(("law", "break_it"), BROKEN_PAIRS)
def test_a_broken_pair_is_caught_and_the_law_named(
    law: str,
    break_it: Callable[[Pair], Pair],
    pairs: Callable[[str], TransformersPair],
    spelling: Vocabulary,
) -> None:
    laws = [each for each in (*PAIR_LAWS, *EQUAL_LAWS) if each.__name__ == law]
    with pytest.raises(AssertionError, match=rf"breaks {law} \(.*\) at the prompt 'The mayor.*\n.*expected .* came"):
        check_pair(break_it(pairs("same")), spelling, PROMPTS[:1], laws=laws)


class ChangedTuner(ProxyTuner):
    """A tuner whose steps are changed by `change(step, place)`."""

    change: Callable[[Any, int], Any] = staticmethod(lambda step, place: step)

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncGenerator[Any, None]:
        place = 0
        async for step in super().astream(prompt, **options):
            yield self.change(step, place)
            place += 1


class ByDraft(ChangedTuner):
    """Another text when several tokens are asked for at a time."""

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncGenerator[Any, None]:
        async for step in super().astream(prompt, **options):
            yield step if self.drafting.n == 1 else replace(step, token=b"!")


class NotTheEquation(ChangedTuner):
    @staticmethod
    def change(step: Any, place: int) -> Any:
        columns = step.candidates
        bent = columns.log_p + 0.01 * np.arange(len(columns)) - 0.01 * len(columns)
        return replace(step, candidates=replace(columns, log_p=bent))


class Moved(ChangedTuner):
    """Weighs with its alpha what should have had none."""

    def __init__(self, base: Base, pair: Any, alpha: Any = 1.0, **options: Any) -> None:
        super().__init__(base, pair, 5.0, **options)


class MadeUp(ChangedTuner):
    @staticmethod
    def change(step: Any, place: int) -> Any:
        return replace(step, text=step.text + "\ufffd")


class Wasteful(ChangedTuner):
    """Counts what it spends twice."""

    @staticmethod
    def change(step: Any, place: int) -> Any:
        return replace(step, usage=step.usage + Usage(2))


BROKEN_TUNERS: list[tuple[str, type[ProxyTuner]]] = [
    ("alpha_zero_is_the_base", Moved),
    ("the_text_is_the_same_for_every_way_of_asking", ByDraft),
    ("every_step_keeps_the_equation", NotTheEquation),
    ("text_is_what_its_tokens_spell", MadeUp),
    ("calls_are_one_more_than_disagreements", Wasteful),
    ("a_warm_cache_asks_for_nothing", Wasteful),
]


@pytest.mark.parametrize(("law", "kind"), BROKEN_TUNERS)
def test_a_broken_tuner_is_caught_and_the_law_named(
    law: str, kind: type[ProxyTuner], lm: CausalLM, pairs: Callable[[str], TransformersPair]
) -> None:
    laws = [each for each in TUNER_LAWS if each.__name__ == law]

    def make(**options: Any) -> ProxyTuner:
        return kind(TransformersBase(lm, top_logprobs=5), pairs("same"), **options)

    with pytest.raises(AssertionError, match=rf"breaks {law} \(.*\) at the prompt 'The mayor.*\n.*expected .* came"):
        check_tuner(make, PROMPTS[:1], laws=laws)


def test_every_law_is_broken_by_something() -> None:
    broken = {law for law, _ in (*BROKEN_BASES, *BROKEN_PAIRS, *BROKEN_TUNERS)}
    assert broken == {law.__name__ for law in (*BASE_LAWS, *PAIR_LAWS, *EQUAL_LAWS, *TUNER_LAWS)}
