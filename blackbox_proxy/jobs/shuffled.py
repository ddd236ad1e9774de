"""Rows in an order drawn from a seed, from a file: 100,000 prompts are never held in memory."""

from __future__ import annotations

import json
import random
import tempfile
from array import array
from collections.abc import Iterator
from typing import IO

from blackbox_proxy.jobs.inputs import InputRow


class Shuffled:
    """Rows in a temporary file, read in an order drawn from a seed. Does nothing without a seed."""

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._file: IO[bytes] | None = None if seed is None else tempfile.TemporaryFile()  # noqa: SIM115
        self._starts = array("Q")

    def __enter__(self) -> Shuffled:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: InputRow) -> None:
        if self._file is not None:
            self._starts.append(self._file.seek(0, 2))
            parts = [row.index, row.place, row.id, row.prompt, dict(row.options), dict(row.extra), row.digest]
            self._file.write(json.dumps(parts, default=str).encode() + b"\n")

    def rows(self, limit: int | None) -> Iterator[InputRow]:
        assert self._file is not None
        order = array("Q", range(len(self._starts)))
        random.Random(self._seed).shuffle(order)
        for place in order[:limit]:
            self._file.seek(self._starts[place])
            yield InputRow(*json.loads(self._file.readline()))
