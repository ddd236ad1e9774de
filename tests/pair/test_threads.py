"""Many threads over two real vocabularies, with memos so small that all of them are always being emptied."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from blackbox_proxy.aligning import alignment, crossing
from blackbox_proxy.bench.near import own_text, positions_of, random_models
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text import vocabulary
from blackbox_proxy.text.spelling import from_pretrained
from blackbox_proxy.types import Floats

_LIMIT = 100


@pytest.mark.slow
@pytest.mark.parametrize("count", [1_250])  # of each thread
def test_threads_that_empty_each_others_memos_get_equal_scores(
    count: int, tokenizers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (
        (alignment, "_CACHED_SETS"),
        (alignment, "_CACHED_MASKS"),
        (crossing, "_MOST_KNOWN"),
        (vocabulary, "_FIRST_TOKENS"),
    ):
        monkeypatch.setattr(module, name, _LIMIT)
    base = from_pretrained(str(tokenizers / "qwen2"))
    pair = TransformersPair(*random_models("0.8M", from_pretrained(str(tokenizers / "gpt2"))))
    text = own_text()
    parts = [text[start : start + len(text) // 8] for start in range(0, len(text), len(text) // 8)][:8]

    def offsets(part: str) -> list[Floats]:
        found: list[Floats] = []
        positions = positions_of(part, base, 12, min(count, 240))
        while len(found) < count:
            session = pair.open(part[:1], base)
            for start in range(0, len(positions), 12):
                some = positions[start : start + 12]
                rows = session.score([position.token for position in positions[:start]], some)
                session.refine([(row, position.tokens[:2]) for row, position in zip(rows, some, strict=True)])
                found += [row.score(position.tokens).offset for row, position in zip(rows, some, strict=True)]
            session.close()
        return found

    alone = [offsets(part) for part in parts[:2]]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(offsets, [*parts[:2], *parts[2:], *parts][:8]))
    for one, other in zip(alone, together[:2], strict=True):
        assert len(one) == len(other) >= count
        assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(one, other, strict=True))
