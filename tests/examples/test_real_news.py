"""examples/real_models/news.py in small, on the real models (pytest -m real)."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_models import ran


@pytest.mark.real
def test_news_in_small(real: Path, realtimeqa: Path, tmp_path: Path) -> None:
    data = realtimeqa / "2026"
    if not data.is_dir():
        pytest.skip(f"there is no {data}")
    size = ("--articles", "8", "--read", "300", "--questions", "15", "--texts", "4", "--length", "100", "--alpha", "1")
    small = ("--data", str(data), *size)
    found, _ = ran("news", real, tmp_path, *small)
    assert [part["part"] for part in found] == ["Questions of the weeks that were read", "Later news", "Old news"]
    assert all(part["measured"]["tables"][0]["rows"] >= 4 for part in found)
