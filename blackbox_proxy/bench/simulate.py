"""Many texts at once, as discrete events: what saturates first, how fast the texts come, what they cost. `simulate`.

A text asks for a request, which the limits admit (requests and tokens a minute, bits a second: buckets, first come
first served), and its tokens arrive on the network's schedule; those of a base that has work with them, when they are
written and not before. Whatever has arrived is read by the near side, which takes the texts that wait in turn,
`together` of them in a pass. At the first disagreement the stream is closed and the
text asks again from there. How many tokens come of a request is drawn from `runs`, which are a real run's (`runs_of`)
or follow from a rate (`runs_at`). Texts are there from the beginning and begin anew when they are done, or arrive by
chance (`arrivals`); those that memory has no room for wait.

Nothing here is measured, and nothing printed.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from blackbox_proxy.errors import InputError
from blackbox_proxy.host.network import Network
from blackbox_proxy.prices import Prices
from blackbox_proxy.types import Step, Usage

SATURATED = 0.95  # share of a resource that is in use when nothing more can be had of it
_FASTER = 1.05  # by how much more of something must make texts faster to be what they wait for
_LONGEST = 10_000  # tokens of a run, should nothing ever disagree


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """The near side: seconds of a pass, for each text in it, for each position, and for each request that follows on
    it. workers: of them side by side. together: texts in a pass. memory: bytes, for texts of `text_bytes` each; None is
    no limit.
    """

    of_pass: float = 0.0
    of_text: float = 0.0
    of_position: float = 0.0
    of_request: float = 0.0
    workers: int = 1
    together: int = 1
    memory: float | None = None
    text_bytes: float = 0.0

    @property
    def room(self) -> float:
        """Texts that memory has room for."""
        return math.inf if self.memory is None or self.text_bytes <= 0 else self.memory // self.text_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Far:
    """The base and the way there. bits: a second; request_bytes, token_bytes: what a request and each of its tokens
    with its log probabilities take. None is no limit. full: whether a minute's worth may be taken at the beginning.
    of_request, of_token: seconds that the base works for each; it does so for one token at a time, in turn, and writes
    none before the one before it has arrived. 0: it has no work, and is never late.
    """

    network: Network = field(default_factory=Network)
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    bits: float | None = None
    request_bytes: float = 0.0
    token_bytes: float = 0.0
    full: bool = False
    of_request: float = 0.0
    of_token: float = 0.0

    @property
    def works(self) -> bool:
        return self.of_request > 0.0 or self.of_token > 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Texts of `tokens` after prompts of `prompt_tokens`, `streams` at a time. arrivals: texts a second, None: there is
    always another. runs: tokens that come of a request, one of them drawn each time. texts: how many in all; None:
    `seconds` of them, after as long again in which everything finds its pace.
    """

    streams: int
    tokens: int
    runs: Sequence[int]
    prompt_tokens: int = 0
    arrivals: float | None = None
    texts: int | None = None
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.streams < 1 or self.tokens < 1 or not self.runs or min(self.runs) < 1 or self.prompt_tokens < 0:
            raise InputError("there must be a stream, a token and a run at least", hint="Give positive numbers.")
        if not (self.arrivals is None or self.arrivals > 0) or not self.seconds > 0:
            raise InputError("arrivals and seconds must be positive", hint="Leave them out.")


