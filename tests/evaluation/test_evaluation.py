"""Systems compared: by hand-made rows, and over a hosted toy base whose calls the server counts."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from toys import words

from blackbox_proxy import CachedBase, Prices, ProxyTuner, TransformersPair, evaluate
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.errors import AccessDenied, BlackboxError, InputError, ServerFailed
from blackbox_proxy.evaluation.compare import table_of
from blackbox_proxy.evaluation.run import Evaluation, Progress
from blackbox_proxy.evaluation.sweep import Point, parse_sweep, pick, sweep_of
from blackbox_proxy.evaluation.systems import Answered, Outcome, System
from blackbox_proxy.evaluation.tasks import (
    Task,
    normalised,
)
from blackbox_proxy.protocols import Ask
from blackbox_proxy.report import evaluation as report
from blackbox_proxy.types import Usage

LETTERS = ("A", "B", "C", "D")
QUESTIONS = 24
WIDE = 300  # candidates, of about 500 tokens: after every question the toy base shows at least one of the letters

# -- comparing, by hand -----------------------------------------------------------------------------------------------

SYSTEMS = (System("base"), System("expert"), System("tuned", 1.0), System("ceiling"))


def _rows(*columns: Sequence[float | None], kind: str = "choice", sizes: Sequence[int] = ()) -> list[Answered]:
    """One column of values for each of SYSTEMS."""
    rows = []
    for i, values in enumerate(zip(*columns, strict=True)):
        size = sizes[i] if sizes else 0
        outcomes = {
            system.key: Outcome(value, size=size, error="ServerFailed: down" if value is None else "", requests=1)
            for system, value in zip(SYSTEMS, values, strict=True)
        }
        rows.append(Answered(Task(i, f"row {i}", i, kind, "p"), outcomes))  # type: ignore[arg-type]
    return rows


def test_a_table_by_hand() -> None:
    base = [1.0] * 10 + [0.0] * 30
    expert = [1.0] * 36 + [0.0] * 4
    tuned = [0.0] * 2 + [1.0] * 18 + [0.0] * 20
    ceiling = [1.0] * 30 + [0.0] * 10
    prices = Prices(1.0, 1.0, 1.0)
    table = table_of("choice", _rows(base, expert, tuned, ceiling), SYSTEMS, prices=prices)
    found = table.result("tuned@1")
    assert found is not None
    assert (found.value, found.right, table.rows) == (0.45, 18, 40)
    assert (found.low, found.high) == pytest.approx((0.3071, 0.6017), abs=1e-4)
    assert found.to_base is not None
    assert found.to_base.value == pytest.approx(8 / 40)
    exact = found.to_base.mcnemar
    assert exact is not None
    assert (exact.b, exact.c) == (10, 2)
    assert found.to_base.p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert found.to_base.significant
    assert found.to_base.low < 0.2 < found.to_base.high
    assert found.gap_closed == pytest.approx((18 - 10) / (30 - 10))
    (warning,) = table.warnings
    assert "worse than the expert alone: accuracy 0.450 against 0.900, significant (p < 0.001)" in warning
    assert found.cost == 0.0


def test_a_ceiling_given_as_a_number_and_one_that_is_none() -> None:
    half, some = [1.0, 0.0] * 20, [1.0, 1.0, 0.0, 1.0] * 10
    systems = (SYSTEMS[0], SYSTEMS[2])
    rows = _rows(half, half, some, half)
    table = table_of("choice", rows, systems, ceiling_value=1.0)
    found = table.result("tuned@1")
    assert found is not None
    assert found.gap_closed == pytest.approx(0.5)
    whole = table_of("choice", rows, SYSTEMS)
    assert [result.gap_closed for result in whole.results] == [None] * 4
    assert any("no gap to close" in warning for warning in whole.warnings)


def test_bits_per_byte_are_those_of_all_texts_together() -> None:
    sizes = [10, 30] * 20
    base, tuned = [20.0, 30.0] * 20, [10.0, 45.0] * 20
    table = table_of("text", _rows(base, base, tuned, base, kind="text", sizes=sizes), SYSTEMS[:3])
    result, other = table.result("tuned@1"), table.result("base")
    assert result is not None
    assert other is not None
    assert (other.value, result.value) == (50 / 40, 55 / 40)
    assert result.to_base is not None
    assert result.to_base.value == pytest.approx(-5 / 40), "more bits are worse"
    assert (result.to_base.t, result.to_base.mcnemar) == (None, None)
    assert "worse than the base alone" in table.warnings[0]


def test_a_text_without_probability_is_infinitely_bad_and_said() -> None:
    rows = _rows([1.0, 2.0], [1.0, 2.0], [1.0, math.inf], [1.0, 1.0], kind="text", sizes=[1, 1])
    table = table_of("text", rows, SYSTEMS[:3])
    found = table.result("tuned@1")
    assert found is not None
    assert (found.value, found.to_base) == (math.inf, None)
    assert any("no probability at all" in warning for warning in table.warnings)


def test_rows_with_an_error_are_left_out_for_every_system_and_counted() -> None:
    rows = _rows([1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, None, 0.0], [1.0, 1.0, 0.0])
    table = table_of("choice", rows, SYSTEMS)
    assert (table.rows, table.dropped, table.reasons) == (2, 1, {"ServerFailed: down": 1})
    assert [result.right for result in table.results] == [1, 1, 1, 1]
    assert [result.errors for result in table.results] == [0, 0, 1, 0]
    nothing = table_of("choice", _rows([None], [None], [None], [None]), SYSTEMS)
    assert math.isnan(nothing.results[0].value)
    assert "No row has an answer" in nothing.warnings[0]


# -- sweeps, by hand --------------------------------------------------------------------------------------------------


def test_sweeps_are_spelled_out() -> None:
    assert parse_sweep("alpha=0:2:0.25") == (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    assert parse_sweep("alpha=-1:1:0.1")[-1] == 1.0
    assert parse_sweep("alpha=0:1:0.3") == (0.0, 0.3, 0.6, 0.9)
    for text in (
        "0:2:0.25",
        "beta=0:1:1",
        "alpha=0:2",
        "alpha=0:x:1",
        "alpha=1:0:0.5",
        "alpha=0:1:0",
        "alpha=0:9:1e-9",
    ):
        with pytest.raises(InputError) as caught:
            parse_sweep(text)
        assert caught.value.hint


def test_the_best_alpha_is_the_smallest_of_equals() -> None:
    points = [Point(alpha, value, 0, 1) for alpha, value in [(0.0, 0.4), (0.5, 0.6), (1.0, 0.6), (1.5, 0.5)]]
    assert pick(points, "accuracy").alpha == 0.5
    assert pick(points, "bits_per_byte").alpha == 0.0
    assert pick(points[::-1], "accuracy").alpha == 0.5
    assert pick([Point(0.0, math.nan, 0, 1), Point(1.0, 0.1, 0, 1)], "accuracy").alpha == 1.0
    with pytest.raises(InputError):
        pick([Point(0.0, math.nan, 0, 1)], "accuracy")


@pytest.mark.parametrize(
    ("columns", "best", "edge"),
    [
        (([1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]), 1.0, None),
        (([1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]), 0.0, "lowest"),
        (([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]), 2.0, "highest"),
    ],
)
def test_a_sweep_says_where_its_best_lies(columns: list[list[float]], best: float, edge: str | None) -> None:
    systems = [System("tuned", alpha) for alpha in (0.0, 1.0, 2.0)]
    rows = [
        Answered(
            Task(i, "", i, "choice", "p"),
            {s.key: Outcome(float(v), requests=1) for s, v in zip(systems, values, strict=True)},
        )
        for i, values in enumerate(zip(*columns, strict=True))
    ]
    sweep = sweep_of(table_of("choice", rows, systems), requests=4)
    assert (sweep.best.alpha, sweep.edge, sweep.relative_requests) == (best, edge, 1.0)
    assert any("optimistic" in note for note in sweep.notes)
    assert any("was tried" in note for note in sweep.notes) is (edge is not None)
    drawing = report.curve(sweep)
    assert drawing.count("█" * 28) == 1
    assert "← best" in drawing


# -- the real thing ---------------------------------------------------------------------------------------------------


class Counted:
    """The server's own count of requests since the last look."""

    def __init__(self, url: str) -> None:
        self._url = url.removesuffix("/v1") + "/stats"
        self._before = self._now()

    def _now(self) -> int:
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            return int(json.load(answer)["requests"])

    def since(self) -> int:
        before, self._before = self._before, self._now()
        return self._before - before


