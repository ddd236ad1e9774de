"""The file behind the cache: one sqlite database in WAL mode, shared by many threads and processes.

It knows keys and bytes, not tokens. `rows` has what a base showed at one place of one text, `draws` which token it then
wrote there (greedily, or with one seed), `claims` who is asking for a place right now, and `roots` to which base and
prompt a row belongs. A cache must never end a run: what goes wrong with the file is a warning, a damaged file is set
aside and a new one begun. Only a file that a newer version wrote, or that is somebody else's, is refused.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_path

from blackbox_proxy.base.cache.file import SharedFile, file_parts, transaction
from blackbox_proxy.errors import InputError

MAX_BYTES = 1 << 30
LEASE = 30.0  # seconds that a claim holds unless it is renewed

_FULL_TO = 0.9  # what eviction leaves of the limit
_TOUCH_AFTER = 60.0  # seconds after which a use is worth writing down
_TOUCH_TOGETHER = 256


class Found(NamedTuple):
    """`value` as it was put, b"" where only a draw is known; `drawn` what was drawn there, None where that is not
    known.
    """

    value: bytes
    drawn: str | None


class StoredRow(NamedTuple):
    """One row to keep. `before` and `token` (as JSON) say how it was reached, None at a prompt's end. `draw`, `drawn`:
    what was drawn there and how, both None where nothing was.
    """

    key: bytes
    place: int
    before: bytes | None
    token: str | None
    value: bytes
    draw: bytes | None = None
    drawn: str | None = None


class Root(NamedTuple):
    """A base and a prompt, as JSON, and the digest of both."""

    root: bytes
    base: str
    prompt: str


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a file holds: rows, drawn tokens, prompts, bytes on disk, and rows by base (its identity as JSON)."""

    path: str
    rows: int
    draws: int
    prompts: int
    bytes: int
    max_bytes: int
    bases: dict[str, int]


def default_path() -> Path:
    """Where the cache lies unless a path is given."""
    return user_cache_path("blackbox-proxy") / "cache.sqlite3"


