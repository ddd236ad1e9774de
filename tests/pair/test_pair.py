"""The pair with real (small) vocabularies: loading, prompts of its own, named cases of alignment, proposals, unknown
bases.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toys import save, tiny_model, toy_vocabulary, train_tokenizer
from transformers import LlamaConfig

from blackbox_proxy.errors import ContextTooLong, InputError, VocabularyMismatch
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import END, Position, Scores, Token

BASE = from_tokenizer(train_tokenizer("bytes", 500))
LOCALS = {kind: from_tokenizer(train_tokenizer(kind, 450, 1)) for kind in ("digits", "pieces")}


def lm(vocabulary: Vocabulary, seed: int, context: int = 512) -> CausalLM:
    return CausalLM(tiny_model("llama", len(vocabulary), seed, context=context), vocabulary, f"model-{seed}")


def pair(kind: str, seed: int = 1) -> TransformersPair:
    """The reference: every candidate summed over all ways to write it (test_estimated.py has the estimates)."""
    return TransformersPair(lm(LOCALS[kind], seed), lm(LOCALS[kind], seed + 100), exact=True)


def spelled(*texts: str | bytes) -> list[Token]:
    return [BASE.token(text.encode() if isinstance(text, str) else text) for text in texts]


def position(candidates: list[Token]) -> Position:
    return Position(candidates[0], -1.0, candidates, np.linspace(-1.0, -3.0, len(candidates)))


def score(pair: TransformersPair, prompt: str, issued: list[Token], candidates: list[Token]) -> Scores:
    return pair.open(prompt, BASE).score(issued, [position(candidates)])[0].score(candidates)


def summed(scores: Scores) -> NDArray[np.bool_]:
    """Which masses are sums, whether or not the ways of other candidates moved them."""
    return np.array([how in ("exact", "estimated") for how in scores.how])


CASES: dict[str, tuple[str, list[Any], list[Any]]] = {
    "one begins another": ("He went to", [], ["  ", " ", " New", " N", "New", " York"]),
    "digits": ("In the year", [" "], ["2", "20", "202", "2023", "1"]),
    "split emoji": ("Good ", [], ["👍".encode()[:2], "👍".encode(), "👍".encode()[:3], "👩"]),
    "inside a split emoji": ("Good ", ["👍".encode()[:2]], ["👍".encode()[2:], "👍".encode()[2:3], "x"]),
    "trailing spaces": ("two  ", [], [" ", "a", "spaces", "\n"]),
    "newlines": ("end.", ["\n"], ["\n", "def", "    ", " "]),
    "CJK": ("東京は", [], ["日", "日本", "日".encode()[:1], "。"]),
    "right to left": ("שלום", [], [" ", "ש", "עולם", "!"]),
    "inside a word": ("the mayor of New Yo", [], ["rk", "r", "k", "u"]),
    "contraction": ("They don", ["'"], ["t", "s", "'"]),
}


@pytest.mark.parametrize("kind", LOCALS)
@pytest.mark.parametrize("case", CASES)
def test_named_cases_get_a_finite_explained_offset(kind: str, case: str) -> None:
    prompt, before, texts = CASES[case]
    candidates = [*(Token(bytes=t if isinstance(t, bytes) else t.encode()) for t in texts), END]
    scores = score(pair(kind), prompt, spelled(*before), candidates)
    assert np.isfinite(scores.offset).all()
    assert "neutral" not in scores.how
    assert np.exp(scores.log_expert[summed(scores)]).sum() <= 1.0 + 1e-4


@pytest.mark.parametrize("kind", LOCALS)
def test_what_is_exact_does_not_hang_on_what_else_is_asked(kind: str) -> None:
    """Law 10, up to the constant that is common to a row. Whatever else is asked for says that it is estimated."""
    both, compared = pair(kind), 0
    for prompt, before, texts in CASES.values():
        candidates = spelled(*texts)
        others = [BASE.token_of(i) for i in range(3, len(BASE), 7) if BASE.spelling[i]]
        everything = [*candidates, *(token for token in others if token not in candidates)]
        alone = score(both, prompt, spelled(*before), candidates)
        among = score(both, prompt, spelled(*before), everything)
        exact = [i for i, how in enumerate(alone.how) if how == among.how[i] == "exact"]
        moved = [alone.log_expert[i] - among.log_expert[i] for i in exact]
        assert moved == pytest.approx(moved[:1] * len(moved), abs=1e-4)
        compared += len(exact)
    assert compared >= 10


@pytest.mark.parametrize("kind", LOCALS)
def test_the_whole_base_vocabulary_adds_up_to_one(kind: str) -> None:
    """What is missing from 1 is mass on spellings that the local tokenizer itself would never choose."""
    everything = [BASE.token_of(i) for i in range(len(BASE))]
    for prompt, before in (("The mayor of", []), ("The mayor of", [" New"]), ("In 20", ["2"]), ("日", ["本"])):
        scores = score(pair(kind), prompt, spelled(*before), everything)
        special = np.exp(scores.log_expert[summed(scores)]).sum()
        assert 0.95 < special <= 1.0 + 1e-4


def test_equal_models_give_exactly_no_offset_in_every_case() -> None:
    for kind, vocabulary in LOCALS.items():
        model = lm(vocabulary, 3)
        for prompt, before, texts in CASES.values():
            candidates = [*(Token(bytes=t if isinstance(t, bytes) else t.encode()) for t in texts), END]
            scores = score(TransformersPair(model, model), prompt, spelled(*before), candidates)
            assert np.array_equal(scores.offset, np.zeros(len(candidates))), kind


@pytest.mark.parametrize("kind", LOCALS)
def test_many_positions_equal_single_ones(kind: str) -> None:
    """Point 6: a draft that runs over word, digit and character borders, candidates that merge with what is before
    them.
    """
    text = " New York 2023 👍 日本, isn't it?\n  theory"
    drafted = [BASE.token_of(i) for i in BASE.encode([text.encode()])[0]]
    rng = np.random.default_rng(0)
    ordinary = [i for i, s in enumerate(BASE.spelling) if s]
    rows = [[t, *(BASE.token_of(int(i)) for i in rng.choice(ordinary, 6, replace=False)), END] for t in drafted]
    positions = [position(row) for row in rows]
    both = pair(kind)
    many = both.open("The mayor of", BASE).score([], positions)
    session = both.open("The mayor of", BASE)
    for j, row in enumerate(many):
        single = session.score(drafted[:j], positions[j : j + 1])[0].score(rows[j])
        together = row.score(rows[j])
        assert together.how == single.how
        assert np.allclose(together.log_expert, single.log_expert, atol=1e-3)
        assert np.allclose(together.offset, single.offset, atol=1e-3)


def test_an_unknown_base_is_learned_from_its_candidates() -> None:
    """Without the base's tokenizer, longest match over what was shown stands in for it: nearly the same events."""
    both = pair("digits")
    candidates = spelled(" New", " N", " the", "2", "20")
    known = both.open("He went to", BASE).score([], [position(candidates)])[0].score(candidates)
    anonymous = [Token(bytes=t.bytes, text=t.text) for t in candidates]
    learned = both.open("He went to", None).score([], [position(anonymous)])[0].score(anonymous)
    assert summed(learned).all()
    both_ways = summed(known)
    assert both_ways.sum() >= 4
    assert np.allclose(learned.offset[both_ways], known.offset[both_ways], atol=1.0)


