"""Bulk runs over a tuner that answers at once."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from blackbox_proxy.errors import BlackboxError
from blackbox_proxy.types import Generation, Usage


class Fake:
    """A tuner that answers at once, in any order. `fails`: prompt -> error; `holds`: prompts that never end."""

    def __init__(self, fails: dict[str, BlackboxError] | None = None, holds: set[str] | None = None) -> None:
        self.asked: list[str] = []
        self.fails = fails or {}
        self.holds = holds or set()
        self.active = self.most_active = 0
        self._random = random.Random(1)

    async def agenerate(self, prompt: Any, **options: Any) -> Generation:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        self.asked.append(text)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            for _ in range(self._random.randrange(1, 5)):
                await asyncio.sleep(0)
            if text in self.holds:
                await asyncio.Event().wait()
            if text in self.fails:
                raise self.fails[text]
            said = f"{text}|{options['seed']}|{options['max_tokens']}|{options['stop']}"
            return Generation(said, (), "stop", Usage(1, 2, 3), "backoff")
        finally:
            self.active -= 1


def rows_file(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def numbered(path: Path, count: int) -> Path:
    return rows_file(path, *({"prompt": f"p{i}", "id": f"r{i}", "kind": i % 3} for i in range(count)))


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
