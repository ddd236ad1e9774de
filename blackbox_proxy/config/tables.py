"""The tables of proxy.toml. The first line of each class is what the file says above it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from blackbox_proxy.config.table import Table, setting
from blackbox_proxy.types import TailPolicy


def _variable(name: str) -> str:
    """The name of an environment variable; what looks like a key is not repeated in the error."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("must be the NAME of an environment variable, as OPENAI_API_KEY, never a key itself")
    return name


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("must hold no password: give the key by the name of a variable, api_key_env")
    return url


def _prices(given: Any) -> Any:
    try:
        prices = [float(price) for price in (given.split(",") if isinstance(given, str) else given)]
    except (TypeError, ValueError):
        prices = []
    if len(prices) != 3 or not all(math.isfinite(price) and price >= 0.0 for price in prices):
        raise ValueError(f"must be three numbers of at least 0, as 1.5,1.5,2, not {given!r}")
    return prices


def _range(given: Any) -> Any:
    try:
        low, high = (float(value) for value in (given.split(",") if isinstance(given, str) else given))
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"must be two numbers, the least first, as 0,2, not {given!r}")
    return low, high


Variable = Annotated[str, AfterValidator(_variable)]
Url = Annotated[str, AfterValidator(_url)]
AlphaRange = Annotated[tuple[float, float], BeforeValidator(_range)]
PriceList = Annotated[tuple[float, float, float], BeforeValidator(_prices)]
Prompting = Literal["raw", "chat"]


class BaseTable(Table):
    """The big model, and how it is asked."""

    model: str | None = setting(
        None,
        "The big model: its name at the API, or its folder or hub id if it runs here.",
        "--base",
        example="big-model",
        place="model",
        min_length=1,
    )
    local: bool = setting(False, "Run the base in this process instead of an API.", "--local")
    url: Url | None = setting(
        None, "The API's address, as http://host:port/v1.", "--base-url", example="http://localhost:8000/v1"
    )
    api: Literal["completions", "chat"] = setting("completions", "The API's kind: completions or chat.", "--api")
    dialect: str = setting("auto", "What kind of server the API is, see `dialects`; auto: by its URL.", "--dialect")
    api_key_env: Variable | None = setting(
        None,
        "The NAME of the environment variable that holds the API's key; by default the one that the dialect names.",
        "--api-key-env",
        example="OPENAI_API_KEY",
    )
    tokenizer: str = setting(
        "auto",
        "The base's tokenizer: a tiktoken name, a folder or a hub id; auto: as its server tells; none: unknown.",
        "--tokenizer",
        example="cl100k_base",
        place="model",
    )
    top_logprobs: int | None = setting(
        None, "Candidates to ask for; the API's limit by default.", "--top-logprobs", example=5, ge=1
    )
    prompt: Prompting = setting("raw", "How the base sees the prompt: raw or chat (its template).", "--base-prompt")


