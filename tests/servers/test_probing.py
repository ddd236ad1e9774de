"""`probe` tells the truth about real servers: pytest -m servers (install.py installs them).

What is expected was measured on each server by other means; what follows from it is tried: a base that is opened by the
findings alone writes the same text as one that is opened by the server's dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers.launch import MODEL, Served
from servers.toy_weights import CONTEXT

from blackbox_proxy import ProxyTuner, TransformersPair, open_base, probe
from blackbox_proxy.dialects import findings as kept
from blackbox_proxy.dialects.findings import Findings
from blackbox_proxy.probing.verdict import verdicts

pytestmark = pytest.mark.servers

Pairs = Callable[[str], TransformersPair]

BOTH: dict[str, dict[str, Any]] = {
    "vllm": {"k": 20, "k_how": "named", "owner": "vllm", "ids": "on request", "named": "logprob_token_ids"}
    | {"window": CONTEXT, "outside": "listed"},
    "llama-server": {"k_how": "silent", "owner": "llamacpp", "ids": "shown", "named": "", "bytes": "true"}
    | {"window": CONTEXT, "outside": "missing", "end": "an empty entry"},
    "llama-cpp-python": {"k_how": "silent", "owner": "me", "ids": "no", "named": "", "end": "no entry"}
    | {"outside": "listed"},
}
"""Of all three: numbers are raw, a bias is honoured and does not show in them, they stream."""

COMPLETIONS: dict[str, dict[str, Any]] = {
    "vllm": {"ids_in": True, "echo": "scored", "echo_last": False, "prompt_logprobs": True},
    "llama-server": {"ids_in": True, "echo": "ignored", "prompt_logprobs": False},
    "llama-cpp-python": {"ids_in": False, "echo": "scored", "echo_last": False},
}
CHAT: dict[str, dict[str, Any]] = {
    "vllm": {"prefill": {"body": {"continue_final_message": True, "add_generation_prompt": False}, "message": {}}}
    | {"outside": "cut", "keeps_space": True, "repeats": False},
    "llama-server": {"prefill": {"body": {}, "message": {}}, "keeps_space": True, "repeats": True},
    "llama-cpp-python": {"prefill": {}, "bytes": "null"},
}


@pytest.mark.parametrize("known", [True, False], ids=["tokenizer", "tokenizer unknown"])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_the_truth_about_a_real_server(api: str, known: bool, served: Served, toys: dict[str, str]) -> None:
    found = ask(served, api, toys["base"] if known else None)
    expected = {"dialect": served.kind, "claims": served.kind, "listed": True, "greedy": True, "after": "nothing"}
    expected |= {"bias": "honoured", "reflected": False, "streams": "log probabilities"}
    expected |= BOTH[served.kind] | (COMPLETIONS if api == "completions" else CHAT)[served.kind]
    if not known:
        expected.pop("end", None)
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.apis == {"completions": "log probabilities", "chat": "log probabilities"}
    assert found.calls <= 24
    for drift in (found.drift, found.ids_drift, found.text_drift, found.prefill_drift, found.echo_drift):
        assert drift is None or drift < 1e-4
    assert not known or found.wrong in (None, 0)
    said = {verdict.what: verdict.how for verdict in verdicts(found)}
    assert said["generate"] == ("one token" if found.prefill == {} else "exactly")
    assert said["score"] == ("exactly" if found.echo == "scored" else "not here")


def test_a_base_opened_by_its_findings_writes_the_same(
    served: Served, toys: dict[str, str], toy_pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kept.VARIABLE, str(tmp_path))
    kept.save(ask(served, "completions", None))

    def texts(dialect: str) -> list[str]:
        base = open_base(MODEL, base_url=served.base_url, dialect=dialect, tokenizer=toys["base"])
        assert ("probed" in repr(base)) == (dialect == "auto")
        with ProxyTuner(base, toy_pairs("same"), tail="truncate") as tuner:
            return [tuner.generate(prompt, max_tokens=12).text for prompt in ("The mayor of New York", "20 of 2000")]

    assert texts("auto") == texts(served.kind)


def ask(served: Served, api: Any, tokenizer: str | None) -> Findings:
    return probe(MODEL, base_url=served.base_url, api=api, tokenizer=tokenizer)
