"""An engine that writes greedy texts once: the same answers, and the model is asked no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from blackbox_proxy.host.remembering import Remembering
from blackbox_proxy.serve.engine import Event, TextWanted
from blackbox_proxy.types import Usage

TEXT = ["a", "b", "c", "d"]


class Writing:
    """An engine that counts what it writes."""

    name, top_logprobs, context, own_fields = "m", 5, None, ()
    about: dict[str, Any] = {}

    def __init__(self) -> None:
        self.written = 0

    def check(self, wanted: TextWanted) -> None: ...

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        for i, text in enumerate(TEXT):
            self.written += 1
            yield Event(text, finish_reason="stop" if i == len(TEXT) - 1 else None, usage=Usage(0, 0, 1))


def test_a_text_that_was_left_is_given_again_and_goes_on() -> None:
    engine = Writing()
    remembering = Remembering(engine)

    async def read(count: int, **options: Any) -> str:
        found = ""
        async with aclosing(remembering.complete(TextWanted("x", 8, **options))) as events:
            async for event in events:
                found += event.text
                if len(found) == count:
                    break
        return found

    async def reads() -> None:
        assert await read(2, temperature=0.0) == "ab"
        assert engine.written == 2
        assert await read(2, temperature=0.0) == "ab"
        assert engine.written == 2
        assert await read(9, temperature=0.0) == "abcd"
        assert engine.written == 6  # from the beginning: an engine cannot be taken up in the middle
        assert await asyncio.gather(*(read(9, temperature=0.0) for _ in range(3))) == ["abcd"] * 3
        assert engine.written == 6
        assert await read(9, temperature=0.0, stop=("z",)) == "abcd"
        assert await read(9, temperature=0.0, own={"n": 1}) == "abcd"
        assert await read(9, temperature=1.0) == await read(9, temperature=1.0) == "abcd"
        assert engine.written == 6 + 4 * 4

    asyncio.run(reads())
