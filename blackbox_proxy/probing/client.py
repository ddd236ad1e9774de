"""How a probe asks: plain requests, counted and bounded, and what all their answers tell together.

payload.py forbids what a dialect is not known to do; a probe is there to try it. Everything else is the package's own:
the connection, so that the key stays secret, and its patience with a busy server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from blackbox_proxy.api.entries import malformed
from blackbox_proxy.api.native import native_answer
from blackbox_proxy.api.scripts import Writing
from blackbox_proxy.api.streaming import Incremental, parse, repeated_of, usage_of
from blackbox_proxy.dialects.finishing import ended_by
from blackbox_proxy.dialects.table import Api, Dialect
from blackbox_proxy.errors import BadRequest, BadResponse, BaseError, BudgetReached, Misspelled
from blackbox_proxy.probing.answers import Answered, Spelling, read, undone
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.transport.connection import Connection
from blackbox_proxy.transport.failures import decode_body
from blackbox_proxy.transport.limits import Limiter
from blackbox_proxy.transport.retry import with_retries
from blackbox_proxy.types import Prompt, Usage

_T = TypeVar("_T")
_ODDITIES = (AttributeError, IndexError, KeyError, TypeError, ValueError)


class Noting(Limiter):
    """Keeps what the headers of answers say about limits."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: dict[str, str] = {}

    def learn(self, headers: Mapping[str, str]) -> None:
        super().learn(headers)
        self.headers |= {
            name.lower(): value
            for name, value in headers.items()
            if "ratelimit" in name.lower() or name.lower() == "retry-after"
        }


@dataclass(slots=True)
class Purse:
    """What a probe may spend, and what it has spent. Raises BudgetReached where that is all."""

    max_calls: int
    calls: int = 0
    usage: Usage = field(default_factory=Usage)

    def count(self) -> None:
        if self.calls >= self.max_calls:
            raise BudgetReached(f"the probe's {self.max_calls} requests are used up", hint="Allow more of them.")
        self.calls += 1


