"""Result lines as the bytes of a part, and back: jsonl, parquet and csv. Pure.

In parquet and csv every field of a line is a column; id, usage, error and input are JSON, and a seed is text, since it
may be larger than 64 bits.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, get_args

from blackbox_proxy.errors import InputError

Format = Literal["jsonl", "parquet", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)

_NUMBERS = ("index", "tokens", "changed")
_JSON = ("id", "usage", "error", "input", "seed")
_TEXTS = ("digest", "text", "finish_reason", "reason", "partial")
_RESULT = ("text", "finish_reason", "reason", "tokens", "changed", "usage")
_FAILURE = ("error", "partial", "tokens", "usage")
COLUMNS = tuple(dict.fromkeys(("index", "id", "digest", *_RESULT, *_FAILURE, "seed", "input")))
_OPTIONAL = ("reason", "seed")  # not in every line


def encoded(lines: Sequence[bytes], kind: Format) -> bytes:
    """The lines of a part as a file."""
    return _WRITE[kind](lines)


def decoded(data: bytes, kind: Format) -> list[bytes]:
    """The lines of a part. Raises InputError where it is none."""
    try:
        return _READ[kind](data)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"this is no part in {kind}: {error}", hint="Write to another folder.") from error


def _jsonl_to(lines: Sequence[bytes]) -> bytes:
    return b"".join(lines)


def _jsonl_from(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n") if line]


def _columns(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    return {name: json.dumps(record[name]) if name in _JSON else record[name] for name in COLUMNS if name in record}


def _line(cells: Mapping[str, Any]) -> bytes:
    """The line as it was: a failure has an error, a text has none."""
    middle = _FAILURE if cells.get("error") is not None else _RESULT
    found: dict[str, Any] = {}
    for name in ("index", "id", "digest", *middle, "seed", "input"):
        cell: Any = cells.get(name)
        if cell is None and name in _OPTIONAL:
            continue
        found[name] = json.loads(cell) if name in _JSON else int(cell) if name in _NUMBERS else cell or ""
    try:
        return json.dumps(found, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half characters in a field that is passed through
        return json.dumps(found).encode() + b"\n"


def _parquet_to(lines: Sequence[bytes]) -> bytes:
    arrow, parquet = _arrow()
    kinds = [(name, arrow.int64() if name in _NUMBERS else arrow.string()) for name in COLUMNS]
    out = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(map(_columns, lines)), schema=arrow.schema(kinds)), out)
    return out.getvalue()


def _parquet_from(data: bytes) -> list[bytes]:
    arrow, parquet = _arrow()
    try:
        return [_line(cells) for cells in parquet.read_table(io.BytesIO(data)).to_pylist()]
    except arrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _arrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            "parquet is written by pyarrow, which is not installed", hint="pip install 'blackbox-proxy[bulk]'"
        ) from error


def _csv_to(lines: Sequence[bytes]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_columns, lines))
    return out.getvalue().encode()


def _csv_from(data: bytes) -> list[bytes]:
    limit = csv.field_size_limit(2**31 - 1)
    try:
        rows: Iterable[dict[str, str]] = csv.DictReader(io.StringIO(data.decode(), newline=""))
        return [_line({name: cell or None for name, cell in row.items()}) for row in rows]
    finally:
        csv.field_size_limit(limit)


_WRITE: dict[Format, Callable[[Sequence[bytes]], bytes]] = {
    "jsonl": _jsonl_to,
    "parquet": _parquet_to,
    "csv": _csv_to,
}
_READ: dict[Format, Callable[[bytes], list[bytes]]] = {
    "jsonl": _jsonl_from,
    "parquet": _parquet_from,
    "csv": _csv_from,
}
