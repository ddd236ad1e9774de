"""Scores of given text: against the three models computed directly, over HTTP and in one process, window by window."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeAround
from toys import tiny_model
from transformers import AutoModelForCausalLM

from blackbox_proxy import CachedBase, ProxyTuner, Score, Spread, TransformersBase, TransformersPair, Weights
from blackbox_proxy.answers.scoring import ask_whole, given_positions, look, score, split_opening
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.cli.app import main
from blackbox_proxy.decoding.rows import Scored
from blackbox_proxy.decoding.weighed import Weighed
from blackbox_proxy.decoding.whole_vocabulary import of_given, over_everything
from blackbox_proxy.errors import BadResponse, ContextTooLong, InputError
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.protocols import Ask
from blackbox_proxy.text.spelling import from_pretrained
from blackbox_proxy.tuner import run as wait
from blackbox_proxy.types import Draft, Prefix, Token, Usage

PROMPT = "The mayor of New York"
TEXT = " said on 12 March 2023 that 1,024 people came. 東京は日本の首都です。 Зима 👍🏽"
LOGS = ("log_p", "log_q", "log_expert", "log_antiexpert")
Api = Callable[..., OpenAIBase]
Pairs = Callable[[str], TransformersPair]


def logs(scored: Score) -> list[float]:
    return [getattr(scored, name) for name in LOGS]


def rows(scored: Score) -> np.ndarray:
    return np.array([[getattr(token, name) for name in LOGS] for token in scored.tokens])


def equations(*alphas: float, **more: Any) -> list[Equation]:
    return [Equation((alpha,), **more) for alpha in alphas]


@pytest.fixture(scope="module")
def near(models: dict[str, str]) -> Callable[[int | None], TransformersBase]:
    opened: dict[int | None, TransformersBase] = {}

    def base(k: int | None = None) -> TransformersBase:
        return opened.setdefault(k, TransformersBase(models["base"], top_logprobs=k, device="cpu"))

    return base


@torch.inference_mode()
def direct(models: dict[str, str], alpha: float) -> np.ndarray:
    """(tokens, 4): log p, q, E, A of each token of TEXT after PROMPT, with nothing of this package but the ids."""
    vocabulary = from_pretrained(models["base"])
    ids = [*vocabulary.prompt_ids(PROMPT), *vocabulary.encode([TEXT.encode()])[0]]
    start, size, columns = len(vocabulary.prompt_ids(PROMPT)), len(vocabulary), []
    for name in ("base", "same-expert", "same-antiexpert"):
        model = AutoModelForCausalLM.from_pretrained(models[name]).eval()
        columns.append(model(torch.tensor([ids])).logits[0, :, :size].double().log_softmax(-1))
    q, e, a = columns
    p = (q + alpha * (e - a)).log_softmax(-1)
    return np.array([[float(c[i - 1, ids[i]]) for c in (p, q, e, a)] for i in range(start, len(ids))])


@pytest.mark.parametrize("where", ["process", "http"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_law_3_the_whole_vocabulary_equals_the_equation(
    where: str,
    alpha: float,
    models: dict[str, str],
    near: Any,
    api_base: Api,
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blackbox_proxy.answers.scoring._AT_ONCE", 7)  # several passes of the pair
    base = near() if where == "process" else api_base(limit=near().size)
    scored = ProxyTuner(base, pairs("same"), alpha).score(PROMPT, TEXT)
    expected = direct(models, alpha)
    assert np.allclose(rows(scored), expected, atol=1e-5 if where == "process" else 1e-4)
    assert np.allclose(logs(scored), expected.sum(axis=0), atol=1e-3)
    assert b"".join(token.token for token in scored.tokens) == TEXT.encode()
    assert {token.how for token in scored.tokens} == {"exact"}


@pytest.mark.parametrize(
    ("kind", "tail"), [("same", "floor"), ("same", "truncate"), ("digits", "backoff"), ("pieces", "backoff")]
)
def test_law_1_no_alpha_and_no_tuning_give_the_base(
    kind: str, tail: str, models: dict[str, str], near: Any, pairs: Pairs
) -> None:
    """Also where the token is not shown: what is hidden counts for what it is."""
    text = TEXT[:10]
    (plain,) = wait(score(near(5), [pairs(kind)], PROMPT, text, equations(0.0, tail=tail)))
    assert np.allclose(rows(plain)[:, 0], rows(plain)[:, 1], atol=1e-5)
    assert any(token.covered_mass < 0.9 for token in plain.tokens)
    expert = models[f"{kind}-expert"]
    untuned = TransformersPair(expert, expert, device="cpu")
    (scored,) = wait(score(near(5), [untuned], PROMPT, text, equations(1.7, tail=tail)))
    assert np.allclose(rows(scored)[:, 0], rows(scored)[:, 1], atol=1e-4)


@pytest.mark.parametrize("kind", ["same", "digits", "pieces"])
def test_over_http_and_in_one_process_it_is_the_same(kind: str, near: Any, api_base: Api, pairs: Pairs) -> None:
    text = TEXT[:12]
    here = ProxyTuner(near(5), pairs(kind)).score(PROMPT, text)
    for dialect in ("vllm", "host"):
        there = ProxyTuner(api_base(dialect=dialect), pairs(kind)).score(PROMPT, text)
        assert [token.token for token in there.tokens] == [token.token for token in here.tokens]
        assert np.allclose(rows(there), rows(here), atol=1e-4)
        assert there.usage == here.usage == Usage(1, here.usage.prompt_tokens, 1)


def test_a_base_of_unknown_spelling_cuts_the_text_itself(near: Any, api_base: Api, pairs: Pairs) -> None:
    text = " said on 12 March"
    there = ProxyTuner(api_base(tokenizer=None), pairs("same")).score(PROMPT, text)
    here = ProxyTuner(near(5), pairs("same")).score(PROMPT, text)
    assert [token.token for token in there.tokens] == [token.token for token in here.tokens]
    assert np.allclose(rows(there)[:, 1], rows(here)[:, 1], atol=1e-4)
    assert math.isfinite(there.log_p)


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_chain_rule(kind: str, near: Any, pairs: Pairs) -> None:
    """score(ab) = score(a) + score(b after a): the pair's numbers too, whatever its tokenizer."""
    tuner = ProxyTuner(near(), pairs(kind))
    a, b = " said on", " that they"
    both, first, second = tuner.score(PROMPT, a + b), tuner.score(PROMPT, a), tuner.score(PROMPT + a, b)
    assert np.allclose(rows(both), np.concatenate([rows(first), rows(second)]), atol=2e-3 if kind == "digits" else 1e-4)
    assert both.bytes == first.bytes + second.bytes == len((a + b).encode())


