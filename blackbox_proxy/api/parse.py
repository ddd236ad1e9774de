"""From a whole response to a `Draft`: the answer is read as a stream of one chunk.

`decode_body` says whether an answer has arrived (that is retried), `parse` what it means (that is not).
What a token is, entries.py decides; what a position shows, positions.py; where a text ends, streaming.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from blackbox_proxy.api.retry import error_in_body, truncated
from blackbox_proxy.api.streaming import Incremental, choice_of, usage_of
from blackbox_proxy.types import Draft


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


def parse(body: object, reader: Incremental) -> Draft:
    """The draft in a completion or chat completion, read by a new reader, which knows what was asked for.

    `finish` is "stop" where the API says that the text ended after the last position, whether or not that position is
    the end itself. `usage` counts one call, and tokens where the API does. Raises BadResponse and NoLogprobs.
    """
    choice_of(body)
    positions = reader.feed(body)
    last, finish = reader.finish()
    return Draft((*positions, *last), finish, usage_of(body), reader.given)
