"""Rows of a cache as a parquet file that other machines begin with: written by `cache export`, read by `--cache-seed`.

A seed is never written to. Each machine turns it into a file of sqlite beside its own cache once, and looks there for
what its own does not have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from blackbox_proxy.base.cache.file import file_parts
from blackbox_proxy.base.cache.store import Root, Store, StoredRow, default_path
from blackbox_proxy.errors import InputError

_TOGETHER = 4096  # rows of one group
_VERSION = b"1"
_MARK = b"blackbox-proxy seed"
_COLUMNS = ("root", "base", "prompt", "key", "place", "before", "token", "value", "draws", "drawn")


def write_seed(store: Store, path: Path) -> int:
    """Everything in the store as a seed; the number of rows. Raises InputError where it cannot be written."""
    arrow, parquet = _arrow()
    binary, text = arrow.binary(), arrow.string()
    kinds = (binary, text, text, binary, arrow.int64(), binary, text, binary, arrow.list_(binary), arrow.list_(text))
    schema = arrow.schema(zip(_COLUMNS, kinds, strict=True), metadata={_MARK: _VERSION})
    rows, count = store.rows(), 0
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with parquet.ParquetWriter(beside, schema, compression="zstd") as writer:
            while some := list(islice(rows, _TOGETHER)):
                cells = [
                    [*r, s.key, s.place, s.before, s.token, s.value, list(d), list(d.values())] for r, s, d in some
                ]
                writer.write_table(arrow.table(list(zip(*cells, strict=True)), schema=schema))
                count += len(some)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}", hint="Give another file.") from error
    finally:
        beside.unlink(missing_ok=True)
    return count


def open_seeds(seeds: Sequence[Path], cache: Path | None) -> tuple[Store, ...]:
    """The seeds, to look into only; `cache`: the file of the cache that they are beside. Raises InputError for a file
    that is no seed.
    """
    return tuple(_opened(seed, default_path() if cache is None else cache) for seed in seeds)


def _opened(seed: Path, cache: Path) -> Store:
    try:
        with seed.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(
            f"the seed {seed} cannot be read: {error.strerror or error}", hint="Give what `cache export` has written."
        ) from error
    place = cache.with_name(f"{cache.name}.seed-{digest}")
    if not place.exists():
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = place.with_name(f"{place.name}.{os.getpid()}.new")
        try:
            with closing(Store(beside)) as made:
                made.fill(_rows(seed))
            os.replace(beside, place)
        finally:
            for each in (*file_parts(beside), Path(f"{beside}.lock")):
                each.unlink(missing_ok=True)
    return Store(place, clock=lambda: 0.0)  # at a time at which no use is worth writing down


def _rows(seed: Path) -> Iterator[tuple[Root, StoredRow, dict[bytes, str]]]:
    arrow, parquet = _arrow()
    try:
        with parquet.ParquetFile(seed) as file:
            if (file.schema_arrow.metadata or {}).get(_MARK) != _VERSION:
                raise InputError(
                    f"{seed} is no seed of this version", hint="Write it with `cache export -o x.parquet`."
                )
            for batch in file.iter_batches(batch_size=_TOGETHER):
                for cells in zip(*(batch.column(name).to_pylist() for name in _COLUMNS), strict=True):
                    root, (*row, draws, drawn) = Root(*cells[:3]), cells[3:]
                    yield root, StoredRow(*row), dict(zip(draws, drawn, strict=True))
    except arrow.ArrowException as error:
        raise InputError(f"{seed} is no seed: {error}", hint="Give what `cache export` has written.") from error


def _arrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            "seeds are written and read by pyarrow, which is not installed", hint="pip install 'blackbox-proxy[bulk]'"
        ) from error
