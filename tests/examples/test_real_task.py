"""examples/real_models/task.py in small, on the real models (pytest -m real)."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_models import ran, values


@pytest.mark.real
def test_task_in_small(real: Path, tmp_path: Path) -> None:
    small = ("--problems", "16", "--test", "6", "--develop", "8")
    (part,), printed = ran("task", real, tmp_path, *small)
    assert set(values(part)) == {"base", "expert", "antiexpert", "tuned@1", "tuned@weights"}
    said = [row["systems"]["base"]["said"] for row in part["measured"]["rows"]]
    assert sum(answer.isdigit() for answer in said) >= 5  # three solved problems show what an answer looks like
    assert "| base alone |" in printed
