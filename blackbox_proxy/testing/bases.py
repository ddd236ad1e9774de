"""The laws of a base, and `check_base`, which puts them to one."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from blackbox_proxy.errors import InputError
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.testing.laws import How, broken, expect
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Position, Prefix, Prompt, Token, Usage, joined

Fresh = Callable[[], AbstractAsyncContextManager[Base]]
BaseLaw = Callable[[Fresh, Prompt, How], Awaitable[bool]]

_MISSING = -9999.0  # APIs write this, or less, where they give no probability
_ROUNDED = 0.01  # the shown probabilities may add up to so much more than 1


def check_base(
    make_base: Callable[[], Base], prompts: Sequence[Prompt], *, laws: Sequence[BaseLaw] | None = None, **how: Any
) -> tuple[str, ...]:
    """Put the laws of a base (all of `BASE_LAWS`) to what `make_base` makes, at each prompt; `how`: see `How`.

    Returns the names of the laws that could be put to it. Raises AssertionError, and what the base itself raises.
    """
    return run(acheck_base(make_base, prompts, laws=laws, **how))


async def acheck_base(
    make_base: Callable[[], Base], prompts: Sequence[Prompt], *, laws: Sequence[BaseLaw] | None = None, **how: Any
) -> tuple[str, ...]:
    """`check_base` for callers with a loop."""

    @asynccontextmanager
    async def fresh() -> AsyncIterator[Base]:
        base = make_base()
        try:
            yield base
        finally:
            await base.aclose()

    kept = []
    for law in BASE_LAWS if laws is None else laws:
        applied = False
        for prompt in prompts:
            try:
                applied = await law(fresh, prompt, How(**how)) or applied
            except AssertionError as error:
                raise broken(law, "the base", prompt, error) from None
        if applied:
            kept.append(law.__name__)
    return tuple(kept)


async def it_is_a_base(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """A base has everything that the protocol names, takes this prompt, and refuses a text longer than its window."""
    async with fresh() as base:
        expect(isinstance(base, Base), "everything that `Base` names", type(base).__name__, "the protocol")
        base.check(prompt, how.tokens)
        if base.context is not None:
            try:
                base.check(prompt, base.context + 1)
            except InputError:
                return True
            expect(False, "InputError", "nothing", f"{base.context + 1} tokens to follow in a window of {base.context}")
    return True


async def positions_show_what_is_there(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """Each position shows distinct candidates, likeliest first, with finite log probabilities of at most 1 together;
    no "missing" number stands for one, and no replacement character for bytes.
    """
    async with fresh() as base:
        draft = await base.draft(Ask(Prefix(prompt), how.tokens))
        vocabulary = base.vocabulary
    counted = 0 if draft.ended else 1
    expect(counted <= len(draft.positions) <= how.tokens, f"{counted} to {how.tokens} positions", draft, "the draft")
    for place, position in enumerate(draft.positions):
        where, q = f"position {place}", position.logprobs
        keys = [token.key for token in position.tokens if not token.end]
        expect(len(set(keys)) == len(keys), "candidates that differ", keys, where)
        expect(np.isfinite(q).all() and (q > _MISSING).all(), "log probabilities", q, where)
        expect((np.diff(q) <= how.tolerance).all(), "the likeliest first", q, where)
        expect(np.exp(q).sum() <= 1.0 + _ROUNDED, "a mass of at most 1", np.exp(q).sum(), where)
        for token in position.tokens[:100]:
            expect(_spelled(token, vocabulary), "the bytes of its id, no replacement character", token, where)
        last = place == len(draft.positions) - 1
        expect(last or not position.token.end, "nothing after the end of the text", position.token, where)
    return True


def _spelled(token: Token, vocabulary: Vocabulary | None) -> bool:
    if token.end or token.bytes is None:
        return True
    if vocabulary is not None and token.id is not None:
        return 0 <= token.id < len(vocabulary) and (vocabulary.spelling[token.id] or b"") == token.bytes
    return token.bytes != "\ufffd".encode()


async def a_greedy_draft_takes_the_likeliest(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """At temperature 0 the token written is the likeliest candidate, and has that candidate's probability."""
    async with fresh() as base:
        draft = await base.draft(Ask(Prefix(prompt), how.tokens))
    for place, position in enumerate(draft.positions):
        shown = _columns(position)
        if shown and not position.token.end:
            best = max(shown.values())
            came = shown.get(position.token.key, -math.inf)
            expect(came >= best - how.tolerance, f"the likeliest of {shown}", position.token, f"position {place}")
            told = position.logprob
            same = told is None or abs(told - came) <= how.tolerance
            expect(same, f"log q = {came} of the token written", told, f"position {place}")
    return True


def _columns(position: Position) -> dict[tuple[str, object], float]:
    return {token.key: float(q) for token, q in zip(position.tokens, position.logprobs, strict=True)}


