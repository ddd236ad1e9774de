"""The settings one by one: what options, comments in a new file and the page about them are made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from blackbox_proxy.config.settings import Settings
from blackbox_proxy.config.table import Table, Told, table_in, told_of

NAMED = {"pairs": "NAME", "serve.models": "NAME"}
"""Tables of which there may be several, each with a name that the user gives."""


@dataclass(frozen=True)
class Key:
    """A setting. table: as "base", "pairs" for any of them; name: within it."""

    table: str
    name: str
    field: FieldInfo
    told: Told

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"

    @property
    def description(self) -> str:
        return self.field.description or ""

    @property
    def default(self) -> Any:
        """None where it must be given."""
        return None if self.field.is_required() else self.field.get_default(call_default_factory=True)

    @property
    def flags(self) -> tuple[str, ...]:
        """Every word by which a command line may set it."""
        return tuple(flag for word in self.told.option for flag in word.split("/"))


def tables() -> dict[str, type[Table]]:
    """All tables by their names, in the order of the file; of those that may be several, one."""
    found: dict[str, type[Table]] = {}
    for name, field in Settings.model_fields.items():
        found |= _inside(name, field.annotation)
    return found


def _inside(name: str, annotation: Any) -> dict[str, type[Table]]:
    kind = table_in(annotation)
    if kind is None:
        return {}
    found = {name: kind}
    for inner, field in kind.model_fields.items():
        found |= _inside(f"{name}.{inner}", field.annotation)
    return found


def keys(*wanted: str) -> Iterator[Key]:
    """The settings of these tables, or of all."""
    for table, kind in tables().items():
        if wanted and table not in wanted:
            continue
        for name, field in kind.model_fields.items():
            if table_in(field.annotation) is None:
                yield Key(table, name, field, told_of(field))
