"""`blackbox-proxy bench --simulate`: what saturates first, as a table; and the same beside a real run (`--check`).

The real run is of this machine: the base over an emulated network in a process of its own, the pair here. One text at a
time gives the runs and what the near side is asked, which is then asked again without a base, of one text and of many
at a time; and the base is asked without a pair, which tells what a request and a token of it take of its processor and
of this one. What one text at a time took of this processor beyond the two is the arithmetic between them. From this
alone the speed of many texts at a time is predicted, and then measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console

from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.bench.setting import Setting, table_over
from blackbox_proxy.bench.simulate import Far, Load, Near, Simulated, binding, runs_of, simulate
from blackbox_proxy.decoding.pace import Drafting
from blackbox_proxy.host.network import Network
from blackbox_proxy.host.process import HostProcess
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.prices import Prices
from blackbox_proxy.protocols import Ask, Row, Session
from blackbox_proxy.screen.tables import Table
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.tuner import ProxyTuner, run
from blackbox_proxy.types import Generation, Position, Prefix, Prompt, Token, Usage

STREAMS = (1, 10, 1_000, 100_000)
_ALONE = 4  # texts that are decoded one at a time
_DRAFTING = Drafting(local=False)  # stream and cut: what is simulated


def run_simulate(
    console: Console, load: Load, near: Near, far: Far, prices: Prices, streams: Sequence[int] = STREAMS
) -> list[Simulated]:
    """Simulate and print one row for each number of streams."""
    loads = [replace(load, streams=count) for count in streams]
    found = [simulate(one, near, far) for one in loads]
    first = [binding(one, near, far, then) for one, then in zip(loads, found, strict=True)]
    console.print(scale_table(found, first, prices))
    mean = sum(load.runs) / len(load.runs)
    console.print(
        f"Texts of {load.tokens} tokens after prompts of {load.prompt_tokens}, {mean:.1f} tokens a request. near side, "
        "memory and limits: how much of each is in use. cost: of a million tokens of text, in the currency of the "
        "prices.",
        highlight=False,
        soft_wrap=True,
    )
    return found


def scale_table(found: Sequence[Simulated], first: Sequence[str | None], prices: Prices) -> Table:
    """One row for each number of streams; first: what holds each of them up."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    resources = list(found[0].busy)
    for title in ("streams", "tokens/s", "each", "requests/s", *resources, "cost"):
        table.add_column(title, justify="right")
    table.add_column("saturates first")
    for one, what in zip(found, first, strict=True):
        speed = one.tokens_per_second
        table.add_row(
            f"{one.streams:,}",
            f"{speed:,.1f}",
            f"{speed / one.streams:.3g}",
            f"{one.usage.api_calls / one.seconds:.1f}",
            *(f"{one.busy[name]:.0%}" for name in resources),
            f"{one.cost(prices):,.0f}" if one.tokens else "",
            what or "nothing",
        )
    return table


# -- beside a real run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """Texts at a time; tokens a second, what the server counted, and what is billed for a million tokens, as they were;
    and all of it as it was predicted.
    """

    streams: int
    real: float
    usage: Usage
    cost: float
    predicted: Simulated

    @property
    def off(self) -> float:
        """By what share of the real speed the prediction is off."""
        return self.predicted.tokens_per_second / self.real - 1.0


class _NotedPair(TransformersPair):
    """A pair that notes what its sessions are asked, text by text."""

    def __init__(self, expert: str, antiexpert: str) -> None:
        super().__init__(expert, antiexpert, device="cpu")
        self.noted: list[_Asked] = []

    def open(self, prompt: Prompt, base: Vocabulary | None) -> Session:
        self.noted.append(_Asked(prompt, base, []))
        return _NotedSession(super().open(prompt, base), self.noted[-1].calls)

    def again(self, texts: Sequence[_Asked]) -> tuple[float, list[tuple[int, float]]]:
        """Ask the same about these texts, all at a time and with nobody to wait for; seconds that it takes, and those
        of each draft beside its positions.
        """
        begin = time.perf_counter()
        with ThreadPoolExecutor(len(texts)) as pool:
            drafts = [draft for found in pool.map(self._again, texts) for draft in found]
        return time.perf_counter() - begin, drafts

    def _again(self, text: _Asked) -> list[tuple[int, float]]:
        session, rows, drafts = super().open(text.prompt, text.base), list[Row](), list[tuple[int, float]]()
        for call in text.calls:
            begin = time.perf_counter()
            if isinstance(call, _Score):
                rows = session.score(call.issued, call.positions)
                drafts.append((len(call.positions), time.perf_counter() - begin))
            else:
                session.refine([(rows[j], tokens) for j, tokens in call])
                drafts[-1] = (drafts[-1][0], drafts[-1][1] + time.perf_counter() - begin)
        session.close()
        return drafts


@dataclass(frozen=True, slots=True)
class _Score:
    issued: Sequence[Token]
    positions: Sequence[Position]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked about a text: what to score, and tokens by the places of their rows."""

    prompt: Prompt
    base: Vocabulary | None
    calls: list[_Score | list[tuple[int, Sequence[Token]]]]


