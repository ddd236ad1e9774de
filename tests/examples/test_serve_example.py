"""examples/serve: the files agree with each other and with the program. No image is built here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from blackbox_proxy.cli import app
from blackbox_proxy.config.settings import load
from blackbox_proxy.door.limits import Limits
from blackbox_proxy.gateway.app import Porter, Room, create_gateway
from blackbox_proxy.gateway.run import Operation

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "serve"
DOCKERFILE = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
SETTINGS = load(FOLDER / "proxy.toml")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.M)


def known(words: list[str]) -> None:
    """Assert that a line of words after `blackbox-proxy` is a command with its options."""
    commands: Any = get_command(app)
    command = commands.commands[words[0]]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_settings_are_right(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With models where it looks for them, `config check` finds nothing wrong."""
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copy(FOLDER / "proxy.toml", tmp_path)
    for name, model in (("big", "base"), ("small-tuned", "digits-expert"), ("small", "digits-antiexpert")):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / name).symlink_to(models[model])
    result = CliRunner().invoke(app, ["config", "check", "--config", str(tmp_path / "proxy.toml")])
    assert result.exit_code == 0, result.output
    assert "fails" not in result.output
    told = SETTINGS.serve
    Operation(host=told.host, port=told.port, keys=told.keys, limits=Limits(allow_host=told.allow_host))


def test_the_settings_name_what_compose_starts() -> None:
    base, told = SETTINGS.base, SETTINGS.serve
    command = COMPOSE["base"]["command"]
    options = dict(zip(command[::2], command[1::2], strict=True))
    assert base.url == "http://base:8000/v1"  # the service's name; vLLM's port
    assert (options["--served-model-name"], int(options["--max-logprobs"])) == (base.model, base.top_logprobs)
    assert options["--model"] == "/models/big"
    assert "./models:/models:ro" in COMPOSE["base"]["volumes"]
    assert "ports" not in COMPOSE["base"]  # nobody but the gateway reaches it
    gateway = COMPOSE["gateway"]
    assert gateway["ports"] == [f"127.0.0.1:8000:{told.port}"]
    assert instructions("EXPOSE") == [str(told.port)]
    assert int(gateway["stop_grace_period"].removesuffix("s")) > told.drain_seconds
    mounted = [Path(volume.split(":")[1]) for volume in gateway["volumes"]]
    [work] = instructions("WORKDIR")[-1:]
    assert mounted == [Path(work)]
    assert told.keys == FOLDER / "state" / "keys.toml"
    assert instructions("ENV")[-1].count(f"{work}/state") == 2


def test_compose_asks_routes_that_there_are() -> None:
    [ready] = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", str(COMPOSE["gateway"]["healthcheck"]))
    nobody: Any = SimpleNamespace(name="none")
    routes = create_gateway([nobody], Porter(Room())).routes
    assert ready in {getattr(route, "path", "") for route in routes}


def test_what_the_dockerfile_copies_and_starts_is_there() -> None:
    build = COMPOSE["gateway"]["build"]
    context = (FOLDER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).resolve() == FOLDER / "Dockerfile"
    allowed = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    copied = {name.removeprefix("./") for line in instructions("COPY") for name in line.split()[:-1] if line[0] != "-"}
    assert copied == allowed
    assert [name for name in copied if not (context / name).exists()] == []
    needed = re.findall(r'"(\w+\.md|LICENSE)"', (ROOT / "pyproject.toml").read_text())  # or the build stops
    assert set(needed) <= copied
    [install] = [line for line in instructions("RUN") if "pip install" in line]
    assert "-c constraints.txt" in install
    assert shlex.split(install)[-1] == ".[server]"
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["blackbox-proxy"]
    known(json.loads(instructions("CMD")[0]))


def test_the_commands_of_its_page_exist() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"docker compose run .* gateway (.+)$", page, re.M)
    assert lines
    for line in lines:
        known(line.split())
    assert set(re.findall(r"docker compose [\w -]*?(gateway|base)\b", page)) <= set(COMPOSE)
