"""A word that was added to a tokenizer has one probability, however the base spells it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import train_tokenizer
from transformers import LlamaConfig

from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Position

WORDS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "🦜",
    "[INST]",
    "\n\n### Answer:",
    " New Yorker",
    "<|x|>",
    "ß",
    "thinking",
)


def with_words(kind: str, words: tuple[str, ...]) -> Vocabulary:
    tokenizer = train_tokenizer(kind, 450, 1)
    tokenizer.add_tokens(list(words))
    return from_tokenizer(tokenizer)


PROMPT = "so it goes 2"


class Insists(torch.nn.Module):
    """A model that writes one text, each token with the same logit above all others; elsewhere it knows nothing."""

    def __init__(self, size: int, ids: Sequence[int], logit: float) -> None:
        super().__init__()
        self.ids, self.logit = list(ids), logit
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = LlamaConfig(vocab_size=size, num_hidden_layers=1)

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **_: object) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(min(len(ids), len(self.ids) - 1)):
                if ids[: place + 1] == self.ids[: place + 1]:
                    logits[row, place, self.ids[place + 1]] = self.logit
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def expert(local: Vocabulary, word: str, probability: float) -> tuple[TransformersPair, float]:
    """One that writes `word` after the prompt, each token with this probability, and ends; and that of the word."""
    written = local.encode([word.encode()])[0]
    logit = float(np.log(probability / (1 - probability) * (len(local) - 1)))
    model = Insists(len(local), [*local.prompt_ids(PROMPT), *written, 1], logit)  # then it ends
    lm = CausalLM(model, local)
    lm.caches = lm.trees = False  # it has to see the whole text
    return TransformersPair(lm, exact=True), probability ** len(written)


def product(pair: TransformersPair, base: Vocabulary, text: str) -> float:
    """E of a text over the base's own pieces of it, as decoding issues them one by one."""
    pieces = [base.token_of(i) for i in base.encode([text.encode()])[0]]
    others = [base.token_of(i) for i in (40, 60, 80)]
    session = pair.open(PROMPT, base)
    total = 0.0
    for j, piece in enumerate(pieces):
        candidates = [piece, *others]
        position = Position(piece, -0.1, candidates, np.linspace(-0.1, -4.0, len(candidates)))
        scores = session.score(pieces[:j], [position])[0].score(candidates)
        assert scores.how[0] == "exact"
        total += float(scores.log_expert[0])
    return float(np.exp(total))


@pytest.mark.parametrize("where", ["pair", "base", "both"])
@pytest.mark.parametrize("kind", ["digits", "pieces"])
@pytest.mark.parametrize("word", WORDS)
def test_the_bases_pieces_of_a_word_have_the_words_own_probability(word: str, kind: str, where: str) -> None:
    local = with_words(kind, (word,) if where != "base" else ())
    base = with_words("bytes", (word,) if where != "pair" else ())
    pair, probability = expert(local, word, 0.998)
    assert product(pair, base, word) == pytest.approx(probability, abs=1e-3)


def test_many_positions_of_a_draft_know_the_word_too() -> None:
    local, base = with_words("digits", ("</think>",)), with_words("bytes", ())
    pair, probability = expert(local, "</think>", 0.998)
    pieces = [base.token_of(i) for i in base.encode([b"</think>"])[0]]
    assert len(pieces) > 2
    positions = [Position(piece, -0.1, [piece], np.array([-0.1])) for piece in pieces]
    rows = pair.open(PROMPT, base).score([], positions)
    total = sum(float(row.score([piece]).log_expert[0]) for row, piece in zip(rows, pieces, strict=True))
    assert np.exp(total) == pytest.approx(probability, abs=1e-3)