def test_several_alphas_cost_one_request_and_figures_follow_from_the_logs(near: Any, pairs: Pairs) -> None:
    found = wait(score(near(5), [pairs("same")], PROMPT, TEXT, equations(0.0, 0.5, 1.0)))
    assert len({each.log_p for each in found}) == 3
    assert {each.usage.api_calls for each in found} == {1}
    one = found[2]
    assert one.log_p == pytest.approx(ProxyTuner(near(5), pairs("same")).score(PROMPT, TEXT).log_p)
    assert one.bits_per_byte == pytest.approx(-one.log_p / math.log(2) / len(TEXT.encode()))
    assert one.perplexity == pytest.approx(math.exp(-one.log_p / len(one.tokens)))
    assert one.base_bits_per_byte != one.expert_bits_per_byte != one.antiexpert_bits_per_byte


@pytest.mark.parametrize("tail", ["backoff", "truncate"])
def test_where_the_base_is_the_antiexpert_p_is_the_expert(tail: str, models: dict[str, str], pairs: Pairs) -> None:
    """q / A = 1, so p = E, however few candidates are shown: Z knows of all that is hidden."""
    base = TransformersBase(models["same-antiexpert"], top_logprobs=5, device="cpu")
    (scored,) = wait(score(base, [pairs("same")], PROMPT, TEXT[:30], equations(1.0, tail=tail)))
    assert any(token.covered_mass < 0.9 for token in scored.tokens)
    assert np.allclose(rows(scored)[:, 0], rows(scored)[:, 2], atol=1e-3)


# -- windows and caches -----------------------------------------------------------------------------------------------


class Unknown(FakeAround):
    """A base that does not say how large its window is: only its refusal tells."""

    context = None

    def room(self, prefix: Prefix) -> int | None:
        return None


@pytest.fixture(scope="module")
def narrow(models: dict[str, str], near: Any) -> TransformersBase:
    """A base whose window is 48 tokens."""
    vocabulary = near().vocabulary
    lm = CausalLM(tiny_model("llama", len(vocabulary), 1, context=48), vocabulary, "narrow")
    return TransformersBase(lm, top_logprobs=5)


