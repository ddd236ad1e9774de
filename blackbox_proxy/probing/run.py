"""What an endpoint really does: a handful of cheap questions, each on its own.

Nothing is taken on trust: limits are asked for until they are refused, fields are sent and it is looked whether they
did anything, continuations are compared with the draft that they continue. A question that fails is a finding. What is
found lies in dialects/findings.py, what follows from it in verdict.py, how it is asked in client.py and read in
answers.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from blackbox_proxy.api.native import own_route
from blackbox_proxy.api.tokenizer import Found, find_tokenizer
from blackbox_proxy.background import apart
from blackbox_proxy.base.opening import OPENAI_URL, checked_url, given_url, key_for
from blackbox_proxy.dialects.findings import Findings
from blackbox_proxy.dialects.guessing import AUTO, by_models, by_url, dialect_of, located
from blackbox_proxy.dialects.table import DIALECTS, LIST, Api, Dialect
from blackbox_proxy.errors import (
    BadRequest,
    BadResponse,
    BlackboxError,
    BudgetReached,
    ConnectionFailed,
    InputError,
    ModelNotFound,
    ServerFailed,
)
from blackbox_proxy.probing.client import Asker, Noting, Purse, said
from blackbox_proxy.probing.inquiry import Inquiry, Most
from blackbox_proxy.probing.questions import ask_all, findings
from blackbox_proxy.text.spelling import vocabulary_of
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.transport.address import shown_url
from blackbox_proxy.transport.connection import Connection
from blackbox_proxy.transport.failures import decode_body, named_limit

MAX_CALLS = 40
_PATIENCE = 60.0  # seconds for an answer
_MANY = 1000  # candidates: more than any service is known to give
_LADDER = (20, 5, 2, 1)
_ODD = "Zürich, 東京 and 👍🏽"  # beside such text, tokens that are no whole characters are likely

Wanted = Literal["auto", "completions", "chat"]


def probe(model: str, **options: Any) -> Findings:
    """`aprobe` for who waits. May be called while an event loop runs in this thread, as in a notebook."""
    return apart(aprobe(model, **options))


async def aprobe(
    model: str,
    *,
    api: Wanted = "auto",
    base_url: str | None = None,
    api_key: str | None = None,
    dialect: str = AUTO,
    tokenizer: str | os.PathLike[str] | Vocabulary | None = AUTO,
    timeout: float = 60.0,  # noqa: ASYNC109 (of each request)
    max_calls: int = MAX_CALLS,
    max_attempts: int = 2,
    told: Callable[[str], None] | None = None,
) -> Findings:
    """Ask an endpoint what it does. Saves nothing; `findings.save` does.

    The arguments are those of `open_base`. api: "auto" takes completions where they give log probabilities, else chat.
    dialect: "auto" goes by the URL, else by what the server's list of models says it is, else asks as plainly as
    possible. tokenizer: with it more can be found out: whether ids are spelled truthfully, how the end shows; "auto"
    looks for it as `open_base` does.
    max_calls: requests at most; questions that are left then stay open. told: called with the name of each question.

    Raises InputError, and BaseError where the endpoint cannot be asked at all: wrong URL, key or model.
    """
    if not isinstance(model, str) or not model:
        raise InputError("a probe needs the name of a model", hint="The server lists its models under /v1/models.")
    if api not in get_args(Wanted):
        raise InputError(f"unknown api {api!r}", hint='Use "auto", "completions" or "chat".')
    if max_calls < 1 or max_attempts < 1 or not timeout > 0:
        raise InputError("max_calls, max_attempts and timeout must be positive")
    given = given_url(base_url)
    known = None if dialect == AUTO else dialect_of(dialect)
    known = known or (by_url(given) if given else None)
    spoken = known or DIALECTS["openai"]
    url = located(checked_url(given or spoken.home or OPENAI_URL), spoken, model)
    key = key_for(api_key, url, spoken, url_given=base_url is not None)
    found = await _tokenizer(tokenizer, model, url, key, spoken, named=dialect, timeout=timeout)
    endpoint = _Endpoint(model, url, key, found, timeout, Purse(max_calls), max_attempts)
    try:
        return await _probed(endpoint, api, known, told or (lambda name: None))
    finally:
        for connection in endpoint.connections:
            await connection.aclose()


async def _tokenizer(
    given: str | os.PathLike[str] | Vocabulary | None, model: str, url: str, key: str, spoken: Dialect, **how: Any
) -> Found:
    """The tokenizer that is given, or found. Raises ModelUnavailable."""
    if isinstance(given, str) and given == AUTO:
        return await asyncio.to_thread(find_tokenizer, model, url, key, spoken, **how)
    name = None if given is None or isinstance(given, Vocabulary) else os.fspath(given)
    return Found(vocabulary_of(given), name)


async def _probed(endpoint: _Endpoint, api: Wanted, known: Dialect | None, told: Callable[[str], None]) -> Findings:
    spoken = known or DIALECTS["openai"]
    models, refused = await _models(endpoint.asker("completions", spoken))
    claimed = by_models(models)
    spoken = known or claimed or replace(spoken, chat_length="max_tokens")  # what most servers understand
    tried = _Apis(endpoint, spoken, _names(models))
    chosen, most = await tried.choose(api)
    before, about = chosen.dialect, Inquiry(chosen, most, refused)
    about.found |= _about_models(models, endpoint.model) | {"claims": None if claimed is None else claimed.name}
    about.found["tokenizer"] = endpoint.tokenizer.name
    about.found["recognised"] = known is not None or claimed is not None
    await ask_all(about, told)
    await tried.other(chosen)
    return findings(about, before, tried.gives, endpoint.limiter.headers)


@dataclass
class _Endpoint:
    """What is probed, and how patiently. timeout: seconds."""

    model: str
    url: str
    key: str
    tokenizer: Found
    timeout: float
    purse: Purse
    max_attempts: int
    limiter: Noting = field(default_factory=Noting)
    connections: list[Connection] = field(default_factory=list)

    def asker(self, api: Api, spoken: Dialect) -> Asker:
        """Who asks one of its APIs. SGLang's own route has no chat."""
        if api == "chat":
            spoken = replace(spoken, native=None)
        where = shown_url(self.url)
        connection = Connection(
            api,
            self.model,
            where,
            base_url=self.url,
            key=self.key,
            timeout=self.timeout,
            limiter=self.limiter,
            key_header=spoken.key_header,
            native=own_route(self.url, spoken.native),
        )
        self.connections.append(connection)
        return Asker(
            connection,
            api,
            self.model,
            spoken,
            where,
            self.tokenizer.vocabulary,
            self.purse,
            self.max_attempts,
            min(_PATIENCE, 10 * self.timeout),
        )


