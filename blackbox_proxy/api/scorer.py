"""What a model behind a completions API says after many texts at once, given as token ids: `Scorer`.

A base is asked to go on writing; here nothing is written. One request carries a list of prompts, one for each text, and
asks for one token of each with its k likeliest: vLLM finds what the texts share in its prefix cache and answers with
one row each. (Prompt log probabilities of the same texts cost a pass over all of each, and a row for every token.)

Ids that a server does not show are asked for by name (`logprob_token_ids`), where it does not know that by echoing the
texts with each id at the end (`prompt_logprobs` of the given tokens alone).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from blackbox_proxy.api.streaming import usage_of
from blackbox_proxy.errors import BadRequest, BadResponse, InputError
from blackbox_proxy.transport.address import shown_url
from blackbox_proxy.transport.connection import NO_KEY, Connection
from blackbox_proxy.transport.failures import decode_body, named_limit
from blackbox_proxy.transport.limits import Limiter
from blackbox_proxy.transport.retry import with_retries
from blackbox_proxy.types import Usage

Text = tuple[int, ...]


class Logprobs(NamedTuple):
    """Ids (c,), not all of them nor in any order, and their log probabilities, (c,) nats."""

    ids: NDArray[np.int32]
    values: NDArray[np.float32]


_PREFIX = "token_id:"  # and at most nine digits
_PROMPTS = 128  # of one request; as many as `host` takes by default
_NAMED = 128  # ids that one request may name
_MANY = 1_000_000  # more ids than any vocabulary has
_ROUNDING = 0.01  # how far above 0 rounding can lift a log probability
_MISSING = -9999.0  # what servers write for a probability of 0


class Scorer:
    """One model at one server. top_logprobs: the most ids it is asked to show, -1 for all; lowered to what the server
    allows, if that is at least `least`. Raises InputError; its coroutines BaseError and ContextTooLong.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str | None = None,
        top_logprobs: int,
        least: int = 1,
        timeout: float = 60.0,
        max_attempts: int = 5,
        max_retry_seconds: float = 600.0,
        limiter: Limiter | None = None,
    ) -> None:
        if max_attempts < 1 or not timeout > 0 or not max_retry_seconds > 0:
            raise InputError("timeout, max_attempts and max_retry_seconds must be positive")
        if urlsplit(base_url).scheme not in ("http", "https") or not urlsplit(base_url).hostname:
            raise InputError(f"{shown_url(base_url)!r} is not a URL", hint="It looks like http://127.0.0.1:8000/v1.")
        key = (api_key or "").strip() or NO_KEY
        if not key.isascii() or not key.isprintable():
            raise InputError("the API key holds characters that no key has", hint="Check it.")
        self.model = model
        self.url = shown_url(base_url)
        self.top_logprobs = top_logprobs
        self._least = least
        self._names = True  # as far as known
        self._max_attempts = max_attempts
        self._max_retry_seconds = max_retry_seconds
        self._connection = Connection(
            "completions",
            model,
            self.url,
            base_url=base_url,
            key=key,
            timeout=timeout,
            limiter=limiter or Limiter(),
        )

    async def after(self, texts: Sequence[Text]) -> tuple[list[Logprobs], Usage]:
        """The likeliest ids after each text."""
        while True:
            k = self.top_logprobs
            try:
                return await self._rows(texts, {"logprobs": k})
            except BadRequest as error:
                # Not every server knows -1; any has an opinion on a number that is too large.
                limit = _MANY if k == -1 else named_limit(str(error), k)
                if limit is None or limit < self._least:
                    raise
                self.top_logprobs = limit

    async def reveal(self, wanted: Mapping[Text, Collection[int]]) -> tuple[dict[Text, dict[int, float]], Usage]:
        """Text -> id -> log probability, of these ids at least."""
        if self._names:
            try:
                return await self._by_name(wanted)
            except BadRequest:
                self._names = False
        return await self._by_echo(wanted)

    async def cut(self, text: str) -> Text | None:
        """The ids that the server makes of a text; None where it does not tell."""
        choices, _ = await self._asked([text], {"max_tokens": 1, "return_token_ids": True})
        ids = choices[0].get("prompt_token_ids")
        return tuple(ids) if isinstance(ids, list) and all(isinstance(i, int) for i in ids) else None

    async def aclose(self) -> None:
        await self._connection.aclose()

    # -- requests -------------------------------------------------------------------------------------------------

    async def _rows(self, texts: Sequence[Text], fields: Mapping[str, Any]) -> tuple[list[Logprobs], Usage]:
        choices, usage = await self._asked(texts, {"max_tokens": 1, **fields})
        rows: list[Logprobs] = []
        for choice in choices:
            tops = _column(choice, "top_logprobs")
            if not tops or not isinstance(tops[0], Mapping):
                raise BadResponse("the server of the model shows no log probabilities", hint="")
            rows.append(_row(tops[0]))
        return rows, usage

    async def _by_name(self, wanted: Mapping[Text, Collection[int]]) -> tuple[dict[Text, dict[int, float]], Usage]:
        groups: list[tuple[list[Text], set[int]]] = []
        for text, ids in wanted.items():  # texts that want much the same share a request
            for part in _parts(sorted(ids), _NAMED):
                texts, union = groups[-1] if groups else ([], set[int]())
                if not groups or len(union | set(part)) > _NAMED:
                    texts, union = list[Text](), set[int]()
                    groups.append((texts, union))
                texts.append(text)
                union.update(part)
        answers = await asyncio.gather(
            *(self._rows(texts, {"logprobs": 1, "logprob_token_ids": sorted(ids)}) for texts, ids in groups)
        )
        found: dict[Text, dict[int, float]] = {text: {} for text in wanted}
        for (texts, ids), (rows, _) in zip(groups, answers, strict=True):
            for text, row in zip(texts, rows, strict=True):
                given = dict(zip(row.ids.tolist(), row.values.tolist(), strict=True))
                if not ids <= given.keys():  # a server that ignores the field shows something else
                    self._names = False
                    return await self._by_echo(wanted)
                found[text].update(given)
        return found, sum((usage for _, usage in answers), Usage())

    async def _by_echo(self, wanted: Mapping[Text, Collection[int]]) -> tuple[dict[Text, dict[int, float]], Usage]:
        paths = sorted({(*text, index) for text, ids in wanted.items() for index in ids})
        leaves = [path for path, after in zip(paths, [*paths[1:], ()], strict=True) if after[: len(path)] != path]
        fields = {"max_tokens": 0, "echo": True, "logprobs": 0}
        choices, usage = await self._asked(leaves, fields)
        found: dict[Text, dict[int, float]] = {text: {} for text in wanted}
        for leaf, choice in zip(leaves, choices, strict=True):
            own = _column(choice, "token_logprobs")
            if len(own) < len(leaf):
                raise BadResponse("the server of the model does not score the texts that it is given", hint="")
            for place in range(1, len(leaf)):
                row = found.get(leaf[:place])
                if row is not None and own[place] is not None:
                    row[leaf[place]] = _real(own[place])
        return found, usage

    async def _asked(
        self, prompts: Sequence[Text] | Sequence[str], fields: Mapping[str, Any]
    ) -> tuple[list[Mapping[str, Any]], Usage]:
        """A choice for each prompt, in order; in as many requests as it takes."""
        answers = await asyncio.gather(*(self._request(part, fields) for part in _parts(prompts, _PROMPTS)))
        return [choice for choices, _ in answers for choice in choices], sum((usage for _, usage in answers), Usage())

    async def _request(
        self, prompts: Sequence[Text] | Sequence[str], fields: Mapping[str, Any]
    ) -> tuple[list[Mapping[str, Any]], Usage]:
        standard = ("max_tokens", "echo", "logprobs")
        arguments: dict[str, Any] = {
            "model": self.model,
            "prompt": [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts],
            "temperature": 0.0,
            **{name: fields[name] for name in standard if name in fields},
            "extra_body": {
                "return_tokens_as_token_ids": True,
                **{name: value for name, value in fields.items() if name not in standard},
            },
        }

        async def call() -> object:
            return decode_body(await self._connection.send(arguments), self.url)

        body, retries = await with_retries(call, max_attempts=self._max_attempts, max_seconds=self._max_retry_seconds)
        choices = body.get("choices") if isinstance(body, Mapping) else None
        ordered = {choice.get("index"): choice for choice in (choices or ()) if isinstance(choice, Mapping)}
        if set(ordered) != set(range(len(prompts))):
            raise BadResponse(
                f"{self.url} answered {len(prompts)} prompts with {len(choices or ())} choices",
                hint="The server must take a list of prompts in one request.",
            )
        return [ordered[i] for i in range(len(prompts))], usage_of(body) + Usage(retries=retries)


