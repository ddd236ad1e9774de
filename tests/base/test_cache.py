"""The cache: the same text again costs nothing, and nothing that happens to its file ends a run."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fakes import FakeBase

from blackbox_proxy.base.cache.base import CachedBase
from blackbox_proxy.base.cache.rows import export
from blackbox_proxy.base.cache.store import VERSION, Store
from blackbox_proxy.decoding.pace import Pace
from blackbox_proxy.errors import InputError, ServerFailed
from blackbox_proxy.protocols import Abilities, Ask, Base
from blackbox_proxy.types import Draft, Generation, Position, Prefix, Token, Usage

if TYPE_CHECKING:
    from blackbox_proxy import TransformersPair

LENGTH = 24  # tokens of a text of `Told`


class Told(FakeBase):
    """A base whose texts follow from their prompts. Writes what it shows into `log`, one line per position."""

    name = "told"

    def __init__(self, log: Path | None = None, *, seconds: float = 0.0, identity: object = "told") -> None:
        self.log = log
        self.seconds = seconds
        self.calls = 0
        self.error: Exception | None = None
        self.unseen_end = True
        self._identity = identity

    @property
    def abilities(self) -> Abilities:
        return Abilities(streams=True, scores=True, streams_scored=True)

    @property
    def identity(self) -> Mapping[str, object] | None:
        return None if self._identity is None else {"model": self._identity}

    def can_continue(self, prefix: Prefix) -> bool:
        return not prefix.tokens or not (prefix.tokens[-1].bytes or b"").startswith(b"\xe6")

    def show(self, prefix: Prefix, token: Token | None, temperature: float, seed: int | None) -> Position:
        spelled = repr((prefix.prompt, [t.key for t in prefix.tokens])).encode()
        numbers = np.frombuffer(hashlib.sha256(spelled).digest(), np.uint8)[:5].astype(float)
        logprobs = np.sort(np.log((numbers + 1 + np.arange(5) / 10) / 2000))[::-1]
        tokens = tuple(Token(bytes=b" %d" % n, text=f" {n:d}") for n in (numbers + 256 * np.arange(5)).astype(int))
        chosen = 0 if temperature == 0 else random.Random(f"{spelled!r}{seed}").randrange(5)
        if self.log is not None:
            with self.log.open("ab", buffering=0) as log:
                log.write(b"%s\n" % hashlib.sha256(spelled).hexdigest()[:12].encode())
        return Position(token or tokens[chosen], None if token else float(logprobs[chosen]), tokens, logprobs)

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        prefix, given = ask.prefix, ask.given
        self.calls += 1
        usage = Usage(api_calls=1)
        for i in range(len(given) + ask.n):
            await asyncio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
            if len(prefix.tokens) >= LENGTH and self.unseen_end:
                yield Draft((), "stop", usage)
                return
            position = self.show(prefix, given[i] if i < len(given) else None, ask.temperature, ask.seed)
            prefix = prefix.plus(position.token)
            yield Draft((position,), None, usage, int(i < len(given)))
            usage = Usage()
        yield Draft((), "length", usage)

    async def draft(self, ask: Ask) -> Draft:
        parts = [part async for part in self.stream(ask)]
        positions = tuple(position for part in parts for position in part.positions)
        return Draft(positions, parts[-1].finish, Usage(1), sum(part.given for part in parts))


def same(one: Position, other: Position) -> bool:
    return (
        (one.token, one.logprob, tuple(one.tokens)) == (other.token, other.logprob, tuple(other.tokens))
        and one.logprobs.dtype == other.logprobs.dtype
        and np.array_equal(one.logprobs, other.logprobs)
    )


async def text_of(base: Base, prompt: str, n: int, **options: Any) -> tuple[list[Position], Usage]:
    """A whole text, n tokens at a time."""
    prefix, positions, usage = Prefix(prompt), list[Position](), Usage()
    while True:
        draft = await base.draft(Ask(prefix, n, **options))
        usage += draft.usage
        positions += draft.positions
        for position in draft.positions:
            prefix = prefix.plus(position.token)
        if draft.finish == "stop":
            return positions, usage


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache.sqlite3"


@contextmanager
def cached(base: Base, file: Path, **options: Any) -> Iterator[CachedBase]:
    made = CachedBase(base, file, **options)
    try:
        yield made
    finally:
        made.store.close()


# -- what is served -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 7}], ids=str)
async def test_a_text_is_asked_for_once(options: dict[str, Any], file: Path) -> None:
    base = Told()
    with cached(base, file) as first:
        cold, spent = await text_of(first, "one", 5, **options)
        assert (base.calls, spent.api_calls, spent.cached_positions) == (5, 5, 0)
    with cached(base, file) as again:
        for n in (5, 1, 64) if not options else (5, 1000):
            if options and n > 5:
                prefix, served = Prefix("one"), await again.draft(Ask(Prefix("one"), n, **options))
                assert len(served.positions) == 5
                assert prefix.tokens == ()
                continue
            warm, spent = await text_of(again, "one", n, **options)
            assert (base.calls, spent) == (5, Usage(cached_positions=LENGTH))
            assert all(map(same, warm, cold))
        parts = [part async for part in again.stream(Ask(Prefix("one"), 3, **options))]
        assert [len(part.positions) for part in parts] == [3]
        assert base.calls == 5


async def test_a_seed_serves_its_own_draws_only(file: Path) -> None:
    base = Told()
    with cached(base, file) as one:
        asked = [await one.draft(Ask(Prefix("p"), 4, temperature=1.0, seed=seed)) for seed in (1, 2, 1, None, None)] + [
            await one.draft(Ask(Prefix("p"), 4))
        ]
    assert [draft.usage.api_calls for draft in asked] == [1, 1, 0, 1, 1, 0]
    assert asked[-1].positions[0].token == asked[-1].positions[0].tokens[0]
    assert all(map(same, asked[0].positions, asked[2].positions))


async def test_what_nobody_drew_is_served_as_far_as_it_is_certain(file: Path) -> None:
    """Given text shows candidates, not what the base would write: its likeliest candidate, where there is just one."""
    base = Told()
    with cached(base, file) as one:
        own = (await base.draft(Ask(Prefix("p"), 3))).positions
        base.calls = 0
        given = [own[0].token, Token(bytes=b" x", text=" x")]
        cold = await one.draft(Ask(Prefix("p"), 2, given=given))
        warm = await one.draft(Ask(Prefix("p"), 2, given=given))
        assert (base.calls, warm.given, warm.usage) == (1, 2, Usage(cached_positions=4))
        assert [p.token for p in warm.positions] == [p.token for p in cold.positions]
        short = await one.draft(Ask(Prefix("p"), 2, given=[given[0], Token(bytes=b" y", text=" y"), given[1]]))
        assert (base.calls, short.given, len(short.positions)) == (1, 2, 2)
        greedy = await one.draft(Ask(Prefix("p"), 3))
        assert (base.calls, len(greedy.positions)) == (1, 2)
        assert [p.token for p in greedy.positions] == [p.token for p in own[:2]]


async def test_a_draft_from_the_cache_may_be_too_short(file: Path) -> None:
    """It is served as it is, whatever its last token; who needs a longer one to go on says so, and it is asked for."""

    class Broken(Told):
        def show(self, *arguments: Any) -> Position:
            position = super().show(*arguments)
            token = Token(bytes=b"\xe6", text="�")
            return position if len(arguments[0].tokens) % 2 else replace(position, token=token)

    base = Broken()
    with cached(base, file) as one:
        await one.draft(Ask(Prefix("p"), 1))
        for n in (1, 8):
            assert len((await one.draft(Ask(Prefix("p"), n))).positions) == 1
        assert base.calls == 1
        assert len((await one.draft(Ask(Prefix("p"), 8, useful_from=2))).positions) == 8
        assert base.calls == 2
        for n, least in ((8, 2), (9, 1), (9, 8)):
            assert len((await one.draft(Ask(Prefix("p"), n, useful_from=least))).positions) == 8
        assert base.calls == 2


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 7}], ids=str)
async def test_where_an_answer_was_cut_it_stays_cut(options: dict[str, Any], file: Path) -> None:
    """However long the draft that is wanted: what follows there is the answer to another question."""

    class Cut(Told):
        async def draft(self, ask: Ask) -> Draft:
            whole = await super().draft(ask)
            return Draft(whole.positions[:3], None, whole.usage, cut=True) if ask.n > 3 else whole

    base = Cut()
    with cached(base, file) as one:
        cold = await one.draft(Ask(Prefix("p"), 8, **options))
        beyond = Prefix("p", tuple(position.token for position in cold.positions))
        await one.draft(Ask(beyond, 2, **options))
        for n, least in ((8, 1), (8, 4), (64, 4)):
            warm = await one.draft(Ask(Prefix("p"), n, useful_from=least, **options))
            assert (len(warm.positions), warm.cut, warm.usage) == (3, True, Usage(cached_positions=3))
        short = await one.draft(Ask(Prefix("p"), 2, **options))
        assert (len(short.positions), short.cut, base.calls) == (2, False, 2)


async def test_a_base_without_identity_and_errors_are_not_kept(file: Path) -> None:
    base = Told(identity=None)
    with cached(base, file) as one:
        for _ in range(2):
            await one.draft(Ask(Prefix("p"), 1))
        assert (base.calls, one.store.submit(one.store.stats).result().rows) == (2, 0)
    base = Told()
    base.error = ServerFailed("no")
    with cached(base, file) as one:
        for _ in range(2):
            with pytest.raises(ServerFailed):
                await asyncio.wait_for(one.draft(Ask(Prefix("p"), 1)), 5)
        assert (base.calls, one.store.submit(one.store.stats).result().rows) == (2, 0)
        base.error = None
        assert (await one.draft(Ask(Prefix("p"), 1))).usage.api_calls == 1


# -- many at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 7}], ids=str)
async def test_identical_requests_become_one(options: dict[str, Any], file: Path) -> None:
    base = Told(seconds=0.005)
    with cached(base, file) as one, cached(base, file) as other:
        found = await asyncio.gather(*(text_of(c, "p", 6, **options) for c in [one, other] * 4))
        assert base.calls == 5
        for positions, _ in found:
            assert all(map(same, positions, found[0][0]))


async def test_a_stream_is_followed_while_it_is_read(file: Path) -> None:
    """Whoever wants the same text gets each token as it arrives, not after the last one."""
    base = Told(seconds=0.02)
    with cached(base, file) as one, cached(base, file) as other:
        reading = asyncio.create_task(one.draft(Ask(Prefix("p"), 1)))  # warms up
        await reading

        async def read() -> int:
            return sum([len(part.positions) async for part in one.stream(Ask(Prefix("q"), 20))])

        task = asyncio.create_task(read())
        await asyncio.sleep(0.03)
        prefix, early = Prefix("q"), 0
        while len(prefix.tokens) < 20:
            for position in (await other.draft(Ask(prefix, 20 - len(prefix.tokens)))).positions:
                prefix = prefix.plus(position.token)
            early += not task.done()
        assert await task == 20
        assert base.calls == 2
        assert early > 3


async def test_who_gives_up_makes_nobody_wait(file: Path) -> None:
    base = Told(seconds=0.2)
    with cached(base, file) as one, cached(base, file) as other:
        task = asyncio.create_task(one.draft(Ask(Prefix("p"), 1)))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(other.draft(Ask(Prefix("p"), 1)))
        await asyncio.sleep(0.05)
        task.cancel()
        assert (await asyncio.wait_for(waiting, 2)).usage.api_calls == 1
        async with aclosing(one.stream(Ask(Prefix("q"), 9))) as parts:  # cut after the first part
            await anext(parts)
        assert (await asyncio.wait_for(other.draft(Ask(Prefix("q"), 9)), 2)).usage == Usage(cached_positions=1)
        assert base.calls == 3


WORKERS, THREADS, TEXTS = 8, 8, 6


def work(file: str, log: str, number: str) -> None:
    """One of the processes: each thread reads every text, some streamed, in an order of its own."""
    base = Told(Path(log), seconds=0.001)
    with cached(base, Path(file)) as one:

        async def read(thread: int) -> None:
            prompts = [f"text {i}" for i in range(TEXTS)]
            random.Random(f"{number} {thread}").shuffle(prompts)
            for prompt in prompts:
                prefix = Prefix(prompt)
                while len(prefix.tokens) < LENGTH:
                    n = min(6 + thread, LENGTH - len(prefix.tokens))
                    async for part in one.stream(Ask(prefix, n)) if thread % 2 else _whole(one, prefix, n):
                        for position in part.positions:
                            prefix = prefix.plus(position.token)
                texts[prompt] = b"".join(t.bytes or b"" for t in prefix.tokens).decode()

        texts: dict[str, str] = {}
        threads = [threading.Thread(target=lambda i=i: asyncio.run(read(i))) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(json.dumps(texts, sort_keys=True))


async def _whole(base: Base, prefix: Prefix, n: int) -> AsyncGenerator[Draft, None]:
    yield await base.draft(Ask(prefix, n))


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_eight_processes_of_eight_threads_share_a_file(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    started = [start(file, log, i) for i in range(WORKERS)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in started]
    assert {code for _, _, code in ended} == {0}, ended
    assert {errors for _, errors, _ in ended} == {""}
    assert len({out for out, _, _ in ended}) == 1
    shown = Counter(log.read_bytes().split())
    assert len(shown) == TEXTS * LENGTH
    assert set(shown.values()) == {1}  # not a single position was asked for twice
    store = Store(file)
    assert store.stats().rows == TEXTS * LENGTH
    store.close()


def test_a_killed_process_leaves_a_good_file(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(file, log, 0)
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") > 60):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    base = Told()
    with cached(base, file) as one:
        rows = one.store.submit(one.store.stats).result().rows
        assert 0 < rows < TEXTS * LENGTH
        before = time.monotonic()
        for i in range(TEXTS):
            found, _ = asyncio.run(text_of(one, f"text {i}", 99))
            assert all(map(same, found, asyncio.run(text_of(Told(), f"text {i}", 99))[0]))
        assert time.monotonic() - before < 10  # the claims of the dead hold nobody up
        assert one.store.submit(one.store.stats).result().rows == TEXTS * (LENGTH + 1)
    file_ = sqlite3.connect(file)
    assert file_.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    file_.close()


# -- the file -----------------------------------------------------------------------------------------------------


def test_only_its_owner_may_read_the_file(file: Path) -> None:
    with cached(Told(), file) as one:
        asyncio.run(one.draft(Ask(Prefix("p"), 3)))
        one.store.submit(lambda: None).result()
        for part in file.parent.iterdir():
            assert stat.S_IMODE(part.stat().st_mode) == 0o600, part
        assert file.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["noise", "cut", "header", "middle", "tables"])
def test_a_damaged_file_is_set_aside(damage: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cached(Told(), file) as one:
        for i in range(20):
            asyncio.run(text_of(one, f"p{i}", 99))
    raw = file.read_bytes()
    if damage == "tables":
        broken = sqlite3.connect(file)
        broken.execute("DROP TABLE rows")
        broken.close()
    else:
        file.write_bytes(
            {
                "noise": random.Random(0).randbytes(len(raw)),
                "cut": raw[: len(raw) // 3],
                "header": b"\0" * 50 + raw[50:],
                "middle": raw[:4096] + random.Random(1).randbytes(len(raw) - 4096),
            }[damage]
        )
    base = Told()
    with caplog.at_level(logging.WARNING), cached(base, file) as one:
        for i in range(20):
            found, _ = asyncio.run(text_of(one, f"p{i}", 99))
            assert all(map(same, found, asyncio.run(text_of(Told(), f"p{i}", 99))[0]))
        calls = base.calls
        assert calls > 0
        asyncio.run(text_of(one, "p0", 99))
        assert base.calls == calls
    assert "set aside" in caplog.text
    assert [part for part in file.parent.iterdir() if ".damaged-" in part.name]


def test_damage_while_it_is_open(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cached(Told(), file) as one:
        for i in range(20):
            asyncio.run(text_of(one, f"p{i}", 99))
        one.store.submit(one.store._do, lambda f: f.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall(), []).result()
        with file.open("r+b") as raw:
            size = raw.seek(0, 2)
            raw.seek(0)
            raw.write(random.Random(0).randbytes(size))
        one.store.submit(one.store._do, lambda f: f.execute("PRAGMA shrink_memory").fetchall(), []).result()
        with caplog.at_level(logging.WARNING):
            for i in range(20, 25):
                found, _ = asyncio.run(text_of(one, f"p{i}", 99))
                assert len(found) == LENGTH
        assert "set aside" in caplog.text


def test_an_unreadable_row_is_asked_for_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = Told()
    with cached(base, file) as one:
        asyncio.run(one.draft(Ask(Prefix("p"), 3)))
        one.store.submit(one.store._do, lambda f: f.execute("UPDATE rows SET value = x'6a00'") and None, None).result()
        assert asyncio.run(one.draft(Ask(Prefix("p"), 3))).usage.api_calls == 1
        assert "cannot be read" in caplog.text


def test_a_file_that_is_not_ours_is_refused_and_left_alone(file: Path) -> None:
    Store(file).close()
    newer = sqlite3.connect(file)
    newer.execute(f"PRAGMA user_version = {VERSION + 1}")
    newer.close()
    with pytest.raises(InputError, match="newer version") as refused:
        Store(file)
    assert "--no-cache" in refused.value.hint
    other = file.with_name("other.db")
    notes = sqlite3.connect(other)
    notes.execute("CREATE TABLE notes (text)")
    notes.close()
    raw = other.read_bytes()
    with pytest.raises(InputError, match="something else"):
        Store(other)
    assert other.read_bytes() == raw
    with pytest.raises(InputError, match="cannot be opened"):
        Store(file.parent)


def test_no_room_and_a_busy_file_end_no_run(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("blackbox_proxy.base.cache.store._BUSY", 0.05)
    base = Told()
    with cached(base, file) as one:
        asyncio.run(one.draft(Ask(Prefix("p"), 3)))
        one.store.submit(lambda: None).result()
        blocker = sqlite3.connect(file, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        assert len(asyncio.run(text_of(one, "q", 5))[0]) == LENGTH
        blocker.execute("ROLLBACK")
        blocker.close()
        assert caplog.text.count("going on without") == 1


def test_what_was_used_last_stays(file: Path) -> None:
    now = [1000.0]
    store = Store(file, max_bytes=400_000, clock=lambda: now[0])
    base = Told()
    one = CachedBase(base, store)
    asyncio.run(text_of(one, "kept", 99))
    for i in range(100):
        now[0] += 100
        asyncio.run(text_of(one, f"{i}" + "long " * 500, 99))
        asyncio.run(text_of(one, "kept", 99))
    assert base.calls == 101
    stats = store.submit(store.stats).result()
    assert stats.rows < 60 * LENGTH
    assert file.stat().st_size < 500_000
    assert stats.prompts * LENGTH <= stats.rows + 3 * LENGTH
    store.close()


# -- whose rows they are ------------------------------------------------------------------------------------------


def test_what_changes_the_answers_changes_the_identity(models: dict[str, str]) -> None:
    from blackbox_proxy import TransformersBase, open_base
    from blackbox_proxy.dialects.table import DIALECTS

    plain: dict[str, Any] = {
        "model": "big",
        "base_url": "http://me:secret@127.0.0.1:1/v1",
        "dialect": "vllm",
        "tokenizer": models["base"],
        "top_logprobs": 5,
        "api_key": "sk-very-secret",
    }
    others: list[dict[str, Any]] = [
        {"model": "small"},
        {"base_url": "http://127.0.0.1:2/v1"},
        {"base_url": "http://127.0.0.1:1/v1?version=2"},
        {"api": "chat"},
        {"dialect": "host"},
        {"dialect": replace(DIALECTS["vllm"], extra_body={})},
        {"tokenizer": None},
        {"tokenizer": models["digits-expert"]},
        {"top_logprobs": 4},
        {"top_logprobs": None},
        {"rendering": "chat"},
        {"extra_body": {"logit_bias": {"1": 2}}},
    ]
    found = [json.dumps(open_base(**{**plain, **other}).identity, sort_keys=True) for other in ({}, *others)]
    assert len(set(found)) == len(found)
    assert not [spelled for spelled in found if "secret" in spelled]
    alike: list[dict[str, Any]] = [{"api_key": "other"}, {"timeout": 3.0}, {"base_url": "http://127.0.0.1:1/v1/"}]
    assert {json.dumps(open_base(**{**plain, **other}).identity, sort_keys=True) for other in alike} == {found[0]}
    assert open_base(**{**plain, "rendering": str}).identity is None

    local = [
        TransformersBase(models[name], device="cpu", top_logprobs=limit).identity
        for name in ("base", "same-antiexpert", "same-expert")
        for limit in (None, 3)
    ]
    assert len({json.dumps(identity) for identity in local}) == 6
    assert local[0] == TransformersBase(models["base"], device="cpu").identity
    assert TransformersBase(models["base"], device="cpu", rendering=str).identity is None


async def test_tokens_that_were_asked_about_by_name_are_shown_as_such(models: dict[str, str], file: Path) -> None:
    from blackbox_proxy import TransformersBase

    base = TransformersBase(models["base"], top_logprobs=2, device="cpu")
    with cached(base, file) as one:
        draft = await one.draft(Ask(Prefix("The mayor"), 1))
        rare = base.vocabulary.token_of(max(token.id for token in draft.positions[0].tokens) - 1)  # type: ignore[type-var,operator]
        told = await one.reveal(Prefix("The mayor"), [rare])
        one.store.submit(lambda: None).result()
        drawn, named = sorted(export(one.store), key=lambda row: "named" in row)
    assert ("named" not in drawn, named["named"]) == (True, True)
    assert (named["place"], named["text"]) == (drawn["place"], drawn["text"]) == (0, "")
    shown: Any = named["candidates"]
    assert [(c["id"], c["logprob"]) for c in shown] == [(rare.id, pytest.approx(float(told.logprobs[0])))]
    await base.aclose()


async def test_a_whole_vocabulary_comes_back_as_columns(models: dict[str, str], file: Path) -> None:
    from blackbox_proxy import TransformersBase
    from blackbox_proxy.text.vocabulary import VocabularyTokens

    base = TransformersBase(models["base"], device="cpu")
    with cached(base, file) as one:
        cold = await one.draft(Ask(Prefix("The mayor"), 6))
        warm = await one.draft(Ask(Prefix("The mayor"), 6))
        assert (cold.usage.api_calls, warm.usage) == (1, Usage(cached_positions=6))
        assert all(map(same, warm.positions, cold.positions))
        assert isinstance(warm.positions[0].tokens, VocabularyTokens)
        assert len(warm.positions[0].tokens) == base.size
    await base.aclose()


# -- with a tuner, over HTTP --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(models: dict[str, str]) -> Iterator[tuple[Callable[..., Any], Any]]:
    """open_base on a host of this module's own, and its counts."""
    from blackbox_proxy import open_base
    from blackbox_proxy.serve.host import open_engine
    from blackbox_proxy.serve.process import serve_in_thread
    from blackbox_proxy.serve.routes import Stats, create_app

    stats = Stats()
    engine = open_engine(models["base"], served_model_name="big", device="cpu")
    with serve_in_thread(create_app(engine, stats=stats)) as url:

        def make(**options: Any) -> Any:
            usual = {"dialect": "host", "tokenizer": models["base"], "top_logprobs": 5, "max_attempts": 1}
            return open_base("big", base_url=f"{url}/v1", **{**usual, **options})

        yield make, stats


