"""An answer that arrives in chunks, read position by position: pure, no I/O.

A position is released as soon as nothing that may still come can change it. Two things can: a token spelled like the
end of the text is one only if nothing follows, and the last token of a text that "stop" ended is the end, whatever it
looks like, if it added nothing to the text. So a position is held back while its token is spelled like an end, or
while the text so far does not go beyond the tokens before it; at most one, the last, is held at a time. A whole answer
is one chunk (`parse`), so that streamed and whole answers cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from blackbox_proxy.api.echo import Echo, echo_of
from blackbox_proxy.api.entries import token_of, utf8
from blackbox_proxy.api.positions import (
    RawPosition,
    as_end,
    likeliest,
    may_be_end,
    position_of,
    rows_of,
    stands_for_several,
)
from blackbox_proxy.api.sent import Sent, Settings
from blackbox_proxy.dialects.finishing import ended_by, said_of
from blackbox_proxy.errors import BadResponse, NoLogprobs
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Position, Usage, joined

_REPLACEMENT = "\ufffd"


class Incremental:
    """Reads one answer. n, top_logprobs: what was asked for. echo: what the answer repeats before it goes on.
    shows_end: an ended text may have a position for its end; else a last token printed as nothing is no end.
    beyond: how many tokens more than n the server may write; they are left out. kept: how many of the likeliest
    candidates a position shows, by default all. begun: the text has tokens already, so that an answer without any ends
    it; else it is an error.

    `usage` is the last that the API reported, None before.
    """

    def __init__(
        self,
        n: int,
        top_logprobs: int,
        vocabulary: Vocabulary | None = None,
        echo: Echo | None = None,
        *,
        shows_end: bool = True,
        beyond: int = 0,
        kept: int | None = None,
        begun: bool = False,
    ) -> None:
        self._begun = begun
        self._beyond = beyond
        self._shows_end = shows_end
        self._kept = kept
        self._n = n
        self._k = top_logprobs
        self._vocabulary = vocabulary
        self._echo = echo
        self._rows = 0
        self._generated = 0
        self._lost = False
        self._held: RawPosition | None = None
        self._text: str | None = None
        self._hidden = False
        self._said: str | None = None
        self._spelled: bytes | None = b""  # of the tokens released; None once one is unknown
        self.usage: Usage | None = None

    # -- what has come --------------------------------------------------------------------------------------------

    def feed(self, chunk: object) -> Draft:
        """The positions that this chunk releases, those of given text first. Raises BadResponse and NoLogprobs."""
        choice = choice_of(chunk, needed=False)
        if isinstance(chunk, Mapping) and isinstance(chunk.get("usage"), Mapping):
            self.usage = usage_of(chunk)
        if choice is None:
            return Draft(())
        self._said = said_of(choice.get("finish_reason")) or self._said
        self._add_text(choice)
        rows = rows_of(choice.get("logprobs"))
        self._rows += len(rows)
        given, generated = self._apart(rows)
        self._generated += len(generated)
        over = max(0, self._generated - self._n)
        if over > self._beyond:
            raise BadResponse(
                f"the API answered with {self._generated} tokens where {self._n} were asked for",
                hint="It ignores the limit that was sent, or repeats the prompt. Another dialect may spell the limit "
                "as this server expects it.",
            )
        released = list(given)
        for row in generated[: max(0, len(generated) - over)] if self._goes_on else ():
            if self._held is not None:
                released.append(self._release(self._held, went_on=True))
            self._held = row
            if stands_for_several(row, self._vocabulary):
                self._held, self._lost = None, True
                break
        if self._held is not None and not self._may_change(self._held):
            released.append(self._release(self._held, went_on=False))
            self._held = None
        return Draft(tuple(released), given=len(given))

    def finish(self) -> Draft:
        """The answer is complete: the position that was held back, and why the text ended there."""
        finish = ended_by(self._said)
        stopped, reason = finish == "stop", self._said if finish in ("content_filter", "other") else None
        text = None if self._hidden else self._text
        if not self._rows:
            if stopped and text == "":
                return Draft((), "stop")
            if self._begun and not stopped and not text:  # what there is of the text has been paid for
                return Draft((), finish if reason else "other", reason=self._said or "an empty answer")
            raise _no_logprobs(text, self._said)
        if not self._goes_on:
            return Draft(())
        last: tuple[Position, ...] = ()
        if self._held is not None:
            before = self._spelled
            position = self._release(self._held, went_on=False)
            if stopped and self._shows_end and _adds_nothing(position, before, self._written_text(self._text)):
                position = as_end(position)
            last, self._held = (position,), None
        return Draft(last, finish, reason=reason)

    @property
    def complete(self) -> bool:
        """Whether the API has said why it stopped, or has written all that was asked for and none of it is in doubt."""
        return self._said is not None or (self._generated >= self._n and self._held is None)

    @property
    def begun(self) -> bool:
        """Whether there is anything that an answer without a reason can have ended."""
        return self._begun or self._rows > 0

    @property
    def done(self) -> bool:
        """Whether nothing that still comes will be released."""
        return self._lost or (not self._goes_on and self._generated > 0)

    @property
    def unscored(self) -> bool:
        """Whether there is text, but no log probabilities with it."""
        return bool(self._text) and not self._rows

    # -- how it is read -------------------------------------------------------------------------------------------

    @property
    def _goes_on(self) -> bool:
        return not self._lost and (self._echo is None or self._echo.goes_on)

    def _apart(self, rows: list[RawPosition]) -> tuple[list[Position], list[RawPosition]]:
        """The positions of given text among the rows, and the rows that were generated."""
        if self._echo is None:
            return [], rows
        given: list[Position] = []
        for i, row in enumerate(rows):
            if self._lost:
                break
            token = token_of(row.sampled, self._vocabulary, literal=row.sampled.text)
            place = self._echo.place(token, row.offset, has_candidates=bool(row.shown))
            if place == "after":
                return given, rows[i:]
            if place == "given":
                given.append(self._position(row, went_on=self._echo.literal))
            self._lost = place == "lost"
        return given, []

    def _release(self, row: RawPosition, *, went_on: bool) -> Position:
        position = self._position(row, went_on=went_on)
        spelled = position.token.bytes
        self._spelled = self._spelled + spelled if self._spelled is not None and spelled else None
        return position

    def _position(self, row: RawPosition, *, went_on: bool) -> Position:
        position = position_of(row, self._k, self._vocabulary, went_on=went_on)
        return position if self._kept is None else likeliest(position, self._kept)

    def _may_change(self, row: RawPosition) -> bool:
        """Whether this last row would be another position if text followed, or if the text ended here."""
        if may_be_end(row, self._vocabulary):
            return True
        token = token_of(row.sampled, self._vocabulary)
        if token.end:  # by its id: the end wherever it stands
            return token.bytes != b""
        if token.bytes == b"" or not token.text:
            return True
        if self._spelled is None or _REPLACEMENT in token.text:
            return False
        text = self._written_text(self._text or "")
        spelled = None if text is None else utf8(text)
        return spelled is not None and self._spelled.startswith(spelled)

    def _add_text(self, choice: Mapping[str, Any]) -> None:
        """Takes note of text; of a message that is shown in part only, nothing can be told from it."""
        delta = choice.get("delta")
        message = delta if isinstance(delta, Mapping) else choice.get("message")
        if not isinstance(message, Mapping):
            text = choice.get("text")
        elif message.get("reasoning_content") or message.get("reasoning") or message.get("refusal"):
            self._hidden = True
            return
        else:
            text = message.get("content") or ""
        if isinstance(text, str):
            self._text = (self._text or "") + text

    def _written_text(self, text: str | None) -> str | None:
        """What of the text was generated, not repeated; None where that cannot be told."""
        if self._hidden or text is None:
            return None
        return text if self._echo is None else self._echo.rest(text)


def reader_of(sent: Sent, settings: Settings) -> Incremental:
    """A new reader of one answer to this."""
    dialect = settings.dialect
    return Incremental(
        sent.n,
        settings.top_logprobs,
        settings.vocabulary,
        echo_of(sent, dialect),
        shows_end=dialect.shows_end,
        beyond=dialect.beyond,
        kept=settings.kept,
        begun=bool(sent.ask.prefix.tokens) and not dialect.hides_parts,
    )


def parse(body: object, reader: Incremental) -> Draft:
    """The draft in a completion or chat completion, read by a new reader, which knows what was asked for.

    `finish` is "stop" where the API says that the text ended after the last position, whether or not that position is
    the end itself. `usage` counts one call, and tokens where the API does. Raises BadResponse and NoLogprobs.
    """
    choice_of(body)
    return replace(joined([reader.feed(body), reader.finish()]), usage=usage_of(body))


def _adds_nothing(position: Position, before: bytes | None, text: str | None) -> bool:
    """Whether the last token of a text that ended by itself is the end: special, or absent from the text."""
    last = position.token
    if last.bytes == b"" or not last.text:
        return True
    if text is None or last.end or _REPLACEMENT in last.text:
        return False
    return before is not None and before == utf8(text)


# -- the frame --------------------------------------------------------------------------------------------------------


def choice_of(body: object, *, needed: bool = True) -> Mapping[str, Any] | None:
    """The first choice of an answer or chunk; None where a chunk has none (`needed` false). Raises BadResponse."""
    if not isinstance(body, Mapping):
        shown = " ".join(body.split())[:80] if isinstance(body, str) else type(body).__name__
        raise BadResponse(
            f"the API answered with something that is not a completion: {shown!r}",
            hint="A page instead of JSON usually comes from a proxy or gateway. Check base_url, usually ending in /v1.",
        )
    if body.get("error"):
        error = body["error"]
        said = error.get("message") if isinstance(error, Mapping) else error
        raise BadResponse(
            f"the API reported an error inside a successful answer: {said[:300] if isinstance(said, str) else '?'}",
            hint="Its message is all that is known; routers answer so when the provider behind them fails.",
        )
    choices = body.get("choices")
    if not needed and (choices is None or choices == []):
        return None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise BadResponse(
            "the API's answer has no choices", hint="Check that base_url belongs to an OpenAI-compatible API."
        )
    return choices[0]


def usage_of(body: object) -> Usage:
    """One call, and tokens where the API counts them."""
    counts = body.get("usage") if isinstance(body, Mapping) else None
    details = counts.get("prompt_tokens_details") if isinstance(counts, Mapping) else None
    return Usage(
        api_calls=1,
        prompt_tokens=_count(counts, "prompt_tokens"),
        completion_tokens=_count(counts, "completion_tokens"),
        cached_prompt_tokens=_count(details, "cached_tokens"),
    )


def _count(counts: object, name: str) -> int:
    value = counts.get(name) if isinstance(counts, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _no_logprobs(text: str | None, said: str | None) -> NoLogprobs | BadResponse:
    if text:
        return NoLogprobs(
            "the API answers without log probabilities",
            hint="Some servers ignore the parameter (transformers serve, several models behind routers), others need "
            "an option at start (llama-cpp-python: --logits_all true). Take a model or server that gives them.",
        )
    why = "null" if said is None else repr(said)
    return BadResponse(
        f"the API answered with neither text nor log probabilities (finish_reason {why})",
        hint="A reasoning model may have spent its tokens unseen, or the server broke off: see its log.",
    )
