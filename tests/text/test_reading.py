"""Every reader of text cuts lines where people ended them, and nowhere else; a byte order mark is no text."""

from __future__ import annotations

import ast
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blackbox_proxy
from blackbox_proxy.bench import run as bench
from blackbox_proxy.cli.decoding import read_prompt
from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.tasks import read_prompts, read_tasks
from blackbox_proxy.host.prompts import read_template
from blackbox_proxy.jobs.inputs import Defaults, InputRow, read_rows
from blackbox_proxy.text.files import declared
from blackbox_proxy.text.reading import own_text, text_lines
from blackbox_proxy.trace import TraceFile, read_trace

ODD = {
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "form feed": "\f",
    "vertical tab": "\v",
    "next line": "\u0085",
    "file separator": "\x1c",
    "group separator": "\x1d",
    "record separator": "\x1e",
    "a mark inside": "\ufeff",
}
MARK = b"\xef\xbb\xbf"


def plain(texts: list[str], end: str) -> bytes:
    return "".join(text + end for text in texts).encode()


def whole(texts: list[str], end: str) -> bytes:
    return end.join(texts).encode()


def prompts(texts: list[str], end: str) -> bytes:
    return "".join(json.dumps({"prompt": text}, ensure_ascii=False) + end for text in texts).encode()


def tasks(texts: list[str], end: str) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + end for text in texts).encode()


def table(texts: list[str], end: str) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end).writerows([["prompt", "note"], *([text, "x"] for text in texts)])
    return out.getvalue().encode()


def bare(texts: list[str], end: str) -> bytes:
    return plain(["prompt", *texts], end)


def rows(path: Path) -> list[Any]:
    return [row.prompt if isinstance(row, InputRow) else row.reason for row in read_rows(path, Defaults())]


def sent_in(path: Path) -> str:
    with pytest.MonkeyPatch.context() as patch, path.open() as file:
        patch.setattr("sys.stdin", file)
        return read_prompt("-", None)


def said(read: Callable[[Path], Any], path: Path) -> list[str]:
    """What is read, or what is said about it."""
    try:
        return list(read(path))
    except InputError as error:
        return [str(error)]


LINES: dict[str, tuple[str, Callable[[list[str], str], bytes], Callable[[Path], list[Any]]]] = {
    "lines of text": ("a.txt", plain, text_lines),
    "prompts of fit, text": ("a.txt", plain, read_prompts),
    "prompts of bench": ("a.txt", plain, bench.read_prompts),
    "prompts of fit, rows": ("a.jsonl", prompts, read_prompts),
    "tasks": ("a.jsonl", tasks, lambda path: [task.text for task in read_tasks(path).rows]),
    "rows of a run": ("a.jsonl", prompts, rows),
    "rows of a run, ndjson": ("a.ndjson", prompts, rows),
    "a table": ("a.csv", table, rows),
    "a table without quotes": ("a.csv", bare, rows),
}
WHOLE: dict[str, Callable[[Path], str]] = {
    "a text": own_text,
    "a prompt, and what `score` scores": lambda path: read_prompt(None, path),
    "standard input": sent_in,
    "a chat template": lambda path: read_template(str(path)),
}


@pytest.mark.parametrize("mark", [b"", MARK], ids=["plain", "marked"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("reader", LINES)
def test_only_a_line_end_ends_a_line(reader: str, end: str, mark: bytes, tmp_path: Path) -> None:
    name, written, read = LINES[reader]
    texts = [f"{before}first{odd}then" for before in ("", "€ ") for odd in ODD.values()]
    (tmp_path / name).write_bytes(mark + written(texts, end))
    assert read(tmp_path / name) == texts


@pytest.mark.parametrize("mark", [b"", MARK], ids=["plain", "marked"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("reader", WHOLE)
def test_a_text_that_is_read_whole_is_the_files_own(reader: str, end: str, mark: bytes, tmp_path: Path) -> None:
    text = end.join([*(f"first{odd}then" for odd in ODD.values()), ""])
    (tmp_path / "a.txt").write_bytes(mark + text.encode())
    assert WHOLE[reader](tmp_path / "a.txt") == text


@pytest.mark.parametrize("reader", [*LINES, *WHOLE])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1"])
def test_another_encoding_is_said(reader: str, encoding: str, tmp_path: Path) -> None:
    name, written, read = LINES[reader] if reader in LINES else ("a.txt", whole, WHOLE[reader])
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / name).write_bytes((mark + written(["naïve", "soup"], "\n").decode()).encode(encoding))
    answers = said(read, tmp_path / name)
    assert any("UTF-8" in answer or "half a character" in answer for answer in answers)


def test_files_put_one_behind_the_other_have_marks_inside(tmp_path: Path) -> None:
    for name, (file, written, read) in LINES.items():
        if file != "a.csv":
            (tmp_path / file).write_bytes(MARK + written(["a"], "\n") + MARK + written(["b"], "\n"))
            assert read(tmp_path / file) == ["a", "b"], name


def test_a_lone_return_in_a_bare_cell_makes_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt\none\rtwo\n")
    with pytest.raises(InputError, match="is not CSV at line 2"):
        rows(tmp_path / "a.csv")


@pytest.mark.parametrize("mark", [b"", MARK], ids=["plain", "marked"])
def test_a_trace_and_a_configuration_are_read_the_same(mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceFile(path) as file:
        for odd in ODD.values():
            file.add(f"first{odd}then", ())
    path.write_bytes(mark + path.read_bytes())
    assert [text.prompt for text in read_trace(path).texts] == [f"first{odd}then" for odd in ODD.values()]
    (tmp_path / "config.json").write_bytes(mark + b'{"eos_token_id": 3}')
    assert declared(str(tmp_path), "config.json") == {"eos_token_id": 3}


OTHERS = {
    "report/html.py": "the package's own page",
    "gateway/page.py": "the package's own page",
    "screen/styles.py": "the package's own styles",
    "cli/configuring.py": "settings as this package writes them",
    "bench/near.py": "the package's own source",
    "config/writing.py": "the package's own comments",
    "cli/showing.py": "the package's own source",
    "cluster/checkpoint.py": "lines as this package writes them",
    "cluster/engine.py": "the first line of an error",
    "demo/models.py": "what the demo's own processes say",
}
"""Where text is read or cut in another way, and why."""


def test_there_is_no_other_way_in() -> None:
    package = Path(blackbox_proxy.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Attribute) and node.attr in ("read_text", "splitlines", "readlines"):
                found.add(path.relative_to(package).as_posix())
    assert found == OTHERS.keys()
