"""Events in a file, each noted before anybody hears of it: a process that is killed and begun again knows them all.

A line torn by a kill was never acted on, and is cut off. A power cut may lose the last second.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SYNC_SECONDS = 1.0
_MOST = 1 << 22  # bytes before the file is written anew


class Checkpoint:
    """A file of events. `old`: those that were there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.old: list[Any] = []
        self._synced = time.monotonic()
        good = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                self.old.append(json.loads(line))
                good += len(line)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, good)
        self.size = os.lseek(self._file, 0, os.SEEK_END)

    def note(self, event: Any) -> None:
        """Keep an event. When this returns, it outlives this process."""
        line = json.dumps(event).encode() + b"\n"
        self.size += len(line)
        while line:
            line = line[os.write(self._file, line) :]
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    @property
    def full(self) -> bool:
        """Whether it is time to `rewrite`."""
        return self.size > _MOST

    def rewrite(self, events: Iterable[Any]) -> None:
        """These events instead of all that there were."""
        beside = self._path.with_name(self._path.name + ".new")
        beside.unlink(missing_ok=True)
        fresh = Checkpoint(beside)
        for event in events:
            fresh.note(event)
        os.fsync(fresh._file)
        os.replace(beside, self._path)
        os.close(self._file)
        self._file, self.size = fresh._file, fresh.size

    def close(self) -> None:
        os.close(self._file)
