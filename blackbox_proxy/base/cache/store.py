"""The file behind the cache: one sqlite database in WAL mode, shared by many threads and processes.

It knows keys and bytes, not tokens. `rows` has what a base showed at one place of one text, `draws` which token it then
wrote there (greedily, or with one seed), `claims` who is asking for a place right now, and `roots` to which base and
prompt a row belongs. A cache must never end a run: what goes wrong with the file is a warning, a damaged file is set
aside and a new one begun. Only a file that a newer version wrote, or that is somebody else's, is refused.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from platformdirs import user_cache_path

from blackbox_proxy.errors import InputError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

VERSION = 1
MAX_BYTES = 1 << 30
LEASE = 30.0  # seconds that a claim holds unless it is renewed

_APPLICATION = 0x62627078  # "bbpx", in the header of the file
_FULL_TO = 0.9  # what eviction leaves of the limit
_TOUCH_AFTER = 60.0  # seconds after which a use is worth writing down
_TOUCH_TOGETHER = 256
_BUSY = 10.0  # seconds to wait for another process's transaction
_OFF = 30.0  # seconds without the file once it could not be used
_SCHEMA = """
CREATE TABLE roots (root BLOB PRIMARY KEY, base TEXT NOT NULL, prompt TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (key BLOB PRIMARY KEY, root BLOB NOT NULL, place INTEGER NOT NULL, before BLOB, token TEXT,
                   value BLOB NOT NULL, used REAL NOT NULL);
CREATE INDEX rows_by_use ON rows (used);
CREATE TABLE draws (key BLOB NOT NULL, draw BLOB NOT NULL, drawn TEXT NOT NULL, PRIMARY KEY (key, draw)) WITHOUT ROWID;
CREATE TABLE claims (claim BLOB PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID;
"""
_leaked: list[object] = []  # connections of the parent process: a forked child must neither use nor close them


class _Unusable(InputError):
    """The file cannot be opened: no right to, no room, no such device."""


class Found(NamedTuple):
    """`value` as it was put, b"" where only a draw is known; `drawn` what was drawn there, None where that is not
    known.
    """

    value: bytes
    drawn: str | None


class Entry(NamedTuple):
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


class Store:
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
    ) -> None:
        if max_bytes < 1:
            raise InputError(f"max_bytes must be at least 1, not {max_bytes}", hint="Leave it out for 1 GiB.")
        self.path = default_path() if path is None else Path(path)
        self.max_bytes = max_bytes
        self._clock = clock
        self._begin()
        with self._lock:
            try:
                self._open()
            except _Unusable as error:
                if path is not None:
                    raise
                self._warn(error)  # nobody asked for this very file

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._inode = 0
        self._touched: set[bytes] = set()
        self._off_until = 0.0

    # -- rows -----------------------------------------------------------------------------------------------------

    def find(self, key: bytes, draw: bytes | None = None) -> Found | None:
        """What is known of a place, and what was drawn there in this way; None where nothing is."""

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

    def put(self, root: Root, entries: Sequence[Entry], owner: str | None = None, claim: bytes | None = None) -> None:
        """Keep rows, and in the same moment move the owner's claim to `claim` (None gives it back).

        What is there already is replaced: whoever asked for it again goes on with the new answer.
        """
        now = self._clock()

        def work(file: sqlite3.Connection) -> None:
            with _transaction(file):
                file.execute("INSERT OR IGNORE INTO roots VALUES (?, ?, ?)", root)
                file.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                    "SET value = excluded.value, used = excluded.used WHERE length(excluded.value) > 0",
                    [(e.key, root.root, e.place, e.before, e.token, e.value, now) for e in entries],
                )
                file.executemany(
                    "INSERT OR REPLACE INTO draws VALUES (?, ?, ?)",
                    [(e.key, e.draw, e.drawn) for e in entries if e.draw is not None],
                )
                if owner is not None:
                    file.execute("DELETE FROM claims WHERE owner = ?", (owner,))
                    if claim is not None:
                        file.execute("INSERT OR IGNORE INTO claims VALUES (?, ?, ?)", (claim, owner, now + LEASE))
            if _size(file) > self.max_bytes:
                self._evict(file)

        self._do(work, None)

    def drop(self, key: bytes) -> None:
        """Forget a row that turned out to be unreadable."""
        self._do(lambda file: file.execute("DELETE FROM rows WHERE key = ?", (key,)) and None, None)

    def flush(self) -> None:
        """Write down which rows were used."""
        touched, self._touched = [(self._clock(), key) for key in self._touched], set()

        def work(file: sqlite3.Connection) -> None:
            with _transaction(file):
                file.executemany("UPDATE rows SET used = ? WHERE key = ?", touched)

        if touched:
            self._do(work, None)

    def _evict(self, file: sqlite3.Connection) -> None:
        """Forget the rows that were not used for longest, a tenth of them at a time, until there is room again."""
        self.flush()
        goal = int(self.max_bytes * _FULL_TO)
        while _size(file) > goal:
            with _transaction(file):
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
                sum(part.stat().st_size for part in _parts(self.path) if part.exists()),
                self.max_bytes,
                by_base,
            )

        return self._do(work, StoreStats(str(self.path), 0, 0, 0, 0, self.max_bytes, {}))

    def clear(self) -> int:
        """Forget everything; the number of rows there were."""

        def work(file: sqlite3.Connection) -> int:
            with _transaction(file):
                rows = int(file.execute("SELECT count(*) FROM rows").fetchone()[0])
                for table in ("rows", "draws", "roots", "claims"):
                    file.execute(f"DELETE FROM {table}")
            file.execute("VACUUM")
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return rows

        return self._do(work, 0)

    def rows(self) -> Iterator[tuple[Root, Entry, dict[bytes, str]]]:
        """Every row with its prompt, and what was drawn there (draw -> drawn); text by text, in order."""
        query = (
            "SELECT root, base, prompt, key, place, before, token, value FROM rows JOIN roots USING (root) "
            "ORDER BY root, place"
        )
        with self._lock:
            file = self._open()
            for root, base, prompt, key, place, before, token, value in file.execute(query):
                draws = dict(file.execute("SELECT draw, drawn FROM draws WHERE key = ?", (key,)))
                yield Root(root, base, prompt), Entry(key, place, before, token, value), draws

    # -- the store's own thread -----------------------------------------------------------------------------------

    def submit(self, work: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Run this on the store's thread, after all that was submitted before."""
        self._after_fork()
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
            return self._thread.submit(work, *arguments)

    def close(self) -> None:
        """Finish what was submitted and close the file. The store can be used again."""
        self._after_fork()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=True)
        with self._lock:
            if self._connection is not None:
                self.flush()
                self._connection.close()
                self._connection = None

    # -- the file -------------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """What `work` returns; `otherwise`, with a warning, where the file cannot be used."""
        self._after_fork()
        with self._lock:
            if time.monotonic() < self._off_until:
                return otherwise
            for again in (True, False):
                try:
                    return work(self._open())
                except sqlite3.DatabaseError as error:
                    if again and _is_damage(error):
                        self._set_aside(error)
                        continue
                    self._warn(error)
                except (OSError, InputError) as error:
                    self._warn(error)
                break
            return otherwise

    def _warn(self, error: Exception) -> None:
        """The run goes on without the file, and does not try it again with every token."""
        self._off_until = time.monotonic() + _OFF
        _log.warning("the cache %s cannot be used, going on without it: %s", self.path, error)

    def _after_fork(self) -> None:
        if self._process != os.getpid():
            _leaked.extend((self._connection, self._thread, self._lock))
            self._begin()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _alone(self.path):
                try:
                    return self._connected()
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    self._rename(error)
                    return self._connected()
        except (OSError, sqlite3.Error) as error:
            raise _Unusable(
                f"the cache {self.path} cannot be opened: {error}",
                hint="Give another file, or go on without a cache (--no-cache).",
            ) from error

    def _connected(self) -> sqlite3.Connection:
        """The open file, made if there is none; nobody else opens or renames it meanwhile."""
        made = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)  # the WAL files get the same rights
        self._inode = os.fstat(made).st_ino
        os.close(made)
        with suppress(OSError):
            os.chmod(self.path, 0o600)
        file = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(file)
        except BaseException:
            file.close()
            raise
        self._connection = file
        return file

    def _prepare(self, file: sqlite3.Connection) -> None:
        known = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        application = int(file.execute("PRAGMA application_id").fetchone()[0])
        version = int(file.execute("PRAGMA user_version").fetchone()[0])
        if known and application != _APPLICATION:
            raise InputError(
                f"{self.path} is a database of something else", hint="Give another file for the cache, or none."
            )
        if version > VERSION:
            raise InputError(
                f"the cache {self.path} was written by a newer version (schema {version}, this one knows {VERSION})",
                hint="Update blackbox-proxy, give another file, or go on without a cache (--no-cache).",
            )
        if not known:
            file.execute("PRAGMA auto_vacuum = INCREMENTAL")
            file.execute("PRAGMA journal_mode = WAL").fetchone()
            with _transaction(file):
                for statement in _SCHEMA.split(";\n"):
                    file.execute(statement)
                file.execute(f"PRAGMA application_id = {_APPLICATION}")
                file.execute(f"PRAGMA user_version = {VERSION}")
        file.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing, a power cut the last moments
        file.execute(f"PRAGMA journal_size_limit = {1 << 22}").fetchone()

    def _set_aside(self, error: Exception) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        with _alone(self.path), suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:  # else somebody else has done it
                self._rename(error)

    def _rename(self, error: Exception) -> None:
        stamp = f".damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        for part in _parts(self.path):
            with suppress(FileNotFoundError):
                os.replace(part, f"{part}{stamp}")
        _log.warning("the cache %s is damaged (%s): set aside as %s%s", self.path, error, self.path.name, stamp)


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


def _parts(path: Path) -> list[Path]:
    """The files that make up a database in WAL mode."""
    return [path, Path(f"{path}-wal"), Path(f"{path}-shm")]


def _size(file: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something."""
    count, free, size = (
        int(file.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (count - free) * size


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (
        code == sqlite3.SQLITE_IOERR_SHORT_READ or "no such table" in str(error) or "no such column" in str(error)
    )


@contextmanager
def _transaction(file: sqlite3.Connection) -> Iterator[None]:
    if file.in_transaction:  # inside `together`
        yield
        return
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            file.execute("ROLLBACK")
        raise
    file.execute("COMMIT")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process opens, makes or sets aside this file meanwhile (where the system has such locks)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
