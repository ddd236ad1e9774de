"""`blackbox-proxy bench` from end to end: the base over an emulated network, every way of asking, the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.bench.measure import RAW, WAYS, Measured, measure, measure_raw
from blackbox_proxy.bench.setting import Setting, table_over
from blackbox_proxy.errors import InputError
from blackbox_proxy.host.network import Network
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.prices import Prices
from blackbox_proxy.screen.tables import Table
from blackbox_proxy.text.reading import text_lines
from blackbox_proxy.tuner import ProxyTuner, run

_ONE_BY_ONE = "one at a time"


def run_bench(
    console: Console,
    setting: Setting,
    *,
    alpha: float = 1.0,
    temperature: float = 0.0,
    prices: Prices | None = None,
    ways: Sequence[str] = (),
) -> list[Measured]:
    """Everything that `blackbox-proxy bench` does; what it measured, the base alone first.

    ways: names from `WAYS`, all by default. Raises InputError, ModelUnavailable, BaseError; AssertionError if greedy
    texts differ between the ways, which would be a defect of this package.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise InputError(f"unknown way of asking: {unknown[0]!r}", hint=f"Known: {', '.join(WAYS)}.")
    prompts, network = setting.prompts, setting.network
    with setting.host() as host:
        pair = TransformersPair(setting.expert, setting.antiexpert, device="cpu")
        black_box = setting.black_box(host)
        try:
            with console.status("") as status:
                _warm(black_box, pair, prompts[0])
                status.update(RAW)
                found = [measure_raw(black_box, prompts, setting.max_tokens, host.stats)]
                for way in ways or WAYS:
                    status.update(way)
                    found.append(
                        measure(
                            way,
                            WAYS[way],
                            black_box,
                            pair,
                            prompts,
                            host.stats,
                            alpha=alpha,
                            max_tokens=setting.max_tokens,
                            temperature=temperature,
                        )
                    )
        finally:
            run(black_box.aclose())
    if temperature == 0.0:
        assert len({measured.texts for measured in found[1:]}) == 1, "the ways of asking led to different texts"
    console.print(table(found, network, prices or Prices()))
    console.print(summary(found, network), highlight=False, soft_wrap=True)
    return found


def _warm(base: OpenAIBase, pair: TransformersPair, prompt: str) -> None:
    """Connections, the alignment's caches, torch's first pass: paid before anything is measured."""
    ProxyTuner(base, pair, draft=4).generate(prompt, max_tokens=8)


def table(found: Sequence[Measured], network: Network, prices: Prices) -> Table:
    """One row for each way of asking; speed and cost relative to the base alone, time relative to the floor."""
    raw, floor = found[0], _floor(found, network)
    drawn = table_over(network, "", "calls", "disagree", "speed", "floor", "prompt", "output", "wasted", "cost")
    drawn.columns[0].justify, drawn.columns[0].no_wrap = "left", True
    for row in found:
        drawn.add_row(
            row.name,
            f"{row.calls_per_token:.3f}",
            "" if row is raw else f"{row.disagreement_rate:.1%}",
            f"{row.tokens_per_second / raw.tokens_per_second:.2f}",
            "" if row is raw else f"{row.seconds / floor:.2f}",
            str(row.prompt_tokens),
            str(row.output_tokens),
            str(row.wasted),
            f"{row.cost(prices) / row.tokens / (raw.cost(prices) / raw.tokens):.1f}",
        )
    return drawn


def _floor(found: Sequence[Measured], network: Network) -> float:
    """The floor of the base's own drafts: local ones can do with fewer requests."""
    return max((row.floor(network) for row in found[1:]), default=found[0].floor(network))


def summary(found: Sequence[Measured], network: Network) -> str:
    """How to read the table, and what follows from it. Only of ways that were measured."""
    raw, floor = found[0], _floor(found, network)
    tokens = found[1].tokens if len(found) > 1 else raw.tokens
    lines = [
        f"{len(raw.texts)} texts, {tokens} tokens. calls: requests per token, counted by the server. disagree: tokens "
        "that stood in no draft. speed: tokens per second, the base alone = 1. floor: time over that of 1 + "
        f"disagreements requests and a network alone ({floor:.2f} s). prompt, output: tokens billed; wasted: output "
        "that is in no text. cost: per token, the base alone = 1."
    ]
    if len(found) > 2 and len({row.texts for row in found[1:]}) == 1:
        lines.append("All ways of asking led to the same texts, byte for byte.")
    known = {row.name: row for row in found}
    if _ONE_BY_ONE in known:
        slow = known[_ONE_BY_ONE]
        lines += [
            f"{row.name}: {row.tokens_per_second / slow.tokens_per_second:.1f} times the tokens per second of "
            f"{_ONE_BY_ONE}"
            for row in found
            if row.name not in (RAW, _ONE_BY_ONE)
        ]
    return "\n".join(lines)


def read_prompts(file: Path) -> list[str]:
    """One prompt a line; "\\n" in a line stands for a line break. Raises InputError."""
    prompts = text_lines(file, "the prompts")
    if not prompts:
        raise InputError(f"there are no prompts in {file}", hint="One prompt a line.")
    return prompts
