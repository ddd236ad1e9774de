"""Before a cluster is begun: what is missing or cannot be is said, with a hint, and nothing is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bulk import numbered

from blackbox_proxy.cluster.engine import Engine, at_heart, rebuilt, started
from blackbox_proxy.errors import AccessDenied, BlackboxError, InputError

Run = Callable[..., tuple[int, str, str]]
GIVEN = ["--base", "big", "--base-url", "http://127.0.0.1:1/v1", "--expert", "x", "--antiexpert", "y"]


def test_where_ray_is_missing_the_command_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    source = numbered(tmp_path / "in.jsonl", 2)
    status, _, told = run("run", str(source), "-o", str(tmp_path / "out"), *GIVEN, "--engine", "ray")
    assert (status, "Ray, which is not installed" in told, "blackbox-proxy[ray]" in told) == (2, True, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--engine", "spark"], "unknown engine 'spark'"),
        (["--engine", "ray", "--workers", "0"], "workers must be at least 1"),
        (["--engine", "ray", "--worker-gpus", "1.5"], "worker_gpus must be a fraction or a whole number"),
        (["--engine", "ray", "--address", "ray://head:10001"], "from outside of the cluster"),
        (["--engine", "ray", "--shuffle", "1"], "--shuffle is not for --engine ray"),
        (["--engine", "ray", "--trace", "t.jsonl"], "--trace is not for --engine ray"),
        (["--engine", "ray", "--retry-failed"], "only when a run goes on"),
        (["--engine", "ray", "--format", "xml"], "unknown format 'xml'"),
        (["--engine", "ray", "--top-p", "7"], "--top-p: must be"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, tmp_path: Path, more: list[str], what: str) -> None:
    source = numbered(tmp_path / "in.jsonl", 2)
    status, _, told = run("run", str(source), "-o", str(tmp_path / "out"), *GIVEN, *more)
    assert (status, what in told, "Hint:" in told) == (2, True, True), told
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_of_parts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blackbox_proxy.cluster.run.installed", lambda: None)  # that it is not is said before
    source = numbered(tmp_path / "in.jsonl", 2)
    for out, what in ((source, "is a file"), (tmp_path / "no" / "out", "there is no folder")):
        status, _, told = run("run", str(source), "-o", str(out), *GIVEN, "--engine", "ray")
        assert (status, what in told) == (2, True), told


def test_the_error_of_this_package_is_found_in_those_around_it() -> None:
    inner = AccessDenied("no key", hint="Set it.")

    class Wrapped(InputError):
        """As Ray makes one: of the class of its cause, with the cause inside."""

        def __init__(self, cause: Exception) -> None:
            super().__init__("Traceback …")
            self.cause = cause

    around = RuntimeError("a task failed")
    around.__cause__ = Wrapped(inner)
    assert at_heart(around) is inner
    assert at_heart(RuntimeError("another")) is None
    again = rebuilt("AccessDenied", "no key", "Set it.")
    assert (type(again), str(again), again.hint) == (AccessDenied, "no key", "Set it.")
    assert type(rebuilt("os", "x", "")) is BlackboxError


def test_a_connection_needs_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself is asked only where it is installed; what it says is told in words."""

    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            return False

        @staticmethod
        def init(**how: object) -> None:
            raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr("blackbox_proxy.cluster.engine.import_module", lambda name: Ray)
    with (
        pytest.raises(InputError, match=r"no Ray cluster at auto: Could not find") as caught,
        started(Engine(address="auto")),
    ):
        pass
    assert "ray start" in caught.value.hint
