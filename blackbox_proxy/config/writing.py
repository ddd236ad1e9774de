"""Settings as text: a commented file to begin with, those in effect, the tables of the page about them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from blackbox_proxy.config.keys import NAMED, Key, keys, tables
from blackbox_proxy.config.settings import ONLY_PAIR, PREFIX, Settings

_WIDTH = 116
_HEAD = f"""\
Settings of blackbox-proxy: any command takes this file with --config, and its options override what stands here.
A line that begins with # is not in effect; it shows the default, or an example where nothing is the default.
Files and folders are looked for beside this file. Keys of APIs do not belong here: name the variable that holds one.
The environment overrides this file, too: {PREFIX}BASE_URL is url under [base]."""
_SHOWN = ("base", "pairs")  # of these tables a new file shows examples that are in effect


def toml(value: Any) -> str:
    """A value as TOML. JSON's strings are TOML's, but for the character DEL."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "inf" if value == math.inf else repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, int):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def commented(given: Mapping[str, Any] | None = None, folder: Path | None = None) -> str:
    """A file with every setting and what it means. given: those that are in effect, by the names of the keys, as
    "pairs.expert"; examples by default. folder: where the file will lie, for paths from here.
    """
    values = dict(given or {})
    lines = [*_comment(_HEAD), ""]
    for table, kind in tables().items():
        named = table in NAMED
        mine = list(keys(table))
        shown = {str(key): values[str(key)] for key in mine if str(key) in values}
        if not shown and table in _SHOWN and not values:
            shown = {str(key): key.told.example for key in mine if key.name in ("model", "url", "expert", "antiexpert")}
        name = f"{table}.{'news' if table == 'pairs' and not given else ONLY_PAIR}" if table == "pairs" else table
        name = f"{table}.{NAMED[table]}" if named and table != "pairs" else name
        lines += _comment((kind.__doc__ or "").strip())
        lines.append(f"{'# ' if named and not shown else ''}[{name}]")
        for key in mine:
            lines += _comment(key.description)
            value = shown.get(str(key))
            if value is None:
                default = key.default
                value = key.told.example if default is None or default == [] else default
                lines.append(f"# {key.name} = {toml(value)}")
            else:
                lines.append(f"{key.name} = {toml(_from(value, key, folder))}")
        lines.append("")
    return "\n".join(lines)


def _from(value: Any, key: Key, folder: Path | None) -> Any:
    """A path from here as one from the folder of the file."""
    if key.told.place is None or folder is None or not isinstance(value, str | Path):
        return value
    path = Path(value).expanduser()
    if path.is_absolute() or not (key.told.place == "file" or path.exists()):
        return value
    beside = os.path.relpath(path, folder)
    return beside if beside.startswith("..") else f"./{beside}"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for part in text.splitlines() if part.strip() for line in wrap(part.strip(), _WIDTH)]


# -- in effect --------------------------------------------------------------------------------------------------------


def in_effect(settings: Settings) -> str:
    """All settings that have a value, as a file that says the same. No key is among them: settings hold none."""
    return "\n".join(_tables(settings, "")).strip() + "\n"


def plain(settings: Settings) -> dict[str, Any]:
    """The same as JSON has it."""
    found: dict[str, Any] = settings.model_dump(mode="json")
    return found


def _tables(told: BaseModel | Mapping[str, Any], name: str) -> Iterator[str]:
    values = (
        dict(told) if isinstance(told, Mapping) else {each: getattr(told, each) for each in type(told).model_fields}
    )
    single = {each: value for each, value in values.items() if not isinstance(value, BaseModel | Mapping)}
    if name and isinstance(told, BaseModel):
        yield f"\n[{name}]"
        yield from (f"{each} = {toml(_hidden(value))}" for each, value in single.items() if value is not None)
    for each, value in values.items():
        if each not in single:
            part = each if re.fullmatch(r"[\w-]+", each, re.A) else toml(each)
            yield from _tables(value, f"{name}.{part}" if name else part)


def _hidden(value: Any) -> Any:
    """An address without a query, which may hold a key."""
    if isinstance(value, str) and value.startswith(("http://", "https://")) and "?" in value:
        return urlunsplit((*urlsplit(value)[:3], "…", ""))
    return value


# -- the page ---------------------------------------------------------------------------------------------------------


def markdown() -> str:
    """A table of the settings for each table of the file."""
    parts = []
    for table, kind in tables().items():
        title = f"{table}.{NAMED[table]}" if table in NAMED else table
        head = [f"### `[{title}]`", "", " ".join((kind.__doc__ or "").split()), ""]
        rows = [f"| `{key.name}` | {_flags(key)} | {_default(key)} | {_cell(key.description)} |" for key in keys(table)]
        parts.append("\n".join([*head, "| key | option | default | what it says |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _flags(key: Key) -> str:
    return ", ".join(f"`{flag}`" for flag in key.flags)


def _default(key: Key) -> str:
    return "" if key.default is None or key.default == [] else f"`{toml(key.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