@pytest.fixture
def counted(hosted: Callable[[int], str]) -> Counted:
    return Counted(hosted(5))


@pytest.fixture
def tuner(api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]) -> ProxyTuner:
    return ProxyTuner(api_base(), pairs("same"))


@pytest.fixture
def wide(api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]) -> ProxyTuner:
    return ProxyTuner(api_base(limit=WIDE), pairs("same"))


@pytest.fixture
def counted_wide(hosted: Callable[[int], str]) -> Counted:
    return Counted(hosted(-1))


def _prompts(count: int) -> list[str]:
    return [f"{words(seed, 6)}\nAnswer:" for seed in range(100, 100 + count)]


@pytest.fixture(scope="module")
def _chosen() -> dict[str, list[dict[str, int]]]:
    return {}


@pytest.fixture
def chosen(wide: ProxyTuner, _chosen: dict[str, list[dict[str, int]]]) -> list[dict[str, int]]:
    """What each system would choose of four letters after each prompt, asked one by one."""
    if not _chosen:
        found = []
        for prompt in _prompts(QUESTIONS):
            choices = {
                alpha: ProxyTuner(wide.base, wide.pairs, alpha).choose(prompt, LETTERS) for alpha in (0.5, 1.0, 2.0)
            }
            one = choices[1.0]
            places = {"base": one.base_best, "expert": one.expert_best, "antiexpert": one.antiexpert_best}
            places |= {f"tuned@{alpha:g}": choice.best for alpha, choice in choices.items()}
            found.append({key: place for key, place in places.items() if place is not None})
            assert len(found[-1]) == len(places)
        _chosen["same"] = found
    return _chosen["same"]


