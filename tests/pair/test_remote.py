"""The pair behind servers: what hosts show of the models must decode as the same models do on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest
from toys import train_tokenizer

from blackbox_proxy import ProxyTuner, ServedPair, TransformersBase, TransformersPair, Usage
from blackbox_proxy.api.scorer import Logprobs, Scorer
from blackbox_proxy.config.settings import load
from blackbox_proxy.errors import ContextTooLong, InputError, PairServerError, VocabularyMismatch
from blackbox_proxy.opening import Setup
from blackbox_proxy.pair.remote import RemoteModel, _Known
from blackbox_proxy.protocols import Ask, Row, Session
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.types import Position, Prefix, Scores

PROMPT = "The mayor of New York said"
KEY = "sk-very-secret-0123456789"

Urls = Callable[[str, int], str]


@pytest.fixture(scope="module")
def pairs(models: dict[str, str]) -> Callable[..., TransformersPair]:
    """The same pairs on this machine."""

    @cache
    def pair(kind: str, exact: bool = False) -> TransformersPair:
        return TransformersPair(models[f"{kind}-expert"], models[f"{kind}-antiexpert"], device="cpu", exact=exact)

    return pair


@pytest.fixture(scope="module")
def urls(models: dict[str, str]) -> Iterator[Urls]:
    """(model of the fixture, most logprobs) -> URL of a host that serves it as "m"."""
    from blackbox_proxy.door.running import serve_in_thread
    from blackbox_proxy.host.engine import open_engine
    from blackbox_proxy.serve.routes import create_app

    with ExitStack() as stack:

        @cache
        def url(model: str, limit: int) -> str:
            engine = open_engine(models[model], top_logprobs=limit, served_model_name="m", device="cpu")
            return stack.enter_context(serve_in_thread(create_app(engine, api_key=KEY))) + "/v1"

        yield url


@pytest.fixture
def served(models: dict[str, str], urls: Urls) -> Iterator[Callable[..., ServedPair]]:
    """The pair of a kind behind hosts that show at most `limit` ids; closed after the test."""
    opened: list[ServedPair] = []

    def make(kind: str, limit: int = -1, **options: object) -> ServedPair:
        given = {
            "expert_url": urls(f"{kind}-expert", limit),
            "antiexpert_url": urls(f"{kind}-antiexpert", limit),
            "tokenizer": models[f"{kind}-expert"],
            "api_key": KEY,
            "top_logprobs": -1 if limit == -1 else None,
            **options,
        }
        opened.append(ServedPair("m", "m", **given))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for pair in opened:
        pair.close()


@pytest.fixture(scope="module")
def base(models: dict[str, str]) -> TransformersBase:
    return TransformersBase(models["base"], top_logprobs=10, device="cpu")


@pytest.fixture(scope="module")
def draft(base: TransformersBase) -> tuple[Position, ...]:
    from blackbox_proxy.tuner import run

    return run(base.draft(Ask(Prefix(PROMPT), 5))).positions


def scores(
    pair: ServedPair | TransformersPair, base: TransformersBase, draft: tuple[Position, ...]
) -> tuple[list[Scores], list[Scores]]:
    """Of the candidates of every position, and of what the expert would say there."""
    rows = pair.open(PROMPT, base.vocabulary).score([], draft)
    shown = [row.score(position.tokens) for row, position in zip(rows, draft, strict=True)]
    return shown, [row.score(row.propose(8)) for row in rows]


def column(found: list[Scores], name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([getattr(score, name) for score in found])


# -- as on this machine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "limit"), [("same", -1), ("same", 8), ("digits", -1)])
def test_texts_are_those_of_the_same_models_on_this_machine(
    kind: str,
    limit: int,
    served: Callable[..., ServedPair],
    pairs: Callable[..., TransformersPair],
    base: TransformersBase,
) -> None:
    wanted = ProxyTuner(base, pairs(kind)).generate(PROMPT, max_tokens=5)
    found = ProxyTuner(base, served(kind, limit)).generate(PROMPT, max_tokens=5)
    assert [step.token for step in found.steps] == [step.token for step in wanted.steps]
    assert any(step.changed for step in found.steps)
    for ours, theirs in zip(found.steps, wanted.steps, strict=True):
        assert set(ours.candidates.how) <= {"exact", "neutral", *(["estimated"] if kind == "digits" else [])}
        offsets = {c.token.key: c.log_expert - c.log_antiexpert for c in theirs.candidates if not c.tail}
        for candidate in ours.candidates:
            if not candidate.tail:
                assert candidate.log_expert - candidate.log_antiexpert == pytest.approx(
                    offsets[candidate.token.key], abs=1e-4
                )
        if limit == -1:
            np.testing.assert_allclose(ours.candidates.log_p[:5], theirs.candidates.log_p[:5], atol=1e-4)


@pytest.mark.parametrize(("kind", "exact"), [("digits", False), ("pieces", False), ("digits", True)])
def test_whole_rows_give_the_very_masses(
    kind: str,
    exact: bool,
    served: Callable[..., ServedPair],
    pairs: Callable[..., TransformersPair],
    base: TransformersBase,
    draft: tuple[Position, ...],
) -> None:
    for found, wanted in zip(
        scores(served(kind, exact=exact), base, draft), scores(pairs(kind, exact), base, draft), strict=True
    ):
        for name in ("log_expert", "log_antiexpert", "offset"):
            np.testing.assert_allclose(column(found, name), column(wanted, name), atol=1e-4)
        assert [score.how for score in found] == [score.how for score in wanted]


def test_sampled_batches_are_those_of_the_same_models_on_this_machine(
    served: Callable[..., ServedPair], pairs: Callable[..., TransformersPair], base: TransformersBase
) -> None:
    prompts = [PROMPT, "In 2023", "def area(r):", "There"]
    given = {"max_tokens": 6, "temperature": 1.0, "seed": 3}
    wanted = ProxyTuner(base, pairs("same")).generate_batch(prompts, **given)
    found = ProxyTuner(base, served("same")).generate_batch(prompts, **given)
    assert [generation.text for generation in found] == [generation.text for generation in wanted]


# -- with less than whole rows ------------------------------------------------------------------------------------


def test_a_few_ids_shown_give_every_candidate_an_offset_that_is_marked(
    served: Callable[..., ServedPair],
    pairs: Callable[..., TransformersPair],
    base: TransformersBase,
    draft: tuple[Position, ...],
) -> None:
    wanted, _ = scores(pairs("digits", True), base, draft)
    errors = []
    for limit in (20, 200):
        found, proposed = scores(served("digits", limit, exact=True), base, draft)
        assert {how for score in [*found, *proposed] for how in score.how} == {"prefix"}
        assert np.isfinite(column(found, "offset")).all()
        for name in ("log_expert", "log_antiexpert"):
            assert max(np.exp(getattr(score, name)).sum() for score in found) <= 1.0 + 1e-4
        errors.append(np.abs(column(found, "offset") - column(wanted, "offset")).mean())
    assert errors[1] < errors[0] < np.abs(column(wanted, "offset")).mean()
    assert errors[1] < 0.1


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_equal_models_give_no_offset_whatever_they_show(
    kind: str, served: Callable[..., ServedPair], urls: Urls, base: TransformersBase, draft: tuple[Position, ...]
) -> None:
    pair = served(kind, 20, antiexpert_url=urls(f"{kind}-expert", 20))
    for found in scores(pair, base, draft):
        assert np.abs(column(found, "offset")).max() < 1e-5


def test_ids_are_known_by_echo_where_they_cannot_be_named(
    served: Callable[..., ServedPair], base: TransformersBase, draft: tuple[Position, ...]
) -> None:
    named, echoed = served("digits", 20, exact=True), served("digits", 20, exact=True)
    for model in echoed._remote:
        model._scorer._names = False
    for ours, theirs in zip(scores(named, base, draft), scores(echoed, base, draft), strict=True):
        np.testing.assert_allclose(column(ours, "offset"), column(theirs, "offset"), atol=1e-5)


def test_what_a_model_does_not_show_is_in_doubt_until_it_is_asked_for(
    served: Callable[..., ServedPair],
    pairs: Callable[..., TransformersPair],
    base: TransformersBase,
    draft: tuple[Position, ...],
) -> None:
    """The offsets of estimates and sums over the 100 likeliest ids, against those over all."""
    few, local = (pair.open(PROMPT, base.vocabulary) for pair in (served("digits", 100), pairs("digits")))
    rows, whole = few.score([], draft), local.score([], draft)
    tokens = [position.tokens[:10] for position in draft]

    def told(of: list[Row]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], set[str]]:
        found = [row.score(own) for row, own in zip(of, tokens, strict=True)]
        how = {str(how) for score in found for how in score.how}
        return column(found, "offset"), column(found, "error"), how

    (before, doubt, how), (wanted, bar, _) = told(rows), told(whole)
    assert how == {"estimated"}
    assert (doubt >= bar - 1e-6).all()
    assert (doubt > bar + 1.0).any(), "something is hidden"
    beyond = np.abs(before - wanted) > doubt
    assert beyond.mean() < 0.05
    for session, of in ((few, rows), (local, whole)):
        session.refine(list(zip(of, tokens, strict=True)))
    (after, doubt, how), (wanted, _, _) = told(rows), told(whole)
    assert (how, doubt.max()) == ({"prefix"}, 0.0)
    assert np.abs(after - wanted).mean() < min(0.1, np.abs(before - wanted).mean())


def test_what_is_hidden_is_spread_evenly_below_the_least_that_is_shown() -> None:
    vocabulary = from_tokenizer(train_tokenizer("bytes", 300))
    model = RemoteModel(Scorer("m", base_url="http://localhost:1/v1", top_logprobs=3), vocabulary, "expert")
    shown = Logprobs(np.array([5, 6, 7], dtype=np.int32), np.log([0.5, 0.3, 0.1]).astype(np.float32))
    least_that_matters = np.log(0.2)  # more than an id that is not shown can have
    row, hidden, least = model._filled(_Known(shown, {8: np.log(0.02), 9: -1.0}), {8: -np.inf, 9: least_that_matters})
    assert least == pytest.approx(np.log(0.1))
    assert np.exp(row.astype(float)).sum() == pytest.approx(1.0, abs=1e-5)
    assert row[9] == np.float32(hidden) == np.float32(np.log(0.08 / (len(vocabulary) - 4)))
    shown = Logprobs(np.array([5, 6], dtype=np.int32), np.log([0.5, 1e-4]).astype(np.float32))
    capped, hidden, least = model._filled(_Known(shown), {})
    assert hidden == np.float32(np.log(1e-4)) == np.float32(least)
    every = np.arange(len(vocabulary) + 9, dtype=np.int32)
    known = _Known(Logprobs(every, np.full(len(every), -6.0, np.float32)))  # padded
    whole, hidden, _ = model._filled(known, {8: -np.inf})
    assert hidden == -np.inf
    assert known._ids is None  # a second copy of all ids, which nothing needs
    np.testing.assert_allclose(whole, -np.log(len(vocabulary)), atol=1e-5)
    assert np.isfinite(capped).all()


def test_only_ids_that_could_have_more_than_does_not_matter_are_asked_for() -> None:
    known = _Known(Logprobs(np.array([5, 6], dtype=np.int32), np.log([0.5, 0.25]).astype(np.float32)))
    least = known.least
    assert least == pytest.approx(np.log(0.25))
    assert known.matter({5: -np.inf, 7: -np.inf, 8: least - 1.0, 9: least, 10: 0.0}) == [7, 8]


# -- what it costs ------------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(served: Callable[..., ServedPair], base: TransformersBase) -> None:
    pair = served("same", 8)
    tuner = ProxyTuner(base, pair, draft=4)
    assert pair.usage == Usage()
    first = tuner.generate(PROMPT, max_tokens=8)
    spent = pair.usage
    again = tuner.generate(PROMPT, max_tokens=8)
    assert again.text == first.text
    assert pair.usage.api_calls == spent.api_calls > 0
    assert pair.usage.cached_positions > spent.cached_positions


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_the_text_does_not_depend_on_how_it_is_drafted_or_what_was_asked_before(
    kind: str, served: Callable[..., ServedPair], base: TransformersBase
) -> None:
    pair = served(kind, 20)
    texts = {ProxyTuner(base, pair, draft=n).generate(PROMPT, max_tokens=4).text for n in (1, 5)}
    texts |= {ProxyTuner(base, served(kind, 20), draft=n).generate(PROMPT, max_tokens=4).text for n in (3,)}
    assert len(texts) == 1


def test_all_places_of_a_draft_are_one_request_to_each_model(
    served: Callable[..., ServedPair], base: TransformersBase, draft: tuple[Position, ...]
) -> None:
    for kind in ("same", "digits"):
        pair = served(kind)
        pair.open(PROMPT, base.vocabulary).score([], draft)
        assert pair.usage.api_calls == 2 + 2  # the first two compare tokenizers


def test_a_draft_is_two_requests_to_each_model_at_most_where_nothing_goes_on(
    served: Callable[..., ServedPair], base: TransformersBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates that contend are one request more; what they become once they have gone on, if anything, a third."""
    asked: list[int] = []
    pair = served("digits")
    opened = pair.open

    def open_counted(*given: Any) -> Session:
        session = opened(*given)
        score = session.score

        def counted(*told: Any) -> list[Row]:
            asked.append(pair.usage.api_calls)
            return score(*told)

        monkeypatch.setattr(session, "score", counted)
        return session

    monkeypatch.setattr(pair, "open", open_counted)
    text = ProxyTuner(base, pair, draft=2).generate(PROMPT, max_tokens=12)
    each = np.diff([*asked, pair.usage.api_calls]) / 2
    each[0] -= 1  # the comparison of the tokenizers
    assert len(text.steps) == 12
    assert len(each) >= 6
    assert each.max() <= 3
    assert each.mean() <= 2.0


