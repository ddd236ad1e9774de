"""Commands about kept answers: `cache stats`, `cache clear`, `cache export`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blackbox_proxy.cli.app import app
from blackbox_proxy.cli.options import AsJson, CacheOptions
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.errors import InputError
from blackbox_proxy.screen.console import say, say_json

if TYPE_CHECKING:
    from blackbox_proxy.base.cache.store import Store

caches = typer.Typer(help="Look at the kept answers, write them out, or forget them.", no_args_is_help=True)
app.add_typer(caches, name="cache")


@caches.command("stats")
@takes(CacheOptions)
def cache_stats(
    *,
    parts: CacheOptions,
    as_json: AsJson = False,
) -> None:
    """What the cache holds."""
    with _store(parts.settings.cache.file) as store:
        stats = store.stats()
    if as_json:
        say_json(asdict(stats))
        return
    say(f"{stats.path}: {stats.bytes / 2**20:.1f} MiB of at most {stats.max_bytes / 2**20:.0f}")
    say(f"{stats.rows} positions of {stats.prompts} prompts, {stats.draws} drafted tokens")
    for base, rows in stats.bases.items():
        identity = json.loads(base)
        where = " at ".join(str(identity[key]) for key in ("model", "url") if identity.get(key)) or base
        say(f"{rows:8d}  {where}")


@caches.command("clear")
@takes(CacheOptions)
def cache_clear(*, parts: CacheOptions) -> None:
    """Forget everything in the cache."""
    with _store(parts.settings.cache.file) as store:
        say(f"{store.clear()} positions forgotten")


@caches.command("export")
@takes(CacheOptions)
def cache_export(
    *,
    parts: CacheOptions,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output by default.")] = None,
) -> None:
    """Write the cache as JSON lines, one for each position: base, prompt, text so far, candidates, drafted tokens.

    To a file that ends in .parquet, as a seed: what other machines begin with by --cache-seed.
    """
    from contextlib import nullcontext

    from blackbox_proxy.base.cache.rows import export
    from blackbox_proxy.base.cache.seeds import write_seed

    with _store(parts.settings.cache.file) as store:
        if output is not None and output.suffix == ".parquet":
            say(f"{write_seed(store, output)} positions written")
            return
        try:
            with nullcontext(sys.stdout) if output is None else output.open("w", encoding="utf-8") as out:
                for record in export(store):
                    out.write(json.dumps(record, ensure_ascii=output is None) + "\n")
        except OSError as error:
            raise InputError(f"{output} cannot be written: {error}", hint="Give another file.") from error


@contextmanager
def _store(path: Path | None) -> Iterator[Store]:
    from blackbox_proxy.base.cache.store import Store

    with closing(Store(path)) as store:
        yield store
