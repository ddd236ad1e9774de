"""The results of a run in parts, and the manifest that says which rows each part holds.

    out/part-000000000000-000000000255-1b2c3d4e.jsonl
    out/_manifest/part-000000000000-000000000255-1b2c3d4e.json   {"part", "bytes", "rows": [[index, digest, failed], …]}

A part is written first and entered then, each whole or not at all: a part without an entry does not count, and a run
that goes on writes it again. Names that begin with "_" are passed over by what reads folders of data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blackbox_proxy.cluster.folder import Folder
from blackbox_proxy.cluster.formats import FORMATS, Format, decoded, encoded
from blackbox_proxy.errors import InputError

_ENTRIES = "_manifest"


@dataclass(frozen=True, slots=True)
class Held:
    """A row whose result is in a part."""

    digest: str
    failed: bool


class Manifest:
    """Parts in a folder, in one format. Can be sent to other machines."""

    def __init__(self, folder: Folder, kind: Format) -> None:
        if kind not in FORMATS:
            raise InputError(f"unknown format {kind!r}", hint=f"Use one of {', '.join(FORMATS)}.")
        self.folder = folder
        self.kind = kind

    # -- before a run -------------------------------------------------------------------------------------------------

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raise InputError where there are results that nobody asked to go on with or to overwrite, or anything else.
        Changes nothing.
        """
        parts, entries = self.parts(), self.folder.names(_ENTRIES)
        strange = [name for name in self.folder.names() if name not in parts and not name.startswith(("_", "."))]
        if strange and not entries:
            raise InputError(f"{self.folder} holds other files ({strange[0]})", hint="Write to a folder of its own.")
        if (parts or entries) and not (resume or overwrite):
            raise InputError(f"{self.folder} holds results", hint="Go on with them by --resume, or --overwrite them.")

    def held(self, *, retry_failed: bool = False) -> dict[int, Held]:
        """The rows that the entries name, without failures if they are to be asked again. Changes nothing."""
        found: dict[int, Held] = {}
        for name in self.folder.names(_ENTRIES):
            for index, row in self._rows(self._entry(name)).items():
                if found.setdefault(index, row).digest != row.digest:
                    raise InputError(f"{self.folder} has two results of row {index}", hint="Write to another folder.")
        return {index: row for index, row in found.items() if not (retry_failed and row.failed)}

    def clear(self) -> None:
        """Take out all results."""
        for name in self.folder.names(_ENTRIES):
            self.folder.delete(f"{_ENTRIES}/{name}")
        for part in self.parts():
            self.folder.delete(part)

    def mend(self, *, retry_failed: bool = False) -> None:
        """Make the parts be as their entries say: one without an entry goes, as do failures that are to be asked again,
        and what is in two parts stays in the first. Raises InputError where a part has less than its entry.
        """
        seen: set[int] = set()
        entered = set()
        for name in self.folder.names(_ENTRIES):
            entry = self._entry(name)
            part, all_rows = str(entry["part"]), self._rows(entry)
            rows = {i: row for i, row in all_rows.items() if i not in seen and not (retry_failed and row.failed)}
            seen |= rows.keys()
            if len(rows) < len(all_rows):
                self._enter(part, None, rows)  # first, so that a kill leaves no entry of what is not there
            if len(rows) < len(all_rows) or entry["bytes"] != self.folder.size(part):
                self._mend(part, rows)
            if rows:
                entered.add(part)
        for part in self.parts():
            if part not in entered:
                self.folder.delete(part)

    def _rows(self, entry: dict[str, Any]) -> dict[int, Held]:
        return {int(index): Held(str(digest), bool(failed)) for index, digest, failed in entry["rows"]}

    def _entry(self, name: str) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = json.loads(self.folder.read(f"{_ENTRIES}/{name}"))
            self._rows(entry)
            part, _ = str(entry["part"]), entry["bytes"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.folder}/{_ENTRIES}/{name} is no entry of a manifest", hint="Write to another folder."
            ) from error
        if not part.endswith(f".{self.kind}"):
            raise InputError(
                f"{self.folder} holds parts in another format ({part})",
                hint=f"Go on in {part.rpartition('.')[2]}, or write to another folder.",
            )
        return entry

    def _mend(self, part: str, rows: dict[int, Held]) -> None:
        """Leave of a part what its entry names. Raises InputError where it has less."""
        there = {}
        if self.folder.size(part) is not None:
            there = {int(json.loads(line)["index"]): line for line in decoded(self.folder.read(part), self.kind)}
        missing = rows.keys() - there.keys()
        if missing:
            raise InputError(
                f"{self.folder}/{part} has lost {len(missing)} of its rows",
                hint=f"Delete its entry in {_ENTRIES}/ as well: --resume then asks its rows again.",
            )
        if not rows:
            self.folder.delete(part)
            self.folder.delete(f"{_ENTRIES}/{_entry_of(part)}")
            return
        data = encoded([there[index] for index in sorted(rows)], self.kind)
        self.folder.put(part, data)
        self._enter(part, len(data), rows)

    # -- while it runs ------------------------------------------------------------------------------------------------

    def add(self, lines: Iterable[bytes]) -> str:
        """Write these lines as a part and enter it; its name. The same rows make the same part again."""
        rows: dict[int, tuple[Held, bytes]] = {}
        for line in lines:
            record = json.loads(line)
            rows[int(record["index"])] = Held(str(record["digest"]), "error" in record), line
        order = sorted(rows)
        mark = hashlib.sha256(json.dumps(order).encode()).hexdigest()[:8]
        part = f"part-{order[0]:012d}-{order[-1]:012d}-{mark}.{self.kind}"
        data = encoded([rows[index][1] for index in order], self.kind)
        self.folder.put(part, data)
        self._enter(part, len(data), {index: rows[index][0] for index in order})
        return part

    def parts(self) -> list[str]:
        """The parts that there are, in the order of their first rows."""
        return [name for name in self.folder.names() if name.startswith("part-") and name.endswith(_ENDINGS)]

    def _enter(self, part: str, size: int | None, rows: dict[int, Held]) -> None:
        entry = {"part": part, "bytes": size, "rows": [[i, row.digest, int(row.failed)] for i, row in rows.items()]}
        self.folder.put(f"{_ENTRIES}/{_entry_of(part)}", json.dumps(entry).encode() + b"\n")


_ENDINGS = tuple(f".{kind}" for kind in FORMATS)


def _entry_of(part: str) -> str:
    return f"{part.rpartition('.')[0]}.json"
