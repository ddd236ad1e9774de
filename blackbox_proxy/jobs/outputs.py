"""The results of a bulk run: an append-only file of JSON lines that survives kill -9 at any moment.

A line is written whole, with one call, as soon as its turn comes; only a torn last line can be lost, and it is cut off
when the run goes on. In input order, a result whose turn has not come waits in a second file (`out.jsonl.waiting`), so
that neither memory nor a kill costs it. Every result counts by its row's index and digest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.jobs.inputs import InputRow
from blackbox_proxy.types import Generation, Usage

_BEGINS = b'{"index": '
_MOST_DEAD = 16 * 2**20  # bytes of results that have left the waiting file, before it is written anew


def result_line(row: InputRow, generation: Generation) -> bytes:
    """What is kept of a text. Nothing that a clock shows: a run that was resumed has the same lines."""
    return _line(
        row,
        {
            "text": generation.text,
            "finish_reason": generation.finish_reason,
            **({} if generation.reason is None else {"reason": generation.reason}),
            "tokens": len(generation.steps),
            "changed": sum(step.changed for step in generation.steps),
            "usage": asdict(generation.usage),
        },
    )


def failure_line(row: InputRow, error: BlackboxError) -> bytes:
    """Why there is no text, and what there was of it when the error came."""
    steps = error.steps
    return _line(
        row,
        {
            "error": {
                "class": type(error).__name__,
                "message": str(error),
                "hint": error.hint,
                "retryable": error.retryable,
            },
            "partial": "".join(step.text for step in steps),
            "tokens": len(steps),
            "usage": asdict(sum((step.usage for step in steps), Usage())),
        },
    )


def _line(row: InputRow, result: dict[str, Any]) -> bytes:
    seed = {} if row.options["seed"] is None else {"seed": row.options["seed"]}
    record = {"index": row.index, "id": row.id, "digest": row.digest, **result, **seed, "input": dict(row.extra)}
    try:
        return json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half characters in a field that is passed through
        return json.dumps(record, default=str).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Stored:
    """A result that is in a file: of which row, with which digest, and where it stands."""

    index: int
    digest: str
    failed: bool
    start: int
    length: int


class Output:
    """The file of results. Making one looks at what there is; `open` makes it ready; `expect` and `put` add to it.

    Raises InputError where there is no such folder, results that nobody asked to go on with or to overwrite, or
    another run that is writing.
    """

    def __init__(
        self, path: Path, *, resume: bool = False, overwrite: bool = False, retry_failed: bool = False, ordered: bool
    ) -> None:
        self.path = path
        self.moved = 0  # turns that are over: the one whose result the file gets next, in input order
        self.failures = 0  # results found that are failures, and stay so
        self._waits_at = path.with_name(path.name + ".waiting")
        self._ordered = ordered
        self._main: IO[bytes] | None = None
        self._waiting: IO[bytes] | None = None
        self._done: dict[int, str] = {}  # row -> digest, of what is in the file for good
        self._held: dict[int, Stored] = {}  # row -> where it is in the waiting file
        self._turns: dict[int, int] = {}  # turn -> row, of results whose turn has not come
        self._size = 0  # of the waiting file
        self._live = 0  # bytes of it that still wait
        self._dirty = False
        self._good = 0  # length of the file without a torn last line
        self._retry_from: int | None = None  # where the first failure to be asked again stands
        if not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent}", hint="Make it first, or write elsewhere.")
        if path.is_dir():
            raise InputError(f"{path} is a folder", hint="Name a file in it.")
        there = path.exists() or self._waits_at.exists()
        if there and not (resume or overwrite):
            raise InputError(f"{path} exists already", hint="Go on with it by --resume, or --overwrite it.")
        if path.exists():
            try:
                self._main = locked(path.open("r+b", buffering=0), path)
            except OSError as error:
                raise self._failed(error) from error
        if resume:
            try:
                self._look(retry_failed)
            except BaseException:
                self.close()
                raise

    # -- what there is ------------------------------------------------------------------------------------------------

    def _look(self, retry: bool) -> None:
        for stored in stored_in(self.path):
            self._good = stored.start + stored.length
            if stored.index in self._done:
                raise InputError(f"{self.path} has two results of row {stored.index}", hint="Write to another file.")
            if stored.failed and retry:
                self._retry_from = stored.start if self._retry_from is None else self._retry_from
            else:
                self.failures += stored.failed
                self._done[stored.index] = stored.digest
        for stored in stored_in(self._waits_at):
            if not (stored.failed and retry) and stored.index not in self._done:
                self.failures += stored.failed
                self._held[stored.index] = stored

    def has(self, row: InputRow) -> bool:
        """Whether this row's result is there. Raises InputError if what is there is the result of something else."""
        held = self._held.get(row.index)
        digest = held.digest if held else self._done.get(row.index)
        if digest is None:
            return False
        if digest != row.digest:
            same_prompt = digest.partition("-")[0] == row.digest.partition("-")[0]
            raise InputError(
                f"{self.path} holds the result of {'other settings' if same_prompt else 'another prompt'} for "
                f"{row.place} (index {row.index})",
                hint="Go on with the same input and the same settings, or write to another file.",
            )
        return True

    def done(self, index: int) -> bool:
        """Whether there is a result of this row, and it stays."""
        return index in self._done or index in self._held

    def check_rows(self, rows: int) -> None:
        """Raise InputError if there are results of rows that the input has not."""
        most = max((*self._done, *self._held), default=-1)
        if most >= rows:
            raise InputError(
                f"{self.path} holds the result of index {most}, but the input has {rows} rows",
                hint="Go on with the same input, or write to another file.",
            )

    # -- writing ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the file ready to be added to: torn lines go, and with `overwrite` everything that was there."""
        try:
            if self._main is None:
                self._main = locked(self.path.open("x+b", buffering=0), self.path)
            self._waiting = self._waits_at.open("r+b" if self._held else "w+b", buffering=0)
            self._main.truncate(self._good)
            self._size = max((stored.start + stored.length for stored in self._held.values()), default=0)
            self._live = sum(stored.length for stored in self._held.values())
            self._waiting.truncate(self._size)
            if self._retry_from is not None:
                self._take_out_failures(self._retry_from)
            self._main.seek(0, os.SEEK_END)
            if not self._ordered:
                for index, stored in list(self._held.items()):
                    self._append(self._taken(index))
                    self._done[index] = stored.digest
        except OSError as error:
            raise self._failed(error) from error

    def _take_out_failures(self, place: int) -> None:
        """What stands after the first failure waits for its turn again, and the failures go."""
        for stored in list(stored_in(self.path)):
            if stored.start >= place and not stored.failed:
                self._hold(stored.index, stored.digest, read_stored(self._main, stored))
                self._done.pop(stored.index, None)
        self.sync()
        assert self._main is not None
        self._main.truncate(place)

    def expect(self, turn: int, row: InputRow) -> bool:
        """Whether the result of this row waits already; it then gets this turn."""
        if row.index not in self._held:
            return False
        self._turns[turn] = row.index
        try:
            self._move()
        except OSError as error:
            raise self._failed(error) from error
        return True

    def put(self, turn: int, row: InputRow, line: bytes) -> None:
        """Add a result: to the file if its turn has come, or no order is asked for; else to those that wait."""
        try:
            if not self._ordered:
                self._append(line)
            elif turn == self.moved:
                self._append(line)
                self.moved += 1
            else:
                self._hold(row.index, row.digest, line)
                self._turns[turn] = row.index
            self._move()
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """See to it that what was written outlives a power cut."""
        if self._dirty:
            self._dirty = False
            for file in (self._waiting, self._main):
                if file is not None:
                    os.fsync(file.fileno())

    def close(self) -> None:
        """Keep everything; the waiting file goes if nothing waits in it."""
        self.sync()
        for file in (self._main, self._waiting):
            if file is not None:
                file.close()
        if self._waiting is not None and not self._held:
            self._waits_at.unlink(missing_ok=True)
        self._main = self._waiting = None

    def _move(self) -> None:
        """Into the file with what waits, as far as its turn has come."""
        while (index := self._turns.pop(self.moved, None)) is not None:
            self._append(self._taken(index))
            self.moved += 1
        if self._size > _MOST_DEAD + 4 * self._live:
            self._shrink()

    def _append(self, line: bytes) -> None:
        self._dirty = True
        write_whole(self._main, line)

    def _hold(self, index: int, digest: str, line: bytes) -> None:
        assert self._waiting is not None
        self._dirty = True
        self._waiting.seek(self._size)
        write_whole(self._waiting, line)
        self._held[index] = Stored(index, digest, False, self._size, len(line))
        self._size += len(line)
        self._live += len(line)

    def _taken(self, index: int) -> bytes:
        stored = self._held.pop(index)
        self._live -= stored.length
        return read_stored(self._waiting, stored)

    def _shrink(self) -> None:
        """Write the waiting file anew, without what has left it."""
        self.sync()
        old, held = self._waiting, list(self._held.values())
        assert old is not None
        place = self._waits_at.with_name(self._waits_at.name + ".new")
        self._waiting, self._size, self._live = place.open("w+b", buffering=0), 0, 0
        for stored in held:
            self._hold(stored.index, stored.digest, read_stored(old, stored))
        self.sync()
        old.close()
        os.replace(place, self._waits_at)

    def _failed(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path} cannot be written: {error.strerror or error}",
            hint="When that is repaired, --resume goes on with what is done.",
        )


