"""What the questions of a probe share: whom they ask, the draft that they compare with, and what is found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from blackbox_proxy.api.entries import token_of
from blackbox_proxy.api.positions import RawPosition
from blackbox_proxy.probing.answers import Answered
from blackbox_proxy.probing.client import Asker
from blackbox_proxy.text.vocabulary import Vocabulary

TEXTS = (
    "The weather in New York was fine, and the people of the town",
    "Once upon a time, in a village by the sea, there was a",
    "The capital of France is Paris, and the capital of",
    "1, 2, 3, 4, 5,",
)
TALKS = (
    "Say in one sentence what the weather is like.",
    "Count from one to twenty.",
    "Tell me about Paris.",
    "Write a short story about the sea.",
)
IDS_OUT = {"return_tokens_as_token_ids": True, "return_token_ids": True}
ANY_ID = 300  # an id that every vocabulary has; also how many keys OpenAI's API takes in a logit_bias
MOST_BIAS = 100.0
_FEW = 5  # candidates, where no more are needed


@dataclass(frozen=True, slots=True)
class Most:
    """How many candidates the API gives at most, how that was found out, and the answer that told it."""

    k: int
    how: Literal["named", "silent", "tried", "open"]
    answer: Answered


@dataclass(slots=True)
class Inquiry:
    """One API that is probed. refused: question -> why it has no answer. found: fields of `Findings`."""

    asker: Asker
    most: Most
    refused: dict[str, str]
    prompt: str = ""  # that of the draft
    draft: list[RawPosition] = field(default_factory=list)
    text: str = ""  # of the draft
    draft_with_ids: list[RawPosition] = field(default_factory=list)  # the same, asked for with `IDS_OUT`
    prompt_ids: list[int] = field(default_factory=list)  # where `IDS_OUT` showed them
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prompt = self.prompts[0]
        self.found |= {"k": self.most.k, "k_how": self.most.how}

    @property
    def prompts(self) -> tuple[str, ...]:
        return TEXTS if self.asker.api == "completions" else TALKS

    @property
    def k(self) -> int:
        return min(_FEW, self.most.k)

    @property
    def native(self) -> bool:
        """Whether the server is asked through SGLang's own route."""
        return self.asker.dialect.native is not None

    @property
    def vocabulary(self) -> Vocabulary | None:
        return self.asker.vocabulary

    async def ask(self, n: int, **fields: Any) -> Answered:
        """n more tokens after the prompt, with some candidates. Raises BaseError, BudgetReached."""
        return await self.asker.ask(self.prompt, n, self.k, **fields)

    def drawn_ids(self) -> tuple[list[int], list[RawPosition]]:
        """The ids of the draft's tokens as far as all are known, and the rows that show them."""
        rows, ids = self.draft_with_ids or self.draft, list[int]()
        for row in rows:
            token = token_of(row.sampled, self.vocabulary)
            if token.id is None or token.end:
                break
            ids.append(token.id)
        return ids, rows[: len(ids)]

    def other_ids(self) -> list[int]:
        """Ids of plain words that are not among the candidates of the draft's first token, as far as is known."""
        vocabulary = self.vocabulary
        first = [token_of(entry, vocabulary) for entry in self.draft[0].shown] if self.draft else []
        taken = {token.id for token in first} | {token.bytes for token in first}
        listed = [token_of(entry, vocabulary) for row in self.most.answer.rows for entry in row.shown]
        if vocabulary is not None:
            listed += [vocabulary.token_of(index) for index in range(min(len(vocabulary), ANY_ID + 200))]
        found = [
            token.id
            for token in listed
            if token.id is not None and _plain(token.bytes) and not {token.id, token.bytes} & taken
        ]
        return list(dict.fromkeys([*found, ANY_ID, ANY_ID - 1]))


def _plain(raw: bytes | None) -> bool:
    return raw is not None and raw.isascii() and raw.strip().isalnum()
