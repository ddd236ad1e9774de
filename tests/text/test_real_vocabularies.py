"""Real vocabularies, random weights: every candidate of a cl100k base gets a finite, explained offset from either
pair.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from toys import tiny_model

from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.spelling import from_pretrained, from_tiktoken
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import END, Position, Token

TEXTS = {
    "English": "The quick brown fox jumps over New York, doesn't it?  Yes.",
    "code": "def f(x):\n    return x**2 + 12345\n\n",
    "digits": "2023 12 1,024 3.14159 20 2000",
    "Chinese": "东京是日本的首都。中国人民",
    "emoji": "👍🏽 ok 👩‍💻 fine 🎉🎉",
    "right to left": "שלום עולם مرحبا بالعالم",
}


@pytest.fixture(scope="module")
def base(tokenizers: Path) -> Vocabulary:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tokenizers / "tiktoken"))
        return from_tiktoken("cl100k_base")


@pytest.fixture(scope="module", params=["llama-spm", "qwen2"])
def pair(request: pytest.FixtureRequest, tokenizers: Path) -> TransformersPair:
    vocabulary = from_pretrained(str(tokenizers / request.param))
    architecture = "qwen2" if request.param == "qwen2" else "llama"
    models = [tiny_model(architecture, len(vocabulary), seed) for seed in (1, 2)]
    return TransformersPair(*(CausalLM(model, vocabulary) for model in models), exact=True)


@pytest.fixture(scope="module")
def estimated(pair: TransformersPair) -> TransformersPair:
    """The same models, which estimate first."""
    return TransformersPair(*(model for model, _ in pair.models))


def candidates_at(base: Vocabulary, drafted: int, text: bytes, rng: np.random.Generator) -> list[Token]:
    """Twenty, as an API would show: the drafted one, tokens that begin like it, common ones, odd ones, the end."""
    spelling = base.spelling[drafted] or b""
    alike = base.beginning_with(spelling[:2])
    chosen = [drafted, *rng.choice(alike, min(6, len(alike)), replace=False), *rng.integers(0, 3000, 9)]
    chosen += [int(i) for i in rng.integers(3000, len(base), 4) if base.spelling[i]]
    return [*(base.token_of(int(i)) for i in dict.fromkeys(chosen)), END]


QUICK = {"emoji"}  # its characters are cut; by estimates, every language is gone through


@pytest.mark.parametrize(
    "language", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TEXTS]
)
def test_no_candidate_is_dropped(language: str, base: Vocabulary, pair: TransformersPair) -> None:
    rng = np.random.default_rng(0)
    session = pair.open("Here is a text: ", base)
    issued: list[Token] = []
    how: Counter[str] = Counter()
    for index in base.encode([TEXTS[language].encode()])[0]:
        candidates = candidates_at(base, index, b"", rng)
        position = Position(base.token_of(index), -1.0, candidates, np.linspace(-1.0, -9.0, len(candidates)))
        row = session.score(issued, [position])[0]
        scores = row.score(candidates)
        assert scores.offset.shape == (len(candidates),)
        assert np.isfinite(scores.offset).all()
        proposed = row.propose(16)
        assert np.isfinite(row.score(proposed).offset).all()
        how.update(scores.how)
        issued.append(base.token_of(index))
    assert how["exact"] > 0.5 * how.total()
    assert how["exact"] + how["estimated"] > 0.97 * how.total(), "what hangs on the other candidates says estimated"
    assert how["neutral"] == 0


@pytest.mark.parametrize("language", TEXTS)
def test_no_candidate_is_dropped_by_estimates(language: str, base: Vocabulary, estimated: TransformersPair) -> None:
    rng = np.random.default_rng(0)
    session = estimated.open("Here is a text: ", base)
    drafted = [base.token_of(index) for index in base.encode([TEXTS[language].encode()])[0]]
    how: Counter[str] = Counter()
    positions = []
    for token in drafted:
        candidates = candidates_at(base, token.id or 0, b"", rng)
        positions.append(Position(token, -1.0, candidates, np.linspace(-1.0, -9.0, len(candidates))))
    rows = session.score([], positions)
    session.refine([(row, position.tokens[:2]) for row, position in zip(rows, positions, strict=True)])
    for row, position in zip(rows, positions, strict=True):
        scores = row.score(position.tokens)
        assert np.isfinite(scores.offset).all()
        assert np.isfinite(row.score(row.propose(16)).offset).all()
        how.update(scores.how)
    assert how["exact"] + how["estimated"] > 0.97 * how.total()


def test_many_positions_equal_single_ones(base: Vocabulary, pair: TransformersPair) -> None:
    rng = np.random.default_rng(1)
    ids = base.encode([(TEXTS["English"] + TEXTS["emoji"]).encode()])[0][:6]
    drafted = [base.token_of(index) for index in ids]
    rows = [candidates_at(base, index, b"", rng) for index in ids]
    positions = [
        Position(token, -1.0, row, np.linspace(-1.0, -9.0, len(row))) for token, row in zip(drafted, rows, strict=True)
    ]
    many = pair.open("A text:", base).score([], positions)
    session = pair.open("A text:", base)
    for j in range(len(ids)):
        single = session.score(drafted[:j], positions[j : j + 1])[0].score(rows[j])
        assert np.allclose(many[j].score(rows[j]).offset, single.offset, atol=2e-3)
