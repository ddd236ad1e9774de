"""A base behind an OpenAI-compatible API. opening.py makes it from checked arguments.

One draft is one request. sent.py says what travels, payload.py builds the request, connection.py sends it, retry.py
sends it again where that helps; streaming.py reads the answer, in one piece or as it arrives, and recut.py says where
its tokens stop being those that a later request would send. single.py asks about tokens by name.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from blackbox_proxy.api.meter import Meter, sent_tokens
from blackbox_proxy.api.native import native_answer, own_route
from blackbox_proxy.api.payload import draws_what_it_shows, request
from blackbox_proxy.api.recut import recut_of, until_recut
from blackbox_proxy.api.sent import Sent, Settings, can_continue, carried, check, prompt_length
from blackbox_proxy.api.streaming import Incremental, parse, reader_of, usage_of
from blackbox_proxy.api.tokenizer import Found
from blackbox_proxy.base.single import OneToken
from blackbox_proxy.dialects.table import PROBED
from blackbox_proxy.errors import (
    BadRequest,
    BadResponse,
    BaseError,
    ConnectionFailed,
    InputError,
    Misspelled,
    NoLogprobs,
)
from blackbox_proxy.protocols import Abilities, Ask
from blackbox_proxy.text.identity import spelling_identity
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.transport.address import shown_url
from blackbox_proxy.transport.connection import ENDED, Connection, Progress
from blackbox_proxy.transport.failures import decode_body, named_limit, refuses_streams
from blackbox_proxy.transport.limits import Admits, Limiter
from blackbox_proxy.transport.retry import note_break, with_retries
from blackbox_proxy.types import Draft, Prefix, Prompt, Usage

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _InOnePiece:
    """The JSON of an answer that came in one piece where a stream was asked for."""

    body: object


class OpenAIBase(OneToken):
    """A `Base` that asks an OpenAI-compatible server. Made by `open_base`, which checks what is given here.

    `vocabulary` None: tokens are known by bytes or text only, and prefixes travel as text. found: where it is from,
    if it was not given. One connection pool per running event loop, so that a base can be used from several
    `asyncio.run` in turn.
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
        max_retry_seconds: float = 600.0,
        may_lower_k: bool = False,
        limiter: Admits | None = None,
        found: Found | None = None,
    ) -> None:
        self.settings = settings
        self._found = found or Found()
        self.limiter: Admits = limiter or Limiter()
        self._may_lower_k = may_lower_k
        self._asked_k = settings.top_logprobs  # before a server's limit lowered it
        self._query = hashlib.sha256(urlsplit(base_url).query.encode()).hexdigest()[:16]
        self.url = shown_url(base_url)
        self._context = context
        self._timeout = timeout
        self._max_attempts = max_attempts
        self._max_retry_seconds = max_retry_seconds
        self._sleep = asyncio.sleep
        self._streams = True  # as far as known
        self._connection = Connection(
            settings.api,
            settings.model,
            self.url,
            base_url=base_url,
            key=api_key,
            timeout=timeout,
            limiter=self.limiter,
            key_header=settings.dialect.key_header,
            native=own_route(base_url, settings.dialect.native),
        )

    def __repr__(self) -> str:
        settings = self.settings
        dialect = settings.dialect
        probed = f", {dialect.evidence}" if dialect.evidence.startswith(PROBED) else ""
        return f"OpenAIBase({settings.model!r}, {settings.api} at {self.url}, dialect {dialect.name!r}{probed})"

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

    @property
    def abilities(self) -> Abilities:
        """By the dialect, the caller's `extra_body`, and what the server has done so far."""
        dialect = self.settings.dialect
        streams = dialect.streams and self._streams
        scores = self.settings.api == "completions" and dialect.echo is not None
        return Abilities(
            streams=streams,
            scores=scores,
            streams_scored=streams and scores and dialect.echo_streams,
            draws=draws_what_it_shows(self.settings),
            reveals=self._reveals(scores),
            biases=0 if self.settings.vocabulary is None else dialect.bias_keys,
        )

    def _reveals(self, scores: bool) -> int:
        by_id = self.settings.dialect.named is not None and self.settings.vocabulary is not None
        return self.settings.dialect.named_limit if by_id else int(scores)

    @property
    def identity(self) -> Mapping[str, object] | None:
        """Server, model, and how it is asked. None where a function renders the prompt: what it does cannot be told.

        The key is no part of it, nor is a user or password in the URL; of its query and of what the caller adds to
        every request, digests: they are only compared, and may hold secrets.
        """
        settings, dialect = self.settings, self.settings.dialect
        vocabulary, rendering = settings.vocabulary, settings.rendering
        if callable(rendering):
            return None
        prefill = dialect.prefill
        return {
            "url": self.url.rstrip("/"),
            "query": self._query,
            "model": settings.model,
            "api": settings.api,
            "dialect": dialect.name,
            "prefix": dialect.prefix,
            "prefill": None if prefill is None else [dict(prefill.body), dict(prefill.message), prefill.keeps_space],
            "fields": [dict(dialect.ids_out), dict(dialect.extra_body), _digests(settings.extra_body)],
            "reads": [dialect.native, dialect.hides_parts, dialect.shows_end],
            "top_logprobs": self._asked_k,
            "or_fewer": self._may_lower_k,
            "rendering": rendering,
            "tokenizer": None if vocabulary is None else spelling_identity(vocabulary, rendering),
            **({"trusts_drafts": True} if vocabulary is None and settings.trusts_drafts else {}),
        }

    async def draft(self, ask: Ask) -> Draft:
        """The server's own continuation: at most n positions, in one request.

        `usage.api_calls` counts requests answered with 200 (so 1 here), `usage.retries` the failed ones before it.
        Raises BaseError and InputError; nothing of openai or httpx2 gets out, their exceptions are the `__cause__`.
        """
        sent = self._sent(ask)
        if sent is None:
            return Draft(())
        body, settings, retries = await self._asked(
            lambda settings: request(sent, settings), lambda arguments, _: self._answer(arguments)
        )
        try:
            draft = self._read(body, sent, settings, Usage(retries=retries))
        except (NoLogprobs, BadResponse) as error:
            if not self._hides(ask) or isinstance(error, Misspelled):
                raise
            return await self._brought_out(ask.prefix, usage_of(body) + Usage(retries=retries), error)
        if self._hides(ask) and not draft.positions and draft.finish is None:
            return await self._brought_out(ask.prefix, draft.usage)
        return draft

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        """The same in parts, as the server writes; closing the generator closes the connection, so that it stops.

        Failures before the first position are repeated like those of `draft`, later ones (a stall longer than the
        timeout is one) end the draft without a finish and count as a retry. A server that turns out not to stream log
        probabilities is asked again without streaming, and `abilities.streams` is false from then on.

        Prompt tokens are those that the API reports; before it does, those counted here, and where the tokenizer is
        unknown a quarter of the bytes sent. The last part corrects what was counted by what was reported.
        """
        abilities = self.abilities
        if not (abilities.streams_scored if ask.given else abilities.streams):
            yield await self.draft(ask)
            return
        sent = self._sent(ask)
        if sent is None:
            yield Draft(())
            return
        meter = Meter(lambda: sent_tokens(sent, self.settings))
        try:
            (first, rest, reader), settings, retries = await self._asked(
                lambda settings: request(sent, settings, stream=True),
                lambda arguments, settings: self._begin(arguments, reader_of(sent, settings)),
            )
        except (NoLogprobs, BadResponse, BadRequest) as error:
            yield await self._not_streamed(ask, error, meter)
            return
        recut, last, more = recut_of(sent, settings), Draft(()), Usage(retries=retries)
        part: Draft | _InOnePiece | None = first
        positions = 0
        async with aclosing(rest):
            if isinstance(first, _InOnePiece):
                draft = self._read(first.body, sent, settings, more)
                self._streams = False
                yield draft
                return
            while isinstance(part, Draft):
                kept = until_recut(part, recut)
                last = Draft((), kept.finish, reason=kept.reason)
                if kept.positions:
                    usage = meter.part(len(kept.positions) - kept.given, reader.usage) + more
                    yield replace(kept, finish=None, reason=None, usage=usage)
                    more = Usage()
                    positions += len(kept.positions)
                if kept is not part:
                    break
                try:
                    part = await anext(rest, None)
                except BaseError as error:
                    if isinstance(error, (BadResponse, NoLogprobs)) and not error.retryable:
                        raise  # it has arrived, and asking again would buy the same
                    note_break(error, positions)
                    more += Usage(retries=1)
                    break
        if self._hides(ask) and not positions and last.finish is None:
            yield await self._brought_out(ask.prefix, meter.last(reader.usage) + more)
        else:
            yield replace(last, usage=meter.last(reader.usage) + more)

    async def _not_streamed(self, ask: Ask, error: BaseError, meter: Meter) -> Draft:
        """The draft where a stream failed before its first position. Raises the error where nothing else helps."""
        # Where parts of characters are held back, what is missing is one. But a chat that repeats its prefill begins
        # with text alone, too: a whole answer tells.
        hidden = self._hides(ask) and not isinstance(error, BadRequest | Misspelled) and not error.retryable
        if hidden and not (ask.prefix.tokens and self.settings.api == "chat"):
            return await self._brought_out(ask.prefix, meter.last(None), error)
        refused = isinstance(error, BadRequest) and not refuses_streams(error)
        if not hidden and (isinstance(error, BadResponse) or refused):
            raise error
        self._streams = hidden
        lost = Usage(retries=1) if isinstance(error, BadRequest) else meter.last(None)
        draft = await self.draft(ask)
        return replace(draft, usage=draft.usage + lost)

    # -- what asks and what is read -------------------------------------------------------------------------------

    def _sent(self, ask: Ask) -> Sent | None:
        if ask.given and not self.abilities.scores:
            raise InputError(
                f"the {self.settings.dialect.name!r} dialect's {self.settings.api} API does not score given text",
                hint='Of the servers known, those of dialect="vllm" and "host" do, through api="completions".',
            )
        return carried(ask, self.settings)

    async def _asked(
        self,
        build: Callable[[Settings], dict[str, Any]],
        send: Callable[[dict[str, Any], Settings], Awaitable[_T]],
    ) -> tuple[_T, Settings, int]:
        """What `send` returns, the settings that it was asked with, and how many requests failed before.

        Where the caller left k open, a server that names a lower limit is asked again with that.
        """
        refused = 0
        while True:
            settings = self.settings
            arguments = build(settings)
            try:
                answer, retries = await with_retries(
                    lambda arguments=arguments, settings=settings: send(arguments, settings),  # type: ignore[misc]
                    max_attempts=self._max_attempts,
                    max_seconds=self._max_retry_seconds,
                    sleep=self._sleep,
                )
                return answer, settings, refused + retries
            except Misspelled as error:
                self._found.doubts(error)
                raise
            except BadRequest as error:
                limit = named_limit(str(error), settings.top_logprobs) if self._may_lower_k else None
                if limit is None:
                    self._found.doubts(error)
                    raise
                refused += 1
                self.settings = replace(self.settings, top_logprobs=limit)

    async def _answer(self, arguments: dict[str, Any]) -> object:
        """A whole answer's JSON."""
        body = decode_body(await self._connection.send(arguments), self.url)
        return body if self.settings.dialect.native is None else native_answer(body, arguments)

    def _read(self, body: object, sent: Sent, settings: Settings, more: Usage) -> Draft:
        try:
            draft = parse(body, reader_of(sent, settings))
            self._found.check(draft)
        except Misspelled as error:
            self._found.doubts(error)
            raise
        return replace(until_recut(draft, recut_of(sent, settings)), usage=draft.usage + more)

    async def _begin(
        self, arguments: dict[str, Any], reader: Incremental
    ) -> tuple[Draft | _InOnePiece, AsyncGenerator[Draft | _InOnePiece, None], Incremental]:
        """A stream read up to its first position (or to its end), the rest of it, and its reader."""
        rest = self._parts(arguments, reader)
        return await anext(rest), rest, reader

    async def _parts(self, arguments: dict[str, Any], reader: Incremental) -> AsyncGenerator[Draft | _InOnePiece, None]:
        """The positions as they arrive, and at last a part with the finish; or an answer in one piece."""
        async with self._connection.open(arguments) as answer:
            if not answer.streams:
                yield _InOnePiece(decode_body(await answer.body(), self.url))
                return
            try:
                progress = Progress(min(self._timeout, self._max_retry_seconds))
                while (chunk := await answer.next_of(progress)) is not ENDED:
                    part = reader.feed(chunk)
                    if reader.unscored:
                        raise NoLogprobs("the API streams text without log probabilities")
                    if part.positions:
                        self._found.check(part)
                        progress.made()
                        yield part
                        progress.made()  # what was made of it took its own time
                    if reader.done:
                        break
            except BaseError as error:
                if not (error.retryable and reader.complete):
                    raise
            if not (reader.complete or reader.done or (answer.finished and reader.begun)):
                raise ConnectionFailed(f"{self.url} ended its answer early", hint="Try again.")
            yield reader.finish()

    async def aclose(self) -> None:
        """Close the connections of this event loop, and of others that still run. The base can be used again."""
        await self._connection.aclose()


def _digests(fields: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
        for name, value in fields.items()
    }
