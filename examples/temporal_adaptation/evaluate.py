"""Base, expert and anti-expert alone, and the proxy-tuned base at several alphas, on the same questions and texts.

    python evaluate.py prepared/questions.jsonl --texts prepared/held_out.jsonl --expert expert \\
        --base big-model --base-url http://localhost:8000/v1 --dialect vllm

Multiple choice as in the paper's section 7 (arXiv 2401.08565): one token, A to D, one request a question for all alphas
together; a cache keeps what was asked. Where the base scores given text (vLLM and others can echo it), bits per byte of
the texts as well. Who abstains, because no letter is among the tokens that it knows of, is wrong.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from blackbox_proxy import TransformersPair
from blackbox_proxy.answers import choices, scoring
from blackbox_proxy.cli.app import quiet_transformers
from blackbox_proxy.cli.options import BaseOptions
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.errors import BlackboxError, ContextTooLong, InputError
from blackbox_proxy.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_means,
    mcnemar,
    paired_t_test,
    wilson_interval,
)
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.protocols import Base
from blackbox_proxy.text.reading import json_of, numbered_lines
from blackbox_proxy.types import Prompt, Usage

TEMPLATE = "Date: {date}\nQuestion: {question}\nAnswer choices:\n{choices}\nAnswer:"
ONLY = " (Reply with the letter only.)"
LETTERS = "ABCDEFGHIJ"
SYSTEMS = {"base": "base", "expert": "expert alone", "antiexpert": "anti-expert alone"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass
class Answers:
    """Of each system, by name: the index chosen for each question, None where it abstained."""

    right: list[int] = field(default_factory=list)
    chosen: dict[str, list[int | None]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    covered: float = 0.0
    usage: Usage = field(default_factory=Usage)

    def correct(self, system: str) -> list[bool]:
        return [chosen == right for chosen, right in zip(self.chosen[system], self.right, strict=True)]


@dataclass
class Texts:
    """Of each system, by name: bits for each text. `bytes`: the texts' sizes."""

    name: str
    bits: dict[str, list[float]] = field(default_factory=dict)
    bytes: list[int] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)


def jsonl(path: Path) -> list[Any]:
    try:
        return [json_of(line) for _, line in numbered_lines(path)]
    except InputError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="prepare.py writes such files.") from error


def named(alpha: float) -> str:
    return f"proxy, alpha {alpha:g}"


# -- asking -----------------------------------------------------------------------------------------------------------


def prompt_of(question: Any, template: str, chat: bool) -> Prompt:
    listed = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(question["choices"]))
    text = template.format(date=question["date"], question=question["question"], choices=listed)
    return [{"role": "user", "content": text + ONLY}] if chat else text


def text_of(prompt: Any) -> str:
    """How expert and anti-expert, which know no chat, see a prompt."""
    return prompt if isinstance(prompt, str) else str(prompt[0]["content"]).removesuffix(ONLY)


async def ask(
    base: Base,
    pair: TransformersPair,
    questions: Sequence[Any],
    equations: Sequence[Equation],
    rule: choices.Rule,
    *,
    template: str,
    chat: bool,
    at_once: int,
    console: Console,
) -> Answers:
    """Every question once."""
    limit = asyncio.Semaphore(at_once)
    answers = Answers()

    async def one(question: Any) -> list[choices.Choice] | None:
        letters = list(LETTERS[: len(question["choices"])])
        async with limit:
            try:
                return await choices.choose(
                    base, [pair], prompt_of(question, template, chat), letters, equations, rule=rule
                )
            except ContextTooLong:
                answers.dropped["longer than a model's window"] += 1
                return None

    names = [named(equation.at(0)[0]) for equation in equations]
    answers.chosen = {name: [] for name in (*SYSTEMS, *names)}
    tasks = [asyncio.create_task(one(question)) for question in questions]
    try:
        for question, task in track(
            list(zip(questions, tasks, strict=True)), "questions", console=console, transient=True
        ):
            found = await task
            if found is None:
                continue
            answers.right.append(question["answer"])
            first = found[0]
            answers.usage += first.usage
            answers.missing += bool(first.missing)
            answers.covered += first.covered
            best = (first.base_best, first.expert_best, first.antiexpert_best, *(choice.best for choice in found))
            for name, chosen in zip(answers.chosen, best, strict=True):
                answers.chosen[name].append(chosen)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answers


