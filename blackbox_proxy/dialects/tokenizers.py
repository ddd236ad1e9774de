"""Which tokenizer an endpoint was found to have: kept beside the findings of probes, and looked up when it is opened.

One JSON file for each (URL, model). What it names is not believed any further than its `identity` goes: files that have
changed since make another one.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields

from blackbox_proxy.dialects.findings import SCHEMA, file_of, folder, write
from blackbox_proxy.errors import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """url: without user, password and query. name: a folder, hub id or file. identity: of what the tokenizer spells.
    found_on: the day, in ISO's way.
    """

    url: str
    model: str
    name: str
    identity: str
    found_on: str


def keep(found: Kept) -> None:
    """Write it to its place, for this user only. Where that is not possible, it is asked for again the next time."""
    home = folder()
    if home is None:
        return
    try:
        write(home / file_of(found.url, found.model, "tokenizer"), {"schema": SCHEMA, **asdict(found)})
    except InputError as error:
        _log.info("what was found is not kept: %s", error)


def recall(url: str, model: str) -> Kept | None:
    """What was found before; None where nothing was, or it cannot be read."""
    home = folder()
    try:
        read = json.loads((home / file_of(url, model, "tokenizer")).read_bytes()) if home is not None else None
        kept = {part.name: read[part.name] for part in fields(Kept)} if read and read["schema"] == SCHEMA else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if kept is None or not all(isinstance(value, str) for value in kept.values()):
        return None
    return Kept(**kept) if (kept["url"].rstrip("/"), kept["model"]) == (url.rstrip("/"), model) else None


def forget(url: str, model: str) -> None:
    """Ask again the next time."""
    home = folder()
    if home is not None:
        try:
            (home / file_of(url, model, "tokenizer")).unlink(missing_ok=True)
        except OSError as error:
            _log.info("what was kept cannot be removed: %s", error)