def test_unknown_tokens_are_neutral_and_what_follows_them_is_not_scored() -> None:
    unknown, special = Token(bytes=None, text="�"), Token(id=0, bytes=b"", text="<s>")
    candidates = [unknown, special, *spelled(" the")]
    rows = pair("digits").open("He", BASE).score([], [position(candidates), position(candidates)])
    assert len(rows) == 1
    scores = rows[0].score(candidates)
    assert scores.how == ("neutral", "neutral", "exact")
    assert list(scores.offset[:2]) == [0.0, 0.0]


@pytest.mark.parametrize("kind", LOCALS)
def test_proposals_are_the_experts_likeliest_events_in_the_bases_spelling(kind: str) -> None:
    both = pair(kind)
    row = both.open("He went to", BASE).score([], [position(spelled(" the"))])[0]
    decided = both._alignment(BASE)
    everything = [
        token for i in range(len(BASE)) if (token := BASE.token_of(i)).bytes and not decided.goes_on(token.bytes)
    ]
    scores = row.score(everything)
    best = int(np.argmax(np.where(summed(scores), scores.log_expert, -np.inf)))
    proposed = row.propose(20)
    assert everything[best].bytes in [token.bytes for token in proposed]
    assert all(token.end or (token.id is not None and BASE.spelling[token.id] == token.bytes) for token in proposed)
    assert len({token.key for token in proposed}) == len(proposed)


