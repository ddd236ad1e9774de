"""Runs on a Ray cluster of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from clusters import Runs, counting


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("ray") and find_spec("ray") is None:
            item.add_marker(pytest.mark.skip(reason="Ray is not installed: pip install -e '.[ray]'"))


@pytest.fixture
def runs(models: dict[str, str], tmp_path: Path) -> Iterator[Runs]:
    with counting(models, tmp_path) as found:
        yield found
