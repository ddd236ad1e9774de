"""Parts, their manifest and the journal: what is read back is what was written, whatever was killed between."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from blackbox_proxy.cluster.folder import Folder
from blackbox_proxy.cluster.formats import FORMATS, Format, decoded, encoded
from blackbox_proxy.cluster.journal import Journal
from blackbox_proxy.cluster.manifest import Manifest
from blackbox_proxy.cluster.passes import end_of
from blackbox_proxy.cluster.run import _fold
from blackbox_proxy.errors import InputError, ServerFailed
from blackbox_proxy.jobs.inputs import Defaults, InputRow, checked_row
from blackbox_proxy.jobs.outputs import failure_line, result_line
from blackbox_proxy.types import Generation, Usage

pytest.importorskip("pyarrow", reason="parts are written through pyarrow: pip install 'blackbox-proxy[bulk]'")


def row(index: int, **fields: Any) -> InputRow:
    found = checked_row(index, f"line {index + 1}", {"prompt": f"p{index}", **fields}, Defaults())
    assert isinstance(found, InputRow)
    return found


def text_of(each: InputRow, text: str = "a text", **more: Any) -> bytes:
    return result_line(each, Generation(text, (), "stop", Usage(1, 2, 3), "backoff", **more))


def failure_of(each: InputRow) -> bytes:
    return failure_line(each, ServerFailed("it broke, \n twice", hint="Wait."))


LINES = [
    text_of(row(0)),
    text_of(row(1, id=7, extra={"a": [1, None, "ü"]}, other='x,y\n"z"')),
    text_of(row(2, id="", temperature=1.0), "", reason="length"),
    text_of(row(3, temperature=1.0, seed=2**70), 'Zürich, "quoted"\r\nlines\n'),
    text_of(row(4, half="\ud800")),
    failure_of(row(5, id="f")),
]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_back_the_lines(kind: Format) -> None:
    data = encoded(LINES, kind)
    assert decoded(data, kind) == LINES
    assert decoded(encoded(LINES[:1], kind), kind) == LINES[:1]
    if kind != "jsonl":
        with pytest.raises(InputError, match=f"no part in {kind}"):
            decoded(b"\xff\0 what is this", kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_failures_that_are_asked_again_leave_their_parts(kind: Format, tmp_path: Path) -> None:
    manifest = Manifest(Folder(str(tmp_path / "out")), kind)
    first = manifest.add(LINES)
    manifest.add([failure_of(row(9))])
    assert first == f"part-000000000000-000000000005-{first[31:39]}.{kind}"
    assert {i: held.failed for i, held in manifest.held().items()} == {i: i in (5, 9) for i in (0, 1, 2, 3, 4, 5, 9)}
    left = manifest.held(retry_failed=True)
    assert sorted(left) == [0, 1, 2, 3, 4]
    manifest.mend(retry_failed=True)
    assert manifest.held() == left
    assert manifest.parts() == [first]
    assert decoded(manifest.folder.read(first), kind) == LINES[:5]
    again = manifest.add([text_of(row(5)), text_of(row(9))])
    assert manifest.parts() == [first, again]


def test_a_kill_between_part_and_entry_loses_and_doubles_nothing(tmp_path: Path) -> None:
    manifest = Manifest(Folder(str(tmp_path)), "jsonl")
    part = manifest.add(LINES[:3])
    entry = tmp_path / "_manifest" / part.replace("jsonl", "json")
    whole = entry.read_bytes()
    entry.unlink()  # killed before it was entered
    assert manifest.held() == {}
    manifest.mend()
    assert manifest.parts() == []
    manifest.add(LINES[:3])
    changed = json.loads(whole)
    changed["rows"], changed["bytes"] = changed["rows"][:2], None  # killed while failures were taken out
    entry.write_text(json.dumps(changed))
    manifest.mend()
    assert decoded((tmp_path / part).read_bytes(), "jsonl") == LINES[:2]
    assert sorted(manifest.held()) == [0, 1]
    twice = manifest.add(LINES[1:3])  # a worker of a run that was killed had not ended yet
    manifest.mend()
    assert decoded((tmp_path / twice).read_bytes(), "jsonl") == LINES[2:3]
    (tmp_path / part).write_bytes(LINES[0])
    with pytest.raises(InputError, match="has lost 1 of its rows") as caught:
        manifest.mend()
    assert "_manifest" in caught.value.hint


def test_what_is_there_is_neither_mixed_nor_written_over(tmp_path: Path) -> None:
    manifest = Manifest(Folder(str(tmp_path)), "jsonl")
    manifest.check(resume=False, overwrite=False)
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match=r"other files \(thesis"):
        manifest.check(resume=False, overwrite=True)
    (tmp_path / "thesis.txt").unlink()
    manifest.add(LINES)
    with pytest.raises(InputError, match="holds results"):
        manifest.check(resume=False, overwrite=False)
    manifest.check(resume=True, overwrite=False)
    with pytest.raises(InputError, match="another format") as caught:
        Manifest(manifest.folder, "csv").held()
    assert "jsonl" in caught.value.hint
    other = row(1, id="another")
    manifest.add([text_of(other)])
    with pytest.raises(InputError, match="two results of row 1"):
        manifest.held()
    manifest.clear()
    assert (manifest.parts(), manifest.held()) == ([], {})
    (tmp_path / "_manifest" / "part-x.json").write_text("{")
    with pytest.raises(InputError, match="no entry of a manifest"):
        manifest.held()


def test_what_a_killed_run_had_answered_becomes_parts(tmp_path: Path) -> None:
    manifest = Manifest(Folder(str(tmp_path)), "jsonl")
    state = tmp_path / "_state"
    state.mkdir()
    manifest.add([text_of(row(2))])
    journal = Journal(state / "journal-a")
    for index in (4, 2, 0, 1):
        assert journal.put(index, row(index).digest, False, text_of(row(index)))
    assert not journal.put(4, row(4).digest, False, text_of(row(4), "another"))
    journal.close()
    with (state / "journal-a").open("ab") as file:
        file.write(b'{"index": 7, "id')  # torn
    again = Journal(state / "journal-a")
    assert again.have([4, 5]) == {4: text_of(row(4))}
    again.close()
    _fold(state, manifest, 2)
    assert [name[5:30] for name in manifest.parts()] == [
        "000000000000-000000000001",
        "000000000002-000000000002",
        "000000000004-000000000004",
    ]
    assert list(state.iterdir()) == []


def test_a_folder_by_its_url_is_the_same_folder(tmp_path: Path) -> None:
    by_path, by_url = Folder(str(tmp_path / "x")), Folder(f"file://{tmp_path}/x")
    assert by_path.names() == []
    by_url.put("a/b", b"1")
    by_url.put("a/b", b"22")
    assert (by_path.read("a/b"), by_path.size("a/b"), by_path.size("c")) == (b"22", 2, None)
    assert by_path.names("a") == ["b"]
    assert by_path.here == by_url.here
    by_path.delete("a/b")
    by_path.delete("a/b")
    with pytest.raises(InputError, match="cannot be read"):
        by_path.read("a/b")
    with pytest.raises(InputError, match="cannot be opened"):
        Folder("nowhere://x").names()


def test_the_first_rows_that_are_not_bad() -> None:
    rng = random.Random(1)
    for _ in range(200):
        rows = [rng.random() < 0.7 for _ in range(20)]
        good = [i for i, fine in enumerate(rows) if fine]
        limit = rng.randint(1, 5)
        if len(good) > limit:
            end = end_of(limit, [i for i, fine in enumerate(rows) if not fine])
            assert [i for i in good if i < end] == good[:limit]
