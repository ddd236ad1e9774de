"""examples/real_models/served.py in small, on real servers of the real models (pytest -m real)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from real_models import FOLDER, ran
from servers.install import INSTALLED, llama_server, python_of

sys.path[:0] = [str(FOLDER)]

import served  # noqa: E402


@pytest.mark.real
def test_servers_in_small(real: Path, tmp_path: Path) -> None:
    programs = {"llama-server": llama_server(), "vllm": python_of("vllm") if INSTALLED["vllm"]() else None}
    if not any(programs.values()) or not (real / "gemma.gguf").is_file():
        pytest.skip("no server is installed, or there is no gemma.gguf: run tests/servers/install.py and fetch.py")
    options = ["--llama-server", str(programs["llama-server"]), "--vllm-python", str(programs["vllm"])]
    small = ("--texts", "8", "--modules", "2", "--length", "120", "--tokens", "8")
    (here, *others), printed = ran("served", real, tmp_path, *options, *small)
    assert here["base"] == served.HERE
    kinds = [kind for kind, program in programs.items() if program]
    assert [each["base"] for each in others] == [name for name in LOG_Q if name.split(",")[0] in kinds]
    for each in others:
        for what in ("alone", "steered"):
            assert 0 < each[what]["median"] < LOG_Q[each["base"]]
            partings = [served.Parting(**parting) for parting in each[what]["partings"]]
            assert all(parting.unexplained is None or parting.explained for parting in partings)
            assert not partings or each["base"] == "llama-server"  # the others have the same weights and numbers
        assert 0 < each["times"]["calls_per_token"] < 1
        assert each["bulk"]["run"] > 0
        assert f"| {each['base']} | steered |" in printed


LOG_Q = {"llama-server": 0.3, served.FLOAT32: 0.01, "vllm": 1e-3}
"""Nats by which each may differ from the base in this process: llama-server rounds what 4-bit weights meet."""
