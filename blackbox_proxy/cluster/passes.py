"""The passes of a run over its rows, through actors of a cluster: what all kinds of run have of them."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blackbox_proxy.cluster.desk import Desk, Terms, Told
from blackbox_proxy.cluster.engine import Engine, at_heart, rebuilt
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.jobs.inputs import reader_of
from blackbox_proxy.opening import Setup

_LOOK_SECONDS = 0.5
_PATIENCE = 30.0  # seconds that the desk has for an answer
_FEW = 0.1  # CPUs of what reads and writes


class Passes:
    """Rows of files, a part of them at a time, through actors. sources: files or folders, as Ray takes them; the files
    of a folder in the order of their names.
    """

    def __init__(self, ray: Any, engine: Engine, sources: Sequence[str | Path]) -> None:
        from blackbox_proxy.cluster import rows

        self.ray = ray
        self.rows = rows
        self._engine = engine
        self.name = ", ".join(map(str, sources))
        self._sources = [str(each) if "://" in str(each) else str(Path(each).absolute()) for each in sources]
        self.paths: list[str] = []
        for source in self._sources:
            try:
                self.paths += sorted(rows.Rows(source)._paths())
            except (OSError, ValueError) as error:
                raise InputError(
                    f"the rows cannot be read from {source}: {error}", hint="Give a file or a folder of them."
                ) from error
        for path in self.paths:
            reader_of(Path(path).suffix, path)

    def _read(self) -> Any:
        # A file is one block: Ray would cut it by its size in bytes, and rows_per_part is what it is to be cut by.
        rows = self.rows.Rows(self._sources)
        return self.ray.data.read_datasource(rows, num_cpus=_FEW, override_num_blocks=len(self.paths))

    def blocks(self, kind: type, *arguments: Any, least: int | None = None) -> Any:
        """The rows through actors of this class: all workers, or `least` of them and more if that helps."""
        from ray.data import ActorPoolStrategy

        engine = self._engine
        return (
            self._read()
            .repartition(target_num_rows_per_block=engine.rows_per_part)
            .map_batches(
                kind,
                fn_constructor_args=arguments,
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=least or engine.workers, max_size=engine.workers),
                num_cpus=engine.worker_cpus,
                num_gpus=engine.worker_gpus or None,
            )
        )

    def write(self, blocks: Any, sink: Any) -> None:
        """All of it into a sink."""
        blocks.write_datasink(sink, ray_remote_args={"num_cpus": _FEW})

    def starts(self) -> dict[str, int]:
        """The index of the first row of each file."""
        counts: Counter[str] = Counter(dict.fromkeys(self.paths, 0))
        if len(self.paths) > 1:
            counted = self._read().map_batches(
                self.rows.counted, batch_format="pyarrow", batch_size=None, num_cpus=_FEW
            )
            for row in counted.iter_rows():
                counts[row["file"]] += row["rows"]
        starts, index = {}, 0
        for path in self.paths:
            starts[path] = index
            index += counts[path]
        return starts

    @contextmanager
    def desk(self, folder: Path, setup: Setup, look: Callable[[Told], None]) -> Iterator[Any]:
        """A desk on this machine, for as long as this is open; `look` is told from time to time how far the run is, and
        once more at its end. An error that ends a worker is raised as that worker told of it.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        told = setup.settings
        budget = told.budget
        terms = Terms(
            limits=told.limits.model_dump(include={"requests_per_minute", "tokens_per_minute"}),
            budget={
                "max_calls": budget.max_calls,
                "max_tokens_billed": budget.max_tokens_billed,
                "max_cost": budget.max_cost,
                "prices": setup.prices,
            },
        )
        name = uuid.uuid4().hex[:12]
        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        desk = (
            self.ray.remote(Desk)
            .options(
                name=f"blackbox-proxy-{name}",
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=here,
            )
            .remote(folder, name, terms)
        )
        try:
            with _looking(lambda: look(self.ray.get(desk.told.remote(), timeout=_PATIENCE))):
                yield desk
        except Exception as error:
            stopped = None
            with suppress(Exception):  # the cluster may be gone
                stopped = self.ray.get(desk.stopped.remote(), timeout=_PATIENCE)
            if stopped is None:
                raise
            raise rebuilt(*stopped) from error
        else:
            self.ray.get(desk.close.remote(), timeout=_PATIENCE)
        finally:
            self.ray.kill(desk)


def end_of(limit: int, bad: Sequence[int]) -> int:
    """The index behind the last of the first `limit` rows that are not bad."""
    end = limit
    for index in sorted(bad):
        end += index < end
    return end


@contextmanager
def plainly() -> Iterator[None]:
    """Of an error of Ray's that is about one of this package, that one."""
    try:
        yield
    except BlackboxError as error:
        raise at_heart(error) or error from None
    except Exception as error:
        found = at_heart(error)
        if found is None:
            raise
        raise found from error


@contextmanager
def _looking(look: Callable[[], None]) -> Iterator[None]:
    ended = threading.Event()

    def again() -> None:
        while not ended.wait(_LOOK_SECONDS):
            with suppress(Exception):  # the desk is being begun again
                look()

    thread = threading.Thread(target=again, name="looking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * _PATIENCE)
        with suppress(Exception):
            look()
