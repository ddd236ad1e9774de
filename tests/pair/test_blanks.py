"""Blanks at the end of a text: how the pair cuts them hangs on the word that follows ("    " alone is one token, before
"def" it is "   " and " def"), so that most of their mass lies on another path than their usual spelling.
"""

from __future__ import annotations

import numpy as np
import pytest
from readers import TOGETHER, code_vocabulary, reader

from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Position, Token

Both = tuple[TransformersPair, TransformersPair]


@pytest.fixture(scope="module")
def both() -> Both:
    """Models that have read some code, estimated and summed."""
    made = [reader(None, seed) for seed in (1, 101)]
    return TransformersPair(*made), TransformersPair(*made, exact=True)


def token(base: Vocabulary, text: str) -> Token:
    (index,) = base.encode([text.encode()])[0]
    return base.token_of(index)


@pytest.mark.parametrize("drafted", ["    ", "        "])
def test_blanks_have_what_is_written_with_a_word_behind_them(both: Both, drafted: str) -> None:
    (estimated, exact), base = both, code_vocabulary(TOGETHER)
    shown = [token(base, text) for text in (drafted, "return", "if", "\n")]
    position = Position(shown[0], -1.0, shown, np.linspace(-1.0, -3.0, len(shown)))
    session, summed = (pair.open("if a:\n", base) for pair in (estimated, exact))
    (row,), (whole,) = session.score([], [position]), summed.score([], [position])
    true = whole.score(shown[:1])
    rough = row.score(shown[:1])
    assert abs(rough.offset - true.offset)[0] < rough.error[0], "the bar holds what is not known yet"
    assert rough.error[0] < 4.0, "where the known nodes are on its ways bounds what it can be"
    assert abs(rough.log_expert - true.log_expert)[0] > 0.03, "a part of it is written otherwise"
    session.refine([(row, shown[:1])])
    found = row.score(shown[:1])
    assert found.log_expert == pytest.approx(true.log_expert, abs=0.05)
    assert found.log_antiexpert == pytest.approx(true.log_antiexpert, abs=0.05)


@pytest.mark.parametrize("drafted", ["    ", "        "])
def test_words_behind_blanks_are_estimated_from_where_the_last_blank_is_theirs(both: Both, drafted: str) -> None:
    (estimated, exact), base = both, code_vocabulary(TOGETHER)
    blanks, *words = [token(base, text) for text in (drafted, "return", "if", "for", "self")]
    first = Position(blanks, -1.0, [blanks], np.array([-1.0]))
    second = Position(words[0], -1.0, words, np.linspace(-1.0, -3.0, len(words)))
    session, summed = (pair.open("if a:\n", base) for pair in (estimated, exact))
    rows, wholes = session.score([], [first, second]), summed.score([], [first, second])
    found, true = rows[1].score(words), wholes[1].score(words)
    assert found.offset == pytest.approx(true.offset, abs=0.2)
    session.refine([(rows[1], words)])
    assert rows[1].score(words).offset == pytest.approx(true.offset, abs=0.05)
