"""What was found out about a tokenizer once is not found out again, and no file in the cache is believed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import train_tokenizer

from blackbox_proxy.text import kept, spelling
from blackbox_proxy.text.spelling import files_digest, from_pretrained
from blackbox_proxy.text.table import Table
from blackbox_proxy.text.vocabulary import Vocabulary


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_tokenizer("bytes", 400).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same(one: Vocabulary, other: Vocabulary) -> bool:
    texts = [b" New York", b"2023", "日本 👍🏽".encode()]
    return (
        one.spelling == other.spelling
        and (one.special, one.end_ids, one.fingerprint) == (other.special, other.end_ids, other.fingerprint)
        and one.first(texts) == other.first(texts)
        and [one.boundary(text) for text in texts] == [other.boundary(text) for text in texts]
        and np.array_equal(one.beginning_with(b" t"), other.beginning_with(b" t"))
        and one.prompt_ids("Hello </s> you") == other.prompt_ids("Hello </s> you")
    )


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call that spells a whole vocabulary."""
    calls: list[str] = []
    make = spelling._table

    def counting(*given: Any) -> Any:
        calls.append("made")
        return make(*given)

    monkeypatch.setattr(spelling, "_table", counting)
    return calls


def test_a_second_process_finds_the_table_of_the_first(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = from_tokenizer_alone(folder)
    calls = counted(monkeypatch)
    first = from_pretrained(str(folder))
    assert calls == ["made"]
    assert [file.suffix for file in home.iterdir()] == [".npz"]
    spelling._IN_USE.clear()  # as another process would find it
    second = from_pretrained(str(folder))
    assert second is not first
    assert calls == ["made"]
    assert same(first, plain)
    assert same(second, plain)


def from_tokenizer_alone(folder: Path) -> Vocabulary:
    return spelling.from_tokenizer(spelling.load_tokenizer(str(folder)))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-500])


def of_another_version(file: Path) -> None:
    np.savez(file, lengths=np.array([1, 2]))


def mixed_up(file: Path) -> None:
    """A whole file, but of another vocabulary than its name says it is."""
    arrays = dict(Table([b"a", b"b", None]).arrays)
    arrays["order"] = np.array([0, 2])
    np.savez(file, allow_pickle=False, **arrays)


def pickled(file: Path) -> None:
    np.savez(file, bytes=np.array([{"a": 1}], dtype=object))


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


BROKEN: dict[str, Callable[[Path], object]] = {
    "cut short": cut_short,
    "empty": lambda file: file.write_bytes(b""),
    "noise": lambda file: file.write_bytes(bytes(range(256)) * 40),
    "of another version": of_another_version,
    "mixed up": mixed_up,
    "pickled": pickled,
    "a folder": a_folder,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_good_is_ignored_and_written_anew(
    kind: str, home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = from_tokenizer_alone(folder)
    first = from_pretrained(str(folder))
    (file,) = home.iterdir()
    BROKEN[kind](file)
    spelling._IN_USE.clear()
    calls = counted(monkeypatch)
    second = from_pretrained(str(folder))
    assert first is not second
    assert same(second, plain)
    assert calls == ["made"]
    spelling._IN_USE.clear()
    assert same(from_pretrained(str(folder)), plain)
    assert calls == (["made", "made"] if kind == "a folder" else ["made"])


@pytest.mark.parametrize("said", ["0", "a file"])
def test_nothing_is_kept_where_there_is_no_place_for_it(
    said: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(kept.VARIABLE, said if said == "0" else str(tmp_path / "file"))
    before = sorted(tmp_path.rglob("*"))
    assert same(from_pretrained(str(folder)), from_tokenizer_alone(folder))
    assert sorted(tmp_path.rglob("*")) == before


def test_only_the_newest_files_stay(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_FILES", 3)
    for number in range(6):
        make = partial(Table, [b"%d" % number])
        kept.kept(kept.digest([str(number)]), Table.of, make, lambda made: made.arrays)
        for place, file in enumerate(sorted(home.iterdir(), key=lambda one: one.stat().st_mtime)):
            os.utime(file, (place, place))
    left = {bytes(np.load(file)["bytes"]) for file in home.iterdir()}
    assert left == {b"3", b"4", b"5"}


def test_equal_folders_share_one_vocabulary_and_changed_ones_do_not(folder: Path, tmp_path: Path) -> None:
    twin, other = tmp_path / "twin", tmp_path / "other"
    shutil.copytree(folder, twin)
    shutil.copytree(folder, other)
    config = other / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<s>", "</s>"))
    assert files_digest(folder) == files_digest(twin) != files_digest(other)
    one = from_pretrained(str(folder))
    assert from_pretrained(str(twin)) is one
    assert from_pretrained(str(other)) is not one
    assert from_pretrained(str(twin), end_ids=[5]) is not one


def test_what_is_written_on_the_way_to_another_vocabulary_is_kept(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = spelling.from_tokenizer(train_tokenizer("bytes", 500))
    local = from_pretrained(str(folder))
    expected = local._find_on_the_way(base)
    assert expected
    assert local.on_the_way_to(base) == expected
    monkeypatch.setattr(Vocabulary, "_find_on_the_way", lambda *_: pytest.fail("it was kept"))
    assert local.on_the_way_to(base) == expected