def _questions(chosen: list[dict[str, int]], right: str) -> list[dict[str, Any]]:
    """Questions that one system answers rightly by construction."""
    return [
        {"prompt": prompt, "choices": list(LETTERS), "answer": row[right]}
        for prompt, row in zip(_prompts(len(chosen)), chosen, strict=True)
    ]


def test_choices_of_all_systems_take_one_request_each(
    wide: ProxyTuner, chosen: list[dict[str, int]], counted_wide: Counted
) -> None:
    told: list[Progress] = []
    counted_wide.since()
    found = evaluate(wide, _questions(chosen, "tuned@1"), alphas=[1.0, 0.5, 2.0], observe=told.append)
    assert counted_wide.since() == found.usage.api_calls == QUESTIONS
    assert (told[0].done, told[-1].done, told[-1].usage.api_calls) == (0, QUESTIONS, QUESTIONS)
    table = found.table("choice")
    assert [r.system.key for r in table.results] == ["base", "expert", "antiexpert", "tuned@0.5", "tuned@1", "tuned@2"]
    for result in table.results:
        agreed = sum(row[result.system.key] == row["tuned@1"] for row in chosen)
        assert result.right == agreed, result.system.key
        assert (result.requests, result.requests_per_token) == ((QUESTIONS, 1.0) if result.system.asks else (0, None))
    assert [result.usage.api_calls for result in table.results] == [QUESTIONS, 0, 0, 0, 0, 0]


def test_a_sweep_finds_the_alpha_that_is_best_by_construction(
    wide: ProxyTuner, chosen: list[dict[str, int]], counted_wide: Counted
) -> None:
    assert len({sum(row[f"tuned@{a:g}"] != row["tuned@1"] for row in chosen) > 0 for a in (0.5, 2.0)}) == 1
    counted_wide.since()
    found = evaluate(wide, _questions(chosen, "tuned@1"), sweep=parse_sweep("alpha=0:2:0.5"))
    sweep = found.sweep
    assert sweep is not None
    assert (sweep.best.alpha, sweep.best.value, sweep.edge) == (1.0, 1.0, None)
    assert counted_wide.since() == sweep.requests == QUESTIONS
    evaluate(wide, _questions(chosen, "tuned@1"), alphas=[1.0], systems=["tuned"])
    assert counted_wide.since() == sweep.single == QUESTIONS
    assert sweep.relative_requests == 1.0
    base = evaluate(wide, _questions(chosen, "base"), sweep=parse_sweep("alpha=0:2:0.5")).sweep
    assert base is not None
    assert (base.best.alpha, base.edge) == (0.0, "lowest")
    assert any("does not help" in note for note in base.notes)


