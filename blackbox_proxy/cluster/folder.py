"""A folder wherever pyarrow reaches one (a path here, file://, s3://, gs:// …): files that are whole or not there."""

from __future__ import annotations

import posixpath
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from blackbox_proxy.errors import InputError


class Folder:
    """A folder by its path or URL. Can be sent to other machines; opened where it is used.

    Raises InputError where it cannot be read or written.
    """

    def __init__(self, place: str) -> None:
        self.place = place if "://" in place else str(Path(place).absolute())

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.place,)

    def __str__(self) -> str:
        return self.place

    @property
    def here(self) -> Path | None:
        """Where it lies on this machine, if it does."""
        if self.place.startswith("file://"):
            return Path(self.place.removeprefix("file://"))
        return None if "://" in self.place else Path(self.place)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        fs = import_module("pyarrow.fs")
        try:
            opened: tuple[Any, str] = fs.FileSystem.from_uri(self.place)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(
                f"{self.place} cannot be opened: {error}", hint="Give a path, or a URL that pyarrow knows (s3://…)."
            ) from error
        return opened

    def names(self, below: str = "") -> list[str]:
        """The names of the files in it, or in a folder below it, in their order; none where it is not there."""
        fs = import_module("pyarrow.fs")
        files, root = self._opened
        chosen = fs.FileSelector(posixpath.join(root, below) if below else root, allow_not_found=True)
        try:
            return sorted(info.base_name for info in files.get_file_info(chosen) if info.type == fs.FileType.File)
        except OSError as error:
            raise self._failed("read", error) from error

    def read(self, name: str) -> bytes:
        files, root = self._opened
        try:
            with files.open_input_stream(posixpath.join(root, name)) as file:
                return bytes(file.read())
        except OSError as error:
            raise self._failed("read", error) from error

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""
        files, root = self._opened
        size: int | None = files.get_file_info(posixpath.join(root, name)).size
        return size

    def put(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all: what was there is there until it is."""
        files, root = self._opened
        place = posixpath.join(root, name)
        folder, base = posixpath.split(place)
        writes = posixpath.join(folder, f"_{base}.new") if self.here is not None else place
        try:
            files.create_dir(folder, recursive=True)
            with files.open_output_stream(writes) as file:
                file.write(data)
            if writes != place:
                files.move(writes, place)
        except OSError as error:
            raise self._failed("written", error) from error

    def delete(self, name: str) -> None:
        """Nothing where it is not there."""
        files, root = self._opened
        try:
            files.delete_file(posixpath.join(root, name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failed("written", error) from error

    def _failed(self, what: str, error: OSError) -> InputError:
        return InputError(
            f"{self.place} cannot be {what}: {error.strerror or error}",
            hint="When that is repaired, --resume goes on with what is done.",
        )
