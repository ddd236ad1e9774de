"""`Settings`: everything that can be set. `load` puts options over the environment over a file, and says what is wrong
by its place: file, table and key, with the nearest key that there is.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from blackbox_proxy.config.mistakes import Sources, nearest, told
from blackbox_proxy.config.table import Place, setting, table_in, told_of
from blackbox_proxy.config.tables import (
    BaseTable,
    BudgetTable,
    CacheTable,
    ComputeTable,
    DecodingTable,
    DraftingTable,
    EquationTable,
    LimitsTable,
    PairTable,
    ServeTable,
)
from blackbox_proxy.errors import InputError
from blackbox_proxy.text.reading import own_text

PREFIX = "BLACKBOX_PROXY_"
ONLY_PAIR = "pair"
"""The name of a pair that no file names."""


class Settings(BaseSettings):
    """Everything that can be set, one table each. Made by `load`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    base: BaseTable = setting(BaseTable(), "The big model.")
    pairs: dict[str, PairTable] = setting({}, "The small models.")
    equation: EquationTable = setting(EquationTable(), "How they are put together.")
    drafting: DraftingTable = setting(DraftingTable(), "The size of requests.")
    decoding: DecodingTable = setting(DecodingTable(), "One text.")
    limits: LimitsTable = setting(LimitsTable(), "How hard the API is asked.")
    budget: BudgetTable = setting(BudgetTable(), "What may be spent.")
    cache: CacheTable = setting(CacheTable(), "Kept answers.")
    compute: ComputeTable = setting(ComputeTable(), "This machine.")
    serve: ServeTable = setting(ServeTable(), "The tuned model over HTTP.")


def load(
    file: Path | None = None, options: Mapping[str, Any] | None = None, *, pairs: Sequence[str] | None = None
) -> Settings:
    """The settings in effect: options over environment (BLACKBOX_PROXY_BASE_URL …) over file over defaults.

    options: by the names of the keys, as {"base.url": …, "pairs.alpha": …}; those of pairs are about the one pair that
    there is, or that is chosen. pairs: the names of those to use; None for all. Raises InputError.
    """
    written = {} if file is None else _read(file)
    given = _nested(options or {}, written.get("pairs"), pairs)

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            beside = {} if file is None else _beside(Settings.model_fields, written, file.parent)
            return init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, beside)

    try:
        settings: Settings = Loaded(**given)
    except ValidationError as error:
        raise told(error, Sources(Settings.model_fields, file, given, PREFIX)) from None
    except SettingsError as error:
        raise InputError(
            f"a {PREFIX}… variable cannot be read: {error}", hint='A list is written as JSON: ["one", "two"].'
        ) from None
    _check_served(settings, "" if file is None else f"{file}, ")
    return settings if pairs is None else _chosen(settings, pairs)


class _Environment(EnvSettingsSource):
    """BLACKBOX_PROXY_CACHE=0, which says all there is to say of a cache, is cache.use."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        found = dict(super()._load_env_vars())
        name = f"{PREFIX}CACHE".lower()
        if found.get(name):
            found.setdefault(f"{name}_use", found.pop(name))
        return found


def _read(file: Path) -> dict[str, Any]:
    """The file as it stands. Raises InputError."""
    try:
        return tomllib.loads(own_text(file))
    except InputError as error:
        raise InputError(f"{file} cannot be read: {error}", hint="Write one with `config init`.") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is not TOML: {error}", hint='Text stands in quotes, as model = "big".') from None


def _nested(options: Mapping[str, Any], written: Any, chosen: Sequence[str] | None) -> dict[str, Any]:
    """Options as tables; those of a pair in its own."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        table, _, key = name.rpartition(".")
        if table == "pairs":
            table = f"pairs.{_one(name, written, chosen)}"
        inner = found
        for part in table.split(".", 1):
            inner = inner.setdefault(part, {})
        inner[key] = value
    return found


def _one(option: str, written: Any, chosen: Sequence[str] | None) -> str:
    names = list(chosen) if chosen is not None else list(written) if isinstance(written, dict) else []
    if len(names) > 1:
        raise InputError(
            f"{option.removeprefix('pairs.')} is about one pair, and there are {', '.join(names)}",
            hint="Say which one with --pair, or write it into the file.",
        )
    return names[0] if names else ONLY_PAIR


def _beside(fields: Mapping[str, FieldInfo], written: Any, folder: Path) -> Any:
    """The file's values, with files and folders that lie beside it as paths from here."""
    if not isinstance(written, dict):
        return written
    found = {}
    for name, value in written.items():
        field = fields.get(name)
        kind = None if field is None else table_in(field.annotation)
        if field is None:
            found[name] = value
        elif kind is not None and isinstance(field.annotation, type):
            found[name] = _beside(kind.model_fields, value, folder)
        elif kind is not None and isinstance(value, dict):
            found[name] = {each: _beside(kind.model_fields, table, folder) for each, table in value.items()}
        else:
            found[name] = _placed(value, told_of(field).place, folder)
    return found


def _placed(value: Any, place: Place | None, folder: Path) -> Any:
    if isinstance(value, list):
        return [_placed(each, place, folder) for each in value]
    if not isinstance(value, str) or place is None or not value:
        return value
    path = os.path.normpath(folder / Path(value).expanduser())
    path = path if os.path.isabs(path) or path.startswith("..") else f"./{path}"  # else it could be a hub id
    return path if place == "file" or value.startswith((".", "~")) or os.path.exists(path) else value


def _chosen(settings: Settings, names: Sequence[str]) -> Settings:
    for name in names:
        if name not in settings.pairs:
            raise InputError(
                f"there is no pair {name!r}",
                hint=nearest(name, settings.pairs) or "Write it into the file, as [pairs.NAME].",
            )
    return settings.model_copy(update={"pairs": {name: settings.pairs[name] for name in names}})


def _check_served(settings: Settings, where: str) -> None:
    for served, model in settings.serve.models.items():
        names = list(settings.pairs) if model.pairs is None else model.pairs
        unknown = [name for name in names if name not in settings.pairs]
        if unknown:
            raise InputError(
                f"{where}[serve.models.{served}] names a pair {unknown[0]!r} that is not there",
                hint=nearest(unknown[0], settings.pairs) or "Write it into the file, as [pairs.NAME].",
            )
        if isinstance(model.alpha, list) and len(model.alpha) != len(names):
            raise InputError(
                f"{where}[serve.models.{served}] has {len(names)} pairs but {len(model.alpha)} alphas",
                hint="Give one or one each.",
            )