def test_without_antiexpert(urls: Urls, models: dict[str, str], base: TransformersBase) -> None:
    pair = ServedPair("m", expert_url=urls("same-expert", -1), tokenizer=models["same-expert"], api_key=KEY)
    local = TransformersPair(models["same-expert"], device="cpu")
    assert not pair.has_antiexpert
    given = {"max_tokens": 5}
    assert (
        ProxyTuner(base, pair).generate(PROMPT, **given).text == ProxyTuner(base, local).generate(PROMPT, **given).text
    )
    pair.close()


# -- what can go wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"expert_url": "http://127.0.0.1:9/v1", "max_attempts": 1}, PairServerError, "expert's URL"),
        ({"api_key": "sk-wrong-9876543210"}, PairServerError, "BLACKBOX_PROXY_PAIR_KEY"),
        ({"top_logprobs": 20}, PairServerError, "--max-logprobs"),
        ({"tokenizer": "digits"}, VocabularyMismatch, "tokenizer"),
        ({"context": 4}, ContextTooLong, "Shorten"),
    ],
)
def test_failures_say_what_to_do_and_keep_the_key(
    options: dict[str, object],
    error: type[Exception],
    hint: str,
    served: Callable[..., ServedPair],
    models: dict[str, str],
    base: TransformersBase,
) -> None:
    if "tokenizer" in options:
        options = {"tokenizer": models["digits-expert"]}
    pair = served("same", 8, **options)
    with pytest.raises(error) as caught:
        ProxyTuner(base, pair).generate(PROMPT, max_tokens=2)
    assert hint in caught.value.hint  # type: ignore[attr-defined]
    shown = f"{caught.value} {caught.value.__cause__} {caught.value.hint} {pair!r}"  # type: ignore[attr-defined]
    assert KEY not in shown
    assert "sk-wrong" not in shown