@pytest.mark.parametrize(("other", "alpha"), [("base", 1.0), ("expert", 0.5)])
def test_a_pair_that_hurts_is_said_to(other: str, alpha: float, wide: ProxyTuner, chosen: list[dict[str, int]]) -> None:
    table = evaluate(wide, _questions(chosen, other), alphas=[alpha]).table("choice")
    found = table.result(f"tuned@{alpha:g}")
    assert found is not None
    difference = found.to_base if other == "base" else found.to_expert
    assert difference is not None
    assert difference.value < 0
    (warning,) = [text for text in table.warnings if f"worse than the {other} alone" in text]
    assert ("not significant" in warning) is not difference.significant
    if other == "base":
        assert difference.significant, "the toy pair changes enough to be sure"
    helped = evaluate(wide, _questions(chosen, "tuned@1")).table("choice")
    assert not [text for text in helped.warnings if "worse" in text]


def test_given_text_takes_one_request_and_is_what_score_says(tuner: ProxyTuner, counted: Counted) -> None:
    tasks = [{"prompt": f"{words(seed, 3)}", "text": f" {words(seed + 50, 5)}"} for seed in range(6)]
    wanted = [tuner.score(task["prompt"], task["text"]) for task in tasks]
    counted.since()
    found = evaluate(tuner, tasks, sweep=parse_sweep("alpha=0:2:0.5"), metric="bits_per_byte")
    assert counted.since() == found.usage.api_calls == len(tasks)
    assert found.sweep is not None
    assert found.sweep.relative_requests == 1.0
    size = sum(score.bytes for score in wanted)
    table = found.table("text")
    values = {result.system.key: result.value for result in table.results}
    for key, log in (("base", "log_q"), ("tuned@1", "log_p"), ("expert", "log_expert"), ("tuned@0", "log_q")):
        total = -sum(getattr(score, log) for score in wanted) / math.log(2) / size
        assert values[key] == pytest.approx(total, rel=1e-4), key
    alone = evaluate(tuner, [{"text": "New York is not New Haven."}], alphas=[1.0]).table("text")
    assert 0 < alone.results[0].value < 100


def test_the_tuners_own_equation_is_evaluated(tuner: ProxyTuner, pairs: Callable[[str], TransformersPair]) -> None:
    """All of it: with no tokens beyond the base's candidates the rest is weighed otherwise, and figures are others."""
    asked = [{"prompt": f"{words(seed, 3)}", "text": f" {words(seed + 50, 5)}"} for seed in range(3)]

    def bits(each: ProxyTuner) -> float:
        (result,) = evaluate(each, asked, systems=["tuned"]).table("text").results
        return result.value

    equations: list[dict[str, Any]] = [{"tail_size": 0}, {"tail": "truncate"}, {"alpha": 0.5, "tail_size": 3}]
    for equation in equations:
        other = ProxyTuner(tuner.base, tuner.pairs, **equation)
        scores = [other.score(task["prompt"], task["text"]) for task in asked]
        wanted = -sum(score.log_p for score in scores) / math.log(2) / sum(score.bytes for score in scores)
        assert bits(other) == pytest.approx(wanted, rel=1e-6), equation
        assert bits(other) != pytest.approx(bits(tuner), rel=1e-6), equation


@pytest.fixture
def asked(tuner: ProxyTuner) -> list[dict[str, Any]]:
    """Questions that the tuned model answers rightly, in text."""
    found: list[dict[str, Any]] = []
    for prompt in _prompts(24):
        text = tuner.generate(prompt, max_tokens=6, stop="\n").text
        if normalised(text):
            found.append({"prompt": prompt, "answer": text})
        if len(found) == 5:
            break
    assert len(found) == 5
    return found


