"""Ray as an engine: whether it is there, started or found, with room for the workers; what its errors are at heart."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from blackbox_proxy import errors
from blackbox_proxy.errors import BlackboxError, InputError

_CARRIED = ("BLACKBOX_PROXY_", "OPENAI_BASE_URL", "OMP_", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")


def _option(default: Any, what: str) -> Any:
    return field(default=default, metadata={"help": what})


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where a run on Ray runs, and on how much of it. A worker is an actor with a pair of its own."""

    address: str | None = _option(
        None, "Ray's address, as host:port, auto or local; by default $RAY_ADDRESS, else a cluster of this machine."
    )
    workers: int = _option(2, "With Ray: actors, each with a pair of its own and --concurrency rows at a time.")
    worker_cpus: float = _option(0.5, "With Ray: CPUs of each; a fraction is possible.")
    worker_gpus: float = _option(0.0, "With Ray: GPUs of each; a fraction is possible.")
    rows_per_part: int = _option(256, "With Ray: rows of each part of the results, which one worker does.")

    def check(self) -> None:
        """Raise InputError for what cannot be."""
        for name, least in (("workers", 1), ("rows_per_part", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}", hint="Leave it out.")
        for name in ("worker_cpus", "worker_gpus"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0) or (value > 1.0 and value != int(value)):
                raise InputError(
                    f"{name} must be a fraction or a whole number of at least 0, not {value:g}", hint="Leave it out."
                )
        if (self.address or "").startswith("ray://"):
            raise InputError(
                "a run cannot be begun from outside of the cluster",
                hint="Begin it on a machine of the cluster with --address auto, or through `ray job submit`.",
            )


def installed() -> tuple[Any, Any]:
    """The modules `ray` and `ray.data`. Raises InputError where they are not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise InputError(
            "runs on a cluster need Ray, which is not installed", hint="pip install 'blackbox-proxy[ray]'"
        ) from error


@contextmanager
def started(engine: Engine) -> Iterator[Any]:
    """The module `ray`, connected; what was started here ends with it. A connection that is there already is used.

    Raises InputError where Ray is not installed, not reached, or has no room.
    """
    engine.check()
    ray, data = installed()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, engine)
    try:
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        told = data.DataContext.get_current()
        told.enable_progress_bars = False
        _check_room(ray, engine)
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, engine: Engine) -> None:
    address = engine.address or os.environ.get("RAY_ADDRESS") or "local"
    how: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        # CPUs are what Ray counts, not what there is: beside the workers, one is for reading and one for writing.
        cpus = max(os.cpu_count() or 1, math.ceil(engine.workers * engine.worker_cpus) + 2)
        how |= {"num_cpus": cpus, "include_dashboard": False}
    else:
        carried = {name: value for name, value in os.environ.items() if name.startswith(_CARRIED)}
        carried = {name: value for name, value in carried.items() if not name.endswith("KEY")}  # Ray shows them
        how["runtime_env"] = {"env_vars": carried}
    try:
        ray.init(address=address, **how)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"there is no Ray cluster at {address}: {said}",
            hint="Begin one with `ray start --head`, or leave out --address.",
        ) from error


def _check_room(ray: Any, engine: Engine) -> None:
    """Ray waits for ever for what a cluster does not have."""
    has = ray.cluster_resources()
    wanted = {"CPU": engine.workers * engine.worker_cpus + 1, "GPU": engine.workers * engine.worker_gpus}
    for kind, amount in wanted.items():
        if amount > has.get(kind, 0.0):
            beside = ", and one to read and write" if kind == "CPU" else ""
            each = engine.worker_cpus if kind == "CPU" else engine.worker_gpus
            raise InputError(
                f"{engine.workers} workers with {each:g} {kind}s each{beside} do not fit a cluster with "
                f"{has.get(kind, 0.0):g}",
                hint="Give fewer --workers, or smaller fractions with --worker-cpus and --worker-gpus.",
            )


def at_heart(error: BaseException) -> BlackboxError | None:
    """The error of this package that one of Ray's is about, if it is."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        inner = [each for each in (getattr(one, "cause", None), one.__cause__) if isinstance(each, BaseException)]
        if isinstance(one, BlackboxError) and not inner:
            return one
        waiting += inner
    return None


def rebuilt(kind: str, message: str, hint: str) -> BlackboxError:
    """An error that a worker told of, in its class."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, BlackboxError):
        return found(message, hint)
    return BlackboxError(message, hint)
