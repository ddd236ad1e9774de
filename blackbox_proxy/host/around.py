"""What an engine around another engine passes on as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from blackbox_proxy.serve.engine import Cutting, Engine, TextWanted


class EngineAround:
    """Everything of an `Engine` but how it writes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def top_logprobs(self) -> int:
        return self._engine.top_logprobs

    @property
    def context(self) -> int | None:
        return self._engine.context

    @property
    def own_fields(self) -> Collection[str]:
        return self._engine.own_fields

    @property
    def about(self) -> Mapping[str, Any]:
        return self._engine.about

    @property
    def source(self) -> str:
        return self._engine.source if isinstance(self._engine, Cutting) else ""

    def cut(self, text: str) -> tuple[int, ...]:
        return self._engine.cut(text) if isinstance(self._engine, Cutting) else ()

    def check(self, wanted: TextWanted) -> None:
        self._engine.check(wanted)
