"""`setting`: all that is said of one setting, in one place. Help of options, comments and pages are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Place = Literal["file", "model"]
"""What is looked for beside proxy.toml: a file always; a model's folder where there is one, else it is a hub id."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of a setting besides its type, default and description.

    option: how commands take it, in Typer's words, as "--max-tokens", "-n"; empty where only the file has it.
    example: what a new file shows. place: see `Place`.
    """

    option: tuple[str, ...] = ()
    example: Any = None
    place: Place | None = None


def setting(
    default: Any,
    description: str,
    *option: str,
    example: Any = None,
    place: Place | None = None,
    **limits: Any,
) -> Any:
    """A field of a table. limits: of pydantic's, as gt=0."""
    where = {"default_factory": type(default)} if isinstance(default, list | dict) else {"default": default}
    told: Any = {"option": option, "example": example, "place": place}
    return Field(description=description, json_schema_extra=told, **where, **limits)


def told_of(field: FieldInfo) -> Told:
    """What `setting` was told, of a table's field."""
    told: Any = field.json_schema_extra
    return Told(**told)


def table_in(annotation: Any) -> type[Table] | None:
    """The class of a table, or of the tables in a mapping of them; None for what is no table."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Table)), None)


class Table(BaseModel):
    """A table of the file. A key that it does not have is an error; a number is finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)
