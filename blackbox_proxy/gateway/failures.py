"""Failures of the base, the pair and the budget as a client of the gateway sees them: status and OpenAI's error body.

What the far side said may name its address, its account or the operator's settings: that goes into the log, under the
request's id, and the client hears what kind of failure it was. 401 and 403 of the far side are the operator's matter.
"""

from __future__ import annotations

import math

from blackbox_proxy import errors
from blackbox_proxy.door.refusing import ApiError
from blackbox_proxy.errors import BlackboxError, InputError

_KINDS: tuple[tuple[type[BlackboxError], int, str, str], ...] = (
    (errors.BudgetReached, 429, "insufficient_quota", "This server has spent what it was allowed to spend."),
    (errors.ConnectionFailed, 502, "upstream_unreachable", "The model behind this server cannot be reached."),
    (errors.RateLimited, 429, "upstream_rate_limited", "The model behind this server has too many requests."),
    (errors.ServerFailed, 502, "upstream_failed", "The model behind this server failed."),
    (errors.AccessDenied, 502, "upstream_refused", "The model behind this server refuses access to it."),
    (errors.QuotaExhausted, 502, "upstream_quota", "The account behind this server has no quota left."),
    (errors.ModelNotFound, 502, "upstream_not_found", "The model behind this server does not exist there."),
    (errors.BadRequest, 502, "upstream_refused", "The model behind this server refused the request."),
    (errors.NoLogprobs, 502, "upstream_no_logprobs", "The model behind this server gave no log probabilities."),
    (errors.BadResponse, 502, "upstream_bad_response", "The model behind this server gave an answer that is none."),
    (errors.CannotContinue, 502, "upstream_cannot_continue", "The text cannot be continued from the chosen token."),
    (errors.BaseError, 502, "upstream_failed", "The model behind this server failed."),
    (errors.PairServerError, 502, "pair_failed", "The expert behind this server failed."),
    (errors.PairError, 500, "pair_failed", "The expert behind this server failed."),
)
_RETRY_AFTER = 5.0  # seconds, where nobody says more


def as_answer(error: Exception) -> Exception:
    """The error for the client; what is the client's own fault, or no error of this package, stays what it is."""
    if isinstance(error, InputError) or not isinstance(error, BlackboxError):
        return error
    for kind, status, code, message in _KINDS:
        if isinstance(error, kind):
            wait = {"retry-after": str(math.ceil(_RETRY_AFTER))} if error.retryable else {"x-should-retry": "false"}
            return ApiError(message, status=status, kind="server_error", code=code, headers=wait)
    return error
