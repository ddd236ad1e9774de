"""The questions of a probe, each on its own: one that fails is a finding, and the next is asked all the same.

All use one prompt and one greedy draft of it. What is compared is always two answers of the server: what it says with a
field and without, or a draft and its own continuation from a prefix of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from blackbox_proxy.api.entries import token_of
from blackbox_proxy.api.positions import RawPosition
from blackbox_proxy.dialects.findings import EXACT, Findings
from blackbox_proxy.dialects.table import Prefill
from blackbox_proxy.errors import BadRequest, BadResponse, BlackboxError, BudgetReached, ConnectionFailed, ServerFailed
from blackbox_proxy.probing.answers import (
    Answered,
    agreement,
    cuts,
    greedy,
    name_of,
    overwritten,
    sharpened,
    shown,
    sound,
)
from blackbox_proxy.probing.client import Asker, said

_DRAFT = 12  # tokens
_FEW = 5  # candidates, where no more are needed
_REPEATS = 2
_TEXTS = (
    "The weather in New York was fine, and the people of the town",
    "Once upon a time, in a village by the sea, there was a",
    "The capital of France is Paris, and the capital of",
    "1, 2, 3, 4, 5,",
)
_TALKS = (
    "Say in one sentence what the weather is like.",
    "Count from one to twenty.",
    "Tell me about Paris.",
    "Write a short story about the sea.",
)
_LONG = 8  # tokens of a draft that can be cut well
_BIASED = 300  # keys that OpenAI's API takes; also an id that every vocabulary has
_IDS_OUT = {"return_tokens_as_token_ids": True, "return_token_ids": True}
_MOST_BIAS = 100.0
_COLD = 0.5
_SHARPER = 1.5  # at half the temperature distances double where the numbers follow it
_WAYS = (
    Prefill(),
    Prefill(body={"continue_final_message": True, "add_generation_prompt": False}),
    Prefill(body={"continue_final_message": True}),
    Prefill(message={"prefix": True}),
)


class Questions:
    """asker: the API that is probed. told: called with the name of each question. refused: question -> why it has no
    answer. most: what is known of k, and "odd", the answer that told it.
    """

    def __init__(
        self, asker: Asker, most: Mapping[str, Any], told: Callable[[str], None], refused: Mapping[str, str]
    ) -> None:
        self._asker = asker
        self._dialect = asker.dialect
        self._told = told
        self._odd: Answered = most["odd"]
        self._prompt = _TEXTS[0] if asker.api == "completions" else _TALKS[0]
        self._k = min(_FEW, most["k"])
        self._draft: list[RawPosition] = []
        self._text = ""
        self._ids: list[RawPosition] = []  # the draft as it is where ids were asked for
        self._prompt_ids: list[int] = []
        self._keys = 0
        self._lost = 0
        self.refused = dict(refused)
        self.found: dict[str, Any] = {"k": most["k"], "k_how": most["k_how"]}

    async def run(self) -> None:
        """Raises ConnectionFailed where the server is gone."""
        for name, question in self._questions().items():
            self._told(name)
            try:
                await question()
                self._lost = 0
            except BudgetReached as error:
                self.refused[name] = f"not asked: {error}"
            except BlackboxError as error:
                self._lost += isinstance(error, ConnectionFailed)
                if self._lost > 1:
                    raise
                self.refused[name] = said(error)

    def _questions(self) -> dict[str, Callable[[], Awaitable[None]]]:
        completions = self._asker.api == "completions"
        native = self._asker.dialect.native is not None
        if not self._k:
            return {"logit_bias": self._bias_unseen}
        asked: dict[str, Callable[[], Awaitable[None]]] = {"draft": self._drafts, "repeats": self._repeats}
        asked |= {} if native else {"ids": self._ids_out}
        asked |= {"logit_bias": self._bias, "temperature": self._temperature, "sample": self._sample}
        asked |= {"named tokens": self._named}
        if completions:
            asked |= {"token-id prompt": self._prefix_ids, "text prefix": self._prefix_text, "echo": self._echo}
        else:
            asked |= {"prefill": self._prefill}
        asked |= {} if native else {"streaming": self._stream}
        return asked | {"end of text": self._end}

    def findings(self, gives: Mapping[str, str], headers: Mapping[str, str]) -> Findings:
        asker, spelling = self._asker, self._asker.spelling
        found = {
            "chat_length": asker.dialect.chat_length if asker.api == "chat" else None,
            "omit": tuple(name for name in asker.dialect.omit if name not in self._dialect.omit),
            "joined": spelling.joined or None,
            "bytes": spelling.bytes,
            "parts": spelling.parts,
            "wrong": spelling.wrong if spelling.checked else None,
            "sentinels": tuple(sorted(spelling.sentinels)),
        }
        return Findings(
            url=asker.url,
            model=asker.model,
            api=asker.api,
            dialect=asker.dialect.name,
            asked_at=datetime.now(UTC).isoformat(timespec="seconds"),
            apis=dict(gives),
            limits=dict(headers),
            refused=self.refused,
            calls=asker.purse.calls,
            prompt_tokens=asker.purse.usage.prompt_tokens,
            completion_tokens=asker.purse.usage.completion_tokens,
            **(found | self.found),
        )

    # -- the draft ------------------------------------------------------------------------------------------------

    async def _drafts(self) -> None:
        """Of a prompt that is answered at some length: what ends at once shows nothing."""
        vocabulary, best = self._asker.vocabulary, -1
        for prompt in _TEXTS if self._asker.api == "completions" else _TALKS:
            answer = await self._asker.ask(prompt, _DRAFT, self._k)
            rows = sound(answer.rows, vocabulary)
            length = len(rows) if cuts(rows, vocabulary) else 0
            if length > best:
                best, self._prompt, self._draft, self._text = length, prompt, rows, answer.text
            if length >= _LONG:
                break
        self.found["greedy"] = greedy(self._draft)
        self.found["overwritten"] = overwritten(self._draft) or None
        self.found["ids"] = "shown" if self._asker.spelling.ids else "no"

    async def _repeats(self) -> None:
        same, drift = True, 0.0
        for _ in range(_REPEATS):
            answer = await self._asker.ask(self._prompt, _DRAFT, self._k)
            compared = agreement(self._draft, sound(answer.rows, self._asker.vocabulary))
            same = same and answer.text == self._text
            drift = max(drift, compared.drift or 0.0)
            self.found |= {"same_text": same, "drift": drift, "repeated": self.found.get("repeated", 0) + 1}

    async def _ids_out(self) -> None:
        if self.found.get("ids") == "shown":
            return
        answer = await self._asker.ask(self._prompt, _DRAFT, self._k, **_IDS_OUT)
        self._ids = [row for row in answer.rows if row.sampled.id is not None]
        self.found["ids"] = "on request" if self._ids else "no"
        told = answer.choice.get("prompt_token_ids") or answer.body.get("prompt_token_ids")
        self._prompt_ids = [index for index in told if isinstance(index, int)] if isinstance(told, list) else []

    def _drawn_ids(self) -> tuple[list[int], list[RawPosition]]:
        """The ids of the draft's tokens as far as all are known, and the rows that show them."""
        rows, ids = self._ids or self._draft, list[int]()
        for row in rows:
            token = token_of(row.sampled, self._asker.vocabulary)
            if token.id is None or token.end:
                break
            ids.append(token.id)
        return ids, rows[: len(ids)]

    # -- what bends the choice ------------------------------------------------------------------------------------

    def _other_ids(self) -> list[int]:
        """Ids of tokens that are whole characters and not among the first candidates, as far as that can be known."""
        vocabulary = self._asker.vocabulary
        first = [token_of(entry, vocabulary) for entry in self._draft[0].shown] if self._draft else []
        taken = {token.id for token in first} | {token.bytes for token in first}
        listed = [token_of(entry, vocabulary) for row in self._odd.rows for entry in row.shown]
        if vocabulary is not None:
            listed += [vocabulary.token_of(index) for index in range(min(len(vocabulary), _BIASED + 200))]
        found = [
            token.id
            for token in listed
            if token.id is not None and _plain(token.bytes) and not {token.id, token.bytes} & taken
        ]
        return list(dict.fromkeys([*found, _BIASED, _BIASED - 1]))

    async def _bias(self) -> None:
        try:
            answer = await self._biased(self._other_ids()[0])
        except (BadRequest, ServerFailed):
            self.found["bias"] = "refused"
            raise
        if not self._draft:
            return
        before, after = self._draft[0], answer.rows[0] if answer.rows else None
        honoured = after is None or name_of(after.sampled) != name_of(before.sampled)
        self.found |= {"bias": "honoured", "bias_keys": self._keys} if honoured else {"bias": "ignored"}
        if not honoured or after is None:
            return
        drift = agreement([before], [after]).drift
        self.found["reflected"] = drift is None or drift > 1.0
        if not self.found["reflected"]:
            self._note_outside(before, after)

    async def _biased(self, index: int) -> Answered:
        """One token under the largest bias for this id; as many keys as are usually taken, else one."""
        others = {str(i): 0.0 for i in [i for i in range(_BIASED) if i != index][: _BIASED - 1]}
        for bias in (others | {str(index): _MOST_BIAS}, {str(index): _MOST_BIAS}):
            try:
                answer = await self._asker.ask(self._prompt, 1, self._k or None, logit_bias=bias)
            except BadRequest:
                if len(bias) == 1:
                    raise
                continue
            self._keys = len(bias)
            return answer
        raise AssertionError("one of the two returns or raises")

    def _note_outside(self, before: RawPosition, after: RawPosition) -> None:
        """How a token beyond the k shows, by an answer whose token was forced and whose candidates are the usual."""
        own = name_of(after.sampled)
        if own in shown(before):
            return
        listed = own in {name_of(entry) for entry in after.shown}
        if not listed:
            self.found["outside"] = "missing"
        else:
            self.found["outside"] = "listed" if len(after.shown) > len(before.shown) else "cut"

    async def _bias_unseen(self) -> None:
        """The same where no log probabilities are shown: by the text."""
        plain = await self._asker.ask(self._prompt, 1, None)
        try:
            bent = await self._biased(self._other_ids()[0])
        except (BadRequest, ServerFailed):
            self.found["bias"] = "refused"
            raise
        honoured = bent.text != plain.text
        self.found |= {"bias": "honoured", "bias_keys": self._keys} if honoured else {"bias": "ignored"}

    async def _temperature(self) -> None:
        answer = await self._asker.ask(self._prompt, 1, self._k, temperature=_COLD)
        if self._draft and answer.rows:
            grown = sharpened(self._draft[0], answer.rows[0])
            if grown is not None:
                self.found["after"] = "temperature" if grown > _SHARPER else "nothing"

    async def _sample(self) -> None:
        """Tokens drawn at temperature 1 with few candidates: what stands for those beyond them."""
        k = min(2, self._k)
        answer = await self._asker.ask(self._prompt, _DRAFT, k, temperature=1.0)
        for row in answer.rows if "outside" not in self.found else ():
            names = {name_of(entry) for entry in row.shown}
            if len(row.shown) > k:
                self.found["outside"] = "listed"
            elif len(row.shown) == k and name_of(row.sampled) not in names:
                self.found["outside"] = "missing"

    async def _named(self) -> None:
        field = self._asker.dialect.named or "logprob_token_ids"
        ids = self._other_ids()[:2]
        fields: dict[str, Any] = {field: ids}
        fields |= _IDS_OUT if self.found.get("ids") == "on request" else {}
        try:
            answer = await self._asker.ask(self._prompt, 1, self._k, **fields)
        except (BadRequest, ServerFailed):
            self.found["named"] = ""
            raise
        rows, usual = answer.rows[:1], (self._ids or self._draft)[:1]
        if not rows or not usual:
            return
        names = {entry.id for entry in rows[0].shown}
        if names - {None}:
            named = set(ids) <= names
        else:
            named = set(shown(rows[0])) != set(shown(usual[0])) and len(rows[0].shown) in (2, 3)
        self.found["named"] = field if named else ""

    # -- going on from a prefix -----------------------------------------------------------------------------------

    async def _prefix_ids(self) -> None:
        try:
            await self._continued_ids()
        except (BadRequest, BadResponse, ServerFailed):
            self.found["ids_in"] = False
            raise

    async def _continued_ids(self) -> None:
        ids, rows = self._drawn_ids()
        extra = _IDS_OUT if self._ids else {}
        vocabulary = self._asker.vocabulary
        known = self._prompt_ids
        if not known and vocabulary is not None:
            known = list(vocabulary.prompt_ids(self._prompt))
        if len(ids) < 4:
            await self._asker.ask([_BIASED, _BIASED - 1, _BIASED - 2], 1, self._k)
            self.found["ids_in"] = True
            return
        if not known:  # then the draft's own tokens are the prompt
            known = ids[:4]
            answer = await self._asker.ask(known, 6, self._k, **extra)
            self.found["ids_in"] = True
            rows = sound(answer.rows, vocabulary)
            ids = [row.sampled.id for row in rows if row.sampled.id is not None]
            if len(ids) < max(2, len(rows)):
                return
        half = len(ids) // 2
        answer = await self._asker.ask([*known, *ids[:half]], len(ids) - half, self._k, **extra)
        self.found["ids_in"] = True
        self.found["ids_drift"] = agreement(rows[half:], answer.rows).drift

    async def _prefix_text(self) -> None:
        for count, text in cuts(self._draft, self._asker.vocabulary)[:2]:
            answer = await self._asker.ask(f"{self._prompt}{text}", min(3, len(self._draft) - count), self._k)
            drift = agreement(self._draft[count:], answer.rows).drift
            if drift is not None:
                self.found["text_drift"] = min(drift, self.found.get("text_drift") or drift)
            if drift is not None and drift < EXACT:
                return

    async def _prefill(self) -> None:
        places = cuts(self._draft, self._asker.vocabulary)
        if not places:
            self.refused["prefill"] = "the draft could not be cut at whole characters"
            return
        own = self._asker.dialect.prefill
        ways = [way for way in (own, *_WAYS) if way is not None]
        ways = [way for place, way in enumerate(ways) if (way.body, way.message) not in [_of(w) for w in ways[:place]]]
        why: list[str] = []
        for count, text in places[:2]:
            for way in ways:
                try:
                    answer = await self._begun(text, way)
                except BudgetReached:
                    raise
                except BlackboxError as error:
                    why.append(said(error))
                    continue
                found = agreement(self._draft[count:], answer.rows)
                if found.close:
                    self.found |= {"prefill": {"body": dict(way.body), "message": dict(way.message)}}
                    self.found |= {"prefill_drift": found.drift, "repeats": answer.text.startswith(text)}
                    await self._space(text, way, answer)
                    return
                why.append("a new turn was begun")
            ways = ways[:1]
        self.found["prefill"] = {}
        self.refused["prefill"] = "; ".join(dict.fromkeys(why))[:200]

    async def _begun(self, text: str, way: Prefill) -> Answered:
        messages = [{"role": "user", "content": self._prompt}, {"role": "assistant", "content": text, **way.message}]
        return await self._asker.ask(messages, 2, self._k, **way.body)

    async def _space(self, text: str, way: Prefill, without: Answered) -> None:
        """Whether a space at the end of what is continued makes a difference."""
        answer = await self._begun(f"{text} ", way)
        drift = agreement(without.rows[:1], answer.rows[:1]).drift
        self.found["keeps_space"] = drift is None or drift > max(EXACT, 2 * (self.found.get("drift") or 0.0))

    # -- given text -----------------------------------------------------------------------------------------------

    async def _echo(self) -> None:
        for count, text in [*cuts(self._draft, self._asker.vocabulary)[:2], (0, "")]:
            prompt = f"{self._prompt}{text}"
            try:
                answer = await self._asker.ask(prompt, 1, self._k, echo=True)
            except BadRequest as error:
                self.found["echo"] = "refused"
                self.refused["echo"] = said(error)
                await self._prompt_logprobs()
                return
            scored = sum(bool(row.shown) and row.sampled.logprob is not None for row in answer.rows)
            if scored < 4:
                self.found["echo"] = "text" if answer.text.startswith(prompt) else "ignored"
                await self._prompt_logprobs()
                return
            self.found["echo"] = "scored"
            self.found["prompt_logprobs"] = isinstance(answer.choice.get("prompt_logprobs"), list) or None
            given = answer.rows[len(answer.rows) - 1 - count : len(answer.rows) - 1]
            drift = agreement(self._draft[:count], given).drift if count else None
            if drift is not None:
                self.found["echo_drift"] = min(drift, self.found.get("echo_drift") or drift)
            if drift is None or drift < EXACT:
                break
        await self._echo_more()

    async def _echo_more(self) -> None:
        if self._asker.dialect.native is not None:
            return
        try:
            answer = await self._asker.ask(self._prompt, 1, self._k, echo=True, echo_last=2)
            self.found["echo_last"] = 1 < len(answer.rows) <= 4
        except BadRequest:
            self.found["echo_last"] = False
        try:
            _, rows, _ = await self._asker.stream(self._prompt, 1, self._k, echo=True)
            self.found["echo_streams"] = rows >= 4
        except BadRequest:
            self.found["echo_streams"] = False

    async def _prompt_logprobs(self) -> None:
        if self._asker.dialect.native is not None:
            return
        try:
            answer = await self._asker.ask(self._prompt, 1, 1, prompt_logprobs=1)
            self.found["prompt_logprobs"] = isinstance(answer.choice.get("prompt_logprobs"), list)
        except BadRequest as error:
            self.found["prompt_logprobs"] = False
            self.refused["prompt_logprobs"] = said(error)

    # -- streams, and the end -------------------------------------------------------------------------------------

    async def _stream(self) -> None:
        options = dict(self._asker.dialect.usage_stream) or {"include_usage": True}
        try:
            events, rows, usage = await self._asker.stream(self._prompt, 6, self._k, stream_options=options)
            self.found["stream_options"] = usage
        except BadRequest:
            events, rows, _ = await self._asker.stream(self._prompt, 6, self._k)
            self.found["stream_options"] = False
        streamed = "log probabilities" if rows else "text"
        self.found["streams"] = streamed if events > 1 else "whole"

    async def _end(self) -> None:
        """How the end of a text shows: forced by a bias where that works, else where some answer came to an end."""
        vocabulary = self._asker.vocabulary
        if vocabulary is not None and vocabulary.end_ids and self.found.get("bias") == "honoured":
            bias = {str(index): _MOST_BIAS for index in vocabulary.end_ids}
            await self._asker.ask(self._prompt, 2, self._k, logit_bias=bias)
        ended = self._asker.ended
        if ended is None:
            return
        row = ended.rows[-1] if ended.rows else None
        if row is None or (ended.text and ended.text.endswith(row.sampled.text) and row.sampled.text):
            self.found["end"] = "no entry"
        elif row.sampled.text == "":
            self.found["end"] = "an empty entry"
        else:
            self.found["end"] = f"written {row.sampled.text!r}"


def _plain(raw: bytes | None) -> bool:
    return raw is not None and raw.isascii() and raw.strip().isalnum()


def _of(way: Prefill) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return way.body, way.message
