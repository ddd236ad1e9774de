"""Options that several commands share, declared once: a dataclass whose fields are options, and `takes`.

    @app.command()
    @takes(TunerOptions)
    def generate(prompt: …, *, tuner_options: TunerOptions, …) -> None: ...

Typer reads a command's signature; `takes` puts the fields of the dataclass in the place of the parameter that has it
as its type, and hands the command one object made of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import wraps
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

_Command = TypeVar("_Command", bound=Callable[..., None])


def takes(*groups: type) -> Callable[[_Command], _Command]:
    """For each dataclass in `groups`, the parameter annotated with it becomes one option for each of its fields."""

    def expand(command: _Command) -> _Command:
        hints = get_type_hints(command, include_extras=True)
        places = {name: hint for name, hint in hints.items() if hint in groups}
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name in places:
                parameters += _options(places[parameter.name])
            else:
                parameters.append(parameter.replace(annotation=hints[parameter.name]))

        @wraps(command)
        def expanded(**given: Any) -> None:
            for name, group in places.items():
                given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
            command(**given)

        del expanded.__wrapped__  # else the command's own signature is read
        expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return expanded  # type: ignore[return-value]

    return expand


def _options(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=_annotated(field, hints[field.name]),
        )
        for field in fields(group)
    ]


def _annotated(field: Field[Any], hint: Any) -> Any:
    """The type of an option; a field of a dataclass that knows no Typer has its line of help in its metadata."""
    if "help" not in field.metadata:
        return hint
    switch = [f"--{field.name.replace('_', '-')}"] if hint is bool else []  # without a --no-… beside it
    return Annotated[hint, typer.Option(*switch, help=field.metadata["help"])]
