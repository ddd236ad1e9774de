"""Estimates first: what the row after the text says of a candidate, how far that may be off, what refining changes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from toys import tiny_model, train_tokenizer

from blackbox_proxy.aligning.alignment import Alignment
from blackbox_proxy.aligning.crossing import Crossing
from blackbox_proxy.aligning.tree import Path as Nodes
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.pair import estimates
from blackbox_proxy.pair.contended import ways
from blackbox_proxy.pair.estimated import EstimatedSession
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.spelling import from_pretrained, from_tokenizer
from blackbox_proxy.text.vocabulary import LearnedVocabulary
from blackbox_proxy.types import END, Position, Token

BASE = from_tokenizer(train_tokenizer("bytes", 500))
LOCALS = {kind: from_tokenizer(train_tokenizer(kind, 450, 1)) for kind in ("digits", "pieces")}
TEXT = " New York 2023, isn't it? The theory of 42 towns"


def lm(kind: str, seed: int) -> CausalLM:
    vocabulary = LOCALS[kind]
    return CausalLM(tiny_model("llama", len(vocabulary), seed), vocabulary, f"{kind}-{seed}")


@pytest.fixture(scope="module", params=sorted(LOCALS))
def both(request: pytest.FixtureRequest) -> tuple[TransformersPair, TransformersPair]:
    """The same two models, estimated and summed."""
    models = lm(request.param, 1), lm(request.param, 101)
    return TransformersPair(*models), TransformersPair(*models, exact=True)


def tokens_of(text: str) -> list[Token]:
    return [BASE.token_of(i) for i in BASE.encode([text.encode()])[0]]


def positions_of(drafted: Sequence[Token], seed: int = 0) -> list[Position]:
    rng = np.random.default_rng(seed)
    ordinary = [i for i, spelling in enumerate(BASE.spelling) if spelling]
    found = []
    for token in drafted:
        others = [BASE.token_of(int(i)) for i in rng.choice(ordinary, 7, replace=False)]
        tokens = [token, *(other for other in others if other.key != token.key), END]
        found.append(Position(token, -1.0, tokens, np.linspace(-1.0, -4.0, len(tokens))))
    return found


def test_estimates_are_marked_with_how_far_they_may_be_off(both: tuple[TransformersPair, TransformersPair]) -> None:
    (position,) = positions_of(tokens_of(" New")[:1])
    row = both[0].open("The mayor of", BASE).score([], [position])[0]
    scores = row.score(position.tokens)
    assert set(scores.how[:-1]) == {"estimated"}
    assert (scores.error[:-1] > 0.0).all()
    assert (scores.how[-1], scores.error[-1]) == ("exact", 0.0), "the end is a token of the models' own"


def test_refined_tokens_have_no_error_and_others_stay_as_they_were(
    both: tuple[TransformersPair, TransformersPair],
) -> None:
    positions = positions_of(tokens_of(TEXT)[:6])
    session = both[0].open("The mayor of", BASE)
    rows = session.score([], positions)
    session.refine([(row, position.tokens[:2]) for row, position in zip(rows, positions, strict=True)])
    for row, position in zip(rows, positions, strict=True):
        scores = row.score(position.tokens)
        assert scores.how[:2] == ("exact", "exact")
        assert not scores.error[:2].any()
        assert (scores.error[2:-1] > 0.0).all()


def test_a_row_is_a_function_of_the_text_and_of_what_is_refined_there(
    both: tuple[TransformersPair, TransformersPair],
) -> None:
    """Law 10: many positions at once, one at a time, and after other questions."""
    drafted = tokens_of(TEXT)
    positions = positions_of(drafted)
    together = both[0].open("The mayor of", BASE)
    many = together.score([], positions)
    together.refine([(row, position.tokens[:3]) for row, position in zip(many, positions, strict=True)])
    single = both[0].open("The mayor of", BASE)
    for j in reversed(range(len(drafted))):
        (row,) = single.score(drafted[:j], positions[j : j + 1])
        row.propose(10)
        single.refine([(row, positions[j].tokens[:3])])
        ours, theirs = many[j].score(positions[j].tokens), row.score(positions[j].tokens)
        assert ours.how == theirs.how
        assert np.allclose(ours.log_expert, theirs.log_expert, atol=1e-3)
        assert np.allclose(ours.error, theirs.error, atol=1e-3)


def test_equal_models_have_no_offset(both: tuple[TransformersPair, TransformersPair]) -> None:
    model = both[0].models[0][0]
    positions = positions_of(tokens_of(TEXT))
    for row, position in zip(
        TransformersPair(model, model).open("In", BASE).score([], positions), positions, strict=True
    ):
        assert np.array_equal(row.score(position.tokens).offset, np.zeros(len(position.tokens)))


def test_covering_tokens_partition_the_local_vocabulary() -> None:
    for local in LOCALS.values():
        crossing = Crossing(Alignment(local, BASE))
        seen: list[int] = []
        for token in {spelling for spelling in BASE.spelling if spelling}:
            ids = crossing.of([token])[0].covering.tolist()
            assert all((local.spelling[i] or b"").startswith(token) for i in ids)
            seen += ids
        assert len(seen) == len(set(seen))
        missing = {i for i, spelling in enumerate(local.spelling) if spelling} - set(seen)
        assert all(BASE.id_of(BASE.first([local.spelling[i] or b""])[0]) is None for i in missing)


def test_a_learned_base_is_covered_by_longest_match() -> None:
    local = LOCALS["pieces"]
    written = max(
        (i for i, spelling in enumerate(local.spelling) if spelling), key=lambda i: len(local.spelling[i] or b"")
    )
    whole = local.spelling[written] or b""
    shown = [whole[:1], whole[:2], whole]
    learned = LearnedVocabulary(shown)
    crossing = Crossing(Alignment(local, learned))
    for token in shown:
        covering = crossing.of([token])[0].covering
        assert [learned.first([local.spelling[int(i)] or b""])[0] for i in covering] == [token] * len(covering)
    (codes,), events = crossing.codes([np.array([written])])
    assert [events[code] for code in codes] == [whole]


def test_many_texts_at_once_are_those_of_each_alone(both: tuple[TransformersPair, TransformersPair]) -> None:
    """Law 12: threads that score together share passes, memos and caches."""
    drafted = tokens_of(TEXT)
    prompts = [f"Text {i} about the mayor of" for i in range(8)]

    def scored(prompt: str) -> list[np.ndarray]:
        session = both[0].open(prompt, BASE)
        found = []
        for start in range(0, len(drafted) - 3, 3):
            positions = positions_of(drafted[start : start + 3], seed=start)
            rows = session.score(drafted[:start], positions)
            session.refine([(row, position.tokens[:2]) for row, position in zip(rows, positions, strict=True)])
            found += [row.score(position.tokens).offset for row, position in zip(rows, positions, strict=True)]
        session.close()
        return found

    alone = [scored(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(scored, prompts))
    for one, other in zip(alone, together, strict=True):
        assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(one, other, strict=True))


def test_a_second_text_with_the_same_beginning_reads_only_what_is_new() -> None:
    model = lm("digits", 5)
    pair = TransformersPair(model)
    prompt = "The mayor of New York said that the theory of towns is 42. " * 12
    reader = model.reader
    read = []
    for ending in ("", " Then"):
        start = reader.read_tokens
        session = pair.open(prompt + ending, BASE)
        session.score([], positions_of(tokens_of(" New")))
        session.close()
        read.append(reader.read_tokens - start)
    assert read[1] < 40 < 100 < read[0]


def test_estimates_are_the_default_and_exact_is_asked_for(both: tuple[TransformersPair, TransformersPair]) -> None:
    assert isinstance(both[0].open("a", BASE), EstimatedSession)
    assert not isinstance(both[1].open("a", BASE), EstimatedSession)


def test_what_is_written_in_pieces_may_be_off_by_as_much_as_the_models_differ(
    both: tuple[TransformersPair, TransformersPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [BASE.token_of(i) for i, spelling in enumerate(BASE.spelling) if spelling]
    tokens = tokens[:50] + tokens[-50:]  # characters, which local ones cover, and words
    position = Position(tokens[-1], -1.0, tokens, np.linspace(-1.0, -4.0, 100))
    errors = []
    for wild in (0.0, 100.0):
        monkeypatch.setattr(estimates, "_WILD", wild)
        (row,) = both[0].open("The mayor of", BASE).score([], [position])
        errors.append(row.score(tokens).error)
    changed = errors[0] != errors[1]
    assert changed[50:].any()
    assert not changed[:50].any()
    assert np.isin(errors[1][changed] % estimates.IN_PIECES, 0.0).all(), "only tokens that no local one covers"


def test_a_rare_token_is_looked_for_across_the_end_of_the_text_too(tokenizers: Path) -> None:
    """').' is one token, so a tokenizer never writes ')' and '.\"\"\"'; a model may all the same."""
    local, base = (from_pretrained(str(tokenizers / name)) for name in ("qwen2", "gpt2"))
    alignment = Alignment(local, base)
    before = (local.encode([b")"])[0][0],)
    asked: list[tuple[bytes, bool]] = []

    def entered(node: Nodes, token: bytes, inside: bool) -> bool:
        asked.append((token, inside))
        return node == before

    (way,) = ways(alignment, b").", [b'"""'], entered)
    assert (before, b")") in way.passed
    assert before in way.entrances
    assert (b'"""', False) in asked
    (usual,) = ways(alignment, b").", [b'"""'])
    assert before not in dict(usual.passed)