async def measure(
    base: Base,
    pair: TransformersPair,
    path: Path,
    equations: Sequence[Equation],
    *,
    longest: int,
    limit: int | None,
    console: Console,
) -> Texts:
    """The bits that each system needs for the first `longest` characters of each text, after its first word."""
    names = [named(equation.at(0)[0]) for equation in equations]
    found = Texts(path.stem, {name: [] for name in (*SYSTEMS, *names)})
    for row in track(jsonl(path)[:limit], path.stem, console=console, transient=True):
        opening, rest = scoring.split_opening(row["text"][:longest], base.vocabulary)
        if not rest:
            continue
        scores = await scoring.score(base, [pair], opening, rest, equations)
        first = scores[0]
        found.bytes.append(first.bytes)
        found.usage += first.usage
        logs = (first.log_q, first.log_expert, first.log_antiexpert, *(score.log_p for score in scores))
        for name, log in zip(found.bits, logs, strict=True):
            found.bits[name].append(-log / math.log(2))
    return found


# -- what it comes to -------------------------------------------------------------------------------------------------


def question_rows(answers: Answers) -> list[dict[str, Any]]:
    """A row for each system: accuracy with Wilson's 95 % interval, abstentions, and the tests against the base."""
    rows = []
    base = answers.correct("base")
    n = len(base)
    for system in answers.chosen:
        correct = answers.correct(system)
        t, m = paired_t_test(correct, base), mcnemar(correct, base)
        rows.append(
            {
                "system": SYSTEMS.get(system, system),
                "n": n,
                "accuracy": sum(correct) / n,
                "interval": wilson_interval(sum(correct), n),
                "abstained": sum(chosen is None for chosen in answers.chosen[system]),
                "t": t.t,
                "t_test_p": t.p,
                "only_this_right": m.b,
                "only_base_right": m.c,
                "mcnemar_p": m.p,
            }
        )
    return rows


def text_rows(texts: Texts) -> list[dict[str, Any]]:
    """A row for each system: bits per byte, and how many fewer than the base, with bootstrap intervals over texts."""
    rows = []
    total = sum(texts.bytes)

    def per_byte(bits: Sequence[float]) -> dict[str, Any]:
        values = [b / size for b, size in zip(bits, texts.bytes, strict=True)]
        finite = all(abs(value) < float("inf") for value in values)
        interval = bootstrap_interval(values, weights=texts.bytes) if finite else None
        return {"value": sum(bits) / total, "interval": interval}

    base = texts.bits["base"]
    for system, bits in texts.bits.items():
        saved = [b - own for b, own in zip(base, bits, strict=True)]
        rows.append(
            {
                "system": SYSTEMS.get(system, system),
                "bits_per_byte": per_byte(bits),
                "fewer_than_base": None if system == "base" else per_byte(saved),
            }
        )
    return rows


def saved_more(one: Texts, other: Texts, system: str) -> tuple[float, tuple[float, float]]:
    """Bits per byte that a system saves on one set of texts beyond what it saves on the other; 95 % interval."""
    means, draws = [], []
    for seed, texts in enumerate((one, other)):
        base, own = np.array(texts.bits["base"]), np.array(texts.bits[system])
        means.append(float((base - own).sum() / sum(texts.bytes)))
        draws.append(bootstrap_means((base - own) / np.array(texts.bytes), seed, weights=texts.bytes))
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return means[0] - means[1], (float(low), float(high))


def span(interval: Sequence[float] | None, factor: float = 1.0, digits: int = 1) -> str:
    if interval is None:
        return ""
    return f"{factor * interval[0]:.{digits}f} to {factor * interval[1]:.{digits}f}"


