"""How likely given text is under the tuned model: `score`, for a base that scores given text.

    text -> tokens of the base -> Base.draft(given=…) -> positions -> Weigher -> over_everything -> log p of each

Every token of the text joins the candidates of its position with its own q, shown or not, so that p is what `decode`
would give it. A text that outgrows a window is scored in parts that overlap: then a token sees at least half a window
of what comes before it, and no longer the whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from blackbox_proxy.answers.windows import encoded, windows
from blackbox_proxy.decoding.prompted import check_prompt
from blackbox_proxy.decoding.rows import Scored, Weigher, opened
from blackbox_proxy.decoding.threads import on_thread
from blackbox_proxy.decoding.weighed import NOTHING_KNOWN, Known
from blackbox_proxy.decoding.whole_vocabulary import of_given, over_everything
from blackbox_proxy.errors import BadResponse, ContextTooLong, InputError
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.protocols import Ask, Base, Pair, Session
from blackbox_proxy.text.prompts import check_text
from blackbox_proxy.text.vocabulary import Vocabulary, utf8_prefix
from blackbox_proxy.types import How, Position, Prefix, Prompt, Token, Usage

Looked = TypeVar("Looked")

_AT_ONCE = 64  # positions that the pair scores in one pass: their rows are as wide as the vocabulary


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of the text: log q (base), log E (expert), log A (anti-expert), log p (tuned), in nats.

    `covered_mass`: the share of the base's probability that its candidates show there. `how`: where the pair's offset
    comes from (see `Scores`). With several pairs, log E and log A are those of the first.
    """

    token: bytes
    log_p: float
    log_q: float
    log_expert: float
    log_antiexpert: float
    covered_mass: float
    how: How

    @property
    def text(self) -> str:
        return self.token.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Score:
    """Log probability of a text, nats: the sums over its tokens. `bytes`: its length in UTF-8.

    `log_antiexpert` is 0 where there is no anti-expert. All per-token figures count tokens of the base. `usage`: what
    the requests cost; scores of one text under several equations share them.
    """

    log_p: float
    log_q: float
    log_expert: float
    log_antiexpert: float
    tokens: tuple[ScoredToken, ...] = field(repr=False)
    bytes: int
    usage: Usage

    @property
    def bits_per_byte(self) -> float:
        return self._bits(self.log_p)

    @property
    def base_bits_per_byte(self) -> float:
        return self._bits(self.log_q)

    @property
    def expert_bits_per_byte(self) -> float:
        return self._bits(self.log_expert)

    @property
    def antiexpert_bits_per_byte(self) -> float:
        return self._bits(self.log_antiexpert)

    @property
    def perplexity(self) -> float:
        """Of the tuned model, per token of the base."""
        return self._perplexity(self.log_p)

    @property
    def base_perplexity(self) -> float:
        return self._perplexity(self.log_q)

    @property
    def expert_perplexity(self) -> float:
        return self._perplexity(self.log_expert)

    @property
    def antiexpert_perplexity(self) -> float:
        return self._perplexity(self.log_antiexpert)

    def _bits(self, log: float) -> float:
        return -log / math.log(2.0) / self.bytes

    def _perplexity(self, log: float) -> float:
        nats = -log / len(self.tokens)
        return math.exp(nats) if nats < 700.0 else math.inf


async def score(
    base: Base, pairs: Sequence[Pair], prompt: Prompt, text: str, equations: Sequence[Equation]
) -> list[Score]:
    """The score of `text` as it stands directly after `prompt`, one for each of `equations`.

    One request and one pass of the pair for all of them, as long as the text fits the windows. A longer text after a
    prompt of plain text is scored in overlapping parts. Raises InputError where the base does not score given text or
    cannot spell this one, ContextTooLong, BaseError, PairError.
    """
    scored, usage = await look(base, pairs, prompt, text, equations, _under_each)
    return [_total([tokens[i] for tokens in scored], usage) for i in range(len(equations))]


async def look(
    base: Base,
    pairs: Sequence[Pair],
    prompt: Prompt,
    text: str,
    equations: Sequence[Equation],
    at: Callable[[Scored], Looked],
) -> tuple[list[Looked], Usage]:
    """What `at` makes of each token of `text` (a position that `equations` are complete for), and what it cost; asked
    about and cut into windows as for `score`, which raises the same.
    """
    check(base, pairs, prompt, text)
    found: list[Looked] = []
    usage = Usage()
    for window in windows(base, pairs, prompt, text):
        while True:
            try:
                positions, spent = await ask_whole(base, window.prompt, window.text)
                weigher = Weigher(pairs, equations, temperature=1.0)
                part = await on_thread(look_along, base, window.prompt, positions, weigher, len(found), at)
                break
            except ContextTooLong:
                if not window.shorten():
                    raise
        usage += spent
        found += part
    return found, usage


