"""The two sides that decoding stands between: the `Base` far away, and the `Pair` on this machine.

    Base:   Ask -> Draft of Positions            a model behind an API; knows no alpha, no pair, no choice
    Pair:   prompt -> Session;  issued tokens, Positions -> Rows; Row: tokens of the base -> Scores

Whatever meets one of these protocols can be used in place of what this package ships; `blackbox_proxy.testing` has the
laws that it must keep.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Floats, Position, Prefix, Prompt, Scores, Token, Usage

# -- the base ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to a base: its own continuation of `prefix`, at most n >= 1 tokens.

    temperature: 0 drafts greedily, 1 draws from the base's distribution. The log probabilities shown are the model's
    own (at temperature 1) in both cases. seed: of the draw; None leaves it to the base.

    given (where `Abilities.scores`): tokens put after the prefix. The draft then begins with one position for each of
    them, and the continuation follows after the last. The base may cut their bytes into other tokens; where it does not
    keep them apart from the prefix, or could not continue from one of them, the draft holds the positions up to there
    and nothing after, possibly none.

    useful_from: fewer positions than this are of no use. Say the first token begins a character that three tokens
    finish: a remembered draft of two would lead nowhere, so a cache that has only those must ask with useful_from = 3,
    unless what it has was `cut` or ended the text.
    """

    prefix: Prefix
    n: int
    temperature: float = 0.0
    seed: int | None = None
    given: Sequence[Token] = ()
    useful_from: int = 1


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a base can do besides drafting. A base may find out more (a server that ignores `stream`), so look again.

    streams: positions arrive while it writes, and it stops writing when the stream is closed.
    scores: it shows its candidates at the tokens of given text (`Ask.given`), not only at its own.
    streams_scored: both in one request.
    draws: its drafts at temperature 1 are drawn from the very probabilities that it shows, so that accepting them with
    min(1, p/q) is exact.
    reveals: how many tokens one request can ask about by name (`reveal`); 0 where none. Where only given text is scored
    it is 1: each token costs a request.
    biases: how many tokens a request can bend towards or away from (`steer`); 0 where none.
    here: it runs in this process: a request costs what is read and written for it, and no round trip.
    """

    streams: bool = False
    scores: bool = False
    streams_scored: bool = False
    draws: bool = True
    reveals: int = 0
    biases: int = 0
    here: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Revealed:
    """What a base says of tokens that were named to it: log q (t,), nats; NaN where it does not say."""

    logprobs: Floats
    usage: Usage


@runtime_checkable
class Base(Protocol):
    """A model that continues a prefix and shows its candidates with log probabilities at every position.

    `name` is for people; `vocabulary` the base's spelling, None where it is unknown; `context` the window in tokens
    (prompt plus text), None where it is unknown.
    """

    @property
    def name(self) -> str: ...

    @property
    def vocabulary(self) -> Vocabulary | None: ...

    @property
    def context(self) -> int | None: ...

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        """Raise InputError if this prompt cannot be asked, or `max_tokens` tokens not be decoded; sends nothing."""
        ...

    def can_continue(self, prefix: Prefix) -> bool:
        """Whether a request can continue from exactly these tokens.

        False, for instance, where the prefix travels as text and its last token ends inside a character: such a token
        can only stay if the base drafted it and its draft goes on.
        """
        ...

    def room(self, prefix: Prefix) -> int | None:
        """How many more tokens fit the window after this prefix; None where that is unknown."""
        ...

    @property
    def abilities(self) -> Abilities:
        """What this base is known to be able to do by now."""
        ...

    @property
    def identity(self) -> Mapping[str, object] | None:
        """Everything that decides which log probabilities a prefix gets, for JSON; no secrets. Two bases with the same
        identity may answer for each other. None where that cannot be said, so that no answer must be kept.
        """
        ...

    async def draft(self, ask: Ask) -> Draft:
        """The base's own continuation: at most `ask.n` positions, at least one unless the base ends at once.

        Raises BaseError.
        """
        ...

    def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        """The same draft in parts, as they arrive; closing the generator stops the base.

        The parts' positions joined are the draft's, their usages add up to its usage, and the last part has its
        `finish`. The first part has the request in its usage, so that one that is cut is counted; `given` of each part
        counts its own positions. A connection that breaks after the first position ends the draft, with `finish`
        None: what has arrived has been paid for. A base without `Abilities.streams` answers in one part.
        """
        ...

    async def reveal(self, prefix: Prefix, tokens: Sequence[Token]) -> Revealed:
        """log q of these tokens as the next one after `prefix`, whether or not they are among the k candidates.

        Where `Abilities.reveals`. All end tokens are one event. Raises InputError where it cannot, BaseError.
        """
        ...

    async def steer(
        self,
        prefix: Prefix,
        bias: Mapping[Token, float],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Draft:
        """One token after `prefix`, chosen by the base from softmax((log q + bias) / temperature); at 0 the likeliest.

        Where `Abilities.biases`, and at most so many keys; bias in nats, clipped to what the API takes. The position
        may hold no candidates: an API that shows none can be steered, too. Raises InputError where it cannot,
        BaseError.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections and memory."""
        ...


# -- the pair ---------------------------------------------------------------------------------------------------------


class Row(Protocol):
    """What the pair knows at one position of a draft, after its forward pass: arithmetic over that, and no further one.

    `limit`: how many candidates are worth scoring one by one; None where a whole vocabulary costs nothing, since every
    score is the models' own.
    """

    limit: int | None

    def score(self, tokens: Sequence[Token]) -> Scores:
        """Log masses of these tokens of the base, shape (len(tokens),) each, and how far their offsets may be off."""
        ...

    def propose(self, count: int, model: int = 0) -> list[Token]:
        """At most `count` tokens that the expert finds likely, in the base's spelling, most likely first; the end
        included. model: 1 for those of the anti-expert; the expert's where there is none.
        """
        ...


@runtime_checkable
class Together(Row, Protocol):
    """A row that is scored in one go with others. `draft`: those of which this is the same object."""

    @property
    def draft(self) -> object: ...

    def score_all(self, wanted: Sequence[tuple[Any, Sequence[Token]]]) -> Scores:
        """What `score` says of these tokens at rows of one draft, those of one after those of the other."""
        ...


class Session(Protocol):
    """The scoring of one text: holds what is kept between its requests (KV caches). One call at a time; any thread."""

    def read(self, issued: Sequence[Token]) -> None:
        """Run the models over the prompt and these tokens, so that the `score` after them has less to do.

        Raises ContextTooLong.
        """
        ...

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        """One Row for each position of a draft that follows the issued tokens; of a position its token and its
        candidates are looked at, never their log q.

        Fewer rows where a drafted token cannot be identified: what follows it cannot be scored. Row j is what holds
        if the drafted tokens before it are issued as they are, whether or not the text comes to it. One forward pass of
        each model for all positions. Raises ContextTooLong when the text has outgrown a model's window.
        """
        ...

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        """Make the scores of these tokens at these rows, which are of the last `score`, the models' own: afterwards
        their `error` there is 0, or as small as it can be made. One pass of each model for all of them.

        Raises ContextTooLong.
        """
        ...

    def close(self) -> None:
        """Give back the memory of the caches."""
        ...


@runtime_checkable
class Pair(Protocol):
    """A tuned (expert) and an untuned (anti-expert) local model; the anti-expert may be absent, then log A = 0."""

    @property
    def has_antiexpert(self) -> bool: ...

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        """Raise InputError or PairError if this prompt cannot be scored; runs no model."""
        ...

    def open(self, prompt: Prompt, base: Vocabulary | None) -> Session:
        """Start scoring a text. `base` is the spelling of the base, None where it is unknown."""
        ...

    def close(self) -> None: ...
