"""The far side: what serves the base model, and everything that knows HTTP.

The names are loaded on first use, so importing this package loads neither openai nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import CachedBase
    from .dialects import DIALECTS, Dialect, Prefill
    from .local import TransformersBase
    from .openai import OpenAIBase
    from .opening import open_base
    from .protocol import Base

_HOME = {
    "Base": "protocol",
    "CachedBase": "cache",
    "DIALECTS": "dialects",
    "Dialect": "dialects",
    "OpenAIBase": "openai",
    "Prefill": "dialects",
    "TransformersBase": "local",
    "open_base": "opening",
}

__all__ = ["DIALECTS", "Base", "CachedBase", "Dialect", "OpenAIBase", "Prefill", "TransformersBase", "open_base"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
