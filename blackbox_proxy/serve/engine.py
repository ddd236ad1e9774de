"""What stands behind the routes: an `Engine` is asked for one text (`TextWanted`) and answers with `Event`s.

`host` puts a local model behind this. An engine does the stopping (end token, stop strings,
length); the routes only write down what it says.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from blackbox_proxy.dialects.table import After
from blackbox_proxy.types import FinishReason, Position, Usage

Ending = Literal["reply", "continue", "none"]


@dataclass(frozen=True, slots=True)
class TextWanted:
    """One text that is wanted: one choice of one request, with the defaults of the API filled in."""

    prompt: str | tuple[int, ...] | tuple[Mapping[str, str], ...]  # text, token ids or chat messages
    max_tokens: int | None  # None: as many as fit
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # candidates shown per position; None: no log probabilities
    echo: bool = False  # the prompt comes back first, scored if `top_logprobs` is given
    echo_last: int | None = None  # only so many tokens at its end
    add_special_tokens: bool | None = None  # None: what is usual with this kind of prompt
    ending: Ending = "reply"  # of messages: open an answer, go on with the last one as it is written, or add nothing
    bias: Mapping[int, float] = field(default_factory=dict)  # nats added to the logits of ids before a token is chosen
    shown_ids: tuple[int, ...] = ()  # log probabilities are shown of these, in place of the most likely tokens
    own: Mapping[str, Any] = field(default_factory=dict)  # fields of the request that the engine reads itself
    # Of an emulated server:
    penalty: float = 1.0  # on repetition
    after: After = "nothing"  # what shown log probabilities have been through
    echo_scored: bool = True  # whether an echo has any


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A token, where it begins in the text (characters), and whether it was generated or is part of the prompt. about:
    what the engine tells of it, besides.
    """

    position: Position
    offset: int
    generated: bool = True
    about: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """What has become certain since the event before: text, and the tokens it is made of.

    Text lags behind while a character or a possible stop string is incomplete. The last event has the finish reason;
    its last entry is the end token where the model wrote one. `usage` is what was spent since the event before;
    `upstream` what another API billed for that, None where there is none. `prompt_ids` come with the first event, where
    they are known.
    """

    text: str = ""
    entries: tuple[Placed, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    prompt_ids: tuple[int, ...] | None = None
    upstream: Usage | None = None


class Engine(Protocol):
    """A model that writes texts. `name` is what requests call it, `context` its window in tokens.

    `top_logprobs` is the most candidates that a request may ask for. `own_fields`: those of a request's body that the
    engine reads itself (`TextWanted.own`). `about`: what the list of models says of it, besides.
    """

    @property
    def name(self) -> str: ...

    @property
    def top_logprobs(self) -> int: ...

    @property
    def context(self) -> int | None: ...

    @property
    def own_fields(self) -> Collection[str]: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    def check(self, wanted: TextWanted) -> None:
        """Raise InputError (ContextTooLong) if this cannot be done; runs no model. Called from a thread."""
        ...

    def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        """The events of one text. Closing the generator stops the model. Raises BlackboxError."""
        ...


@runtime_checkable
class Cutting(Protocol):
    """An engine that tells its tokenizer. `source`: the folder or hub id that it is from."""

    @property
    def source(self) -> str: ...

    def cut(self, text: str) -> tuple[int, ...]:
        """The ids of a text as a prompt. Called from a thread."""
        ...
