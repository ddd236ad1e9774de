"""The command line: options in, library calls, text out. Heavy parts are imported by the command that needs them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from blackbox_proxy import __version__
from blackbox_proxy import cli_options as options
from blackbox_proxy.errors import BlackboxError, InputError

if TYPE_CHECKING:
    from blackbox_proxy.base.store import Store

app = typer.Typer(
    name="blackbox-proxy",
    help="Decode a language model behind an API as if it had been fine-tuned (proxy-tuning).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Entry point: errors of this package become one sentence and a hint on stderr, and a non-zero exit status."""
    # With another busy process on the machine, threads that spin while they wait slow small models down tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except BlackboxError as error:
        console = Console(stderr=True)
        console.print(f"Error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        if error.hint:
            console.print(f"Hint: {error.hint}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Decode a language model behind an API as if it had been fine-tuned (proxy-tuning)."""


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise InputError("there are two prompts", hint="Give it as an argument or as --file, not both.")
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the prompt file {file} cannot be read: {error}", hint="It must be UTF-8 text."
            ) from error
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise InputError("there is no prompt", hint="Give it as an argument, with --file, or on standard input.")
    return sys.stdin.read()


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads standard input.")] = None,
    *,
    base: options.BaseName,
    expert: options.Expert,
    antiexpert: options.Antiexpert = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    local: options.Local = False,
    base_url: options.BaseUrl = None,
    api: options.Api = "completions",
    dialect: options.DialectName = "openai",
    api_key: options.ApiKey = None,
    tokenizer: options.Tokenizer = None,
    top_logprobs: options.TopLogprobs = None,
    alpha: options.AlphaValue = 1.0,
    tail: options.Tail = "backoff",
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: options.Stop = None,
    draft: options.DraftLength = None,
    minimise: options.Minimise = "latency",
    prices: options.PriceList = None,
    stream: options.Stream = True,
    local_drafts: options.LocalDrafts = True,
    base_prompt: options.BasePrompt = "raw",
    expert_prompt: options.ExpertPrompt = "raw",
    antiexpert_prompt: options.AntiexpertPrompt = "raw",
    cache: options.Cache = None,
    cache_file: options.CacheFile = None,
    requests_per_minute: options.RequestsPerMinute = None,
    tokens_per_minute: options.TokensPerMinute = None,
    max_calls: options.MaxCalls = None,
    max_tokens_billed: options.MaxTokensBilled = None,
    max_cost: options.MaxCost = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with every step, for programs.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Colour the tokens that the proxy changed; print the cost.")
    ] = False,
) -> None:
    """Decode a text from the tuned big model.

    Examples:

        blackbox-proxy generate "Once upon a time" --base big --base-url http://localhost:8000/v1 --dialect vllm \\
            --expert ./small-tuned --antiexpert ./small --show

        echo "Q: Who won? A:" | blackbox-proxy generate --base gpt-3.5-turbo-instruct --tokenizer cl100k_base \\
            --expert ./small-tuned --antiexpert ./small --max-tokens 20 --json

        blackbox-proxy generate -f prompt.txt --local --base ./big --expert ./small-tuned --antiexpert ./small
    """
    text = _read_prompt(prompt, file)
    if not text:
        raise InputError("the prompt is empty", hint="Give at least one character of text.")
    _quiet_transformers()
    from blackbox_proxy import ProxyTuner
    from blackbox_proxy.report import record, terminal
    from blackbox_proxy.types import TailPolicy

    options.check_api(api)
    drafting = options.drafting_of(draft, minimise, prices, stream, local_drafts)
    black_box = options.open_black_box(
        base,
        local=local,
        base_url=base_url,
        api=api,
        dialect=dialect,
        api_key=api_key,
        tokenizer=tokenizer,
        top_logprobs=top_logprobs,
        rendering=base_prompt,
        device=device,
        dtype=dtype,
        cache=cache,
        cache_file=cache_file,
        limiter=options.limiter_of(requests_per_minute, tokens_per_minute),
        budget=options.budget_of(max_calls, max_tokens_billed, max_cost, prices),
    )
    pair = options.open_pair(
        expert,
        antiexpert,
        device=device,
        dtype=dtype,
        expert_prompt=expert_prompt,
        antiexpert_prompt=antiexpert_prompt,
    )
    decoding: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or (),
    }
    with ProxyTuner(black_box, pair, alpha, tail=cast(TailPolicy, tail), draft=drafting) as tuner:
        if as_json:
            generation = tuner.generate(text, **decoding)
            typer.echo(json.dumps(record.generation_record(generation), ensure_ascii=False))
            return
        steps = terminal.show_stream(Console(), tuner.stream(text, **decoding), colour=show)
    if show:
        note = Console(stderr=True)
        note.print(terminal.legend())
        note.print(terminal.cost_line(steps), style="dim", highlight=False)


