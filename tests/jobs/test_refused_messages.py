"""Messages that a model's chat template refuses are bad rows: found before anything is sent, or left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from bulk import Fake, results, rows_file
from toys import tiny_model, train_tokenizer

from blackbox_proxy.errors import InputError
from blackbox_proxy.jobs import run_job
from blackbox_proxy.models.lm import CausalLM
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.text.spelling import from_tokenizer

STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ m['content'] }}{% endfor %}"
)


def test_rows_that_the_pairs_template_refuses_are_named(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("bytes", 300)
    tokenizer.chat_template = STRICT
    vocabulary = from_tokenizer(tokenizer)
    lm = CausalLM(tiny_model("llama", len(vocabulary), 1), vocabulary)

    class Strict(Fake):
        pairs = (TransformersPair(lm, expert_prompt="chat"),)

    good = [{"role": "user", "content": "Hi"}]
    source = rows_file(
        tmp_path / "in.jsonl",
        {"messages": good},
        {"messages": [{"role": "system", "content": "Be brief."}, *good]},
        {"prompt": "Hi"},
    )
    tuner = Strict()
    with pytest.raises(InputError, match=r"line 2: the chat template refuses .*System role not supported"):
        run_job(tuner, source, tmp_path / "out.jsonl")
    assert not tuner.asked
    report = run_job(Strict(), source, tmp_path / "out.jsonl", skip_bad=True)
    assert (report.done, report.bad) == (2, 1)
    assert [result["index"] for result in results(tmp_path / "out.jsonl")] == [0, 2]