def stored_in(path: Path) -> Iterator[Stored]:
    """The results in a file, without a torn last line. Raises InputError for a file of anything else."""
    if not path.exists():
        return
    start, torn = 0, 0  # torn: number of a line that cannot be read, which only the last one may be
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            stored = None if torn else _read_line(line, start)
            ours = line.startswith(_BEGINS) or _BEGINS.startswith(line) or not line.strip(b"\0\n")
            if torn or (stored is None and not ours):
                raise InputError(
                    f"{path} is not a file of results (line {torn or number})",
                    hint="Only what such a run has written can be resumed; write to another file.",
                )
            if stored is None:
                torn = number
            else:
                yield stored
                start += len(line)


def _read_line(line: bytes, start: int) -> Stored | None:
    try:
        record: Any = json.loads(line) if line.endswith(b"\n") else None
        return Stored(int(record["index"]), str(record["digest"]), "error" in record, start, len(line))
    except (ValueError, TypeError, KeyError):
        return None


def read_stored(file: IO[bytes] | None, stored: Stored) -> bytes:
    """The line of a result."""
    assert file is not None
    file.seek(stored.start)
    return file.read(stored.length)


def write_whole(file: IO[bytes] | None, line: bytes) -> None:
    """All of a line, however many calls that takes."""
    assert file is not None
    while line:
        line = line[file.write(line) :]


def locked(file: IO[bytes], path: Path) -> IO[bytes]:
    """Two runs into one file would ask and pay for everything twice. The lock ends with the process.

    Raises InputError where another run has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(f"another run writes to {path}", hint="Wait for it, or write to another file.") from error
    return file
