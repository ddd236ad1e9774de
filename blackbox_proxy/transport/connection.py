"""The connections to one API: a client per running event loop, whole answers and streamed ones.

Nothing of openai or httpx2 gets out of here: their exceptions are named by failures.py and become the `__cause__`. What
is read is raw JSON, because the client's models would drop and reshape what other dialects answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

import httpx2
import openai

from blackbox_proxy.dialects.table import Api
from blackbox_proxy.transport.failures import translated, truncated
from blackbox_proxy.transport.limits import Limiter
from blackbox_proxy.transport.secrets import take_out, without_secret

NO_KEY = "not-needed"  # servers of one's own ask for none, but the client insists on sending one
_UNWINDING = 1.0  # seconds; it takes none, unless a connection does not close
_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)


class Route(NamedTuple):
    """A route of a server's own, asked in place of OpenAI's, and what makes its body of the arguments for those."""

    url: str
    body: Callable[[Mapping[str, Any]], dict[str, Any]]


class Connection:
    """model, url: for what errors say; `url` without what is secret in `base_url`. secret: False if the key is none.

    limiter: admits every request, and learns from the headers of every answer. key_header: the header that takes the
    key, None for the usual one. native: a route asked instead.
    """

    def __init__(
        self,
        api: Api,
        model: str,
        url: str,
        *,
        base_url: str,
        key: str,
        secret: bool,
        timeout: float,
        limiter: Limiter,
        key_header: str | None = None,
        native: Route | None = None,
    ) -> None:
        self._limiter = limiter
        self._api = api
        self._model = model
        self._url = url
        parts = urlsplit(base_url)
        self._base_url = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        self._query = dict(parse_qsl(parts.query, keep_blank_values=True))  # the client would put the route behind it
        self._native = native
        headers = {"Authorization": openai.Omit(), key_header: key}
        self._own: dict[str, Any] = {} if key_header is None else {"extra_headers": headers}
        self._key = key
        self.secret = key if secret else ""
        self._timeout = timeout
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = WeakKeyDictionary()

    async def send(self, arguments: dict[str, Any]) -> bytes:
        """The body of a 200."""
        async with self._limiter.request(_most_tokens(arguments)):
            with self.naming():
                if self._native is None:
                    answer = await self._create("with_raw_response")(**arguments, **self._own)
                else:
                    url, body = self._native
                    answer = await self._client().post(url, body=body(arguments), cast_to=httpx2.Response)
        self._limiter.learn(answer.headers)
        return self.clean(answer.content)  # a parse error may quote it

    async def models(self) -> bytes:
        """The body of the list of models."""
        async with self._limiter.request(0):
            with self.naming():
                own = self._own.get("extra_headers", {})
                answer = await self._client().get("/models", cast_to=httpx2.Response, options={"headers": own})
        self._limiter.learn(answer.headers)
        return self.clean(answer.content)

    @asynccontextmanager
    async def open(self, arguments: dict[str, Any]) -> AsyncIterator[Answer]:
        """An answer that arrives while it is read; leaving closes it, so that the server notices."""
        most = _most_tokens(arguments)
        async with self._limiter.request(most) as used:
            with self.naming():
                opened = self._create("with_streaming_response")(**arguments, **self._own)
                response = await opened.__aenter__()
            self._limiter.learn(response.headers)
            answer = Answer(response, self)
            try:
                yield answer
            finally:
                if answer.events:
                    used(most - _wanted(arguments) + answer.events)
                with suppress(httpx2.HTTPError, httpx2.StreamError, OSError):  # what is closed may be broken already
                    await response.close()
                await answer.unwind()

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Turns the client's exceptions into those of `errors`."""
        try:
            yield
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            if isinstance(error, openai.APIStatusError):
                self._limiter.learn(error.response.headers)
            raise translated(error, model=self._model, url=self._url, secret=self.secret) from error

    def clean(self, content: bytes) -> bytes:
        """A body without the key, which some servers repeat."""
        return content.replace(self.secret.encode(), b"[api key]") if self.secret else content

    def without_secret(self, value: object) -> object:
        return without_secret(value, self.secret) if self.secret else value

    def _create(self, how: str) -> Callable[..., Any]:
        client = self._client()
        resource: Any = client.completions if self._api == "completions" else client.chat.completions
        create: Callable[..., Any] = getattr(resource, how).create
        return create

    def _client(self) -> openai.AsyncOpenAI:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            # A client holds on to its loop, so the weak keys alone would keep both for as long as this base lives.
            for old in [other for other in self._clients if other.is_closed()]:
                del self._clients[old]
            client = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self._base_url,
                default_query=self._query,
                timeout=self._timeout,
                max_retries=0,  # retry.py decides
                # The client's own would try to close itself when forgotten, in whatever event loop then runs.
                http_client=httpx2.AsyncClient(timeout=self._timeout, limits=_LIMITS, follow_redirects=True),
            )
            self._clients[loop] = client
        return client

    async def aclose(self) -> None:
        """Close the connections of this event loop, and of others that still run. They are made anew when needed."""
        here = asyncio.get_running_loop()
        for loop, client in list(self._clients.items()):
            del self._clients[loop]
            if loop is here:
                await client.close()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(client.close(), loop)


def _wanted(arguments: Mapping[str, Any]) -> int:
    return int(arguments.get("max_tokens") or arguments.get("max_completion_tokens") or 0)


def _most_tokens(arguments: Mapping[str, Any]) -> int:
    """About how many tokens a request can have, as rate limits count them: those sent and those asked for."""
    prompt = arguments.get("prompt", arguments.get("messages"))
    sent = len(prompt) if isinstance(prompt, list) and "prompt" in arguments else len(str(prompt).encode()) // 4
    return sent + _wanted(arguments)


class Answer:
    """A 200 whose body is still to be read: as events (its items, the JSON of each), or at once if it is not streamed.

    Both raise BaseError. `events` counts those read, about one a token.
    """

    def __init__(self, response: Any, connection: Connection) -> None:
        self._response = response
        self._connection = connection
        self._events: openai.AsyncStream[object] | None = None
        self.events = 0
        kind = str(response.headers.get("content-type", ""))
        self.streams = kind.partition(";")[0].strip().lower() == "text/event-stream"

    async def unwind(self) -> None:
        """Let the client's generators end, now that there is nothing more to read: those that are left to the garbage
        collector end in whatever thread that runs.
        """
        if self._events is not None:
            with suppress(Exception):  # whatever reading from a closed connection raises
                async with asyncio.timeout(_UNWINDING):
                    while True:
                        await anext(self._events)

    async def body(self) -> bytes:
        with self._connection.naming():
            content: bytes = await self._response.read()
        return self._connection.clean(content)

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> object:
        with self._connection.naming():
            try:
                if self._events is None:
                    self._events = await self._response.parse(to=openai.AsyncStream[object])
                event = await anext(self._events)
            except (ValueError, RecursionError) as error:
                take_out(error, self._connection.secret)
                raise truncated(
                    "the API streamed something that is not JSON",
                    hint="A page instead of JSON usually comes from a proxy or gateway. Check base_url.",
                ) from error
        self.events += 1
        return event if isinstance(event, Mapping) else self._connection.without_secret(event)


def shown_url(url: str) -> str:
    """A URL without what may be secret in it: user, password, query."""
    bare = url.partition("?")[0].partition("#")[0]
    start = bare.find("//") + 2 if "//" in bare else 0
    host, slash, path = bare[start:].partition("/")
    return bare[:start] + host.rpartition("@")[2] + slash + path
