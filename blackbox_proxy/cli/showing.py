"""Commands that show and measure what the method does: `demo`, `bench`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.options import PriceOptions, TextTokens
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.errors import InputError
from blackbox_proxy.prices import Prices
from blackbox_proxy.screen.console import Screen

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

    run_demo(Screen(), cache=cache)


def _bench_near(
    shape: str,
    expert: str | None,
    antiexpert: str | None,
    pair_tokenizer: str | None,
    base_tokenizer: str | None,
    lengths: list[int] | None,
    candidates: int,
    exact: bool,
) -> None:
    """One table: a pair of weights or random ones, and the tokenizer of a base, by default two made on the spot."""
    from blackbox_proxy.bench import near
    from blackbox_proxy.demo.spelling import big_tokenizer, small_tokenizer
    from blackbox_proxy.models.loading import load_causal_lm
    from blackbox_proxy.text.spelling import from_pretrained, from_tokenizer, vocabulary_of

    if candidates < 1 or any(n < 1 for n in lengths or ()):
        raise InputError("--length and --candidates must be at least 1", hint="Leave them out for 1, 8, 32 and 20.")
    if bool(expert) != bool(antiexpert):
        raise InputError("a pair is an expert and an anti-expert", hint="Give --expert and --antiexpert.")
    lines = near.own_text().splitlines()
    if expert and antiexpert:
        models = (load_causal_lm(expert, device="cpu"), load_causal_lm(antiexpert, device="cpu"))
    else:
        vocabulary = from_pretrained(pair_tokenizer) if pair_tokenizer else from_tokenizer(small_tokenizer(lines, 900))
        models = near.random_models(shape, vocabulary)
    base = vocabulary_of(base_tokenizer) or from_tokenizer(big_tokenizer(lines, 900))
    near.run_near(Screen(), models, base, lengths=lengths or near.LENGTHS, candidates=candidates, exact=exact)


def _bench_here(base: str | None, expert: str | None, antiexpert: str | None, shape: str, max_tokens: int) -> None:
    """Two tables: the pair with the base's tokenizer and with another one; or one table of weights that are given."""
    from blackbox_proxy.bench import here, near
    from blackbox_proxy.demo.spelling import big_tokenizer, small_tokenizer
    from blackbox_proxy.models.loading import load_causal_lm
    from blackbox_proxy.text.spelling import from_tokenizer

    own = [base, expert, antiexpert]
    if any(own) and not all(own):
        raise InputError("models of your own come all together", hint="Give --base, --expert and --antiexpert.")
    if base and expert and antiexpert:
        e, a = load_causal_lm(expert, device="cpu"), load_causal_lm(antiexpert, device="cpu")
        here.run_here(Screen(), (load_causal_lm(base, device="cpu"), e, a), here.PROMPTS, tokens=max_tokens)
        return
    lines = near.own_text().splitlines()
    local, other = from_tokenizer(small_tokenizer(lines, 900)), from_tokenizer(big_tokenizer(lines, 900))
    for vocabulary in (local, other):
        models = here.random_three(shape, vocabulary, local)
        here.run_here(Screen(), models, here.PROMPTS, tokens=max_tokens)


def _three(text: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(part) / 1000.0 for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"--near-ms takes three numbers, not {text!r}", hint="A pass, a text, a position: 8,2,0.5"
        ) from error
    if min(first, second, third) < 0.0:
        raise InputError("--near-ms takes numbers of at least 0", hint="A pass, a text, a position: 8,2,0.5")
    return first, second, third