@pytest.mark.parametrize("known", [True, False])
def test_a_long_text_is_scored_in_overlapping_parts(
    known: bool, narrow: TransformersBase, near: Any, pairs: Pairs
) -> None:
    text = TEXT * 3
    base: Any = narrow if known else Unknown(narrow)
    tuner = ProxyTuner(base, pairs("same"))
    long = tuner.score(PROMPT, text)
    assert b"".join(token.token for token in long.tokens) == text.encode()
    assert len(long.tokens) > 2 * 48
    assert 3 <= long.usage.api_calls <= 8
    fits = ProxyTuner(near(5), pairs("same")).score(PROMPT, TEXT[:12])
    assert np.allclose(rows(long)[:5], rows(fits)[:5], atol=1e-4)
    with pytest.raises(ContextTooLong):
        tuner.score([{"role": "user", "content": PROMPT}], text)
    with pytest.raises(ContextTooLong):
        tuner.score(PROMPT * 20, text)


def test_the_window_of_the_pair_counts_too(near: Any, models: dict[str, str]) -> None:
    vocabulary = near().vocabulary
    small = CausalLM(tiny_model("llama", len(vocabulary), 2, context=40), vocabulary, "small")
    scored = ProxyTuner(near(5), TransformersPair(small, small)).score(PROMPT, TEXT * 2)
    assert b"".join(token.token for token in scored.tokens) == (TEXT * 2).encode()
    assert scored.log_p == pytest.approx(scored.log_q, abs=1e-3)


def test_a_cache_does_not_lose_what_was_not_shown(tmp_path: Path, near: Any, api_base: Api, pairs: Pairs) -> None:
    text = " said on 12 March"
    plain = ProxyTuner(near(5), pairs("same")).score(PROMPT, text)
    options: dict[str, Any]
    for options in ({}, {"tokenizer": None}):
        base = CachedBase(api_base(**options), tmp_path / f"cache{len(options)}.sqlite")
        tuner = ProxyTuner(base, pairs("same"))
        first, again = tuner.score(PROMPT, text), tuner.score(PROMPT, text)
        assert np.array_equal(rows(first), rows(again))
        if not options:  # without a tokenizer the cache does not know how the base cut the text
            assert again.usage.api_calls == 0, "what was paid for is not asked again"
        assert np.allclose(rows(first)[:, 1].sum(), plain.log_q, atol=1e-3)


