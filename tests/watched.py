"""A host of which the routes that are asked are watched."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Watched:
    """A host, and the routes that were asked."""

    url: str
    paths: list[str] = field(default_factory=list)

    def since(self) -> list[str]:
        found, self.paths[:] = list(self.paths), []
        return found