def question_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("system", no_wrap=True)
    for head in ("accuracy\n%", "95 %\ninterval", "abs-\ntained", "only it/\nbase", "t-test\np", "McNemar\np"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        base = row["system"] == SYSTEMS["base"]
        table.add_row(
            row["system"],
            f"{100 * row['accuracy']:.1f}",
            span(row["interval"], 100, 0),
            str(row["abstained"]),
            "" if base else f"{row['only_this_right']}/{row['only_base_right']}",
            "" if base else f"{row['t_test_p']:.3f}",
            "" if base else f"{row['mcnemar_p']:.3f}",
        )
    return table


def text_table(texts: Texts, rows: Sequence[dict[str, Any]]) -> Table:
    title = f"bits per byte of {texts.name}: {len(texts.bytes)} texts, {sum(texts.bytes):,} bytes"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("system", no_wrap=True)
    for head in ("bits per\nbyte", "fewer than\nthe base", "95 % interval\n(bootstrap)"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        fewer = row["fewer_than_base"]
        table.add_row(
            row["system"],
            f"{row['bits_per_byte']['value']:.3f}",
            f"{fewer['value']:+.3f}" if fewer else "",
            span(fewer["interval"], 1, 3) if fewer else "",
        )
    return table


def in_words(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What must not be overlooked in the table."""
    base, expert = rows[0], rows[1]
    tuned = rows[len(SYSTEMS) :]
    best = max(tuned, key=lambda row: row["accuracy"])
    said = []
    if best["accuracy"] < base["accuracy"]:
        said.append("Proxy-tuning is worse than the base here, at every alpha.")
    if best["accuracy"] < expert["accuracy"]:
        said.append("The expert alone does better than the tuned base: the base is no help here.")
    if all(row["mcnemar_p"] > 0.05 for row in tuned):
        said.append("No alpha differs from the base beyond chance (McNemar, p > 0.05).")
    chance = [row["system"] for row in rows if row["interval"][0] <= 0.25 <= row["interval"][1]]
    if chance:
        said.append(f"Chance (25 %) lies within the interval of: {', '.join(chance)}.")
    if len(tuned) > 1:
        said.append("An alpha picked from this very table flatters itself: pick it on other questions.")
    return said


def spent(usage: Usage, priced: Any) -> str:
    cost = f", cost {priced.cost(usage):.4g}" if priced else ""
    return (
        f"{usage.api_calls} calls, {usage.prompt_tokens:,} prompt and {usage.completion_tokens:,} output tokens, "
        f"{usage.cached_positions} positions from the cache{cost}"
    )


class AskedOptions(BaseOptions):
    """The base, and what is done about letters that it does not show."""

    wanted: ClassVar[tuple[str, ...]] = (*BaseOptions.wanted, "equation.tail")


@app.command(help=(__doc__ or "").replace("\n    python", "\n\b\n    python"))
@takes(AskedOptions)
def main(
    questions: Annotated[Path, typer.Argument(help="questions.jsonl from prepare.py.")],
    *,
    texts: Annotated[list[Path] | None, typer.Option(help="JSONL with texts to measure; may be repeated.")] = None,
    expert: Annotated[str, typer.Option(help="The tuned model: folder or hub id.")],
    antiexpert: Annotated[
        str | None, typer.Option(help="The same model before tuning; by default what the expert's training.json names.")
    ] = None,
    parts: AskedOptions,
    alpha: Annotated[list[float] | None, typer.Option(help="May be repeated; 0.5, 1 and 1.5 by default.")] = None,
    part: Annotated[
        str, typer.Option(help="read: of the weeks that the expert read (the paper's setting); later; all.")
    ] = "read",
    missing: Annotated[
        str, typer.Option(help="Letters that it does not show: backoff, floor, exclude or ask.")
    ] = "backoff",
    template: Annotated[str, typer.Option(help="With {question}, {choices} and {date}.")] = TEMPLATE,
    limit: Annotated[int | None, typer.Option(help="The first so many questions, and texts of each file.")] = None,
    longest: Annotated[int, typer.Option(help="Characters measured of each text.")] = 4000,
    concurrency: Annotated[int, typer.Option(help="Questions asked at a time.")] = 8,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here, too.")] = None,
) -> None:
    quiet_transformers()
    note, console = Console(stderr=True), Console()
    antiexpert = antiexpert or trained_from(expert)
    alphas = alpha or [0.5, 1.0, 1.5]
    equations = [Equation((value,), parts.settings.equation.tail) for value in alphas]
    rule = choices.Rule(missing=cast(Literal["backoff", "floor", "exclude", "ask"], missing))
    asked = [row for row in jsonl(questions) if part in ("all", row["part"])][:limit]
    if not asked:
        raise InputError(f"{questions} has no questions of the part {part!r}", hint="Use read, later or all.")
    chat = parts.settings.base.api == "chat" and not parts.settings.base.local
    base = parts.open_base()
    pair = TransformersPair(
        expert,
        antiexpert,
        device=parts.settings.compute.device,
        dtype=parts.settings.compute.dtype,
        expert_prompt=text_of,
        antiexpert_prompt=text_of,
    )
    priced = parts.prices

    async def everything() -> tuple[Answers, list[Texts]]:
        try:
            answers = await ask(
                base,
                pair,
                asked,
                equations,
                rule,
                template=template,
                chat=chat,
                at_once=concurrency,
                console=note,
            )
            measured = []
            if base.abilities.scores:
                for path in texts or ():
                    found = await measure(base, pair, path, equations, longest=longest, limit=limit, console=note)
                    measured.append(found)
            return answers, measured
        finally:
            await base.aclose()
            pair.close()

    answers, measured = asyncio.run(everything())
    if not answers.right:
        raise InputError("no question fits the models' windows", hint="Use a shorter --template.")
    rows = question_rows(answers)
    n = len(answers.right)
    where = {"read": "the weeks that the expert read about", "later": "later weeks", "all": "all weeks"}[part]
    console.print(question_table(rows, f"{n} questions of {where}"))
    for line in in_words(rows):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        f"Of {n} questions, {answers.missing} had a letter that the base did not show; the letters it showed hold "
        f"{100 * answers.covered / n:.0f} % of its probability.",
        highlight=False,
    )
    dropped = dict(answers.dropped)
    before = left_out(questions)
    console.print(
        f"Questions dropped here: {said(dropped)}; by prepare.py: {said(before)}.", highlight=False, soft_wrap=True
    )
    console.print(f"Spent: {spent(answers.usage, priced)}.", highlight=False, soft_wrap=True)
    results: dict[str, Any] = {
        "questions": rows,
        "dropped": dropped,
        "dropped_before": before,
        "usage": asdict(answers.usage),
        "texts": {},
    }
    if texts and not measured:
        console.print(
            "This API does not score given text, so there are no bits per byte.", highlight=False, soft_wrap=True
        )
    for found in measured:
        scored = text_rows(found)
        console.print()
        console.print(text_table(found, scored))
        console.print(f"Spent: {spent(found.usage, priced)}.", highlight=False, soft_wrap=True)
        results["texts"][found.name] = {"rows": scored, "bytes": sum(found.bytes), "usage": asdict(found.usage)}
    if len(measured) == 2 and all(
        abs(bits) < math.inf for found in measured for b in found.bits.values() for bits in b
    ):
        console.print(f"\nSaved on {measured[0].name} beyond what is saved on {measured[1].name}, bits per byte:")
        results["saved_more"] = {}
        for system in list(measured[0].bits)[len(SYSTEMS) :]:
            value, interval = saved_more(measured[0], measured[1], system)
            results["saved_more"][system] = {"value": value, "interval": interval}
            console.print(f"{system:<20}{value:+.3f}   95 % {span(interval, 1, 3)}", highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def trained_from(expert: str) -> str:
    """The anti-expert, as tune_expert.py noted it."""
    path = Path(expert) / "training.json"
    if not path.is_file():
        raise InputError(f"there is no {path} that names the anti-expert", hint="Give --antiexpert.")
    return str(json.loads(path.read_text(encoding="utf-8"))["antiexpert"])


def left_out(questions: Path) -> dict[str, int]:
    summary = questions.with_name("summary.json")
    if not summary.is_file():
        return {}
    return dict(json.loads(summary.read_text(encoding="utf-8"))["left_out"]["questions"])


def said(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except BlackboxError as error:
        print(f"Error: {error}\nHint: {error.hint}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