@dataclass
class Asker:
    """Requests to one API of one endpoint. A refusal that names a field which this server calls otherwise, or does
    not take, changes the dialect, and the request is sent again.
    """

    connection: Connection
    api: Api
    model: str
    dialect: Dialect
    url: str
    vocabulary: Vocabulary | None
    purse: Purse
    max_attempts: int
    patience: float  # seconds that an answer may take, however steadily it drips in
    spelling: Spelling = field(default_factory=Spelling)
    writing: Writing = field(default_factory=Writing)
    misspelled: bool = False  # tokens were seen that do not spell the text beside them
    ended: Answered | None = None  # an answer that came to an end by itself

    async def ask(self, prompt: Prompt, n: int, k: int | None, *, temperature: float = 0.0, **fields: Any) -> Answered:
        """At most n tokens with k candidates each, None for no log probabilities. Raises BaseError, BudgetReached."""
        arguments, body = await self._patient(prompt, n, k, temperature, fields)
        try:
            if self.dialect.native is not None:
                body = native_answer(body, arguments)
            self.purse.usage += replace(usage_of(body), api_calls=0)
            answer = read(body)
            self.spelling.note(answer.choice, self.vocabulary)
        except _ODDITIES as error:  # JSON of a shape that nobody has thought of
            raise malformed(f"a part of it is of another kind ({type(error).__name__})") from error
        if k and not fields:
            self._hold(body, n, k, repeated_of(prompt))
        answer = replace(answer, rows=undone(answer.rows, self.writing))
        if ended_by(answer.finish) == "stop" and not fields.get("echo"):
            self.ended = answer
        return answer

    def _hold(self, body: object, n: int, k: int, repeated: str) -> None:
        """Hold the tokens against the text, as a base would."""
        try:
            parse(body, Incremental(n, k, self.vocabulary, begun=True, repeated=repeated, writing=self.writing))
        except Misspelled:
            self.misspelled = True
        except BaseError:
            pass  # found out elsewhere

    async def _patient(
        self, prompt: Prompt, n: int, k: int | None, temperature: float, fields: Mapping[str, Any]
    ) -> tuple[dict[str, Any], object]:
        while True:
            arguments = self.arguments(prompt, n, k, temperature, fields)
            try:
                body, _ = await with_retries(
                    lambda arguments=arguments: self._send(arguments),  # type: ignore[misc]
                    max_attempts=self.max_attempts,
                    max_seconds=self.patience,
                )
                return arguments, body
            except BadRequest as refusal:
                if not self._corrected(str(refusal)):
                    raise

    async def _send(self, arguments: dict[str, Any]) -> object:
        self.purse.count()
        return decode_body(await self.connection.send(arguments), self.url)

    def _corrected(self, refusal: str) -> bool:
        """Whether a refusal tells how the request has to look."""
        if self.api == "chat" and self.dialect.chat_length == "max_tokens" and "max_completion_tokens" in refusal:
            self.dialect = replace(self.dialect, chat_length="max_completion_tokens")
            return True
        if "top_p" in refusal and "top_p" not in self.dialect.omit:
            self.dialect = replace(self.dialect, omit=(*self.dialect.omit, "top_p"))
            return True
        return False

    def arguments(
        self, prompt: Prompt, n: int, k: int | None, temperature: float, fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The request as the client takes it."""
        dialect = self.dialect
        made: dict[str, Any] = {"model": self.model, "temperature": temperature, "top_p": 1.0}
        if self.api == "completions":
            made |= {"prompt": prompt, "max_tokens": n}
            made |= {} if k is None else {"logprobs": k}
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            made |= {"messages": messages, dialect.chat_length: n}
            by_number = dialect.chat_logprobs == "number"
            made |= {} if k is None else {"logprobs": k} if by_number else {"logprobs": True, "top_logprobs": k}
        for name in dialect.omit:
            made.pop(name, None)
        extra = {**dialect.extra_body, **fields}
        return {**made, "extra_body": extra} if extra else made

    async def stream(self, prompt: Prompt, n: int, k: int, **fields: Any) -> tuple[int, int, bool]:
        """How many events of the answer had text or rows, how many rows they had in all, and whether the usage came; no
        events where the answer did not stream. Raises BaseError, BudgetReached.
        """
        self.purse.count()
        arguments = self.arguments(prompt, n, k, 0.0, fields) | {"stream": True}
        return await self.in_time(lambda: self._streamed(arguments))

    async def in_time(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """What comes of one request. Raises ConnectionFailed where it takes too long."""
        found, _ = await with_retries(call, max_attempts=1, max_seconds=self.patience)
        return found

    async def _streamed(self, arguments: dict[str, Any]) -> tuple[int, int, bool]:
        events = rows = 0
        usage: Usage | None = None
        async with self.connection.open(arguments) as answer:
            if not answer.streams:
                await answer.body()
                return 0, 0, False
            async with aclosing(_events(answer)) as chunks:
                async for chunk in chunks:
                    found = chunk.get("usage")
                    usage = usage_of(chunk) if isinstance(found, Mapping) else usage
                    if not chunk.get("choices"):
                        if chunk.get("error"):
                            raise BadResponse(f"an error inside the stream: {str(chunk['error'])[:200]}")
                        continue
                    try:
                        part = read(chunk)
                        self.spelling.note(part.choice, self.vocabulary)
                    except _ODDITIES as error:
                        raise malformed(f"a part of it is of another kind ({type(error).__name__})") from error
                    delta = part.choice.get("delta")
                    said = part.text or (delta.get("content") if isinstance(delta, Mapping) else "")
                    events += bool(said or part.rows)
                    rows += len(part.rows)
        self.purse.usage += replace(usage or Usage(), api_calls=0)
        return events, rows, usage is not None


async def _events(answer: Any) -> Any:
    async for chunk in answer:
        if isinstance(chunk, Mapping):
            yield chunk


def said(error: Exception) -> str:
    """An error in one short line, without the URL that everybody knows."""
    text = " ".join(str(error).split())
    status = getattr(error, "status", None)
    _, refused, words = text.partition(f"({status}): ") if status else ("", "", text)
    return (f"{status}: {words}" if refused else text)[:200]
