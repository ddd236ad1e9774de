"""The file of the cache as such: opened and made by one process at a time, used on a thread of its own, set aside when
it is damaged, only read where it cannot be written to, left alone after a fork. Knows no rows (store.py).

What never was a cache is refused and left as it is: set aside is only what has this program's mark, in its header or in
the lock beside it.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from blackbox_proxy.errors import InputError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

VERSION = 1
_APPLICATION = 0x62627078  # "bbpx", in the header of the file
_APPLICATION_AT = slice(68, 72)
_SQLITE = b"SQLite format 3\0"
_MARK = b"blackbox-proxy cache\n"  # in the lock file: what lies beside it is a cache, however damaged
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
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


class SharedFile:
    """One sqlite database in WAL mode, used by many threads and processes. Raises InputError where it cannot be used at
    all.
    """

    def __init__(self, path: Path, *, needed: bool) -> None:
        """needed: whether to raise where it cannot be opened, rather than warn."""
        self.path = path
        self._begin()
        with self._lock:
            try:
                self._open()
            except _Unusable as error:
                if needed:
                    raise
                self._warn(error)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._inode = 0
        self._off_until = 0.0
        self.read_only = False

    def flush(self) -> None:
        """Write down what waits for that; before the file is closed."""

    # -- its own thread -----------------------------------------------------------------------------------

    def submit(self, work: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Run this on the file's own thread, after all that was submitted before."""
        self._after_fork()
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
            return self._thread.submit(work, *arguments)

    def close(self) -> None:
        """Finish what was submitted and close the file. It can be used again."""
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
                    if self.read_only and _is_refused(error):
                        break  # that was said when it was opened
                    if again and _is_damage(error) and not self.read_only:
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
            self._refuse_foreign()
            with _alone(self.path):
                try:
                    return self._connected()
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error) or not _was_cache(self.path):
                        raise
                    self._rename(error)
                    return self._connected()
        except (OSError, sqlite3.Error) as error:
            found = self._reading(error)
            if found is not None:
                return found
            raise _Unusable(
                f"the cache {self.path} cannot be opened: {error}",
                hint="Give another file, or go on without a cache (--no-cache).",
            ) from error

    def _refuse_foreign(self) -> None:
        """Raise InputError for a file that is no database and never was a cache; nothing of it is touched."""
        head = _head(self.path)
        if head and not head.startswith(_SQLITE) and not _was_cache(self.path):
            raise InputError(
                f"{self.path} is not a cache, and never was one", hint="Give another file for the cache, or none."
            )

    def _reading(self, error: Exception) -> sqlite3.Connection | None:
        """The file opened for reading only, where `error` is that it cannot be written to."""
        refused = isinstance(error, sqlite3.DatabaseError) and _is_refused(error)
        if not refused and not (isinstance(error, OSError) and error.errno in _READ_ONLY):
            return None
        if not _head(self.path):
            return None
        for how in ("mode=ro", "mode=ro&immutable=1"):  # a log that cannot be made beside it is done without
            file = None
            try:
                uri = f"file:{quote(str(self.path.absolute()))}?{how}"
                file = sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False)
                if not self._checked(file):
                    raise sqlite3.OperationalError("it is empty")
            except sqlite3.Error:
                if file is not None:
                    file.close()
                continue
            except BaseException:
                if file is not None:
                    file.close()
                raise
            _log.warning("the cache %s cannot be written to: what it has is used, nothing is added", self.path)
            self._connection, self.read_only = file, True
            return file
        return None

    def _connected(self) -> sqlite3.Connection:
        """The open file, made if there is none; nobody else opens or renames it meanwhile."""
        made = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)  # the WAL files get the same rights
        self._inode = os.fstat(made).st_ino
        os.close(made)
        file = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(file)
        except BaseException:
            file.close()
            raise
        with suppress(OSError):
            os.chmod(self.path, 0o600)
        self._connection, self.read_only = file, False
        return file

    def _checked(self, file: sqlite3.Connection) -> bool:
        """Whether the file has its tables. Raises InputError where it is another program's, or a newer version's."""
        known = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        application = int(file.execute("PRAGMA application_id").fetchone()[0])
        version = int(file.execute("PRAGMA user_version").fetchone()[0])
        if application != _APPLICATION and (known or application or version):
            raise InputError(
                f"{self.path} is a database of something else", hint="Give another file for the cache, or none."
            )
        if version > VERSION:
            raise InputError(
                f"the cache {self.path} was written by a newer version (schema {version}, this one knows {VERSION})",
                hint="Update blackbox-proxy, give another file, or go on without a cache (--no-cache).",
            )
        return bool(known)

    def _prepare(self, file: sqlite3.Connection) -> None:
        if not self._checked(file):
            file.execute("PRAGMA auto_vacuum = INCREMENTAL")
            file.execute("PRAGMA journal_mode = WAL").fetchone()
            with transaction(file):
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
        for part in file_parts(self.path):
            with suppress(FileNotFoundError):
                os.replace(part, f"{part}{stamp}")
        _log.warning("the cache %s is damaged (%s): set aside as %s%s", self.path, error, self.path.name, stamp)


def file_parts(path: Path) -> list[Path]:
    """The files that make up a database in WAL mode."""
    return [path, Path(f"{path}-wal"), Path(f"{path}-shm")]


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (
        code == sqlite3.SQLITE_IOERR_SHORT_READ or "no such table" in str(error) or "no such column" in str(error)
    )


def _is_refused(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


def _head(path: Path) -> bytes:
    """The first bytes of a file; b"" where there is none, or nothing in it."""
    try:
        with path.open("rb") as file:
            return file.read(100)
    except OSError:
        return b""


def _was_cache(path: Path) -> bool:
    """Whether a file, however damaged, has the mark of a cache."""
    return _head(path)[_APPLICATION_AT] == _APPLICATION.to_bytes(4, "big") or (
        _head(Path(f"{path}.lock")).startswith(_MARK)
    )


@contextmanager
def transaction(file: sqlite3.Connection) -> Iterator[None]:
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
        unmarked = os.fstat(lock).st_size == 0
        try:
            yield
        except BaseException:
            if unmarked:  # nothing is left beside a file that is not ours
                os.unlink(f"{path}.lock")
            raise
        if unmarked:
            os.write(lock, _MARK)
    finally:
        os.close(lock)
