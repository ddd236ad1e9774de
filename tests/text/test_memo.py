"""What is remembered is bounded, and any number of threads may read and forget it at once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from toys import CORPUS, train_tokenizer

from blackbox_proxy.text import vocabulary as module
from blackbox_proxy.text.memo import Memo
from blackbox_proxy.text.spelling import from_tokenizer


def test_a_memo_keeps_what_is_used_and_no_more_than_its_limit() -> None:
    memo: Memo[int, str] = Memo(10)
    for key in range(100):
        memo.keep(key, str(key))
        assert memo.get(0) == "0"  # asked for again and again, so it stays
        assert len(memo) <= 10
    assert memo.find([0, 99, 98, 1, 500]) == ["0", "99", "98", None, None]
    memo.clear()
    assert memo.find([0, 99]) == [None, None]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_first_tokens_stay_right_while_other_threads_make_them_forgotten(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 threads, 10,000 questions, a memo that holds 100 of the 3,000 texts asked about."""
    plain = from_tokenizer(train_tokenizer(kind, 400))
    text = CORPUS.encode()
    rng = random.Random(0)
    places = [rng.randrange(len(text) - 12) for _ in range(3000)]
    texts = [text[place : place + rng.randint(1, 12)] for place in places]
    expected = dict(zip(texts, plain.first(texts), strict=True))
    monkeypatch.setattr(module, "_FIRST_TOKENS", 100)
    shared = from_tokenizer(train_tokenizer(kind, 400))

    def ask(seed: int) -> int:
        mine = random.Random(seed)
        for _ in range(1250):
            asked = mine.choices(texts, k=4)
            assert shared.first(asked) == [expected[one] for one in asked]
        return len(shared._first)

    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(ask, range(8)))
    assert max(sizes) <= 100 + 8 * 4
    assert {shared.token_of(i) for i in range(len(shared))} == {plain.token_of(i) for i in range(len(plain))}
    shared.token_of(10**9)
    assert len(shared._tokens) == len(shared)
