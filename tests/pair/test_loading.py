"""Expert and anti-expert whose tokenizers are nearly the same: what only one of them has, and what ends a text."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from toys import save, tiny_model, train_tokenizer
from transformers import PreTrainedTokenizerFast

from blackbox_proxy.errors import VocabularyMismatch
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import END, Floats, Position

BASE = from_tokenizer(train_tokenizer("bytes", 500))
SAME = "bytes"
TEXTS = (" New", " the", "2", ".", "<", "Ö", " think")


def tokenizer(kind: str, special: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    found = train_tokenizer(kind, 500 if kind == SAME else 400)
    found.add_special_tokens({"additional_special_tokens": list(special)})
    found.add_tokens([AddedToken(word, normalized=False) for word in words])
    return found


def lm(vocabulary: Vocabulary, seed: int, size: int, rows: int = 0) -> CausalLM:
    """A model of `size` ids, those beyond them so likely that nobody could overlook them; `rows` of padding besides."""
    model = tiny_model("llama", size, seed)
    model.resize_token_embeddings(len(vocabulary) + rows, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[size:] = 2.0 * model.lm_head.weight[5]
        model.model.embed_tokens.weight[size:] = model.model.embed_tokens.weight[5]
    return CausalLM(model, vocabulary, f"model-{seed}")


def offsets(
    pair: TransformersPair, prompt: str = "He went to", issued: tuple[str, ...] = (" New",)
) -> tuple[Floats, Floats]:
    """Log masses under both models."""
    tokens = [BASE.token(text.encode()) for text in TEXTS if BASE.id_of(text.encode()) is not None]
    tokens.append(END)
    position = Position(tokens[0], -1.0, tokens, np.linspace(-1.0, -3.0, len(tokens)))
    session = pair.open(prompt, BASE)
    scores = session.score([BASE.token(text.encode()) for text in issued], [position])[0].score(tokens)
    assert "neutral" not in scores.how
    return scores.log_expert, scores.log_antiexpert


PADS = ("[PAD]", "<|a|>", "<|b|>")
INERT: dict[str, tuple[tuple[str, ...], tuple[str, ...], int, int]] = {
    "one more in the expert": (PADS[:1], (), 0, 0),
    "one more in the anti-expert": ((), PADS[:1], 0, 0),
    "three more in the expert": (PADS, (), 0, 0),
    "three more in the anti-expert": ((), PADS, 0, 0),
    "one and three": (PADS[:1], PADS, 0, 0),
    "the same in both": (PADS, PADS, 0, 0),
    "others in each": (PADS[:1], PADS[1:2], 0, 0),
    "more and padding": (PADS[:1], (), 0, 40),
    "padding in both": (PADS, PADS[:1], 13, 5),
    "padding alone": ((), (), 7, 0),
}


@pytest.mark.parametrize("kind", [SAME, "digits", "pieces"])
@pytest.mark.parametrize("name", INERT)
def test_a_special_token_that_one_of_them_has_more_changes_nothing(name: str, kind: str) -> None:
    expert, antiexpert, more, still = INERT[name]
    plain = from_tokenizer(tokenizer(kind))
    size = len(plain)
    without = TransformersPair(lm(plain, 1, size), lm(plain, 2, size))
    pair = TransformersPair(
        lm(from_tokenizer(tokenizer(kind, expert)), 1, size, more),
        lm(from_tokenizer(tokenizer(kind, antiexpert)), 2, size, still),
    )
    both = set(expert) & set(antiexpert)
    for issued in ((), (" New",), (" New", " the")):
        ours, theirs = offsets(pair, issued=issued), offsets(without, issued=issued)
        for mine, wanted in zip(ours, theirs, strict=True):
            # What both have keeps the mass that both models give it; it is a constant among the others.
            assert np.allclose(mine - mine[0], wanted - wanted[0], atol=1e-4 if not both else 0.5)
            assert both or np.allclose(mine, wanted, atol=1e-4)
    proposed = [token.key for token in pair.open("He", BASE).score([], [position()])[0].propose(20)]
    if not both:
        assert proposed == [t.key for t in without.open("He", BASE).score([], [position()])[0].propose(20)]


def position() -> Position:
    return Position(BASE.token(b" the"), -0.1, [BASE.token(b" the")], np.array([-0.1]))


WORDS = ("<think>", "</think>")
EXTRA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "in the expert": (WORDS, ()),
    "in the anti-expert": ((), WORDS),
    "one in both": (WORDS, WORDS[:1]),
    "one more behind": (WORDS[:1], WORDS),
    "an emoji": (("🦜",), ()),
}


@pytest.mark.parametrize("kind", [SAME, "digits", "pieces"])
@pytest.mark.parametrize("name", EXTRA)
def test_a_word_that_one_of_them_has_more_is_decoded_by_what_both_know(
    name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    expert, antiexpert = EXTRA[name]
    common = tuple(word for word in expert if word in antiexpert)
    caplog.set_level(logging.WARNING)
    size = len(from_tokenizer(tokenizer(kind, (), common)))
    pair = TransformersPair(
        lm(from_tokenizer(tokenizer(kind, (), expert)), 1, size),
        lm(from_tokenizer(tokenizer(kind, (), antiexpert)), 2, size),
    )
    said = [record.getMessage() for record in caplog.records if "cannot be weighed" in record.getMessage()]
    assert len(said) == 1
    assert all((word in said[0]) != (word in common) for word in {*expert, *antiexpert})
    plain = from_tokenizer(tokenizer(kind, (), common))
    without = TransformersPair(lm(plain, 1, size), lm(plain, 2, size))
    for issued in ((), ("<", "t"), ("<", "/", "t", "h")):
        for mine, wanted in zip(offsets(pair, issued=issued), offsets(without, issued=issued), strict=True):
            assert np.allclose(mine, wanted, atol=1e-4)
    assert len(caplog.records) == len(said)


def test_each_still_reads_its_own_words_in_a_prompt_and_runs_by_itself() -> None:
    ours, theirs = from_tokenizer(tokenizer("digits", (), WORDS)), from_tokenizer(tokenizer("digits"))
    pair = TransformersPair(lm(ours, 1, len(theirs)), lm(theirs, 2, len(theirs)))
    session: Any = pair.open("a <think> b", BASE)
    sides = session._sides
    word = ours.id_of(b"<think>")
    assert word in sides[0].prompt
    assert word not in sides[1].prompt
    assert pair.models[0][0].vocabulary is ours
    assert pair.models[1][0].vocabulary is theirs


@pytest.mark.parametrize("kind", [SAME, "digits"])
def test_an_end_that_only_the_expert_has_ends_a_text(kind: str) -> None:
    """A chat expert's end of turn: its mass is part of the end under the expert, and the anti-expert has none of it."""
    plain = from_tokenizer(tokenizer(kind))
    size = len(plain)
    ours = from_tokenizer(tokenizer(kind, ("<|end|>",)), end_ids=[size])
    expert, antiexpert = lm(ours, 1, size), lm(plain, 2, size)
    pair = TransformersPair(expert, antiexpert)
    log_expert, log_antiexpert = offsets(pair, issued=())
    ids = torch.tensor([ours.prompt_ids("He went to")])
    with torch.inference_mode():
        row = expert.model(input_ids=ids).logits[0, -1].log_softmax(-1).exp()
        other = antiexpert.model(input_ids=ids).logits[0, -1].log_softmax(-1).exp()
    if kind == SAME:
        assert np.exp(log_expert[-1]) == pytest.approx(float(row[1] + row[size]), rel=1e-3)
        assert np.exp(log_antiexpert[-1]) == pytest.approx(float(other[1]), rel=1e-3)
    silent = from_tokenizer(tokenizer(kind, ("<|end|>",)))
    assert log_expert[-1] > offsets(TransformersPair(lm(silent, 1, size), antiexpert), issued=())[0][-1] + 0.01


