"""Rows of a bulk run: read one by one from jsonl, csv or parquet, or from a sequence, and checked.

A source is read twice, once to check it and once to run it, so that 100,000 prompts are never held in memory. A row's
`index` is its place among all rows, bad ones included: repairing a bad line moves no seed and no result.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.sampling import Sampling
from blackbox_proxy.text.prompts import check_text, joined
from blackbox_proxy.text.reading import cells_in, json_of, lines_in
from blackbox_proxy.types import Prompt

Source = Path | str | Sequence[str | Mapping[str, Any]]
"""A file of rows (.jsonl, .csv, .parquet), or prompts or rows in a sequence."""

OPTIONS = ("max_tokens", "temperature", "top_p", "seed", "stop")
_KNOWN = frozenset({"prompt", "messages", "id", *OPTIONS})
_SHAPE = 'A row is {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}, and may have an "id".'
_LONGEST_CELL = 2**31 - 1  # csv's own limit is 131,072 characters, which a prompt may exceed


@dataclass(frozen=True, slots=True)
class InputRow:
    """One text to decode. `place` is for people ("line 3"); `options` are those of `agenerate`; `extra` is passed on.

    `digest` says what the result depends on, as "prompt-settings": a stored result is this row's if it has the same.
    """

    index: int
    place: str
    id: str | int | None
    prompt: Prompt = field(repr=False)
    options: Mapping[str, Any]
    extra: Mapping[str, Any] = field(repr=False)
    digest: str


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that cannot be used, and why."""

    index: int
    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for rows that say nothing else. `run`: whatever else the texts depend on (models, alpha …)."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: str | Sequence[str] = ()
    run: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checked({name: getattr(self, name) for name in OPTIONS})


def read_rows(source: Source, defaults: Defaults) -> Iterator[InputRow | Bad]:
    """The rows of a source, in order. Raises InputError where the source as a whole cannot be read."""
    for index, (place, record) in enumerate(_records(source)):
        yield checked_row(index, place, record, defaults)


def checked_row(index: int, place: str, record: Record, defaults: Defaults) -> InputRow | Bad:
    """The row that a record is, or what is wrong with it."""
    try:
        return _row(index, place, record() if callable(record) else record, defaults)
    except InputError as error:
        return Bad(index, place, str(error))


