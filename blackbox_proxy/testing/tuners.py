"""The laws of a tuner, whatever base and pair it is made of, and `check_tuner`, which puts them to one."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blackbox_proxy.base.cache.base import CachedBase
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.testing.laws import How, expect, put
from blackbox_proxy.tuner import ProxyTuner, run
from blackbox_proxy.types import Draft, Generation, Prefix, Prompt, joined

Make = Callable[..., ProxyTuner]
TunerLaw = Callable[[Make, Prompt, How], bool]


def check_tuner(
    make_tuner: Make, prompts: Sequence[Prompt], *, laws: Sequence[TunerLaw] | None = None, **how: Any
) -> tuple[str, ...]:
    """Put the laws of a tuner (all of `TUNER_LAWS`) to what `make_tuner(alpha=…, draft=…)` makes; `how`: see `How`.

        check_tuner(lambda **options: ProxyTuner(MyBase(), my_pair, **options), ["Once upon a time"])

    Greedy texts of `How.tokens` tokens, with one pair. Returns the names of the laws that could be put to it. Raises
    AssertionError, and what the tuner itself raises. Tuners are not closed: they may share their pair.
    """
    return put(
        TUNER_LAWS if laws is None else laws, prompts, lambda law, at: law(make_tuner, at, How(**how)), "the tuner"
    )


def alpha_zero_is_the_base(make: Make, prompt: Prompt, how: How) -> bool:
    """At alpha = 0 the text is the base's own, byte for byte, and no step is changed."""
    tuner = make(alpha=0.0)
    generation = tuner.generate(prompt, max_tokens=how.tokens)
    draft = run(make().base.draft(Ask(Prefix(prompt), how.tokens)))
    own = b"".join(position.token.bytes or b"" for position in draft.positions if not position.token.end)
    came = _bytes(generation)
    expect(came.startswith(own), own, came, "the text")
    expect(not any(step.changed for step in generation.steps), "no step changed", generation.steps, "the text")
    return True


def the_text_is_the_same_for_every_way_of_asking(make: Make, prompt: Prompt, how: How) -> bool:
    """A greedy text is the same bytes for every draft length, streamed, in a batch and again."""
    plain = make(draft=1).generate(prompt, max_tokens=how.tokens)
    ways = {f"draft={n}": make(draft=n).generate(prompt, max_tokens=how.tokens) for n in (2, 5, how.tokens)}
    tuner = make()
    ways["again"] = tuner.generate(prompt, max_tokens=how.tokens)
    for place, each in enumerate(tuner.generate_batch([prompt, prompt], max_tokens=how.tokens)):
        ways[f"batch {place}"] = each
    for way, generation in ways.items():
        expect(_bytes(generation) == _bytes(plain), _bytes(plain), _bytes(generation), way)
        same = generation.finish_reason == plain.finish_reason
        expect(same, plain.finish_reason, generation.finish_reason, f"the finish of {way}")
    streamed = "".join(step.text for step in tuner.stream(prompt, max_tokens=how.tokens))
    expect(streamed == plain.text, repr(plain.text), repr(streamed), "stream()")
    return True


def every_step_keeps_the_equation(make: Make, prompt: Prompt, how: How) -> bool:
    """At every step log p - log q - alpha (log E - log A) is one constant for all candidates of which the pair knows
    something, p adds up to at most 1, and the token chosen is the likeliest under p.
    """
    alpha = 0.7
    for step in make(alpha=alpha).generate(prompt, max_tokens=how.tokens).steps:
        c = step.candidates
        if not len(c):
            continue
        known = np.isfinite(c.log_expert) & np.isfinite(c.log_antiexpert)
        rest = c.log_p[known] - c.log_q[known] - alpha * (c.log_expert[known] - c.log_antiexpert[known])
        spread = float(np.ptp(rest)) if len(rest) else 0.0
        expect(spread <= 1e-5, "one constant, log Z", rest, "the equation")
        total = float(np.exp(c.log_p).sum())
        expect(total <= 1.0 + 1e-6, "a sum of at most 1", total, "p")
        best = {token.bytes for token, p in zip(c.tokens, c.log_p, strict=True) if p >= c.log_p[0] - how.tolerance}
        expect(step.end or step.token in best, f"one of {best}", step.token, "the choice")
    return True


def text_is_what_its_tokens_spell(make: Make, prompt: Prompt, how: How) -> bool:
    """The text is the bytes of its tokens; no replacement character was made up, and every p is a number."""
    generation = make().generate(prompt, max_tokens=how.tokens)
    spelled = _bytes(generation)
    expect(generation.text == spelled.decode("utf-8", "ignore"), repr(spelled), repr(generation.text), "the text")
    for step in generation.steps:
        expect(np.isfinite(step.candidates.log_p).all(), "finite log p", step.candidates.log_p, "the candidates")
    spent = sum(step.usage.api_calls for step in generation.steps)
    expect(spent == generation.usage.api_calls, f"{spent} calls", generation.usage, "the usage of all steps")
    return True


def calls_are_one_more_than_disagreements(make: Make, prompt: Prompt, how: How) -> bool:
    """With drafts as long as the text there is one call, and one more for each token that is not the draft's, and for
    each draft that the base itself broke off.
    """
    tuner = make(draft=how.tokens)
    tuner.base = counting = _Counting(tuner.base, how.tokens)
    generation = tuner.generate(prompt, max_tokens=how.tokens)
    replaced = sum(not step.drafted for step in generation.steps)
    calls, most = generation.usage.api_calls, 1 + replaced + counting.broken_off
    expect(calls <= most, f"at most {most} calls", f"{calls} calls", f"{len(generation.steps)} tokens")
    return True


def a_warm_cache_asks_for_nothing(make: Make, prompt: Prompt, how: How) -> bool:
    """Around the base, a cache gives the same text, and the second time with no call. Needs an identity of the base."""
    plain = make().generate(prompt, max_tokens=how.tokens)
    with tempfile.TemporaryDirectory() as folder:
        for calls in (None, 0):
            tuner = make()
            if tuner.base.identity is None:
                return False
            tuner.base = cached = CachedBase(tuner.base, Path(folder) / "cache.sqlite")
            generation = tuner.generate(prompt, max_tokens=how.tokens)
            run(cached.aclose())
            where = "the first time" if calls is None else "the second time"
            expect(_bytes(generation) == _bytes(plain), _bytes(plain), _bytes(generation), where)
            expect(calls in (None, generation.usage.api_calls), "no call", generation.usage, where)
    return True


def _bytes(generation: Generation) -> bytes:
    return b"".join(step.token for step in generation.steps)


class _Counting(BaseAround):
    """Counts the drafts that were shorter than asked for, though the text went on."""

    def __init__(self, base: Base, n: int) -> None:
        super().__init__(base)
        self.n = n
        self.broken_off = 0

    async def draft(self, ask: Ask) -> Draft:
        draft = await self.base.draft(ask)
        self.broken_off += not draft.ended and len(draft.positions) - draft.given < ask.n
        return draft

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        parts = [part async for part in self.base.stream(ask)]
        self.broken_off += not joined(parts).ended and sum(len(p.positions) for p in parts) < ask.n
        for part in parts:
            yield part


TUNER_LAWS: tuple[TunerLaw, ...] = (
    alpha_zero_is_the_base,
    the_text_is_the_same_for_every_way_of_asking,
    every_step_keeps_the_equation,
    text_is_what_its_tokens_spell,
    calls_are_one_more_than_disagreements,
    a_warm_cache_asks_for_nothing,
)