def test_answers_in_text_walk_one_cache(
    tuner: ProxyTuner, asked: list[dict[str, Any]], counted: Counted, tmp_path: Path, models: dict[str, str]
) -> None:
    counted.since()
    alone = {alpha: evaluate(tuner, asked, alphas=[alpha], systems=["tuned"], max_tokens=6) for alpha in (0.5, 1.0)}
    separately = counted.since()
    base = CachedBase(tuner.base, tmp_path / "cache")
    cached = ProxyTuner(base, tuner.pairs)
    together = evaluate(cached, asked, alphas=[0.5, 1.0], max_tokens=6, ceiling=models["base"])
    spent = counted.since()
    assert spent == together.usage.api_calls < separately + len(asked)
    table = together.table("question")
    for alpha, found in alone.items():
        by_itself, shared = found.table("question").results[0], table.result(f"tuned@{alpha:g}")
        assert shared is not None
        assert (shared.value, shared.requests) == (by_itself.value, by_itself.requests)
    assert by_itself.right == len(asked)
    ceiling, plain = table.result("ceiling"), table.result("base")
    assert ceiling is not None
    assert plain is not None
    assert (ceiling.right, ceiling.usage) == (plain.right, Usage()), "here the ceiling is the base itself"
    again = evaluate(cached, asked, alphas=[0.5, 1.0], max_tokens=6)
    assert counted.since() == again.usage.api_calls == 0, "a run that is begun again asks for nothing twice"


class Failing(BaseAround):
    """Fails for prompts that hold a word."""

    def __init__(self, base: Any, word: str, error: BlackboxError) -> None:
        super().__init__(base)
        self._word, self._error = word, error

    async def draft(self, ask: Ask) -> Any:
        if self._word in ask.prefix.prompt:
            raise self._error
        return await self.base.draft(ask)

    def stream(self, ask: Ask) -> Any:
        return self.base.stream(ask)


def test_an_error_is_a_row_without_result_and_a_hopeless_one_ends_all(tuner: ProxyTuner) -> None:
    questions = [
        {"prompt": f"{word} {i}\nAnswer:", "choices": list(LETTERS), "answer": 0}
        for i, word in enumerate(["fine", "poison", "fine"])
    ]
    failing = ProxyTuner(Failing(tuner.base, "poison", ServerFailed("it is down")), tuner.pairs)
    found = evaluate(failing, questions)
    table = found.table("choice")
    assert (table.rows, table.dropped, found.failed) == (2, 1, 1)
    assert table.reasons == {"ServerFailed: it is down": 1}
    assert "error on 1 of the rows: ServerFailed: it is down" in report.problems(found)
    assert report.record(found)["rows"][1]["systems"]["base"]["error"] == "ServerFailed: it is down"
    with pytest.raises(AccessDenied):
        evaluate(ProxyTuner(Failing(tuner.base, "poison", AccessDenied("no")), tuner.pairs), questions)
    with pytest.raises(BlackboxError, match="no row has a result"):
        evaluate(ProxyTuner(Failing(tuner.base, "", ServerFailed("down")), tuner.pairs), questions)