class _NotedSession:
    def __init__(self, session: Session, calls: list[_Score | list[tuple[int, Sequence[Token]]]]) -> None:
        self._session, self._calls = session, calls
        self._places: dict[int, int] = {}

    def score(self, issued: Sequence[Token], positions: Sequence[Position]) -> list[Row]:
        rows = self._session.score(issued, positions)
        self._places = {id(row): j for j, row in enumerate(rows)}
        self._calls.append(_Score(tuple(issued), tuple(positions)))
        return rows

    def refine(self, wanted: Sequence[tuple[Row, Sequence[Token]]]) -> None:
        self._calls.append([(self._places[id(row)], tuple(tokens)) for row, tokens in wanted])
        self._session.refine(wanted)

    def read(self, issued: Sequence[Token]) -> None:
        self._session.read(issued)

    def close(self) -> None:
        self._session.close()


async def _alone(base: OpenAIBase, prompts: Sequence[str], max_tokens: int) -> Network:
    """The base alone, all of these texts at a time: mean seconds to a first token and to each further one."""

    async def one(prompt: str) -> tuple[float, float, int]:
        begin = time.perf_counter()
        first, last, count = 0.0, begin, 0
        async for part in base.stream(Ask(Prefix(prompt), max_tokens)):
            last = time.perf_counter()
            first, count = first or last - begin, count + len(part.positions)
        return first, last - begin - first, count

    found = await asyncio.gather(*(one(prompt) for prompt in prompts))
    further = max(sum(count - 1 for _, _, count in found), 1)
    return Network(sum(first for first, _, _ in found) / len(found), sum(rest for _, rest, _ in found) / further)


@dataclass(frozen=True, slots=True)
class Work:
    """Processor seconds of a request, and of each of its tokens."""

    of_request: float
    of_token: float


def work_of(one: float, all_tokens: float, tokens: float) -> Work:
    """The same, by what a request of one token takes, and one of so many."""
    of_token = max(all_tokens - one, 0.0) / max(tokens - 1.0, 1.0)
    return Work(max(one - of_token, 0.0), of_token)


def between(worked: float, near: float, usage: Usage, client: Work, positions: int) -> float:
    """Processor seconds of a position that are neither the pair's nor the client's, but of the arithmetic between them:
    by what one text at a time took in all, and the pair of it. usage: the requests, and tokens that came of them.
    """
    asked = usage.api_calls * client.of_request + usage.completion_tokens * client.of_token
    return max(worked - near - asked, 0.0) / positions


def _works(base: OpenAIBase, host: HostProcess, prompts: Sequence[str], max_tokens: int) -> tuple[Work, Work]:
    """What the base's process does for its streams, and what this one does, one stream at a time."""
    there, here, tokens = list[float](), list[float](), list[float]()
    for count in (1, max_tokens):
        before, begin = host.stats(), time.process_time()
        for prompt in prompts:
            run(_alone(base, [prompt], count))
        here.append((time.process_time() - begin) / len(prompts))
        after = host.stats()
        there.append((after["processor_ms"] - before["processor_ms"]) / 1e3 / len(prompts))
        tokens.append((after["completion_tokens"] - before["completion_tokens"]) / len(prompts))
    return work_of(there[0], there[1], tokens[1]), work_of(here[0], here[1], tokens[1])


def near_of(drafts: Sequence[tuple[int, float]], many: float, streams: int) -> Near:
    """A near side by what it takes for drafts of one text at a time, (positions, seconds), and for a draft of
    `streams` texts at a time, seconds.
    """
    counts, seconds = np.array(drafts, dtype=np.float64).T
    spread, alone, positions = counts - counts.mean(), float(seconds.mean()), float(counts.mean())
    slope = float((spread * seconds).sum() / max(float((spread**2).sum()), 1e-12))
    slope = min(max(slope, 0.0), alone / positions)
    if streams < 2:
        return Near(of_text=alone - slope * positions, of_position=slope)
    each = min(max((streams * many - alone) / (streams - 1), 0.0), alone)  # what a text more in a pass adds to it
    slope = min(slope, each / positions)
    return Near(of_pass=alone - each, of_text=each - slope * positions, of_position=slope, together=streams)


