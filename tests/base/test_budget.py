"""Budgets: reserved before, settled after, never exceeded; what was decoded is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from blackbox_proxy import Drafting, ProxyTuner, TransformersPair, run_job
from blackbox_proxy.base.budget import Budget, BudgetedBase, most_tokens
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.errors import BudgetReached, InputError
from blackbox_proxy.prices import Prices
from blackbox_proxy.protocols import Ask
from blackbox_proxy.types import Draft, Prefix, Usage

PRICES = Prices(1.0, 1.0, 2.0)


def test_what_is_reserved_counts_until_it_is_settled() -> None:
    budget = Budget(max_calls=2, max_tokens_billed=100)
    assert budget.reserve(40, 30) == 30
    assert budget.reserve(10, 30) == 20  # of 100, 40 + 30 + 10 are taken
    with pytest.raises(BudgetReached):
        budget.reserve(1, 1)
    budget.settle(40, 30, Usage(1, 40, 5))
    budget.settle(10, 20, Usage(0, 0, 0))  # it failed before it cost anything
    assert budget.usage == Usage(1, 40, 5)
    assert budget.reserve(10, 90) == 45


def test_money_buys_what_is_left_of_it() -> None:
    budget = Budget(max_cost=50.0, prices=PRICES)
    assert budget.reserve(20, 100) == 15
    budget.settle(20, 15, Usage(1, 20, 15))
    assert budget.cost == 50.0
    with pytest.raises(BudgetReached) as caught:
        budget.reserve(0, 1)
    assert "50" in str(caught.value)
    assert caught.value.hint
    free = Budget(max_cost=5.0, prices=Prices(1.0, 1.0, 0.0))
    assert free.reserve(5, 100) == 100
    with pytest.raises(BudgetReached):
        free.reserve(1, 1)


@pytest.mark.parametrize("bad", [{"max_calls": -1}, {"max_tokens_billed": float("nan")}, {"max_cost": 1.0}])
def test_bad_budgets_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Budget(**bad)
    assert caught.value.hint


@pytest.mark.parametrize("drafting", [Drafting.fixed(4), Drafting(), Drafting(local=False)])
def test_a_text_stops_at_the_budget_and_keeps_what_there_is(
    drafting: Drafting, api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    base = api_base(dialect="host")
    whole = ProxyTuner(base, pairs("same"), draft=Drafting.fixed(4)).generate("New York", max_tokens=24)
    bounds: list[dict[str, Any]] = [{"max_calls": 3}, {"max_tokens_billed": 60}, {"max_cost": 70.0, "prices": PRICES}]
    for limits in bounds:
        budget = Budget(**limits)
        tuner = ProxyTuner(BudgetedBase(base, budget), pairs("same"), draft=drafting)
        with pytest.raises(BudgetReached) as caught:
            tuner.generate("New York", max_tokens=24)
        steps = caught.value.steps
        assert 0 < len(steps) < 24
        assert [step.token for step in steps] == [step.token for step in whole.steps[: len(steps)]]
        spent = budget.usage
        assert spent.api_calls <= limits.get("max_calls", 99)
        assert spent.prompt_tokens + spent.completion_tokens <= limits.get("max_tokens_billed", 999)
        assert budget.cost <= limits.get("max_cost", 999)
        with pytest.raises(BudgetReached) as again:  # nothing is left for another text, and nothing is sent
            tuner.generate("New York " * 40, max_tokens=24)
        assert again.value.steps == ()


async def test_texts_side_by_side_share_one_budget(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    budget = Budget(max_calls=10)
    base = BudgetedBase(api_base(dialect="host"), budget)
    tuner = ProxyTuner(base, pairs("same"), draft=2)
    found = await asyncio.gather(
        *(tuner.agenerate(f"{i} people", max_tokens=12) for i in range(5)), return_exceptions=True
    )
    assert budget.usage.api_calls == 10
    assert any(isinstance(one, BudgetReached) for one in found)
    await base.aclose()


def test_a_bulk_run_stops_at_the_budget_and_goes_on_with_a_larger_one(
    tmp_path: Path, api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    rows, whole, part = (tmp_path / name for name in ("rows.jsonl", "whole.jsonl", "part.jsonl"))
    rows.write_text("".join(json.dumps({"prompt": f"{i} people in New York"}) + "\n" for i in range(5)))
    base = api_base(dialect="host")

    def run(out: Path, calls: int, **options: Any) -> Budget:
        budget = Budget(max_calls=calls)
        run_job(ProxyTuner(BudgetedBase(base, budget), pairs("same"), draft=4), rows, out, max_tokens=8, **options)
        return budget

    needed = run(whole, 1000).usage.api_calls
    with pytest.raises(BudgetReached):
        run(part, needed // 2, concurrency=1)
    kept = part.read_text().splitlines()
    assert 0 < len(kept) < 5
    rest = run(part, 1000, resume=True).usage.api_calls
    assert part.read_text() == whole.read_text()
    assert rest < needed


def test_the_most_that_a_prompt_can_have(api_base: Callable[..., OpenAIBase]) -> None:
    known, unknown = api_base(), api_base(tokenizer=None, dialect="openai")
    windowed = api_base(context=512)
    text = "New York, Zürich"
    exact = len(known.vocabulary.prompt_ids(text))  # type: ignore[union-attr]
    assert most_tokens(windowed, Prefix(text)) == exact
    assert exact <= most_tokens(known, Prefix(text)) <= exact + 16
    assert most_tokens(unknown, Prefix(text)) >= len(text.encode())
    assert most_tokens(unknown, Prefix([{"role": "user", "content": text}])) >= len(text.encode())
    assert most_tokens(known, Prefix((5, 6, 7))) == 3


async def test_a_request_that_is_broken_off_counts_as_the_most_it_can_cost(
    api_base: Callable[..., OpenAIBase],
) -> None:
    """It may have been sent, and be billed: another must not be made with its money."""

    class Hangs(BaseAround):
        async def draft(self, ask: Ask) -> Draft:
            await asyncio.Event().wait()
            return Draft(())

        async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
            await asyncio.Event().wait()
            yield Draft(())

    budget = Budget(max_calls=2)
    base = BudgetedBase(Hangs(api_base()), budget)

    async def streamed() -> None:
        async for _ in base.stream(Ask(Prefix("Hi"), 4)):
            pass

    for asking in (base.draft(Ask(Prefix("Hi"), 4)), streamed()):
        task = asyncio.create_task(asking)
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (budget.usage.api_calls, budget.usage.completion_tokens) == (2, 8)
    with pytest.raises(BudgetReached):
        budget.reserve(1, 1)
