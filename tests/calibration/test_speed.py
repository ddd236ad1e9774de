"""How long `calibrate` takes beyond its requests: pytest -n 0 -m slow tests/calibration -k minute -s (one thread)."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, calibrate
from blackbox_proxy.answers.scoring import ask_whole, split_opening
from blackbox_proxy.tuner import run as wait

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS, TOKENS = 50, 200


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(folder: Path) -> tuple[str, str, str, list[str]]:
    """The toys of the example, with a small model that spells digits one by one; and texts like those it was tuned on,
    with some of the others between them.
    """
    sys.path.insert(0, str(EXAMPLES))
    try:
        import learned_weights as toys
    finally:
        sys.path.remove(str(EXAMPLES))
    mixed = [*toys.texts(toys.shop, 1200, 0), *toys.texts(toys.sums, 60, 400)]
    near, far = (toys.tokenizer(500, mixed, digits) for digits in (False, True))
    base = toys.train(folder / "base", near, mixed, 300, 0)
    small = toys.train(folder / "small", far, mixed, 300, 1)
    expert = toys.train(folder / "expert", far, [*mixed, *toys.texts(toys.sums, 600, 100)], 300, 1)
    rng = random.Random(7)
    found = ["".join(rng.choice([toys.sums, toys.sums, toys.shop])(rng) for _ in range(10)) for _ in range(TEXTS)]
    return base, expert, small, found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("trained", 60.0), ("random", math.inf)])
def test_a_minute_is_enough_for_50_texts_of_200_tokens(
    kind: str, most: float, models: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    """A far pair, k = 20. Models with random weights are sure of nothing, so that nearly every candidate of theirs has
    to be summed: more than of trained ones, and how long that takes is only printed.
    """
    if kind == "trained":
        where, expert, small, texts = trained(tmp_path)
    else:
        from toys import words

        where, expert, small = (models[name] for name in ("base", "digits-expert", "digits-antiexpert"))
        texts = [words(seed) for seed in range(TEXTS)]
    base = TransformersBase(where, top_logprobs=20, device="cpu")
    assert base.vocabulary is not None
    cut = [base.vocabulary.encode([text.encode()])[0][: TOKENS + 1] for text in texts]
    spelled = [b"".join(base.vocabulary.spelling[i] or b"" for i in ids).decode("utf-8", "ignore") for ids in cut]
    pair = TransformersPair(expert, small, device="cpu")
    start = time.process_time()
    for text in spelled:
        wait(ask_whole(base, *split_opening(text, base.vocabulary)))
    requests = time.process_time() - start
    start = time.process_time()
    found = calibrate(ProxyTuner(base, pair), [{"text": text} for text in spelled], concurrency=1)
    took = time.process_time() - start - requests
    assert found is not None
    assert found.places + found.unlisted == pytest.approx(TEXTS * TOKENS, rel=0.02)
    print(f"\ncalibrate, {kind}: {took:.1f} CPU s beyond the requests, which took {requests:.1f} in this process")
    assert took < most