def facts(generation: Generation) -> list[object]:
    """What law 6 compares exactly: everything but the cost, who drafted, and the last digits of the local pair."""
    return [
        (
            *(s.token, s.text, s.token_id, s.covered_mass, s.changed, s.end, s.finish_reason),
            sorted((repr(c.token), c.log_q) for c in s.candidates if not c.tail),
        )
        for s in generation.steps
    ]


CHAT = {"api": "chat", "dialect": "vllm"}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("way", "sampled", "kind", "base_options"),
    [
        ("stream", False, "same", {}),
        ("stream", True, "digits", {}),
        ("fixed", False, "digits", {"tokenizer": None}),
        ("local", False, "same", {}),
        ("stream", False, "same", CHAT),
        *(
            pytest.param(way, sampled, kind, options, marks=SLOW)
            for way in ("stream", "fixed", "one", "local", "by itself")
            for sampled in (False, True)
            for kind, options in (("same", {}), ("digits", CHAT), ("digits", {}), ("digits", {"tokenizer": None}))
            # Without a tokenizer, what is known of the base's vocabulary depends on what had arrived when.
            if (way in ("fixed", "one") or "tokenizer" not in options)
        ),
    ],
)
def test_law_6_a_warm_run_costs_nothing_and_says_the_same(
    way: str,
    sampled: bool,
    kind: str,
    base_options: dict[str, Any],
    request: pytest.FixtureRequest,
    served: tuple[Callable[..., Any], Any],
    pairs: Callable[[str], TransformersPair],
    file: Path,
) -> None:
    from test_few_calls import PROMPTS, tuner
    from toys import Always

    from blackbox_proxy import Drafting
    from blackbox_proxy.tuner import run

    make, stats = served
    ways: dict[str, Drafting | Pace] = {
        "stream": Drafting(local=False),
        "fixed": Drafting.fixed(5),
        "one": Drafting.fixed(1),
        "local": Always(4, 3, True),
        "by itself": Drafting(),
    }
    drafting = ways[way]
    many = request.node.get_closest_marker("slow") is not None
    options: dict[str, Any] = {"max_tokens": 24 if many else 10, **({"temperature": 1.0, "seed": 3} if sampled else {})}
    found, calls = [], []
    for bare in (True, False, False):
        base = make(**base_options) if bare else CachedBase(make(**base_options), file)
        before = stats.requests
        found.append(tuner(base, pairs(kind), drafting).generate_batch(PROMPTS[6 :: 8 if many else 25], **options))
        calls.append(stats.requests - before)
        usage = sum((g.usage for g in found[-1]), Usage())
        assert usage.api_calls == calls[-1]
        run(base.aclose())
    assert calls[1] > 0
    assert calls[2] == 0
    for bare, cold, warm in zip(*found, strict=True):
        assert facts(warm) == facts(cold)
        assert [s.token for s in cold.steps] == [s.token for s in bare.steps]


