"""Tokens that begin in mid-word, and words whose beginnings are cut otherwise than they are ("B" and "uc", but "Bu" and
"ch"): what the row after x has of them stands with other tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
from readers import TOGETHER, reader
from toys import toy_lm, toy_vocabulary

from blackbox_proxy import ProxyTuner, TransformersBase
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Position, Scores, Token

LOCAL = toy_vocabulary(["B", "u", "c", "h", "ch", "uc", "Bu", "."], [("c", "h"), ("u", "c"), ("B", "u")])
BASE = toy_vocabulary(["B", "u", "c", "h", "uc", "."], [("u", "c")])


def tokens(base: Vocabulary, *texts: str) -> list[Token]:
    return [base.token_of(base.encode([text.encode()])[0][0]) for text in texts]


def scored(shown: list[Token], refined: list[Token]) -> tuple[Scores, Scores, Scores]:
    """After "B": estimated, some of it summed, and all summed over everything."""
    models = [toy_lm(LOCAL, seed) for seed in (3, 4)]
    position = Position(shown[0], -1.0, shown, np.linspace(-1.0, -3.0, len(shown)))
    session, whole = (TransformersPair(*models, exact=exact).open("B", BASE) for exact in (False, True))
    (row,), (summed,) = session.score([], [position]), whole.score([], [position])
    before = row.score(shown)
    session.refine([(row, refined)])
    return before, row.score(shown), summed.score(shown)


def test_a_token_is_completed_where_its_beginning_is_cut_otherwise() -> None:
    assert [len(LOCAL.encode([text])[0]) for text in (b"Buc", b"Buch")] == [2, 2]
    shown = tokens(BASE, "uc", "u", "B", "c", "h", ".")
    before, after, true = scored(shown, shown)
    assert abs(before.log_expert - true.log_expert)[0] > 0.1, "most of it is written with Bu"
    for name in ("log_expert", "log_antiexpert"):
        found, wanted = getattr(after, name), getattr(true, name)
        assert found == pytest.approx(wanted, abs=0.1)
        assert found[0] == pytest.approx(wanted[0], abs=1e-3)


def test_masses_that_are_added_up_do_not_overlap() -> None:
    """Where "uc" is summed and "u" is not, what is written with "Bu" would count with both."""
    shown = tokens(BASE, "uc", "u", "B", "c", "h", ".")
    before, after, true = scored(shown, shown[:1])
    for i, name in enumerate(("log_expert", "log_antiexpert")):
        moved = np.exp(getattr(after, name)[0]) - np.exp(getattr(before, name)[0])
        assert moved > 0.001
        assert getattr(after, name)[1] == pytest.approx(getattr(before, name)[1]), "its score is as it was estimated"
        assert after.own[i, 1] == pytest.approx(before.own[i, 1] - moved, abs=1e-6)
        assert after.own[i].sum() == pytest.approx(np.exp(getattr(true, name)).sum(), abs=0.01)


@pytest.mark.parametrize("text", ["    def score(self, tokens: Sequence[Token]) -> Scores:\n", "if row.error > 0:\n"])
def test_given_text_is_as_likely_by_estimates_as_by_sums(text: str) -> None:
    """p over the whole vocabulary hangs on what all that is not listed has, and that on sums of masses."""
    models = [reader(None, seed) for seed in (1, 101)]
    base = TransformersBase(reader(TOGETHER, 7), top_logprobs=10)
    estimated, summed = (
        ProxyTuner(base, TransformersPair(*models, exact=exact)).score("import numpy\n", text)
        for exact in (False, True)
    )
    off = [abs(one.log_p - other.log_p) for one, other in zip(estimated.tokens, summed.tokens, strict=True)]
    assert float(np.mean(off)) < 0.1


def test_what_goes_on_from_a_place_where_all_is_alike_is_looked_at_too() -> None:
    """200 letters that the base joins to "B", where the models find each as likely as any other."""
    letters = [chr(0x4E00 + i) for i in range(200)]
    local = toy_vocabulary(["B", *letters], [])
    base = toy_vocabulary(["B", *letters, *("B" + letter for letter in letters)], [("B", letter) for letter in letters])
    models = [toy_lm(local, seed) for seed in (3, 4)]
    shown = tokens(base, "B", letters[0])
    position = Position(shown[0], -1.0, shown, np.array([-1.0, -2.0]))
    session, whole = (TransformersPair(*models, exact=exact).open(letters[1], base) for exact in (False, True))
    (row,), (summed,) = session.score([], [position]), whole.score([], [position])
    session.refine([(row, shown)])
    found, true = row.score(shown), summed.score(shown)
    assert found.log_expert[0] == pytest.approx(true.log_expert[0], abs=0.3)
    assert found.log_antiexpert[0] == pytest.approx(true.log_antiexpert[0], abs=0.3)


def test_a_token_may_be_the_farther_off_the_more_pieces_it_is_written_in() -> None:
    """Only its first piece is known: the others may each be told apart by the models."""
    local = toy_vocabulary(list("abcdex"), [])
    words = [("a", "b"), ("ab", "c"), ("abc", "d"), ("abcd", "e")]
    base = toy_vocabulary([*"abcdex", *("".join(word) for word in words)], words)
    models = [toy_lm(local, seed) for seed in (3, 4)]
    shown = tokens(base, "ab", "abc", "abcd", "abcde", "x")
    position = Position(shown[0], -1.0, shown, np.linspace(-1.0, -3.0, len(shown)))
    (row,) = TransformersPair(*models).open("x", base).score([], [position])
    two, *more, one = row.score(shown).error.tolist()
    assert [each / two for each in more] == pytest.approx([1.0, 2.0, 3.0])
    assert 0.0 < one < two
