"""The page of the kinds names files that are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "blackbox_proxy"


def test_every_guard_and_every_test_is_where_the_page_says() -> None:
    rows = [line.strip("|").split("|") for line in (TESTS / "README.md").read_text(encoding="utf-8").splitlines()]
    found = [(guard, test) for _, guard, test in (row for row in rows if len(row) == 3)][2:]
    assert len(found) > 10
    for guard, test in found:
        for name in re.findall(r"`([\w/]+\.py)`", guard):
            assert (PACKAGE / name).is_file(), name
        names = re.findall(r"`([\w/]+\.py)`", test)
        assert names
        for name in names:
            assert (TESTS / name).is_file() or (PACKAGE / name).is_file(), name
