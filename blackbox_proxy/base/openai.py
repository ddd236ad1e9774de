"""A base behind an OpenAI-compatible API. opening.py makes it from checked arguments.

One draft is one request: payload.py builds it (given.py, where it has given text), connection.py sends it, retry.py
sends it again where that helps, parse.py reads the answer, streaming.py one that arrives in parts, and recut.py says
where it stops being an answer to what will be asked next. single.py asks about tokens by name.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from blackbox_proxy.api.connection import NO_KEY, Connection, shown_url
from blackbox_proxy.api.echo import Plan, plan
from blackbox_proxy.api.limits import Limiter
from blackbox_proxy.api.meter import Meter, sent_tokens
from blackbox_proxy.api.native import native_answer
from blackbox_proxy.api.parse import decode_body, parse
from blackbox_proxy.api.payload import (
    Settings,
    as_text,
    can_continue,
    check,
    draws_what_it_shows,
    prompt_length,
    request,
)
from blackbox_proxy.api.positions import likeliest
from blackbox_proxy.api.recut import Recut, after_special, chat_opening, until_recut
from blackbox_proxy.api.retry import named_limit, note_break, refuses_streams, with_retries
from blackbox_proxy.api.streaming import Incremental, usage_of
from blackbox_proxy.base.identity import spelling_identity
from blackbox_proxy.base.single import OneToken
from blackbox_proxy.dialects.table import PROBED
from blackbox_proxy.errors import BadRequest, BadResponse, BaseError, ConnectionFailed, InputError, NoLogprobs
from blackbox_proxy.protocols import Abilities, Ask
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Prefix, Prompt, Usage

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Whole:
    """The JSON of an answer that came in one piece where a stream was asked for."""

    body: object


class OpenAIBase(OneToken):
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
        max_retry_seconds: float = 600.0,
        may_lower_k: bool = False,
        limiter: Limiter | None = None,
    ) -> None:
        self.settings = settings
        self.limiter = limiter or Limiter()
        self._may_lower_k = may_lower_k
        self._asked_k = settings.top_logprobs  # before a server's limit lowered it
        self._query = hashlib.sha256(urlsplit(base_url).query.encode()).hexdigest()[:16]
        self.url = shown_url(base_url)
        self._context = context
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
            secret=api_key != NO_KEY,
            timeout=timeout,
            limiter=self.limiter,
            key_header=settings.dialect.key_header,
            native=settings.dialect.native,
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

        The key is no part of it, nor is a user or password in the URL; of its query, a digest.
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
            "fields": [dict(dialect.ids_out), dict(dialect.extra_body), dict(settings.extra_body)],
            "reads": [dialect.native, dialect.hides_parts, dialect.shows_end],
            "top_logprobs": self._asked_k,
            "or_fewer": self._may_lower_k,
            "rendering": rendering,
            "tokenizer": None if vocabulary is None else spelling_identity(vocabulary, rendering),
        }

    async def draft(self, ask: Ask) -> Draft:
        """The server's own continuation: at most n positions, in one request.

        `usage.api_calls` counts requests answered with 200 (so 1 here), `usage.retries` the failed ones before it.
        Raises BaseError and InputError; nothing of openai or httpx2 gets out, their exceptions are the `__cause__`.
        """
        asked = self._plan(ask)
        if asked is None:
            return Draft(())
        body, settings, retries = await self._asked(
            lambda settings: request(
                asked.prefix, settings, asked.n, temperature=ask.temperature, seed=ask.seed, fields=asked.fields
            ),
            lambda arguments, _: self._whole(arguments),
        )
        try:
            draft = self._read(body, asked, settings, Usage(retries=retries))
        except (NoLogprobs, BadResponse) as error:
            if not self._hides(ask.given):
                raise
            return await self._brought_out(ask.prefix, usage_of(body) + Usage(retries=retries), error)
        if self._hides(ask.given) and not draft.positions and draft.finish is None:
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
        asked = self._plan(ask)
        if asked is None:
            yield Draft(())
            return
        sent: dict[str, Any] = {}

        def build(settings: Settings) -> dict[str, Any]:
            sent.update(
                request(
                    asked.prefix,
                    settings,
                    asked.n,
                    temperature=ask.temperature,
                    seed=ask.seed,
                    stream=True,
                    fields=asked.fields,
                )
            )
            return dict(sent)

        meter = Meter(lambda: sent_tokens(asked.prefix, sent, self.settings))
        try:
            (first, rest, reader), settings, retries = await self._asked(
                build, lambda arguments, settings: self._begin(arguments, settings, asked)
            )
        except (NoLogprobs, BadResponse, BadRequest) as error:
            # Where parts of characters are held back, what is missing is one. But a chat that repeats its prefill
            # begins with text alone, too: a whole answer tells.
            hidden = self._hides(ask.given) and not isinstance(error, BadRequest) and not error.retryable
            if hidden and not (ask.prefix.tokens and self.settings.api == "chat"):
                yield await self._brought_out(ask.prefix, meter.last(None), error)
                return
            refused = isinstance(error, BadRequest) and not refuses_streams(error)
            if not hidden and (isinstance(error, BadResponse) or refused):
                raise
            self._streams = hidden
            lost = Usage(retries=1) if isinstance(error, BadRequest) else meter.last(None)
            draft = await self.draft(ask)
            yield replace(draft, usage=draft.usage + lost)
            return
        recut, finish, more = self._recut(asked), None, Usage(retries=retries)
        part: Draft | _Whole | None = first
        positions = 0
        async with aclosing(rest):
            if isinstance(first, _Whole):
                draft = self._read(first.body, asked, settings, more)
                self._streams = False
                yield draft
                return
            while isinstance(part, Draft):
                kept = until_recut(part, recut)
                finish = kept.finish
                if kept.positions:
                    usage = meter.part(len(kept.positions) - kept.given, reader.usage) + more
                    yield replace(kept, finish=None, usage=usage)
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
        if self._hides(ask.given) and not positions and finish is None:
            yield await self._brought_out(ask.prefix, meter.last(reader.usage) + more)
        else:
            yield Draft((), finish, meter.last(reader.usage) + more)

    # -- what asks and what is read -------------------------------------------------------------------------------

    def _plan(self, ask: Ask) -> Plan | None:
        if ask.given and not self.abilities.scores:
            raise InputError(
                f"the {self.settings.dialect.name!r} dialect's {self.settings.api} API does not score given text",
                hint='Of the servers known, those of dialect="vllm" and "host" do, through api="completions".',
            )
        return plan(ask.prefix, ask.n, ask.given, self.settings)

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
            except BadRequest as error:
                limit = named_limit(str(error), settings.top_logprobs) if self._may_lower_k else None
                if limit is None:
                    raise
                refused += 1
                self.settings = replace(self.settings, top_logprobs=limit)

    async def _whole(self, arguments: dict[str, Any]) -> object:
        """A whole answer's JSON."""
        body = decode_body(await self._connection.send(arguments), self.url)
        return body if self.settings.dialect.native is None else native_answer(body, arguments)

    def _read(self, body: object, asked: Plan, settings: Settings, more: Usage) -> Draft:
        draft = parse(
            body,
            n=asked.n,
            top_logprobs=settings.top_logprobs,
            vocabulary=settings.vocabulary,
            echo=asked.echo(settings),
            shows_end=settings.dialect.shows_end,
            beyond=settings.dialect.beyond,
        )
        kept = tuple(likeliest(position, settings.kept) for position in draft.positions)
        return replace(until_recut(replace(draft, positions=kept), self._recut(asked)), usage=draft.usage + more)

    def _recut(self, asked: Plan) -> Recut | None:
        """Where a later request sends text that the server will cut anew, what watches for that; else None."""
        settings, prefix, vocabulary = self.settings, asked.before, self.settings.vocabulary
        if vocabulary is None or asked.way != "text" or (settings.api == "chat" and settings.dialect.prefill is None):
            return None
        if settings.api == "completions":
            return Recut(after_special(as_text(prefix, settings), vocabulary), vocabulary)
        return Recut(chat_opening(prefix.prompt, vocabulary) + prefix.generated, vocabulary)

    async def _begin(
        self, arguments: dict[str, Any], settings: Settings, asked: Plan
    ) -> tuple[Draft | _Whole, AsyncGenerator[Draft | _Whole, None], Incremental]:
        """A stream read up to its first position (or to its end), the rest of it, and its reader."""
        reader = Incremental(
            asked.n,
            settings.top_logprobs,
            settings.vocabulary,
            asked.echo(settings),
            shows_end=settings.dialect.shows_end,
            beyond=settings.dialect.beyond,
        )
        rest = self._parts(arguments, reader, settings.kept)
        return await anext(rest), rest, reader

    async def _parts(
        self, arguments: dict[str, Any], reader: Incremental, k: int
    ) -> AsyncGenerator[Draft | _Whole, None]:
        """The positions as they arrive, with their k likeliest candidates, and at last a part with the finish; or an
        answer in one piece.
        """
        async with self._connection.open(arguments) as answer:
            if not answer.streams:
                yield _Whole(decode_body(await answer.body(), self.url))
                return
            try:
                async for chunk in answer:
                    before = reader.given
                    positions = reader.feed(chunk)
                    if reader.unscored:
                        raise NoLogprobs("the API streams text without log probabilities")
                    if positions:
                        kept = tuple(likeliest(position, k) for position in positions)
                        yield Draft(kept, given=reader.given - before)
                    if reader.done:
                        break
            except BaseError as error:
                if not (error.retryable and reader.complete):
                    raise
            if not (reader.complete or reader.done):
                raise ConnectionFailed(f"{self.url} ended its answer early", hint="Try again.")
            last, finish = reader.finish()
            yield Draft(tuple(likeliest(position, k) for position in last), finish)

    async def aclose(self) -> None:
        """Close the connections of this event loop, and of others that still run. The base can be used again."""
        await self._connection.aclose()