@pytest.mark.parametrize(
    "options",
    [{"expert_url": "localhost:8000"}, {"top_logprobs": 0}, {"top_logprobs": -2}, {"context": 0}, {"timeout": 0.0}],
)
def test_bad_arguments_are_refused_before_anything_is_asked(options: dict[str, object], models: dict[str, str]) -> None:
    given = {"expert_url": "http://127.0.0.1:9/v1", "tokenizer": models["same-expert"], **options}
    with pytest.raises(InputError):
        ServedPair("m", **given)  # type: ignore[arg-type]


def test_settings_open_it(models: dict[str, str]) -> None:
    given = {"pairs.expert": "e", "pairs.antiexpert": "a"}
    served = {"pairs.expert_url": "http://h:1/v1", "pairs.tokenizer": models["same-expert"]}
    pair = Setup(settings=load(None, given | served)).open_pair("pair")
    assert isinstance(pair, ServedPair)
    assert pair.has_antiexpert
    assert [model._scorer.url for model in pair._remote] == ["http://h:1/v1"] * 2
    with pytest.raises(InputError, match="--pair-tokenizer"):
        load(None, given | {"pairs.expert_url": "http://h:1/v1"})
    with pytest.raises(InputError, match="--expert-url"):
        load(None, given | {"pairs.tokenizer": "x"})


