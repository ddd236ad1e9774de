"""Why a server says that its text ended: the words that are known, whatever their case, and those that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from api_answers import legacy
from api_server import Asking, Server
from starlette.responses import JSONResponse, Response

from blackbox_proxy import Drafting, ProxyTuner, TransformersPair
from blackbox_proxy.dialects.finishing import Ended, ended_by, said_of
from blackbox_proxy.errors import BadResponse
from blackbox_proxy.jobs.inputs import InputRow
from blackbox_proxy.jobs.outputs import result_line
from blackbox_proxy.report.record import generation_record
from blackbox_proxy.trace import read_trace, write_trace
from blackbox_proxy.tuner import run
from blackbox_proxy.types import Generation

KINDS: dict[Ended | None, tuple[object, ...]] = {
    "stop": (
        "stop",
        "STOP",
        "eos",
        "eos_token",
        "end_turn",
        "COMPLETE",
        "stop_sequence",
        "FINISH_REASON_STOP",
        "Stop ",
    ),
    "length": ("length", "MAX_TOKENS", "model_length", "max_tokens", "max-new-tokens", {"type": "length", "length": 3}),
    "content_filter": ("content_filter", "SAFETY", "ContentFiltered", "RECITATION", "ERROR_TOXIC", "refusal"),
    "other": ("tool_calls", "function_call", "MALFORMED_FUNCTION_CALL", "whatever", "終", 3, ["stop"]),
    None: (None, "", "abort", "ABORTED", "error", "null", "cancelled", {"type": "abort", "message": "x"}, {}),
}
"""What a word means; None: the text could have gone on."""


@pytest.mark.parametrize(("reason", "kind"), [(word, kind) for kind, words in KINDS.items() for word in words])
def test_a_word_whatever_its_case(reason: object, kind: Ended | None) -> None:
    assert ended_by(said_of(reason)) == kind


# -- a text over HTTP, whose server says so ---------------------------------------------------------------------------

WAYS = (Drafting(local=False), Drafting.fixed(9))


@pytest.fixture
def pair(models: dict[str, str]) -> TransformersPair:
    return TransformersPair(models["same-expert"], models["same-antiexpert"], device="cpu")


def says(*tokens: str, reason: object, stream: bool) -> Response:
    body: Any = legacy(*((t, -0.1, {t: -0.1, "!": -3.0}) for t in tokens), text="".join(tokens))
    body["choices"][0]["finish_reason"] = reason
    if not stream:
        return JSONResponse(body)
    return Response(f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n", media_type="text/event-stream")


def text(
    asking: Asking, server: Server, pair: TransformersPair, *answers: tuple[tuple[str, ...], object]
) -> Generation:
    """The text at alpha = 0 of a server that gives these answers, streamed and whole."""
    one, other = (_text(asking, server, pair, way, list(answers)) for way in WAYS)
    assert (one.text, one.finish_reason, one.reason) == (other.text, other.finish_reason, other.reason)
    return one


def _text(
    asking: Asking,
    server: Server,
    pair: TransformersPair,
    way: Drafting,
    left: list[tuple[tuple[str, ...], object]],
) -> Generation:

    async def answer(sent: dict[str, Any]) -> Response:
        tokens, reason = left.pop(0)
        return says(*tokens, reason=reason, stream=bool(sent.get("stream")))

    server.answers = [answer]
    base = asking(top_logprobs=2, dialect="vllm")
    try:
        return ProxyTuner(base, pair, alpha=0.0, draft=way).generate("Once", max_tokens=9)
    finally:
        run(base.aclose())
        assert not left


@pytest.mark.parametrize("reason", ["SAFETY", "content_filter", "tool_calls", "no_word_that_we_know"])
def test_a_server_that_ends_the_text_is_believed_and_quoted(
    reason: str, asking: Asking, server: Server, pair: TransformersPair, tmp_path: Path
) -> None:
    for answers in ([((" the", " cat"), reason)], [((" the", " cat"), None), ((), reason)]):
        found = text(asking, server, pair, *answers)
        assert found.text == " the cat"
        assert (found.finish_reason, found.reason) == (ended_by(reason), reason)
        assert found.steps[-1].reason == reason
        assert generation_record(found)["reason"] == reason
        row = InputRow(0, "line 1", None, "Once", {"seed": None}, {}, "d")
        assert f'"reason": "{reason}"' in result_line(row, found).decode()
        write_trace(tmp_path / f"{len(answers)}.jsonl", [("Once", found)])
        (traced,) = read_trace(tmp_path / f"{len(answers)}.jsonl").texts
        assert traced.steps[-1].reason == reason


@pytest.mark.parametrize("reason", ["STOP", "end_turn", "COMPLETE"])
def test_an_end_is_an_end_in_any_words(reason: str, asking: Asking, server: Server, pair: TransformersPair) -> None:
    for answers in ([((" the", " cat"), reason)], [((" the", " cat"), "MAX_TOKENS"), ((), reason)]):
        found = text(asking, server, pair, *answers)
        assert (found.text, found.finish_reason, found.reason) == (" the cat", "stop", None)


@pytest.mark.parametrize("reason", [None, "abort", "length"])
def test_an_answer_without_anything_ends_a_text_that_is_paid_for(
    reason: str | None, asking: Asking, server: Server, pair: TransformersPair
) -> None:
    found = text(asking, server, pair, ((" the", " cat"), "abort"), ((" sat",), reason), ((), reason))
    assert (found.text, found.finish_reason, found.reason) == (" the cat sat", "other", reason or "an empty answer")
    assert found.usage.api_calls == 3
    if reason is not None:
        with pytest.raises(BadResponse, match=reason):
            text(asking, server, pair, ((), reason))
