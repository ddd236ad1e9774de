"""Nothing is lost on a bad network: every kind of fault by itself, and all of them at once.

The server is real; faults.py breaks its answers on the way. What is held against the undisturbed run: the bytes of
every text, and what the server has counted, which may be more by the answers that were broken and by nothing else.
"""

from __future__ import annotations

import asyncio
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from faults import BEFORE, BROKEN, HARMLESS, Fault, Faulty, Script, Storm

from blackbox_proxy import Drafting, ProxyTuner, TransformersPair, open_base
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import ConnectionFailed
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.protocols import Ask
from blackbox_proxy.serve.routes import Stats, create_app
from blackbox_proxy.text.spelling import from_pretrained
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.transport.limits import Limiter
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Draft, Generation, Prefix

WAYS = {"streamed": Drafting(local=False), "whole": Drafting.fixed(4), "sampled": Drafting(local=False)}
PREFIX = Prefix("The mayor of New York")
N = 6


@pytest.fixture(scope="module")
def host(models: dict[str, str]) -> Iterator[tuple[str, int, Stats]]:
    """The base's host and port, and what it counts."""
    stats = Stats()
    engine = open_engine(models["base"], top_logprobs=5, served_model_name="big", device="cpu")
    with serve_in_thread(create_app(engine, stats=stats)) as url:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        yield parts.hostname, parts.port, stats


class Patient:
    """Bases on a URL whose waits are written down and a thousandth as long; closed in the end."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._opened: list[OpenAIBase] = []
        self.slept: list[float] = []

    def __call__(self, url: str, **options: Any) -> OpenAIBase:
        options = {"tokenizer": self._vocabulary, "top_logprobs": 5, "max_attempts": 300, **options}
        base = open_base("big", base_url=url, dialect="host", **options)

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            await asyncio.sleep(seconds / 1000)

        base._sleep = sleep  # type: ignore[assignment]
        self._opened.append(base)
        return base

    def close(self) -> None:
        for base in self._opened:
            run(base.aclose())


@pytest.fixture(scope="module")
def known(models: dict[str, str]) -> Vocabulary:
    return from_pretrained(models["base"])


@pytest.fixture
def patient(known: Vocabulary) -> Iterator[Patient]:
    made = Patient(known)
    yield made
    made.close()


async def parts_of(base: OpenAIBase, stream: bool) -> list[Draft]:
    if not stream:
        return [await base.draft(Ask(PREFIX, N))]
    return [part async for part in base.stream(Ask(PREFIX, N))]


def ids_of(parts: list[Draft]) -> list[int | None]:
    return [position.token.id for part in parts for position in part.positions]


def settled(stats: Stats) -> Stats:
    """The counts once nothing is being written any more."""
    deadline = time.monotonic() + 20
    while stats.active:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return Stats(**vars(stats))


# -- one at a time ----------------------------------------------------------------------------------------------------

ONES = {
    "rejected": Fault("rejected"),
    "dropped": Fault("dropped"),
    "page": Fault("page"),
    **{str(status): Fault("status", status=status) for status in (408, 409, 429, 500, 502, 503, 529)},
    "retry-after": Fault("status", status=429, headers={"retry-after": "0.5"}),
    "retry-after-ms": Fault("status", status=503, headers={"retry-after-ms": "500"}),
    "reset-requests": Fault("status", status=429, headers={"x-ratelimit-reset-requests": "500ms"}),
    "should-retry": Fault("status", status=400, headers={"x-should-retry": "true", "retry-after": "0.5"}),
    "before any byte": Fault("reset", at=0),
    "closed before any byte": Fault("closed", at=0),
    "reset in the head": Fault("reset", at=40),
    "closed in the head": Fault("closed", at=40),
    "nothing of the body": Fault("cut", at=0),
    "closed in the body": Fault("closed", at=330),
    "error": Fault("event", at=0),
    "stall in the head": Fault("stall", at=40, seconds=5.0),
    "wrong type": Fault("type"),
    "delay": Fault("delay", seconds=0.05),
    "drip": Fault("drip"),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", ONES)
def test_each_fault_by_itself(name: str, stream: bool, host: tuple[str, int, Stats], patient: Patient) -> None:
    """Before the first position: asked again, once, after the wait that was asked for."""
    fault, stats = ONES[name], host[2]
    plain = ids_of(run(parts_of(patient(f"http://{host[0]}:{host[1]}/v1"), stream)))
    before = settled(stats).requests
    with Faulty(*host[:2], Script([fault])) as bad:
        base = patient(bad.url, timeout=0.5 if fault.kind == "stall" else 30.0)
        parts = run(parts_of(base, stream))
        harmless = fault.kind in HARMLESS or (fault.kind == "type" and not stream)
        assert ids_of(parts) == plain
        assert sum(part.usage.retries for part in parts) == (0 if harmless else 1)
        assert bad.faults == {fault.kind: 1}
        assert (bad.asked, bad.broken) == (1 if harmless else 2, fault.kind in BROKEN and not harmless)
        assert settled(stats).requests - before == bad.passed == (1 if fault.kind in BEFORE else bad.asked)
        assert base.abilities.streams
    if fault.headers:
        assert 0.5 <= patient.slept[0] <= 0.55


@pytest.mark.parametrize("fault", ["reset", "closed", "cut", "event", "stall"])
def test_a_stream_that_breaks_in_the_middle_ends_quietly(
    fault: str, host: tuple[str, int, Stats], patient: Patient
) -> None:
    """What has arrived stays, nothing is asked again, and there is no finish."""
    plain = ids_of(run(parts_of(patient(f"http://{host[0]}:{host[1]}/v1"), True)))
    with Faulty(*host[:2], Script([Fault(fault, at=3000, seconds=5.0)])) as bad:
        parts = run(parts_of(patient(bad.url, timeout=0.5 if fault == "stall" else 30.0), True))
        assert (bad.asked, bad.faults) == (1, {fault: 1})
    found = ids_of(parts)
    assert found == plain[: len(found)]
    assert 0 < len(found) < len(plain) or fault == "reset"  # which throws away what nobody has read yet
    assert (parts[-1].finish, sum(part.usage.retries for part in parts)) == (None, 1)
    assert sum(part.usage.api_calls for part in parts) == 1


def test_nobody_listens_yet(host: tuple[str, int, Stats], patient: Patient) -> None:
    bad = Faulty(*host[:2], Script([]))
    base = patient(bad.url)
    sleep, opened = base._sleep, False

    async def until_it_listens(seconds: float) -> None:
        nonlocal opened
        if len(patient.slept) == 2 and not opened:
            opened = True
            await asyncio.to_thread(bad.__enter__)
        await sleep(seconds)

    base._sleep = until_it_listens  # type: ignore[assignment]
    try:
        (draft,) = run(parts_of(base, False))
    finally:
        bad.__exit__()
    assert draft.usage.retries == 3
    assert bad.asked == 1


def test_attempts_run_out_on_the_network_too(host: tuple[str, int, Stats], patient: Patient) -> None:
    with Faulty(*host[:2], lambda: Fault("dropped")) as bad, pytest.raises(ConnectionFailed):
        run(parts_of(patient(bad.url, max_attempts=3), False))
    assert bad.faults == {"dropped": 3}


@pytest.mark.parametrize("ahead", [-86400.0, 86400.0])
def test_a_clock_that_jumps(
    ahead: float, host: tuple[str, int, Stats], patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A date to wait for is compared with the server's clock, not with this machine's."""
    now = time.time()
    headers = {"date": formatdate(now, usegmt=True), "retry-after": formatdate(now + 2, usegmt=True)}
    with Faulty(*host[:2], Script([Fault("status", status=429, headers=headers)])) as bad:
        base = patient(bad.url)
        monkeypatch.setattr("blackbox_proxy.transport.retry.time.time", lambda: now + ahead)
        run(parts_of(base, False))
    assert 2.0 <= patient.slept[0] <= 2.2


