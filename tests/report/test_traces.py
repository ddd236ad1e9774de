"""What a trace keeps is read back as it was."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from steps import ODD, Run, page_of, step, with_second

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.trace import TracedTuner, TraceFile, read_trace, write_trace
from blackbox_proxy.tuner import Texts
from blackbox_proxy.tuner import run as run_now
from blackbox_proxy.types import Prompt, Step, Token


def close(a: Step, b: Step) -> None:
    """Equal but for the decimals that a trace keeps."""
    for name in ("token", "text", "token_id", "drafted", "changed", "end", "finish_reason", "usage", "local"):
        assert getattr(a, name) == getattr(b, name)
    assert a.covered_mass == pytest.approx(b.covered_mass, abs=1e-6)
    assert a.candidates.tokens == b.candidates.tokens
    assert a.candidates.how == b.candidates.how
    assert a.candidates.tail.tolist() == b.candidates.tail.tolist()
    for name in ("log_q", "log_expert", "log_antiexpert", "log_p"):
        np.testing.assert_allclose(getattr(a.candidates, name), getattr(b.candidates, name), atol=1e-6)


def test_a_real_generation_comes_back_as_it_was(
    tmp_path: Path, api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    tuner = ProxyTuner(api_base(), pairs("digits"))
    texts = [(prompt, tuner.generate(prompt, max_tokens=12)) for prompt in ("The mayor of", "東京は")]
    write_trace(tmp_path / "t.jsonl", texts, {"alpha": 1.0})
    trace = read_trace(tmp_path / "t.jsonl")
    assert (trace.alpha, trace.torn) == (1.0, False)
    for (prompt, generation), back in zip(texts, trace.texts, strict=True):
        assert (back.prompt, back.text, back.finish_reason) == (prompt, generation.text, generation.finish_reason)
        for ours, theirs in zip(generation.steps, back.steps, strict=True):
            close(ours, theirs)


def test_odd_steps_come_back(tmp_path: Path) -> None:
    unknown = Token(None, None, "\ufffd\ud800")
    strange = with_second(ODD[4].candidates, unknown)
    steps = [*ODD[:-1], Step(b"a", "a", 7, strange, 0.5, False, True), ODD[-1]]
    with TraceFile(tmp_path / "t.jsonl", {"stop": ["\ud800"]}) as file:
        file.add([{"role": "user", "content": "hi"}], steps, id="row", error=InputError("no more"))
    (back,) = read_trace(tmp_path / "t.jsonl").texts
    assert (back.prompt, back.id, back.error) == ([{"role": "user", "content": "hi"}], "row", "InputError: no more")
    for ours, theirs in zip(steps, back.steps, strict=True):
        close(ours, theirs)


def test_a_trace_says_what_it_holds_and_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceFile(path, {"alpha": 1}) as file:
        file.add("secret prompt", ODD)
    header = json.loads(path.read_text().splitlines()[0])
    assert (header["format"], header["version"]) == ("blackbox-proxy trace", 1)
    assert "prompts" in header["notice"]
    kept = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        TraceFile(path)
    with pytest.raises(InputError, match="other settings"):
        TraceFile(path, {"alpha": 2}, append=True)
    assert path.read_bytes() == kept


def test_a_trace_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceFile(path, {"alpha": 1}) as file:
        file.add("a", ODD)
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[1][:-5] * 3)  # longer than what comes over it
    assert read_trace(path).torn
    assert len(read_trace(path).texts) == 1
    with TraceFile(path, {"alpha": 1, "prices": "1,1,2"}, append=True) as file:
        file.add("b", ODD)
    again = read_trace(path)
    assert ([text.prompt for text in again.texts], again.torn) == (["a", "b"], False)


def test_a_trace_that_no_text_came_to_leaves_no_file(tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl"):
        assert (tmp_path / "t.jsonl").exists()
    assert not (tmp_path / "t.jsonl").exists()


DAMAGED: dict[str, tuple[str, str]] = {
    "empty": ("", "no trace"),
    "not json": ("hello\n", "no trace"),
    "other json": ('{"format": "x"}\n', "no trace"),
    "a list": ("[]\n", "no trace"),
    "later": ('{"format": "blackbox-proxy trace", "version": 9}\n', "version 9"),
    "damaged": ('{"format": "blackbox-proxy trace", "version": 1}\n{"prompt": 1}\n', "line 2: 'text' is missing"),
    "not even json": ('{"format": "blackbox-proxy trace", "version": 1}\n{"prompt": \n', "line 2"),
    "a number": ('{"format": "blackbox-proxy trace", "version": 1}\n3\n', "line 2"),
}


@pytest.mark.parametrize(("content", "said"), DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_no_trace_is_said(content: str, said: str, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(said)):
        read_trace(path)
    status, _, err = run("report", str(path))
    assert (status, said in err, "Hint:" in err, "Traceback" in err) == (2, True, True, False)


TEXTS: dict[str, Callable[[Any], object]] = {
    "generate": lambda tuner: tuner.generate("one", max_tokens=2),
    "agenerate": lambda tuner: run_now(tuner.agenerate("one", max_tokens=2)),
    "stream": lambda tuner: list(tuner.stream("one", max_tokens=2)),
    "astream": lambda tuner: run_now(read(tuner.astream("one", max_tokens=2))),
    "generate_batch": lambda tuner: tuner.generate_batch(["one", "two"], max_tokens=2),
    "agenerate_batch": lambda tuner: run_now(tuner.agenerate_batch(["one", "two"], max_tokens=2)),
}
REFUSED: dict[str, Callable[[Any], object]] = {
    "choose": lambda tuner: tuner.choose("one", ["a", "b"]),
    "achoose": lambda tuner: run_now(tuner.achoose("one", ["a", "b"])),
    "score": lambda tuner: tuner.score("one", " two"),
    "ascore": lambda tuner: run_now(tuner.ascore("one", " two")),
    "altered": lambda tuner: tuner.altered().generate("one"),
    "of": lambda tuner: tuner.of(tuner.base, tuner.pairs, tuner.equation, tuner.drafting).generate("one"),
}
HARMLESS = {"check", "close"}


async def read(steps: Any) -> list[Step]:
    return [step async for step in steps]


@pytest.fixture(scope="module")
def local(models: dict[str, str], pairs: Callable[[str], TransformersPair]) -> ProxyTuner:
    return ProxyTuner(TransformersBase(models["base"], device="cpu"), pairs("same"))


def test_every_way_to_use_a_tuner_is_in_one_of_these_tables() -> None:
    public = {name for name in dir(ProxyTuner) if not name.startswith("_") and callable(getattr(ProxyTuner, name))}
    assert public == {*TEXTS, *REFUSED, *HARMLESS}


@pytest.mark.parametrize("way", TEXTS)
def test_every_way_to_a_text_is_traced(way: str, local: ProxyTuner, tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl") as file:
        TEXTS[way](TracedTuner(local, file))
    wanted = ["one", "two"] if "batch" in way else ["one"]
    texts = {text.prompt: text for text in read_trace(tmp_path / "t.jsonl").texts}
    assert sorted(texts) == wanted
    for prompt in wanted:
        expected = local.generate(prompt, max_tokens=2)
        assert (texts[prompt].text, texts[prompt].error) == (expected.text, None)
        assert (len(texts[prompt].steps), texts[prompt].finish_reason) == (2, expected.finish_reason)


@pytest.mark.parametrize("way", REFUSED)
def test_what_makes_no_text_is_refused(way: str, local: ProxyTuner, tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl") as file:
        tuner = TracedTuner(local, file)
        with pytest.raises(InputError, match=f"{way} makes none"):
            REFUSED[way](tuner)
        assert (tuner.base, tuner.pairs, tuner.steer) == (local.base, local.pairs, local.steer)


def test_what_was_decoded_before_an_error_is_in_the_trace(tmp_path: Path) -> None:
    class Breaks(Texts):
        equation = Equation()

        def check(self, prompt: Prompt, max_tokens: int = 256) -> None: ...

        async def astream(self, prompt: Prompt, **_: Any) -> AsyncIterator[Step]:
            yield step(b"a")
            raise InputError("broke off")

    with TraceFile(tmp_path / "t.jsonl") as file:
        tuner = TracedTuner(Breaks(), file)
        with pytest.raises(InputError):
            list(tuner.stream("one"))
        with pytest.raises(InputError) as caught:
            tuner.generate("two")
        assert len(caught.value.steps) == 1
        with pytest.raises(InputError):
            tuner.generate_batch(["four"])
        stopped: Any = tuner.stream("three")
        next(stopped)
        stopped.close()
    texts = read_trace(tmp_path / "t.jsonl").texts
    assert [(text.prompt, text.text) for text in texts] == [("one", "a"), ("two", "a"), ("four", "a"), ("three", "a")]
    assert [text.error for text in texts] == ["InputError: broke off"] * 3 + ["GeneratorExit"]
    assert "ended too early" in page_of(*texts)
