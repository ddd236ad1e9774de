"""The experiments of examples/real_models on the real models: how one is run in small, and what of its JSON is read.

Each is a file of its own in tests/examples/, so that they run side by side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples" / "real_models"


def ran(script: str, folder: Path, tmp_path: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The parts of a script's JSON, and what it printed."""
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--models", str(folder), "--cache", str(tmp_path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((tmp_path / f"{script}.json").read_text())["parts"], done.stdout


def values(part: dict[str, Any]) -> dict[str, float]:
    return {system["system"]: system["value"] for system in part["measured"]["tables"][0]["systems"]}
