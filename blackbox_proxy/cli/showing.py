"""Commands that show and measure what the method does: `demo`, `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.options import PriceList, Temperature, TextTokens, prices_of
from blackbox_proxy.errors import InputError

_DemoModels = Annotated[
    Path | None, typer.Option("--cache", help="Where the demo's models are kept; the user's cache by default.")
]


@app.command()
def demo(
    cache: _DemoModels = None,
) -> None:
    """See the method work, with no account, key or download: a black box that has missed the news.

    On first use it trains four small models (a minute or two) and keeps them. The black box then answers over HTTP
    with its top 5 logprobs; a small model that has read the news, and the same before it, bring the black box up to
    date.
    """
    quiet_transformers()
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
    max_tokens: TextTokens = 64,
    first_token: Annotated[float, typer.Option(help="Emulated seconds until an answer's first token.")] = 0.3,
    per_token: Annotated[float, typer.Option(help="Emulated seconds for each further token.")] = 0.02,
    alpha: Annotated[float, typer.Option(help="Weight of the pair; a smaller one disagrees less often.")] = 1.0,
    top_logprobs: Annotated[int, typer.Option(help="Log probabilities that the API shows per token.")] = 5,
    temperature: Temperature = 0.0,
    prices: PriceList = None,
    way: Annotated[list[str] | None, typer.Option(help="Only this way of asking; may be repeated.")] = None,
    cache: _DemoModels = None,
) -> None:
    """Measure what few calls are worth: the same texts, asked for in every way, over an emulated network.

    The base answers over HTTP from a process of its own, each token not before its time; requests and billed tokens
    are counted there. Without models of your own it takes those of the demo (trained on first use).

    Examples:

        blackbox-proxy bench

        blackbox-proxy bench --base ./big --expert ./small-tuned --antiexpert ./small --prompts prompts.txt --alpha 0.5
    """
    quiet_transformers()
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
        prices=prices_of(prices),
        ways=way or (),
    )
