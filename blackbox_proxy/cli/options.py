"""Options that several commands share, and what is opened from them.

The groups at the end are put into a command by `takes` (sharing.py): `BaseOptions` says where the big model is and how
it is asked, `TunerOptions` adds the pair and the method, `DecodingOptions` one text. Heavy parts are imported when they
are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from blackbox_proxy.errors import InputError

if TYPE_CHECKING:
    from blackbox_proxy.base.budget import Budget
    from blackbox_proxy.decoding.pace import Drafting
    from blackbox_proxy.prices import Prices
    from blackbox_proxy.protocols import Base, Pair
    from blackbox_proxy.tuner import ProxyTuner

# -- the base ---------------------------------------------------------------------------------------------------------

BaseName = Annotated[
    str, typer.Option("--base", help="The big model: its name at the API, or with --local its folder or hub id.")
]
Local = Annotated[bool, typer.Option("--local", help="Run the base in this process instead of an API.")]
BaseUrl = Annotated[
    str | None, typer.Option(envvar="BLACKBOX_PROXY_BASE_URL", help="The API's address, as http://host:port/v1.")
]
Api = Annotated[str, typer.Option(help="completions or chat.")]
DialectName = Annotated[str, typer.Option(help="What kind of server the API is, see `dialects`; auto: by its URL.")]
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
ExpertPrompt = Annotated[str, typer.Option(help="How the expert sees the prompt: raw or chat.")]
AntiexpertPrompt = Annotated[str, typer.Option(help="How the anti-expert sees the prompt: raw or chat.")]
ExpertUrl = Annotated[
    str | None,
    typer.Option(help="Where the expert is served (vLLM), if not run here: http://host:port/v1; --expert is its name."),
]
AntiexpertUrl = Annotated[str | None, typer.Option(help="Where the anti-expert is served; --expert-url by default.")]
PairTokenizer = Annotated[str | None, typer.Option(help="The tokenizer of a served pair: folder or hub id.")]
PairTopLogprobs = Annotated[
    int | None,
    typer.Option(help="Ids that the pair's servers show at once: -1 for all (exact); by default 256 if they allow it."),
]
Device = Annotated[str, typer.Option(help="Where the local models run: auto, cpu, cuda …")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]

# -- decoding ---------------------------------------------------------------------------------------------------------

AlphaValue = Annotated[float, typer.Option(help="Weight of the pair: 0 is the base, 1 plain proxy-tuning.")]
Tail = Annotated[
    str, typer.Option(help="Tokens that the base does not show: backoff, truncate, floor, or ask it about them.")
]
Steering = Annotated[
    str, typer.Option("--steer", help="candidates weighs what the API shows; bias sends it a logit_bias instead.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens to decode at most.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest candidates with this mass.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")]
TextTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens of each text.")]

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
    typer.Option(envvar="BLACKBOX_PROXY_CACHE_FILE", help="Where the answers are kept; the user's cache by default."),
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


MaxRetrySeconds = Annotated[float, typer.Option(help="Seconds after which a failed request is not tried again.")]


# -- answers, rows and what is printed --------------------------------------------------------------------------------

Missing = Annotated[str, typer.Option(help="Answers that the base does not show: backoff, floor, exclude or ask.")]
Normalise = Annotated[
    str, typer.Option(help="Divide answers of several tokens by their length: none, tokens or bytes.")
]
Concurrency = Annotated[int, typer.Option(help="Rows to ask at a time.")]
Limit = Annotated[int | None, typer.Option(help="The first so many rows only.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


Exact = Annotated[
    bool, typer.Option("--exact", help="Another tokenizer: sum every candidate, not only those that could matter.")
]


# -- what is opened ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """Where the base is, how it is asked, and what it may cost."""

    base: BaseName
    local: Local = False
    base_url: BaseUrl = None
    api: Api = "completions"
    dialect: DialectName = "auto"
    api_key: ApiKey = None
    tokenizer: Tokenizer = None
    top_logprobs: TopLogprobs = None
    base_prompt: BasePrompt = "raw"
    prices: PriceList = None
    cache: Cache = None
    cache_file: CacheFile = None
    requests_per_minute: RequestsPerMinute = None
    tokens_per_minute: TokensPerMinute = None
    max_calls: MaxCalls = None
    max_tokens_billed: MaxTokensBilled = None
    max_cost: MaxCost = None
    max_retry_seconds: MaxRetrySeconds = 600.0
    device: Device = "auto"
    dtype: Dtype = "auto"

    def open_base(self) -> Base:
        """The base: with `local` in this process, else behind an API; within a budget and with a cache if that is
        wished for. What comes from the cache costs nothing.
        """
        from blackbox_proxy import BudgetedBase, CachedBase, Limiter, TransformersBase, open_base

        if self.api not in ("completions", "chat"):
            raise InputError(f"unknown api {self.api!r}", hint="Use completions or chat.")
        opened: Base
        if self.local:
            opened = TransformersBase(
                self.base,
                top_logprobs=self.top_logprobs,
                device=self.device,
                dtype=self.dtype,
                rendering=rendering_of(self.base_prompt),
            )
        else:
            opened = open_base(
                self.base,
                api=cast(Literal["completions", "chat"], self.api),
                base_url=self.base_url,
                api_key=self.api_key,
                dialect=self.dialect,
                tokenizer=self.tokenizer,
                top_logprobs=self.top_logprobs,
                rendering=rendering_of(self.base_prompt),
                max_retry_seconds=self.max_retry_seconds,
                limiter=Limiter(self.requests_per_minute, self.tokens_per_minute),
            )
        budget = self._budget()
        opened = opened if budget is None else BudgetedBase(opened, budget)
        cached = self.cache if self.local else self.cache is not False
        return CachedBase(opened, self.cache_file) if cached else opened

    def _budget(self) -> Budget | None:
        """None where nothing is limited. Raises InputError for a cost without prices."""
        from blackbox_proxy import Budget

        if self.max_calls is None and self.max_tokens_billed is None and self.max_cost is None:
            return None
        prices = prices_of(self.prices) if self.prices else None
        return Budget(self.max_calls, self.max_tokens_billed, self.max_cost, prices)


@dataclass(frozen=True, kw_only=True)
class TunerOptions(BaseOptions):
    """The base, the pair, and how they are put together."""

    expert: Expert
    antiexpert: Antiexpert = None
    expert_prompt: ExpertPrompt = "raw"
    antiexpert_prompt: AntiexpertPrompt = "raw"
    expert_url: ExpertUrl = None
    antiexpert_url: AntiexpertUrl = None
    pair_tokenizer: PairTokenizer = None
    pair_top_logprobs: PairTopLogprobs = None
    exact: Exact = False
    alpha: AlphaValue = 1.0
    tail: Tail = "backoff"
    steer: Steering = "candidates"
    draft: DraftLength = None
    minimise: Minimise = "latency"
    stream: Stream = True
    local_drafts: LocalDrafts = True

    def open(self) -> ProxyTuner:
        """The tuner; what is misspelled is said before a model is loaded."""
        from blackbox_proxy import ProxyTuner
        from blackbox_proxy.tuner import Steer
        from blackbox_proxy.types import TailPolicy

        drafting = self._drafting()
        base = self.open_base()
        return ProxyTuner(
            base,
            self.open_pair(),
            self.alpha,
            tail=cast(TailPolicy, self.tail),
            draft=drafting,
            steer=cast(Steer, self.steer),
        )

    def open_pair(self) -> Pair:
        from blackbox_proxy import ServedPair, TransformersPair

        served = {
            "--antiexpert-url": self.antiexpert_url,
            "--pair-tokenizer": self.pair_tokenizer,
            "--pair-top-logprobs": self.pair_top_logprobs,
        }
        if self.expert_url is None:
            without = [name for name, value in served.items() if value is not None]
            if without:
                raise InputError(f"{', '.join(without)} needs --expert-url", hint="Say where the expert is served.")
        elif self.pair_tokenizer is None:
            raise InputError("--expert-url needs --pair-tokenizer", hint="Give the pair's tokenizer: folder or hub id.")
        else:
            return ServedPair(
                self.expert,
                self.antiexpert,
                expert_url=self.expert_url,
                antiexpert_url=self.antiexpert_url,
                tokenizer=self.pair_tokenizer,
                top_logprobs=self.pair_top_logprobs,
                expert_prompt=rendering_of(self.expert_prompt),
                antiexpert_prompt=rendering_of(self.antiexpert_prompt),
                max_retry_seconds=self.max_retry_seconds,
            )
        return TransformersPair(
            self.expert,
            self.antiexpert,
            device=self.device,
            dtype=self.dtype,
            expert_prompt=rendering_of(self.expert_prompt),
            antiexpert_prompt=rendering_of(self.antiexpert_prompt),
            exact=self.exact,
        )

    def _drafting(self) -> Drafting:
        from blackbox_proxy.decoding import pace

        if self.draft is not None:
            return pace.Drafting.fixed(self.draft)
        aim = cast(pace.Minimise, self.minimise)
        return pace.Drafting(stream=self.stream, local=self.local_drafts, minimise=aim, prices=prices_of(self.prices))

    def what_decides_the_text(self) -> dict[str, Any]:
        """What may not change between two parts of a run; where the base is and how it is asked may."""
        return {
            "base": [
                self.base,
                self.local,
                self.api,
                self.dialect,
                self.tokenizer,
                self.top_logprobs,
                self.base_prompt,
            ],
            "pair": [self.expert, self.antiexpert, self.expert_prompt, self.antiexpert_prompt, self.dtype]
            + ([] if self.expert_url is None else ["served", self.pair_tokenizer, self.pair_top_logprobs]),
            "decoding": [self.alpha, self.tail, self.steer, *(["exact"] if self.exact else [])],
        }


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """One text. The seed is not among them: it means a run's where there are many."""

    max_tokens: MaxTokens = 256
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    stop: Stop = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of `ProxyTuner.generate`."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop or (),
        }


def prices_of(text: str | None) -> Prices:
    from blackbox_proxy.prices import Prices

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
