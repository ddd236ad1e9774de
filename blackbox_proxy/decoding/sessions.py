"""Opening the sessions of one text, and closing them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from blackbox_proxy.protocols import Pair, Session
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Prompt


@contextmanager
def opened(pairs: Sequence[Pair], prompt: Prompt, base: Vocabulary | None) -> Iterator[list[Session]]:
    """Sessions of all pairs for one prompt; `base`: the base's spelling, None where it is unknown."""
    with ExitStack() as stack:
        sessions = []
        for pair in pairs:
            session = pair.open(prompt, base)
            stack.callback(session.close)
            sessions.append(session)
        yield sessions