async def _models(asker: Asker) -> tuple[object, dict[str, str]]:
    """The list of models, or why there is none. Raises ConnectionFailed."""
    try:
        return decode_body(await asker.in_time(lambda: asker.connection.free(LIST)), asker.url), {}
    except BlackboxError as error:
        if isinstance(error, ConnectionFailed):
            raise
        return None, {"list of models": said(error)}


def _entries(models: object) -> list[Mapping[str, Any]]:
    found = models.get("data") if isinstance(models, Mapping) else None
    return [entry for entry in found or () if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _names(models: object) -> list[str]:
    return [str(entry["id"]) for entry in _entries(models) if entry.get("id")]


def _about_models(models: object, model: str) -> dict[str, Any]:
    entries = _entries(models)
    if not entries:
        return {}
    own = next((entry for entry in entries if entry.get("id") == model), None)
    about = own or entries[0]
    owner, meta = about.get("owned_by"), about.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    window = own and next(
        (size for size in (own.get("max_model_len"), own.get("context_length"), meta.get("n_ctx")) if size), None
    )
    return {
        "listed": own is not None,
        "owner": owner if isinstance(owner, str) else None,
        "window": window if isinstance(window, int) else None,
    }


# -- which API --------------------------------------------------------------------------------------------------------


class _Apis:
    """The two APIs, and what each gives. names: of the models that the server lists."""

    def __init__(self, endpoint: _Endpoint, dialect: Dialect, names: Sequence[str]) -> None:
        self._endpoint = endpoint
        self._dialect = dialect
        self._order: list[Api] = [*dialect.apis, *(api for api in get_args(Api) if api not in dialect.apis)]
        self._order.sort(key=lambda api: api != "completions" and dialect.apis != ("chat",))
        self._names = names
        self.gives: dict[str, str] = {}

    async def choose(self, wanted: Wanted) -> tuple[Asker, Most]:
        """The API that is wanted, or the first that gives log probabilities, else the first that answers at all; and
        what is known of its k. Raises BaseError where none answers.
        """
        answered: list[tuple[Asker, Most]] = []
        failed: BlackboxError | None = None
        for api in self._order if wanted == "auto" else (wanted,):
            asker = self._endpoint.asker(api, self._dialect)
            try:
                most = await _most(asker)
            except (BadRequest, ModelNotFound, ServerFailed, BadResponse) as error:
                self.gives[api] = said(error)
                failed = failed or error
                continue
            self.gives[api] = "log probabilities" if most.k else "text only"
            if most.k:
                return asker, most
            answered.append((asker, most))
        if answered:
            return answered[0]
        assert failed is not None
        if isinstance(failed, ModelNotFound) and self._names:
            failed.hint = f"The server lists {', '.join(repr(name) for name in self._names[:5])}. {failed.hint}"
        raise failed

    async def other(self, chosen: Asker) -> None:
        """Whether the API that was not chosen is there, too: one request."""
        api: Api = "chat" if chosen.api == "completions" else "completions"
        if api in self.gives:
            return
        asker = self._endpoint.asker(api, self._dialect)
        try:
            answer = await asker.ask(_ODD, 1, 1)
            self.gives[api] = "log probabilities" if answer.rows else "text only"
        except BudgetReached:
            self.gives[api] = "not asked"
        except BlackboxError as error:
            self.gives[api] = said(error)


async def _most(asker: Asker) -> Most:
    """How many candidates the API gives at most. Raises BaseError."""
    try:
        answer = await asker.ask(_ODD, 1, _MANY)
    except BadRequest as refusal:
        return await _fewer(asker, named_limit(str(refusal), _MANY))
    count = len(answer.rows[0].shown) if answer.rows else 0
    return Most(min(count, _MANY), "open" if count >= _MANY else "silent", answer)


async def _fewer(asker: Asker, limit: int | None) -> Most:
    for k in dict.fromkeys((*(() if limit is None else (limit,)), *_LADDER)):
        try:
            answer = await asker.ask(_ODD, 1, k)
        except BadRequest:
            continue
        count = len(answer.rows[0].shown) if answer.rows else 0
        return Most(k if count else 0, "named" if k == limit else "tried", answer)
    answer = await asker.ask(_ODD, 1, None)  # no log probabilities at all?
    return Most(0, "tried", answer)
