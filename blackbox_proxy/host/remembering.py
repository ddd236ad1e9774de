"""A black box that never saturates: greedy texts are written once, and given again without the model.

    Remembering(engine)

For measuring what a program costs by itself: what it asks for a second time takes no processor but that of the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blackbox_proxy.host.around import EngineAround
from blackbox_proxy.serve.engine import Engine, Event, TextWanted


class Remembering(EngineAround):
    """An engine that keeps the events of all greedy texts, without limit."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._known: dict[str, list[Event]] = {}

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        # Fields of the request that only the engine reads may ask for anything, so such a text is written each time.
        events = [] if wanted.temperature > 0.0 or wanted.own else self._known.setdefault(repr(wanted), [])
        given = 0
        while given < len(events):
            given += 1
            yield events[given - 1]
        if events and events[-1].finish_reason is not None:
            return
        async with aclosing(self._engine.complete(wanted)) as written:  # a client left it there the last time
            number = 0
            async for event in written:
                number += 1
                if number == len(events) + 1:
                    events.append(event)
                if number > given:
                    yield event
