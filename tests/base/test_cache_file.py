"""The cache's file: many share it, and nothing that happens to it ends a run."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import told
from told import LENGTH, TEXTS, Told, cached, same, text_of

from blackbox_proxy.base.cache.base import CachedBase
from blackbox_proxy.base.cache.file import VERSION
from blackbox_proxy.base.cache.store import Store
from blackbox_proxy.errors import InputError
from blackbox_proxy.protocols import Ask
from blackbox_proxy.types import Prefix

WORKERS = 8


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", told.__file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_eight_processes_of_eight_threads_share_a_file(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    started = [start(file, log, i) for i in range(WORKERS)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in started]
    assert {code for _, _, code in ended} == {0}, ended
    assert {errors for _, errors, _ in ended} == {""}
    assert len({out for out, _, _ in ended}) == 1
    shown = Counter(log.read_bytes().split())
    assert len(shown) == TEXTS * LENGTH
    assert set(shown.values()) == {1}  # not a single position was asked for twice
    store = Store(file)
    assert store.stats().rows == TEXTS * LENGTH
    store.close()


def test_a_killed_process_leaves_a_good_file(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(file, log, 0)
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") > 60):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    base = Told()
    with cached(base, file) as one:
        rows = one.store.submit(one.store.stats).result().rows
        assert 0 < rows < TEXTS * LENGTH
        before = time.monotonic()
        for i in range(TEXTS):
            found, _ = asyncio.run(text_of(one, f"text {i}", 99))
            assert all(map(same, found, asyncio.run(text_of(Told(), f"text {i}", 99))[0]))
        assert time.monotonic() - before < 10  # the claims of the dead hold nobody up
        assert one.store.submit(one.store.stats).result().rows == TEXTS * (LENGTH + 1)
    file_ = sqlite3.connect(file)
    assert file_.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    file_.close()


# -- the file -----------------------------------------------------------------------------------------------------


def test_only_its_owner_may_read_the_file(file: Path) -> None:
    with cached(Told(), file) as one:
        asyncio.run(one.draft(Ask(Prefix("p"), 3)))
        one.store.submit(lambda: None).result()
        for part in file.parent.iterdir():
            assert stat.S_IMODE(part.stat().st_mode) == 0o600, part
        assert file.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["noise", "cut", "header", "middle", "tables"])
def test_a_damaged_file_is_set_aside(damage: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cached(Told(), file) as one:
        for i in range(20):
            asyncio.run(text_of(one, f"p{i}", 99))
    raw = file.read_bytes()
    if damage == "tables":
        broken = sqlite3.connect(file)
        broken.execute("DROP TABLE rows")
        broken.close()
    else:
        file.write_bytes(
            {
                "noise": random.Random(0).randbytes(len(raw)),
                "cut": raw[: len(raw) // 3],
                "header": b"\0" * 50 + raw[50:],
                "middle": raw[:4096] + random.Random(1).randbytes(len(raw) - 4096),
            }[damage]
        )
    base = Told()
    with caplog.at_level(logging.WARNING), cached(base, file) as one:
        for i in range(20):
            found, _ = asyncio.run(text_of(one, f"p{i}", 99))
            assert all(map(same, found, asyncio.run(text_of(Told(), f"p{i}", 99))[0]))
        calls = base.calls
        assert calls > 0
        asyncio.run(text_of(one, "p0", 99))
        assert base.calls == calls
    assert "set aside" in caplog.text
    assert [part for part in file.parent.iterdir() if ".damaged-" in part.name]


def test_damage_while_it_is_open(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cached(Told(), file) as one:
        for i in range(20):
            asyncio.run(text_of(one, f"p{i}", 99))
        one.store.submit(one.store._do, lambda f: f.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall(), []).result()
        with file.open("r+b") as raw:
            size = raw.seek(0, 2)
            raw.seek(0)
            raw.write(random.Random(0).randbytes(size))
        one.store.submit(one.store._do, lambda f: f.execute("PRAGMA shrink_memory").fetchall(), []).result()
        with caplog.at_level(logging.WARNING):
            for i in range(20, 25):
                found, _ = asyncio.run(text_of(one, f"p{i}", 99))
                assert len(found) == LENGTH
        assert "set aside" in caplog.text


def test_an_unreadable_row_is_asked_for_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = Told()
    with cached(base, file) as one:
        asyncio.run(one.draft(Ask(Prefix("p"), 3)))
        one.store.submit(one.store._do, lambda f: f.execute("UPDATE rows SET value = x'6a00'") and None, None).result()
        assert asyncio.run(one.draft(Ask(Prefix("p"), 3))).usage.api_calls == 1
        assert "cannot be read" in caplog.text


def test_a_file_that_is_not_ours_is_refused_and_left_alone(file: Path) -> None:
    Store(file).close()
    newer = sqlite3.connect(file)
    newer.execute(f"PRAGMA user_version = {VERSION + 1}")
    newer.close()
    with pytest.raises(InputError, match="newer version") as refused:
        Store(file)
    assert "--no-cache" in refused.value.hint
    other = file.with_name("other.db")
    notes = sqlite3.connect(other)
    notes.execute("CREATE TABLE notes (text)")
    notes.close()
    raw = other.read_bytes()
    with pytest.raises(InputError, match="something else"):
        Store(other)
    assert other.read_bytes() == raw
    with pytest.raises(InputError, match="cannot be opened"):
        Store(file.parent)


NOT_OURS = {
    "notes.txt": b"Milk, bread, and what nobody has written down twice.\n",
    "short": b"x",
    "image.png": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "noise": random.Random(2).randbytes(5000),
    "cut.db": b"SQLite format 3\0" + bytes(30),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_what_never_was_a_cache_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(NOT_OURS[name])
    path.chmod(0o644)
    for _ in range(2):
        with pytest.raises(InputError, match=r"never was one|cannot be opened"):
            Store(path)
    assert path.read_bytes() == NOT_OURS[name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "made",
    ["PRAGMA user_version = 7", "PRAGMA application_id = 1", "CREATE TABLE rows (x)", "CREATE VIEW v AS SELECT 1"],
)
def test_a_database_of_another_program_is_no_newer_version(tmp_path: Path, made: str) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 3")
    other.execute(made)
    other.commit()
    other.close()
    raw = path.read_bytes()
    with pytest.raises(InputError, match="something else"):
        Store(path)
    assert path.read_bytes() == raw
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_to_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    with cached(Told(), file) as one:
        known, _ = asyncio.run(text_of(one, "p", 99))
    before = file.read_bytes()
    opened = os.open

    def refused(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if str(path).startswith(str(file.parent)) and flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    base = Told()
    with caplog.at_level(logging.WARNING), cached(base, file) as one:
        found, _ = asyncio.run(text_of(one, "p", 99))
        assert base.calls == 0
        assert all(map(same, found, known))
        assert len(asyncio.run(text_of(one, "q", 5))[0]) == LENGTH  # what is not there is asked for, and not kept
        assert base.calls > 0
        with pytest.raises(InputError, match="cannot be written"):
            one.store.clear()
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "what it has is used, nothing is added"
    ]
    assert file.read_bytes() == before


def test_no_room_and_a_busy_file_end_no_run(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("blackbox_proxy.base.cache.file._BUSY", 0.05)
    base = Told()
    with cached(base, file) as one:
        asyncio.run(one.draft(Ask(Prefix("p"), 3)))
        one.store.submit(lambda: None).result()
        blocker = sqlite3.connect(file, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        assert len(asyncio.run(text_of(one, "q", 5))[0]) == LENGTH
        blocker.execute("ROLLBACK")
        blocker.close()
        assert caplog.text.count("going on without") == 1


def test_what_was_used_last_stays(file: Path) -> None:
    now = [1000.0]
    store = Store(file, max_bytes=400_000, clock=lambda: now[0])
    base = Told()
    one = CachedBase(base, store)
    asyncio.run(text_of(one, "kept", 99))
    for i in range(100):
        now[0] += 100
        asyncio.run(text_of(one, f"{i}" + "long " * 500, 99))
        asyncio.run(text_of(one, "kept", 99))
    assert base.calls == 101
    stats = store.submit(store.stats).result()
    assert stats.rows < 60 * LENGTH
    assert file.stat().st_size < 500_000
    assert stats.prompts * LENGTH <= stats.rows + 3 * LENGTH
    store.close()
