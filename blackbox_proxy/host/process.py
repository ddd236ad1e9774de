"""A host beside this program, in a process of its own.

with HostProcess("path-or-hub-id", top_logprobs=5) as host:
    AsyncOpenAI(base_url=host.base_url, api_key=host.api_key)
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from blackbox_proxy.errors import ServerFailed
from blackbox_proxy.host.options import HostOptions

if TYPE_CHECKING:
    pass

_PATIENCE = 5.0  # seconds a host has to end by itself
_LINES = 40  # of its standard error that are kept for the message, should it fail


class HostProcess:
    """A local model served by a process of its own, on a free loopback port.

    options: the other fields of `HostOptions`; port 0 takes a free one. threads: torch's, None for its own choice.
    timeout: seconds until it must answer. The process ends with the `with` block, and with this process, however that
    ends.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        port: int = 0,
        threads: int | None = None,
        timeout: float = 120.0,
        **options: Any,
    ) -> None:
        self._options = HostOptions(model=os.fspath(model), port=port, **options)
        self.model = self._options.name
        self.api_key = self._options.api_key or "none"
        self.url = ""
        self._threads = threads
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._said: deque[bytes] = deque(maxlen=_LINES)
        self._listener: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as base_url."""
        return f"{self.url}/v1"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerFailed("the host is not running")
        return self._process.pid

    def start(self) -> Self:
        """Start the process and wait until it answers. Raises ServerFailed with what it wrote to standard error."""
        process = subprocess.Popen(
            [sys.executable, "-m", "blackbox_proxy.host.run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
        )
        self._process, self._said = process, deque(maxlen=_LINES)
        self._listener = threading.Thread(target=_keep, args=(process.stderr, self._said), daemon=True)
        self._listener.start()
        try:
            self._tell(process)
            address = self._first_line(process)
        except BaseException:
            self.close()
            raise
        self.url = f"http://{address['host']}:{address['port']}"
        return self

    def close(self) -> None:
        """End the process and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if self._listener is not None:
                self._listener.join(_PATIENCE)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def stats(self) -> dict[str, int]:
        """What the server has counted: requests, prompt_tokens, completion_tokens …; and its processor time, ms."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is no matter for a proxy
        with direct.open(f"{self.url}/stats", timeout=self._timeout) as answer:
            found: dict[str, int] = json.load(answer)
        return found

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _environment(self) -> Mapping[str, str]:
        package = str(Path(__file__).resolve().parents[2])
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not take the cores of this process
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        return environment

    def _tell(self, process: subprocess.Popen[bytes]) -> None:
        """Write the options to the process; one that has ended already says why on standard error."""
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(self._options)).encode() + b"\n")
            process.stdin.flush()

    def _first_line(self, process: subprocess.Popen[bytes]) -> dict[str, object]:
        lines: queue.Queue[bytes] = queue.Queue()
        stdout = process.stdout
        assert stdout is not None
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=self._timeout)
        except queue.Empty:
            raise ServerFailed(
                f"the host of {self.model} did not answer within {self._timeout:g} s: {self._last_words()}",
                hint="A big model loads slowly: allow a longer timeout.",
            ) from None
        try:
            address: dict[str, object] = json.loads(line)
        except ValueError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            raise ServerFailed(f"the host of {self.model} did not start: {self._last_words()}") from None
        return address

    def _last_words(self) -> str:
        """The end of what the process wrote to standard error, all of it if it has ended."""
        if self._listener is not None and self._process is not None and self._process.poll() is not None:
            self._listener.join(_PATIENCE)
        return b"".join(self._said).decode("utf-8", "replace").strip() or "it said nothing"


def _keep(pipe: IO[bytes], lines: deque[bytes]) -> None:
    """Read a pipe to its end, so that the writer never waits, and keep the last lines."""
    lines.extend(pipe)