class PairTable(Table):
    """A pair: the small model tuned (expert) and untuned (anti-expert). NAME is yours; there may be several."""

    expert: str = setting(
        ..., "The small tuned model: folder or hub id.", "--expert", example="./small-tuned", place="model"
    )
    antiexpert: str | None = setting(
        None, "The same small model before tuning.", "--antiexpert", example="./small", place="model"
    )
    alpha: float = setting(1.0, "Weight of the pair: 0 is the base, 1 plain proxy-tuning.", "--alpha")
    expert_prompt: Prompting = setting("raw", "How the expert sees the prompt: raw or chat.", "--expert-prompt")
    antiexpert_prompt: Prompting = setting(
        "raw", "How the anti-expert sees the prompt: raw or chat.", "--antiexpert-prompt"
    )
    expert_url: Url | None = setting(
        None,
        "Where the expert is served (vLLM), if not run here: http://host:port/v1; expert is its name there.",
        "--expert-url",
        example="http://localhost:8001/v1",
    )
    antiexpert_url: Url | None = setting(
        None,
        "Where the anti-expert is served; the expert's address by default.",
        "--antiexpert-url",
        example="http://localhost:8002/v1",
    )
    tokenizer: str | None = setting(
        None, "The tokenizer of a served pair: folder or hub id.", "--pair-tokenizer", example="./small", place="model"
    )
    top_logprobs: int | None = setting(
        None,
        "Ids that the pair's servers show at once: -1 for all (exact); by default 256 if they allow it.",
        "--pair-top-logprobs",
        example=-1,
        ge=-1,
    )
    api_key_env: Variable = setting(
        "BLACKBOX_PROXY_PAIR_KEY",
        "The NAME of the environment variable that holds the key of a served pair.",
        "--pair-key-env",
    )

    @model_validator(mode="after")
    def _served_or_here(self) -> Self:
        """What is about servers goes together."""
        served = {"antiexpert_url": "--antiexpert-url", "tokenizer": "--pair-tokenizer"}
        served["top_logprobs"] = "--pair-top-logprobs"
        if self.expert_url is None:
            without = [f"{name} ({flag})" for name, flag in served.items() if getattr(self, name) is not None]
            if without:
                raise ValueError(f"{', '.join(without)} needs expert_url (--expert-url): where the expert is served")
        elif self.tokenizer is None:
            raise ValueError("expert_url (--expert-url) needs tokenizer (--pair-tokenizer): a folder or hub id")
        return self


class EquationTable(Table):
    """How base and pairs are put together."""

    tail: TailPolicy = setting(
        "backoff", "Tokens that the base does not show: backoff, truncate, floor, or ask it about them.", "--tail"
    )
    tail_size: int = setting(32, "How many of those tokens the expert may propose.", ge=0)
    steer: Literal["candidates", "bias"] = setting(
        "candidates", "candidates weighs what the API shows; bias sends it a logit_bias instead.", "--steer"
    )
    weights: Path | None = setting(
        None,
        "Learned weights (see `calibrate`), in the place of alpha.",
        "--weights",
        example="weights.json",
        place="file",
    )
    exact: bool = setting(False, "Another tokenizer: sum every candidate, not only those that could matter.", "--exact")


class DraftingTable(Table):
    """How many tokens a request asks for. The text is the same; calls, time and cost are not."""

    tokens: int | None = setting(
        None,
        "Ask for so many tokens per request, unstreamed; chosen as it goes by default.",
        "--draft",
        example=16,
        ge=1,
    )
    minimise: Literal["latency", "cost"] = setting(
        "latency", "What the requests' sizes minimise: latency or cost.", "--minimise"
    )
    stream: bool = setting(True, "Verify while the draft arrives, close it where it errs.", "--stream/--no-stream")
    local: bool = setting(
        True, "Let the expert draft too, where the API can score.", "--local-drafts/--no-local-drafts"
    )


class DecodingTable(Table):
    """One text, where nothing else is said."""

    max_tokens: int = setting(256, "Tokens to decode at most.", "--max-tokens", "-n", ge=1)
    temperature: float = setting(0.0, "0 is greedy.", "--temperature", "-t", ge=0)
    top_p: float = setting(1.0, "Sample from the likeliest candidates with this mass.", "--top-p", gt=0, le=1)
    stop: list[Annotated[str, Field(min_length=1)]] = setting(
        [], "Stop before this text; may be repeated.", "--stop", example=["\n\n"]
    )


class LimitsTable(Table):
    """How hard the API is asked."""

    requests_per_minute: float | None = setting(
        None,
        "Requests a minute at most; what the API's headers say by default.",
        "--requests-per-minute",
        example=60,
        gt=0,
    )
    tokens_per_minute: float | None = setting(
        None,
        "Tokens a minute at most, sent and asked for; what its headers say by default.",
        "--tokens-per-minute",
        example=100000,
        gt=0,
    )
    max_retry_seconds: float = setting(
        600.0, "Seconds after which a failed request is not tried again.", "--max-retry-seconds", gt=0
    )


