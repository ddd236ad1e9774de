"""`Finding`: what a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blackbox_proxy.errors import BlackboxError

Level = Literal["ok", "warns", "fails"]


@dataclass(frozen=True, slots=True)
class Finding:
    """what: was looked at; text: what was found, a sentence; hint: what to do about it, where it is not ok."""

    level: Level
    what: str
    text: str
    hint: str = ""


def failed(what: str, error: BlackboxError) -> Finding:
    """An error of the package as a finding."""
    return Finding("fails", what, str(error), error.hint)