@app.command()
def run(
    prompts: Annotated[Path, typer.Argument(help="The rows: .jsonl, .csv or .parquet.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The results, one JSON line each.")],
    base: options.BaseName,
    expert: options.Expert,
    antiexpert: options.Antiexpert = None,
    local: options.Local = False,
    base_url: options.BaseUrl = None,
    api: options.Api = "completions",
    dialect: options.DialectName = "openai",
    api_key: options.ApiKey = None,
    tokenizer: options.Tokenizer = None,
    top_logprobs: options.TopLogprobs = None,
    alpha: options.AlphaValue = 1.0,
    tail: options.Tail = "backoff",
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: Annotated[int, typer.Option(help="Of the run: every sampled row without a seed gets its own from it.")] = 0,
    stop: options.Stop = None,
    draft: options.DraftLength = None,
    minimise: options.Minimise = "latency",
    prices: options.PriceList = None,
    stream: options.Stream = True,
    local_drafts: options.LocalDrafts = True,
    base_prompt: options.BasePrompt = "raw",
    expert_prompt: options.ExpertPrompt = "raw",
    antiexpert_prompt: options.AntiexpertPrompt = "raw",
    cache: options.Cache = None,
    cache_file: options.CacheFile = None,
    requests_per_minute: options.RequestsPerMinute = None,
    tokens_per_minute: options.TokensPerMinute = None,
    max_calls: options.MaxCalls = None,
    max_tokens_billed: options.MaxTokensBilled = None,
    max_cost: options.MaxCost = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    concurrency: Annotated[int, typer.Option(help="Rows to decode at a time.")] = 8,
    as_completed: Annotated[
        bool, typer.Option("--as-completed/--ordered", help="Write results as they are finished, or in input order.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results that are there.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="With --resume: ask failures again.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where there are results.")] = False,
    limit: Annotated[int | None, typer.Option(help="The first so many rows only.")] = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Take the rows in an order drawn from it.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End with the first failure.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the rows, say what they may cost, send nothing.")
    ] = False,
) -> None:
    """Decode many prompts from a file, several at a time, into a file that a stopped run goes on with.

    A row is {"prompt": "…"} or {"messages": […]}, with an "id" and its own max_tokens, temperature, top_p, seed and
    stop if it has them; other fields come back under "input". All rows are checked before anything is spent. A row
    that fails is a line with its reason. Results are kept as they come: after Ctrl-C, kill -9 or a power cut,
    --resume goes on without asking for them again. The exit status is 1 if a row failed, 130 after Ctrl-C.

    Examples:

        blackbox-proxy run prompts.jsonl -o out.jsonl --base big --base-url http://localhost:8000/v1 --dialect vllm \\
            --expert ./small-tuned --antiexpert ./small --prices 1.5e-6,1.5e-6,2e-6 --dry-run

        blackbox-proxy run prompts.jsonl -o out.jsonl --resume --retry-failed …the same options
    """
    _quiet_transformers()
    from blackbox_proxy import ProxyTuner
    from blackbox_proxy.jobs import estimate_job, run_job
    from blackbox_proxy.report import progress
    from blackbox_proxy.types import TailPolicy

    options.check_api(api)
    drafting = options.drafting_of(draft, minimise, prices, stream, local_drafts)
    black_box = options.open_black_box(
        base,
        local=local,
        base_url=base_url,
        api=api,
        dialect=dialect,
        api_key=api_key,
        tokenizer=tokenizer,
        top_logprobs=top_logprobs,
        rendering=base_prompt,
        device=device,
        dtype=dtype,
        cache=cache,
        cache_file=cache_file,
        limiter=options.limiter_of(requests_per_minute, tokens_per_minute),
        budget=options.budget_of(max_calls, max_tokens_billed, max_cost, prices),
    )
    pair = options.open_pair(
        expert,
        antiexpert,
        device=device,
        dtype=dtype,
        expert_prompt=expert_prompt,
        antiexpert_prompt=antiexpert_prompt,
    )
    work: dict[str, Any] = {
        "resume": resume,
        "retry_failed": retry_failed,
        "overwrite": overwrite,
        "limit": limit,
        "shuffle": shuffle,
        "skip_bad": skip_bad,
        "settings": {  # where the base is and how it is asked may change between two parts of a run
            "base": [base, local, api, dialect, tokenizer, top_logprobs, base_prompt],
            "pair": [expert, antiexpert, expert_prompt, antiexpert_prompt, dtype],
            "decoding": [alpha, tail],
        },
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or (),
    }
    priced = options.prices_of(prices) if prices else None
    note = Console(stderr=True)
    with ProxyTuner(black_box, pair, alpha, tail=cast(TailPolicy, tail), draft=drafting) as tuner:
        if dry_run:
            Console().print(progress.estimate_table(estimate_job(tuner, prompts, output, **work), priced))
            return
        ended: BaseException | None = None
        with progress.watching(note, priced) as watch:
            try:
                run_job(
                    tuner,
                    prompts,
                    output,
                    concurrency=concurrency,
                    ordered=not as_completed,
                    fail_fast=fail_fast,
                    observe=watch.saw,
                    **work,
                )
            except (KeyboardInterrupt, BlackboxError) as error:
                ended = error
        report = watch.last
        if report.total is not None:
            note.print(progress.job_line(report, priced), style="dim", highlight=False, soft_wrap=True)
            for row in report.bad_rows:
                note.print(f"left out: {row}", markup=False, highlight=False, soft_wrap=True)
            if ended is not None or report.failed or report.failed_before:
                advice = f"{output} keeps what is done: --resume goes on with it, --retry-failed asks failures again."
                note.print(advice, markup=False, highlight=False, soft_wrap=True)
    if isinstance(ended, KeyboardInterrupt):
        raise typer.Exit(130)
    if ended is not None:
        raise ended
    if report.failed:
        raise typer.Exit(1)


@app.command()
def host(
    model: Annotated[str, typer.Option(help="Folder or hub id of a causal language model.")],
    *,
    top_logprobs: Annotated[int, typer.Option(help="Most logprobs a client gets per token; -1: all.")] = 5,
    address: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[str | None, typer.Option(help="Key that clients must send.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="How clients name the model.")] = None,
    chat_template: Annotated[str | None, typer.Option(help="Jinja template, or its file, for chat.")] = None,
    device: Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    first_token: Annotated[float, typer.Option(help="Seconds until the first token, as if over a network.")] = 0.0,
    per_token: Annotated[float, typer.Option(help="Seconds for each further token.")] = 0.0,
) -> None:
    """Serve a local model as a black box: OpenAI's API with top-k logprobs, so that everything can be tried at home.

    Example:

        blackbox-proxy host --model ./big --top-logprobs 5 --port 8000
    """
    _quiet_transformers()
    from blackbox_proxy.serve.host import run_host

    def announce(where: str, at: int) -> None:
        typer.echo(f"{served_model_name or model} at http://{where}:{at}/v1, top {top_logprobs} logprobs", err=True)

    run_host(
        model,
        host=address,
        port=port,
        top_logprobs=top_logprobs,
        api_key=api_key,
        served_model_name=served_model_name,
        chat_template=chat_template,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        first_token=first_token,
        per_token=per_token,
        announce=announce,
    )


@app.command()
def demo(
    cache: Annotated[
        Path | None, typer.Option(help="Where the demo's models are kept; the user's cache by default.")
    ] = None,
) -> None:
    """See the method work, with no account, key or download: a black box that has missed the news.

    On first use it trains four small models (a minute or two) and keeps them. The black box then answers over HTTP
    with its top 5 logprobs; a small model that has read the news, and the same before it, bring the black box up to
    date.
    """
    _quiet_transformers()
    from blackbox_proxy.demo.run import run_demo

    run_demo(Console(), cache=cache)


@app.command()
def bench(
    *,
    base: Annotated[str | None, typer.Option(help="The big model: folder or hub id; the demo's by default.")] = None,
    expert: Annotated[str | None, typer.Option(help="The small tuned model: folder or hub id.")] = None,
    antiexpert: Annotated[str | None, typer.Option(help="The same small model before tuning.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with one prompt a line.")] = None,
    texts: Annotated[int, typer.Option(help="How many of the prompts to use.")] = 4,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens of each text.")] = 64,
    first_token: Annotated[float, typer.Option(help="Emulated seconds until an answer's first token.")] = 0.3,
    per_token: Annotated[float, typer.Option(help="Emulated seconds for each further token.")] = 0.02,
    alpha: Annotated[float, typer.Option(help="Weight of the pair; a smaller one disagrees less often.")] = 1.0,
    top_logprobs: Annotated[int, typer.Option(help="Log probabilities that the API shows per token.")] = 5,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")] = 0.0,
    prices: Annotated[
        str | None, typer.Option(help="Prices of a prompt, a cached prompt and an output token, as 1.5,1.5,2.")
    ] = None,
    way: Annotated[list[str] | None, typer.Option(help="Only this way of asking; may be repeated.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where the demo's models are kept.")] = None,
) -> None:
    """Measure what few calls are worth: the same texts, asked for in every way, over an emulated network.

    The base answers over HTTP from a process of its own, each token not before its time; requests and billed tokens
    are counted there. Without models of your own it takes those of the demo (trained on first use).

    Examples:

        blackbox-proxy bench

        blackbox-proxy bench --base ./big --expert ./small-tuned --antiexpert ./small --prompts prompts.txt --alpha 0.5
    """
    _quiet_transformers()
    from blackbox_proxy.bench.run import read_prompts, run_bench
    from blackbox_proxy.serve.network import Network

    own = [base, expert, antiexpert]
    if any(own) and not (all(own) and prompts):
        raise InputError(
            "models of your own come all together", hint="Give --base, --expert, --antiexpert and --prompts."
        )
    if texts < 1 or max_tokens < 1:
        raise InputError("--texts and --max-tokens must be at least 1", hint="Leave them out for 4 and 64.")
    if base and expert and antiexpert:
        models = (base, expert, antiexpert)
        asked = read_prompts(cast(Path, prompts))
    else:
        from blackbox_proxy.demo.run import bench_models

        models, asked = bench_models(Console(stderr=True), cache)
        if prompts:
            asked = read_prompts(prompts)
    run_bench(
        Console(),
        base=models[0],
        expert=models[1],
        antiexpert=models[2],
        prompts=asked[:texts],
        network=Network(first_token, per_token),
        alpha=alpha,
        max_tokens=max_tokens,
        top_logprobs=top_logprobs,
        temperature=temperature,
        prices=options.prices_of(prices),
        ways=way or (),
    )


caches = typer.Typer(help="Look at the kept answers, write them out, or forget them.", no_args_is_help=True)
app.add_typer(caches, name="cache")

_CacheFile = Annotated[
    Path | None,
    typer.Option("--cache-file", envvar="BLACKBOX_PROXY_CACHE_FILE", help="The file; the user's cache by default."),
]


@caches.command("stats")
def cache_stats(
    cache_file: _CacheFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """What the cache holds."""
    with _store(cache_file) as store:
        stats = store.stats()
    if as_json:
        typer.echo(json.dumps(asdict(stats), ensure_ascii=False))
        return
    typer.echo(f"{stats.path}: {stats.bytes / 2**20:.1f} MiB of at most {stats.max_bytes / 2**20:.0f}")
    typer.echo(f"{stats.rows} positions of {stats.prompts} prompts, {stats.draws} drafted tokens")
    for base, rows in stats.bases.items():
        identity = json.loads(base)
        where = " at ".join(str(identity[key]) for key in ("model", "url") if identity.get(key)) or base
        typer.echo(f"{rows:8d}  {where}")


@caches.command("clear")
def cache_clear(cache_file: _CacheFile = None) -> None:
    """Forget everything in the cache."""
    with _store(cache_file) as store:
        typer.echo(f"{store.clear()} positions forgotten")


@caches.command("export")
def cache_export(
    cache_file: _CacheFile = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output by default.")] = None,
) -> None:
    """Write the cache as JSON lines, one for each position: base, prompt, text so far, candidates, drafted tokens."""
    from contextlib import nullcontext

    from blackbox_proxy.base.rows import export

    with _store(cache_file) as store:
        try:
            with nullcontext(sys.stdout) if output is None else output.open("w", encoding="utf-8") as out:
                for record in export(store):
                    out.write(json.dumps(record, ensure_ascii=output is None) + "\n")
        except OSError as error:
            raise InputError(f"{output} cannot be written: {error}", hint="Give another file.") from error


@contextmanager
def _store(path: Path | None) -> Iterator[Store]:
    from blackbox_proxy.base.store import Store

    with closing(Store(path)) as store:
        yield store
