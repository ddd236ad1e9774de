"""The laws of a pair, and `check_pair`, which puts them to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from blackbox_proxy.errors import InputError, PairError
from blackbox_proxy.protocols import Pair, Row, Session, Together
from blackbox_proxy.testing.laws import How, expect, put
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import END, Position, Scores, Token
from blackbox_proxy.types import How as Kind

_FEW = 12  # words of the vocabulary that stand among the candidates of each position
_WHOLE = 2000  # words of a vocabulary up to which all of its events are added up


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, and what the base has written after it: positions with the token written and other candidates."""

    prompt: str
    vocabulary: Vocabulary
    positions: Sequence[Position]

    @property
    def tokens(self) -> list[Token]:
        return [position.token for position in self.positions]


PairLaw = Callable[[Pair, Text, How], bool]


def check_pair(
    pair: Pair,
    base_vocabulary: Vocabulary,
    prompts: Sequence[str],
    *,
    laws: Sequence[PairLaw] | None = None,
    **how: Any,
) -> tuple[str, ...]:
    """Put the laws of a pair (all of `PAIR_LAWS`) to this one; `how`: see `How`.

    The second half of each prompt is scored as if a base that spells like `base_vocabulary` had written it. Returns
    the names of the laws that could be put to it. Raises AssertionError, and what the pair itself raises.
    """
    return _check(pair, base_vocabulary, prompts, PAIR_LAWS if laws is None else laws, How(**how))


def check_equal_models(pair: Pair, base_vocabulary: Vocabulary, prompts: Sequence[str], **how: Any) -> tuple[str, ...]:
    """The same for a pair whose expert is its anti-expert: it changes nothing."""
    return _check(pair, base_vocabulary, prompts, EQUAL_LAWS, How(**how))


def _check(pair: Pair, base: Vocabulary, prompts: Sequence[str], laws: Sequence[PairLaw], how: How) -> tuple[str, ...]:
    return put(laws, prompts, lambda law, prompt: law(pair, _written(prompt, base, how), how), "the pair")


