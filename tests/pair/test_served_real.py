"""A real pair behind hosts, with another vocabulary than the base: the texts of the same pair on this machine.

The folder of real models (examples/real_models/fetch.py) needs an expert as well: `smollm2-tuned`, SmolLM2 tuned on
anything.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from blackbox_proxy import ProxyTuner, ServedPair, TransformersBase, TransformersPair
from blackbox_proxy.host.process import HostProcess
from blackbox_proxy.protocols import Row, Session

NAMES, THINGS = ("Tom", "Mia", "Noah", "Lena", "Omar"), ("apples", "books", "coins", "stamps", "eggs")
PROMPTS = [
    f"Question: {NAMES[i % 5]} has {3 + i} {THINGS[i % 5]} and buys {2 + i % 4} boxes with {4 + i % 3} in each. How "
    f"many {THINGS[i % 5]} are there now?\nAnswer:"
    for i in range(20)
]


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "most"), [(256, 3.0), (4096, 2.0), (-1, 2.0)])
def test_texts_are_those_of_the_pair_on_this_machine(limit: int, most: float) -> None:
    """20 prompts of 32 tokens; with all ids shown it can take an hour. Prints how many requests that took: where few
    ids are shown, those that matter are asked for by name in one more.
    """
    folder = Path(os.environ.get("BLACKBOX_PROXY_REAL_MODELS", ""))
    names = {name: str(folder / name) for name in ("gemma", "smollm2", "smollm2-tuned")}
    if not all((Path(path) / "config.json").is_file() for path in names.values()):
        pytest.skip("BLACKBOX_PROXY_REAL_MODELS names no folder with gemma, smollm2 and smollm2-tuned")
    base = TransformersBase(names["gemma"], top_logprobs=20, device="cpu")
    local = TransformersPair(names["smollm2-tuned"], names["smollm2"], device="cpu")
    given: dict[str, Any] = {"top_logprobs": limit, "device": "cpu", "threads": 1, "served_model_name": "m"}
    with HostProcess(names["smollm2-tuned"], **given) as expert, HostProcess(names["smollm2"], **given) as antiexpert:
        pair = _Counted(
            "m",
            "m",
            expert_url=expert.base_url,
            antiexpert_url=antiexpert.base_url,
            tokenizer=names["smollm2"],
            top_logprobs=limit,
            timeout=600.0,
        )
        for prompt in PROMPTS:
            wanted = ProxyTuner(base, local).generate(prompt, max_tokens=32)
            found = ProxyTuner(base, pair).generate(prompt, max_tokens=32)
            assert found.text == wanted.text
        each = (expert.stats()["requests"] + antiexpert.stats()["requests"] - 2) / 2 / pair.drafts
        print(f"{limit}: {each:.2f} requests for each model and draft, of {pair.drafts} drafts")
        assert each <= most
        pair.close()


class _Counted(ServedPair):
    """A served pair that counts the drafts."""

    drafts = 0

    def open(self, *given: Any) -> Session:
        session = super().open(*given)
        score = session.score

        def counted(*told: Any) -> list[Row]:
            self.drafts += 1
            return score(*told)

        session.score = counted  # type: ignore[method-assign, assignment]
        return session