def fewest_calls(texts: Sequence[tuple[str, Generation]]) -> int:
    """What these greedy texts cost at least: each prompt is asked about once, and so is each place behind a token that
    the base would not have written there, unless texts share it. The base goes on by itself everywhere else.
    """
    asked = {(prompt, ()) for prompt, _ in texts}
    for prompt, text in texts:
        for place, step in enumerate(text.steps, 1):
            if not step.drafted and step.finish_reason is None:
                asked.add((prompt, tuple(before.token for before in text.steps[:place])))  # type: ignore[arg-type]
    return len(asked)


@pytest.mark.parametrize(
    ("alphas", "length"),
    [
        ((1.0, 0.96, 0.98, 1.02, 1.04), 16),
        pytest.param((1.0, 0.9, 0.95, 1.05, 1.1), 48, marks=SLOW),
        pytest.param((1.0, 0.5, 0.75, 1.5, 2.0), 48, marks=SLOW),
    ],
    ids=["close", "near", "wide"],
)
def test_a_sweep_of_alpha_costs_little_more_than_its_texts_demand(
    alphas: Sequence[float],
    length: int,
    served: tuple[Callable[..., Any], Any],
    pairs: Callable[[str], TransformersPair],
    file: Path,
) -> None:
    """With models that change most of what the base would write. Less than two runs for nearby values; a wider sweep
    leads to texts that share less: greedy texts that have parted have no prefix in common. `-s` prints the figures.
    """
    from test_few_calls import PROMPTS

    from blackbox_proxy import Drafting, ProxyTuner
    from blackbox_proxy.tuner import run

    make, stats = served
    base = CachedBase(make(), file)
    calls: list[int] = []
    alone: list[int] = []
    texts: list[tuple[str, Generation]] = []
    for alpha in alphas:
        before = stats.requests
        tuner = ProxyTuner(base, pairs("same"), alpha=alpha, draft=Drafting(local=False))
        found = list(zip(PROMPTS[::25], tuner.generate_batch(PROMPTS[::25], max_tokens=length), strict=True))
        calls.append(stats.requests - before)
        alone.append(fewest_calls(found))
        texts += found
    run(base.aclose())
    fewest = fewest_calls(texts)
    print(
        f"\nalpha {alphas}: {sum(calls)} calls {calls}, at least {fewest}; without a cache {sum(alone)} {alone}; "
        f"{sum(calls) / calls[0]:.2f} times the first run, at least {fewest / calls[0]:.2f}"
    )
    assert calls[0] == alone[0]
    assert fewest <= sum(calls) <= 1.3 * fewest
    if max(alphas) - min(alphas) < 0.1:
        assert sum(calls) < 2 * calls[0]