class BudgetTable(Table):
    """What may be spent. The next request that could exceed it is not sent."""

    max_calls: int | None = setting(None, "Requests that may be paid for in all.", "--max-calls", example=1000, ge=0)
    max_tokens_billed: int | None = setting(
        None, "Prompt and output tokens that may be paid for in all.", "--max-tokens-billed", example=1000000, ge=0
    )
    max_cost: float | None = setting(
        None, "What may be spent in all, by the prices of one token each.", "--max-cost", example=5.0, ge=0
    )
    prices: PriceList | None = setting(
        None,
        "Prices of a prompt, a cached prompt and an output token, as 1.5,1.5,2.",
        "--prices",
        example=[1.5e-6, 1.5e-6, 2e-6],
    )


class CacheTable(Table):
    """The base's answers, kept: none is asked for twice."""

    use: bool | None = setting(
        None,
        "Keep the base's answers and ask for none twice; by default where the base is an API.",
        "--cache/--no-cache",
        example=True,
    )
    file: Path | None = setting(
        None,
        "Where the answers are kept; the user's cache by default.",
        "--cache-file",
        example="answers.sqlite",
        place="file",
    )
    seeds: list[Path] = setting(
        [],
        "Answers that `cache export -o FILE.parquet` has written, only read; may be repeated.",
        "--cache-seed",
        example=["seed.parquet"],
        place="file",
    )


class ComputeTable(Table):
    """How models run on this machine."""

    device: str = setting("auto", "Where the local models run: auto, cpu, cuda …", "--device")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Numbers of the local models: auto, float32, bfloat16 or float16.", "--dtype"
    )


class ServedModelTable(Table):
    """A model that `serve` offers; NAME is what clients call it. Without any, each pair is offered, and the base."""

    pairs: list[str] | None = setting(
        None, "Names of its pairs; all by default; none, as [], is the base itself.", example=["news"]
    )
    alpha: float | list[float] | None = setting(
        None, "Its weight, or one for each of its pairs; what the pairs say by default.", example=1.0
    )


class ServeTable(Table):
    """The tuned model behind OpenAI's routes, by `serve`."""

    host: str = setting("127.0.0.1", "Address to listen on.", "--host")
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", "--port", ge=0, le=65535)
    keys: Path | None = setting(
        None,
        "File of callers' hashed keys, see `key`; needed where others can reach the address.",
        "--keys",
        example="keys.txt",
        place="file",
    )
    alpha_range: AlphaRange | None = setting(
        None, "The alphas that a request may choose, as 0,2; by default none.", "--alpha-range", example=[0, 2]
    )
    tails: list[TailPolicy] = setting(
        [], "Tail policies that a request may choose besides the usual one.", "--tails", example=["truncate"]
    )
    chat_template: str | None = setting(
        None,
        "How messages become text for base and pair: a Jinja template, its file, or plain.",
        "--chat-template",
        example="plain",
    )
    page: bool = setting(
        True,
        "A page at / for people, and what it needs: q, E and A of candidates, for requests that ask.",
        "--page/--no-page",
    )
    max_logprobs: int = setting(20, "Most logprobs a client gets per token.", "--max-logprobs", ge=0, le=64)
    active: int = setting(64, "Requests that are decoded at a time.", "--active", ge=1)
    waiting: int = setting(256, "Requests that may wait; the next one gets a 429.", "--waiting", ge=0)
    drain_seconds: float = setting(
        30.0, "Time that texts have to end in when the server is told to stop.", "--drain-seconds", ge=0
    )
    allow_host: str = setting("", "Names of this server besides localhost, with commas; * is any.", "--allow-host")
    allow_origin: str = setting(
        "", "Pages that may use it, as http://localhost:3000, with commas; * is any.", "--allow-origin"
    )
    models: dict[str, ServedModelTable] = setting({}, "What is offered, each a table [serve.models.NAME].")
