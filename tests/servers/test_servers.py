"""The whole of proxy-tuning over real servers: pytest -m servers (install.py installs them).

What is expected is what the same weights say through this project's own `host`, position by position: wherever a
server's log probabilities agree with those to 1e-4, so must the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from servers.launch import Served

from blackbox_proxy import ProxyTuner, TransformersPair
from blackbox_proxy.base.local import TransformersBase
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.dialects.table import DIALECTS
from blackbox_proxy.errors import BadRequest, CannotContinue, ContextTooLong, InputError, ModelNotFound
from blackbox_proxy.protocols import Ask
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Generation, Prefix, Prompt, Step

pytestmark = pytest.mark.servers

PROMPTS = ["The mayor of New York", "In Zürich the café", "東京は", "def area(r):\n    return", "20 of 2000"]
TALKS: list[Prompt] = [
    [{"role": "user", "content": "Who opened the café?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "東京?"}],
    [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "20 of"}],
    [{"role": "user", "content": "New York, New Haven and Newark"}],
    [{"role": "user", "content": "Whether it rains"}],
]
K = 20  # candidates; vLLM's own limit
AGREE = 1e-4  # nats
Open = Callable[..., OpenAIBase]
Pairs = Callable[[str], TransformersPair]


def shown(step: Step) -> list[tuple[bytes | None, float]]:
    """The base's candidates of a step as they are spelled, ends by name; tokens of unknown bytes last."""
    found = [(b"</end>" if c.token.end else c.token.bytes, c.log_q) for c in step.candidates if not c.tail]
    return sorted(found, key=lambda item: (item[0] is None, item[0] or b"", item[1]))


def agree(there: Step, here: Step) -> bool:
    ours, theirs = shown(here), shown(there)
    return [spelling for spelling, _ in ours] == [spelling for spelling, _ in theirs] and bool(
        np.allclose([q for _, q in ours], [q for _, q in theirs], rtol=0.0, atol=AGREE)
    )


class Tally:
    """How many positions of how many were comparable, over several texts."""

    def __init__(self) -> None:
        self.positions = self.agreeing = self.changed = 0

    def add(self, there: Generation, here: Generation) -> None:
        """Wherever the log probabilities agree, the token must; behind a place where neither does nothing can."""
        for i, (their, our) in enumerate(zip(there.steps, here.steps, strict=False)):
            self.positions += 1
            self.agreeing += agree(their, our)
            self.changed += our.changed
            same = (their.token, their.end) == (our.token, our.end)
            if agree(their, our):
                assert same, (i, their.token, our.token, shown(their)[:3], shown(our)[:3])
            elif not same:
                return
        assert (there.text, there.finish_reason) == (here.text, here.finish_reason)

    @property
    def share(self) -> float:
        return self.agreeing / self.positions


WAYS: dict[str, dict[str, Any]] = {
    "ids": {"tokenizer": True, "prefix": "ids"},
    "text": {"tokenizer": True, "prefix": "text"},
    "text, tokenizer unknown": {"tokenizer": False, "prefix": "text"},
    "chat": {"tokenizer": True, "api": "chat"},
    "chat, tokenizer unknown": {"tokenizer": False, "api": "chat"},
}


def opened(open_it: Open, kind: str, way: str, toys: dict[str, str], k: int = K) -> OpenAIBase:
    options = dict(WAYS[way])
    dialect = DIALECTS[kind]
    if "prefix" in options:
        wanted = options.pop("prefix")
        if wanted == "ids" and kind not in ("host",) and dialect.prefix != "ids":
            pytest.skip(f"{kind} takes no token ids")
        dialect = replace(dialect, prefix=wanted)
    if options.get("api") == "chat" and dialect.prefill is None:
        pytest.skip(f"the chat of {kind} cannot continue an answer")
    tokenizer = toys["base"] if options.pop("tokenizer") else None
    return open_it(dialect=dialect, tokenizer=tokenizer, top_logprobs=k, **options)


@pytest.mark.parametrize("kind", ["same", "digits"])
@pytest.mark.parametrize("way", list(WAYS))
def test_the_text_is_the_one_over_host(
    way: str, kind: str, served: Served, far: Open, near: Open, toys: dict[str, str], toy_pairs: Pairs
) -> None:
    there = opened(far, served.kind, way, toys)
    here = opened(near, "host", way, toys, there.settings.kept)
    tally = Tally()
    for prompt in TALKS if "chat" in way else PROMPTS:
        theirs = ProxyTuner(there, toy_pairs(kind)).generate(prompt, max_tokens=16)
        ours = ProxyTuner(here, toy_pairs(kind)).generate(prompt, max_tokens=16)
        tally.add(theirs, ours)
    print(f"{served.kind}, {way}, pair {kind}: {tally.agreeing} of {tally.positions} positions agree to {AGREE:g}")
    assert tally.positions > 10
    assert tally.changed > 2
    # Where a server tells tokens by their text only, those that are printed alike are one candidate to it.
    assert tally.share > (0.9 if WAYS[way]["tokenizer"] and served.kind != "llama-cpp-python" else 0.2)


