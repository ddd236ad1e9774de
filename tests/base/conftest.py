"""A file for a cache, and the tiny model of the local base."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_tiny
from transformers import AutoModelForCausalLM

from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.models.lm import CausalLM, load_causal_lm


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache.sqlite3"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="session")
def lm(folder: Path) -> CausalLM:
    return load_causal_lm(folder)


@pytest.fixture
async def base(lm: CausalLM) -> AsyncIterator[TransformersBase]:
    base = TransformersBase(lm)
    yield base
    await base.aclose()


@pytest.fixture
def rows_computed(base: TransformersBase, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of log probabilities each forward pass has computed."""
    counts: list[int] = []
    rows = base._rows

    def counting(ids: list[int], keep: int) -> torch.Tensor:
        counts.append(keep)
        return rows(ids, keep)

    monkeypatch.setattr(base, "_rows", counting)
    return counts
