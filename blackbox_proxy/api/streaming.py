"""An answer that arrives in chunks, read position by position: pure, no I/O.

A position is released as soon as nothing that may still come can change it. Two things can: a token spelled like the
end of the text is one only if nothing follows, and the last token of a text that "stop" ended is the end, whatever it
looks like, if it added nothing to the text. So a position is held back while its token is spelled like an end, or
while the text so far does not go beyond the tokens before it; at most one, the last, is held at a time. A whole answer
is one chunk (`parse`), so that streamed and whole answers cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from blackbox_proxy.api.against import Against, Verdict
from blackbox_proxy.api.echo import Echo, echo_of
from blackbox_proxy.api.entries import END_MARKERS, RawToken, token_of
from blackbox_proxy.api.positions import (
    RawPosition,
    as_end,
    likeliest,
    may_be_end,
    position_of,
    rows_of,
    stands_for_several,
)
from blackbox_proxy.api.scripts import PLAIN, SCRIPTS, Writing
from blackbox_proxy.api.sent import Sent, Settings
from blackbox_proxy.dialects.finishing import ended_by, said_of
from blackbox_proxy.errors import BadResponse, NoLogprobs
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Position, Token, Usage, joined

_REPLACEMENT = "\ufffd"
_NO_TEXT = frozenset(["", "</s>", *END_MARKERS])  # what a text may have behind its tokens


class Incremental:
    """Reads one answer. n, top_logprobs: what was asked for. echo: what the answer repeats before it goes on.
    shows_end: an ended text may have a position for its end; else a last token printed as nothing is no end.
    beyond: how many tokens more than n the server may write; they are left out. kept: how many of the likeliest
    candidates a position shows, by default all. begun: the text has tokens already, so that an answer without any ends
    it; else it is an error. listed: the candidates are the likeliest. repeated: what the text may begin with that is no
    part of the answer. writing: what is known of how this server writes tokens.

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
        listed: bool = True,
        repeated: str = "",
        writing: Writing | None = None,
    ) -> None:
        self._begun = begun
        self._beyond = beyond
        self._shows_end = shows_end
        self._kept = kept
        self._n = n
        self._k = top_logprobs
        self._vocabulary = vocabulary
        self._echo = echo
        self._listed = listed
        self._writing = writing or Writing()
        self._rows = 0
        self._generated = 0
        self._lost = False
        self._waiting: list[RawPosition] = []  # for their text, or for what tells whether they are the end
        self._sure: list[_Sure] = []  # only how their candidates are written is not known yet
        self._text: str | None = None
        self._hidden = False
        self._said: str | None = None
        self._against = Against(repeated)
        self._over = False
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
        self._over = over > 0
        for row in generated[: max(0, len(generated) - over)] if self._goes_on else ():
            if stands_for_several(row, self._vocabulary):
                self._lost = True
                break
            self._waiting.append(row)
        return Draft((*given, *self._settled()), given=len(given))

    def finish(self) -> Draft:
        """The answer is complete: the positions that were held back, and why the text ended there."""
        finish = ended_by(self._said)
        stopped, reason = finish == "stop", self._said if finish in ("content_filter", "other") else None
        text = None if self._hidden else self._text
        if not self._rows:
            if stopped and text == "":
                return Draft((), "stop")
            if self._begun and not stopped and not text:  # what there is of the text has been paid for
                return Draft((), finish if reason else "other", reason=self._said or "an empty answer")
            raise _no_logprobs(text, self._said)
        if not (self._echo is None or self._echo.goes_on):
            return Draft(())
        last = [*self._released(at_last=True), *self._left(stopped)]
        if self._lost:
            return Draft(tuple(last))
        if not self._over and (self._against.rest or "").strip(_REPLACEMENT) not in _NO_TEXT:
            if self._generated >= self._n and not self._beyond:  # all its tokens are told, and none is the rest
                raise self._against.refuse_rest()
            return Draft(tuple(last))  # the text goes on beyond the tokens that are shown: it is gone on from there
        return Draft(tuple(last), finish, reason=reason)

    @property
    def complete(self) -> bool:
        """Whether the API has said why it stopped, or has written all that was asked for and none of it is in doubt."""
        held = self._waiting or self._sure
        return self._said is not None or (self._generated >= self._n and not held)

    @property
    def begun(self) -> bool:
        """Whether there is anything that an answer without a reason can have ended."""
        return self._begun or self._rows > 0

    @property
    def done(self) -> bool:
        """Whether nothing that still comes will be released."""
        if self._lost:
            return not (self._waiting or self._sure)
        return not self._goes_on and self._generated > 0

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
            if self._writing.own is not None:
                row = row._replace(sampled=self._writing.own.entry(row.sampled))
            token = token_of(row.sampled, self._vocabulary, literal=row.sampled.text)
            place = self._echo.place(token, row.offset, has_candidates=bool(row.shown))
            if place == "after":
                return given, rows[i:]
            if place == "given":
                self._learn(row, token)
                given.append(self._position(row, went_on=self._echo.literal))
            self._lost = place == "lost"
        return given, []

    # -- which of its rows are sure -------------------------------------------------------------------------------

    def _settled(self) -> list[Position]:
        """The positions that nothing can change any more."""
        while self._waiting:
            row = self._waiting[0]
            alone = len(self._waiting) == 1 and not self._lost
            if alone and self._may_change(row):
                break
            own = self._spelled(row, went_on=not alone)
            if own is None:
                break
            del self._waiting[0]
            self._sure.append(own)
        return self._released()

    def _spelled(self, row: RawPosition, *, went_on: bool) -> _Sure | None:
        """The row with its token as the text has it; None where more text must come first. Raises Misspelled."""
        writing, against, literal = self._writing, self._against, row.sampled.text if went_on else None
        certain = self._vocabulary is not None and row.sampled.id is not None
        if writing.own is not None or certain:
            entry = row.sampled if writing.own is None else writing.own.entry(row.sampled)
            token = token_of(entry, self._vocabulary, literal=literal and entry.text)
            verdict = against.take(token, certain=certain)
            return self._judged(verdict, row, entry, token, went_on)
        verdicts: list[Verdict] = []
        for script in SCRIPTS:  # the first is plain
            entry = script.entry(row.sampled)
            if verdicts and entry == row.sampled:
                continue
            token = token_of(entry, self._vocabulary, literal=literal and entry.text)
            verdicts.append(against.take(token, certain=False))
            if verdicts[-1] == "yes":
                if against.told and (entry != row.sampled or " " in entry.text):
                    writing.own = script
                return _Sure(row._replace(sampled=entry), token, went_on)
        verdict = "wait" if "wait" in verdicts else "no"
        return self._judged(verdict, row, row.sampled, token_of(row.sampled, self._vocabulary), went_on)

    def _judged(self, verdict: Verdict, row: RawPosition, entry: RawToken, token: Token, went_on: bool) -> _Sure | None:
        if verdict == "no":
            raise self._against.refuse(token, certain=self._vocabulary is not None and entry.id is not None)
        return _Sure(row._replace(sampled=entry), token, went_on) if verdict == "yes" else None

    def _released(self, *, at_last: bool = False) -> list[Position]:
        """The positions of rows whose candidates can be read. Raises Misspelled where they cannot be, at last."""
        writing, rows = self._writing, self._sure
        for row, token, _ in rows if writing.listed is None else ():
            self._learn(row, token)
        released: list[Position] = []
        for count, (row, token, went_on) in enumerate(rows):
            if not (writing.see(row.shown) or self._known(row)):
                if not at_last:
                    self._sure = rows[count:]
                    return released
                if not writing.guess(row.shown):
                    raise self._against.refuse_list([entry.text for entry in row.shown])
            released.append(self._position(row, went_on=went_on, token=token))
        self._sure = []
        return released

    def _learn(self, row: RawPosition, token: Token) -> None:
        """Find out how candidates are written, if this row tells."""
        if not (self._writing.see(row.shown) or self._known(row)) and token.bytes and b" " in token.bytes:
            self._writing.decide(row.shown, token.bytes)

    def _known(self, row: RawPosition) -> bool:
        """Whether it does not matter how the candidates are written."""
        return self._vocabulary is not None and all(entry.id is not None for entry in row.shown)

    def _left(self, stopped: bool) -> list[Position]:
        """The rows that waited for text, now that all of it is there."""
        found: list[Position] = []
        against, told = self._against, self._against.told
        while self._waiting:
            row = self._waiting.pop(0)
            alone = not self._waiting and not self._lost
            own = None
            before = against.at_end and (told or not found)
            if told:
                own = self._spelled(row, went_on=not alone)
            if own is None:
                token = token_of(row.sampled, self._vocabulary, literal=None if alone else row.sampled.text)
                verdict = against.close(token) if told and not (alone and token.end) else "yes"
                if verdict == "wait" and stopped:
                    if self._shows_end:  # what a stop string took off the text, the end first of all
                        self._sure.append(_Sure(row, token, False))
                        found += [as_end(position) for position in self._released(at_last=True)]
                    self._waiting = []
                    break
                if verdict != "yes":
                    raise against.refuse(token, certain=self._vocabulary is not None and row.sampled.id is not None)
                own = _Sure(row, token, not alone)
            self._sure.append(own)
            more = self._released(at_last=True)
            if alone and stopped and self._shows_end and more and self._adds_nothing(more[-1], before):
                more[-1] = as_end(more[-1])
            found += more
        return found

    def _position(self, row: RawPosition, *, went_on: bool, token: Token | None = None) -> Position:
        listed = self._writing.listed
        if listed is not None and listed is not PLAIN:
            row = row._replace(shown=[listed.entry(entry) for entry in row.shown])
        position = position_of(row, self._k, self._vocabulary, went_on=went_on, listed=self._listed, token=token)
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
        return _REPLACEMENT not in token.text and self._against.at_end

    def _adds_nothing(self, position: Position, before: bool) -> bool:
        """Whether the last token of a text that ended by itself is the end: special, or absent from the text. before:
        the text had ended before it.
        """
        last = position.token
        if last.bytes == b"" or not last.text:
            return True
        return before and not last.end and _REPLACEMENT not in last.text

    def _add_text(self, choice: Mapping[str, Any]) -> None:
        """Takes note of text; of a message that is shown in part only, nothing can be told from it."""
        delta = choice.get("delta")
        message = delta if isinstance(delta, Mapping) else choice.get("message")
        if not isinstance(message, Mapping):
            text = choice.get("text")
        elif message.get("reasoning_content") or message.get("reasoning") or message.get("refusal"):
            self._hidden, self._against.text = True, None
            return
        else:
            text = message.get("content") or ""
        if isinstance(text, str):
            self._text = (self._text or "") + text
            if not self._hidden:
                self._against.text = self._text if self._echo is None else self._echo.rest(self._text)


class _Sure(NamedTuple):
    """A row whose own token is known."""

    row: RawPosition
    token: Token
    went_on: bool


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
        repeated=repeated_of(sent.prompt),
        writing=settings.writing,
    )


def repeated_of(prompt: object) -> str:
    """The beginning of a chat's answer, which some servers repeat before they go on with it."""
    last = prompt[-1] if isinstance(prompt, Sequence) and prompt else None
    begun = isinstance(last, Mapping) and last.get("role") == "assistant"
    return str(last.get("content") or "") if begun and isinstance(last, Mapping) else ""


def parse(body: object, reader: Incremental) -> Draft:
    """The draft in a completion or chat completion, read by a new reader, which knows what was asked for.

    `finish` is "stop" where the API says that the text ended after the last position, whether or not that position is
    the end itself. `usage` counts one call, and tokens where the API does. Raises BadResponse and NoLogprobs.
    """
    choice_of(body)
    return replace(joined([reader.feed(body), reader.finish()]), usage=usage_of(body))


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
