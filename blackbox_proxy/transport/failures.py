"""What can go wrong on the way to an API, in the words of `errors`.

`translated` turns every exception of openai-python and httpx2 into the one that says what to do, `error_in_body` an
error that came inside a 200, `truncated` a body that did not arrive whole (`decode_body` finds both).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx2
import openai

from blackbox_proxy.errors import (
    AccessDenied,
    BadRequest,
    BadResponse,
    BaseError,
    BlackboxError,
    ConnectionFailed,
    ContextTooLong,
    ModelNotFound,
    QuotaExhausted,
    RateLimited,
    ServerFailed,
)
from blackbox_proxy.secrets import take_out
from blackbox_proxy.transport.proxies import on_the_way

_TOO_LONG = (
    "context_length_exceeded",
    "exceed_context_size",
    "maximum context length",
    "maximum model length",
    "context window",
    "available context size",
)
_NO_MONEY = ("insufficient_quota", "billing_hard_limit", "exceeded your current quota", "insufficient balance")
_KEY_HINT = "Set the environment variable OPENAI_API_KEY, or pass api_key=…, and check the key's rights to this model."


def translated(error: Exception, *, model: str, url: str) -> BlackboxError:
    """The error of `errors` for one of openai-python or httpx2; the caller raises it from the original.

    model, url: what was asked, for the sentence. What is secret is taken out of what the server said in the original,
    too, because a traceback prints that as well.
    """
    take_out(error)
    own = _own(error)
    if own is not None:
        return own
    if isinstance(error, (openai.APITimeoutError, httpx2.TimeoutException)):
        return ConnectionFailed(
            f"{url} did not answer in time", hint="Try again, give a longer timeout=…, or ask for fewer tokens at once."
        )
    if isinstance(error, openai.APIStatusError):
        found = _named_status(error, model, url)
        said = _should_retry(error)
        if said is not None:
            found.retryable = said
        return found
    if isinstance(error, (openai.APIResponseValidationError, openai.LengthFinishReasonError)):
        return BadResponse(f"{url} answered something unexpected: {_cut(str(error))}", hint="Check base_url.")
    if isinstance(error, (openai.APIConnectionError, httpx2.HTTPError, httpx2.InvalidURL)):
        reason = str(error.__cause__ or "") or str(error) or type(error).__name__
        proxy = on_the_way(url)
        if proxy:
            return ConnectionFailed(
                f"no connection to {url} through {proxy}: {_cut(reason)}",
                hint="Check that proxy, base_url and the server; NO_PROXY names servers to ask without it.",
            )
        return ConnectionFailed(
            f"no connection to {url}: {_cut(reason)}", hint="Check base_url, that the server runs, and the network."
        )
    if type(error) is openai.APIError:
        return error_in_body(getattr(error, "body", None), url)
    return BaseError(f"the request to {url} failed: {_cut(str(error))}", hint="The cause is attached (__cause__).")


def _own(error: BaseException) -> BlackboxError | None:
    """The package's own error that the client wrapped: client.py and bounds.py raise inside it."""
    link: BaseException | None = error
    for _ in range(10):
        if link is None or isinstance(link, BlackboxError):
            return link
        link = link.__cause__
    return None


def _named_status(error: openai.APIStatusError, model: str, url: str) -> BlackboxError:
    status, said = error.status_code, _said(error)
    marks = " ".join(str(mark) for mark in (error.code, error.type, said)).lower()
    known: dict[str, Any] = {"status": status, "request_id": _request_id(error.request_id)}
    if status in (400, 413, 422) and any(mark in marks for mark in _TOO_LONG):
        return ContextTooLong(
            f"the text does not fit the window of {model}: {said}", hint="Shorten the prompt or lower max_tokens."
        )
    if status == 402 or (status in (403, 429) and any(mark in marks for mark in _NO_MONEY)):
        return QuotaExhausted(
            f"the account at {url} has no money left: {said}", hint="Add credit, or use another key.", **known
        )
    if status in (401, 403):
        return AccessDenied(f"{url} refuses access ({status}): {said}", hint=_KEY_HINT, **known)
    if status == 404:
        return ModelNotFound(
            f"{url} does not know the model {model!r}, or is not such an API (404): {said}",
            hint="Check the model's name, and base_url: it usually ends in /v1. Chat models have no completions API; "
            'for them use api="chat".',
            **known,
        )
    if status == 408:
        return ConnectionFailed(f"{url} gave up waiting (408): {said}", hint="Try again.", **known)
    if status == 409:
        return ServerFailed(f"{url} could not take the request just now (409): {said}", hint="Try again.", **known)
    if status == 429:
        return RateLimited(f"too many requests to {url}: {said}", hint="Wait, or ask for less at once.", **known)
    if status >= 500:
        return ServerFailed(f"{url} failed ({status}): {said}", hint="Try again later.", **known)
    if status >= 400:
        return BadRequest(
            f"{url} refuses the request ({status}): {said}",
            hint="Its message names the parameter. Another dialect=… or a smaller top_logprobs=… may be what it takes.",
            **known,
        )
    return BadResponse(f"{url} answered with status {status}: {said}", hint="Check base_url.", **known)