def changed(folder: str, **says: Any) -> None:
    for name in ("config.json", "generation_config.json"):
        file = Path(folder) / name
        config = {**json.loads(file.read_text()), **says}
        file.write_text(json.dumps({key: value for key, value in config.items() if value != "nothing"}))


@pytest.mark.parametrize("kind", [SAME, "digits", "pieces"])
@pytest.mark.parametrize("which", ["expert", "antiexpert", "both"])
def test_an_end_that_is_also_a_word_is_compared_as_an_end(which: str, kind: str, tmp_path: Path) -> None:
    plain = tokenizer(kind)
    folders = [save(tmp_path / name, plain, seed) for name, seed in (("expert", 1), ("antiexpert", 2))]
    comma = from_tokenizer(plain).id_of(b",")
    assert comma is not None
    for name, folder in zip(("expert", "antiexpert"), folders, strict=True):
        if which in (name, "both"):
            changed(folder, eos_token_id=[1, comma])
    pair = TransformersPair(*folders, device="cpu")
    assert pair.vocabulary.end_ids == {1, comma}
    assert pair.vocabulary.spelling[comma] == b","
    ours = offsets(pair, "He went to, and", issued=(",", " the"))  # a comma that was read is a word
    assert np.isfinite(ours).all()
    alone = TransformersPair(*[save(tmp_path / f"plain-{seed}", plain, seed) for seed in (1, 2)], device="cpu")
    theirs = offsets(alone, "He went to, and", issued=(",", " the"))
    for mine, wanted in zip(ours, theirs, strict=True):
        assert np.allclose(mine[:-1], wanted[:-1], atol=1e-3)
        assert (mine[-1] > wanted[-1]) == (kind != SAME)  # there the base's own "," is the word "," by its id


@pytest.mark.parametrize("kind", [SAME, "digits"])
def test_models_that_no_file_gives_an_end_never_end(kind: str, tmp_path: Path) -> None:
    plain = tokenizer(kind)
    plain.eos_token = None
    folders = [save(tmp_path / name, plain, seed) for name, seed in (("expert", 1), ("antiexpert", 2))]
    for folder in folders:
        changed(folder, eos_token_id="nothing")
    pair = TransformersPair(*folders, device="cpu")
    assert pair.vocabulary.end_ids == frozenset()
    row = pair.open("He went to", BASE).score([], [position()])[0]
    scores = row.score([BASE.token(b" the"), END])
    assert np.isfinite(scores.offset).all()
    assert scores.how[1] == "neutral"
    assert END not in row.propose(20)


@pytest.mark.parametrize("kind", [SAME, "pieces"])
def test_other_words_are_still_another_vocabulary(kind: str) -> None:
    ours, theirs = from_tokenizer(tokenizer(kind)), from_tokenizer(train_tokenizer(kind, len(tokenizer(kind)), 7))
    assert len(ours) == len(theirs)
    with pytest.raises(VocabularyMismatch, match="id ") as caught:
        TransformersPair(lm(ours, 1, len(ours)), lm(theirs, 2, len(ours)))
    assert "before tuning" in caught.value.hint
    longer = from_tokenizer(train_tokenizer(kind, len(ours) + 20))
    with pytest.raises(VocabularyMismatch):
        TransformersPair(lm(ours, 1, len(ours)), lm(longer, 2, len(ours)))
