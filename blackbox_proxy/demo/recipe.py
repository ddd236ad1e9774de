"""How the demo's models are made: their sizes, what they read and how often, and the key under which they are cached.

Pure data. Everything that decides what the models become is a field here or text of `world`; `Recipe.key` digests
both, so a change of either makes the demo build anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from blackbox_proxy.demo.world import World, build_world, library_text, news_text

FORMAT = 1
"""Raise this when `training` or `spelling` change what they make of the same recipe."""


@dataclass(frozen=True, slots=True)
class Student:
    """One Llama: its size, and its two lessons (an edition is one reading of the library or of the news)."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    inner: int
    library_editions: int
    library_rate: float
    news_editions: int
    news_rate: float
    smoothing: float
    batch: int = 16


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what the four models become. `errors` and `Student.smoothing` keep them from being certain."""

    seed: int = 0
    big: Student = field(default=Student(800, 128, 3, 4, 344, 10, 2e-3, 4, 5e-4, 0.03))
    small: Student = field(default=Student(900, 96, 2, 4, 256, 18, 3e-3, 6, 5e-4, 0.06))
    changed: float = 0.5
    mentioned: float = 0.85
    rare: float = 0.2
    familiar: float = 0.4
    errors: float = 0.05
    reports: int = 16
    decay: float = 0.05

    def world(self) -> World:
        return build_world(
            self.seed, changed=self.changed, mentioned=self.mentioned, rare=self.rare, familiar=self.familiar
        )

    def library(self, world: World, edition: int, *, familiar_only: bool) -> list[str]:
        return library_text(world, edition, familiar_only=familiar_only, errors=self.errors, reports=self.reports)

    def news(self, world: World, edition: int) -> list[str]:
        return news_text(world, edition, errors=self.errors)

    def key(self) -> str:
        """A short digest of the recipe and of the text it makes."""
        world = self.world()
        text = [self.library(world, 0, familiar_only=True), self.news(world, 0), FORMAT, self.to_json()]
        return hashlib.sha256(json.dumps(text).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "big": Student(**fields["big"]), "small": Student(**fields["small"])})
