"""What the bases that tests make up have in common. mypy holds them to the protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence

from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.errors import InputError
from blackbox_proxy.protocols import Abilities, Ask, Base, Revealed
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Draft, Prefix, Prompt, Token


class FakeBase:
    """A base that takes everything and can do nothing besides drafting; a fake adds `draft`."""

    name = "fake"
    vocabulary: Vocabulary | None = None
    context: int | None = None

    @property
    def abilities(self) -> Abilities:
        return Abilities()

    @property
    def identity(self) -> Mapping[str, object] | None:
        return None

    def check(self, prompt: Prompt, max_tokens: int) -> None: ...

    def can_continue(self, prefix: Prefix) -> bool:
        return True

    def room(self, prefix: Prefix) -> int | None:
        return None

    async def draft(self, ask: Ask) -> Draft:
        raise NotImplementedError

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        yield await self.draft(ask)

    async def reveal(self, prefix: Prefix, tokens: Sequence[Token]) -> Revealed:
        raise InputError("it names no tokens")

    async def steer(
        self,
        prefix: Prefix,
        bias: Mapping[Token, float],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Draft:
        raise InputError("it takes no bias")

    async def aclose(self) -> None: ...


class FakeAround(BaseAround):
    """A base around another that answers as that one does, whole; a fake changes some of it."""

    async def draft(self, ask: Ask) -> Draft:
        return await self.base.draft(ask)

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        yield await self.draft(ask)


_fakes: list[Base] = [FakeBase(), FakeAround(FakeBase())]  # mypy checks that they are bases
