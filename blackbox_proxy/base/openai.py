"""A base behind an OpenAI-compatible API: `open_base` checks the arguments, `OpenAIBase` asks.

One draft is one request: payload.py builds it, retry.py sends it again where that helps, parse.py reads the answer.
This file holds only what has state: the connections.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx2

import openai
from blackbox_proxy.errors import BadRequest, InputError
from blackbox_proxy.types import Draft, Prefix, Prompt, Rendering, Usage
from blackbox_proxy.vocabulary import Vocabulary

from .dialects import DIALECTS, Api, Dialect
from .parse import decode_body, parse
from .payload import RESERVED, Settings, can_continue, check, prompt_length, request
from .retry import named, named_limit, with_retries

_OPENAI = "https://api.openai.com/v1"
_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
_NO_KEY = "not-needed"  # servers of one's own ask for none, but the client insists on sending one


class OpenAIBase:
    """A `Base` that asks an OpenAI-compatible server. Made by `open_base`, which checks what is given here.

    `vocabulary` None: tokens are known by bytes or text only, and prefixes travel as text. One connection pool per
    running event loop, so that a base can be used from several `asyncio.run` in turn.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        base_url: str,
        api_key: str,
        context: int | None = None,
        timeout: float = 60.0,
        max_attempts: int = 5,
        may_lower_k: bool = False,
    ) -> None:
        self.settings = settings
        self._may_lower_k = may_lower_k
        self.url = _shown(base_url)
        self._base_url = base_url
        self._api_key = api_key
        self._context = context
        self._timeout = timeout
        self._max_attempts = max_attempts
        self._sleep = asyncio.sleep
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = WeakKeyDictionary()

    def __repr__(self) -> str:
        settings = self.settings
        return f"OpenAIBase({settings.model!r}, {settings.api} at {self.url}, dialect {settings.dialect.name!r})"

    @property
    def name(self) -> str:
        return self.settings.model

    @property
    def vocabulary(self) -> Vocabulary | None:
        return self.settings.vocabulary

    @property
    def context(self) -> int | None:
        return self._context

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        """Raise InputError, ContextTooLong or CannotContinue if this cannot be asked; sends nothing."""
        check(prompt, max_tokens, self.settings, self._context)

    def can_continue(self, prefix: Prefix) -> bool:
        """Whether a request can continue from exactly these tokens, by ids or by text."""
        return can_continue(prefix, self.settings)

    def room(self, prefix: Prefix) -> int | None:
        """How many more tokens fit the window; None where the window or the prompt's length is unknown."""
        length = None if self._context is None else prompt_length(prefix.prompt, self.settings)
        if self._context is None or length is None:
            return None
        return max(0, self._context - length - len(prefix.tokens))

    async def draft(self, prefix: Prefix, n: int, *, temperature: float = 0.0, seed: int | None = None) -> Draft:
        """The server's own continuation: at most n positions, in one request.

        `usage.api_calls` counts requests answered with 200 (so 1 here), `usage.retries` the failed ones before it.
        Raises BaseError and InputError; nothing of openai or httpx2 gets out, their exceptions are the `__cause__`.
        """
        refused = 0
        while True:
            settings = self.settings
            arguments = request(prefix, settings, n, temperature=temperature, seed=seed)
            try:
                content, retries = await with_retries(
                    lambda arguments=arguments: self._send(arguments),  # type: ignore[misc]
                    max_attempts=self._max_attempts,
                    sleep=self._sleep,
                )
                break
            except BadRequest as error:
                limit = named_limit(str(error), settings.top_logprobs) if self._may_lower_k else None
                if limit is None:
                    raise
                refused += 1
                self.settings = replace(self.settings, top_logprobs=limit)
        draft = parse(decode_body(content), n=n, top_logprobs=settings.top_logprobs, vocabulary=settings.vocabulary)
        return Draft(draft.positions, draft.finish, draft.usage + Usage(retries=retries + refused))

    async def _send(self, arguments: dict[str, Any]) -> bytes:
        """The body of a 200. The raw one: the client's models would drop and reshape what other dialects answer."""
        client = self._client()
        create: Any = (
            client.completions.with_raw_response.create
            if self.settings.api == "completions"
            else client.chat.completions.with_raw_response.create
        )
        secret = "" if self._api_key == _NO_KEY else self._api_key
        try:
            answer = await create(**arguments)
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise named(error, model=self.settings.model, url=self.url, secret=secret) from error
        content: bytes = answer.content  # which a parse error may quote
        return content.replace(secret.encode(), b"[api key]") if secret else content

    def _client(self) -> openai.AsyncOpenAI:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            # A client holds on to its loop, so the weak keys alone would keep both for as long as this base lives.
            for old in [other for other in self._clients if other.is_closed()]:
                del self._clients[old]
            client = openai.AsyncOpenAI(
                api_key=self._api_key,
                base_url=self._base_url,
                timeout=self._timeout,
                max_retries=0,  # retry.py decides
                # The client's own would try to close itself when forgotten, in whatever event loop then runs.
                http_client=httpx2.AsyncClient(timeout=self._timeout, limits=_LIMITS, follow_redirects=True),
            )
            self._clients[loop] = client
        return client

    async def aclose(self) -> None:
        """Close the connections of this event loop, and of others that still run. The base can be used again."""
        here = asyncio.get_running_loop()
        for loop, client in list(self._clients.items()):
            del self._clients[loop]
            if loop is here:
                await client.close()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(client.close(), loop)


