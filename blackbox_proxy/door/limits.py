"""What one client may take of a server, each limit declared once, as an option of the commands that serve."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from blackbox_proxy.errors import InputError

_MIB = 1 << 20


def option(help_line: str, **default: Any) -> Any:
    """A field with the line that `--help` prints for it."""
    return field(metadata={"help": help_line}, **default)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes in MiB, times in seconds. Raises InputError for what is no limit.

    A body, a header and the reader of an answer have a time of their own: who sends or reads a byte a minute holds a
    connection no longer than that. All bodies that are being read or answered count together against `max_bodies`.
    """

    max_body: float = option("Largest body of a request, in MiB.", default=8.0)
    max_bodies: float = option("All bodies in work together, in MiB.", default=32.0)
    max_prompts: int = option("Most prompts in a request.", default=128)
    max_connections: int = option("Most connections at a time.", default=256)
    header_seconds: float = option("Time a client has to send a request's header.", default=10.0)
    body_seconds: float = option("Time a client has to send a body.", default=60.0)
    send_seconds: float = option("Time in which a client must go on reading its answer.", default=60.0)
    allow_host: str = option("Names of this server besides localhost, with commas; * is any.", default="")
    allow_origin: str = option("Pages that may use it, as http://localhost:3000, with commas; * is any.", default="")

    def __post_init__(self) -> None:
        for name in ("max_body", "max_bodies", "header_seconds", "body_seconds", "send_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be a number above 0, not {value}", hint="Leave it out for the default.")
        for name in ("max_prompts", "max_connections"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", hint="Leave it out for the default.")

    @property
    def body_bytes(self) -> int:
        return int(self.max_body * _MIB)

    @property
    def bodies_bytes(self) -> int:
        return int(max(self.max_bodies, self.max_body) * _MIB)

    @property
    def hosts(self) -> frozenset[str]:
        return _names(self.allow_host)

    @property
    def origins(self) -> frozenset[str]:
        return frozenset(name.rstrip("/") for name in _names(self.allow_origin))


def _names(given: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in given.split(",") if name.strip())
