"""Options that several commands share, declared once, and `takes`, which puts them into a command.

    @app.command()
    @takes(TunerOptions)
    def generate(prompt: …, *, parts: TunerOptions, …) -> None: ...

Typer reads a command's signature; `takes` puts options in the place of the parameter that has a group as its type, and
hands the command one object made of them. A group is a `Setup` that says which settings it wants: their options are
made from the settings' own descriptions, and --config is one of them. Or it is a dataclass whose fields are options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import typer

from blackbox_proxy.config.keys import Key, keys
from blackbox_proxy.config.settings import load
from blackbox_proxy.opening import Setup

_Command = TypeVar("_Command", bound=Callable[..., None])

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="BLACKBOX_PROXY_CONFIG",
        help="A file with settings, see `config init`; options override it.",
        show_default=False,
    ),
]
_ApiKey = Annotated[str | None, typer.Option("--api-key", help="The API's key; better in a variable.")]
_Pairs = Annotated[
    list[str] | None, typer.Option("--pair", help="Use this pair of the file, not all; may be repeated.")
]


@dataclass(frozen=True, kw_only=True)
class Options(Setup):
    """Settings that a command takes as options. wanted: tables ("base") and single settings ("budget.prices");
    unwanted: settings of those tables that it takes in another way; also: further words for a setting; usual: the file
    that is read if it is there and no other is given; reads: whether it reads a file, and takes a key, at all.
    """

    wanted: ClassVar[tuple[str, ...]] = ()
    unwanted: ClassVar[tuple[str, ...]] = ()
    also: ClassVar[Mapping[str, str]] = {}
    usual: ClassVar[Path | None] = None
    reads: ClassVar[bool] = True

    given: Mapping[str, Any] = field(default_factory=dict)
    """The options that were given, by the names of the settings."""

    @classmethod
    def taken(cls) -> Iterator[Key]:
        """The settings that are options of the command."""
        for key in keys():
            if key.told.option and (key.table in cls.wanted or str(key) in cls.wanted) and str(key) not in cls.unwanted:
                yield key

    @classmethod
    def has(cls, start: str) -> bool:
        """Whether a table or a setting is among them."""
        return any(start in (key.table, str(key)) for key in cls.taken())


def takes(*groups: type) -> Callable[[_Command], _Command]:
    """For each group, the parameter annotated with it becomes one option for each of its settings or fields."""

    def expand(command: _Command) -> _Command:
        hints = get_type_hints(command, include_extras=True)
        places = {name: hint for name, hint in hints.items() if hint in groups}
        parameters = [_parameter(_CONTEXT, typer.Context, inspect.Parameter.empty)]
        for parameter in inspect.signature(command).parameters.values():
            group = places.get(parameter.name)
            if group is None:
                parameters.append(parameter.replace(annotation=hints[parameter.name]))
            else:
                parameters += _settings(group) if issubclass(group, Options) else _options(group)
        parameters.sort(key=lambda parameter: parameter.kind)

        @wraps(command)
        def expanded(**given: Any) -> None:
            asked: typer.Context = given.pop(_CONTEXT)
            for name, group in places.items():
                if issubclass(group, Options):
                    given[name] = _made(group, given, asked)
                else:
                    given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
            command(**given)

        del expanded.__wrapped__  # else the command's own signature is read
        expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return expanded  # type: ignore[return-value]

    return expand


# -- settings ---------------------------------------------------------------------------------------------------------

_CONTEXT = "asked_with"
_KEY = "base.api_key_env"
_PANEL = "Settings of the table {}"


def _settings(group: type[Options]) -> list[inspect.Parameter]:
    found = [_parameter("config", ConfigFile, None)] if group.reads else []
    if group.reads and group.has("pairs"):
        found.append(_parameter("pair", _Pairs, None))
    for key in group.taken():
        further = group.also.get(str(key))
        option = typer.Option(
            *key.told.option,
            *([] if further is None else [further]),
            help=key.description,
            rich_help_panel=_PANEL.format(key.table),
        )
        found.append(_parameter(_name(key), Annotated[_kind(key), option], None if key.default == [] else key.default))
        if str(key) == _KEY and group.reads:
            found.append(_parameter("api_key", _ApiKey, None))
    return found


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _name(key: Key) -> str:
    return f"{key.table.replace('.', '__')}__{key.name}"


def _kind(key: Key) -> Any:
    """What Typer makes of the words given: the rest, choices above all, is for `load`, whose errors have hints."""
    annotation = key.field.annotation
    if get_origin(annotation) is list:
        return list[str] | None
    for kind in (bool, int, float, Path):
        if kind in (annotation, *get_args(annotation)) and get_origin(annotation) is not tuple:
            return kind | None
    return str | None


def _made(group: type[Options], given: dict[str, Any], asked: typer.Context) -> Options:
    """The group, of the options that were given, the environment and the file."""
    options: dict[str, Any] = {}
    for key in group.taken():
        value = given.pop(_name(key))
        source = asked.get_parameter_source(_name(key))
        if source is not None and source.name == "COMMANDLINE":
            options[str(key)] = value
    file, key_given, pairs = given.pop("config", None), given.pop("api_key", None), given.pop("pair", None)
    if file is None and group.usual is not None and group.reads and group.usual.is_file():
        file = group.usual
    return group(settings=load(file, options, pairs=pairs or None), api_key=key_given, given=options)


# -- dataclasses ------------------------------------------------------------------------------------------------------


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
