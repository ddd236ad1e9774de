"""What all laws have in common: how they are put, and the sentence in which a broken one says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Law = TypeVar("Law", bound=Callable[..., object])
P = TypeVar("P")

_LONGEST = 600  # characters of a value in a sentence


@dataclass(frozen=True, slots=True)
class How:
    """tokens: how long the drafts are. tolerance: by how many nats two equal log probabilities may differ, and below
    which two tokens are a tie. draws: how many tokens are drawn to see whether draws follow what is shown; 0 for none.
    """

    tokens: int = 8
    tolerance: float = 1e-3
    draws: int = 0


def expect(holds: object, expected: object, came: object, where: str) -> None:
    """Raise AssertionError, in one sentence, unless it holds."""
    if not holds:
        raise AssertionError(f"{where}: expected {_short(expected)}, but {_short(came)} came")


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def broken(law: Callable[..., object], what: str, prompt: object, error: AssertionError) -> AssertionError:
    """The error of a broken law, with the law and the prompt at which it was broken."""
    sentence = " ".join((law.__doc__ or "").split())
    return AssertionError(f"{what} breaks {law.__name__} ({sentence}) at the prompt {prompt!r}.\n{error}")


def put(laws: Sequence[Law], prompts: Sequence[P], holds: Callable[[Law, P], bool], what: str) -> tuple[str, ...]:
    """Put each law to `what` at each prompt; the names of those of which `holds` said that they could be put."""
    kept = []
    for law in laws:
        applied = False
        for prompt in prompts:
            try:
                applied = holds(law, prompt) or applied
            except AssertionError as error:
                raise broken(law, what, prompt, error) from None
        if applied:
            kept.append(law.__name__)
    return tuple(kept)