def _request_id(said: str | None) -> str | None:
    """A server's name for a request, if it is one: it is shown."""
    return said if said and re.fullmatch(r"[\w.:/+=-]{1,128}", said, re.ASCII) else None


def _should_retry(error: openai.APIStatusError) -> bool | None:
    """What the server says itself about trying again; None where it says nothing."""
    response = getattr(error, "response", None)
    said = response.headers.get("x-should-retry", "").strip().lower() if response is not None else ""
    return {"true": True, "false": False}.get(said)


def error_in_body(error: object, url: str) -> BaseError:
    """For the `error` of an event in a stream that had begun well, or of a whole answer with status 200."""
    fields = error if isinstance(error, Mapping) else {}
    said, code = _words(error), str(fields.get("code"))
    marks = " ".join((code, str(fields.get("type")), said)).lower()
    status = int(code) if re.fullmatch("[45][0-9]{2}", code) else None
    if any(mark in marks for mark in _NO_MONEY):
        return QuotaExhausted(
            f"the account at {url} has no money left: {said}", hint="Add credit, or use another key.", status=status
        )
    if status == 429:
        return RateLimited(f"too many requests to {url}: {said}", hint="Wait, or ask for less at once.", status=status)
    if status is not None and status < 500 and status not in (408, 409):
        return BadRequest(
            f"{url} refuses the request ({status}): {said}", hint="Its message names the reason.", status=status
        )
    return ServerFailed(f"{url} failed while it wrote: {said}", hint="Try again later.", status=status)


def decode_body(content: bytes, url: str) -> object:
    """The JSON of a body. Raises what can be asked for again: BadResponse where it is no JSON (a gateway's page, a body
    cut short), and what `error_in_body` makes of an `error` in it.
    """
    try:
        body: object = json.loads(content)
    except (ValueError, RecursionError):
        shown = " ".join(content[:400].decode("utf-8", "replace").split())[:80]
        raise truncated(
            f"the API answered with something that is not a completion: {shown!r}",
            hint="A page instead of JSON usually comes from a proxy or gateway. Check base_url, usually ending in /v1.",
        ) from None
    if isinstance(body, Mapping) and body.get("error"):
        raise error_in_body(body["error"], url)
    return body


def truncated(what: str, hint: str) -> BadResponse:
    """For a 200 whose body is not the one that was sent: asking again is the only way to get the answer."""
    error = BadResponse(what, hint=hint)
    error.retryable = True
    return error


def _said(error: openai.APIError) -> str:
    """The API's own message, in one line."""
    return _words(getattr(error, "body", None))


def _words(body: Any) -> str:
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return _cut(str(body or "no message"))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"


def named_limit(refusal: str, asked: int) -> int | None:
    """The largest number of logprobs that a refusal names below what was asked for; None if it is about something else.

    "Expected a value <= 5, but got 20" (OpenAI), "logprobs of 20, which is greater than max allowed: 5" (vLLM).
    """
    if "logprobs" not in refusal:
        return None
    about = refusal.partition("logprobs")[2]
    return max((int(n) for n in re.findall(r"(?<![\w.])\d+(?![\w.]*\d)", about) if 0 < int(n) < asked), default=None)


def refuses_streams(refusal: BadRequest) -> bool:
    """Whether a refusal is about asking for a stream, or for its usage."""
    cause = refusal.__cause__
    return isinstance(cause, openai.APIError) and "stream" in f"{cause.param or ''} {_said(cause)}".lower()
