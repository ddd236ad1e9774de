"""Builds the demo's four models once, and finds them again: `demo_models`.

Each version of the world and of the recipe has a folder of its own below the user's cache folder. It is built
under another name and renamed when it is complete, so a half-built one is never taken for a whole one, and of two
processes that build at the same time one wins and the other takes what the first has made.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from platformdirs import user_cache_path

from blackbox_proxy.demo.recipe import Recipe
from blackbox_proxy.demo.world import World
from blackbox_proxy.errors import ModelUnavailable

Progress = Callable[[str, float], None]
"""Called with a model's name (one of `STAGES`) and how much of its training is done, 0 to 1."""

STAGES = ("base", "direct", "antiexpert", "expert")
_MANIFEST = "manifest.json"
_ABANDONED = 24 * 3600.0  # seconds after which a folder that somebody was building is taken for left behind


@dataclass(frozen=True, slots=True)
class DemoModels:
    """Where the four models lie, and the world that they have read about."""

    folder: Path
    world: World

    @property
    def base(self) -> Path:
        """The big black box: everything up to the cut-off."""
        return self.folder / "base"

    @property
    def direct(self) -> Path:
        """The base, tuned directly on the news: the ceiling."""
        return self.folder / "direct"

    @property
    def antiexpert(self) -> Path:
        return self.folder / "antiexpert"

    @property
    def expert(self) -> Path:
        """The anti-expert, tuned on the same news."""
        return self.folder / "expert"


def default_cache() -> Path:
    return user_cache_path("blackbox-proxy") / "demo"


def is_built(folder: Path) -> bool:
    """Whether `folder` holds all four models. The manifest is the last file written before the folder gets its name."""
    return (folder / _MANIFEST).is_file()


def demo_models(
    cache: Path | None = None, *, recipe: Recipe | None = None, progress: Progress | None = None
) -> DemoModels:
    """The demo's models: from the cache, or trained now (about a minute and a half on two cores) and cached.

    cache: the folder to keep them in, by default one below the user's cache folder. Raises ModelUnavailable when
    training fails.
    """
    recipe = recipe or Recipe()
    folder = (cache or default_cache()) / f"world-{recipe.key()}"
    if not is_built(folder):
        build(folder, recipe, progress or (lambda stage, done: None))
    return DemoModels(folder, recipe.world())


def build(folder: Path, recipe: Recipe, progress: Progress) -> None:
    """Train everything and put it at `folder`, in one piece."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-building-", dir=folder.parent))
    try:
        seconds = _train(draft, recipe, progress)
        manifest = {"key": recipe.key(), "recipe": json.loads(recipe.to_json()), "seconds": seconds}
        (draft / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path) -> None:
    """Give a complete draft its name, unless another process has been faster: its result is the same."""
    for _ in range(3):  # again if, just then, another process swept or published
        try:
            draft.rename(folder)
        except OSError:
            if is_built(folder):
                return
            # Nothing here makes a folder of this name that is not whole: what stands there is no cache of ours.
            # It is moved away before it is removed: no two processes then remove the same files.
            with suppress(OSError):
                folder.rename(draft.with_name(f"{draft.name}-replaced"))
            shutil.rmtree(draft.with_name(f"{draft.name}-replaced"), ignore_errors=True)
        else:
            return
    draft.rename(folder)


def _sweep(parent: Path) -> None:
    """Remove what killed processes have left behind."""
    for left in parent.glob(".world-*-building-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


# -- the two processes --------------------------------------------------------------------------------------------


class _Student:
    """A training process and the threads that listen to it."""

    def __init__(self, which: str, folder: Path, recipe: Recipe, lines: queue.Queue[bytes | None]) -> None:
        command = [sys.executable, "-m", "blackbox_proxy.demo.training", which, str(folder), recipe.to_json()]
        environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self.said = b""
        self._threads = [
            threading.Thread(target=self._forward, args=(self.process.stdout, lines), daemon=True),
            threading.Thread(target=self._keep, args=(self.process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _forward(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    def _keep(self, stream: IO[bytes]) -> None:
        for line in stream:
            self.said = (self.said + line)[-4000:]

    def finish(self) -> None:
        """Wait for the end. Raises ModelUnavailable if it was a bad one."""
        code = self.process.wait()
        for thread in self._threads:
            thread.join()
        if code != 0:
            last = (self.said.decode("utf-8", "replace").strip() or "it said nothing").splitlines()[-1]
            raise ModelUnavailable(
                f"the demo's models could not be trained (exit code {code}): {last}",
                hint="The demo needs about 1 GB of free memory and 50 MB in the cache folder.",
            )

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def _train(folder: Path, recipe: Recipe, progress: Progress) -> float:
    """Run both students side by side and pass their progress on; the seconds it took."""
    start = time.monotonic()
    lines: queue.Queue[bytes | None] = queue.Queue()
    students: list[_Student] = []
    try:
        for which in ("big", "small"):  # no comprehension: if the second cannot start, the first must be ended
            students.append(_Student(which, folder, recipe, lines))  # noqa: PERF401
        reading = len(students)
        while reading:
            line = lines.get()
            if line is None:
                reading -= 1
                if any(student.process.poll() for student in students):  # a failed one: the other works for nothing
                    break
                continue
            with suppress(ValueError, KeyError, TypeError):  # anything else that a library prints
                found = json.loads(line)
                progress(str(found["stage"]), float(found["done"]))
        for student in sorted(students, key=lambda student: not student.process.poll()):
            student.finish()
    finally:
        for student in students:
            student.close()
    return round(time.monotonic() - start, 1)