@pytest.mark.parametrize("draft", [1, 3, 8])
def test_drafts_do_not_change_the_text(
    draft: int, served: Served, far: Open, toys: dict[str, str], toy_pairs: Pairs
) -> None:
    base = far(tokenizer=toys["base"], top_logprobs=K)
    if not base.settings.dialect.tells_parts:
        pytest.skip(f"{served.kind} writes a token that ends inside a character as if it were another")
    for prompt in PROMPTS:
        expected = ProxyTuner(base, toy_pairs("same")).generate(prompt, max_tokens=16)
        found = ProxyTuner(base, toy_pairs("same"), draft=draft).generate(prompt, max_tokens=16)
        assert found.text == expected.text


def test_streamed_steps_are_those_of_the_whole(
    served: Served, far: Open, toys: dict[str, str], toy_pairs: Pairs
) -> None:
    tuner = ProxyTuner(far(tokenizer=toys["base"], top_logprobs=K), toy_pairs("digits"))
    for prompt in PROMPTS[:3]:
        whole = tuner.generate(prompt, max_tokens=16)
        assert "".join(step.text for step in tuner.stream(prompt, max_tokens=16)) == whole.text


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prefix_continues_its_own_draft(streamed: bool, served: Served, far: Open, toys: dict[str, str]) -> None:
    """Issued back one by one, a draft's tokens lead to the rest of it: temperature 0 is the argmax here."""
    base = far(tokenizer=toys["base"], top_logprobs=5)

    async def draft(prefix: Prefix, n: int) -> list[Any]:
        if not streamed:
            return list((await base.draft(Ask(prefix, n))).positions)
        return [position async for part in base.stream(Ask(prefix, n)) for position in part.positions]

    for prompt in PROMPTS:
        whole = run(draft(Prefix(prompt), 8))
        tokens = [position.token for position in whole]
        for cut in range(1, len(tokens)):
            prefix = Prefix(prompt, tuple(tokens[:cut]))
            if base.can_continue(prefix):
                rest = run(draft(prefix, len(tokens) - cut))
                assert rest
                assert [position.token for position in rest] == tokens[cut:][: len(rest)]
        for position in whole:
            assert position.token in position.tokens
            assert position.logprob == pytest.approx(float(position.logprobs.max()), abs=1e-6)


def test_given_text_is_scored(served: Served, far: Open, toys: dict[str, str]) -> None:
    base = far(tokenizer=toys["base"], top_logprobs=5)
    if not base.abilities.scores:
        pytest.skip(f"{served.kind} does not score given text")
    local = TransformersBase(toys["base"], top_logprobs=5, device="cpu")
    assert base.vocabulary is not None
    given = [base.vocabulary.token_of(i) for i in base.vocabulary.encode([b" of the New York"])[0]]
    for prompt in ["The mayor", "20 of"]:
        theirs = run(base.draft(Ask(Prefix(prompt), 3, given=given)))
        ours = run(local.draft(Ask(Prefix(prompt), 3, given=given)))
        assert theirs.given == ours.given == len(given)
        for there, here in zip(theirs.positions, ours.positions, strict=DIALECTS[served.kind].shows_end):
            assert there.token.bytes == here.token.bytes
            assert there.logprobs == pytest.approx(here.logprobs, abs=1e-3)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_drafts_are_drawn_from_what_is_shown(api: str, served: Served, far: Open, toys: dict[str, str]) -> None:
    """Where the dialect claims it: the share of each of the likeliest tokens among many draws is its probability."""
    base = far(api=api, tokenizer=toys["base"], top_logprobs=K)
    if not base.abilities.draws:
        pytest.skip(f"what {served.kind} draws is not claimed to be what it shows")
    draws, counts, rest = 400, dict[Any, int](), 0
    first = run(base.draft(Ask(Prefix("Whether"), 1))).positions[0]
    for seed in range(draws):
        (position,) = run(base.draft(Ask(Prefix("Whether"), 1, temperature=1.0, seed=seed))).positions
        if position.token.key in {token.key for token in first.tokens}:
            counts[position.token.key] = counts.get(position.token.key, 0) + 1
        else:
            rest += 1
    expected = draws * np.exp(first.logprobs)
    observed = np.array([counts.get(token.key, 0) for token in first.tokens])
    squares = (observed - expected) ** 2 / expected
    left = draws - expected.sum()
    statistic = squares.sum() + (rest - left) ** 2 / left
    assert statistic < K + 5 * np.sqrt(2 * K), (statistic, observed.tolist(), expected.round(1).tolist(), rest, left)