# -- what cannot be scored --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "prompt", "text", "message"),
    [
        ({"dialect": "openai"}, PROMPT, " a", "does not score given text"),
        ({"api": "chat"}, PROMPT, " a", "does not score given text"),
        ({}, PROMPT, "", "text to score is empty"),
        ({}, "", " a", "first token of a text"),
        ({}, [], " a", "prompt is empty"),
        ({}, PROMPT, "\ud800", "half a character"),
    ],
)
def test_bad_input_is_said_before_anything_is_sent(
    options: dict[str, Any],
    prompt: Any,
    text: str,
    message: str,
    api_base: Api,
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = api_base(**options)
    monkeypatch.setattr(base, "_connection", None)
    with pytest.raises(InputError, match=message) as caught:
        ProxyTuner(base, pairs("same")).score(prompt, text)
    assert caught.value.hint


class Answers:
    """A base that answers with what it is given."""

    name, vocabulary = "fake", None

    def __init__(self, *drafts: Draft) -> None:
        self.drafts = list(drafts)

    async def draft(self, ask: Ask) -> Draft:
        return self.drafts.pop(0)


def position(token: Token, logprob: float | None, *shown: tuple[bytes, float]) -> Any:
    from blackbox_proxy.types import Position

    tokens = tuple(Token(bytes=spelling) for spelling, _ in shown)
    return Position(token, logprob, tokens, np.array([value for _, value in shown]))


def test_tokens_without_a_probability() -> None:
    a, b = Token(bytes=b"a"), Token(bytes=b"b")
    paid = Usage(1, 1, 1)
    shown = Draft((position(a, None, (b"a", -1.0)), position(b, -2.0, (b"a", -1.0))), usage=paid, given=2)
    found, usage = wait(given_positions(Answers(shown), Prefix("x"), [Token(bytes=b"ab")]))  # type: ignore[arg-type]
    assert [each.logprob for each in found] == [-1.0, -2.0]
    assert usage == paid
    lost = Draft((position(a, None, (b"b", -1.0)),), usage=paid, given=1)
    with pytest.raises(BadResponse, match="log probability"):
        wait(given_positions(Answers(lost), Prefix("x"), [a]))  # type: ignore[arg-type]
    kept = Draft((position(a, None, (b"b", -1.0)),), usage=Usage(cached_positions=1), given=1)
    asked = Draft((position(a, -3.0, (b"b", -1.0)),), usage=paid, given=1)
    found, usage = wait(given_positions(Answers(kept, asked), Prefix("x"), [a]))  # type: ignore[arg-type]
    assert (found[0].logprob, usage.api_calls) == (-3.0, 1)
    part = Draft((position(a, -1.0, (b"a", -1.0)),), usage=paid, given=1)
    rest = Draft((position(b, -2.0, (b"a", -1.0)),), usage=paid, given=1)
    found, usage = wait(given_positions(Answers(part, rest), Prefix("x"), [Token(bytes=b"ab")]))  # type: ignore[arg-type]
    assert ([each.token.bytes for each in found], usage.api_calls) == ([b"a", b"b"], 2)


def test_a_text_that_its_tokenizer_joins_to_the_prompt(api_base: Api, pairs: Pairs) -> None:
    with pytest.raises(BadResponse, match="did not score the text"):
        ProxyTuner(api_base(tokenizer=None), pairs("same")).score("The mayor of New Yo", "rk said")


@pytest.mark.parametrize("text", [TEXT, "東京は", "a", " ", "👍🏽 ok"])
def test_the_opening_of_a_text(text: str, near: Any) -> None:
    for vocabulary in (near().vocabulary, None):
        opening, rest = split_opening(text, vocabulary)
        assert opening + rest == text
        assert opening
    assert split_opening(TEXT, None) == (" said", TEXT[5:])


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(
    models: dict[str, str],
    tmp_path: Path,
    near: Any,
    pairs: Pairs,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT[1:])
    options = ["--local", "--base", models["base"], "--device", "cpu", "--expert", models["same-expert"]]
    options += ["--antiexpert", models["same-antiexpert"]]

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["blackbox-proxy", "score", str(file), *options, *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        assert exited.value.code in (0, None)
        return capsys.readouterr().out

    shown = run()
    opening, rest = split_opening(TEXT[1:], near().vocabulary)
    expected = ProxyTuner(near(), pairs("same")).score(opening, rest)
    for figure in (expected.bits_per_byte, expected.base_bits_per_byte, expected.antiexpert_bits_per_byte):
        assert f"{figure:.4f}" in shown
    assert f"beginning, {opening!r}" in shown
    record = json.loads(run("--json", "--tokens", "--prompt", PROMPT))
    expected = ProxyTuner(near(), pairs("same")).score(PROMPT, TEXT[1:])
    assert record["log_p"] == pytest.approx(expected.log_p)
    assert "".join(token["text"] for token in record["tokens"][:5]) in TEXT
    assert len(record["tokens"]) == record["token_count"] == len(expected.tokens)


@pytest.mark.parametrize("temperature", [1.0, 1.4, 4.0])
def test_learned_weights_give_every_token_some_probability_and_all_together_no_more_than_there_is(
    near: Callable[[int | None], TransformersBase], pairs: Pairs, temperature: float
) -> None:
    """Also where a tail that was made flatter hands out all that the base hides, and more."""
    equation = Equation(weights=Weights(0.7, (0.5,), (0.2,), -0.4, 0.5, Spread(temperature, 0.25)))
    pair, text = pairs("digits"), " said on 12 March"

    def whole(scored: Scored) -> Weighed:
        return over_everything(scored.under(0), [pair], equation, scored.place)

    weighed, _ = wait(look(near(5), [pair], PROMPT, text, [equation], whole))
    everything, _ = wait(ask_whole(near(None), PROMPT, text))
    for listed, position in zip(weighed, everything, strict=True):
        found = [
            of_given(listed, listed.index_of(token), float(log_q))
            for token, log_q in zip(position.tokens, position.logprobs, strict=True)
        ]
        assert all(map(math.isfinite, found))
        assert 0.5 < math.fsum(map(math.exp, found)) < 1.0 + 1e-6