def _parts(items: Sequence[Any], size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _column(choice: Mapping[str, Any], name: str) -> list[Any]:
    logprobs = choice.get("logprobs")
    column = logprobs.get(name) if isinstance(logprobs, Mapping) else None
    return column if isinstance(column, list) else []


def _row(tops: Mapping[str, Any]) -> Logprobs:
    """What stands in a dictionary of the likeliest tokens, which may be all of a vocabulary."""
    for key in tops:
        if not (key.startswith(_PREFIX) and key.isascii() and key[len(_PREFIX) :].isdecimal() and len(key) < 19):
            raise BadResponse(
                f"the server of the model names tokens by their text ({key[:40]!r}), not by their ids",
                hint="It must know return_tokens_as_token_ids, as vLLM does.",
            )
    values = list(tops.values())
    plain = set(map(type, values)) <= {float, int}
    real = np.array(values if plain else [_real(value) for value in values], dtype=np.float64)
    wrong = np.flatnonzero(~(real <= _ROUNDING))
    if len(wrong):
        raise _unreal(values[int(wrong[0])])
    real[real <= _MISSING] = -np.inf
    return Logprobs(np.array([int(key[len(_PREFIX) :]) for key in tops], dtype=np.int32), real.astype(np.float32))


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value <= _ROUNDING:
        raise _unreal(value)
    return float(value) if value > _MISSING else float("-inf")


def _unreal(value: object) -> BadResponse:
    return BadResponse(f"the server gives {str(value)[:40]!r} as a log probability", hint="")