def test_what_is_refused_has_its_own_error(served: Served, far: Open, toys: dict[str, str]) -> None:
    base = far(tokenizer=toys["base"], top_logprobs=3)
    with pytest.raises(ContextTooLong):
        run(base.draft(Ask(Prefix("New York " * 400), 4)))
    if served.kind != "vllm":
        return
    with pytest.raises(BadRequest, match="21"):
        run(far(top_logprobs=21).draft(Ask(Prefix("New"), 1)))
    lowered = far()
    run(lowered.draft(Ask(Prefix("New"), 1)))
    assert lowered.settings.top_logprobs == 20


def test_a_wrong_name_is_not_found_or_not_minded(served: Served, far: Open) -> None:
    from blackbox_proxy import open_base

    base = open_base("another", base_url=served.base_url, dialect=served.kind, top_logprobs=3, max_attempts=1)
    try:
        if served.kind == "vllm":
            with pytest.raises(ModelNotFound):
                run(base.draft(Ask(Prefix("New"), 1)))
        else:
            assert run(base.draft(Ask(Prefix("New"), 1))).positions
    finally:
        run(base.aclose())


def test_a_chat_that_cannot_continue_says_so(served: Served, far: Open, toy_pairs: Pairs) -> None:
    base = far(api="chat", top_logprobs=5)
    tuner = ProxyTuner(base, toy_pairs("same"))
    if DIALECTS[served.kind].prefill is None:
        with pytest.raises(CannotContinue):
            tuner.generate(TALKS[0], max_tokens=4)
    assert tuner.generate(TALKS[0], max_tokens=1).steps


# -- choose and score -------------------------------------------------------------------------------------------------

ANSWERS = ["line", " 20", "Ha", "ing"]


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("missing", ["backoff", "exclude", "ask"])
def test_choose(
    missing: str, api: str, served: Served, far: Open, near: Open, toys: dict[str, str], toy_pairs: Pairs
) -> None:
    there = far(api=api, tokenizer=toys["base"], top_logprobs=K)
    here = near(api=api, tokenizer=toys["base"], top_logprobs=there.settings.kept)
    if missing == "ask" and 0 in (there.abilities.reveals, here.abilities.reveals):
        pytest.skip(f"the {api} API of {served.kind} tells nothing about tokens it does not show")
    prompt: Prompt = "20 of 2000" if api == "completions" else TALKS[3]
    theirs = ProxyTuner(there, toy_pairs("digits")).choose(prompt, ANSWERS, missing=missing, forms=False)
    ours = ProxyTuner(here, toy_pairs("digits")).choose(prompt, ANSWERS, missing=missing, forms=False)
    assert (theirs.best, theirs.missing, theirs.how, theirs.by) == (ours.best, ours.missing, ours.how, ours.by)
    assert theirs.log_p == pytest.approx(ours.log_p, abs=1e-3)
    assert theirs.log_q == pytest.approx(ours.log_q, abs=1e-3)


@pytest.mark.parametrize("text", [" of the mayor", " New Yorkthe\nHa"])
def test_score(text: str, served: Served, far: Open, near: Open, toys: dict[str, str], toy_pairs: Pairs) -> None:
    there, here = (it(tokenizer=toys["base"], top_logprobs=K) for it in (far, near))
    tuner = ProxyTuner(there, toy_pairs("same"))
    if not there.abilities.scores:
        with pytest.raises(InputError):
            tuner.score("20 of 2000", text)
        return
    theirs, ours = tuner.score("20 of 2000", text), ProxyTuner(here, toy_pairs("same")).score("20 of 2000", text)
    assert [token.token for token in theirs.tokens] == [token.token for token in ours.tokens]
    assert theirs.log_q == pytest.approx(ours.log_q, abs=1e-3)
    assert theirs.log_p == pytest.approx(ours.log_p, abs=1e-2 if served.kind == "vllm" else 0.1)


# -- probe: what it says of each server is to be checked here --------------------------------------------------------
