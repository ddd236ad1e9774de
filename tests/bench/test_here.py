"""`blackbox-proxy bench --here`: all three models in this process, beside the plain loop."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from blackbox_proxy.bench.here import ALONE, PLAIN, run_here
from blackbox_proxy.models.loading import load_causal_lm


@pytest.mark.parametrize("kind", ["same", "digits"])
def test_our_texts_are_those_of_the_plain_loop(models: dict[str, str], kind: str) -> None:
    names = (models["base"], models[f"{kind}-expert"], models[f"{kind}-antiexpert"])
    base, expert, antiexpert = [load_causal_lm(name, device="cpu") for name in names]
    shown = io.StringIO()
    found = {
        one.name: one
        for one in run_here(
            Console(file=shown, width=120), (base, expert, antiexpert), ["The mayor of"], tokens=10, rounds=1
        )
    }
    ours = {name: one for name, one in found.items() if name not in (ALONE, PLAIN)}
    assert len({one.texts for one in ours.values()}) == 1
    if kind == "same":
        assert {one.texts for one in ours.values()} == {found[PLAIN].texts}
    assert all(one.kept is not None and 0 <= one.kept <= 1 for one in ours.values())
    for name, one in found.items():
        assert f"{one.speed / found[PLAIN].speed:.2f}" in shown.getvalue()
        assert name in shown.getvalue()
