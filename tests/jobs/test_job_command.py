"""`blackbox-proxy run`: what is kept through kill -9 and Ctrl-C, and what going on with it costs."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from bulk import numbered, results
from own_process import in_process

from blackbox_proxy import cli

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`blackbox-proxy run …` in this process: exit status, standard output, standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["blackbox-proxy", "run", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


_PROCESSES = multiprocessing.get_context("forkserver")
_HEAVY = ("base.openai", "jobs", "pair.transformers", "report.progress")
_PROCESSES.set_forkserver_preload(
    [*(f"blackbox_proxy.{name}" for name in _HEAVY), "transformers.models.llama.modeling_llama"]
)


def begin(arguments: list[str]) -> BaseProcess:
    """A process of its own that has imported everything already, so that many can be begun."""
    process = _PROCESSES.Process(target=in_process, args=(arguments,))
    process.start()
    return process


@contextmanager
def counting(models: dict[str, str]) -> Iterator[tuple[list[str], Callable[[], int]]]:
    """A host with a small delay: the options of a run against it, and how many requests it has counted."""
    from blackbox_proxy.door.running import serve_in_thread
    from blackbox_proxy.host.engine import open_engine
    from blackbox_proxy.serve.routes import Stats, create_app

    stats = Stats()
    engine = open_engine(models["base"], top_logprobs=5, served_model_name="big", device="cpu", first_token=0.03)
    with serve_in_thread(create_app(engine, stats=stats)) as url:
        yield options(models, f"{url}/v1"), lambda: stats.requests


def options(models: dict[str, str], url: str, *, known: bool = True) -> list[str]:
    base = [
        "--base",
        "big",
        "--base-url",
        url,
        "--dialect",
        "host",
        "--tokenizer",
        models["base"] if known else "none",
        "--top-logprobs",
        "5",
    ]
    pair = ["--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device", "cpu"]
    return [*base, *pair, "-n", "6", "--draft", "4", "--concurrency", "4"]


def killed(arguments: list[str], out: Path, seconds: float, *, after: int) -> bool:
    """Begin a run and kill it when it has written `after` more lines and so many seconds more have passed: whether that
    was in mid-work, behind the first line and before the end.
    """
    before = out.read_bytes().count(b"\n") if out.exists() else 0
    process = begin(arguments)
    try:
        while process.is_alive() and (not out.exists() or out.read_bytes().count(b"\n") < before + after):
            time.sleep(0.005)
        time.sleep(seconds)
    finally:
        process.kill()  # SIGKILL
        process.join()
    return process.exitcode == -signal.SIGKILL and out.exists() and b"\n" in out.read_bytes()


def test_a_run_through_the_command(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    with counting(models) as (given, requests):
        arguments = [source, "-o", out, *given, "--no-cache", "--prices", "1,1,2"]
        status, said, _ = command(*arguments, "--dry-run")
        assert (status, requests(), out.exists()) == (0, 0, False)
        assert all(word in said for word in ("Bounds for 6 rows", "one request per text", "cost", "vocabulary"))
        status, said, told = command(*arguments)
        assert (status, said) == (0, "")
        assert "6 rows done, 0 failed" in told
        lines = results(out)
        assert [line["id"] for line in lines] == [f"r{i}" for i in range(6)]
        assert sum(line["usage"]["api_calls"] for line in lines) == requests()
        assert f"{requests()} API calls" in told
        plain = (
            "cost " + f"{sum(u['prompt_tokens'] + 2 * u['completion_tokens'] for u in (x['usage'] for x in lines)):.4g}"
        )
        assert plain in told
        status, _, told = command(*arguments)
        assert (status, "exists already" in told, "--resume" in told) == (2, True, True)
        status, _, told = command(*arguments, "--resume", "--alpha", "0.5")
        assert (status, "other settings" in told) == (2, True)
        before = requests()
        status, _, told = command(*arguments, "--resume")
        assert (status, requests() - before, "6 were there before" in told) == (0, 0, True)


def check_kills(
    command: Command, given: list[str], requests: Callable[[], int], tmp_path: Path, rows: int, kills: int, seed: int
) -> None:
    """Killed again and again and gone on with, the file is that of an undisturbed run, and hardly any call was lost.

    Without a cache a kill costs what each worker had asked for its row; with one, the requests under way.
    """
    moments = random.Random(seed)
    source = numbered(tmp_path / "in.jsonl", rows)
    assert command(source, "-o", tmp_path / "whole.jsonl", *given, "--no-cache")[0] == 0
    undisturbed, whole = requests(), (tmp_path / "whole.jsonl").read_bytes()
    most = max(line["usage"]["api_calls"] for line in results(tmp_path / "whole.jsonl"))
    ways = {"plain": (["--no-cache"], most), "cached": (["--cache", "--cache-file", str(tmp_path / "cache.db")], 1)}
    counts = []  # printed at the end: the command's own output is captured
    for way, (cache, lost) in ways.items():
        out = tmp_path / f"{way}.jsonl"
        arguments = [str(source), "-o", str(out), *given, *cache, "--resume"]
        before = requests()
        amid = 0
        for kill in range(kills):
            amid += killed(arguments, out, moments.uniform(0.0, 0.15), after=moments.choice((0, 1, 1, 2)))
            if kill == 0 and out.exists():
                out.write_bytes(out.read_bytes() + b'{"index": 0, "id": "r')  # as if it had torn
        status, _, told = command(*arguments)
        assert status == 0, told
        if way == "plain":
            assert out.read_bytes() == whole
        else:
            shown = [{**line, "usage": None} for line in results(out)]
            assert shown == [{**line, "usage": None} for line in results(tmp_path / "whole.jsonl")]
        spent = requests() - before
        assert amid >= 0.8 * kills - 1
        counts.append(
            f"{way}: {kills} kills, {amid} of them behind the first line, {spent} requests, {undisturbed} undisturbed"
        )
        assert undisturbed <= spent <= undisturbed + kills * 4 * lost
    print("", *counts, sep="\n")


@pytest.mark.slow
def test_a_killed_run_goes_on(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    with counting(models) as (given, requests):
        check_kills(command, given, requests, tmp_path, rows=10, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_fifty_kills(known: bool, command: Command, models: dict[str, str], tmp_path: Path) -> None:
    from blackbox_proxy.host.process import HostProcess

    with HostProcess(models["base"], served_model_name="big", device="cpu", first_token=0.03, threads=1) as host:
        given = options(models, host.base_url, known=known)
        check_kills(command, given, lambda: host.stats()["requests"], tmp_path, rows=160, kills=50, seed=2)


def test_ctrl_c_keeps_what_is_done(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 400), tmp_path / "out.jsonl"  # more than are done by then
    with counting(models) as (given, _):
        arguments = [str(source), "-o", str(out), *given, "--no-cache"]
        process = begin(arguments)
        while process.is_alive() and (not out.exists() or out.read_bytes().count(b"\n") < 3):
            time.sleep(0.005)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(20)
        assert process.exitcode == 130
        done = results(out)
        assert 3 <= len(done) < 400
        limit = str(len(done) + 4)
        status, _, told = command(*arguments, "--resume", "--limit", limit)
        assert (status, f"{limit} rows" in told or "were there before" in told) == (0, True)
        assert [line["index"] for line in results(out)][: len(done)] == [line["index"] for line in done]
