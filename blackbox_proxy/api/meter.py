"""What a streamed answer has cost so far: counted as it arrives, corrected by what the API reports."""

from __future__ import annotations

from collections.abc import Callable

from blackbox_proxy.api.sent import Sent, Settings, prompt_length
from blackbox_proxy.types import Usage

_BYTES_PER_TOKEN = 4


class Meter:
    """The usages of the parts of one answer; together they are that of the answer.

    `prompt_tokens`: how many were sent, as far as that is known here; asked for only where the API has not reported.
    """

    def __init__(self, prompt_tokens: Callable[[], int]) -> None:
        self._prompt_tokens = prompt_tokens
        self._counted = Usage()

    def part(self, written: int, reported: Usage | None) -> Usage:
        """Of a part with that many written positions; `reported`: the API's own count so far, if there is one."""
        return self._up_to(self._counted.completion_tokens + written, reported)

    def last(self, reported: Usage | None) -> Usage:
        """Of the last part: what the API counted, less what the parts before said."""
        counted = self._counted.completion_tokens
        return self._up_to((reported.completion_tokens if reported else 0) or counted, reported)

    def _up_to(self, completion_tokens: int, reported: Usage | None) -> Usage:
        before = self._counted
        prompt = (reported.prompt_tokens if reported else 0) or before.prompt_tokens or self._prompt_tokens()
        cached = reported.cached_prompt_tokens if reported else 0
        self._counted = Usage(1, prompt, completion_tokens, cached_prompt_tokens=cached)
        return Usage(
            api_calls=1 - before.api_calls,
            prompt_tokens=prompt - before.prompt_tokens,
            completion_tokens=completion_tokens - before.completion_tokens,
            cached_prompt_tokens=cached - before.cached_prompt_tokens,
        )


def sent_tokens(sent: Sent, settings: Settings) -> int:
    """Tokens of a request's prompt; where the tokenizer is unknown, a quarter of the bytes of its text."""
    if sent.way == "ids":
        return len(sent.prompt)
    prefix = sent.ask.prefix
    length = prompt_length(prefix.prompt, settings)
    if length is not None:
        return length + len(prefix.tokens) + len(sent.given)
    prompt = sent.prompt
    texts = [prompt] if isinstance(prompt, str) else [part["content"] for part in prompt if isinstance(part, dict)]
    return max(1, sum(len(str(text).encode("utf-8", "replace")) for text in texts) // _BYTES_PER_TOKEN)
