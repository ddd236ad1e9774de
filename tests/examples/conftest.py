"""Where the real models are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from real_models import FOLDER


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder that fetch.py wrote, or a skip that says why there is none."""
    sys.path[:0] = [str(FOLDER)]
    import parts

    folder = parts.models_folder(None)
    if not all((folder / name / "config.json").is_file() for name in ("gemma", "smollm2")):
        pytest.skip(f"no real models in {folder}: run examples/real_models/fetch.py, or set {parts.MODELS}")
    return folder
