"""steer="bias": the offset is sent as a logit_bias and the server chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toys import words

from blackbox_proxy import ProxyTuner, TransformersBase
from blackbox_proxy.api.naming import logit_bias, text_only, without_logprobs
from blackbox_proxy.decoding.biased import Offsets, Steering
from blackbox_proxy.decoding.text import Limits, Text
from blackbox_proxy.dialects.table import DIALECTS
from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.tuner import run
from blackbox_proxy.types import END, Draft, How, Position, Prefix, Scores, Token, Usage

PROMPTS = ("The mayor of", "In Zürich")


@pytest.fixture(scope="module")
def whole(models: dict[str, str]) -> TransformersBase:
    return TransformersBase(models["base"], device="cpu")


def test_with_a_key_for_every_token_it_is_proxy_tuning(whole: TransformersBase, pairs: Callable[[str], Any]) -> None:
    """Law 3: the same text as from the whole vocabulary's log probabilities, one request a token."""
    assert whole.abilities.biases >= len(whole.vocabulary)
    for prompt in PROMPTS:
        wanted = ProxyTuner(whole, pairs("same"), tail="truncate").generate(prompt, max_tokens=12)
        found = ProxyTuner(whole, pairs("same"), steer="bias").generate(prompt, max_tokens=12)
        assert [step.token_id for step in found.steps] == [step.token_id for step in wanted.steps]
        assert (found.text, found.finish_reason) == (wanted.text, wanted.finish_reason)
        assert found.usage.api_calls == len(found.steps)


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_over_http_it_moves_the_text_as_the_pair_would(
    api_base: Callable[..., Any], pairs: Callable[[str], Any], kind: str
) -> None:
    """300 keys for 500 tokens: the first token is more often proxy-tuning's than the base's own is."""
    prompts = [words(seed, 3) for seed in range(12)]
    near, far = api_base(500, dialect="host"), api_base(5, dialect="host")

    def first(tuner: ProxyTuner) -> list[bytes]:
        texts = tuner.generate_batch(prompts, max_tokens=1)
        assert all(text.usage.api_calls >= 1 for text in texts)
        return [text.steps[0].token for text in texts]

    tuned, plain = first(ProxyTuner(near, pairs(kind), 4.0)), first(ProxyTuner(near, pairs(kind), 0.0))
    found = first(ProxyTuner(far, pairs(kind), 4.0, steer="bias"))
    agreeing = sum(one == other for one, other in zip(found, tuned, strict=True))
    untouched = sum(one == other for one, other in zip(plain, tuned, strict=True))
    assert agreeing > untouched, f"{agreeing} of 12 (the base itself: {untouched})"


