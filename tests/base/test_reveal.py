"""tail="ask": what the base does not show is asked for by name, where it could change what is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest

from blackbox_proxy import Budget, BudgetedBase, CachedBase, ProxyTuner, TransformersBase, open_base
from blackbox_proxy.api.naming import in_requests
from blackbox_proxy.decoding.rows import Scored, Weigher
from blackbox_proxy.decoding.weighed import Known, Weighed, worth_asking
from blackbox_proxy.dialects.table import DIALECTS
from blackbox_proxy.errors import BudgetReached, InputError
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.tuner import run
from blackbox_proxy.types import END, How, Position, Prefix, Scores, Token

PROMPTS = ("The mayor of", "In Zürich")
ALPHA = 4.0  # strong enough that tokens outside the top 5 win


@pytest.fixture
def served_calls(hosted: Callable[[int], str]) -> Callable[[], int]:
    """Requests answered so far by the host that shows five candidates."""
    url = hosted(5).removesuffix("/v1") + "/stats"
    return lambda: int(httpx2.get(url).json()["requests"])


_BY_TEXT = replace(DIALECTS["host"], named=None)


def _texts(base: Any, pair: Any, tail: str = "ask", size: int = 600, **options: Any) -> list[Any]:
    tuner = ProxyTuner(base, pair, ALPHA, tail=tail, tail_size=size, **options)  # type: ignore[arg-type]
    return [tuner.generate(prompt, max_tokens=10) for prompt in PROMPTS]


def _ids(generations: list[Any]) -> list[list[int | None]]:
    return [[step.token_id for step in generation.steps] for generation in generations]


def test_asking_makes_five_candidates_as_good_as_all(
    api_base: Callable[..., Any], pairs: Callable[[str], Any], served_calls: Callable[[], int]
) -> None:
    """Law 3 with k = 5: the same text as with the whole vocabulary; with estimates it is another."""
    everything = _ids(_texts(api_base(500, dialect="host"), pairs("same"), tail="truncate"))
    few = api_base(5, dialect="host")
    assert _ids(_texts(few, pairs("same"), tail="backoff")) != everything
    before = served_calls()
    asked = _texts(few, pairs("same"))
    assert _ids(asked) == everything
    assert sum(generation.usage.api_calls for generation in asked) == served_calls() - before
    assert all(step.covered_mass > 0.0 for generation in asked for step in generation.steps)


@pytest.mark.parametrize("draft", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_law_5_holds_while_asking(api_base: Callable[..., Any], pairs: Callable[[str], Any], draft: int) -> None:
    base = api_base(5, dialect="host")
    for kind in ("same", "digits"):
        streamed = _texts(base, pairs(kind), size=32)
        assert _ids(_texts(base, pairs(kind), size=32, draft=draft)) == _ids(streamed)


def test_nothing_is_asked_that_cannot_win(api_base: Callable[..., Any], pairs: Callable[[str], Any]) -> None:
    """With alpha 0 the base's first candidate wins whatever the others have."""
    tuner = ProxyTuner(api_base(5, dialect="host"), pairs("same"), 0.0, tail="ask", draft=12)
    plain = ProxyTuner(api_base(5, dialect="host"), pairs("same"), 0.0, tail="truncate", draft=12)
    asked, not_asked = (each.generate("The mayor of", max_tokens=12) for each in (tuner, plain))
    assert asked.text == not_asked.text
    assert asked.usage.api_calls == not_asked.usage.api_calls


def test_a_server_that_only_scores_text_is_asked_token_by_token(
    api_base: Callable[..., Any], models: dict[str, str]
) -> None:
    base, exact = api_base(5, dialect=_BY_TEXT), TransformersBase(models["base"], device="cpu")
    assert (base.abilities.reveals, api_base(5, dialect="host").abilities.reveals) == (1, 128)
    prefix = Prefix("The mayor of")
    vocabulary = exact.vocabulary
    tokens = [vocabulary.token_of(index) for index in (300, 310, 350)]
    told = run(base.reveal(prefix, [*tokens, END]))
    wanted = run(exact.reveal(prefix, tokens))
    assert told.logprobs[:3] == pytest.approx(wanted.logprobs, abs=1e-4)
    assert np.isnan(told.logprobs[3]), "no text spells the end"
    assert told.usage.api_calls == 3