# -- a real server ------------------------------------------------------------------------------------------------


@pytest.mark.servers
@pytest.mark.parametrize("top_logprobs", [-1, 20])
def test_vllm(top_logprobs: int, models: dict[str, str]) -> None:
    """BLACKBOX_PROXY_SERVER_VLLM_PAIR: URL and folder of the expert, URL and folder of the anti-expert, with spaces.

    vLLM serves both as "m", with --max-logprobs -1 and --dtype float32.
    """
    given = os.environ.get("BLACKBOX_PROXY_SERVER_VLLM_PAIR", "").split()
    if len(given) != 4:
        pytest.skip("BLACKBOX_PROXY_SERVER_VLLM_PAIR does not name a served pair: URL FOLDER URL FOLDER")
    expert_url, expert, antiexpert_url, antiexpert = given
    local = TransformersPair(expert, antiexpert, device="cpu")
    urls: dict[str, Any] = {"expert_url": expert_url, "antiexpert_url": antiexpert_url}
    bases = {"same": TransformersBase(expert, top_logprobs=20, device="cpu")}
    if top_logprobs == -1:
        bases["other"] = TransformersBase(models["digits-expert"], top_logprobs=20, device="cpu")
    for base in bases.values():
        pair = ServedPair("m", "m", **urls, tokenizer=expert, top_logprobs=top_logprobs)
        wanted = ProxyTuner(base, local).generate(PROMPT, max_tokens=24)
        found = ProxyTuner(base, pair).generate(PROMPT, max_tokens=24)
        assert [step.token for step in found.steps] == [step.token for step in wanted.steps]
        pair.close()
