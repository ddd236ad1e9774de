"""The nouns: what travels between the rooms. Frozen, plain, and free of torch and HTTP.

A *base* answers a `Prefix` with a `Draft` of `Position`s; the *pair* scores each position; `decode` chooses and emits a
`Step`; the steps of one text are a `Generation`. Probabilities are natural logarithms (nats) unless a name says
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Message = Mapping[str, str]
"""One chat message: {"role": "user", "content": "…"}."""

Prompt = str | Sequence[Message] | Sequence[int]
"""Raw text, a list of chat messages, or token ids of the base."""

Rendering = Literal["raw", "chat"] | Callable[[Any], str]
"""How a model is shown a prompt: its plain text, its own chat template, or a function from the prompt to text."""

Floats = NDArray[np.float64]
FinishReason = Literal["stop", "length", "content_filter", "other"]
"""Why a text ended: at its end or a stop string; at a limit; where a filter withheld what follows; for a reason of the
server's own, which stands beside it (`reason`)."""

Key = tuple[str, object]
"""What tells two tokens apart (`Token.key`)."""

END_KEY: Key = ("end", None)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the base, as far as the base tells: its id, else its bytes, else only how it was printed.

    `bytes` is None where the API showed only replacement characters; b"" for special tokens, which add no text.
    """

    id: int | None = None
    bytes: bytes | None = None
    text: str = ""
    end: bool = False

    @property
    def key(self) -> Key:
        """What tells two tokens apart: id, then bytes, then text. All end tokens are one event."""
        if self.end:
            return END_KEY
        if self.id is not None:
            return ("id", self.id)
        if self.bytes is not None:
            return ("bytes", self.bytes)
        return ("text", self.text)


END = Token(bytes=b"", end=True)
"""The end of the text, where the base does not say which of its end tokens it means."""


@dataclass(frozen=True, slots=True, eq=False)
class Position:
    """One position of a draft: what the base wrote there, and the candidates it shows.

    `tokens` and `logprobs` are columns of equal length k, most likely first. `logprobs` are the base's log q in nats;
    a token whose probability the API did not give ("missing" sentinels) is not in them. `logprob` is that of `token`,
    which may lie outside the k candidates; None where the API did not give it.
    """

    token: Token
    logprob: float | None
    tokens: Sequence[Token] = field(repr=False)
    logprobs: Floats = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.logprobs):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.logprobs)} log probabilities")

    @classmethod
    def ahead(cls, tokens: Sequence[Token] = ()) -> Position:
        """The place that comes next, where the base has written nothing yet: the pair is asked about it, and may expect
        questions about `tokens`. Their log q is not known: NaN.
        """
        return cls(Token(), None, tokens, np.full(len(tokens), np.nan))


@dataclass(frozen=True, slots=True)
class Usage:
    """What was spent: requests, tokens as the API counts them, positions that came from a cache, retries.

    `cached_prompt_tokens`: those of `prompt_tokens` that the API says it had in its own prompt cache. Of a stream that
    was cut before the API reported, the prompt is counted here and the completion is what had arrived.
    """

    api_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_positions: int = 0
    retries: int = 0
    cached_prompt_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.api_calls + other.api_calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_positions + other.cached_positions,
            self.retries + other.retries,
            self.cached_prompt_tokens + other.cached_prompt_tokens,
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """The base's own continuation of a prefix: at most n positions, and why it stopped there.

    `finish` is "stop" when the base ended its text after the last position without showing an entry for the end
    (an empty draft with "stop" is an immediate end), "content_filter" or "other" when the server ended it there; None
    or "length" when it could have gone on. `reason`: the server's word, where `finish` does not say it. The first
    `given` positions were not written by the base: their tokens were given to it, and it shows its candidates at each.
    `cut`: no draft goes on from the last position, since the text would be cut into other tokens when it is sent anew.
    Say the base wrote two spaces as two tokens, and its tokenizer makes one token of both: what it wrote behind the
    second space it would not write behind that token.
    """

    positions: tuple[Position, ...]
    finish: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    given: int = 0
    cut: bool = False
    reason: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the text ends after the last position."""
        return self.finish not in (None, "length")


def joined(parts: Sequence[Draft]) -> Draft:
    """The parts of one draft as one; of no parts, an empty draft."""
    return Draft(
        tuple(position for part in parts for position in part.positions),
        parts[-1].finish if parts else None,
        sum((part.usage for part in parts), Usage()),
        sum(part.given for part in parts),
        any(part.cut for part in parts),
        parts[-1].reason if parts else None,
    )


