"""The connections to one API: a client per running event loop, whole answers and streamed ones.

Nothing of openai or httpx2 gets out of here: their exceptions are named by failures.py and become the `__cause__`. What
is read is raw JSON, because the client's models would drop and reshape what other dialects answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import httpx2
import openai
from openai._streaming import ServerSentEvent

from blackbox_proxy.dialects.table import Api
from blackbox_proxy.errors import BlackboxError, ConnectionFailed, InputError
from blackbox_proxy.secrets import hidden_value, keep_secret, take_out
from blackbox_proxy.transport.address import address_of
from blackbox_proxy.transport.bounds import LIST, at_most, longest_answer, sent, wanted
from blackbox_proxy.transport.client import http_client
from blackbox_proxy.transport.failures import translated, truncated
from blackbox_proxy.transport.limits import Admits
from blackbox_proxy.transport.proxies import proxy_for
from blackbox_proxy.transport.quiet import quieten

ENDED = object()
"""Where a stream has no further event."""

NO_KEY = "not-needed"  # servers of one's own ask for none, but the client insists on sending one
_UNWINDING = 1.0  # seconds; it takes none, unless a connection does not close


class Route(NamedTuple):
    """A route of a server's own, asked in place of OpenAI's, and what makes its body of the arguments for those."""

    url: str
    body: Callable[[Mapping[str, Any]], dict[str, Any]]


class Connection:
    """model, url: for what errors say; `url` without what is secret in `base_url`. key: NO_KEY if there is none.

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
        timeout: float,
        limiter: Admits,
        key_header: str | None = None,
        native: Route | None = None,
    ) -> None:
        self._limiter = limiter
        self._api = api
        self._model = model
        self.url = url
        address = address_of(base_url)
        keep_secret(key, "[api key]")
        self._headers = _headers(key, key_header, address.basic, url)
        self._bare, self._query = address.bare, address.query
        self._proxy = proxy_for(address.bare)
        self._native = native
        self._timeout = timeout
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = WeakKeyDictionary()

    async def send(self, arguments: dict[str, Any]) -> bytes:
        """The body of a 200."""
        async with self._limiter.request(_most_tokens(arguments)):
            with self.naming(), at_most(longest_answer(arguments)):
                if self._native is None:
                    answer = await self._create("with_raw_response")(**arguments)
                else:
                    url, body = self._native
                    answer = await self._client().post(url, body=body(arguments), cast_to=httpx2.Response)
        self._limiter.learn(answer.headers)
        return clean(answer.content)

    async def free(self, where: str, body: Mapping[str, Any] | None = None) -> bytes:
        """The body of an answer that costs nothing, as the list of models. where: a route below `base_url`, or a URL of
        that server. body: what is posted there.
        """
        async with self._limiter.request(0):
            with self.naming(), at_most(LIST):
                if body is None:
                    answer = await self._client().get(where, cast_to=httpx2.Response)
                else:
                    answer = await self._client().post(where, body=body, cast_to=httpx2.Response)
        self._limiter.learn(answer.headers)
        return clean(answer.content)

    @asynccontextmanager
    async def open(self, arguments: dict[str, Any]) -> AsyncIterator[Answer]:
        """An answer that arrives while it is read; leaving closes it, so that the server notices."""
        most = _most_tokens(arguments)
        async with self._limiter.request(most) as used:
            with self.naming(), at_most(longest_answer(arguments)):
                opened = self._create("with_streaming_response")(**arguments)
                response = await opened.__aenter__()
            self._limiter.learn(response.headers)
            answer = Answer(response, self)
            try:
                yield answer
            finally:
                if answer.events:
                    used(most - wanted(arguments) + answer.events)
                # What is closed may be broken already.
                with suppress(httpx2.HTTPError, httpx2.StreamError, OSError, BlackboxError):
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
            raise translated(error, model=self._model, url=self.url) from error
        except BlackboxError as error:
            take_out(error)
            raise

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
                api_key=NO_KEY,  # client.py adds the real one
                base_url=self._bare,
                timeout=self._timeout,
                max_retries=0,  # retry.py decides
                # The client's own would try to close itself when forgotten, in whatever event loop then runs.
                http_client=http_client(self._bare, self._headers, self._query, self._proxy, self._timeout),
            )
            quieten()
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


def _headers(key: str, key_header: str | None, basic: str | None, url: str) -> dict[str, str]:
    """Who is asking, in the headers that say so. Raises InputError where two want the same one."""
    if basic is not None and key != NO_KEY and key_header is None:
        raise InputError(
            f"there is an API key for {url}, and a user and password in its URL, but only one can be sent",
            hint="Take user and password out of the URL, or leave out the key (api_key=… or its environment variable).",
        )
    own = {"authorization": basic} if basic is not None else {}
    if key_header is not None:
        return {**own, key_header.lower(): key}
    return own or {"authorization": f"Bearer {key}"}


def _most_tokens(arguments: Mapping[str, Any]) -> int:
    """About how many tokens a request can have, as rate limits count them: those sent and those asked for."""
    return sent(arguments)[0] + wanted(arguments)


def clean(content: bytes) -> bytes:
    """A body without the secrets that some servers repeat."""
    cleaned: bytes = hidden_value(content, answer=True)
    return cleaned


class _Events(openai.AsyncStream[object]):
    """The events of a stream, and whether the last was the "[DONE]" that the client keeps to itself."""

    finished = False

    async def _iter_events(self) -> AsyncIterator[ServerSentEvent]:
        async for event in super()._iter_events():
            self.finished = self.finished or event.data.startswith("[DONE]")
            yield event


class Progress:
    """A stream that brings nothing that counts for so many seconds has stalled, however busily it writes: a read that
    times out is not all that can hang. What counts is told (`made`); until the first time nothing is asked.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.until: float | None = None  # of the event loop's clock

    def made(self) -> None:
        self.until = asyncio.get_running_loop().time() + self.seconds


class Answer:
    """A 200 whose body is still to be read: as events (its items, the JSON of each), or at once if it is not streamed.

    Both raise BaseError. `events` counts those read, about one a token.
    """

    @property
    def finished(self) -> bool:
        """Whether the server has said that its stream is complete."""
        return self._events is not None and self._events.finished

    def __init__(self, response: Any, connection: Connection) -> None:
        self._response = response
        self._connection = connection
        self._events: _Events | None = None
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
        return clean(content)

    async def next_of(self, progress: Progress) -> object:
        """The next event, ENDED behind the last. Raises ConnectionFailed where what counts has not come in time."""
        if progress.until is None:
            return await anext(self, ENDED)
        late = False
        try:
            async with asyncio.timeout_at(progress.until) as limit:
                event = await anext(self, ENDED)
        except TimeoutError:
            if not limit.expired():
                raise
            late = True
        if late or asyncio.get_running_loop().time() > progress.until:  # events that are there already never wait
            raise ConnectionFailed(
                f"{self._connection.url} went on writing, but no token for {progress.seconds:g} s",
                hint="Try again, or give a longer timeout=….",
            )
        return event

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> object:
        with self._connection.naming():
            try:
                if self._events is None:
                    self._events = await self._response.parse(to=_Events)
                event = await anext(self._events)
            except (ValueError, RecursionError) as error:
                take_out(error)
                raise truncated(
                    "the API streamed something that is not JSON",
                    hint="A page instead of JSON usually comes from a proxy or gateway. Check base_url.",
                ) from error
        self.events += 1
        return event if isinstance(event, Mapping) else hidden_value(event, answer=True)