def test_the_key_is_nowhere_in_the_file(
    served: tuple[Callable[..., Any], Any], pairs: Callable[[str], TransformersPair], file: Path
) -> None:
    from blackbox_proxy import ProxyTuner
    from blackbox_proxy.tuner import run

    secret = "sk-1234567890-very-secret"
    base = CachedBase(served[0](api_key=secret), file)
    ProxyTuner(base, pairs("same")).generate("The mayor of", max_tokens=8)
    run(base.aclose())
    for part in file.parent.iterdir():
        assert secret.encode() not in part.read_bytes()
    store = Store(file)
    assert secret not in json.dumps(list(export(store)))
    store.close()


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_keeps_answers_and_shows_them(
    served: tuple[Callable[..., Any], Any],
    models: dict[str, str],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from blackbox_proxy import cli

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["blackbox-proxy", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    monkeypatch.delenv("BLACKBOX_PROXY_CACHE", raising=False)
    where = ["--cache-file", file]
    pair = ["--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device", "cpu"]
    make, stats = served
    base = ["--base", "big", "--base-url", make().url, "--dialect", "host", "--tokenizer", models["base"]]
    asked = ["generate", "The mayor of", *base, *pair, "-n", 8, *where]
    before = stats.requests
    first = call(*asked)
    assert stats.requests > before
    before = stats.requests
    assert call(*asked) == first
    assert stats.requests == before
    assert call(*asked, "--no-cache") == first
    assert stats.requests > before
    shown = call("cache", "stats", *where)
    assert f"big at {make().url}" in shown
    counted = json.loads(call("cache", "stats", "--json", *where))
    lines = [json.loads(line) for line in call("cache", "export", *where).splitlines()]
    assert len(lines) == counted["rows"] >= 8
    assert lines[0]["prompt"] == {"text": "The mayor of"}
    assert {line["text"] is None for line in lines} == {False}
    whole = [line for line in lines if line["candidates"]]
    assert {"id", "text", "logprob"} == whole[0]["candidates"][0].keys() - {"end"}
    call("cache", "export", "-o", file.with_name("out.jsonl"), *where)
    assert len(file.with_name("out.jsonl").read_text().splitlines()) == len(lines)
    assert f"{len(lines)} positions" in call("cache", "clear", *where)
    assert call("cache", "export", *where) == ""
    mine = file.with_name("mine.sqlite3")
    call("generate", "The mayor", "--local", "--base", models["base"], *pair, "-n", 2, "--cache-file", mine)
    assert not mine.exists()


def test_the_default_file_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store()
    store.close()
    assert store.path == tmp_path / "blackbox-proxy" / "cache.sqlite3"
    if os.geteuid() != 0:
        (tmp_path / "shut").mkdir(mode=0o500)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shut"))
        Store().close()


if __name__ == "__main__":
    work(*sys.argv[1:])