# -- all at once ------------------------------------------------------------------------------------------------------

STARTS = ("The mayor", "New York", "def area", "日本", "In 2023", "naïve 👩‍💻", "'don", "  two", "3.50 €", "she")
ENDS = ("of", "12", "ba", "the theory", "Zürich")


def bytes_of(generations: list[Generation]) -> list[tuple[bytes, ...]]:
    return [(*(step.token for step in g.steps), g.finish_reason.encode()) for g in generations]


@contextmanager
def counting(stats: Stats) -> Iterator[dict[str, int]]:
    """What was counted inside of the block, filled in at its end."""
    found: dict[str, int] = {}
    before = vars(settled(stats))
    yield found
    found.update({name: value - before[name] for name, value in vars(settled(stats)).items()})


def weather(
    way: str, count: int, tokens: int, storm: Storm, host: tuple[str, int, Stats], patient: Patient, pair: Any
) -> Faulty:
    """Generate in good and in bad weather, and compare."""
    prompts = [f"{STARTS[i % 10]} {ENDS[i // 10 % 5]} {i // 50}" for i in range(count)]
    options: dict[str, Any] = {"max_tokens": tokens, "concurrency": 16}
    options |= {"temperature": 1.0, "seed": 3} if way == "sampled" else {}
    stats = host[2]
    with counting(stats) as calm:
        plain = ProxyTuner(patient(f"http://{host[0]}:{host[1]}/v1"), pair, draft=WAYS[way])
        expected = bytes_of(plain.generate_batch(prompts, **options))
    with Faulty(*host[:2], storm) as bad, counting(stats) as rough:
        found = ProxyTuner(patient(bad.url, timeout=10.0), pair, draft=WAYS[way]).generate_batch(prompts, **options)
        assert bytes_of(found) == expected
        retries = sum(g.usage.retries for g in found)
    print(
        f"{way}: {dict(bad.faults)}, {sum(bad.faults.values())} faults, {retries} retries, calm {calm}, rough {rough}"
    )
    assert rough["requests"] == bad.passed
    assert calm["requests"] <= rough["requests"] <= calm["requests"] + bad.broken
    assert retries <= bad.broken + sum(bad.faults[kind] for kind in BEFORE)
    assert rough["prompt_tokens"] <= calm["prompt_tokens"] + bad.at_stake
    if way == "whole":
        assert rough["requests"] == calm["requests"] + bad.broken
        assert rough["prompt_tokens"] == calm["prompt_tokens"] + bad.lost[0]
        assert rough["completion_tokens"] == calm["completion_tokens"] + bad.lost[1]
    return bad


