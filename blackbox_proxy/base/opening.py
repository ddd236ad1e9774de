"""Opening a base behind an OpenAI-compatible API: everything is checked before anything is sent."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any, get_args
from urllib.parse import urlsplit

from blackbox_proxy.api.payload import RESERVED
from blackbox_proxy.api.sent import Settings
from blackbox_proxy.api.tokenizer import Found, find_tokenizer
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.dialects.findings import Findings, base_dialect, load, saved
from blackbox_proxy.dialects.guessing import AUTO, dialect_of, located
from blackbox_proxy.dialects.table import PROBED, Api, Dialect
from blackbox_proxy.errors import InputError
from blackbox_proxy.secrets import keep_secrets_of
from blackbox_proxy.text.spelling import vocabulary_of
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.transport.address import shown_url
from blackbox_proxy.transport.connection import NO_KEY
from blackbox_proxy.transport.limits import Admits
from blackbox_proxy.types import Rendering

_log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"


def open_base(
    model: str,
    *,
    api: Api = "completions",
    base_url: str | None = None,
    api_key: str | None = None,
    dialect: str | Dialect = "auto",
    tokenizer: str | os.PathLike[str] | Vocabulary | None = AUTO,
    top_logprobs: int | None = None,
    rendering: Rendering = "raw",
    context: int | None = None,
    timeout: float = 60.0,
    max_attempts: int = 5,
    max_retry_seconds: float = 600.0,
    extra_body: Mapping[str, Any] | None = None,
    limiter: Admits | None = None,
    probe: bool | str | os.PathLike[str] | Findings = True,
    trust_drafts: bool = False,
) -> OpenAIBase:
    """A base behind an OpenAI-compatible API. Sends nothing, but for free questions about the tokenizer where that is
    "auto": their answers are waited for, ten seconds at most.

    model: the name the server knows it by. api: "completions" (continues any text) or "chat". base_url: the API's root,
    usually ending in /v1; else OPENAI_BASE_URL, else that of the dialect's service, else OpenAI's own. api_key: else
    the environment variable that the dialect names, mostly OPENAI_API_KEY; own servers may need none. dialect:
    what kind of server it is, a name in `DIALECTS` or a `Dialect` of one's own; "auto" knows the services by their URLs
    and takes any other server for one that does only what OpenAI's API does ("openai").
    tokenizer: how the model spells: a tiktoken encoding ("cl100k_base"), a Hugging Face folder or hub id, or a
    `Vocabulary`; None where it is unknown. With it tokens have ids, and prefixes travel as ids where the server takes
    them. "auto" takes the one that the server names, if that is on this machine and cuts texts as the server does, and
    of OpenAI's own service that of tiktoken's table; it is unknown otherwise (the logger of api/tokenizer.py says what
    it is). top_logprobs: candidates per position; by default as many as the API gives: its dialect's usual number,
    lowered where the server refuses that and names its limit. rendering: how a completions model is shown a prompt (a
    chat API renders by itself). context: the window in tokens. timeout: seconds without a byte from the server, after
    which a request has failed. max_attempts: requests per draft, retries included; max_retry_seconds: after so long no
    further one is begun, and one that has brought nothing for so long is given up. extra_body: further fields of
    every request. limiter: requests and tokens per minute and requests at a time, shared by all bases that are given
    the same `Limiter`; by default what the API's headers say.
    probe: True takes what `probe` found out about this URL, model and API, if that was kept and dialect is "auto";
    False does not; a file of findings, or `Findings`, are taken in any case.
    trust_drafts: where the tokenizer is unknown and prefixes travel as text, take a draft as far as it goes, also where
    the server could cut its text otherwise once it is sent anew. That is fewer requests, and a text that can depend on
    how it was asked for.

    Raises InputError, and ModelUnavailable if the tokenizer cannot be loaded.
    """
    if not isinstance(model, str) or not model:
        raise InputError("a base needs the name of its model", hint="The server lists its models under /v1/models.")
    if api not in get_args(Api):
        raise InputError(f"unknown api {api!r}", hint='Use "completions" or "chat".')
    spoken = dialect if isinstance(dialect, Dialect) else dialect_of(dialect, given_url(base_url))
    url = located(checked_url(given_url(base_url) or spoken.home or OPENAI_URL), spoken, model)
    spoken = _as_found(probe, spoken, dialect, url, model, api)
    if api not in spoken.apis:
        raise InputError(
            f"the {spoken.name!r} dialect gives no log probabilities through its {api} API",
            hint=f'Use api="{spoken.apis[0]}".',
        )
    if api == "chat" and callable(rendering):
        raise InputError(
            "a chat API renders its prompts by itself", hint='Leave out rendering, or use api="completions".'
        )
    if not callable(rendering) and rendering not in ("raw", "chat"):
        raise InputError(f"unknown rendering {rendering!r}", hint='Use "raw", "chat" or a function.')
    if (context is not None and context < 1) or max_attempts < 1 or not timeout > 0 or not max_retry_seconds > 0:
        raise InputError("context, timeout, max_attempts and max_retry_seconds must be positive")
    key = key_for(api_key, url, spoken, url_given=base_url is not None)
    extra = _checked_extra(extra_body or {})
    k = _checked_k(top_logprobs, api, spoken)
    if isinstance(tokenizer, str) and tokenizer == AUTO:
        found = find_tokenizer(model, url, key, spoken, named=_named(dialect), timeout=timeout)
    else:
        found = Found(vocabulary_of(tokenizer))
    settings = Settings(
        model,
        api,
        spoken,
        k,
        found.vocabulary,
        rendering,
        extra,
        trust_drafts,
    )
    return OpenAIBase(
        settings,
        base_url=url,
        api_key=key,
        context=context,
        timeout=timeout,
        max_attempts=max_attempts,
        max_retry_seconds=max_retry_seconds,
        may_lower_k=top_logprobs is None,
        limiter=limiter,
        found=found,
    )


def _named(dialect: str | Dialect) -> str:
    return dialect.name if isinstance(dialect, Dialect) else dialect


def _as_found(
    probe: bool | str | os.PathLike[str] | Findings,
    spoken: Dialect,
    given: str | Dialect,
    url: str,
    model: str,
    api: Api,
) -> Dialect:
    """The dialect as the endpoint was found to speak it. What the caller names is taken as it is."""
    if isinstance(probe, bool):
        found = saved(shown_url(url), model, api) if probe and given == AUTO else None
    elif given != AUTO:
        raise InputError("findings and a dialect say the same thing twice", hint="Leave out dialect=… or probe=….")
    else:
        found = probe if isinstance(probe, Findings) else load(probe)
        asked = (shown_url(url).rstrip("/"), model, api)
        if asked != (found.url.rstrip("/"), found.model, found.api):
            raise InputError(
                f"the findings are about {found.api} of {found.model!r} at {found.url}",
                hint="Probe this endpoint, or leave out probe=….",
            )
    if found is None:
        return spoken
    spoken = found.onto(base_dialect(found))
    _log.info("%s of %r at %s: dialect %r, %s", api, model, found.url, spoken.name, spoken.evidence)
    return spoken


def _checked_k(k: int | None, api: Api, dialect: Dialect) -> int:
    limit = dialect.limit(api)
    if k is None:
        return dialect.default_k(api)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"top_logprobs must be a whole number of at least 1, not {k!r}")
    if limit is not None and k > limit:
        raise InputError(
            f"top_logprobs is {k}, but the {dialect.name!r} dialect's {api} API gives at most {limit}",
            hint=f"Use {limit} or fewer; the hidden tail is estimated. If this server gives more, "
            + ("probe it again." if dialect.evidence.startswith(PROBED) else "name its dialect."),
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
    keep_secrets_of(extra)
    return dict(extra)


def checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InputError(f"base_url is not a URL: {shown_url(url)!r}", hint="It looks like http://127.0.0.1:8000/v1.")
    if parts.path.rstrip("/").endswith("/completions"):
        raise InputError(
            f"base_url names one route of the API: {shown_url(url)!r}",
            hint="Give its root, such as http://host:8000/v1.",
        )
    return url


def given_url(given: str | None) -> str | None:
    return given or os.environ.get("OPENAI_BASE_URL") or None


def key_for(given: str | None, url: str, dialect: Dialect, *, url_given: bool) -> str:
    key = given or os.environ.get(dialect.key_variable) or ""
    if not key and not url_given and os.environ.get("OPENAI_BASE_URL"):
        key = os.environ.get("OPENAI_API_KEY") or ""  # set together with that URL, so it is for whoever is there
    key = key.strip()
    host = urlsplit(url).hostname
    service = next((home for home in (OPENAI_URL, dialect.home) if home and urlsplit(home).hostname == host), None)
    if not key and service is not None and service.startswith("https:"):
        raise InputError(
            f"{'OpenAI' if service == OPENAI_URL else urlsplit(service).hostname}'s API needs a key, and there is none",
            hint=f"Set the environment variable {dialect.key_variable}, or pass api_key=…; for another server, pass "
            "base_url=….",
        )
    if not key.isascii() or not key.isprintable():
        raise InputError(
            "the API key holds characters that no key has", hint=f"Check {dialect.key_variable} or api_key=…."
        )
    return key or NO_KEY
