"""How long an answer may be, in bytes, by what was asked; what is counted is what it unfolds to."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpx2

from blackbox_proxy.errors import BadResponse, BlackboxError

FRAME = 2**20  # bytes of an answer that are no log probabilities: its frame, an error, what keeps a stream awake
LIST = 2**23  # of a list of models; routers have hundreds
_ENTRY = 512  # bytes of a candidate: five times what servers write of a usual one, so that a few may be long
_EVENT = 2048  # of what an event repeats beside its candidates
_VOCABULARY = 300_000 * 128  # bytes of a row that shows all of a vocabulary
_PIECE = 65_536

_most: ContextVar[int] = ContextVar("most", default=FRAME)


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Answers to what is asked inside may have so many bytes."""
    before = _most.set(count)
    try:
        yield
    finally:
        _most.reset(before)


def allowed() -> int:
    return _most.get()


def wanted(arguments: Mapping[str, Any]) -> int:
    """Tokens that a request asks for, of each of its prompts."""
    return int(arguments.get("max_tokens") or arguments.get("max_completion_tokens") or 0)


def sent(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """About how many tokens a request carries, and how many at most."""
    prompt = arguments.get("prompt", arguments.get("messages"))
    if "prompt" in arguments and isinstance(prompt, list) and all(isinstance(item, int) for item in prompt):
        return len(prompt), len(prompt)
    if "prompt" in arguments and isinstance(prompt, list):
        parts = [(len(item), len(item)) if isinstance(item, list) else _of_text(str(item)) for item in prompt]
        return sum(about for about, _ in parts), sum(most for _, most in parts)
    return _of_text(str(prompt))


def _of_text(text: str) -> tuple[int, int]:
    size = len(text.encode("utf-8", "replace"))
    return size // 4, size // 2 + 16


def longest_answer(arguments: Mapping[str, Any]) -> int:
    """Bytes: a row of candidates for each token that is asked for, and for each that is to be repeated."""
    extra = arguments.get("extra_body") or {}
    prompt = arguments.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    most = sent(arguments)[1]
    echoes = bool(arguments.get("echo") or extra.get("echo") or extra.get("prompt_logprobs") is not None)
    rows = (wanted(arguments) + 16) * prompts + (most if echoes else 0)
    named = sum(len(value) for value in extra.values() if isinstance(value, list))
    shown = [
        arguments.get(name, extra.get(name)) for name in ("logprobs", "top_logprobs", "prompt_logprobs", "n_probs")
    ]
    numbers = [value for value in shown if isinstance(value, int) and not isinstance(value, bool)]
    row = _VOCABULARY if -1 in numbers else _ENTRY * (max([0, *numbers]) + named + 2)
    return FRAME + 16 * most + rows * (row + _EVENT)


@contextmanager
def named() -> Iterator[None]:
    """What the client lets through of its own parts becomes an error of its own: SOCKS replies, TLS, DNS."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, BlackboxError):
        raise
    except Exception as error:
        raise httpx2.NetworkError(f"{type(error).__name__}: {error}") from error


class Bounded(httpx2.AsyncByteStream):
    """The body of an answer, unfolded, up to `most` bytes; BadResponse beyond them.

    Unfolded here and not by the client, which makes of a small packed piece a whole that no memory holds.
    """

    def __init__(self, stream: httpx2.AsyncByteStream, most: int, url: str, *, packed: bool) -> None:
        self._stream = stream
        self._most = most
        self._url = url
        self._unpack = zlib.decompressobj(wbits=31) if packed else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        raw = unfolded = 0
        with named():
            async for part in self._stream:
                raw += len(part)
                for piece in self._pieces(part):
                    unfolded += len(piece)
                    self._check(unfolded)
                    yield piece
                self._check(raw)

    def _pieces(self, part: bytes) -> Iterator[bytes]:
        if self._unpack is None:
            yield part
            return
        left = part
        try:
            while left and not self._unpack.eof:
                yield self._unpack.decompress(left, _PIECE)
                left = self._unpack.unconsumed_tail
        except zlib.error as error:
            raise httpx2.DecodingError(f"the answer is not the gzip that it says it is: {error}") from None

    def _check(self, count: int) -> None:
        if count > self._most:
            raise BadResponse(
                f"{self._url} answered with more than {self._most:,} bytes, the most that what was asked can take",
                hint="It does not keep to what was asked for. Check base_url, or ask for fewer tokens at once.",
            )

    async def aclose(self) -> None:
        await self._stream.aclose()
