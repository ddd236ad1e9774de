"""What is asked of a server one token at a time: named tokens, a choice under a bias, what it holds back.

`OneToken` is the part of `OpenAIBase` that asks so; naming.py says what the requests and answers mean.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from blackbox_proxy.api.naming import (
    BIAS_LIMIT,
    from_draft,
    given_logprobs,
    has_logprobs,
    ids_of,
    in_requests,
    logit_bias,
    text_only,
    without_logprobs,
)
from blackbox_proxy.api.payload import request
from blackbox_proxy.api.sent import Settings, carried
from blackbox_proxy.api.streaming import Incremental, parse, repeated_of
from blackbox_proxy.errors import BadRequest, BadResponse, BaseError, InputError, NoLogprobs
from blackbox_proxy.protocols import Abilities, Ask, Revealed
from blackbox_proxy.types import Draft, Prefix, Token, Usage

_LETTER = "a"  # text that is whole characters in any vocabulary
_T = TypeVar("_T")


class OneToken(ABC):
    """How a base asks for one token with further fields; sending and drafting are its own."""

    settings: Settings
    _shows = True  # log probabilities, as far as known

    @property
    @abstractmethod
    def abilities(self) -> Abilities: ...

    @abstractmethod
    async def draft(self, ask: Ask) -> Draft: ...

    @abstractmethod
    async def _asked(
        self,
        build: Callable[[Settings], dict[str, Any]],
        send: Callable[[dict[str, Any], Settings], Awaitable[_T]],
    ) -> tuple[_T, Settings, int]:
        """What `send` returns, the settings that it was asked with, and how many requests failed before."""

    @abstractmethod
    async def _answer(self, arguments: dict[str, Any]) -> object:
        """A whole answer's JSON."""

    def _hides(self, ask: Ask) -> bool:
        """Whether the server may have written what it does not show."""
        return self.settings.dialect.hides_parts and not ask.given

    async def _brought_out(self, prefix: Prefix, spent: Usage, hidden: BaseError | None = None) -> Draft:
        """The candidates at a place where the server holds back the token it wrote, since it ends inside a character.

        A bias makes it write another, which it shows, and with it the candidates as they are without the bias. The
        likeliest then stands for what it wrote. `hidden` is raised where it shows none even so.
        """
        try:
            draft = await self._one(Ask(prefix, 1), {"logit_bias": {_LETTER: BIAS_LIMIT}}, self.settings.top_logprobs)
        except (NoLogprobs, BadResponse) as error:
            raise hidden or error from None
        shown = [replace(p, token=p.tokens[0], logprob=float(p.logprobs[0])) for p in draft.positions]
        return Draft(tuple(shown), None, spent + draft.usage, cut=True)

    async def reveal(self, prefix: Prefix, tokens: Sequence[Token]) -> Revealed:
        """log q of tokens by name: their ids in one request where the server takes them, else each given as text to
        score, a request each, all at once; of the end of text only ids tell. Raises BaseError and InputError.
        """
        reveals, dialect, vocabulary = self.abilities.reveals, self.settings.dialect, self.settings.vocabulary
        if reveals == 0:
            raise InputError(
                f"the {dialect.name!r} dialect's {self.settings.api} API tells nothing about tokens it does not show",
                hint='Estimate their probability: tail="backoff".',
            )
        if dialect.named is None or vocabulary is None:
            asked = [
                self.draft(Ask(prefix, 1, given=[token])) if token.bytes and not token.end else _nothing()
                for token in tokens
            ]
            drafts = await asyncio.gather(*asked)
            return Revealed(given_logprobs(tokens, drafts), sum((draft.usage for draft in drafts), Usage()))
        told, usage = [np.empty(0)], Usage()
        for some in in_requests(tokens, vocabulary, dialect.named_limit):
            ids = [index for token in some for index in ids_of(token, vocabulary)]
            draft = await self._one(Ask(prefix, 1), {dialect.named: ids}, len(ids) + 1)
            told.append(from_draft(some, draft, vocabulary))
            usage += draft.usage
        return Revealed(np.concatenate(told), usage)

    async def steer(
        self,
        prefix: Prefix,
        bias: Mapping[Token, float],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Draft:
        """One token, which the server chooses under a `logit_bias`. Where it gives no log probabilities, the token is
        known by its text only. Raises BaseError and InputError.
        """
        settings = self.settings
        fields = {"logit_bias": logit_bias(bias, settings.vocabulary, self.abilities.biases)}
        return await self._one(Ask(prefix, 1, temperature, seed), fields, 1, top_p=top_p, bare=True)

    async def _one(
        self, ask: Ask, fields: Mapping[str, Any], k: int, *, top_p: float = 1.0, bare: bool = False
    ) -> Draft:
        """One token in one request with further fields; bare: log probabilities are welcome, not needed."""
        sent = carried(ask, self.settings)
        assert sent is not None  # nothing is given

        def build(settings: Settings) -> dict[str, Any]:
            arguments = {**request(sent, settings, fields=fields), "top_p": top_p}
            return without_logprobs(arguments) if bare and not self._shows else arguments

        try:
            body, settings, retries = await self._asked(build, lambda arguments, _: self._answer(arguments))
        except BadRequest as error:
            if not (bare and self._shows and "logprobs" in str(error)):
                raise
            self._shows = False
            return await self._one(ask, fields, k, top_p=top_p, bare=True)
        if bare and not has_logprobs(body):
            draft = text_only(body, settings.vocabulary)
        else:
            begun = repeated_of(sent.prompt)
            reader = Incremental(1, k, settings.vocabulary, listed=False, repeated=begun, writing=settings.writing)
            draft = parse(body, reader)
        return replace(draft, usage=draft.usage + Usage(retries=retries))


async def _nothing() -> Draft:
    return Draft(())
