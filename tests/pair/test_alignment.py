"""Events across two tokenizers: they add up to one, equal brute force, and do not depend on how many are asked at
once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toys import toy_lm, toy_vocabulary

from blackbox_proxy.aligning import alignment
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import END, Position, Token


@pytest.fixture(params=["tables", "ranges"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of summing events up: the one for small local vocabularies and the one for large ones."""
    if request.param == "ranges":
        monkeypatch.setattr(alignment, "_TABLED", 0)
    return str(request.param)


BASE = toy_vocabulary(
    ["a", "b", "c", " ", "ab", "abc", " a", " ab", "bc", "cc"],
    [("a", "b"), ("ab", "c"), (" ", "a"), (" a", "b"), ("b", "c"), ("c", "c")],
)
LOCAL = toy_vocabulary(
    ["a", "b", "c", " ", "bc", "ca", " b", "aa", "bca"], [("b", "c"), ("c", "a"), (" ", "b"), ("a", "a"), ("bc", "a")]
)


def position(token: bytes, candidates: list[Token]) -> Position:
    uniform = np.full(len(candidates), -np.log(max(len(candidates), 1)))
    return Position(BASE.token(token), float(uniform[0]), candidates, uniform)


def everything(base: Vocabulary) -> list[Token]:
    return [base.token_of(i) for i in range(len(base))]


def brute_force(lm: CausalLM, base: Vocabulary, read: list[int], tail: bytes) -> dict[bytes, float]:
    """Event masses by walking every local path until no longer token of the base can begin with what it wrote."""
    masses: dict[bytes, float] = {}

    def next_probabilities(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            row: np.ndarray = lm.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()
            return row

    def walk(ids: list[int], text: bytes, mass: float) -> None:
        probabilities = next_probabilities(ids)
        for index, spelling in enumerate(lm.vocabulary.spelling):
            here = mass * float(probabilities[index])
            longer = text + (spelling or b"")
            after = longer[len(tail) :]
            if not spelling:
                if len(text) >= len(tail):
                    ended = text[len(tail) :]
                    key = base.first([ended])[0] if ended else b"END"
                    masses[key] = masses.get(key, 0.0) + here
            elif not (longer.startswith(tail) or tail.startswith(longer)):
                continue
            elif not after or any(s and s.startswith(after) and s != after for s in base.spelling):
                walk([*ids, index], longer, here)
            else:
                key = base.first([after])[0]
                masses[key] = masses.get(key, 0.0) + here

    walk(read, b"", 1.0)
    total = sum(masses.values())
    return {key: mass / total for key, mass in masses.items()}


@pytest.mark.parametrize("issued", [[], [b"ab"], [b"ab", b" a"], [b"b"], [b"abc", b"c", b"b"]])
@pytest.mark.parametrize("seed", [1, 2])
def test_all_segmentations_equal_brute_force(issued: list[bytes], seed: int) -> None:
    lm = toy_lm(LOCAL, seed)
    pair = TransformersPair(lm, toy_lm(LOCAL, seed + 10), segmentations="all")
    session: Any = pair.open("ab c", BASE)
    tokens = [BASE.token(spelling) for spelling in issued]
    row = session.score(tokens, [position(b"a", everything(BASE))])[0]
    scores = row.score(everything(BASE))
    side = session._sides[0]
    expected = brute_force(lm, BASE, *side.text_after(tokens))
    exact = [i for i, how in enumerate(scores.how) if how == "exact"]
    found = {(BASE.spelling[i] or b"END"): float(np.exp(scores.log_expert[i])) for i in exact}
    assert (
        found.keys() >= expected.keys()
    )  # the others (" ab": the base itself never writes it so) have no event of their own
    for key, mass in found.items():
        assert mass == pytest.approx(expected.get(key, 0.0), abs=1e-5), key
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("issued", [[], [b"ab"], [b" a"], [b"b", b"c"]])
def test_canonical_events_add_up_to_one(issued: list[bytes]) -> None:
    pair = TransformersPair(toy_lm(LOCAL, 3), toy_lm(LOCAL, 4), exact=True)
    tokens = [BASE.token(spelling) for spelling in issued]
    scores = pair.open("ab c", BASE).score(tokens, [position(b"a", everything(BASE))])[0].score(everything(BASE))
    exact = np.array([how in ("exact", "estimated") for how in scores.how])  # summed, by paths of others or not
    assert np.exp(scores.log_expert[exact]).sum() == pytest.approx(1.0, abs=1e-4)
    assert np.exp(scores.log_antiexpert[exact]).sum() == pytest.approx(1.0, abs=1e-4)


def test_many_positions_equal_single_ones() -> None:
    pair = TransformersPair(toy_lm(LOCAL, 5), toy_lm(LOCAL, 6), exact=True)
    drafted = [b"ab", b"c", b" ab", b"bc", b" ", b" a", b"cc"]
    positions = [position(token, everything(BASE)) for token in drafted]
    many = pair.open("cab", BASE).score([], positions)
    session = pair.open("cab", BASE)
    for j, row in enumerate(many):
        single = session.score([BASE.token(token) for token in drafted[:j]], positions[j : j + 1])[0]
        assert np.allclose(row.score(everything(BASE)).offset, single.score(everything(BASE)).offset, atol=1e-4)


def test_equal_models_give_exactly_no_offset() -> None:
    lm = toy_lm(LOCAL, 7)
    odd = [END, Token(bytes=None, text="�"), Token(id=999, bytes=b"", text="<special>"), Token(bytes=b"\xe2\x80")]
    candidates = [*everything(BASE), *odd]
    row = TransformersPair(lm, lm, exact=True).open("ab", BASE).score([], [position(b"a", candidates)])[0]
    assert np.array_equal(row.score(candidates).offset, np.zeros(len(candidates)))