def test_named_tokens_have_the_base_s_own_probability(api_base: Callable[..., Any], models: dict[str, str]) -> None:
    base, exact = api_base(5, dialect="host"), TransformersBase(models["base"], device="cpu")
    prefix = Prefix("The mayor of")
    tokens = [*(exact.vocabulary.token_of(index) for index in range(2, 302)), END, Token(None, b"?!?", "?!?")]
    told, wanted = run(base.reveal(prefix, tokens)), run(exact.reveal(prefix, tokens))
    assert told.logprobs[:-1] == pytest.approx(wanted.logprobs[:-1], abs=1e-4)
    assert np.isnan(told.logprobs[-1])
    assert told.usage.api_calls == 3, "128 ids a request"


def test_what_was_told_is_kept(
    api_base: Callable[..., Any], pairs: Callable[[str], Any], tmp_path: Any, served_calls: Callable[[], int]
) -> None:
    first = _texts(CachedBase(api_base(5, dialect="host"), tmp_path / "cache.sqlite3"), pairs("same"))
    before = served_calls()
    again = _texts(CachedBase(api_base(5, dialect="host"), tmp_path / "cache.sqlite3"), pairs("same"))
    assert _ids(again) == _ids(first)
    assert served_calls() == before
    assert sum(generation.usage.api_calls for generation in again) == 0


def test_questions_are_paid_from_the_budget(api_base: Callable[..., Any], models: dict[str, str]) -> None:
    budget = Budget(max_calls=2)
    base = BudgetedBase(api_base(5, dialect="host"), budget)
    vocabulary = base.vocabulary
    assert vocabulary is not None
    tokens = [vocabulary.token_of(index) for index in range(2, 202)]
    assert run(base.reveal(Prefix("The mayor of"), tokens)).usage.api_calls == 2
    with pytest.raises(BudgetReached):
        run(base.reveal(Prefix("The mayor of"), tokens[:1]))


def test_a_base_that_tells_nothing_is_refused_before_anything_is_sent(
    api_base: Callable[..., Any], pairs: Callable[[str], Any], served_calls: Callable[[], int]
) -> None:
    before = served_calls()
    tuner = ProxyTuner(api_base(5, dialect="openai"), pairs("same"), tail="ask")
    with pytest.raises(InputError, match="cannot be asked") as caught:
        tuner.generate("The mayor of", max_tokens=4)
    assert "backoff" in caught.value.hint
    assert served_calls() == before


# -- the arithmetic ---------------------------------------------------------------------------------------------------


class _Row:
    """Log masses from a table; the tokens that are not in it are unknown."""

    limit = None

    def __init__(self, expert: dict[bytes, float], antiexpert: dict[bytes, float]) -> None:
        self._columns = expert, antiexpert

    def score(self, tokens: Any) -> Scores:
        e, a = (np.array([np.log(column[token.bytes]) for token in tokens]) for column in self._columns)
        exact: How = "exact"
        return Scores(e, a, e - a, (exact,) * len(tokens))

    def propose(self, count: int, model: int = 0) -> list[Token]:
        table = self._columns[model]
        return [_token(spelled) for spelled in sorted(table, key=lambda key: -table[key])[:count]]


class _Pair:
    has_antiexpert = True


def _token(spelled: bytes) -> Token:
    return Token(None, spelled, spelled.decode())


_POSITION = Position(_token(b"a"), np.log(0.5), (_token(b"a"), _token(b"b")), np.log([0.5, 0.3]))
_ANTIEXPERT = {b"a": 0.4, b"b": 0.3, b"c": 0.2, b"d": 0.1}


