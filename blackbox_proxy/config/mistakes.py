"""What is wrong with settings, said by its place: file, table and key, or the option or variable that it came from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from blackbox_proxy.config.table import Table, table_in, told_of
from blackbox_proxy.errors import InputError

Fields = Mapping[str, FieldInfo]


class Sources:
    """Where a value came from. file: what settings were read from; options: those given, as tables in tables."""

    def __init__(self, fields: Fields, file: Path | None, options: Mapping[str, Any], prefix: str) -> None:
        self.fields, self.file, self.options, self.prefix = fields, file, options, prefix

    def of(self, place: Sequence[str | int]) -> str:
        """As "--base", "$BLACKBOX_PROXY_BASE_API" or "proxy.toml, [base] api"."""
        path = [str(part) for part in place if isinstance(part, str)]  # an item of a list is told as the list
        given: Any = self.options
        for part in path:
            given = given.get(part) if isinstance(given, dict) else None
        field = self.field(path)
        if given is not None:
            flags = () if field is None else told_of(field).option
            return flags[0].partition("/")[0] if flags else ".".join(path)
        for variable in (self.prefix + "_".join(path[:2]).upper(), self.prefix + path[0].upper()):
            if os.environ.get(variable):
                return f"${variable}"
        named = len(path) > 1 and not self.known(path[:-1])  # the last part is the name of a table
        tables, key = (path, "") if named or len(path) == 1 else (path[:-1], path[-1])
        where = f"[{'.'.join(tables)}] {key}".strip()
        return f"{self.file}, {where}" if self.file is not None else where

    def known(self, path: Sequence[str]) -> list[str]:
        """The names that a table has, or the file itself for no path; none where any name may stand."""
        fields = self._fields(path)
        return [] if fields is None else list(fields)

    def field(self, path: Sequence[str]) -> FieldInfo | None:
        """The setting, or the table, at this place."""
        fields = self._fields(path[:-1])
        return None if fields is None else fields.get(path[-1])

    def _fields(self, path: Sequence[str]) -> Fields | None:
        fields: Fields | None = self.fields
        kind: type[Table] | None = None
        for part in path:
            if fields is None:  # a name that the user gave
                fields = kind.model_fields if kind else None
                continue
            field = fields.get(part)
            kind, fields = None if field is None else table_in(field.annotation), None
            if kind is not None and field is not None and isinstance(field.annotation, type):
                fields = kind.model_fields
        return fields


def told(error: ValidationError, sources: Sources) -> InputError:
    """All mistakes as one error; the hint is about the first of them."""
    found = [_one(each["type"], each["loc"], each["msg"], each["input"], sources) for each in error.errors()]
    return InputError("; ".join(message for message, _ in found), hint=found[0][1])


def _one(kind: str, loc: tuple[str | int, ...], message: str, value: Any, sources: Sources) -> tuple[str, str]:
    path = [str(part) for part in loc if isinstance(part, str)]
    where = sources.of(loc)
    if kind == "extra_forbidden":
        table, name = path[:-1], path[-1]
        if any(word in name.lower() for word in ("api_key", "api-key", "apikey", "password", "secret")):
            hint = 'Write the NAME of an environment variable instead: api_key_env = "OPENAI_API_KEY".'
            return f"{where}: secrets do not belong into settings", hint
        there = sources.known(table)
        what = "key" if table else "table"
        return f"{where}: there is no such {what}", nearest(name, there) or f"There are {', '.join(there)}."
    if kind == "missing":
        field = sources.field(path)
        flag = told_of(field).option[0] if field is not None and told_of(field).option else ""
        if sources.file is None and flag:
            return f"{flag} is missing", f"Give {flag}, or a file that says it with --config."
        return f"{where} is missing", f"Write it into the file{f', or give {flag}' if flag else ''}."
    if path[0] == "pairs" and len(path) == 2 and kind.startswith(("model", "dict")):
        return f"{where}: each pair is a table of its own", "Write [pairs.news] above its keys, with a name of yours."
    said = message.removeprefix("Value error, ").replace("Input should be", "must be")
    shown = "" if _is_about_a_secret(path) or isinstance(value, dict) or kind == "value_error" else f", not {value!r}"
    described = sources.field(path)
    hint = (described.description if described is not None else "") or "See `blackbox-proxy config init`."
    return f"{where}: {said[:1].lower() + said[1:]}{shown}", hint


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that names what was probably meant; "" where nothing is near."""
    close = get_close_matches(name, list(names), n=1)
    return f"Did you mean {close[0]!r}?" if close else ""


def _is_about_a_secret(path: Sequence[str]) -> bool:
    return any(name in path[-1] for name in ("key", "url"))