def check(base: Base, pairs: Sequence[Pair], prompt: Prompt, text: str) -> None:
    """Raise InputError or CannotContinue if this cannot be scored; sends nothing."""
    if not base.abilities.scores:
        raise InputError(
            f"{base.name} is reached through an API that does not score given text",
            hint="Score with a completions API that can echo its prompt with log probabilities (vLLM's does), or with "
            "the base's own weights in this process.",
        )
    if not text:
        raise InputError("the text to score is empty", hint="Give at least one character.")
    if not isinstance(prompt, str) and len(prompt) == 0:
        raise InputError("the prompt is empty", hint="Give text, or at least one message.")
    if isinstance(prompt, str) and not prompt:
        raise InputError(
            "the prompt is empty, and the first token of a text has no probability without something before it",
            hint="Give a prompt; split_opening() takes a text's own beginning for one.",
        )
    check_text(text, "the text")
    check_prompt(pairs, prompt, 1)
    base.check(prompt, 1)
    if base.vocabulary is not None:
        encoded(base.vocabulary, text)


def split_opening(text: str, vocabulary: Vocabulary | None) -> tuple[str, str]:
    """A text's own beginning as its prompt, and the rest: its first token, where the vocabulary is known, else its
    first word.
    """
    if vocabulary is None:
        found = re.match(r"\s*\S+", text)
        return (found[0], text[len(found[0]) :]) if found else (text, "")
    opening = b""
    for index in vocabulary.encode([text.encode()])[0]:
        opening += vocabulary.spelling[index] or b""
        if opening and utf8_prefix(opening) == len(opening):
            break
    start = opening.decode("utf-8")
    return start, text[len(start) :]


def _total(tokens: Sequence[ScoredToken], usage: Usage) -> Score:
    return Score(
        math.fsum(token.log_p for token in tokens),
        math.fsum(token.log_q for token in tokens),
        math.fsum(token.log_expert for token in tokens),
        math.fsum(token.log_antiexpert for token in tokens),
        tuple(tokens),
        sum(len(token.token) for token in tokens),
        usage,
    )


# -- one window -------------------------------------------------------------------------------------------------------


async def ask_whole(base: Base, prompt: Prompt, text: str) -> tuple[list[Position], Usage]:
    """The tokens of a text that fits every window, with the base's candidates, and what it cost."""
    positions, usage = await given_positions(base, Prefix(prompt), _given(base, prompt, text))
    if b"".join(position.token.bytes or b"" for position in positions) != text.encode():
        raise BadResponse(
            f"{base.name} did not score the text as it was sent",
            hint="A text that its tokenizer joins to the prompt cannot be told apart: let the text begin with a space, "
            "or give the tokenizer.",
        )
    return positions, usage


def _given(base: Base, prompt: Prompt, text: str) -> list[Token]:
    """The text as tokens of the base: where its vocabulary is unknown, as one that the base will cut."""
    whole = text.encode()
    vocabulary = base.vocabulary
    if vocabulary is None:
        return [Token(bytes=whole, text=text)]
    tokens = [vocabulary.token_of(index) for index in encoded(vocabulary, text)]
    partial = next((i for i, t in enumerate(tokens) if utf8_prefix(t.bytes or b"") < len(t.bytes or b"")), None)
    if partial is None or base.can_continue(Prefix(prompt, tuple(tokens[: partial + 1]))):
        return tokens
    merged: list[Token] = []  # sent as text, where only whole characters travel
    waiting: list[Token] = []
    for token in tokens:
        waiting.append(token)
        spelled = b"".join(part.bytes or b"" for part in waiting)
        if utf8_prefix(spelled) == len(spelled):
            merged.append(token if len(waiting) == 1 else Token(bytes=spelled, text=spelled.decode()))
            waiting = []
    return merged