def _near(pair: _NotedPair, streams: int) -> tuple[Near, int, float]:
    """The same, measured on what the pair has noted; and its positions in all, and the seconds of this processor that
    they take one text at a time.
    """
    texts = [text for text in pair.noted if text.calls]
    begin = time.process_time()
    drafts = [draft for text in texts for draft in pair.again([text])[1]]
    worked = time.process_time() - begin
    seconds, several = pair.again([texts[i % len(texts)] for i in range(streams)])
    return near_of(drafts, seconds / len(several), streams), sum(count for count, _ in drafts), worked


def run_check(console: Console, setting: Setting, *, streams: int = 8, prices: Prices | None = None) -> list[Checked]:
    """Decode one text at a time, predict `streams` at a time from that, decode these, and print both."""
    told, max_tokens, network = setting.told(2 * streams), setting.max_tokens, setting.network
    with setting.host() as host, console.status(""):
        black_box = setting.black_box(host)
        pair = _NotedPair(setting.expert, setting.antiexpert)
        tuner = ProxyTuner(black_box, pair, draft=_DRAFTING)

        def timed(some: Sequence[str], at_a_time: int) -> tuple[list[Generation], float, Usage, float]:
            before, begin, worked = host.stats(), time.perf_counter(), time.process_time()
            texts = tuner.generate_batch(some, concurrency=at_a_time, max_tokens=max_tokens, temperature=0.0)
            seconds, worked, after = time.perf_counter() - begin, time.process_time() - worked, host.stats()
            counted = [after[name] - before[name] for name in ("requests", "prompt_tokens", "completion_tokens")]
            return texts, seconds, Usage(*counted), worked

        try:
            timed(told[-1:], 1)  # connections, caches that are made once
            pair.noted.clear()
            alone = timed(told[:_ALONE], 1)
            (near, positions, asked), runs = _near(pair, streams), runs_of(text.steps for text in alone[0])
            seen = run(_alone(black_box, told[:1], max_tokens))
            there, here = _works(black_box, host, told[:_ALONE], max_tokens)
            many = timed(told, streams)
        finally:
            run(black_box.aclose())
            pair.close()
    far = Far(network=seen, full=True, of_request=there.of_request, of_token=there.of_token)
    _, _, usage, worked = alone
    of_rest = between(worked, asked, usage, here, positions)
    of_position = near.of_position + here.of_token + of_rest
    ours = replace(near, of_position=of_position, of_request=here.of_request)
    found = []
    for (texts, seconds, usage, _), at_a_time in zip((alone, many), (1, streams), strict=True):
        tokens = sum(len(text.steps) for text in texts)
        # Each request shows the base the prompt and what stands there by then, half of the text on average.
        shown = usage.prompt_tokens / usage.api_calls - tokens / len(texts) / 2
        load = Load(
            streams=at_a_time,
            tokens=round(tokens / len(texts)),
            runs=runs,
            prompt_tokens=max(round(shown), 0),
            texts=len(texts),
        )
        predicted = simulate(load, ours, far)
        found.append(Checked(at_a_time, tokens / seconds, usage, (prices or Prices()).cost(usage) / tokens, predicted))
    console.print(_checked_table(found, network, prices or Prices()))
    console.print(
        f"A near side of {1e3 * near.of_pass:.1f} ms a pass, {1e3 * near.of_text:.1f} ms a text and "
        f"{1e3 * near.of_position:.1f} ms a position, measured by itself on the drafts of one text at a time; "
        f"{1e3 * of_rest:.1f} ms a position between it and the answers; "
        f"{sum(runs) / len(runs):.1f} tokens a request, as these had; a request takes {1e3 * there.of_request:.1f} ms "
        f"of the base's processor and {1e3 * here.of_request:.1f} ms of this one, a token {1e3 * there.of_token:.1f} "
        f"and {1e3 * here.of_token:.1f} ms. All else is predicted from that: at {streams} streams "
        f"{abs(found[-1].off):.0%} off.",
        highlight=False,
        soft_wrap=True,
    )
    return found


def _checked_table(found: Sequence[Checked], network: Network, prices: Prices) -> Table:
    titles = ("streams", "tokens/s", "predicted", "off", "requests", "predicted", "cost", "predicted")
    table = table_over(network, *titles)
    for one in found:
        then = one.predicted
        speeds = (f"{one.real:.1f}", f"{then.tokens_per_second:.1f}", f"{one.off:+.0%}")
        calls = (str(one.usage.api_calls), str(then.usage.api_calls))
        table.add_row(str(one.streams), *speeds, *calls, f"{one.cost:,.0f}", f"{then.cost(prices):,.0f}")
    return table
