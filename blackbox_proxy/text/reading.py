"""The one way in for text from files and standard input: what a person wrote, byte for byte, and where its lines end.

Only "\\n" and "\\r\\n" end a line: a form feed, U+0085, U+2028 and U+2029, at which `str.splitlines` cuts, belong to a
text. A byte order mark says how a file is written and is none of its text. A text that is read whole keeps its line
ends as they are.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from blackbox_proxy.errors import InputError

_MARK = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # what UTF-16 and UTF-32 begin with


def own_text(source: Path | IO[bytes], what: str = "the text") -> str:
    """All of a file or stream, its line ends as they are. Raises InputError where it cannot be read or is not UTF-8."""
    try:
        data = source.read_bytes() if isinstance(source, Path) else source.read()
    except OSError as error:
        raise _unreadable(what, source, error) from error
    _check_encoding(data, what, source)
    return _decoded(data.removeprefix(_MARK), f"{what}{_where(source)}")


def numbered_lines(
    path: Path, what: str = "the lines", hint: str = "Give a JSON lines file."
) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, without what ends them, and their numbers from 1. Raises InputError."""
    try:
        with path.open("rb") as file:
            yield from lines_in(file, path, what)
    except OSError as error:
        raise _unreadable(what, path, error, hint) from error


def lines_in(file: Iterable[bytes], source: Path | str, what: str = "the lines") -> Iterator[tuple[int, bytes]]:
    """The same of an open file; `source` names it in errors. Raises OSError as well."""
    for number, line in enumerate(unmarked(file), 1):
        if number == 1:
            _check_encoding(line, what, source)
        if line.strip():
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def unmarked(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without byte order marks: files that were put one behind the other have several."""
    return (line.removeprefix(_MARK) for line in lines)


def text_lines(path: Path, what: str = "the lines") -> list[str]:
    """The lines of a text file that are not empty, in which "\\n" (two characters) stands for a line break.

    Raises InputError.
    """
    whole = own_text(path, what)
    lines = (line.removeprefix("\ufeff").removesuffix("\r") for line in whole.split("\n"))
    return [line.replace("\\n", "\n") for line in lines if line]


def cells_in(file: io.BufferedReader, source: Path | str, what: str = "the rows") -> IO[str]:
    """An open file to be read by `csv`, which finds its rows itself. What is not UTF-8 becomes half characters, which
    no prompt may have. Raises OSError, and InputError for another encoding.
    """
    _check_encoding(file.peek(8), what, source)
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def json_of(line: bytes | str) -> Any:
    """What a line of JSON says. Raises InputError for what is none, NaN and Infinity included."""
    try:
        return json.loads(line.decode() if isinstance(line, bytes) else line, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"it is not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"there is no {name} in JSON")


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 at byte {error.start}", hint="Save it as UTF-8.") from error


def _check_encoding(data: bytes, what: str, source: object) -> None:
    if data.startswith(_WIDE) and b"\0" in data:
        raise InputError(f"{what}{_where(source)} is UTF-16 or UTF-32, not UTF-8", hint="Save it as UTF-8.")


def _unreadable(what: str, source: object, error: OSError, hint: str = "Give a file of UTF-8 text.") -> InputError:
    return InputError(f"{what} cannot be read{_where(source)}: {error.strerror or error}", hint=hint)


def _where(source: object) -> str:
    return f" from {source}" if isinstance(source, (Path, str)) else ""
