"""Commands that decode texts from the tuned big model: `generate`, `run`."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.options import Concurrency, DecodingOptions, EngineName, Limit, SkipBad, checked_engine
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.cluster.engine import Engine
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.screen.console import Screen, say_json
from blackbox_proxy.text.reading import own_text

if TYPE_CHECKING:
    from blackbox_proxy.jobs.run import JobReport
    from blackbox_proxy.protocols import Base
    from blackbox_proxy.trace import TraceFile

TracePath = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        help="Keep every step with all its candidates in this file, for `report`. It holds prompts and texts in full.",
    ),
]


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from an argument, a file or standard input. Raises InputError where there is none, or two."""
    if prompt is not None and file is not None:
        raise InputError("there are two prompts", hint="Give it as an argument or as --file, not both.")
    if file is not None:
        return own_text(file)
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise InputError("there is no prompt", hint="Give it as an argument, with --file, or on standard input.")
    return own_text(sys.stdin.buffer)


def opened_trace(
    path: Path | None, parts: DecodingOptions, base: Base, seed: int | None, **how: bool
) -> AbstractContextManager[TraceFile | None]:
    """The trace to write, if one is wished for: with what decides the text, and no key and no address."""
    from blackbox_proxy.trace import TraceFile

    if path is None:
        return nullcontext()
    return TraceFile(path, parts.shown(base.vocabulary) | {"seed": seed}, **how)


@app.command()
@takes(DecodingOptions)
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads standard input.")] = None,
    *,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    parts: DecodingOptions,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with every step, for programs.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Colour the tokens that the proxy changed; print the cost.")
    ] = False,
    trace: TracePath = None,
) -> None:
    """Decode a text from the tuned big model.

    Printed as it is decoded. The base is an API unless --local says otherwise; the pair runs here unless
    --expert-url says otherwise.

    Examples:

        blackbox-proxy generate "Once upon a time" --base big --base-url http://localhost:8000/v1 --dialect vllm \\
            --expert ./small-tuned --antiexpert ./small --show

        echo "Q: Who won? A:" | blackbox-proxy generate --base gpt-3.5-turbo-instruct --tokenizer cl100k_base \\
            --expert ./small-tuned --antiexpert ./small --max-tokens 20 --json

        blackbox-proxy generate -f prompt.txt --local --base ./big --expert ./small-tuned --antiexpert ./small \\
            --trace trace.jsonl && blackbox-proxy report trace.jsonl -o report.html
    """
    text = read_prompt(prompt, file)
    if not text:
        raise InputError("the prompt is empty", hint="Give at least one character of text.")
    quiet_transformers()
    from blackbox_proxy.report import record, terminal
    from blackbox_proxy.trace import TracedTuner

    with parts.open() as opened, opened_trace(trace, parts, opened.base, seed) as kept:
        tuner = TracedTuner(opened, kept) if kept else opened
        if as_json:
            generation = tuner.generate(text, seed=seed, **parts.arguments())
            say_json(record.generation_record(generation))
            return
        steps = terminal.show_stream(Screen(), tuner.stream(text, seed=seed, **parts.arguments()), colour=show)
    if show:
        note = Screen(stderr=True)
        note.print(terminal.legend())
        note.print(terminal.cost_line(steps), style="dim", highlight=False)


