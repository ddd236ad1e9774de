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
    from_position,
    given_logprobs,
    has_logprobs,
    ids_of,
    in_requests,
    logit_bias,
    none_told,
    text_only,
    without_logprobs,
)
from blackbox_proxy.api.parse import parse
from blackbox_proxy.api.payload import Settings, request
from blackbox_proxy.errors import BadRequest, BadResponse, BaseError, InputError, NoLogprobs
from blackbox_proxy.protocols import Abilities, Ask, Revealed
from blackbox_proxy.types import Draft, Prefix, Token, Usage

_WHOLE = "a"  # text that is whole characters in any vocabulary
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
    async def _whole(self, arguments: dict[str, Any]) -> object:
        """A whole answer's JSON."""

    def _hides(self, given: Sequence[Token]) -> bool:
        return self.settings.dialect.hides_parts and not given

    async def _brought_out(self, prefix: Prefix, spent: Usage, hidden: BaseError | None = None) -> Draft:
        """The candidates at a place where the server holds back the token it wrote, since it ends inside a character.

        A bias makes it write another, which it shows, and with it the candidates as they are without the bias. The
        likeliest then stands for what it wrote. `hidden` is raised where it shows none even so.
        """
        try:
            draft = await self._one(prefix, {"logit_bias": {_WHOLE: BIAS_LIMIT}}, self.settings.top_logprobs)
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
            draft = await self._one(prefix, {dialect.named: ids}, len(ids) + 1)
            told.append(from_position(some, draft.positions[0], vocabulary) if draft.positions else none_told(some))
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
        return await self._one(prefix, fields, 1, temperature=temperature, top_p=top_p, seed=seed, bare=True)

    async def _one(
        self,
        prefix: Prefix,
        fields: Mapping[str, Any],
        k: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        bare: bool = False,
    ) -> Draft:
        """One token in one request with further fields; bare: log probabilities are welcome, not needed."""

        def build(settings: Settings) -> dict[str, Any]:
            arguments = request(prefix, settings, 1, temperature=temperature, seed=seed, fields=fields)
            arguments["top_p"] = top_p
            return without_logprobs(arguments) if bare and not self._shows else arguments

        try:
            body, settings, retries = await self._asked(build, lambda arguments, _: self._whole(arguments))
        except BadRequest as error:
            if not (bare and self._shows and "logprobs" in str(error)):
                raise
            self._shows = False
            return await self._one(prefix, fields, k, temperature=temperature, top_p=top_p, seed=seed, bare=True)
        read = text_only if bare and not has_logprobs(body) else parse
        draft = read(body, n=1, top_logprobs=k, vocabulary=settings.vocabulary)
        return replace(draft, usage=draft.usage + Usage(retries=retries))


async def _nothing() -> Draft:
    return Draft(())
