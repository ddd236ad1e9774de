"""Tree forward = path by path, for every architecture and past the sliding window; caches that grow and shrink."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import ARCHITECTURES, save, tiny_model, toy_vocabulary, train_tokenizer

from blackbox_proxy.errors import ContextTooLong, InputError, ModelUnavailable
from blackbox_proxy.models import packed
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.models.trunk import Trunk

LETTERS = "abcdefghij"
VOCABULARY = toy_vocabulary(list(LETTERS), [])
TEXT = [1, 4, 2, 7, 3, 3, 9, 5, 6, 8, 10, 2, 1, 7, 5, 4, 9, 9, 3, 6]  # longer than the sliding window of 8
PARENTS = [-1, -1, 0, 0, 3, 1]
TOKENS = [5, 6, 7, 8, 9, 10]


def make(architecture: str, seed: int = 0) -> CausalLM:
    return CausalLM(tiny_model(architecture, len(VOCABULARY), seed, window=8), VOCABULARY, architecture)


def path(node: int) -> list[int]:
    return ([] if PARENTS[node] < 0 else path(PARENTS[node])) + [TOKENS[node]]


@torch.inference_mode()
def plain(lm: CausalLM, ids: list[int]) -> torch.Tensor:
    row: torch.Tensor = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    return row


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tree_forward_equals_path_by_path(architecture: str) -> None:
    lm = make(architecture)
    assert (lm.caches, lm.trees) == ((False, False) if architecture == "mamba" else (True, True))
    trunk = Trunk(lm)
    for text in (TEXT[:5], TEXT[:12], TEXT, TEXT[:9], [*TEXT[:9], 1, 2, 3]):  # grows, shrinks, turns elsewhere
        rows = trunk.branch(text, PARENTS, TOKENS)
        assert torch.allclose(rows[0], plain(lm, text), atol=1e-4)
        for node in range(len(TOKENS)):
            assert torch.allclose(rows[1 + node], plain(lm, text + path(node)), atol=1e-4), (len(text), node)
        assert torch.allclose(trunk.advance(text, keep=3)[0], plain(lm, text[:-2]), atol=1e-4)


@pytest.mark.parametrize(
    ("caches", "architecture"), [(True, "llama"), (True, "gpt2"), (False, "llama"), (False, "mamba")]
)
def test_without_tree_masks_paths_are_run_as_a_batch(caches: bool, architecture: str) -> None:
    lm = make(architecture)
    lm.caches, lm.trees = caches, False
    trunk = Trunk(lm)
    for text in (TEXT[:6], TEXT):
        rows = trunk.branch(text, PARENTS, TOKENS)
        wanted = [plain(lm, text), *(plain(lm, text + path(node)) for node in range(len(TOKENS)))]
        assert torch.allclose(rows, torch.stack(wanted), atol=1e-4)


def test_a_mask_that_ignores_the_window_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load-time probe is not blind: without its window mask, Gemma-2 is not given tree forwards."""
    mask = packed.Segment._mask
    monkeypatch.setattr(packed.Segment, "_mask", lambda self, window, *rest: mask(self, None, *rest))
    lm = make("gemma2")
    assert (lm.caches, lm.trees) == (True, False)


def test_reading_only_what_is_new() -> None:
    lm = make("llama")
    trunk = Trunk(lm)
    read: list[int] = []

    def asked(rows: torch.Tensor) -> None:
        read.append(lm.reader.read_tokens - sum(read) - start)

    start = lm.reader.read_tokens
    asked(trunk.advance(TEXT))
    asked(trunk.advance([*TEXT, 1]))
    asked(trunk.branch([*TEXT, 1, 2], PARENTS, TOKENS))
    asked(trunk.advance([*TEXT, 1, 2, 3]))
    asked(trunk.advance([*TEXT, 1, 2, 3]))
    assert read == [len(TEXT), 1, 1 + len(TOKENS), 1, 0]


def test_a_chain_that_was_right_is_not_read_again() -> None:
    lm = make("llama")
    trunk = Trunk(lm)
    trunk.branch(TEXT, [-1, 0, 1, 0], [5, 6, 7, 8])
    start = lm.reader.read_tokens
    rows = trunk.branch([*TEXT, 5, 6, 7, 9], [], [])
    assert lm.reader.read_tokens - start == 1
    assert torch.allclose(rows[0], plain(lm, [*TEXT, 5, 6, 7, 9]), atol=1e-4)


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_what_follows_the_last_places_is_known_when_the_next_tree_asks_again(kept: int) -> None:
    """However much of the chain that was read goes on, every row is that of its own text."""
    lm = make("llama")
    trunk = Trunk(lm)
    trunk.branch(TEXT, [-1, 0, 1, 0], [5, 6, 7, 8])
    chain = [*([5, 6, 7][:kept]), 4]
    parents = [*range(-1, kept), -1, kept - 1]  # the chain; beside it one node at its start, one before its last
    start = lm.reader.read_tokens
    rows = trunk.branch(TEXT, parents, [*chain, 10, 2])
    # The rows of the text and of the nodes that stayed are there: only the other three are read, and no more.
    assert lm.reader.read_tokens - start == 3
    ways = [TEXT, *([*TEXT, *chain[:end]] for end in range(1, kept + 2)), [*TEXT, 10], [*TEXT, *chain[:kept], 2]]
    assert len(rows) == len(ways)
    for row, way in zip(rows, ways, strict=True):
        assert torch.allclose(row, plain(lm, way), atol=1e-4)


def test_padding_ids_get_no_probability() -> None:
    padded = CausalLM(tiny_model("llama", len(VOCABULARY) + 50, 0), VOCABULARY)
    row = Trunk(padded).advance(TEXT)[0]
    assert row.shape == (len(VOCABULARY),)
    assert float(row.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_window_is_a_limit() -> None:
    lm = CausalLM(tiny_model("llama", len(VOCABULARY), 0, context=16), VOCABULARY)
    with pytest.raises(ContextTooLong) as caught:
        Trunk(lm).branch(TEXT[:15], PARENTS, TOKENS)
    assert "16" in str(caught.value)
    assert caught.value.hint


def test_loading_refuses_what_is_not_safe_or_not_there(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("bytes", 300)
    folder = Path(save(tmp_path / "model", tokenizer, 1))
    assert load_causal_lm(folder, device="cpu").vocabulary.end_ids == {1}
    with pytest.raises(InputError, match="float8"):
        load_causal_lm(folder, dtype="float8")
    with pytest.raises(InputError, match="abacus"):
        load_causal_lm(folder, device="abacus")
    with pytest.raises(ModelUnavailable, match="no folder"):
        load_causal_lm(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        load_causal_lm(tmp_path / "empty")
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelUnavailable) as caught:
        load_causal_lm(folder)
    assert "safetensors" in caught.value.hint