def _weighed(
    expert: dict[bytes, float], temperature: float = 0.0, told: dict[bytes, float] | None = None
) -> tuple[Weighed, list[bytes | None]]:
    """The candidates, and what of the tail the base would be asked about."""
    known = Known({("bytes", key): value for key, value in (told or {}).items()})
    rows: Any = [_Row(expert, _ANTIEXPERT)]
    pairs: Any = [_Pair()]
    weighed = Scored(Weigher(pairs, (Equation((1.0,), "ask"),)), _POSITION, rows, 0, known).under(0)
    return weighed, [token.bytes for token in worth_asking(weighed, known, temperature)]


@pytest.mark.parametrize(
    ("expert", "temperature", "asked"),
    [
        # hidden 0.2; c and d may have at most that. Best shown: 0.5 (E = A).
        ({b"a": 0.4, b"b": 0.3, b"c": 0.2, b"d": 0.1}, 0.0, []),
        ({b"a": 0.2, b"b": 0.1, b"c": 0.6, b"d": 0.1}, 0.0, [b"c"]),  # 0.2 * 3 > 0.5 / 2
        ({b"a": 0.2, b"b": 0.1, b"c": 0.3, b"d": 0.4}, 0.0, [b"d", b"c"]),  # 0.2 * 4, 0.2 * 1.5 > 0.25
        ({b"a": 0.4, b"b": 0.3, b"c": 0.2999, b"d": 1e-4}, 1.0, [b"c"]),  # d: 0.2 / 1000 of the best is not noticed
    ],
)
def test_what_could_be_chosen_is_asked_about(
    expert: dict[bytes, float], temperature: float, asked: list[bytes]
) -> None:
    assert _weighed(expert, temperature)[1] == asked


def test_what_was_told_counts_as_shown() -> None:
    expert = {b"a": 0.2, b"b": 0.1, b"c": 0.6, b"d": 0.1}
    weighed, unknown = _weighed(expert, told={b"c": np.log(0.15)})
    assert [token.bytes for token in weighed.tokens] == [b"a", b"b", b"c", b"d"]
    assert weighed.shown == 3
    assert unknown == []
    assert weighed.covered_mass == pytest.approx(0.95)
    scores = np.array([0.5 * 0.5, 0.3 / 3, 0.15 * 3, 0.05 * 1.0])  # d: all that is still hidden
    assert np.exp(weighed.log_p) == pytest.approx(scores / scores.sum())


def test_what_was_not_told_is_estimated_and_not_asked_again() -> None:
    expert = {b"a": 0.2, b"b": 0.1, b"c": 0.6, b"d": 0.1}
    weighed, unknown = _weighed(expert, told={b"c": np.nan})
    assert weighed.shown == 2
    assert unknown == []


def test_ids_are_shared_out_over_requests(models: dict[str, str]) -> None:
    vocabulary = TransformersBase(models["base"], device="cpu").vocabulary
    tokens = [vocabulary.token_of(index) for index in range(2, 12)]
    assert [len(group) for group in in_requests(tokens, vocabulary, 4)] == [4, 4, 2]
    assert list(in_requests([], vocabulary, 4)) == []


def test_the_model_in_process_tells_too(models: dict[str, str], pairs: Callable[[str], Any]) -> None:
    five = TransformersBase(models["base"], top_logprobs=5, device="cpu")
    whole = TransformersBase(models["base"], device="cpu")
    assert isinstance(five._lm, CausalLM)
    assert _ids(_texts(five, pairs("same"))) == _ids(_texts(whole, pairs("same"), tail="truncate"))


def test_unknown_spelling_and_no_echo_tell_nothing(hosted: Callable[[int], str]) -> None:
    base = open_base("big", base_url=hosted(5), dialect="host", tokenizer=None)
    assert base.abilities.reveals == 1, "only by text"
    assert base.abilities.biases == 0
