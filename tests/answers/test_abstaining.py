"""Where the base shows no option it is about to write something else: none is chosen, and that is said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from api_answers import chat, entry
from api_server import Asking, Server
from fakes import FakeAround
from rich.console import Console

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, calibrate, evaluate
from blackbox_proxy.answers.choices import Missing, Rule, choose
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.protocols import Revealed
from blackbox_proxy.report import calibration, evaluation
from blackbox_proxy.report.choices import choice_line, choice_record, choice_table
from blackbox_proxy.tuner import run as wait
from blackbox_proxy.types import Prefix, Token, Usage

PROMPT = "The mayor of New York said. Answer:"
LETTERS = ["A", "B", "C", "D"]
PLACES = ["New York", "Los Angeles"]
Pairs = Callable[[str], TransformersPair]

KINDS: dict[str, tuple[dict[str, float], list[str], Missing, str | None]] = {
    "about to think": ({"<think>": 0.98, "Okay": 0.01}, LETTERS, "backoff", "<think>"),
    "about to think, in equal shares": ({"<think>": 0.98, "Okay": 0.01}, LETTERS, "floor", "<think>"),
    "about to think, and nothing is estimated": ({"<think>": 0.98, "Okay": 0.01}, LETTERS, "exclude", "<think>"),
    "only a part of another token": ({"Answer": 0.5, " An": 0.3, "AB": 0.1}, LETTERS, "backoff", "Answer"),
    "the likeliest is not listed first": ({" The": 0.3, "\n": 0.6}, LETTERS, "backoff", "\n"),
    "a probability that the server did not give": ({"Well": 0.9, "A": -1.0}, LETTERS, "backoff", "Well"),
    "the whole mass is shown": ({"Well": 0.5, "I": 0.5}, LETTERS, "backoff", "Well"),
    "no first token of a longer option": ({"<think>": 0.9, " An": 0.05}, PLACES, "backoff", "<think>"),
    "one, hardly": ({"<think>": 0.98, "B": 1e-6}, LETTERS, "backoff", None),
    "one, in another dress": ({"<think>": 0.98, ' "b.': 0.001}, LETTERS, "floor", None),
    "one, and the others cannot win": ({"<think>": 0.98, "B": 0.001}, LETTERS, "exclude", None),
    "all": ({"A": 0.1, "B": 0.2, "C": 0.3, "D": 0.4}, LETTERS, "backoff", None),
    "the first token of a longer option": ({"<think>": 0.9, " New": 0.05}, PLACES, "backoff", None),
}


@pytest.fixture
def far(asking: Asking) -> Iterator[OpenAIBase]:
    """A chat that answers as it is told."""
    base = asking(api="chat", dialect="openai")
    yield base
    wait(base.aclose())


def answer(shown: dict[str, float]) -> Any:
    """A chat's answer of one token with these candidates; below 0: a sentinel for no probability."""
    listed = [entry(text, math.log(q) if q > 0 else -9999.0, list(text.encode())) for text, q in shown.items()]
    written = max(listed, key=lambda each: each["logprob"])
    return chat({**written, "top_logprobs": listed}, text=written["token"])


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, server: Server, far: OpenAIBase, pairs: Pairs) -> None:
    shown, options, missing, instead = KINDS[kind]
    server.answers = [answer(shown)]
    tuner = ProxyTuner(far, pairs("same"))
    found = tuner.choose(PROMPT, options, missing=missing)
    assert (found.abstained, found.unseen, found.usage.api_calls) == (instead is not None, instead is not None, 1)
    assert (found.base_best is None, found.covered == 0.0) == (found.abstained, found.abstained)
    assert found.expert_best is not None, "the pair has its own answer, which is not the base's"
    if instead is None:
        assert np.logaddexp.reduce(found.log_q) == pytest.approx(0.0, abs=1e-9)
        assert "shown" in found.how
        return
    assert set(found.log_p) == set(found.log_q) == {-math.inf}
    assert (found.answer, found.instead, found.tuned_covered) == (None, instead, 0.0)
    assert (set(found.how), found.missing) == ({"excluded"}, tuple(range(len(options))))
    assert f"none of the options. It writes {instead!r} instead." in choice_line(found)
    record = choice_record(found)
    assert (record["answer"], record["abstained"], record["instead"]) == (None, True, instead)
    assert record["log_p"] == [None] * len(options)
    console = Console(record=True, width=90)
    console.print(choice_table(found))
    assert console.export_text().count("not shown: excluded") == len(options)