@app.command()
@takes(DecodingOptions, Engine)
def run(
    prompts: Annotated[str, typer.Argument(help="The rows: .jsonl, .csv or .parquet; with Ray a folder or URL too.")],
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The results, one JSON line each; with Ray a folder of parts.")
    ],
    parts: DecodingOptions,
    seed: Annotated[int, typer.Option(help="Seed of the run: every sampled row without one gets its own from it.")] = 0,
    concurrency: Concurrency = 8,
    as_completed: Annotated[
        bool, typer.Option("--as-completed/--ordered", help="Write results as they are finished, or in input order.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results that are there.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="With --resume: ask failures again.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where there are results.")] = False,
    limit: Limit = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Take the rows in an order drawn from it.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End with the first failure.")] = False,
    skip_bad: SkipBad = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the rows, say what they may cost, send nothing.")
    ] = False,
    trace: TracePath = None,
    engine: EngineName = "local",
    on: Engine,
    parts_as: Annotated[str, typer.Option("--format", help="With Ray: the parts are jsonl, parquet or csv.")] = "jsonl",
) -> None:
    """Decode many prompts from a file, several at a time, into a file that a stopped run goes on with.

    A row is {"prompt": "…"} or {"messages": […]}, with an "id" and its own max_tokens, temperature, top_p, seed and
    stop if it has them; other fields come back under "input". All rows are checked before anything is spent. A row
    that fails is a line with its reason. Results are kept as they come: after Ctrl-C, kill -9 or a power cut,
    --resume goes on without asking for them again. The exit status is 1 if a row failed, 130 after Ctrl-C.

    With --engine ray the rows go to workers on the machines of a Ray cluster, within one rate limit and one budget for
    all of them, and the results are a folder of parts.

    Examples:

        blackbox-proxy run prompts.jsonl -o out.jsonl --base big --base-url http://localhost:8000/v1 --dialect vllm \\
            --expert ./small-tuned --antiexpert ./small --prices 1.5e-6,1.5e-6,2e-6 --dry-run

        blackbox-proxy run prompts.jsonl -o out.jsonl --resume --retry-failed …the same options

        blackbox-proxy run s3://bucket/prompts/ -o s3://bucket/out --engine ray --address auto --workers 16 …the same
    """
    quiet_transformers()
    checked_engine(engine)
    from blackbox_proxy.jobs import estimate_job, run_job
    from blackbox_proxy.report import progress

    work: dict[str, Any] = {
        "resume": resume,
        "retry_failed": retry_failed,
        "overwrite": overwrite,
        "limit": limit,
        "shuffle": shuffle,
        "skip_bad": skip_bad,
        "seed": seed,
        **parts.arguments(),
    }
    priced = parts.prices
    note = Screen(stderr=True)
    ended: BaseException | None = None
    watch: Any
    if engine == "ray":
        from blackbox_proxy.cluster.run import run_on_cluster

        _refuse_on_ray(shuffle=shuffle, trace=trace)
        asked = {"concurrency": concurrency, "fail_fast": fail_fast, "kind": parts_as, **work}
        del asked["shuffle"]
        if dry_run:
            estimate = run_on_cluster(parts, prompts, output, on, dry_run=True, **asked)
            Screen().print(progress.estimate_table(cast(Any, estimate), priced))
            return
        with progress.watching(note, priced) as watch:
            try:
                run_on_cluster(parts, prompts, output, on, observe=watch.saw, **asked)
            except (KeyboardInterrupt, BlackboxError) as error:
                ended = error
    else:
        with parts.open() as tuner:
            work["settings"] = parts.what_decides_the_text(tuner.base.vocabulary)
            if dry_run:
                Screen().print(progress.estimate_table(estimate_job(tuner, prompts, output, **work), priced))
                return
            traced = opened_trace(trace, parts, tuner.base, seed, append=resume, overwrite=overwrite)
            with progress.watching(note, priced) as watch, traced as kept:
                try:
                    run_job(
                        tuner,
                        prompts,
                        output,
                        concurrency=concurrency,
                        ordered=not as_completed,
                        fail_fast=fail_fast,
                        keep=kept,
                        observe=watch.saw,
                        **work,
                    )
                except (KeyboardInterrupt, BlackboxError) as error:
                    ended = error
    report = watch.last
    if report.total is not None:
        note.print(progress.job_line(report, priced), style="dim", highlight=False, soft_wrap=True)
        _advise(note, report, output, broken_off=ended is not None)
    if isinstance(ended, KeyboardInterrupt):
        raise typer.Exit(130)
    if ended is not None:
        raise ended
    if report.failed:
        raise typer.Exit(1)


def _refuse_on_ray(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name} is not for --engine ray", hint=f"Leave out --{name}, or run it here.")


def _advise(note: Screen, report: JobReport, output: str, *, broken_off: bool) -> None:
    """Which rows were left out, and how to go on."""
    for row in report.bad_rows:
        note.print(f"left out: {row}", markup=False, highlight=False, soft_wrap=True)
    if broken_off or report.failed or report.failed_before:
        advice = f"{output} keeps what is done: --resume goes on with it, --retry-failed asks failures again."
        note.print(advice, markup=False, highlight=False, soft_wrap=True)
