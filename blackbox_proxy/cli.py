"""The command line: options in, library calls, text out. Heavy parts are imported by the command that needs them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console

from blackbox_proxy import __version__
from blackbox_proxy.errors import BlackboxError, InputError

if TYPE_CHECKING:
    from blackbox_proxy.drafting import Drafting, Prices

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
def options(
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
    base: Annotated[
        str, typer.Option(help="The big model: its name at the API, or with --local its folder or hub id.")
    ],
    expert: Annotated[str, typer.Option(help="The small tuned model: folder or hub id.")],
    antiexpert: Annotated[str | None, typer.Option(help="The same small model before tuning.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Run the base in this process instead of an API.")] = False,
    base_url: Annotated[
        str | None, typer.Option(envvar="BLACKBOX_PROXY_BASE_URL", help="The API's address, as http://host:port/v1.")
    ] = None,
    api: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    dialect: Annotated[str, typer.Option(help="The API's dialect: openai, vllm, host.")] = "openai",
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="The API's key.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="The base's tokenizer, if known: a tiktoken name, a folder or a hub id.")
    ] = None,
    top_logprobs: Annotated[int | None, typer.Option(help="Candidates to ask for; the API's limit by default.")] = None,
    alpha: Annotated[float, typer.Option(help="Weight of the pair: 0 is the base, 1 plain proxy-tuning.")] = 1.0,
    tail: Annotated[
        str, typer.Option(help="Tokens that the base does not show: backoff, truncate or floor.")
    ] = "backoff",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens to decode at most.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest candidates with this mass.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    draft: Annotated[
        int | None, typer.Option(help="Ask for so many tokens per request, unstreamed; chosen as it goes by default.")
    ] = None,
    minimise: Annotated[str, typer.Option(help="What the requests' sizes minimise: latency or cost.")] = "latency",
    prices: Annotated[
        str | None, typer.Option(help="Prices of a prompt, a cached prompt and an output token, as 1.5,1.5,2.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Verify while the draft arrives, close it where it errs.")
    ] = True,
    local_drafts: Annotated[
        bool,
        typer.Option("--local-drafts/--no-local-drafts", help="Let the expert draft too, where the API can score."),
    ] = True,
    base_prompt: Annotated[str, typer.Option(help="How the base sees the prompt: raw or chat (its template).")] = "raw",
    expert_prompt: Annotated[str, typer.Option(help="How the expert sees it: raw or chat.")] = "raw",
    antiexpert_prompt: Annotated[str, typer.Option(help="How the anti-expert sees it: raw or chat.")] = "raw",
    device: Annotated[str, typer.Option(help="Where the local models run: auto, cpu, cuda …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
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
    from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, open_base
    from blackbox_proxy.base.protocol import Base
    from blackbox_proxy.report import record, terminal
    from blackbox_proxy.types import TailPolicy

    if api not in ("completions", "chat"):
        raise InputError(f"unknown api {api!r}", hint="Use completions or chat.")
    drafting = _drafting(draft, minimise, prices, stream, local_drafts)
    black_box: Base
    if local:
        black_box = TransformersBase(
            base, top_logprobs=top_logprobs, device=device, dtype=dtype, rendering=_rendering(base_prompt)
        )
    else:
        black_box = open_base(
            base,
            api=cast(Literal["completions", "chat"], api),
            base_url=base_url,
            api_key=api_key,
            dialect=dialect,
            tokenizer=tokenizer,
            top_logprobs=top_logprobs,
            rendering=_rendering(base_prompt),
        )
    pair = TransformersPair(
        expert,
        antiexpert,
        device=device,
        dtype=dtype,
        expert_prompt=_rendering(expert_prompt),
        antiexpert_prompt=_rendering(antiexpert_prompt),
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
        prices=_prices(prices),
        ways=way or (),
    )


def _prices(text: str | None) -> Prices:
    from blackbox_proxy.drafting import Prices

    try:
        return Prices() if text is None else Prices(*(float(price) for price in text.split(",")))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"--prices are three numbers, not {text!r}", hint="Prompt, cached prompt, output: 1.5,1.5,2."
        ) from error


def _drafting(n: int | None, minimise: str, prices: str | None, stream: bool, local: bool) -> Drafting:
    from blackbox_proxy.drafting import Drafting, Minimise

    if n is not None:
        return Drafting.fixed(n)
    return Drafting(stream=stream, local=local, minimise=cast(Minimise, minimise), prices=_prices(prices))


def _rendering(name: str) -> Literal["raw", "chat"]:
    if name not in ("raw", "chat"):
        raise InputError(f"unknown rendering {name!r}", hint="Use raw or chat.")
    return cast(Literal["raw", "chat"], name)