async def given_positions(base: Base, prefix: Prefix, given: Sequence[Token]) -> tuple[list[Position], Usage]:
    """The base's candidates at each token of given text, each with that token's own log q; and what it cost.

    Raises BadResponse where the base tells no probability of a token.
    """
    found: list[Position] = []
    usage = Usage()
    rest = list(given)
    while rest:
        draft = await base.draft(Ask(prefix, 1, given=rest))
        usage += draft.usage
        positions = draft.positions[: draft.given]
        if draft.usage.api_calls == 0 and any(_log_q(position) is None for position in positions):
            # A cache does not know how the base cuts a text that was not cut here. A draft without a seed is always
            # asked for.
            draft = await base.draft(Ask(prefix, 1, temperature=1.0, given=rest))
            usage += draft.usage
            positions = draft.positions[: draft.given]
        if not positions:
            break
        for position in positions:
            log_q = _log_q(position)
            if log_q is None or position.token.bytes is None:
                what = "bytes" if log_q is not None else "log probability"
                raise BadResponse(
                    f"{base.name} does not tell the {what} of {position.token.text!r} in the given text",
                    hint="Give the base's tokenizer; or the text begins where the server shows nothing yet.",
                )
            found.append(replace(position, token=_identified(position.token, base.vocabulary), logprob=log_q))
        rest = _after(rest, positions)
        prefix = Prefix(prefix.prompt, (*prefix.tokens, *(position.token for position in positions)))
    return found, usage


def _log_q(position: Position) -> float | None:
    if position.logprob is not None:
        return position.logprob
    key = position.token.key
    shown = (float(v) for other, v in zip(position.tokens, position.logprobs, strict=True) if other.key == key)
    return next(shown, None)


def _identified(token: Token, vocabulary: Vocabulary | None) -> Token:
    return vocabulary.token(token.bytes) if token.id is None and vocabulary is not None and token.bytes else token


def _after(given: Sequence[Token], positions: Sequence[Position]) -> list[Token]:
    """What of the given text lies behind these positions."""
    done = sum(len(position.token.bytes or b"") for position in positions)
    for i, token in enumerate(given):
        size = len(token.bytes or b"")
        if done < size and done > 0:
            rest = (token.bytes or b"")[done:]
            return [Token(bytes=rest, text=rest.decode("utf-8", "replace")), *given[i + 1 :]]
        if done == 0:
            return list(given[i:])
        done -= size
    return []


def look_along(
    base: Base,
    prompt: Prompt,
    positions: Sequence[Position],
    weigher: Weigher,
    place: int,
    at: Callable[[Scored], Looked],
) -> list[Looked]:
    """What `at` makes of each of these positions, whose tokens are the text's own. `place`: tokens of it before."""
    found: list[Looked] = []
    with opened(weigher.pairs, prompt, base.vocabulary) as sessions:
        for start in range(0, len(positions), _AT_ONCE):
            waiting = _scored(sessions, positions, start, weigher, place)
            while waiting:  # one after the other: a list may hold a whole vocabulary
                found.append(at(waiting.pop(0)))
    return found


def _scored(
    sessions: Sequence[Session], positions: Sequence[Position], start: int, weigher: Weigher, place: int
) -> list[Scored]:
    """The next positions of the text, a few at a time, each with its own token among the candidates."""
    some = positions[start : start + _AT_ONCE]
    scored = weigher.score(
        sessions,
        [position.token for position in positions[:start]],
        some,
        [NOTHING_KNOWN if at.logprob is None else Known.of([(at.token, at.logprob)], given=True) for at in some],
        place=place,
    )
    if len(scored) < len(some):
        raise BadResponse(
            "a token of the text has no id in the base's vocabulary", hint="Is this the base's tokenizer?"
        )
    return scored


def _under_each(scored: Scored) -> list[ScoredToken]:
    return [_token(scored, i) for i in range(len(scored.weigher.equations))]


def _token(scored: Scored, i: int) -> ScoredToken:
    """The token of the text under the i-th equation."""
    weigher = scored.weigher
    token, log_q = scored.position.token, scored.position.logprob
    assert log_q is not None
    weighed = over_everything(scored.under(i), weigher.pairs, weigher.equations[i], scored.place)
    index = weighed.index_of(token)
    learned = weigher.equations[i].weights is not None
    log_p = -math.inf if index is None and not learned else of_given(weighed, index, log_q)
    scores = weighed.scores[0] if index is not None else scored.rows[0].score([token])
    return ScoredToken(
        token.bytes or b"",
        log_p,
        log_q,
        float(scores.log_expert[index or 0]),
        float(scores.log_antiexpert[index or 0]),
        weighed.covered_mass,
        scores.how[index or 0],
    )