def test_nothing_is_asked_before_all_is_checked(tuner: ProxyTuner, counted: Counted) -> None:
    fine: dict[str, Any] = {"prompt": "a", "choices": ["A", "B"], "answer": 0}
    text: dict[str, Any] = {"prompt": "a", "text": " b"}
    calls: list[Callable[[], Evaluation]] = [
        lambda: evaluate(tuner, [fine, {"prompt": "x " * 4000, "answer": "a"}]),
        lambda: evaluate(tuner, [fine], systems=["best"]),
        lambda: evaluate(tuner, [fine], systems=[]),
        lambda: evaluate(tuner, [fine], alphas=[math.nan]),
        lambda: evaluate(tuner, [fine], alphas=[]),
        lambda: evaluate(tuner, [fine], sweep=[0.0, 1.0], systems=["base"]),
        lambda: evaluate(tuner, [fine, text], sweep=[0.0, 1.0]),
        lambda: evaluate(tuner, [fine], metric="bits_per_byte"),
        lambda: evaluate(tuner, [fine], metric="beauty"),
        lambda: evaluate(tuner, [fine, text], ceiling_value=0.8),
        lambda: evaluate(tuner, [fine], concurrency=0),
        lambda: evaluate(tuner, [fine], limit=0),
        lambda: evaluate(tuner, [fine], confidence=1.0),
        lambda: evaluate(tuner, [fine], max_tokens=0),
        lambda: evaluate(tuner, [fine], stop=[""]),
    ]
    for call in calls:
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.hint
    assert counted.since() == 0
    alone = ProxyTuner(tuner.base, TransformersPair(tuner.pairs[0].models[0][0]))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="no anti-expert"):
        evaluate(alone, [fine], systems=["antiexpert"])
    keys = [result.system.key for result in evaluate(alone, [fine]).table("choice").results]
    assert keys == ["base", "expert", "tuned@1"]


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def options(hosted: Callable[[int], str], models: dict[str, str]) -> list[str]:
    base = ["--base", "big", "--base-url", hosted(-1), "--dialect", "vllm", "--tokenizer", models["base"]]
    base += ["--top-logprobs", str(WIDE)]
    return [*base, "--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device", "cpu"]


def test_the_command_prints_writes_and_warns(
    run: Callable[..., tuple[int, str, str]], options: list[str], chosen: list[dict[str, int]], tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in _questions(chosen, "base")))
    out, table = tmp_path / "out.json", tmp_path / "table.md"
    given = ["--alpha", "0.5", "--alpha", "1", "--prices", "1,1,2", "--ceiling-value", "1", "--limit", "20"]
    status, printed, _ = run("eval", str(tasks), *options, *given, "-o", str(out), "--markdown", str(table))
    assert status == 0
    assert "base alone" in printed
    assert "worse than the base alone" in printed
    assert "20 API calls" in printed
    record = json.loads(out.read_text())
    assert [system["system"] for system in record["tables"][0]["systems"]] == [
        *("base", "expert", "antiexpert"),
        *("tuned@0.5", "tuned@1"),
    ]
    assert record["tables"][0]["systems"][0]["value"] == 1.0
    assert (len(record["rows"]), record["usage"]["api_calls"], record["settings"]["alphas"]) == (20, 20, [0.5, 1.0])
    assert record["rows"][0]["systems"]["base"]["said"] in LETTERS
    assert "api_key" not in record["settings"]
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines[:7]}) == 1
    status, printed, _ = run("eval", str(tasks), *options, "--sweep", "alpha=0:1:0.5", "--json")
    assert (status, json.loads(printed)["sweep"]["best"]["alpha"]) == (0, 0.0)


COMMANDS: dict[str, tuple[list[str], str]] = {
    "no file": (["nowhere.jsonl"], "nowhere.jsonl"),
    "bad line": (["TASKS"], "tasks.jsonl line 2"),
    "sweep and alpha": (["TASKS", "--sweep", "alpha=0:1:1", "--alpha", "1"], "compared or swept"),
    "sweep": (["TASKS", "--sweep", "alpha=1"], "alpha=1"),
    "systems": (["TASKS", "--skip-bad", "--systems", "best"], "best"),
    "missing": (["TASKS", "--missing", "guess"], "guess"),
    "output": (["TASKS", "-o", "/nowhere/out.json"], "cannot be written"),
    "output is input": (["TASKS", "-o", "TASKS"], "is an input"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_bad_commands_are_one_sentence_and_a_hint(
    case: str, run: Callable[..., tuple[int, str, str]], options: list[str], tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"prompt": "a", "choices": ["A", "B"], "answer": 0}\n{"prompt": "a"}\n')
    arguments = [str(tasks) if word == "TASKS" else word for word in COMMANDS[case][0]]
    status, out, err = run("eval", *arguments, *options)
    assert (status, out) == (2, "")
    error, _, hint = err.partition("\nHint: ")
    assert COMMANDS[case][1] in error
    assert hint.strip()
