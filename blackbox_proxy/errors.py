"""Every error that leaves this package.

    BlackboxError                 a sentence, a `hint`, and whether trying again can help (`retryable`)
    ├── InputError                what the caller asked for cannot be done; raised before anything is spent
    │   └── ContextTooLong        prompt (plus text so far) does not fit a model's window
    ├── BudgetReached             what the caller allowed to be spent is spent
    ├── BaseError                 the far side: the API that serves the base
    │   ├── ConnectionFailed      unreachable, timed out, or broken off                 (retryable)
    │   ├── RateLimited           429 that waiting cures                                (retryable)
    │   ├── ServerFailed          5xx                                                   (retryable)
    │   ├── AccessDenied          401, 403: wrong key or no right to the model
    │   ├── QuotaExhausted        429 that no waiting cures
    │   ├── ModelNotFound         404
    │   ├── BadRequest            any other 4xx
    │   ├── NoLogprobs            the model answers without log probabilities
    │   ├── BadResponse           a 200 that is not what the API promises  (retryable where its body was lost)
    │   │   └── Misspelled        its tokens do not spell its text
    │   └── CannotContinue        the API has no way to continue from issued tokens
    └── PairError                 the near side: the local expert and anti-expert
        ├── ModelUnavailable      folder or hub id missing, or unsafe to load
        ├── PairServerError       a server that runs expert or anti-expert fails or refuses   (retryable as its cause)
        └── VocabularyMismatch    expert and anti-expert do not spell text the same way

None of openai, httpx2, torch or transformers shows through: their exceptions are kept as `__cause__` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackbox_proxy.secrets import hidden

if TYPE_CHECKING:
    from blackbox_proxy.types import Generation, Step


class BlackboxError(Exception):
    """`str(error)` is one sentence; `hint` says what to do about it; `retryable` whether the same call may work
    later; no key stands in either (secrets.py).

    What was paid for when the error came is kept in it, by `ProxyTuner`: `steps` are what there was of the text;
    `finished`, where it ended a `generate_batch`, has the whole texts of the other prompts, by their places in the
    batch, and `failed` the errors of those that failed after the first.
    """

    retryable = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(hidden(message))
        self.hint = hidden(hint)
        self.steps: tuple[Step, ...] = ()
        self.finished: dict[int, Generation] = {}
        self.failed: dict[int, BlackboxError] = {}


class InputError(BlackboxError):
    """What the caller asked for cannot be done. Raised before any request is sent."""


class ContextTooLong(InputError):
    """The prompt, with the text so far, does not fit the window of one of the three models."""


class BudgetReached(BlackboxError):
    """The next request could exceed what the caller allowed to be spent. It was not sent."""


class BaseError(BlackboxError):
    """The API that serves the base. `status` is the HTTP status, `request_id` the provider's, where there was one."""

    def __init__(
        self, message: str, hint: str = "", *, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.request_id = request_id


class ConnectionFailed(BaseError):
    """The API could not be reached, did not answer in time, or broke off."""

    retryable = True


class RateLimited(BaseError):
    """Too many requests (429); waiting helps."""

    retryable = True


class ServerFailed(BaseError):
    """The server failed (5xx)."""

    retryable = True


class AccessDenied(BaseError):
    """Wrong key, or no right to this model (401, 403)."""


class QuotaExhausted(BaseError):
    """The account has no money left: a 429 that no retry cures."""


class ModelNotFound(BaseError):
    """The API does not know the model, or the URL is not that of such an API (404)."""


class BadRequest(BaseError):
    """The API refuses the request (other 4xx)."""


class NoLogprobs(BaseError):
    """The model answers, but without the log probabilities that everything here needs."""


class BadResponse(BaseError):
    """A successful answer that is not what the API promises (HTML, truncated JSON, columns of unequal length)."""


class Misspelled(BadResponse):
    """The tokens of an answer do not spell its text, so what they and their rivals are cannot be known."""


class CannotContinue(BaseError):
    """The API cannot continue from a token that was issued back, so only single tokens can be decoded there."""


class PairError(BlackboxError):
    """The local expert and anti-expert."""


class ModelUnavailable(PairError):
    """A local model's folder or hub id is missing, incomplete, or only loadable in an unsafe way."""


class PairServerError(PairError):
    """The server of an expert or anti-expert cannot be reached, refuses, or answers something else. `status` is the
    HTTP status where there was one.
    """

    def __init__(self, message: str, hint: str = "", *, status: int | None = None, retryable: bool = False) -> None:
        super().__init__(message, hint)
        self.status = status
        self.retryable = retryable


class VocabularyMismatch(PairError):
    """Expert and anti-expert do not map ids to the same bytes."""