def test_a_base_that_ends_its_text_at_once(server: Server, far: OpenAIBase, pairs: Pairs) -> None:
    server.answers = [chat(text="", finish="stop")]
    found = ProxyTuner(far, pairs("same")).choose(PROMPT, LETTERS)
    assert (found.unseen, found.instead, found.usage.api_calls) == (True, "", 1)
    assert "writes the end of its text instead" in choice_line(found)


class Silent(FakeAround):
    """A base that says that it can be asked, and then tells nothing."""

    async def reveal(self, prefix: Prefix, tokens: Sequence[Token]) -> Revealed:
        return Revealed(np.full(len(tokens), np.nan), Usage(1))


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_what_the_base_tells_when_it_is_asked_counts(kind: str, models: dict[str, str], pairs: Pairs) -> None:
    base = TransformersBase(models["base"], top_logprobs=5, device="cpu")
    rules: list[tuple[Any, Missing, bool]] = [
        (base, "backoff", True),
        (base, "ask", False),
        (Silent(base), "ask", True),
    ]
    for asked, missing, abstains in rules:
        (found,) = wait(choose(asked, [pairs(kind)], PROMPT, LETTERS, [Equation((1.0,))], rule=Rule(missing)))
        assert (found.abstained, found.covered) == (abstains, 0.0)
        if abstains:
            assert found.instead == ProxyTuner(base, pairs(kind), 0.0).generate(PROMPT, max_tokens=1).text


# -- many questions ---------------------------------------------------------------------------------------------------


def questions(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} New York\nAnswer:", "choices": LETTERS, "answer": i % 4} for i in range(count)]


def test_eval_counts_them_as_wrong_and_says_what_stands_there(server: Server, far: OpenAIBase, pairs: Pairs) -> None:
    thinking, right = answer({"<think>": 0.98, "Okay": 0.01}), answer({"A": 0.97, "B": 0.01, "C": 0.01, "D": 0.01})
    server.answers = [right, thinking, thinking, answer({"Well": 0.9}), right]
    found = evaluate(
        ProxyTuner(far, pairs("same"), 0.0),
        [{**row, "answer": 0} for row in questions(6)],
        concurrency=1,
    )
    table = found.table("choice")
    for key in ("base", "tuned@0"):
        result = table.result(key)
        assert result is not None
        assert (result.abstained, result.right, result.instead, result.unseen) == (3, 3, "<think>", 0)
    expert = table.result("expert")
    assert expert is not None
    assert (expert.abstained, expert.instead) == (0, None)
    (said,) = [text for text in table.warnings if text.startswith("Base alone abstained")]
    assert "3 of 6 rows (the base shows none of the options, and most often writes '<think>' instead)" in said
    assert "count as wrong" in said
    assert "writes '\\<think>' instead" in evaluation.markdown(found), "no tag of a page"
    heads, lines = evaluation.quality(table, 0.95)
    assert [line[heads.index("abstained")] for line in lines] == ["3", "", "", "3"]
    rows = evaluation.record(found)["rows"]
    assert [row["systems"]["base"].get("instead") for row in rows] == [None, "<think>", "<think>", "Well", None, None]
    json.dumps(rows)


def test_weights_are_not_learned_from_them(server: Server, far: OpenAIBase, pairs: Pairs) -> None:
    shown = [answer({"A": 0.4, "B": 0.3, "C": 0.2}), answer({"D": 0.5, "B": 0.2})]
    thinking = answer({"<think>": 0.98, "Okay": 0.01})
    server.answers = [each for _ in range(4) for each in (shown[0], thinking, shown[1])]
    found = calibrate(ProxyTuner(far, pairs("same")), questions(12), concurrency=1, learn_tail=False)
    assert found is not None
    assert (found.documents, found.places, found.unlisted) == (8, 8, 4)
    assert any(
        line.startswith("At 4 questions, left out, the base shows no option") for line in calibration.lines(found)
    )
