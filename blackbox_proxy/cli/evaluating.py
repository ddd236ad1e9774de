"""Commands that say whether it helps: `eval`, `fit`."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import typer

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.options import (
    AsJson,
    Concurrency,
    EngineName,
    Limit,
    Missing,
    Normalise,
    SkipBad,
    TextTokens,
    TunerOptions,
    checked_engine,
)
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.cluster.engine import Engine
from blackbox_proxy.errors import InputError
from blackbox_proxy.screen.console import Screen, say_json

if TYPE_CHECKING:
    from blackbox_proxy.evaluation.run import Evaluation


class ComparedOptions(TunerOptions):
    """The base and the pairs, with as many alphas as are to be compared."""

    unwanted: ClassVar[tuple[str, ...]] = ("pairs.alpha",)

    def alphas(self, given: list[float] | None) -> list[float]:
        """Those given, else the one that the settings say. Raises InputError where each pair has another."""
        told = {pair.alpha for pair in self.settings.pairs.values()}
        if given is None and len(told) > 1:
            raise InputError(
                "the pairs have an alpha each, and here one is for all", hint="Give --alpha, or choose with --pair."
            )
        return given or list(told) or [1.0]

    def recorded(self) -> dict[str, Any]:
        """What decides the figures, with no key and no address."""
        told = self.settings.model_dump(mode="json", include={"base", "pairs", "equation", "drafting", "compute"})
        for table in (told["base"], *told["pairs"].values()):
            for name in [name for name in table if name.endswith(("url", "api_key_env"))]:
                del table[name]
        return told


@app.command("eval")
@takes(ComparedOptions, Engine)
def evaluate(
    tasks: Annotated[
        list[str], typer.Argument(help="The tasks: one or several .jsonl files; with Ray folders and URLs.")
    ],
    *,
    parts: ComparedOptions,
    alpha: Annotated[
        list[float] | None, typer.Option(help="Weight of the pair, 1 by default; may be repeated.")
    ] = None,
    systems: Annotated[
        str | None, typer.Option(help="What to compare: some of base,expert,antiexpert,tuned; all by default.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Try alphas on a development file and pick one, as alpha=0:2:0.25.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What a sweep goes by: accuracy, exact_match or bits_per_byte.")
    ] = None,
    ceiling: Annotated[
        str | None, typer.Option(help="The base tuned directly (folder or hub id), for the gap closed.")
    ] = None,
    ceiling_value: Annotated[float | None, typer.Option(help="Its figure, where only that is known, as 0.8.")] = None,
    missing: Missing = "backoff",
    normalise: Normalise = "none",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens of an answer in text.")] = 32,
    stop: Annotated[
        list[str] | None, typer.Option(help="Where an answer in text ends; the end of the line by default.")
    ] = None,
    concurrency: Concurrency = 8,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    confidence: Annotated[
        float, typer.Option(help="Level of the intervals, and of what is called significant.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Everything as JSON, each row included.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="The tables as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON on standard output, in place of tables.")] = False,
    engine: EngineName = "local",
    on: Engine,
) -> None:
    """Compare base, expert, anti-expert and the tuned model on tasks of your own, with honest statistics.

    A line of a task file is, as its fields show,

    - multiple choice: {"question": "…", "choices": ["…", "…"], "answer": 1}, the answer an index from 0, a letter or a
      choice's text; or {"prompt": "…", "choices": […], "answer": …} with a prompt of your own that is sent as it is;
      RealTimeQA's files work as they are;

    - a question answered in text: {"question" or "prompt": "…", "answer": "…"}, or "answers": […] of which any is
      right; compared as SQuAD does, without case, articles and punctuation;

    - given text: {"prompt": "…", "text": "…"} or {"text": "…"}, measured in bits per byte.

    All systems and alphas share one cache: multiple choice and given text take one request a row for all of them
    (choices of several tokens one each). A run that was stopped is begun again and goes on from the cache. The exit
    status is 1 if a row had an error. With --engine ray the tasks go to workers on the machines of a Ray cluster, each
    machine with a cache of its own.

    Examples:

        blackbox-proxy eval questions.jsonl --base big --base-url http://localhost:8000/v1 --dialect vllm \\
            --expert ./small-tuned --antiexpert ./small --alpha 0.5 --alpha 1 -o results.json --markdown table.md

        blackbox-proxy eval dev.jsonl --sweep alpha=0:2:0.25 …the same options
    """
    quiet_transformers()
    checked_engine(engine)
    from blackbox_proxy.answers.choices import Rule
    from blackbox_proxy.cluster.evaluation import evaluate_on_cluster
    from blackbox_proxy.evaluation.run import evaluate as evaluate_tasks
    from blackbox_proxy.evaluation.sweep import parse_sweep
    from blackbox_proxy.report import evaluation as report

    if sweep is not None and alpha:
        raise InputError("alphas are either compared or swept", hint="Give --alpha or --sweep, not both.")
    swept = None if sweep is None else parse_sweep(sweep)
    alphas = [1.0] if swept else parts.alphas(alpha or None)
    rule = Rule(missing=cast(Any, missing), normalise=cast(Any, normalise))
    priced = parts.prices
    for path in (output, markdown):
        _writable(path, tasks)
    note = Screen(stderr=True)
    asked: dict[str, Any] = {
        "alphas": alphas,
        "systems": None if systems is None else [name.strip() for name in systems.split(",") if name.strip()],
        "ceiling_value": ceiling_value,
        "sweep": swept,
        "metric": metric,
        "max_tokens": max_tokens,
        "stop": stop or ("\n",),
        "rule": rule,
        "concurrency": concurrency,
        "limit": limit,
        "skip_bad": skip_bad,
        "prices": priced,
        "confidence": confidence,
        "seed": seed,
    }
    try:
        if engine == "ray":
            with report.watching(note) as watch:
                found = evaluate_on_cluster(parts, tasks, on, ceiling=ceiling, observe=watch.saw, **asked)
        else:
            with parts.open() as tuner, report.watching(note) as watch:
                asked["ceiling"] = None if ceiling is None else parts.run_here(ceiling)
                found = evaluate_tasks(tuner, tasks, observe=watch.saw, **asked)
    except KeyboardInterrupt:
        note.print("Stopped. What was answered is in the cache: the same command goes on from there.")
        raise typer.Exit(130) from None
    settings = parts.recorded() | {
        "alphas": alphas if swept is None else list(swept),
        "missing": missing,
        "normalise": normalise,
        "max_tokens": max_tokens,
        "stop": list(stop or ("\n",)),
        "tasks": [str(path) for path in tasks],
    }
    _tell(found, settings, output, markdown, as_json=as_json)
    if found.failed:
        raise typer.Exit(1)


@app.command()
@takes(TunerOptions)
def fit(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts like those to be asked.")] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Prompts: a .txt file, one a line; or .jsonl, tasks included.")
    ] = None,
    parts: TunerOptions,
    tokens: Annotated[int, typer.Option(help="Tokens of the base to look at, about.")] = 300,
    max_tokens: TextTokens = 64,
    texts: Annotated[
        int | None, typer.Option(help="How many texts the forecast is about; as many as prompts by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how well a pair fits a base, before much is spent: vocabularies, candidates, disagreement, expected cost.

    The base continues a few of your prompts, one request each; the pair looks at every token of it. The exit status
    is 1 where something speaks against the pair.

    Examples:

        blackbox-proxy fit "The mayor said" "Q: Who won? A:" --base big --base-url http://localhost:8000/v1 \\
            --dialect vllm --expert ./small-tuned --antiexpert ./small --prices 1.5e-6,1.5e-6,2e-6 --texts 1000

        blackbox-proxy fit -f questions.jsonl …the same options
    """
    quiet_transformers()
    from blackbox_proxy.evaluation.fit import measure_fit
    from blackbox_proxy.evaluation.tasks import read_prompts
    from blackbox_proxy.report import fit as report

    if bool(prompts) == (file is not None):
        raise InputError(
            "there are two kinds of prompts" if prompts else "there are no prompts",
            hint="Give them as arguments or as --file.",
        )
    given = list(prompts or []) if file is None else read_prompts(file)
    priced = parts.prices
    with parts.open() as tuner, Screen(stderr=True).status("asking the base"):
        found = measure_fit(tuner, given, max_tokens=max_tokens, tokens=tokens, texts=texts, prices=priced)
    if as_json:
        say_json(report.record(found))
    else:
        report.show(Screen(), found)
    if not found.fits:
        raise typer.Exit(1)


def _tell(
    found: Evaluation, settings: dict[str, Any], output: Path | None, markdown: Path | None, *, as_json: bool
) -> None:
    """Write and print what an evaluation found."""
    from blackbox_proxy.report import evaluation as report

    plain = report.record(found, settings)
    if output is not None:
        output.write_text(json.dumps(plain, ensure_ascii=False) + "\n", encoding="utf-8")
    if markdown is not None:
        markdown.write_text(report.markdown(found), encoding="utf-8")
    if as_json:
        say_json(plain)
    else:
        report.show(Screen(), found)


def _writable(path: Path | None, inputs: list[str]) -> None:
    """Raise InputError for a file that cannot be written, before anything is spent."""
    if path is None:
        return
    with suppress(OSError):
        if any(path.exists() and Path(file).exists() and path.samefile(file) for file in inputs):
            raise InputError(f"{path} is an input", hint="Write the results to another file.")
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}", hint="Give another file.") from error