@dataclass(frozen=True, slots=True)
class Prefix:
    """The prompt and every token issued so far: what the next request continues from."""

    prompt: Prompt
    tokens: tuple[Token, ...] = ()

    def plus(self, token: Token) -> Prefix:
        return Prefix(self.prompt, (*self.tokens, token))

    @property
    def generated(self) -> bytes:
        """The bytes of the issued tokens. ValueError if one of them has none: such a token must never be chosen."""
        if any(token.bytes is None for token in self.tokens):
            raise ValueError("a token without known bytes was issued")
        return b"".join(token.bytes or b"" for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a pair says of some tokens at one position; all arrays have one entry per token.

    `log_expert`, `log_antiexpert`: log mass of the event "the base's next token is this one", nats. `offset` is their
    difference: the log ratio that `combine` multiplies by alpha. `how` says where each offset came from: "exact" (the
    event's own mass), "estimated" (from the row after the text alone, or a sum that other candidates move), "prefix"
    (the mass of the longest part of the token that could be scored), "neutral" (offset 0, nothing is known of the
    token). `error`: nats by which each offset may be off until the pair is asked for the models' own
    (`Session.refine`); 0 where it is that. Left out, it is 0.
    `apart`: the same of each log mass by itself, of which the offset keeps only what expert and anti-expert do not have
    in common. Left out, it is `error`.
    `own` (2, c): of each model's mass what no other token has as well, no log. Estimates of tokens that begin alike may
    overlap, so that only these add up to no more than 1. Left out, it is all of each mass.
    """

    log_expert: Floats
    log_antiexpert: Floats
    offset: Floats
    how: tuple[How, ...]
    error: Floats = field(default_factory=lambda: np.empty(0))
    apart: Floats = field(default_factory=lambda: np.empty(0))
    own: Floats = field(default_factory=lambda: np.empty((2, 0)))

    def __post_init__(self) -> None:
        if len(self.error) != len(self.offset):
            object.__setattr__(self, "error", np.zeros(len(self.offset)))
        if len(self.apart) != len(self.offset):
            object.__setattr__(self, "apart", self.error)
        if self.own.shape[1] != len(self.offset):
            object.__setattr__(self, "own", np.exp([self.log_expert, self.log_antiexpert]))

    @property
    def disjoint(self) -> Scores:
        """The same with the masses that are each token's own: what to add up."""
        with np.errstate(divide="ignore"):
            log_e, log_a = np.log(self.own)
        return replace(self, log_expert=log_e, log_antiexpert=log_a)

    def only(self, wanted: NDArray[np.bool_] | slice) -> Scores:
        """Those of some of the tokens, (c,), or of one piece of the list."""
        how = self.how[wanted] if isinstance(wanted, slice) else tuple(compress(self.how, wanted.tolist()))
        return Scores(
            self.log_expert[wanted],
            self.log_antiexpert[wanted],
            self.offset[wanted],
            how,
            self.error[wanted],
            self.apart[wanted],
            self.own[:, wanted],
        )

    def then(self, *more: Scores) -> Scores:
        """These, and those of further tokens after them."""
        if not more:
            return self
        every = (self, *more)
        return Scores(
            np.concatenate([each.log_expert for each in every]),
            np.concatenate([each.log_antiexpert for each in every]),
            np.concatenate([each.offset for each in every]),
            tuple(kind for each in every for kind in each.how),
            np.concatenate([each.error for each in every]),
            np.concatenate([each.apart for each in every]),
            np.concatenate([each.own for each in every], axis=1),
        )


How = Literal["exact", "estimated", "prefix", "neutral"]
TailPolicy = Literal["truncate", "floor", "backoff", "ask"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have been chosen: log q (base), log E (expert), log A (anti-expert), log p (tuned), in nats.

    `tail` is true where q was not shown by the base but estimated by the tail policy. With several pairs, `log_expert`
    and `log_antiexpert` are those of the first, and `how` is of the pair that knows least.
    """

    token: Token
    log_q: float
    log_expert: float
    log_antiexpert: float
    log_p: float
    tail: bool
    how: How


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Candidates(Sequence[Candidate]):
    """The candidates of one step as columns, most likely under p first; an item is a `Candidate`."""

    tokens: tuple[Token, ...]
    log_q: Floats
    log_expert: Floats
    log_antiexpert: Floats
    log_p: Floats
    tail: NDArray[np.bool_]
    how: tuple[How, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Candidate(
            self.tokens[index],
            float(self.log_q[index]),
            float(self.log_expert[index]),
            float(self.log_antiexpert[index]),
            float(self.log_p[index]),
            bool(self.tail[index]),
            self.how[index],
        )

    def __iter__(self) -> Iterator[Candidate]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        first = ", ".join(f"{c.token.text!r}: {np.exp(c.log_p):.3g}" for c in self[:3])
        return f"Candidates({len(self)}: {first}{', …' if len(self) > 3 else ''})"


def no_candidates() -> Candidates:
    """Of a step that no list led to."""
    nothing = np.empty(0)
    return Candidates((), nothing, nothing, nothing, nothing, np.empty(0, dtype=np.bool_), ())


@dataclass(frozen=True, slots=True)
class Step:
    """One token of tuned text and how it was chosen.

    `text` is the text that this step releases: it lags behind `token` while a character or a possible stop string is
    incomplete; the texts of all steps joined are the text of the generation. `covered_mass` is the share of the base's
    probability that its candidates show. `drafted`: the token is the one that stood in the draft; `local`: that draft
    was the local pair's, else the base's own. `changed`: the most likely token under p is not the most likely under q.
    `finish_reason` is set on the last step only, and `reason` beside it: the server's own word, where it ended the text
    for another reason than its end or a limit. `usage` is what was spent since the step before.
    """

    token: bytes
    text: str
    token_id: int | None
    candidates: Candidates
    covered_mass: float
    drafted: bool
    changed: bool
    end: bool = False
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    local: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text, every step that led to it, and what it cost. `tail`: the tail policy; `reason`: see `Step`."""

    text: str
    steps: tuple[Step, ...] = field(repr=False)
    finish_reason: FinishReason
    usage: Usage
    tail: TailPolicy
    reason: str | None = None