def _written(prompt: str, base: Vocabulary, how: How) -> Text:
    half = max(1, len(prompt) // 2)
    ids = base.encode([prompt[half:].encode()])[0][: how.tokens]
    words = [i for i, spelling in enumerate(base.spelling) if spelling]
    others = [base.token_of(words[n * len(words) // _FEW]) for n in range(_FEW)]
    positions = []
    for index in ids:
        token = base.token_of(index)
        candidates = [token, *(other for other in others if other.key != token.key), END]
        logprobs = np.log(np.arange(len(candidates), 0, -1) / len(candidates) ** 2)
        positions.append(Position(token, float(logprobs[0]), candidates, logprobs))
    return Text(prompt[:half], base, positions)


def _scores(session: Session, row: Row, tokens: Sequence[Token]) -> Scores:
    """The models' own numbers: what a row has estimated is summed."""
    if row.score(tokens).error.any():
        session.refine([(row, tokens)])
    return row.score(tokens)


def _same(expected: Scores, came: Scores, how: How, where: str) -> None:
    for name in ("log_expert", "log_antiexpert", "offset"):
        one, other = getattr(expected, name), getattr(came, name)
        same = one.shape == other.shape and np.allclose(
            np.exp(one), np.exp(other), atol=how.tolerance, rtol=how.tolerance
        )
        expect(same, f"{name} = {one}", other, where)
    expect(expected.how == came.how, expected.how, came.how, where)


def it_is_a_pair(pair: Pair, text: Text, how: How) -> bool:
    """A pair has everything that the protocol names, takes this prompt, and refuses an empty one."""
    expect(isinstance(pair, Pair), "everything that `Pair` names", type(pair).__name__, "the protocol")
    pair.check(text.prompt, how.tokens)
    try:
        pair.check("", how.tokens)
    except (InputError, PairError):
        return True
    raise AssertionError("an empty prompt: expected InputError, but nothing came")


def scores_are_explained_numbers(pair: Pair, text: Text, how: How) -> bool:
    """Each position has a row; a row has one mass per token and model, at most 1, a finite offset that is their ratio
    unless nothing is known of the token, and says how it was found.
    """
    session = pair.open(text.prompt, text.vocabulary)
    rows = session.score([], text.positions)
    expect(len(rows) == len(text.positions), f"{len(text.positions)} rows", len(rows), "the draft")
    for row, position in zip(rows, text.positions, strict=True):
        scores, size = _scores(session, row, position.tokens), len(position.tokens)
        columns = (scores.log_expert, scores.log_antiexpert, scores.offset)
        expect(all(column.shape == (size,) for column in columns), f"{size} numbers each", columns, "scores")
        expect(np.isfinite(scores.offset).all(), "finite offsets", scores.offset, "scores")
        expect(set(scores.how) <= set(get_args(Kind)), get_args(Kind), scores.how, "how")
        known = np.array([kind != "neutral" for kind in scores.how])
        ratio = scores.log_expert[known] - scores.log_antiexpert[known]
        expect(
            np.allclose(ratio, scores.offset[known], atol=how.tolerance), f"offsets {ratio}", scores.offset, "scores"
        )
        for column in columns[: 1 + pair.has_antiexpert]:
            expect((column[known] <= how.tolerance).all(), "masses of at most 1", np.exp(column), "scores")
    session.close()
    return True


def the_order_of_candidates_changes_nothing(pair: Pair, text: Text, how: How) -> bool:
    """Candidates listed the other way round have the same scores."""
    session = pair.open(text.prompt, text.vocabulary)
    (row,) = session.score([], text.positions[:1])
    tokens = list(text.positions[0].tokens)
    there, back = _scores(session, row, tokens), _scores(session, row, tokens[::-1])
    columns = {name: getattr(back, name)[::-1] for name in ("log_expert", "log_antiexpert", "offset", "how")}
    turned = replace(back, **columns)
    _same(there, turned, how, "the other way round")
    return True


def n_positions_at_once_are_n_single_ones(pair: Pair, text: Text, how: How) -> bool:
    """The rows of a draft are those of its positions scored one at a time, in one session or each in a new one."""
    together = pair.open(text.prompt, text.vocabulary)
    going_on = pair.open(text.prompt, text.vocabulary)
    for place, (row, position) in enumerate(zip(together.score([], text.positions), text.positions, strict=True)):
        expected = _scores(together, row, position.tokens)
        for session in (going_on, pair.open(text.prompt, text.vocabulary)):
            (single,) = session.score(text.tokens[:place], [position])
            _same(
                _scores(session, single, position.tokens), expected, how, f"position {place} of {len(text.positions)}"
            )
    return True


def rows_scored_in_one_go_are_rows_scored_alone(pair: Pair, text: Text, how: How) -> bool:
    """Rows that can be scored together have the same numbers as each by itself, estimated or refined."""
    session = pair.open(text.prompt, text.vocabulary)
    rows = session.score([], text.positions)
    first = rows[0]
    if not isinstance(first, Together):
        return False
    wanted = [(row, position.tokens) for row, position in zip(rows, text.positions, strict=True)]
    for what in ("at first", "the second half refined"):
        one, *more = (row.score(tokens) for row, tokens in wanted)
        alone, together = one.then(*more), first.score_all(wanted)
        _same(alone, together, How(how.tokens, 0.0), what)
        for name in ("error", "apart", "own"):
            expected, came = getattr(alone, name), getattr(together, name)
            expect(np.array_equal(expected, came), f"{name} = {expected}", came, what)
        session.refine(wanted[len(wanted) // 2 :])
    return True


def a_draft_taken_back_leaves_nothing(pair: Pair, text: Text, how: How) -> bool:
    """A position scores the same after a longer draft was scored and not taken."""
    fresh, used = (pair.open(text.prompt, text.vocabulary) for _ in range(2))
    (row,) = fresh.score([], text.positions[:1])
    expected = _scores(fresh, row, text.positions[0].tokens)
    used.score([], text.positions)
    used.score(text.tokens[:1], text.positions[1:])
    (row,) = used.score([], text.positions[:1])
    _same(expected, _scores(used, row, text.positions[0].tokens), how, "after a draft that was not taken")
    return True


def what_is_refined_is_known_better(pair: Pair, text: Text, how: How) -> bool:
    """Where a row estimates, refining tokens makes none of their errors larger; refined again they are the same."""
    session = pair.open(text.prompt, text.vocabulary)
    estimated = False
    for row, position in zip(session.score([], text.positions), text.positions, strict=True):
        before = row.score(position.tokens).error
        after = _scores(session, row, position.tokens)
        expect((after.error <= before).all(), f"errors of at most {before}", after.error, "refined")
        _same(after, _scores(session, row, position.tokens), how, "refined again")
        estimated = estimated or bool(before.any())
    return estimated


def reading_ahead_changes_nothing(pair: Pair, text: Text, how: How) -> bool:
    """A session that has read the prompt, and then a part of the text, before it is asked scores the same."""
    plain, ahead = (pair.open(text.prompt, text.vocabulary) for _ in range(2))
    for place, position in enumerate(text.positions):
        (row,) = plain.score(text.tokens[:place], [position])
        expected = _scores(plain, row, position.tokens)
        ahead.read(text.tokens[:place])
        (row,) = ahead.score(text.tokens[:place], [position])
        _same(expected, _scores(ahead, row, position.tokens), how, f"position {place}, read before")
    return True


def texts_do_not_disturb_each_other(pair: Pair, text: Text, how: How) -> bool:
    """A session scores the same while another text is scored between its requests, and after that one is closed."""
    alone, one = (pair.open(text.prompt, text.vocabulary) for _ in range(2))
    other = pair.open(text.prompt[::-1] + ".", text.vocabulary)
    for place, position in enumerate(text.positions):
        (row,) = alone.score(text.tokens[:place], [position])
        expected = _scores(alone, row, position.tokens)
        other.score([], text.positions[place:])
        if place == len(text.positions) - 1:
            other.close()
        (row,) = one.score(text.tokens[:place], [position])
        _same(expected, _scores(one, row, position.tokens), how, f"position {place} beside another text")
    return True


def events_are_disjoint(pair: Pair, text: Text, how: How) -> bool:
    """The masses of all words of the base's vocabulary and of the end add up to at most 1 (exactly 1 is not asked: a
    spelling that the tokenizer would never choose has mass and is no event). Small vocabularies only.
    """
    vocabulary = text.vocabulary
    tokens = [token for i, s in enumerate(vocabulary.spelling) if s and not (token := vocabulary.token_of(i)).end]
    session = pair.open(text.prompt, vocabulary)
    (row,) = session.score([], text.positions[:1])
    if len(tokens) > _WHOLE or (row.limit is not None and row.limit < 1):
        return False
    scores = _scores(session, row, [*tokens, END])
    exact = np.array([kind == "exact" for kind in scores.how])
    for column in (scores.log_expert, scores.log_antiexpert)[: 1 + pair.has_antiexpert]:
        total = float(np.exp(column[exact]).sum())
        expect(0.9 < total <= 1.0 + how.tolerance, "a sum between 0.9 and 1", total, f"{exact.sum()} events")
    return bool(exact.any())


def proposals_are_likely_words_of_the_base(pair: Pair, text: Text, how: How) -> bool:
    """At most so many proposals as were asked for: distinct, spelled by the base, and possible for the model."""
    session = pair.open(text.prompt, text.vocabulary)
    (row,) = session.score([], text.positions[:1])
    for model in range(1 + pair.has_antiexpert):
        proposed = row.propose(5, model)
        keys = [token.key for token in proposed]
        expect(1 <= len(proposed) <= 5 and len(set(keys)) == len(keys), "1 to 5 distinct tokens", keys, "proposals")
        spelled = [t.end or (t.id is not None and text.vocabulary.spelling[t.id] == t.bytes) for t in proposed]
        expect(all(spelled), "tokens of the base", proposed, "proposals")
        scores = _scores(session, row, proposed)
        column = (scores.log_expert, scores.log_antiexpert)[model]
        expect(np.isfinite(column).all(), "tokens that the model can say", column, "proposals")
    return True


def equal_models_give_no_offset(pair: Pair, text: Text, how: How) -> bool:
    """Where expert and anti-expert are the same model, the offset of every candidate is exactly 0."""
    session = pair.open(text.prompt, text.vocabulary)
    for row, position in zip(session.score([], text.positions), text.positions, strict=True):
        for scores in (row.score(position.tokens), _scores(session, row, position.tokens)):
            expect((scores.offset == 0.0).all(), "offsets of 0", scores.offset, "scores")
    return True


PAIR_LAWS: tuple[PairLaw, ...] = (
    it_is_a_pair,
    scores_are_explained_numbers,
    the_order_of_candidates_changes_nothing,
    n_positions_at_once_are_n_single_ones,
    rows_scored_in_one_go_are_rows_scored_alone,
    a_draft_taken_back_leaves_nothing,
    what_is_refined_is_known_better,
    reading_ahead_changes_nothing,
    texts_do_not_disturb_each_other,
    events_are_disjoint,
    proposals_are_likely_words_of_the_base,
)
EQUAL_LAWS: tuple[PairLaw, ...] = (equal_models_give_no_offset,)
