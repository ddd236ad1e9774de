"""What a request with `steps` is told of each token, beside its log probabilities: how the proxy came to it.

An object for each token, in the column `steps` of `logprobs`, in probabilities; null where a model cannot say:

    text             what can be shown of it, made visible; `waits` where its last character is not finished yet
    q, p             before and after, q normalised over the same candidates; shift p - q, distance: total variation
    covered          the share of the base's probability that it showed
    changed, beyond  the likeliest token is no more the base's; the base had not shown this one
    drafted, end     kept from a draft; it ends the text
    calls            requests that were billed since the token before
    candidates       [{token, q, expert, antiexpert, p, estimated, how, chosen}], as the report shows them, and `others`
"""

from __future__ import annotations

import math
from typing import Any

from blackbox_proxy.analysis import Telling, measure, telling
from blackbox_proxy.errors import InputError
from blackbox_proxy.screen.visible import piece, quoted
from blackbox_proxy.types import Step

Json = dict[str, Any]


def check_steps(value: Any, most: int, *, allowed: bool, logprobs: bool) -> None:
    """Whether a request may be told of so many candidates. Raises InputError."""
    if not allowed:
        raise InputError("this server does not tell its 'steps'", hint="Its --page does.")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InputError(f"'steps' must be a number of candidates from 1 to {most}, not {value!r}")
    if not logprobs:
        raise InputError("'steps' stand beside log probabilities", hint="Ask for 'logprobs', too.")


class Teller:
    """Tells the steps of one text, in their order. count: candidates of each; tuned: there is a pair."""

    def __init__(self, count: int, *, tuned: bool) -> None:
        self._count = count
        self._tuned = tuned
        self._waiting = b""

    def told(self, step: Step) -> Json:
        [place] = measure([step])
        text, self._waiting = piece(self._waiting + step.token)
        found = telling(step, self._count)
        seen = place.chosen is not None
        return {
            "text": text,
            "waits": bool(self._waiting),
            "q": place.q if seen else None,
            "p": place.p if seen else None,
            "shift": place.shift if seen else None,
            "distance": place.distance if seen else None,
            "covered": place.covered_mass,
            "changed": place.changed,
            "beyond": place.beyond,
            "drafted": place.drafted,
            "end": place.end,
            "calls": place.usage.api_calls,
            "candidates": self._rows(found),
            "others": {"count": found.others, "q": found.others_q, "p": found.others_p},
        }

    def _rows(self, found: Telling) -> list[Json]:
        return [
            {
                "token": quoted(row.token or row.printed.encode("utf-8", "replace"), end=row.end),
                "q": _known(row.q),
                "expert": _known(row.expert) if self._tuned else None,
                "antiexpert": _known(row.antiexpert) if self._tuned else None,
                "p": _known(row.p),
                "estimated": row.estimated,
                "how": row.how,
                "chosen": row.chosen,
            }
            for row in found.rows
        ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