def test_a_server_that_refuses_log_probabilities_is_asked_without(
    api_base: Callable[..., Any], pairs: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of the answer is then all there is: the same token comes of it, where it is whole characters."""
    base, bare = api_base(5, dialect="host"), api_base(5, dialect="host")
    monkeypatch.setattr(bare, "_shows", False)
    compared = 0
    for seed in range(8):
        wanted = ProxyTuner(base, pairs("same"), steer="bias").generate(words(seed, 3), max_tokens=1)
        if wanted.steps[0].token.isascii() and wanted.text:
            found = ProxyTuner(bare, pairs("same"), steer="bias").generate(words(seed, 3), max_tokens=1)
            assert found.text == wanted.text
            compared += 1
    assert compared >= 2


def test_sampled_texts_follow_p(whole: TransformersBase, pairs: Callable[[str], Any]) -> None:
    """Chi-square over the first token at temperature 0.8, with a key for every token."""
    pair, draws = pairs("same"), 100
    p = ProxyTuner(whole, pair, tail="truncate").generate(PROMPTS[0], max_tokens=1).steps[0].candidates
    tuner = ProxyTuner(whole, pair, steer="bias")
    texts = [tuner.generate(PROMPTS[0], max_tokens=1, temperature=0.8, seed=seed) for seed in range(draws)]
    found = Counter(text.steps[0].token_id for text in texts)
    likely = [(c.token.id, float(np.exp(c.log_p / 0.8))) for c in p[:8]]
    scale = sum(found[i] for i, _ in likely) / sum(share for _, share in likely)
    chi = sum((found[i] - share * scale) ** 2 / (share * scale) for i, share in likely)
    assert chi < 24.3, f"chi-square {chi:.1f} at 7 degrees of freedom (0.1 %)"


# -- the parts --------------------------------------------------------------------------------------------------------


class _Row:
    limit: int | None = None

    def __init__(self, table: dict[int, tuple[float, float]]) -> None:
        self._table = table

    def score(self, tokens: Any) -> Scores:
        pairs = [self._table.get(-1 if token.end else token.id, (1.0, 1.0)) for token in tokens]
        e, a = np.log([pair[0] for pair in pairs]), np.log([pair[1] for pair in pairs])
        exact: How = "exact"
        return Scores(e, a, e - a, (exact,) * len(tokens))

    def propose(self, count: int, model: int = 0) -> list[Token]:
        ordered = sorted(self._table, key=lambda i: -self._table[i][model])
        return [END if i == -1 else _id(i) for i in ordered[:count]]


def _id(index: int) -> Token:
    return Token(index, b"x%d" % index, f"x{index}")


_TABLE = {1: (0.5, 0.1), 2: (0.1, 0.5), 3: (0.2, 0.2), -1: (0.1, 0.05)}


def _offsets(table: dict[int, tuple[float, float]]) -> Offsets:
    return Offsets([], [_Row(table)], Equation((2.0,)), 0)


def test_the_tokens_that_move_most_get_the_keys() -> None:
    offsets = _offsets(_TABLE)
    largest = offsets.largest(3)
    assert [token.id if not token.end else "end" for token in largest] == [1, 2, "end"]
    assert list(largest.values()) == pytest.approx([2 * np.log(5), -2 * np.log(5), 2 * np.log(2)])
    assert len(offsets.largest(10)) == 3, "what is not moved needs no key"


def test_a_bias_is_ids_within_what_apis_take(whole: TransformersBase) -> None:
    vocabulary = whole.vocabulary
    spelled = logit_bias({vocabulary.token_of(7): 250.0, END: -3.0}, vocabulary, 300)
    ends = {str(index): -3.0 for index in vocabulary.end_ids}
    assert spelled == {"7": 100.0, **ends}
    with pytest.raises(InputError, match="cannot be biased"):
        logit_bias({Token(None, b"x", "x"): 1.0}, vocabulary, 300)
    with pytest.raises(InputError, match="takes 1"):
        logit_bias({vocabulary.token_of(7): 1.0, vocabulary.token_of(8): 1.0}, vocabulary, 1)


@pytest.mark.parametrize(
    ("choice", "token", "finish"),
    [
        ({"text": " the", "finish_reason": "length"}, b" the", "length"),
        ({"message": {"content": "x"}, "finish_reason": "length"}, b"x", "length"),
        ({"text": "", "finish_reason": "stop"}, END, "stop"),
        ({"text": "\ufffd", "finish_reason": "length"}, None, "length"),
    ],
)
def test_a_token_known_by_its_text_only(choice: dict[str, Any], token: bytes | Token | None, finish: str) -> None:
    draft = text_only({"choices": [choice]}, None)
    assert draft.finish == finish
    assert draft.positions[0].token.bytes == (token.bytes if isinstance(token, Token) else token)
    assert len(draft.positions[0].tokens) == 0


def test_requests_without_log_probabilities() -> None:
    assert without_logprobs({"logprobs": 5, "top_logprobs": 3, "model": "m"}) == {"model": "m"}


class _Scripted:
    """A base that answers `steer` from a list and notes what it was asked."""

    name, vocabulary, context, identity = "scripted", None, None, None

    def __init__(self, answers: list[Token], biases: int = 2) -> None:
        from blackbox_proxy.protocols import Abilities

        self.abilities = Abilities(biases=biases)
        self.asked: list[dict[Token, float]] = []
        self._answers = iter(answers)

    def room(self, prefix: Prefix) -> None:
        return None

    def can_continue(self, prefix: Prefix) -> bool:
        return prefix.tokens[-1].id != 9

    async def steer(self, prefix: Prefix, bias: dict[Token, float], **options: Any) -> Draft:
        self.asked.append(dict(bias))
        token = next(self._answers)
        position = Position(token, None, (), np.empty(0))
        return Draft((position,), "stop" if token.end else "length", Usage(1, 1, 1))


def _decoded(base: Any, table: dict[int, tuple[float, float]], max_tokens: int = 8) -> list[Any]:
    async def work() -> list[Any]:
        text = Text(base, "x", Limits(max_tokens))
        steering, steps = Steering(base, text, Sampling()), []
        while not text.finished:
            steps.append(await steering.next(_offsets(table)))
        return steps

    return run(work())


def test_a_token_that_the_pair_is_against_gets_its_key_and_is_asked_again() -> None:
    table = {1: (0.5, 0.1), 2: (0.4, 0.1), 5: (1e-3, 2e-3)}
    base = _Scripted([_id(5), _id(1), END])
    steps = _decoded(base, table)
    assert [step.token for step in steps] == [b"x1", b""]
    assert [step.usage.api_calls for step in steps] == [2, 1]
    assert {token.id for token in base.asked[0]} == {1, 2}
    assert {token.id for token in base.asked[1]} == {5, 1}, "the key that moves least makes room"
    assert base.asked[1][_id(5)] == pytest.approx(-2 * np.log(2))


def test_a_token_that_cannot_be_issued_back_is_forbidden() -> None:
    base = _Scripted([_id(9), _id(1), END])
    steps = _decoded(base, {1: (0.5, 0.1)})
    assert [step.token for step in steps] == [b"x1", b""]
    assert base.asked[1][_id(9)] == -100.0


def test_a_drawn_token_without_a_key_stays_with_what_its_offset_leaves() -> None:
    """exp(-log 2 / 1) = 1/2 of the attempts, by noise that belongs to the attempt."""

    def steering(sampling: Sampling) -> Steering:
        base: Any = _Scripted([])
        return Steering(base, Text(base, "x", Limits(8)), sampling)

    drawn = [steering(Sampling(1.0, seed=seed)) for seed in range(2000)]
    stays = sum(each.is_accepted(-float(np.log(2)), 0) for each in drawn)
    assert 900 < stays < 1100
    assert all(each.is_accepted(0.1, 0) for each in drawn[:5])
    greedy = steering(Sampling())
    assert (greedy.is_accepted(-1e-9, 0), greedy.is_accepted(0.0, 0)) == (False, True)


def test_a_base_that_takes_no_bias_is_refused(api_base: Callable[..., Any], pairs: Callable[[str], Any]) -> None:
    base = api_base(5, dialect=replace(DIALECTS["host"], bias_keys=0))
    with pytest.raises(InputError, match="takes no logit_bias"):
        ProxyTuner(base, pairs("same"), steer="bias").generate("The", max_tokens=2)
    with pytest.raises(InputError, match="unknown way to steer"):
        ProxyTuner(base, pairs("same"), steer="force")  # type: ignore[arg-type]
