"""What a base around another base passes on as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blackbox_proxy.protocols import Abilities, Base, Revealed
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Prefix, Prompt, Token


class BaseAround:
    """Everything of a `Base` but how it is asked."""

    def __init__(self, base: Base) -> None:
        self.base = base

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def vocabulary(self) -> Vocabulary | None:
        return self.base.vocabulary

    @property
    def context(self) -> int | None:
        return self.base.context

    @property
    def abilities(self) -> Abilities:
        return self.base.abilities

    @property
    def identity(self) -> Mapping[str, object] | None:
        return self.base.identity

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        self.base.check(prompt, max_tokens)

    def can_continue(self, prefix: Prefix) -> bool:
        return self.base.can_continue(prefix)

    def room(self, prefix: Prefix) -> int | None:
        return self.base.room(prefix)

    async def reveal(self, prefix: Prefix, tokens: Sequence[Token]) -> Revealed:
        return await self.base.reveal(prefix, tokens)

    async def steer(self, prefix: Prefix, bias: Mapping[Token, float], **options: Any) -> Draft:
        return await self.base.steer(prefix, bias, **options)

    async def aclose(self) -> None:
        await self.base.aclose()
