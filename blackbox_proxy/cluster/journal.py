"""Lines that are answered and paid for, until a part has them: whoever does their rows again finds them here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from blackbox_proxy.jobs.outputs import Stored, read_stored, stored_in, write_whole


class Journal:
    """A file of result lines, each written whole before anybody counts on it. A torn last one is cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at: dict[int, Stored] = {}
        self._size = 0
        for stored in stored_in(path):
            self._at[stored.index] = stored
            self._size = stored.start + stored.length
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._file.truncate(self._size)

    def __len__(self) -> int:
        return len(self._at)

    def put(self, index: int, digest: str, failed: bool, line: bytes) -> bool:
        """Keep a row's line, unless there is one already. Says whether it is new."""
        if index in self._at:
            return False
        self._file.seek(0, os.SEEK_END)
        write_whole(self._file, line)
        self._at[index] = Stored(index, digest, failed, self._size, len(line))
        self._size += len(line)
        return True

    def have(self, indices: Iterable[int]) -> dict[int, bytes]:
        """The lines that there are of these rows."""
        return {i: read_stored(self._file, self._at[i]) for i in indices if i in self._at}

    def lines(self) -> Iterator[bytes]:
        """All lines, by the index of their rows."""
        for index in self.rows():
            yield read_stored(self._file, self._at[index])

    def rows(self) -> list[int]:
        """The indices of the rows, in order."""
        return sorted(self._at)

    def sync(self) -> None:
        """See to it that what was written outlives a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
