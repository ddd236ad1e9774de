"""A Ray cluster of this machine, runs on it in processes of their own, and the local run that they are held to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = "TEST_OF_A_CLUSTER"  # in the environment of all processes of one test


@dataclass
class Runs:
    """`blackbox-proxy` against a host that counts. given: the options of every run; times: when requests came."""

    folder: Path
    given: list[str]
    times: list[float]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        return len(self.times)

    def begin(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return self._begin([sys.executable, "-m", "blackbox_proxy", *map(str, arguments)])

    def begin_script(self, script: Path, *arguments: str) -> subprocess.Popen[str]:
        """A program of the tests, in the same surroundings."""
        return self._begin([sys.executable, str(script), *arguments])

    def _begin(self, command: list[str]) -> subprocess.Popen[str]:
        env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "RAY_ADDRESS": "", MARK: str(self.folder)}
        env |= self.env
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=env, start_new_session=True, **pipes)

    def __call__(self, *arguments: str | Path, seconds: float = 500.0) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        process = self.begin(*arguments)
        try:
            out, told = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, out, told

    def local(self, source: Path, *more: str) -> list[dict[str, Any]]:
        """The lines of a run without Ray."""
        out = self.folder / f"{source.stem}.local.jsonl"
        status, _, told = self("run", source, "-o", out, *self.given, "--no-cache", *more, seconds=1500)
        assert status in (0, 1), told
        return lines_in(out)


def lines_in(place: Path) -> list[dict[str, Any]]:
    """The lines of a file, or of all parts in a folder, by the index of their rows."""
    files = sorted(place.glob("part-*.jsonl")) if place.is_dir() else [place]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return sorted(lines, key=lambda line: int(line["index"]))


def without_cost(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a text cost depends on what was asked before."""
    return [{**line, "usage": None} for line in lines]


def processes(kind: str, folder: Path) -> list[int]:
    """The processes of a test's cluster that Ray names so: "Worker" holds a tuner, "Desk" is asked by all."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name, env = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::") and kind.encode() in name and f"{MARK}={folder}".encode() in env:
            found.append(int(place.name))
    return sorted(found)


def wait_for(what: Callable[[], Any], seconds: float = 240.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


class Noting:
    """A server that notes when each request for text came, and refuses a prompt that begins with these tokens."""

    def __init__(self, app: Any, refused: list[int]) -> None:
        self._app = app
        self._refused = refused
        self.times: list[float] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/completions"):
            await self._app(scope, receive, send)
            return
        self.times.append(time.monotonic())
        first = await receive()
        prompt = json.loads(first["body"])["prompt"]
        if [token for token in prompt if token > 1][: len(self._refused)] == self._refused:
            start = {"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"application/json")]}
            await send(start)
            await send({"type": "http.response.body", "body": b'{"error": {"message": "not such a prompt"}}'})
            return
        waiting = [first]

        async def again() -> Any:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, again, send)


@contextmanager
def counting(models: dict[str, str], folder: Path, *, tokens: int = 6, first_token: float = 0.03) -> Iterator[Runs]:
    """A host in this process that counts."""
    from transformers import AutoTokenizer

    from blackbox_proxy.door.running import serve_in_thread
    from blackbox_proxy.host.engine import open_engine
    from blackbox_proxy.serve.routes import create_app

    engine = open_engine(models["base"], top_logprobs=5, served_model_name="big", device="cpu", first_token=first_token)
    refused = AutoTokenizer.from_pretrained(models["base"]).encode("REFUSED", add_special_tokens=False)
    noting = Noting(create_app(engine), refused)
    with serve_in_thread(noting) as url:
        given = ["--base", "big", "--base-url", f"{url}/v1", "--dialect", "host", "--tokenizer", models["base"]]
        given += ["--top-logprobs", "5", "--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"]]
        given += ["--device", "cpu", "-n", str(tokens), "--draft", "4", "--concurrency", "4"]
        yield Runs(folder, given, noting.times)
