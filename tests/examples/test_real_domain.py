"""examples/real_models/domain.py in small, on the real models (pytest -m real)."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_models import ran, values


@pytest.mark.real
def test_domain_in_small(real: Path, tmp_path: Path) -> None:
    small = ("--texts", "8", "--modules", "4", "--develop", "8", "--length", "120", "--shown", "5", "0", "--alpha", "1")
    found, printed = ran("domain", real, tmp_path, *small)
    few, whole = map(values, found)
    assert [part["shown"] for part in found] == [5, 0]
    # What the base and the expert say of the text's own tokens does not depend on how many candidates are shown.
    for system in ("base", "expert", "antiexpert"):
        assert few[system] == pytest.approx(whole[system], rel=0.02)
    assert len(set(few.values())) == 5
    assert all(0.2 < value < 5.0 for value in (*few.values(), *whole.values()))
    assert printed.count("| base alone |") == 2