@dataclass(frozen=True, slots=True)
class Simulated:
    """seconds: that were looked at. tokens, texts, requests: in them. waited: seconds from a text's arrival to its end,
    mean. usage: what the base bills. busy: resource -> share of it in use.
    """

    streams: int
    seconds: float
    tokens: int
    texts: int
    waited: float
    usage: Usage
    busy: Mapping[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def saturated(self) -> tuple[str, ...]:
        """What is in use as good as wholly."""
        return tuple(name for name, share in self.busy.items() if share >= SATURATED)

    def cost(self, prices: Prices) -> float:
        """Of a million tokens of text."""
        return prices.cost(self.usage) / self.tokens


def runs_of(texts: Iterable[Sequence[Step]]) -> tuple[int, ...]:
    """The tokens that came of each request, of texts that were really decoded: up to what stood in no draft. A run that
    its text's end cut off goes on in the next text, so that the rate is that of all tokens. Raises InputError.
    """
    runs, length = [], 0
    for step in (step for steps in texts for step in steps):
        length += 1
        if not step.drafted:
            runs.append(length)
            length = 0
    if not runs and not length:
        raise InputError("there are no tokens to take the runs from", hint="Trace texts that were decoded.")
    return tuple(runs or [length])


def runs_at(rate: float, seed: int = 0, count: int = 4096) -> tuple[int, ...]:
    """Runs of a base that disagrees at a share `rate` of all tokens, by chance. Raises InputError."""
    if not 0.0 <= rate <= 1.0:
        raise InputError(f"a share of tokens is between 0 and 1, not {rate}", hint="As 0.15.")
    if rate in (0.0, 1.0):
        return (_LONGEST if rate == 0.0 else 1,)
    draw = random.Random(seed)
    return tuple(1 + min(int(math.log(1.0 - draw.random()) / math.log1p(-rate)), _LONGEST) for _ in range(count))


class _Bucket:
    """Fills at `rate` a second, up to `size`. Who comes first is admitted first."""

    def __init__(self, rate: float, size: float, full: bool) -> None:
        self._rate, self._size = rate, size
        self._level, self._at = (size if full else 0.0), 0.0
        self.taken = 0.0

    def admit(self, now: float, cost: float) -> float:
        """When it is admitted."""
        cost = min(cost, self._size)
        at = max(now, self._at)
        level = min(self._size, self._level + (at - self._at) * self._rate)
        if level < cost:
            at, level = at + (cost - level) / self._rate, cost
        self._level, self._at = level - cost, at
        self.taken += cost
        return at


@dataclass(slots=True)
class _Text:
    """A text at work. written: tokens that are final; run: of this request; seen: that the near side has read of it;
    first: when its first token is there. Of a base that works, too: requests so far, when the last was admitted, tokens
    of it that have come, and whether the near side waits for one.
    """

    arrived: float
    written: int = 0
    run: int = 0
    seen: int = 0
    first: float = 0.0
    requests: int = 0
    admitted: float = 0.0
    came: int = 0
    waits: bool = True


class _World:
    def __init__(self, load: Load, near: Near, far: Far, seed: int) -> None:
        self.load, self.near, self.far = load, near, far
        self.draw = random.Random(seed)
        self.events: list[tuple[float, int, str, object]] = []
        self.count = 0
        self.waiting: deque[_Text] = deque()  # for room
        self.ready: deque[_Text] = deque()  # for the near side
        self.free = near.workers
        self.active = self.begun = 0
        self.texts, self.tokens, self.requests, self.prompt, self.output = 0, 0, 0, 0, 0
        self.jobs: deque[tuple[_Text, int]] = deque()  # for the base: a text, and the number of its request
        self.writing = False
        self.worked = self.waited = self.wrote = 0.0
        rates = {
            "requests/min": (far.requests_per_minute, 60.0),
            "tokens/min": (far.tokens_per_minute, 60.0),
            "network": (far.bits, 1.0),
        }
        self.rates = {name: rate / per for name, (rate, per) in rates.items() if rate is not None}
        self.buckets = {
            name: _Bucket(rate, max(rate * rates[name][1], 1.0), far.full) for name, rate in self.rates.items()
        }
        self.mean = sum(load.runs) / len(load.runs)

    def put(self, time: float, kind: str, what: object = None) -> None:
        self.count += 1
        heappush(self.events, (time, self.count, kind, what))

    # -- a text's way -------------------------------------------------------------------------------------------------

    def arrive(self, now: float, written: int = 0) -> None:
        if self.load.texts is not None and self.begun >= self.load.texts:
            return
        self.begun += 1
        self.waiting.append(_Text(now, written))
        self.admit(now)
        if self.load.arrivals is not None:
            self.put(now + self.draw.expovariate(self.load.arrivals), "arrive")

    def admit(self, now: float) -> None:
        while self.waiting and self.active < min(self.load.streams, max(self.near.room, 1)):
            self.active += 1
            self.ask(now, self.waiting.popleft())

    def ask(self, now: float, text: _Text) -> None:
        left = self.load.tokens - text.written
        text.run, text.seen = min(self.draw.choice(self.load.runs), left), 0
        prompt = self.load.prompt_tokens + text.written
        costs = {
            "requests/min": 1.0,
            "tokens/min": prompt + min(self.mean, left),
            "network": 8.0 * (self.far.request_bytes + self.far.token_bytes * min(self.mean, left)),
        }
        admitted = now
        for name, bucket in self.buckets.items():
            admitted = bucket.admit(admitted, costs[name])
        self.requests += 1
        self.prompt += prompt
        if self.far.works:
            text.requests, text.admitted, text.came, text.waits = text.requests + 1, admitted, 0, True
            self.put(admitted, "asked", (text, text.requests))
            return
        text.first = admitted + self.far.network.first_token
        self.put(text.first, "ready", text)

    def there(self, now: float, text: _Text) -> int:
        """Tokens of its request that have arrived."""
        if self.far.works:
            return text.came
        left, per = self.load.tokens - text.written, self.far.network.per_token
        return left if per <= 0.0 else min(left, 1 + int((now - text.first) / per + 1e-9))

    # -- a base that works --------------------------------------------------------------------------------------------

    def write(self, now: float) -> None:
        while self.jobs and not self.writing:
            text, request = self.jobs.popleft()
            if request == text.requests:  # else nobody reads it any more
                seconds = self.far.of_token + (0.0 if text.came else self.far.of_request)
                self.writing, self.wrote = True, self.wrote + seconds
                self.put(now + seconds, "written", (text, request))

    def written(self, now: float, text: _Text, request: int) -> None:
        self.writing = False
        if request == text.requests:
            self.put(max(now, text.admitted + self.far.network.delay(text.came + 1)), "came", (text, request))

    def came(self, text: _Text, request: int) -> None:
        if request != text.requests:
            return
        text.came += 1
        if text.waits:
            text.waits = False
            self.ready.append(text)
        if text.came < self.load.tokens - text.written:
            self.jobs.append((text, request))

    # -- the near side ------------------------------------------------------------------------------------------------

    def work(self, now: float) -> None:
        while self.free and self.ready:
            batch = [self.ready.popleft() for _ in range(min(self.near.together, len(self.ready)))]
            counts = [self.there(now, text) for text in batch]
            new = sum(counts) - sum(text.seen for text in batch)
            seconds = self.near.of_pass + self.near.of_text * len(batch) + self.near.of_position * new
            seconds += self.near.of_request * sum(n >= text.run for n, text in zip(counts, batch, strict=True))
            self.free -= 1
            self.worked += seconds
            self.put(now + seconds, "done", (batch, counts))

    def done(self, now: float, batch: Sequence[_Text], counts: Sequence[int]) -> None:
        self.free += 1
        for text, count in zip(batch, counts, strict=True):
            self.tokens += min(count, text.run) - text.seen
            text.seen = count
            if count < text.run and self.far.works:
                text.waits = text.came == count
                if not text.waits:
                    self.ready.append(text)
                continue
            if count < text.run:
                self.put(max(now, text.first + count * self.far.network.per_token), "ready", text)
                continue
            self.output += self.there(now, text)
            text.requests += self.far.works  # the stream is closed
            text.written += text.run
            if text.written < self.load.tokens:
                self.ask(now, text)
                continue
            self.texts += 1
            self.waited += now - text.arrived
            self.active -= 1
            if self.load.arrivals is None:
                self.arrive(now)
            self.admit(now)

    def run(self, until: float) -> float:
        """To this time, or until nothing is left to do; the time then."""
        now = 0.0
        while self.events and self.events[0][0] <= until:
            now, _, kind, what = heappop(self.events)
            if kind == "arrive":
                self.arrive(now, what if isinstance(what, int) else 0)
            elif kind == "ready":
                assert isinstance(what, _Text)
                self.ready.append(what)
            else:
                assert isinstance(what, tuple)
                if kind == "asked":
                    self.jobs.append(what)
                elif kind == "written":
                    self.written(now, *what)
                elif kind == "came":
                    self.came(*what)
                else:
                    self.done(now, *what)
            self.write(now)
            self.work(now)
        return now if math.isinf(until) else until

    def counted(self) -> tuple[float, ...]:
        spent = (self.tokens, self.texts, self.requests, self.prompt, self.output, self.waited, self.worked, self.wrote)
        return (*spent, *(bucket.taken for bucket in self.buckets.values()))


def simulate(load: Load, near: Near, far: Far, seed: int = 0) -> Simulated:
    """What happens, in seconds of its own clock. The same for the same seed."""
    world = _World(load, near, far, seed)
    if load.arrivals is not None:
        world.put(world.draw.expovariate(load.arrivals), "arrive")
    else:
        steady = load.texts is None  # then texts are anywhere in their way at the beginning, not all at its start
        network = far.network
        cycle = network.first_token + sum(load.runs) / len(load.runs) * network.per_token
        for _ in range(load.streams):
            begun = world.draw.randrange(load.tokens) if steady else 0
            world.put(world.draw.random() * cycle if steady else 0.0, "arrive", begun)
    before, start = world.counted(), 0.0
    if load.texts is None:
        start = world.run(load.seconds)
        before = world.counted()
    end = world.run(math.inf if load.texts is not None else start + load.seconds)
    found = [after - one for after, one in zip(world.counted(), before, strict=True)]
    tokens, texts, requests, prompt, output, waited, worked, wrote = found[:8]
    seconds = max(end - start, 1e-12)
    busy = {"near side": min(worked / (near.workers * seconds), 1.0)}  # a pass counts as it begins
    if far.works:
        busy["base"] = min(wrote / seconds, 1.0)
    if math.isfinite(near.room):
        busy["memory"] = min(world.active / max(near.room, 1), 1.0) if load.texts is None else 0.0
    busy |= {name: taken / (world.rates[name] * seconds) for name, taken in zip(world.buckets, found[8:], strict=True)}
    usage = Usage(int(requests), int(prompt), int(output))
    return Simulated(load.streams, seconds, int(tokens), int(texts), waited / max(texts, 1), usage, busy)


def binding(load: Load, near: Near, far: Far, found: Simulated) -> str | None:
    """Of what is saturated, that of which twice as much would make the texts fastest; all of it, where more of one
    thing alone is no use. (A near side that reads many texts in a pass always has something to do, and is in nobody's
    way as long as its passes are not full.)
    """
    if len(found.saturated) < 2:
        return next(iter(found.saturated), None)
    more: dict[str, tuple[Near, Far]] = {
        "near side": (replace(near, workers=2 * near.workers), far),
        "base": (near, replace(far, of_request=far.of_request / 2, of_token=far.of_token / 2)),
        "memory": (replace(near, memory=2 * (near.memory or 0.0)), far),
        "requests/min": (near, replace(far, requests_per_minute=2 * (far.requests_per_minute or 0.0))),
        "tokens/min": (near, replace(far, tokens_per_minute=2 * (far.tokens_per_minute or 0.0))),
        "network": (near, replace(far, bits=2 * (far.bits or 0.0))),
    }
    tokens = {name: simulate(load, *more[name]).tokens for name in found.saturated}
    best = max(tokens, key=lambda name: tokens[name])
    return best if tokens[best] > _FASTER * found.tokens else ", ".join(found.saturated)