def source_name(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the rows given"


def row_seed(seed: int, index: int) -> int:
    """The seed of a sampled row without one: always the same, and unrelated to its neighbours'."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big") >> 1


# -- one row ----------------------------------------------------------------------------------------------------------


def _row(index: int, place: str, record: Any, defaults: Defaults) -> InputRow:
    if isinstance(record, str):
        record = {"prompt": record}
    if not isinstance(record, Mapping):
        raise InputError(f"a row is an object, not {_kind(record)}", hint=_SHAPE)
    given = {name: value for name, value in record.items() if value is not None}
    name = given.get("id")
    if isinstance(name, bool) or not isinstance(name, (str, int, type(None))):
        raise InputError(f'"id" is text or a whole number, not {_kind(name)}', hint=_SHAPE)
    prompt = _prompt(given)
    options = {option: given.get(option, getattr(defaults, option)) for option in OPTIONS}
    _checked(options)
    options["stop"] = [options["stop"]] if isinstance(options["stop"], str) else list(options["stop"])
    if options["temperature"] == 0.0:
        options["seed"] = None  # a greedy text has none, so its result is not another one's for another seed
    elif "seed" not in given:
        options["seed"] = row_seed(defaults.seed, index)
    extra = {str(key): value for key, value in record.items() if key not in _KNOWN}
    digest = f"{_digest([name, prompt])}-{_digest([options, dict(defaults.run)])}"
    return InputRow(index, place, name, prompt, options, extra, digest)


def _prompt(given: Mapping[str, Any]) -> Prompt:
    if ("prompt" in given) == ("messages" in given):
        both = "both" if "prompt" in given else "neither"
        raise InputError(f'there must be "prompt" or "messages", and there are {both}', hint=_SHAPE)
    if "prompt" in given:
        prompt = given["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise InputError('"prompt" must be text of at least one character', hint=_SHAPE)
        check_text(prompt)
        return prompt
    messages = given["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError('"messages" must be a list of at least one message', hint=_SHAPE)
    messages = joined(messages)
    for message in messages:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError('every message needs "role" and "content", both text', hint=_SHAPE)
        check_text(message["content"])
    return [dict(message) for message in messages]


def _checked(options: Mapping[str, Any]) -> None:
    """Refuse option values that no text could be decoded with."""
    for name in ("max_tokens", "seed"):
        if isinstance(options[name], bool) or not isinstance(options[name], int):
            raise InputError(f"{name} must be a whole number, not {options[name]!r}", hint="Leave it out.")
    for name in ("temperature", "top_p"):
        if isinstance(options[name], bool) or not isinstance(options[name], (int, float)):
            raise InputError(f"{name} must be a number, not {options[name]!r}", hint="Leave it out.")
    if options["max_tokens"] < 1:
        raise InputError(f"max_tokens must be at least 1, not {options['max_tokens']}", hint="Leave it out for 256.")
    Sampling(options["temperature"], options["top_p"])
    stop = options["stop"]
    if not isinstance(stop, (str, Sequence)) or not all(isinstance(s, str) and s for s in stop) or stop == "":
        raise InputError(
            f"stop must be text or a list of texts, none of them empty, not {stop!r}", hint="Leave it out."
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _kind(value: Any) -> str:
    if type(value) in (int, float):
        return repr(value)
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return kinds.get(type(value), "nothing" if value is None else type(value).__name__)


# -- files ------------------------------------------------------------------------------------------------------------

Record = Any | Callable[[], Any]
"""A row as it was found, or a function that reads it and raises InputError."""


def _records(source: Source) -> Iterator[tuple[str, Record]]:
    if not isinstance(source, (str, Path)):
        yield from ((f"row {number}", record) for number, record in enumerate(source, 1))
        return
    path = Path(source)
    reader_of(path.suffix, path)
    try:
        with path.open("rb") as file:
            yield from records_in(file, path.suffix, path)
    except OSError as error:
        raise InputError(f"the rows cannot be read from {path}: {error.strerror or error}") from error


def records_in(file: io.BufferedReader, suffix: str, name: Path | str) -> Iterator[tuple[str, Record]]:
    """The rows of an open file, each with its place in words. Raises OSError; InputError where it is none of rows."""
    yield from reader_of(suffix, name)(file, name)


def reader_of(suffix: str, name: Path | str) -> Callable[[io.BufferedReader, Path | str], Iterator[tuple[str, Record]]]:
    """How a file with this ending is read. Raises InputError where none is."""
    reader = _READERS.get(suffix.lower())
    if reader is None:
        raise InputError(
            f"{name} is no kind of file that rows are read from", hint=f"Give a file in {', '.join(_READERS)}."
        )
    return reader


def _jsonl(file: io.BufferedReader, name: Path | str) -> Iterator[tuple[str, Record]]:
    return ((f"line {number}", partial(json_of, line)) for number, line in lines_in(file, name, "the rows"))


def _csv(file: io.BufferedReader, name: Path | str) -> Iterator[tuple[str, Record]]:
    """Cells are text; an empty one is absent."""
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        with cells_in(file, name) as lines:
            reader = csv.DictReader(lines, restkey="")
            if not {"prompt", "messages"} & set(reader.fieldnames or ()):
                raise InputError(
                    f"{name} has no column of prompts", hint='Its first line names them: "prompt" or "messages".'
                )
            start = reader.line_num + 1
            try:
                for cells in reader:
                    yield f"line {start}", partial(_cells, cells)
                    start = reader.line_num + 1
            except csv.Error as error:
                raise InputError(f"{name} is not CSV at line {reader.reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _cells(cells: Mapping[str, Any]) -> dict[str, Any]:
    if "" in cells:
        raise InputError("it has more cells than there are columns", hint="Quote cells that hold a comma.")
    found: dict[str, Any] = {name: cell for name, cell in cells.items() if cell not in (None, "")}
    for name, number in (("max_tokens", int), ("seed", int), ("temperature", float), ("top_p", float)):
        if name in found:
            try:
                found[name] = number(found[name])
            except ValueError as error:
                raise InputError(f"{name} must be a number, not {found[name]!r}", hint="Leave it empty.") from error
    if "messages" in found:
        found["messages"] = json_of(found["messages"])
    if str(found.get("stop", "")).startswith("["):
        found["stop"] = json_of(found["stop"])
    return found


def _parquet(file: io.BufferedReader, name: Path | str) -> Iterator[tuple[str, Record]]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            "parquet files are read by pyarrow, which is not installed", hint="pip install 'blackbox-proxy[bulk]'"
        ) from error
    arrow = import_module("pyarrow")
    try:
        with parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", _plain(record)
    except arrow.ArrowException as error:
        raise InputError(f"{name} is not a readable parquet file: {error}") from error


def _plain(value: Any) -> Any:
    """Without NaN and infinities, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


_READERS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