@pytest.mark.parametrize("way", WAYS)
def test_a_storm(
    way: str, host: tuple[str, int, Stats], patient: Patient, pairs: Callable[[str], TransformersPair]
) -> None:
    bad = weather(way, 6, 6, Storm(7, 0.6, 30.0), host, patient, pairs("same"))
    assert sum(bad.faults.values()) > 20


@pytest.mark.slow
@pytest.mark.parametrize(("way", "rate"), [("streamed", 0.93), ("whole", 0.88), ("sampled", 0.93)])
def test_a_long_storm(
    way: str, rate: float, host: tuple[str, int, Stats], patient: Patient, pairs: Callable[[str], TransformersPair]
) -> None:
    """1,000 texts through at least 10,000 faults."""
    bad = weather(way, 1000, 3, Storm(11, rate, 30.0), host, patient, pairs("same"))
    assert sum(bad.faults.values()) >= 10_000
    assert set(bad.faults) == {*BEFORE, *BROKEN, *HARMLESS}


# -- an answer that never ends ----------------------------------------------------------------------------------------


class Dripping(socketserver.StreamRequestHandler):
    """Answers at once and then for ever, a byte or a comment at a time: no read ever times out."""

    def __init__(self, hung_up: threading.Event, *arguments: Any) -> None:
        self._hung_up = hung_up
        super().__init__(*arguments)

    def handle(self) -> None:
        asked = b""
        while line := self.rfile.readline().strip():
            asked += line
        streams = b'"stream":true' in self.rfile.read1(65536).replace(b" ", b"")
        kind, drop = (b"text/event-stream", b": still here\n\n") if streams else (b"application/json", b" ")
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nContent-Length: 1000000\r\n\r\n")
            while True:
                self.wfile.write(drop)
                time.sleep(0.02)
        except OSError:  # the client has hung up
            self._hung_up.set()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_an_answer_that_drips_for_ever_is_given_up_in_time(streamed: bool, known: Vocabulary) -> None:
    hung_up = threading.Event()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), partial(Dripping, hung_up)) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        base = open_base(
            "big", base_url=url, dialect="host", tokenizer=known, top_logprobs=5, timeout=30, max_retry_seconds=0.5
        )
        before = time.monotonic()
        with pytest.raises(ConnectionFailed, match=r"within 0\.5 s"):
            await (anext(base.stream(Ask(PREFIX, N))) if streamed else base.draft(Ask(PREFIX, N)))
        assert 0.5 <= time.monotonic() - before < 10
        await base.aclose()
        assert await asyncio.to_thread(hung_up.wait, 10)
        server.shutdown()


async def test_a_stream_that_delivers_and_a_wait_for_ones_turn_may_take_longer(
    models: dict[str, str], known: Vocabulary
) -> None:
    engine = open_engine(models["base"], top_logprobs=5, served_model_name="big", device="cpu", per_token=0.5)
    with serve_in_thread(create_app(engine)) as url:
        base = open_base(
            "big",
            base_url=f"{url}/v1",
            dialect="host",
            tokenizer=known,
            top_logprobs=5,
            max_attempts=1,
            max_retry_seconds=2.0,
            limiter=Limiter(max_concurrency=1),
        )
        before = time.monotonic()
        parts = [part async for part in base.stream(Ask(PREFIX, 7))]
        assert sum(len(part.positions) for part in parts) == 7
        assert time.monotonic() - before > 2.5
        drafts = await asyncio.gather(*(base.draft(Ask(PREFIX, 2)) for _ in range(4)))
        assert [len(draft.positions) for draft in drafts] == [2] * 4
        await base.aclose()