def open_base(
    model: str,
    *,
    api: Api = "completions",
    base_url: str | None = None,
    api_key: str | None = None,
    dialect: str | Dialect = "openai",
    tokenizer: str | os.PathLike[str] | Vocabulary | None = None,
    top_logprobs: int | None = None,
    rendering: Rendering = "raw",
    context: int | None = None,
    timeout: float = 60.0,
    max_attempts: int = 5,
    extra_body: Mapping[str, Any] | None = None,
) -> OpenAIBase:
    """A base behind an OpenAI-compatible API. Sends nothing.

    model: the name the server knows it by. api: "completions" (continues any text) or "chat". base_url: the API's root,
    usually ending in /v1; else OPENAI_BASE_URL, else OpenAI's own. api_key: else OPENAI_API_KEY; servers other than
    OpenAI's may need none. dialect: what kind of server it is, a name in `DIALECTS` or a `Dialect` of one's own.
    tokenizer: how the model spells: a tiktoken encoding ("cl100k_base"), a Hugging Face folder or hub id, or a
    `Vocabulary`; None where it is unknown. With it tokens have ids, and prefixes travel as ids where the server takes
    them. top_logprobs: candidates per position; by default as many as the API gives: its dialect's usual number,
    lowered where the server refuses that and names its limit. rendering: how a completions model is shown a prompt (a
    chat API renders by itself). context: the window in tokens. timeout: seconds per request. max_attempts: requests
    per draft, retries included. extra_body: further fields of every request.

    Raises InputError, and ModelUnavailable if the tokenizer cannot be loaded.
    """
    if not isinstance(model, str) or not model:
        raise InputError("a base needs the name of its model", hint="The server lists its models under /v1/models.")
    if api not in get_args(Api):
        raise InputError(f"unknown api {api!r}", hint='Use "completions" or "chat".')
    spoken = DIALECTS.get(dialect) if isinstance(dialect, str) else dialect
    if spoken is None:
        raise InputError(f"unknown dialect {dialect!r}", hint=f"Known: {', '.join(DIALECTS)}.")
    if api == "chat" and callable(rendering):
        raise InputError(
            "a chat API renders its prompts by itself", hint='Leave out rendering, or use api="completions".'
        )
    if not callable(rendering) and rendering not in ("raw", "chat"):
        raise InputError(f"unknown rendering {rendering!r}", hint='Use "raw", "chat" or a function.')
    if (context is not None and context < 1) or max_attempts < 1 or not timeout > 0:
        raise InputError("context, timeout and max_attempts must be positive")
    url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI)
    settings = Settings(
        model,
        api,
        spoken,
        _checked_k(top_logprobs, api, spoken),
        _vocabulary(tokenizer),
        rendering,
        _checked_extra(extra_body or {}),
    )
    key = _key(api_key, url)
    return OpenAIBase(
        settings,
        base_url=url,
        api_key=key,
        context=context,
        timeout=timeout,
        max_attempts=max_attempts,
        may_lower_k=top_logprobs is None,
    )


def _checked_k(k: int | None, api: Api, dialect: Dialect) -> int:
    limit = dialect.limit(api)
    if k is None:
        return dialect.default_k(api)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"top_logprobs must be a whole number of at least 1, not {k!r}")
    if limit is not None and k > limit:
        raise InputError(
            f"top_logprobs is {k}, but the {dialect.name!r} dialect's {api} API gives at most {limit}",
            hint=f"Use {limit} or fewer; the hidden tail is estimated. If this server gives more, name its dialect.",
        )
    return k


def _checked_extra(extra: Mapping[str, Any]) -> dict[str, Any]:
    taken = sorted(RESERVED & extra.keys())
    if taken:
        raise InputError(f"extra_body may not set {', '.join(taken)}", hint="Those fields are set for every request.")
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"extra_body cannot be written as JSON: {error}") from error
    return dict(extra)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InputError(f"base_url is not a URL: {_shown(url)!r}", hint="It looks like http://127.0.0.1:8000/v1.")
    if parts.path.rstrip("/").endswith("/completions"):
        raise InputError(
            f"base_url names one route of the API: {_shown(url)!r}", hint="Give its root, such as http://host:8000/v1."
        )
    return url


def _shown(url: str) -> str:
    """A URL without what may be secret in it: user, password, query."""
    bare = url.partition("?")[0].partition("#")[0]
    start = bare.find("//") + 2 if "//" in bare else 0
    host, slash, path = bare[start:].partition("/")
    return bare[:start] + host.rpartition("@")[2] + slash + path


def _key(given: str | None, url: str) -> str:
    key = given or os.environ.get("OPENAI_API_KEY") or ""
    key = key.strip()
    if not key and urlsplit(url).hostname == urlsplit(_OPENAI).hostname:
        raise InputError(
            "OpenAI's API needs a key, and there is none",
            hint="Set the environment variable OPENAI_API_KEY, or pass api_key=…; for another server, pass base_url=….",
        )
    if not key.isascii() or not key.isprintable():
        raise InputError("the API key holds characters that no key has", hint="Check OPENAI_API_KEY or api_key=….")
    return key or _NO_KEY


def _vocabulary(tokenizer: str | os.PathLike[str] | Vocabulary | None) -> Vocabulary | None:
    if tokenizer is None or isinstance(tokenizer, Vocabulary):
        return tokenizer
    name = os.fspath(tokenizer)
    if not os.path.isdir(name):
        import tiktoken

        if name in tiktoken.list_encoding_names():
            return Vocabulary.from_tiktoken(name)
    return Vocabulary.from_pretrained(name)