def test_what_the_expert_is_about_to_write_is_followed_to_the_bases_own_token() -> None:
    """The base has " Newark" as one token and does not show it; the expert writes it in pieces, one of which it shows
    first.
    """
    names = toy_vocabulary([*"Newark", " ", " N", " Ne", " New", " Newa", " Newar", " Newark"], NEWARK)
    pieces = toy_vocabulary([*"Newark", " ", " N", "ew", "ar"], [(" ", "N"), ("e", "w"), ("a", "r")])
    certain = CausalLM(_Certain(pieces, b"k Newark"), pieces)
    row = TransformersPair(certain, exact=True).open("k", names).score([], [one(names, b"e")])[0]
    assert row.propose(3)[0].bytes == b" Newark"
    scores = row.score([names.token(b" Newark"), names.token(b" N")])
    assert np.exp(scores.log_expert) == pytest.approx([1.0, 0.0], abs=0.05)


def one(vocabulary: Vocabulary, spelling: bytes) -> Position:
    return Position(vocabulary.token(spelling), -0.1, [vocabulary.token(spelling)], np.array([-0.1]))


NEWARK = [(" ", "N"), (" N", "e"), (" Ne", "w"), (" New", "a"), (" Newa", "r"), (" Newar", "k")]


class _Certain(torch.nn.Module):
    """A model that writes one text, whatever it is shown: the token after the longest match with the end of its
    input.
    """

    def __init__(self, vocabulary: Vocabulary, text: bytes) -> None:
        super().__init__()
        self.ids = vocabulary.encode([text])[0] + [0]
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = LlamaConfig(vocab_size=len(vocabulary), num_hidden_layers=1)

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **_: object) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                written = ids[max(0, place - 3) : place + 1]
                follows = [b for a, b in pairwise(self.ids) if a == written[-1]]
                if follows:
                    logits[row, place, follows[0]] = 12.0
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def test_without_antiexpert_the_expert_itself_is_the_offset() -> None:
    alone = TransformersPair(lm(LOCALS["digits"], 1))
    scores = score(alone, "He went to", [], [*spelled(" the", " New"), Token(bytes=None)])
    assert np.array_equal(scores.offset[:2], scores.log_expert[:2])
    assert scores.offset[2] == scores.offset[:2].min()


def test_each_model_sees_the_prompt_in_its_own_rendering() -> None:
    expert, antiexpert = lm(LOCALS["digits"], 1), lm(LOCALS["digits"], 2)
    candidates = spelled(" the", " New", "2")
    own = TransformersPair(expert, antiexpert, expert_prompt=lambda prompt: f"Q: {prompt}\nA:")
    raw = TransformersPair(expert, antiexpert)
    mixed = score(own, "where to", [], candidates)
    assert np.allclose(mixed.log_expert, score(raw, "Q: where to\nA:", [], candidates).log_expert, atol=1e-5)
    assert np.allclose(mixed.log_antiexpert, score(raw, "where to", [], candidates).log_antiexpert, atol=1e-5)


def test_text_is_not_taken_back_across_special_tokens() -> None:
    session: Any = pair("digits").open("abc</s>th", BASE)
    side = session._sides[0]
    assert side.text_after([])[0][-1] == 1
    assert side.text_after([])[1] == b"th"


def test_bad_pairs_and_prompts(tmp_path: Path) -> None:
    with pytest.raises(VocabularyMismatch) as caught:
        TransformersPair(lm(LOCALS["digits"], 1), lm(LOCALS["pieces"], 1))
    assert "id " in str(caught.value)
    assert caught.value.hint
    with pytest.raises(InputError):
        pair("digits").check("", 1)
    with pytest.raises(InputError, match="token ids"):
        pair("digits").check([1, 2, 3], 1)
    with pytest.raises(InputError, match="chat template"):
        TransformersPair(lm(LOCALS["digits"], 1), expert_prompt="chat").check("Hi", 1)
    narrow = TransformersPair(lm(LOCALS["digits"], 1, context=24))
    with pytest.raises(ContextTooLong):
        narrow.check("The mayor of New York said " * 5, 1)


def test_padded_vocabularies_are_trimmed_on_both_sides(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("bytes", 300)
    expert = save(tmp_path / "expert", tokenizer, 1, extra=7)
    antiexpert = save(tmp_path / "antiexpert", tokenizer, 1, extra=64)
    trimmed = TransformersPair(expert, antiexpert, device="cpu")
    base = trimmed.vocabulary
    everything = [base.token_of(i) for i in range(len(base))]
    row = trimmed.open("The mayor", base).score([], [position(everything)])[0]
    assert np.exp(row.score(everything).log_expert).sum() == pytest.approx(1.0, abs=1e-4)
    assert np.exp(row.score(everything).log_antiexpert).sum() == pytest.approx(1.0, abs=1e-4)