def _same(expected: Position, came: Position, how: How, where: str) -> bool:
    """Hold two positions to each other; False where they part at a tie, so that nothing after them is alike."""
    one, other = _columns(expected), _columns(came)
    least = max(min(one.values(), default=0.0), min(other.values(), default=0.0))
    for key in one.keys() | other.keys():
        a, b = one.get(key, least), other.get(key, least)
        expect(abs(a - b) <= how.tolerance or max(a, b) <= least + how.tolerance, f"log q = {a} of {key}", b, where)
    key, other_key = expected.token.key, came.token.key
    if key == other_key:
        return True
    tie = key in one and other_key in one and abs(one[key] - one[other_key]) <= how.tolerance
    expect(tie, f"the token {expected.token}", came.token, where)
    return False


def _same_positions(expected: Sequence[Position], came: Sequence[Position], how: How, where: str) -> None:
    for place, (a, b) in enumerate(zip(expected, came, strict=False)):
        if not _same(a, b, how, f"position {place} {where}"):
            return
    expect(len(expected) == len(came), f"{len(expected)} positions", f"{len(came)} positions", where)


async def a_draft_of_n_is_n_drafts_of_one(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """A greedy draft of n tokens shows what n drafts of one token show, one after the other."""
    async with fresh() as base:
        whole = await base.draft(Ask(Prefix(prompt), how.tokens))
    async with fresh() as base:
        prefix = Prefix(prompt)
        for place, position in enumerate(whole.positions):
            if base.can_continue(prefix):
                single = await base.draft(Ask(prefix, 1))
                where = f"position {place} asked for alone"
                expect(len(single.positions) == 1, "one position", single, where)
                if not _same(position, single.positions[0], how, where):
                    return True
            prefix = prefix.plus(position.token)
    return True


async def asking_again_gives_the_same(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """A greedy draft is the same when it is asked for again, and when several are asked for at the same time."""
    ask = Ask(Prefix(prompt), how.tokens)
    async with fresh() as base:
        alone = await base.draft(ask)
        for again in await asyncio.gather(base.draft(ask), base.draft(replace(ask, n=1)), base.draft(ask)):
            _same_positions(alone.positions[: len(again.positions)], again.positions, how, "asked for again")
    return True


async def a_stream_is_the_draft_in_parts(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """The parts of a stream joined are the draft: positions, finish and usage; the first part counts the request."""
    ask = Ask(Prefix(prompt), how.tokens)
    async with fresh() as base:
        whole = await base.draft(ask)
    async with fresh() as base:
        streams = base.abilities.streams
        parts = [part async for part in base.stream(ask)]
    expect(parts and (streams or len(parts) == 1), "at least one part, one where nothing streams", parts, "the stream")
    came = joined(parts)
    _same_positions(whole.positions, came.positions, how, "streamed")
    if [position.token for position in whole.positions] == [position.token for position in came.positions]:
        expect(came.finish == whole.finish, f"finish {whole.finish!r}", repr(came.finish), "the last part")
        spent = came.usage
        if came.cut:  # it was closed before the rest was written, and before the base could count the prompt
            counted = whole.usage.prompt_tokens, whole.usage.completion_tokens
            spent = replace(spent, prompt_tokens=counted[0], completion_tokens=counted[1])
        expect(_spent(spent) == _spent(whole.usage), whole.usage, came.usage, "the usage of all parts")
    asked = parts[0].usage.api_calls + parts[0].usage.cached_positions
    expect(asked >= 1 or not came.positions, "the request in its usage", parts[0].usage, "the first part")
    return True


def _spent(usage: Usage) -> tuple[int, ...]:
    return (usage.api_calls, usage.prompt_tokens, usage.completion_tokens, usage.cached_positions)


async def usage_counts_what_was_written(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """A draft counts one call and at least the tokens that it shows as its own, or positions from a cache."""
    async with fresh() as base:
        draft = await base.draft(Ask(Prefix(prompt), how.tokens))
    usage, own = draft.usage, len(draft.positions) - draft.given
    expect(usage.api_calls + usage.cached_positions >= 1, "a call, or cached positions", usage, "the usage")
    written = usage.completion_tokens + usage.cached_positions
    expect(written >= own and usage.prompt_tokens >= 0, f"at least {own} tokens", usage, "the usage")
    return True


async def a_closed_stream_leaves_the_base_as_it_was(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """After a stream is closed in the middle, its first part is the draft's beginning, and the base answers as ever."""
    ask = Ask(Prefix(prompt), how.tokens)
    async with fresh() as base:
        async with aclosing(base.stream(ask)) as parts:
            first = await anext(parts)
        whole = await base.draft(ask)
        # a base that remembers may answer with what had arrived: as far as both reach
        reach = min(len(first.positions), len(whole.positions))
        expect(reach or whole.ended, "at least one position", whole, "the draft after it")
        _same_positions(whole.positions[:reach], first.positions[:reach], how, "of the closed stream")
    return True


async def given_text_is_scored_as_if_it_had_been_written(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """Where given text is scored: a draft begins with a position for each given token, with the candidates that the
    base shows when it is asked there, and goes on after the last.
    """
    async with fresh() as base:
        if not base.abilities.scores:
            return False
        first = (await base.draft(Ask(Prefix(prompt), 1))).positions
        others = [t for p in first for t in p.tokens[:20] if t.bytes and not t.end and t.key != p.token.key]
        other = next((t for t in others if base.can_continue(Prefix(prompt, (t,)))), None)
        if other is None:
            return False
        after = await base.draft(Ask(Prefix(prompt, (other,)), 2))
        if len(after.positions) < 2 or not base.can_continue(Prefix(prompt, (other, after.positions[0].token))):
            return False
    given = (other, after.positions[0].token)
    async with fresh() as base:
        draft = await base.draft(Ask(Prefix(prompt), 1, given=given))
    wanted = [replace(first[0], token=other), *after.positions]
    expect(draft.given in (0, 1, 2), "at most the given positions", draft.given, "given")
    whole = draft.given == len(given)
    expect(
        whole or len(draft.positions) == draft.given, "nothing after a given token that was not read", draft, "given"
    )
    _same_positions(wanted[: len(draft.positions)], draft.positions, how, "of given text")
    return draft.given > 0


async def named_tokens_have_the_probabilities_shown(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """Where tokens can be named: log q of a named token is what the base shows of it, in whatever order they are."""
    async with fresh() as base:
        count = min(base.abilities.reveals, 5)
        positions = (await base.draft(Ask(Prefix(prompt), 1))).positions
        if count < 1 or not positions:
            return False
        shown = [(t, float(q)) for t, q in zip(positions[0].tokens[:count], positions[0].logprobs, strict=False)]
        tokens = [token for token, _ in shown if not token.end]
        told = (await base.reveal(Prefix(prompt), tokens)).logprobs
        back = (await base.reveal(Prefix(prompt), tokens[::-1])).logprobs[::-1]
    expect(len(told) == len(tokens), f"{len(tokens)} numbers", told, "named tokens")
    expect(np.array_equal(told, back, equal_nan=True), f"{told} in any order", back, "named tokens")
    for token, a, b in zip(tokens, (q for t, q in shown if not t.end), told.tolist(), strict=True):
        expect(math.isnan(b) or abs(a - b) <= how.tolerance, f"log q = {a} of {token}", b, "named tokens")
    return bool(np.isfinite(told).any())


async def a_bias_bends_the_choice(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """Where a bias is taken: none leaves the likeliest token, and 60 nats on another candidate make it the choice."""
    async with fresh() as base:
        positions = (await base.draft(Ask(Prefix(prompt), 1))).positions
        others = [t for p in positions for t in p.tokens[1:5] if t.id is not None and t.bytes and not t.end]
        if base.abilities.biases < 1 or not others:
            return False
        for bias, wanted in (({}, positions[0].token), ({others[0]: 60.0}, others[0])):
            draft = await base.steer(Prefix(prompt), bias)
            expect([p.token.key for p in draft.positions] == [wanted.key], wanted, draft.positions, f"a bias of {bias}")
    return True


async def room_shrinks_by_one_a_token(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """Where the window is known, each issued token takes one place of it."""
    async with fresh() as base:
        positions = (await base.draft(Ask(Prefix(prompt), 1))).positions
        room = base.room(Prefix(prompt))
        if room is None or not positions:
            return False
        after = base.room(Prefix(prompt, (positions[0].token,)))
    expect(after == max(0, room - 1), f"room for {room - 1} tokens", after, "after one token")
    return True


async def its_identity_is_what_it_answers(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """Two bases made alike have the same identity, which can be written as JSON."""
    async with fresh() as one, fresh() as other:
        if one.identity is None:
            return False
        a, b = (json.dumps(base.identity, sort_keys=True) for base in (one, other))
    expect(a == b, a, b, "the identity")
    return True


async def draws_follow_what_is_shown(fresh: Fresh, prompt: Prompt, how: How) -> bool:
    """Where `draws` is claimed and `How.draws` asks: tokens drawn at temperature 1 come as often as q says."""
    async with fresh() as base:
        if not (how.draws and base.abilities.draws):
            return False
        counts: dict[tuple[str, object], int] = {}
        for seed in range(how.draws):
            (position,) = (await base.draft(Ask(Prefix(prompt), 1, temperature=1.0, seed=seed))).positions
            counts[position.token.key] = counts.get(position.token.key, 0) + 1
    for key, q in _columns(position).items():
        share, came = math.exp(q), counts.get(key, 0) / how.draws
        spread = math.sqrt(share * (1.0 - share) / how.draws)
        expect(abs(came - share) <= 5.0 * spread + 2.0 / how.draws, f"a share of {share:.3f} of {key}", came, "draws")
    return True


BASE_LAWS: tuple[BaseLaw, ...] = (
    it_is_a_base,
    positions_show_what_is_there,
    a_greedy_draft_takes_the_likeliest,
    a_draft_of_n_is_n_drafts_of_one,
    asking_again_gives_the_same,
    a_stream_is_the_draft_in_parts,
    usage_counts_what_was_written,
    a_closed_stream_leaves_the_base_as_it_was,
    given_text_is_scored_as_if_it_had_been_written,
    named_tokens_have_the_probabilities_shown,
    a_bias_bends_the_choice,
    room_shrinks_by_one_a_token,
    its_identity_is_what_it_answers,
    draws_follow_what_is_shown,
)