class Store(SharedFile):
    """The file. Every method may be called from any thread; `submit` runs them one after the other on a thread of the
    store's own, so that an event loop never waits for a disk and whoever reads sees what was put before.

    Raises InputError where the file cannot be used at all.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.time,
        seeds: Sequence[Store] = (),
    ) -> None:
        """seeds: looked into for what is not here, and never written to (seeds.py)."""
        if max_bytes < 1:
            raise InputError(f"max_bytes must be at least 1, not {max_bytes}", hint="Leave it out for 1 GiB.")
        self.max_bytes = max_bytes
        self._clock = clock
        self._seeds = tuple(seeds)
        # Nobody asked for the default file in particular: then a warning is enough.
        super().__init__(default_path() if path is None else Path(path), needed=path is not None)

    def _begin(self) -> None:
        super()._begin()
        self._touched: set[bytes] = set()

    # -- rows -----------------------------------------------------------------------------------------------------

    def find(self, key: bytes, draw: bytes | None = None) -> Found | None:
        """What is known of a place, and what was drawn there in this way; None where nothing is. Of several files that
        know of it, what one of them says is taken whole: the one that says most, this one if they say the same.
        """
        found = self._find(key, draw)
        for seed in self._seeds:
            if _told(found) >= (2 if draw is None else 3):
                break
            other = seed.find(key, draw)
            found = other if _told(other) > _told(found) else found
        return found

    def _find(self, key: bytes, draw: bytes | None) -> Found | None:
        def work(file: sqlite3.Connection) -> Found | None:
            row = file.execute(
                "SELECT value, used, drawn FROM rows LEFT JOIN draws ON draws.key = rows.key AND draw = ? "
                "WHERE rows.key = ?",
                (draw, key),
            ).fetchone()
            if row is None:
                return None
            if row[1] < self._clock() - _TOUCH_AFTER:
                self._touched.add(key)
            return Found(row[0], row[2])

        found = self._do(work, None)
        if len(self._touched) >= _TOUCH_TOGETHER:
            self.flush()
        return found

    def put(self, root: Root, rows: Sequence[StoredRow], owner: str | None = None, claim: bytes | None = None) -> None:
        """Keep rows, and in the same moment move the owner's claim to `claim` (None gives it back).

        What is there already is replaced: whoever asked for it again goes on with the new answer.
        """
        now = self._clock()

        def work(file: sqlite3.Connection) -> None:
            with transaction(file):
                file.execute("INSERT OR IGNORE INTO roots VALUES (?, ?, ?)", root)
                file.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                    "SET value = excluded.value, used = excluded.used WHERE length(excluded.value) > 0",
                    [(r.key, root.root, r.place, r.before, r.token, r.value, now) for r in rows],
                )
                file.executemany(
                    "INSERT OR REPLACE INTO draws VALUES (?, ?, ?)",
                    [(r.key, r.draw, r.drawn) for r in rows if r.draw is not None],
                )
                if owner is not None:
                    file.execute("DELETE FROM claims WHERE owner = ?", (owner,))
                    if claim is not None:
                        file.execute("INSERT OR IGNORE INTO claims VALUES (?, ?, ?)", (claim, owner, now + LEASE))
            if _size(file) > self.max_bytes:
                self._evict(file)

        self._do(work, None)

    def fill(self, rows: Iterable[tuple[Root, StoredRow, dict[bytes, str]]]) -> None:
        """Keep rows as `rows` gives them, all of them or none. Raises InputError where nothing can be written."""
        try:
            with self._lock, transaction(self._open()):
                file, used = self._open(), self._clock()
                for root, row, draws in rows:
                    file.execute("INSERT OR IGNORE INTO roots VALUES (?, ?, ?)", root)
                    kept = (row.key, root.root, row.place, row.before, row.token, row.value, used)
                    file.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", kept)
                    file.executemany(
                        "INSERT OR REPLACE INTO draws VALUES (?, ?, ?)", [(row.key, *drawn) for drawn in draws.items()]
                    )
        except sqlite3.Error as error:
            raise InputError(
                f"the cache {self.path} cannot be written: {error}", hint="Give another file for the cache."
            ) from error

    def close(self) -> None:
        super().close()
        for seed in self._seeds:
            seed.close()

    def drop(self, key: bytes) -> None:
        """Forget a row that turned out to be unreadable."""
        self._do(lambda file: file.execute("DELETE FROM rows WHERE key = ?", (key,)) and None, None)

    def flush(self) -> None:
        """Write down which rows were used."""
        touched, self._touched = [(self._clock(), key) for key in self._touched], set()

        def work(file: sqlite3.Connection) -> None:
            with transaction(file):
                file.executemany("UPDATE rows SET used = ? WHERE key = ?", touched)

        if touched:
            self._do(work, None)

    def _evict(self, file: sqlite3.Connection) -> None:
        """Forget the rows that were not used for longest, a tenth of them at a time, until there is room again."""
        self.flush()
        goal = int(self.max_bytes * _FULL_TO)
        while _size(file) > goal:
            with transaction(file):
                count = int(file.execute("SELECT count(*) FROM rows").fetchone()[0])
                if not count:
                    break
                oldest = "SELECT key FROM rows ORDER BY used, place DESC LIMIT ?"
                some = (max(1, count // 10),)
                file.execute(f"DELETE FROM draws WHERE key IN ({oldest})", some)
                file.execute(f"DELETE FROM rows WHERE key IN ({oldest})", some)
                if count <= some[0] or _size(file) <= goal:
                    file.execute("DELETE FROM roots WHERE root NOT IN (SELECT DISTINCT root FROM rows)")
        file.execute("PRAGMA incremental_vacuum").fetchall()
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # -- claims ---------------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside sees one state of the file, and nobody writes meanwhile."""
        with self._lock:
            if not self._do(lambda file: bool(file.execute("BEGIN IMMEDIATE")), False):
                yield  # a file that cannot be used: each call inside warns and answers that nothing is known
                return
            try:
                yield
            finally:
                if self._connection is not None and self._connection.in_transaction:
                    try:
                        self._connection.execute("COMMIT")
                    except sqlite3.Error as error:
                        self._connection.rollback()
                        self._warn(error)

    def claimed(self, claim: bytes) -> bool:
        """Whether somebody who is alive is asking for this."""

        def work(file: sqlite3.Connection) -> bool:
            row = file.execute("SELECT owner, until FROM claims WHERE claim = ?", (claim,)).fetchone()
            return row is not None and row[1] > self._clock() and _lives(row[0])

        return self._do(work, False)

    def claim(self, claim: bytes, owner: str) -> bool:
        """Claim this, unless somebody else has. Where the file cannot be used, everybody may ask."""

        def work(file: sqlite3.Connection) -> bool:
            if self.claimed(claim):
                return False
            file.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (claim, owner, self._clock() + LEASE))
            return True

        return self._do(work, True)

    def renew(self, owner: str) -> None:
        """Hold on to what one has claimed."""
        until = self._clock() + LEASE
        self._do(lambda f: f.execute("UPDATE claims SET until = ? WHERE owner = ?", (until, owner)) and None, None)

    def release(self, owner: str) -> None:
        """Give back what one has claimed."""
        self._do(lambda file: file.execute("DELETE FROM claims WHERE owner = ?", (owner,)) and None, None)

    # -- for people -----------------------------------------------------------------------------------------------

    def stats(self) -> StoreStats:
        def work(file: sqlite3.Connection) -> StoreStats:
            def count(table: str) -> int:
                return int(file.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

            bases = "SELECT base, count(*) FROM rows JOIN roots USING (root) GROUP BY base ORDER BY 2 DESC"
            by_base = {str(base): int(rows) for base, rows in file.execute(bases)}
            return StoreStats(
                str(self.path),
                count("rows"),
                count("draws"),
                count("roots"),
                sum(part.stat().st_size for part in file_parts(self.path) if part.exists()),
                self.max_bytes,
                by_base,
            )

        return self._do(work, StoreStats(str(self.path), 0, 0, 0, 0, self.max_bytes, {}))

    def clear(self) -> int:
        """Forget everything; the number of rows there were. Raises InputError where nothing can be written."""
        with self._lock:
            self._open()
        if self.read_only:
            raise InputError(f"the cache {self.path} cannot be written to", hint="Check the rights to the file.")

        def work(file: sqlite3.Connection) -> int:
            with transaction(file):
                rows = int(file.execute("SELECT count(*) FROM rows").fetchone()[0])
                for table in ("rows", "draws", "roots", "claims"):
                    file.execute(f"DELETE FROM {table}")
            file.execute("VACUUM")
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return rows

        return self._do(work, 0)

    def rows(self) -> Iterator[tuple[Root, StoredRow, dict[bytes, str]]]:
        """Every row with its prompt, and what was drawn there (draw -> drawn); text by text, in order."""
        query = (
            "SELECT root, base, prompt, key, place, before, token, value FROM rows JOIN roots USING (root) "
            "ORDER BY root, place"
        )
        with self._lock:
            file = self._open()
            for root, base, prompt, key, place, before, token, value in file.execute(query):
                draws = dict(file.execute("SELECT draw, drawn FROM draws WHERE key = ?", (key,)))
                yield Root(root, base, prompt), StoredRow(key, place, before, token, value), draws


def _told(found: Found | None) -> int:
    """How much is known of a place: nothing, what was drawn, the candidates, or both."""
    return 0 if found is None else 2 * bool(found.value) + (found.drawn is not None)


def new_owner() -> str:
    """A name for one request: the machine and the process, so that others can tell whether it still lives."""
    return json.dumps([socket.gethostname(), os.getpid(), os.urandom(8).hex()])


def _lives(owner: str) -> bool:
    """Whether the process that claimed something may still be at it. Of other machines that is not known."""
    machine, process, _ = json.loads(owner)
    if machine != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _size(file: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something."""
    count, free, size = (
        int(file.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (count - free) * size
