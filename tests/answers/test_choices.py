"""Multiple choice: which token is which option, and what each option's mass is, against the three models directly."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeAround
from transformers import AutoModelForCausalLM

from blackbox_proxy import Choice, ProxyTuner, TransformersBase, TransformersPair, open_base
from blackbox_proxy.answers.choices import Rule, choose
from blackbox_proxy.answers.forms import Forms
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.cli.app import main
from blackbox_proxy.dialects.table import DIALECTS
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import InputError
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.protocols import Abilities, Ask
from blackbox_proxy.serve.routes import Stats, create_app
from blackbox_proxy.tuner import run as wait
from blackbox_proxy.types import Draft, Position, Prefix, Usage

PROMPT = "The mayor of New York said. Answer:"
LETTERS = ["A", "B", "C", "D"]
MANY = 100  # candidates, of about 500 tokens: after PROMPT the toy base shows one of the letters
LOGS = ("log_p", "log_q", "log_expert", "log_antiexpert")
Api = Callable[..., OpenAIBase]
Pairs = Callable[[str], TransformersPair]


def logs(choice: Choice) -> np.ndarray:
    return np.array([getattr(choice, name) for name in LOGS])


def equations(*alphas: float) -> list[Equation]:
    return [Equation((alpha,)) for alpha in alphas]


# -- forms ------------------------------------------------------------------------------------------------------------

AB = ("A", "B")


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        *(
            (AB, text, 0)
            for text in ("A", " A", "\nA", "(A", " (A", '"A', "A)", "A.", " A:", "(A)", "a", " a", "**A"[2:])
        ),
        *((AB, text, None) for text in ("AB", "Ah", " An", "", " ", ")", "C", "((A", "A B", "1")),
        (("A", "a"), "A", 0),
        (("A", "a"), " a", 1),
        (("A", "a"), "(A", 0),
        (("(A)", "(B)"), "A", 0),
        (("(A)", "(B)"), " B)", 1),
        (("(A)", "A"), " A", 1),
        (("(A)", "A"), "A.", None),  # fits both
        (("Yes", "No"), " yes", 0),
        (("Yes", "No"), "NO!", 1),
        (("C", "C++"), "C++", 1),
        (("C", "C++"), " c", 0),
        (("É", "e"), "é", 0),
        (("1", "10"), "1", 0),
        ((".", ","), ".", 0),
        (("A", "."), "A.", 0),
    ],
)
def test_which_option_a_token_is(options: tuple[str, ...], text: str, expected: int | None) -> None:
    assert Forms(options).option_of(text) == expected
    turned = Forms(options[::-1]).option_of(text)
    assert turned == (None if expected is None else len(options) - 1 - expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" New", 0), ("new", 0), (" Los", 1), (" L", 1), ("N", 0), (" Angeles", None), ("x", None), ("New York", 0)],
)
def test_the_beginning_of_an_option(text: str, expected: int | None) -> None:
    assert Forms(("New York", "Los Angeles"), first=True).option_of(text) == expected
    assert Forms(("New York", "New Jersey"), first=True).option_of(" New") is None
    assert Forms(("New York", "Los Angeles")).option_of(text) == (0 if text == "New York" else None)


def test_exact_options() -> None:
    forms = Forms((" A", "A"), loose=False)
    assert [forms.option_of(text) for text in (" A", "A", "(A", "a")] == [0, 1, None, None]


@pytest.mark.parametrize(
    ("text", "option", "other", "expected"),
    [(" A)", 0, 1, " B)"), ("A", 0, 1, "B"), (" (b", 1, 0, " (a"), ("x", 0, 1, None), ("İ", 0, 1, None)],
)
def test_the_same_dress(text: str, option: int, other: int, expected: str | None) -> None:
    assert Forms(AB).dressed_like(text, option, other) == expected


# -- laws -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def near(models: dict[str, str]) -> Callable[[int | None], TransformersBase]:
    opened: dict[int | None, TransformersBase] = {}

    def base(k: int | None = None) -> TransformersBase:
        return opened.setdefault(k, TransformersBase(models["base"], top_logprobs=k, device="cpu"))

    return base


@pytest.fixture(scope="module")
def direct(models: dict[str, str], near: Any) -> Callable[[float], np.ndarray]:
    """alpha -> (4, options): p, q, E, A of the options, forms found by hand, normalised over the options."""
    vocabulary = near().vocabulary
    ids, size = list(vocabulary.prompt_ids(PROMPT)), len(vocabulary)
    with torch.inference_mode():
        q, e, a = (
            AutoModelForCausalLM.from_pretrained(models[name]).eval()(torch.tensor([ids])).logits[0, -1, :size]
            .double().log_softmax(-1).numpy()
            for name in ("base", "same-expert", "same-antiexpert")
        )  # fmt: skip
    forms = [
        [
            i
            for i, b in enumerate(vocabulary.spelling)
            if b and b.strip().lstrip(b"(\"'[{<`").rstrip(b").:,;\"'") in both
        ]
        for both in ((letter.encode(), letter.lower().encode()) for letter in LETTERS)
    ]
    assert all(len(form) > 1 for form in forms)

    def found(alpha: float) -> np.ndarray:
        p = q + alpha * (e - a)
        mass = np.array([[np.exp(row[form]).sum() for form in forms] for row in (p, q, e, a)])
        shares: np.ndarray = np.log(mass / mass.sum(axis=1, keepdims=True))
        return shares

    return found


@pytest.mark.parametrize("where", ["process", "http"])
def test_law_3_the_whole_vocabulary_equals_the_equation(
    where: str, direct: Any, near: Any, api_base: Api, pairs: Pairs
) -> None:
    base = near() if where == "process" else api_base(limit=near().size)
    found = wait(choose(base, [pairs("same")], PROMPT, LETTERS, equations(0.0, 0.5, 1.0, 2.0)))
    for alpha, choice in zip((0.0, 0.5, 1.0, 2.0), found, strict=True):
        assert np.allclose(logs(choice), direct(alpha), atol=1e-5 if where == "process" else 1e-4)
        assert (choice.best, choice.base_best) == tuple(np.argmax(direct(alpha)[:2], axis=1))
        assert (choice.how, choice.missing, choice.by) == (("shown",) * 4, (), "forms")
        assert choice.usage == Usage(1, choice.usage.prompt_tokens, 1)
    assert found[0].covered == pytest.approx(found[0].tuned_covered, abs=1e-5)
    assert found[1].changed == (found[1].best != found[1].base_best)


@pytest.mark.parametrize(("kind", "missing"), [("same", "ask"), ("digits", "backoff"), ("pieces", "floor")])
def test_law_1_no_alpha_and_no_tuning_give_the_base(
    kind: str, missing: Any, models: dict[str, str], near: Any, pairs: Pairs
) -> None:
    rule, base = Rule(missing), Shows(near(), "A", " the", "li")
    (plain,) = wait(choose(base, [pairs(kind)], PROMPT, LETTERS, equations(0.0), rule=rule))
    assert np.allclose(plain.log_p, plain.log_q, atol=1e-6)
    assert np.logaddexp.reduce(plain.log_p) == pytest.approx(0.0, abs=1e-9)
    expert = models[f"{kind}-expert"]
    untuned = TransformersPair(expert, expert, device="cpu")
    (scored,) = wait(choose(base, [untuned], PROMPT, LETTERS, equations(1.7), rule=rule))
    assert np.allclose(scored.log_p, scored.log_q, atol=1e-6)
    assert scored.missing == (1, 2, 3)


@pytest.mark.parametrize("kind", ["same", "digits", "pieces"])
def test_asked_it_is_as_if_all_had_been_shown(kind: str, near: Any, pairs: Pairs) -> None:
    everything = ProxyTuner(near(), pairs(kind)).choose(PROMPT, LETTERS)
    asked = ProxyTuner(near(5), pairs(kind)).choose(PROMPT, LETTERS, missing="ask")
    assert set(asked.how) == {"asked"}
    # which nodes are laid out differs, and with it what of an event is found
    assert np.allclose(logs(asked), logs(everything), atol=1e-5 if kind == "same" else 2e-2)


@pytest.mark.parametrize(
    ("kind", "options"), [("same", LETTERS), ("pieces", LETTERS), ("same", [" New York", " the", " Zü"])]
)
def test_the_order_of_options_changes_nothing(kind: str, options: list[str], near: Any, pairs: Pairs) -> None:
    tuner = ProxyTuner(near(MANY), pairs(kind))
    plain = tuner.choose(PROMPT, options)
    assert not plain.abstained
    for order in list(itertools.permutations(range(len(options))))[1::10]:
        turned = tuner.choose(PROMPT, [options[i] for i in order])
        assert turned.answer == plain.answer
        assert np.allclose(logs(turned), logs(plain)[:, order], atol=1e-9)


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_over_http_and_in_one_process_it_is_the_same(kind: str, near: Any, api_base: Api, pairs: Pairs) -> None:
    for missing in ("backoff", "ask"):
        here = ProxyTuner(near(MANY), pairs(kind)).choose(PROMPT, LETTERS, missing=missing)
        there = ProxyTuner(api_base(limit=MANY), pairs(kind)).choose(PROMPT, LETTERS, missing=missing)
        assert here.missing
        if missing == "backoff":
            assert np.allclose(logs(there), logs(here), atol=1e-4)
        assert (there.missing, there.how) == (here.missing, here.how)


# -- what the base does not show --------------------------------------------------------------------------------------


class Shows(FakeAround):
    """A base that shows only some of its tokens, by their text; and counts what it is asked."""

    def __init__(self, base: TransformersBase, *texts: str) -> None:
        super().__init__(base)
        self.texts = texts
        self.asked = 0

    async def draft(self, ask: Ask) -> Draft:
        draft = await self.base.draft(ask)
        shown = draft.positions[0]
        kept = [j for j, token in enumerate(shown.tokens) if token.text in self.texts]
        tokens = [shown.tokens[j] for j in kept]
        self.asked += 1
        return Draft((Position(shown.token, shown.logprob, tokens, shown.logprobs[kept]),), "length", draft.usage)


class OneByOne(Shows):
    """A base that can be asked about one token at a time."""

    @property
    def abilities(self) -> Abilities:
        return Abilities(scores=True, reveals=1)


def test_missing_options(near: Any, pairs: Pairs) -> None:
    """Each rule against its formula, at alpha = 0; " A" and " B" are shown, of C and D there is nothing."""
    whole = wait(near().draft(Ask(Prefix(PROMPT), 1))).positions[0]
    q = {token.text: math.exp(value) for token, value in zip(whole.tokens, whole.logprobs, strict=True)}
    row = pairs("same").open(PROMPT, near().vocabulary).score((), [whole])[0]
    a = {t.text: math.exp(v) for t, v in zip(whole.tokens, row.score(whole.tokens).log_antiexpert, strict=True)}
    shown = ("A", "B", " the", "li")
    hidden, cap = 1 - sum(q[text] for text in shown), min(q[text] for text in shown)
    outside = 1 - sum(a[text] for text in shown)
    forms = [[text for text in q if Forms(tuple(LETTERS)).option_of(text) == i] for i in range(4)]
    expected = {
        "exclude": [0.0, 0.0],
        "floor": [min(hidden / 2, cap)] * 2,
        "backoff": [sum(min(hidden * a[text] / outside, cap) for text in forms[i]) for i in (2, 3)],
        "ask": [sum(q[text] for text in forms[i]) for i in (2, 3)],
    }
    sources = {"exclude": "excluded", "ask": "asked"}
    for rule, (c, d) in expected.items():
        base = Shows(near(), *shown)
        (found,) = wait(choose(base, [pairs("same")], PROMPT, LETTERS, equations(0.0), rule=Rule(rule)))  # type: ignore[arg-type]
        masses = np.array([q["A"], q["B"], c, d])
        assert np.allclose(np.exp(found.log_q), masses / masses.sum(), rtol=1e-4), rule
        assert np.allclose(np.exp(found.log_p), masses / masses.sum(), rtol=1e-4), rule
        assert (found.missing, found.how) == ((2, 3), ("shown", "shown", *[sources.get(rule, rule)] * 2))
        assert found.covered == pytest.approx(q["A"] + q["B"], rel=1e-4)
        assert base.asked == 1


def test_backoff_spreads_as_the_antiexpert(near: Any, pairs: Pairs) -> None:
    """Below the cap: of five options, the likeliest candidate and four letters, only the first is shown."""
    whole, five = (wait(near(k).draft(Ask(Prefix(PROMPT), 1))).positions[0] for k in (None, 5))
    scores = pairs("same").open(PROMPT, near().vocabulary).score((), [whole])[0].score(whole.tokens)
    a = {token.text: math.exp(value) for token, value in zip(whole.tokens, scores.log_antiexpert, strict=True)}
    hidden, outside = 1 - np.exp(five.logprobs).sum(), 1 - sum(a[token.text] for token in five.tokens)
    cap = math.exp(five.logprobs.min())
    options = [*LETTERS, five.tokens[0].text]
    of = {text: Forms(tuple(options)).option_of(text) for text in a}
    masses = np.array([sum(min(hidden * a[t] / outside, cap) for t in a if of[t] == i) for i in range(4)])
    assert masses.min() < cap / 2
    masses = np.append(masses, math.exp(five.logprobs[0]))
    found = ProxyTuner(near(5), pairs("same")).choose(PROMPT, options)
    assert found.missing == (0, 1, 2, 3)
    assert np.allclose(np.exp(found.log_q), masses / masses.sum(), rtol=1e-3)


# -- servers ----------------------------------------------------------------------------------------------------------


def test_what_the_server_counts(models: dict[str, str], pairs: Pairs) -> None:
    stats = Stats()
    engine = open_engine(models["base"], served_model_name="big", device="cpu", top_logprobs=5)
    with serve_in_thread(create_app(engine, stats=stats)) as url:
        cases: list[tuple[dict[str, Any], Any, dict[str, Any], int, str]] = [
            ({"dialect": "openai", "api": "chat"}, [":", "A"], {}, 1, "forms"),
            ({"dialect": "openai"}, ["A", "li"], {"missing": "floor"}, 1, "forms"),
            ({"dialect": "openai"}, ["New York", "li Angeles"], {}, 1, "first token"),
            ({"dialect": "host", "tokenizer": models["base"]}, [" New York", " Zürich is"], {}, 2, "scores"),
            ({"dialect": "host"}, [" New York", " Zürich is"], {"normalise": "bytes"}, 2, "scores"),
        ]
        for options, answers, rule, calls, by in cases:
            options = {"tokenizer": None, "max_attempts": 1, "top_logprobs": 5, **options}
            base = open_base("big", base_url=f"{url}/v1", **options)
            before = stats.requests
            found = ProxyTuner(base, pairs("same")).choose(PROMPT, answers, **rule)
            assert stats.requests - before == found.usage.api_calls == calls, (options, rule)
            assert found.by == by
            assert not found.abstained
            wait(base.aclose())


def test_one_form_is_asked_about_where_each_costs_a_request(near: Any, api_base: Api, pairs: Pairs) -> None:
    """Of each missing option the form that looks like the one that is shown, or that the expert would write."""
    base: Any = api_base(dialect=replace(DIALECTS["host"], named=None))
    assert base.abilities.reveals == 1
    found = ProxyTuner(base, pairs("same")).choose(PROMPT, LETTERS, missing="ask")
    assert (found.usage.api_calls, found.how) == (1 + 4, ("asked",) * 4)
    (position,) = wait(near().draft(Ask(Prefix(PROMPT), 1))).positions
    q = {token.text: value for token, value in zip(position.tokens, position.logprobs, strict=True)}
    base = OneByOne(near(), "a", " the")
    (asked,) = wait(choose(base, [pairs("same")], PROMPT, LETTERS, equations(0.0), rule=Rule("ask")))
    assert asked.how == ("shown", "asked", "asked", "asked")
    expected = np.array([q[text] for text in "abcd"])
    assert np.allclose(asked.log_q, expected - np.logaddexp.reduce(expected), atol=1e-5)
    assert asked.usage.api_calls == 1 + 3


# -- options of several tokens ----------------------------------------------------------------------------------------


def test_long_options_are_scored_as_they_are_written(near: Any, pairs: Pairs) -> None:
    options = [" New York", " Zürich is"]
    tuner = ProxyTuner(near(5), pairs("same"))
    scores = [tuner.score(PROMPT, option) for option in options]
    lengths = {"none": [1, 1], "tokens": [len(s.tokens) for s in scores], "bytes": [s.bytes for s in scores]}
    for normalise, each in lengths.items():
        found = tuner.choose(PROMPT, options, normalise=normalise)
        for name in LOGS:
            values = np.array([getattr(s, name) / n for s, n in zip(scores, each, strict=True)])
            assert np.allclose(getattr(found, name), values - np.logaddexp.reduce(values), atol=1e-4)
        assert found.covered == pytest.approx(sum(math.exp(s.log_q) for s in scores), rel=1e-3)
        assert (found.by, set(found.how)) == ("scores", {"scored"})


BAD: list[tuple[dict[str, Any], Any, dict[str, Any], str]] = [
    ({}, [], {}, "at least two"),
    ({}, ["A"], {}, "at least two"),
    ({}, "AB", {}, "one text"),
    ({}, ["A", " A"], {}, "given twice"),
    ({}, ["A", " "], {}, "empty"),
    ({}, LETTERS, {"missing": "guess"}, "unknown missing"),
    ({}, LETTERS, {"normalise": "words"}, "unknown normalise"),
    ({"dialect": "openai"}, LETTERS, {"missing": "ask"}, "tells nothing about tokens"),
    ({"dialect": "openai"}, ["New York", "New Jersey"], {}, "does not tell it apart"),
    ({"dialect": "openai", "tokenizer": None}, ["New York", "New Jersey"], {}, "does not tell it apart"),
]


@pytest.mark.parametrize(("options", "answers", "rule", "message"), BAD)
def test_bad_input_is_said_before_anything_is_sent(
    options: dict[str, Any],
    answers: Any,
    rule: dict[str, Any],
    message: str,
    api_base: Api,
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = api_base(**options)
    monkeypatch.setattr(base, "_connection", None)
    with pytest.raises(InputError, match=message) as caught:
        ProxyTuner(base, pairs("same")).choose(PROMPT, answers, **rule)
    assert caught.value.hint


def test_an_unknown_vocabulary_sees_only_what_the_base_shows(near: Any, api_base: Api, pairs: Pairs) -> None:
    known = ProxyTuner(near(), pairs("same")).choose(PROMPT, LETTERS, forms=False)
    unknown = ProxyTuner(api_base(limit=near().size, tokenizer=None), pairs("same")).choose(
        PROMPT, LETTERS, forms=False
    )
    assert np.allclose(unknown.log_q, known.log_q, atol=1e-4)
    assert (unknown.by, unknown.how) == ("forms", ("shown",) * 4)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(
    models: dict[str, str],
    near: Any,
    pairs: Pairs,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--local", "--base", models["base"], "--device", "cpu", "--expert", models["same-expert"]]
    options += ["--antiexpert", models["same-antiexpert"]]

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["blackbox-proxy", "choose", PROMPT, *options, *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        said = capsys.readouterr()
        return exited.value.code, said.out, said.err

    expected = ProxyTuner(near(), pairs("same")).choose(PROMPT, LETTERS)
    answers = [word for letter in LETTERS for word in ("-o", letter)]
    code, out, _ = run(*answers)
    assert code in (0, None)
    for log in (*expected.log_p, *expected.log_antiexpert):
        assert f"{100 * math.exp(log):.1f} %" in out
    record = json.loads(run(*answers, "--json")[1])
    assert record["log_p"] == pytest.approx(expected.log_p, abs=1e-5)  # float32, read in other pieces
    assert record["answer"] == expected.answer
    record = json.loads(run(*answers, "--missing", "exclude", "--top-logprobs", "5", "--json")[1])
    assert (record["answer"], record["abstained"], record["log_p"]) == (None, True, [None] * 4)
    code, out, err = run("-o", "A")
    assert (code, out) == (2, "")
    assert "at least two options" in err
