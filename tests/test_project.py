"""The project's own rules: types, lint, what each room may import, and what the README promises."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.parametrize(
    "command", [("mypy",), ("ruff", "check", "."), ("ruff", "format", "--check", ".")], ids=" ".join
)
def test_types_and_lint(command: tuple[str, ...]) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("base", "from blackbox_proxy.pair.side import Side"),
        ("aligning", "import torch"),
        ("base", "from blackbox_proxy.maths import equation"),
        ("pair", "from blackbox_proxy.base.local import TransformersBase"),
        ("pair", "import openai"),
        ("serve", "import numpy"),
        ("report", "import torch"),
        (".", "import torch"),
        (".", "import openai"),
    ],
)
def test_rooms_may_not_import_what_they_must_not_know(room: str, line: str) -> None:
    """The rules are alive: ruff refuses each of these lines in a module of that room."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--select",
            "TID251",
            "--stdin-filename",
            f"blackbox_proxy/{room}/something.py".replace("/./", "/"),
            "-",
        ],
        cwd=ROOT,
        input=f"{line}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "TID251" in done.stdout


def test_versions_agree() -> None:
    import blackbox_proxy

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert blackbox_proxy.__version__ == declared
    assert f"## {declared}" in (ROOT / "CHANGELOG.md").read_text()
    assert importlib.metadata.version("blackbox-proxy") == declared


def test_the_first_screen_of_the_readme_has_two_commands_that_set_themselves_up() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"```sh\n(.*?)```", readme.split("\n## ")[0], re.S)
    assert len(commands) == 2
    for command in commands:
        assert command.count("\n") == 1
        assert "-m venv" in command
        assert "-c constraints.txt" in command


def test_tested_versions_are_above_the_lower_bounds() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    for requirement in needed:
        name, _, bound = requirement.partition(">=")
        name = name.partition("[")[0]
        if bound and name in pins:
            assert [int(n) for n in pins[name].split(".")] >= [int(n) for n in bound.split(".")], name
        elif bound:
            assert name == "pydantic", f"{name} has no tested version"
