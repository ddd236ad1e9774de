"""From a whole response to a `Draft`: the answer is read as a stream of one chunk.

What a token is, entries.py decides; what a position shows, positions.py; where a text ends, streaming.py.
"""

from __future__ import annotations

import json

from blackbox_proxy.types import Draft
from blackbox_proxy.vocabulary import Vocabulary

from .given import Echo
from .streaming import Incremental, choice_of, usage_of


def decode_body(content: bytes) -> object:
    """The JSON of a body, or its text where it is none (a gateway's HTML page in a 200)."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")


def parse(
    body: object, *, n: int, top_logprobs: int, vocabulary: Vocabulary | None = None, echo: Echo | None = None
) -> Draft:
    """The draft in a completion or chat completion; `n` positions and k = `top_logprobs` candidates were asked for.

    `finish` is "stop" where the API says that the text ended after the last position, whether or not that position is
    the end itself. `usage` counts one call, and tokens where the API does. `echo`: what the answer repeats first.
    Raises BadResponse and NoLogprobs.
    """
    choice_of(body)
    reader = Incremental(n, top_logprobs, vocabulary, echo)
    positions = reader.feed(body)
    last, finish = reader.finish()
    return Draft((*positions, *last), finish, usage_of(body), reader.given)
