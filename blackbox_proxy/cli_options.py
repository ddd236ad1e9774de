"""Options that `generate` and `run` share, and what is opened from them.

The aliases carry names and help; defaults stand where an option is used. Heavy parts are imported when they are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from blackbox_proxy.errors import InputError

if TYPE_CHECKING:
    from blackbox_proxy.base.budget import Budget
    from blackbox_proxy.base.limits import Limiter
    from blackbox_proxy.base.protocol import Base
    from blackbox_proxy.drafting import Drafting, Prices
    from blackbox_proxy.pair.transformers import TransformersPair

# -- the base ---------------------------------------------------------------------------------------------------------

BaseName = Annotated[
    str, typer.Option("--base", help="The big model: its name at the API, or with --local its folder or hub id.")
]
Local = Annotated[bool, typer.Option("--local", help="Run the base in this process instead of an API.")]
BaseUrl = Annotated[
    str | None, typer.Option(envvar="BLACKBOX_PROXY_BASE_URL", help="The API's address, as http://host:port/v1.")
]
Api = Annotated[str, typer.Option(help="completions or chat.")]
DialectName = Annotated[str, typer.Option(help="The API's dialect: openai, vllm, host.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="The API's key.", show_default=False)
]
Tokenizer = Annotated[
    str | None, typer.Option(help="The base's tokenizer, if known: a tiktoken name, a folder or a hub id.")
]
TopLogprobs = Annotated[int | None, typer.Option(help="Candidates to ask for; the API's limit by default.")]
BasePrompt = Annotated[str, typer.Option(help="How the base sees the prompt: raw or chat (its template).")]

# -- the pair ---------------------------------------------------------------------------------------------------------

Expert = Annotated[str, typer.Option(help="The small tuned model: folder or hub id.")]
Antiexpert = Annotated[str | None, typer.Option(help="The same small model before tuning.")]
ExpertPrompt = Annotated[str, typer.Option(help="How the expert sees it: raw or chat.")]
AntiexpertPrompt = Annotated[str, typer.Option(help="How the anti-expert sees it: raw or chat.")]
Device = Annotated[str, typer.Option(help="Where the local models run: auto, cpu, cuda …")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]

# -- decoding ---------------------------------------------------------------------------------------------------------

AlphaValue = Annotated[float, typer.Option(help="Weight of the pair: 0 is the base, 1 plain proxy-tuning.")]
Tail = Annotated[str, typer.Option(help="Tokens that the base does not show: backoff, truncate or floor.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens to decode at most.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest candidates with this mass.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")]

# -- drafts -----------------------------------------------------------------------------------------------------------

DraftLength = Annotated[
    int | None, typer.Option(help="Ask for so many tokens per request, unstreamed; chosen as it goes by default.")
]
Minimise = Annotated[str, typer.Option(help="What the requests' sizes minimise: latency or cost.")]
PriceList = Annotated[
    str | None, typer.Option(help="Prices of a prompt, a cached prompt and an output token, as 1.5,1.5,2.")
]
Stream = Annotated[
    bool, typer.Option("--stream/--no-stream", help="Verify while the draft arrives, close it where it errs.")
]
LocalDrafts = Annotated[
    bool, typer.Option("--local-drafts/--no-local-drafts", help="Let the expert draft too, where the API can score.")
]


# -- the cache --------------------------------------------------------------------------------------------------------

Cache = Annotated[
    bool | None,
    typer.Option(
        "--cache/--no-cache",
        envvar="BLACKBOX_PROXY_CACHE",
        help="Keep the base's answers and ask for none twice; by default where the base is an API.",
    ),
]
CacheFile = Annotated[
    Path | None,
    typer.Option(envvar="BLACKBOX_PROXY_CACHE_FILE", help="Where they are kept; the user's cache by default."),
]


# -- limits and budget ------------------------------------------------------------------------------------------------

RequestsPerMinute = Annotated[
    float | None, typer.Option(help="Requests a minute at most; what the API's headers say by default.")
]
TokensPerMinute = Annotated[
    float | None, typer.Option(help="Tokens a minute at most, sent and asked for; what its headers say by default.")
]
MaxCalls = Annotated[int | None, typer.Option(help="Requests that may be paid for in all.")]
MaxTokensBilled = Annotated[int | None, typer.Option(help="Prompt and output tokens that may be paid for in all.")]
MaxCost = Annotated[float | None, typer.Option(help="What may be spent in all, by --prices for one token each.")]


# -- what is opened ---------------------------------------------------------------------------------------------------


def open_black_box(
    base: str,
    *,
    local: bool,
    base_url: str | None,
    api: str,
    dialect: str,
    api_key: str | None,
    tokenizer: str | None,
    top_logprobs: int | None,
    rendering: str,
    device: str,
    dtype: str,
    cache: bool | None,
    cache_file: Path | None,
    limiter: Limiter | None = None,
    budget: Budget | None = None,
) -> Base:
    """The base: with `local` in this process, else behind an API; within a budget and with a cache if that is wished
    for. What comes from the cache costs nothing.
    """
    from blackbox_proxy import BudgetedBase, CachedBase, TransformersBase, open_base

    opened: Base
    if local:
        opened = TransformersBase(
            base, top_logprobs=top_logprobs, device=device, dtype=dtype, rendering=rendering_of(rendering)
        )
        opened = opened if budget is None else BudgetedBase(opened, budget)
        return CachedBase(opened, cache_file) if cache else opened
    opened = open_base(
        base,
        api=cast(Literal["completions", "chat"], api),
        base_url=base_url,
        api_key=api_key,
        dialect=dialect,
        tokenizer=tokenizer,
        top_logprobs=top_logprobs,
        rendering=rendering_of(rendering),
        limiter=limiter,
    )
    opened = opened if budget is None else BudgetedBase(opened, budget)
    return opened if cache is False else CachedBase(opened, cache_file)


def limiter_of(requests_per_minute: float | None, tokens_per_minute: float | None) -> Limiter:
    from blackbox_proxy import Limiter

    return Limiter(requests_per_minute, tokens_per_minute)


def budget_of(calls: int | None, tokens: int | None, cost: float | None, prices: str | None) -> Budget | None:
    """None where nothing is limited. Raises InputError for a cost without prices."""
    from blackbox_proxy import Budget

    if calls is None and tokens is None and cost is None:
        return None
    return Budget(calls, tokens, cost, prices_of(prices) if prices else None)


def check_api(api: str) -> None:
    if api not in ("completions", "chat"):
        raise InputError(f"unknown api {api!r}", hint="Use completions or chat.")


def open_pair(
    expert: str, antiexpert: str | None, *, device: str, dtype: str, expert_prompt: str, antiexpert_prompt: str
) -> TransformersPair:
    from blackbox_proxy import TransformersPair

    return TransformersPair(
        expert,
        antiexpert,
        device=device,
        dtype=dtype,
        expert_prompt=rendering_of(expert_prompt),
        antiexpert_prompt=rendering_of(antiexpert_prompt),
    )


def drafting_of(n: int | None, minimise: str, prices: str | None, stream: bool, local: bool) -> Drafting:
    from blackbox_proxy import drafting

    if n is not None:
        return drafting.Drafting.fixed(n)
    aim = cast(drafting.Minimise, minimise)
    return drafting.Drafting(stream=stream, local=local, minimise=aim, prices=prices_of(prices))


def prices_of(text: str | None) -> Prices:
    from blackbox_proxy.drafting import Prices

    try:
        return Prices() if text is None else Prices(*(float(price) for price in text.split(",")))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"--prices are three numbers, not {text!r}", hint="Prompt, cached prompt, output: 1.5,1.5,2."
        ) from error


def rendering_of(name: str) -> Literal["raw", "chat"]:
    if name not in ("raw", "chat"):
        raise InputError(f"unknown rendering {name!r}", hint="Use raw or chat.")
    return cast(Literal["raw", "chat"], name)