@app.command()
@takes(PriceOptions)
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
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")] = 0.0,
    parts: PriceOptions,
    way: Annotated[list[str] | None, typer.Option(help="Only this way of asking; may be repeated.")] = None,
    near: Annotated[bool, typer.Option("--near", help="Measure this machine's part of a draft instead.")] = False,
    shape: Annotated[str, typer.Option(help="Size of the random pair of --near and --here: 0.8M, 10M, 100M.")] = "0.8M",
    pair_tokenizer: Annotated[str | None, typer.Option(help="Tokenizer of that pair: folder or hub id.")] = None,
    base_tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer of the base: folder, hub id or encoding.")
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Measure whole texts with all three models in this process instead.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Measure `serve` instead: one streaming client, then many at once.")
    ] = False,
    clients: Annotated[int, typer.Option(help="How many of them.", min=1)] = 64,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Measure so many texts at a time over a base without limits instead; repeatable.", min=1),
    ] = None,
    length: Annotated[list[int] | None, typer.Option(help="Length of a draft; may be repeated.")] = None,
    candidates: Annotated[int, typer.Option(help="Candidates of each of its positions.")] = 20,
    exact: Annotated[bool, typer.Option("--exact", help="Sum every candidate over all ways to write it.")] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Say what saturates first at many streams, by simulation, instead.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Predict a real run on this machine by simulation, and measure it.")
    ] = False,
    streams: Annotated[list[int] | None, typer.Option(help="Texts at a time; may be repeated.", min=1)] = None,
    arrivals: Annotated[
        float | None, typer.Option(help="Texts that arrive a second; without it there is always another.")
    ] = None,
    disagree: Annotated[float, typer.Option(help="Share of tokens at which the base's draft ends.")] = 0.15,
    trace: Annotated[Path | None, typer.Option(help="A trace of real texts to take that from.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 200,
    requests_per_minute: Annotated[float | None, typer.Option(help="What the simulated base allows.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="What the simulated base allows.")] = None,
    near_ms: Annotated[
        str, typer.Option(help="Milliseconds of the near side for a pass, each text in it, each position.")
    ] = "8,2,0.5",
    workers: Annotated[int, typer.Option(help="Near sides side by side.", min=1)] = 1,
    together: Annotated[int, typer.Option(help="Texts that one pass reads.", min=1)] = 1,
    memory_gb: Annotated[float | None, typer.Option(help="Memory of the near side for texts.")] = None,
    text_mb: Annotated[float, typer.Option(help="What a text takes of it.")] = 10.0,
    mbit: Annotated[float | None, typer.Option(help="Megabits a second from the base.")] = None,
    token_bytes: Annotated[float, typer.Option(help="What a token and its log probabilities take.")] = 500.0,
    cache: _DemoModels = None,
) -> None:
    """Measure what few calls are worth: the same texts, asked for in every way, over an emulated network.

    The base answers over HTTP from a process of its own, each token not before its time; requests and billed tokens
    are counted there. Without models of your own it takes those of the demo (trained on first use).

    Examples:

        blackbox-proxy bench

        blackbox-proxy bench --base ./big --expert ./small-tuned --antiexpert ./small --prompts prompts.txt --alpha 0.5

        blackbox-proxy bench --near --shape 10M --pair-tokenizer ./small --base-tokenizer cl100k_base

        blackbox-proxy bench --here --shape 10M

        blackbox-proxy bench --serve --clients 64

        blackbox-proxy bench --batch 1 --batch 16 --batch 64

        blackbox-proxy bench --simulate --near-ms 8,2,0.5 --together 64 --requests-per-minute 10000

        blackbox-proxy bench --check --clients 8
    """
    if simulate:
        from blackbox_proxy.bench import scale
        from blackbox_proxy.bench.simulate import Far, Load, Near, runs_at, runs_of
        from blackbox_proxy.host.network import Network
        from blackbox_proxy.trace import read_trace

        of_pass, of_text, of_position = _three(near_ms)
        scale.run_simulate(
            Screen(),
            Load(
                streams=1,
                tokens=max_tokens,
                runs=runs_at(disagree) if trace is None else runs_of(text.steps for text in read_trace(trace).texts),
                prompt_tokens=prompt_tokens,
                arrivals=arrivals,
            ),
            Near(
                of_pass=of_pass,
                of_text=of_text,
                of_position=of_position,
                workers=workers,
                together=together,
                memory=None if memory_gb is None else 1e9 * memory_gb,
                text_bytes=1e6 * text_mb,
            ),
            Far(
                network=Network(first_token, per_token),
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                bits=None if mbit is None else 1e6 * mbit,
                token_bytes=token_bytes,
            ),
            parts.prices or Prices(),
            streams or scale.STREAMS,
        )
        return
    quiet_transformers()
    if here:
        _bench_here(base, expert, antiexpert, shape, max_tokens)
        return
    if near:
        _bench_near(shape, expert, antiexpert, pair_tokenizer, base_tokenizer, length, candidates, exact)
        return
    from blackbox_proxy.bench.run import read_prompts, run_bench
    from blackbox_proxy.bench.setting import Setting
    from blackbox_proxy.host.network import Network

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

        models, asked = bench_models(Screen(stderr=True), cache)
        if prompts:
            asked = read_prompts(prompts)
    setting = Setting(
        base=models[0],
        expert=models[1],
        antiexpert=models[2],
        prompts=asked,
        network=Network(first_token, per_token),
        max_tokens=max_tokens,
        top_logprobs=top_logprobs,
    )
    if check:
        from blackbox_proxy.bench.scale import run_check

        run_check(Screen(), setting, streams=clients, prices=parts.prices)
    elif serve:
        from blackbox_proxy.bench.serving import run_serve

        run_serve(Screen(), setting, clients=clients)
    elif batch:
        from blackbox_proxy.bench.batch import run_batch

        run_batch(Screen(), setting, batches=batch, alpha=alpha)
    else:
        run_bench(
            Screen(),
            replace(setting, prompts=asked[:texts]),
            alpha=alpha,
            temperature=temperature,
            prices=parts.prices or Prices(),
            ways=way or (),
        )
