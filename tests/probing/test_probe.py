"""`probe` against `host` behaving as each server, and as servers that are not what they say: what it finds is true."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typer.testing import CliRunner

from blackbox_proxy import ProxyTuner, open_base, probe
from blackbox_proxy.api.entries import RawToken
from blackbox_proxy.api.positions import RawPosition
from blackbox_proxy.cli import app
from blackbox_proxy.dialects import findings as kept
from blackbox_proxy.dialects.findings import Findings
from blackbox_proxy.dialects.table import DIALECTS, Api, Dialect
from blackbox_proxy.door.running import serve_in_thread
from blackbox_proxy.errors import AccessDenied, ConnectionFailed, InputError, ModelNotFound
from blackbox_proxy.host.engine import open_engine
from blackbox_proxy.pair.transformers import TransformersPair
from blackbox_proxy.probing.answers import Comparison, Spelling, comparison, greedy, overwritten, sharpened
from blackbox_proxy.probing.verdict import paste, verdicts
from blackbox_proxy.report.probe import findings_record
from blackbox_proxy.serve.emulation import EMULATIONS, Emulation, emulation_of
from blackbox_proxy.serve.engine import Engine
from blackbox_proxy.serve.routes import Stats, create_app
from blackbox_proxy.text.spelling import from_pretrained

Change = Callable[[dict[str, Any]], None]
QUICK = {
    *(("host", "completions"), ("vllm", "completions"), ("vllm", "chat"), ("openai", "chat"), ("sglang", "chat")),
    *(("llama-server", "completions"), ("llama-cpp-python", "completions"), ("tgi", "chat"), ("mistral", "chat")),
    *(("deepseek", "chat"), ("fireworks", "completions")),
}
ROUTES = [
    pytest.param(name, api, marks=() if (name, api) in QUICK else pytest.mark.slow)
    for name, emulation in EMULATIONS.items()
    for api in emulation.scores
]


class Rewriting:
    """Changes the JSON of every answer, and of every event of a stream, before it is sent; adds headers."""

    def __init__(
        self, app: ASGIApp, whole: Change | None = None, event: Change | None = None, headers: Any = ()
    ) -> None:
        self._app, self._whole, self._event, self._headers = app, whole, event, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started: list[Message] = []

        async def changed(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.append(message)
                headers = dict(message["headers"])
                if headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                    await send(message)
                return
            body = message.get("body", b"")
            kind = dict(started[0]["headers"])[b"content-type"]
            if kind.startswith(b"text/event-stream"):
                if self._event is not None and body.startswith(b"data: {"):
                    body = b"data: " + json.dumps(_with(self._event, body[6:])).encode() + b"\n\n"
                await send({**message, "body": body})
                return
            if self._whole is not None and b'"choices"' in body:
                body = json.dumps(_with(self._whole, body)).encode()
            kept = [(name, value) for name, value in started[0]["headers"] if name != b"content-length"]
            kept += self._headers
            await send({**started[0], "headers": [*kept, (b"content-length", str(len(body)).encode())]})
            await send({**message, "body": body})

        await self._app(scope, receive, changed)


def _with(change: Change, body: bytes) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(body)
    change(read)
    return read


@pytest.fixture(scope="module")
def engine(models: dict[str, str]) -> Engine:
    return open_engine(models["base"], top_logprobs=-1, served_model_name="big", device="cpu")


@pytest.fixture(scope="module")
def serve(engine: Engine) -> Iterator[Callable[..., str]]:
    """A host that behaves so: its base_url."""
    with ExitStack() as stack:

        def start(emulation: Emulation, **options: Any) -> str:
            app = create_app(engine, emulation=emulation, **options)
            return stack.enter_context(serve_in_thread(app)) + emulation.roots[0].format(model="big")

        yield start


def true_of(emulation: Emulation, api: Api, size: int) -> dict[str, Any]:
    """What a probe has to find, from how the host was told to behave; `size` of its vocabulary."""

    def takes(name: str) -> bool:
        return name not in emulation.ignored and (emulation.strict is None or name in emulation.strict)

    chat = api == "chat"
    columns = emulation.chat_columns if chat else emulation.columns
    asked = takes("return_tokens_as_token_ids")
    bias = "refused" if emulation.strict and "logit_bias" not in emulation.strict else None
    bias = bias or ("honoured" if takes("logit_bias") else "ignored")
    limit = emulation.chat_k if chat else emulation.completions_k
    found: dict[str, Any] = {
        "k": size if limit is None else min(limit, size),
        "k_how": "named",
        "owner": emulation.owned_by,
        "listed": True,
        "ids": "shown" if emulation.ids and not columns else "on request" if asked else "no",
        "bytes": None if columns else {"text": "of the text"}.get(emulation.bytes, emulation.bytes),
        "parts": emulation.partial,
        "bias": bias,
        "named": "logprob_token_ids" if takes("logprob_token_ids") else "",
        "after": "temperature" if emulation.after == "temperature" else "nothing",
        "streams": "log probabilities",
        "greedy": True,
        "same_text": True,
        "outside": "listed" if columns and emulation.outside_listed else "missing",
        "sentinels": (emulation.outside,) if emulation.outside is not None and chat and not columns else (),
        "wrong": 0 if emulation.ids and not columns and emulation.bytes == "true" else None,
    }
    if bias == "honoured":
        ends = {"omitted": "no entry", "asked": "no entry", "empty": "an empty entry"}
        found |= {"reflected": emulation.after != "nothing", "end": ends.get(emulation.end, "written '</s>'")}
        found["bias_keys"] = 300
    if chat:
        if emulation.chat_counts_own:
            found["outside"] = "cut"
        ways = {
            "asked": {"body": {"continue_final_message": True, "add_generation_prompt": False}, "message": {}},
            "alone": {"body": {"continue_final_message": True}, "message": {}},
            "trailing": {"body": {}, "message": {}},
            "marked": {"body": {}, "message": {"prefix": True}},
            "none": {},
        }
        found["prefill"] = ways[emulation.prefill]
        if emulation.prefill != "none":
            found |= {"keeps_space": not emulation.strips, "repeats": emulation.repeats_prefill}
    else:
        found |= {"ids_in": emulation.ids_in, "echo": emulation.echo}
        if emulation.echo == "scored":
            found |= {"echo_last": takes("echo_last"), "echo_streams": True}
        if emulation.last_wins:
            found["overwritten"] = True
    return found


def differs(found: Findings, expected: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(found, name) for name, value in expected.items() if getattr(found, name) != value}


@pytest.mark.parametrize(("name", "api"), ROUTES)
def test_the_truth_about_each_server(
    name: str, api: Api, serve: Callable[..., str], models: dict[str, str], engine: Engine
) -> None:
    emulation, stats = emulation_of(name), Stats()
    found = probe("big", base_url=serve(emulation, stats=stats), api=api, tokenizer=models["base"])
    expected = true_of(emulation, api, engine.top_logprobs)
    assert differs(found, expected) == {}
    other = "chat" if api == "completions" else "completions"
    assert found.apis == {
        api: "log probabilities",
        other: "log probabilities" if other in emulation.scores else "text only",
    }
    # What it cost is what the server counted, as far as answers that were streamed say.
    assert found.calls == stats.requests <= 24
    assert found.completion_tokens <= stats.completion_tokens <= 150
    for drift in (found.drift, found.text_drift, found.ids_drift, found.prefill_drift, found.echo_drift):
        assert drift is None or drift < kept.EXACT
    if api == "completions":
        assert found.text_drift is not None
        assert emulation.ids_in or found.ids_drift is None
        assert found.ids == "no" or found.ids_drift is not None


@pytest.mark.parametrize("name", ["vllm", "llama-server"])
def test_without_a_tokenizer_the_same_is_found(name: str, serve: Callable[..., str], engine: Engine) -> None:
    emulation = emulation_of(name)
    found = probe("big", base_url=serve(emulation), tokenizer=None)
    expected = true_of(emulation, "completions", engine.top_logprobs) | {"wrong": None, "api": "completions"}
    del expected["end"]
    assert differs(found, expected) == {}
    assert found.ids_drift is not None


def test_a_chat_that_repeats_its_beginning_spells_its_text_all_the_same(serve: Callable[..., str]) -> None:
    """The answer's text begins with what was given to it, its tokens behind that."""
    found = probe("big", base_url=serve(emulation_of("llama-server")), api="chat", tokenizer=None)
    assert (found.repeats, found.strings) == (True, "plain")
    assert not any("refused" in verdict.why for verdict in verdicts(found))


LIES: dict[str, tuple[Emulation, dict[str, Any]]] = {
    "three candidates": (replace(emulation_of("vllm"), completions_k=3), {"k": 3}),
    "no ids": (
        replace(emulation_of("vllm"), ignored=EMULATIONS["sglang"].ignored, ids_in=False),
        {"ids": "no", "ids_in": False, "named": ""},
    ),
    "no echo, a bias ignored": (
        replace(emulation_of("vllm"), echo="ignored", ignored=frozenset({"logit_bias"})),
        {"echo": "ignored", "bias": "ignored"},
    ),
    "numbers after temperature": (
        replace(emulation_of("vllm"), after="temperature"),
        {"after": "temperature", "reflected": True},
    ),
    "bytes of the text beside true ids": (
        replace(emulation_of("llama-server"), bytes="text"),
        {"bytes": "of the text", "wrong": lambda count: count > 0},
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_is_not_taken_at_its_word(lie: str, serve: Callable[..., str], models: dict[str, str]) -> None:
    emulation, expected = LIES[lie]
    found = probe("big", base_url=serve(emulation), api="completions", tokenizer=models["base"])
    assert found.claims == found.dialect
    assert emulation.owned_by in DIALECTS[found.dialect].owners
    for name, value in expected.items():
        got = getattr(found, name)
        assert value(got) if callable(value) else got == value, (name, got)


def test_streams_without_log_probabilities_and_numbers_that_move(serve: Callable[..., str]) -> None:
    moved = iter(range(1000))

    def silent(event: dict[str, Any]) -> None:
        for choice in event.get("choices", ()):
            choice["logprobs"] = None

    def noisy(body: dict[str, Any]) -> None:
        noise = 0.01 * (next(moved) % 2)
        logprobs = body["choices"][0]["logprobs"] or {"top_logprobs": []}
        for row in logprobs["top_logprobs"]:
            row and row.update({text: value - noise for text, value in row.items()})

    emulation = emulation_of("vllm")
    url = serve(emulation, middleware=[Middleware(Rewriting, whole=noisy, event=silent)])
    found = probe("big", base_url=url, api="completions")
    assert found.streams == "text"
    assert found.drift == pytest.approx(0.01, abs=1e-4)
    said = {verdict.what: verdict for verdict in verdicts(found)}
    assert said["generate"].how == "approximately"
    assert "0.01 nats" in said["generate"].why
    assert "not streamed" in said["generate"].why


def test_an_answer_of_another_shape_is_a_finding(serve: Callable[..., str]) -> None:
    def odd(body: dict[str, Any]) -> None:
        if len(body["choices"][0].get("text", "")) > 60:  # the echo
            body["choices"][0]["logprobs"] = {"tokens": [1, {}], "token_logprobs": 7, "top_logprobs": [[3], "x"]}

    found = probe("big", base_url=serve(emulation_of("vllm"), middleware=[Middleware(Rewriting, whole=odd)]))
    assert found.echo is None
    assert "malformed" in found.refused["echo"]
    assert found.streams == "log probabilities"


def test_headers_about_limits_are_found(serve: Callable[..., str]) -> None:
    told = [(b"x-ratelimit-limit-requests", b"6000"), (b"x-ratelimit-remaining-requests", b"5999")]
    url = serve(emulation_of("openai"), middleware=[Middleware(Rewriting, headers=told)])
    found = probe("big", base_url=url, max_calls=2)
    assert found.limits == {name.decode(): value.decode() for name, value in told}


def test_sglangs_own_route(serve: Callable[..., str], models: dict[str, str], engine: Engine) -> None:
    url = serve(emulation_of("sglang"))
    found = probe("big", base_url=url, dialect="sglang-generate", tokenizer=models["base"])
    assert (found.claims, found.dialect) == ("sglang", "sglang-generate")
    assert (found.k, found.ids, found.echo, found.named) == (
        engine.top_logprobs,
        "shown",
        "scored",
        "token_ids_logprob",
    )
    assert found.onto(DIALECTS["sglang-generate"]).echo_last == "echo_last"


# -- what is made of it -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.VARIABLE, str(tmp_path / "probes"))
    return tmp_path / "probes"


def some(url: str = "http://127.0.0.1:9/v1", **found: Any) -> Findings:
    return Findings(url=url, model="big", api="completions", dialect="vllm", asked_at="2030-01-02T03:04:05", **found)


def test_a_base_is_opened_as_it_was_found(
    serve: Callable[..., str],
    models: dict[str, str],
    pairs: Callable[[str], TransformersPair],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = serve(replace(emulation_of("vllm"), completions_k=3, ignored=frozenset({"logprob_token_ids"})))
    found = probe("big", base_url=url, tokenizer=models["base"])
    assert kept.save(found) == folder / kept.file_of(url, "big", "completions")
    options: dict[str, Any] = {"base_url": url, "tokenizer": models["base"]}

    def text(base: Any) -> str:
        with ProxyTuner(base, pairs("same"), tail="truncate") as tuner:
            return tuner.generate("The mayor of New York", max_tokens=8).text

    by_hand = replace(DIALECTS["vllm"], completions_k=3, named=None)
    expected = text(open_base("big", dialect=by_hand, **options))
    with caplog.at_level("INFO", logger="blackbox_proxy"):
        opened = open_base("big", **options)
    assert "as probed on" in repr(opened)
    assert "as probed on" in caplog.text
    assert opened.settings.top_logprobs == 3
    assert opened.abilities.reveals == 1  # by echo; the dialect says by name
    assert text(opened) == expected
    scope: dict[str, Any] = {}
    exec(paste(found), scope)
    assert text(scope["base"]) == expected
    assert "probed" not in repr(open_base("big", dialect="vllm", **options))
    assert "probed" not in repr(open_base("big", probe=False, **options))
    assert "probed" not in repr(open_base("big", api="chat", **options))
    assert "probed" in repr(open_base("big", probe=found, **options))


def test_findings_are_kept_privately(folder: Path) -> None:
    found = some(k=3, k_how="named", limits={"x-ratelimit-limit-requests": "60"}, sentinels=(-9999.0,), omit=("top_p",))
    path = kept.save(found)
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept.load(path) == found == kept.saved("http://127.0.0.1:9/v1/", "big", "completions")
    assert kept.saved("http://127.0.0.1:9/v1", "big", "chat") is None
    assert kept.saved("http://127.0.0.1:9/v1", "bigger", "completions") is None
    assert [left.name for left in folder.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99, "url": "u", "model": "m", "api": "chat"}'])
def test_what_is_no_file_of_findings(text: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = kept.save(some())
    assert path is not None
    path.write_text(text)
    assert kept.saved("http://127.0.0.1:9/v1", "big", "completions") is None
    assert "findings are not used" in caplog.text
    with pytest.raises(InputError):
        open_base("big", base_url="http://127.0.0.1:9/v1", probe=path)


def test_nothing_is_kept_or_used_where_that_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.VARIABLE, "0")
    assert kept.save(some()) is None
    assert kept.saved("http://127.0.0.1:9/v1", "big", "completions") is None


def test_findings_about_another_endpoint_are_refused(tmp_path: Path) -> None:
    path = kept.save(some(), tmp_path / "found.json")
    assert path is not None
    for options in ({"base_url": "http://127.0.0.1:8/v1"}, {"base_url": "http://127.0.0.1:9/v1", "dialect": "vllm"}):
        with pytest.raises(InputError):
            open_base("big", probe=path, **options)  # type: ignore[arg-type]
    assert "probed" in repr(open_base("big", base_url="http://u:p@127.0.0.1:9/v1?q=1", probe=path))


OVER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing known": ({}, {}),
    "k": ({"k": 3, "k_how": "named"}, {"completions_k": 3}),
    "open k": ({"k": 1000, "k_how": "open"}, {"completions_k": None}),
    "text only": ({"ids_in": False}, {"prefix": "text"}),
    "ids of another text": ({"ids_in": True, "ids_drift": 4.0}, {"prefix": "text"}),
    "ids": ({"ids": "no"}, {"ids_out": {}}),
    "ids shown": ({"ids": "shown"}, {"ids_out": {}, "ids_shown": True}),
    "no echo": ({"echo": "ignored"}, {"echo": None, "echo_last": None, "echo_streams": False}),
    "echo": (
        {"echo": "scored", "echo_last": True, "echo_streams": True},
        {"echo": {"echo": True}, "echo_last": "echo_last", "echo_streams": True},
    ),
    "whole": ({"streams": "whole", "stream_options": False}, {"streams": False, "usage_stream": {}}),
    "no bias": ({"bias": "ignored"}, {"bias_keys": 0}),
    "one key": ({"bias": "honoured", "bias_keys": 1}, {"bias_keys": 1}),
    "not named": ({"named": ""}, {"named": None}),
    "temperature": ({"after": "temperature", "reflected": False}, {"shown_after": "temperature"}),
    "bias shows": ({"after": "nothing", "reflected": True}, {"shown_after": "bias"}),
    "bent": ({"greedy": False}, {"draws": False}),
    "joined": ({"joined": True}, {"draws": False, "hides_parts": True}),
    "unknown": ({"recognised": False}, {"draws": False}),
    "omitted": ({"omit": ("top_p",)}, {"omit": ("top_p",)}),
}


@pytest.mark.parametrize("case", OVER)
def test_findings_take_the_place_of_what_a_dialect_says(case: str) -> None:
    found, changed = OVER[case]
    dialect = DIALECTS["vllm"]
    spoken = some(**found).onto(dialect)
    different = {
        part.name: getattr(spoken, part.name)
        for part in fields(Dialect)
        if part.name != "evidence" and getattr(spoken, part.name) != getattr(dialect, part.name)
    }
    assert different == {name: value for name, value in changed.items() if value != getattr(dialect, name)}
    assert spoken.evidence == "as probed on 2030-01-02"


def test_a_chat_is_continued_as_it_was_found() -> None:
    spoken = replace(some(prefill={"body": {}, "message": {"prefix": True}}, keeps_space=True), api="chat")
    prefill = spoken.onto(DIALECTS["openai"]).prefill
    assert prefill is not None
    assert (prefill.message, prefill.keeps_space) == ({"prefix": True}, True)
    assert replace(some(prefill={}), api="chat").onto(DIALECTS["vllm"]).prefill is None
    assert [
        replace(some(outside=how), api="chat").onto(DIALECTS[name]).chat_counts_own
        for how, name in (("cut", "openai"), ("missing", "vllm"), (None, "vllm"), (None, "openai"))
    ] == [True, False, True, False]


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_wrong_url_key_and_model(serve: Callable[..., str]) -> None:
    url = serve(emulation_of("vllm"), api_key="sk-secret-17")
    with pytest.raises(ConnectionFailed) as failed:
        probe("big", base_url="http://127.0.0.1:9/v1", max_attempts=1)
    assert "base_url" in failed.value.hint
    with pytest.raises(AccessDenied) as denied:
        probe("big", base_url=url, api_key="sk-wrong-18")
    assert "sk-wrong-18" not in str(denied.value)
    with pytest.raises(ModelNotFound) as unknown:
        probe("small", base_url=url, api_key="sk-secret-17")
    assert "'big'" in unknown.value.hint
    with pytest.raises(ModelNotFound):
        probe("big", base_url=url.removesuffix("/v1") + "/v2", api_key="sk-secret-17")
    with pytest.raises(InputError):
        probe("big", base_url=url, api="completion")
    with pytest.raises(InputError):
        probe("big", base_url="localhost:8000")


def test_few_requests_leave_questions_open(serve: Callable[..., str]) -> None:
    stats = Stats()
    found = probe("big", base_url=serve(emulation_of("vllm"), stats=stats), max_calls=5)
    assert found.calls == stats.requests == 5
    assert found.k is not None
    assert found.drift is not None
    assert (found.echo, found.streams, found.bias) == (None, None, None)
    assert "not asked" in found.refused["echo"]
    assert found.apis["chat"] == "not asked"
    assert {verdict.what: verdict.how for verdict in verdicts(found)}["score"] == "not known"


def test_a_server_without_log_probabilities(serve: Callable[..., str]) -> None:
    found = probe("big", base_url=serve(emulation_of("transformers-serve")))
    assert (found.k, found.bias) == (0, "honoured")
    said = {verdict.what: verdict.how for verdict in verdicts(found)}
    assert said["generate"] == said["choose"] == "not here"
    assert said['steer="bias"'] == "approximately"


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(serve: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    url = serve(emulation_of("openai"), api_key="sk-secret-17")
    arguments = ["probe", "--base-url", url + "?v=hidden", "--model", "big"]
    arguments += ["--api", "completions", "--api-key", "sk-secret-17"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "160"})
    assert shown.exit_code == 0
    for words in ("5, the limit that it names", "refused", "at the same time is not supported", "honoured, 300 keys"):
        assert words in shown.output
    assert 'dialect="openai"' in shown.output
    [path] = folder.iterdir()
    told = CliRunner().invoke(app, [*arguments, "--json", "-o", str(tmp_path / "own.json")], catch_exceptions=False)
    record = json.loads(told.stdout)
    assert record["k"] == 5
    assert next(verdict["what"] for verdict in record["verdict"]) == "generate"
    for text in (shown.output, path.read_text(), told.output, (tmp_path / "own.json").read_text()):
        assert not any(secret in text for secret in ("sk-secret-17", "hidden"))
    opened = open_base("big", base_url=url, api_key="sk-secret-17")
    assert "as probed on" in repr(opened)
    assert record["open"] == findings_record(kept.load(tmp_path / "own.json"))["open"]


# -- pure parts -------------------------------------------------------------------------------------------------------


def row(token: str, **shown: float) -> RawPosition:
    return RawPosition(RawToken(token, shown.get(token)), [RawToken(text, value) for text, value in shown.items()])


def test_agreement_ends_where_tokens_differ() -> None:
    draft = [row("a", a=-0.5, b=-1.0), row("b", b=-0.1, c=-3.0), row("c", c=-0.1)]
    assert comparison(draft, draft) == Comparison(3, 3, 0.0)
    other = [row("a", a=-0.6, b=-1.0), row("c", b=-0.1, c=-3.2), row("x", x=-9.0)]
    compared = comparison(draft, other)
    assert (compared.compared, compared.same) == (2, 1)
    assert compared.drift == pytest.approx(0.2)
    assert comparison([row("a", a=-1.0)], [row("b", b=-1.0)]).drift is None
    assert not comparison([row("a", a=-1.0)], [row("b", b=-1.0)]).close


def test_distances_tell_the_temperature() -> None:
    cold = row("a", a=-0.5, b=-1.5)
    assert sharpened(cold, row("a", a=-0.1, b=-2.1)) == pytest.approx(2.0)
    assert sharpened(cold, cold) == 1.0
    assert sharpened(cold, row("c", c=-1.0)) is None


def test_what_is_written_is_the_likeliest_or_not() -> None:
    assert greedy([row("a", a=-0.5, b=-1.0)])
    assert not greedy([row("a", a=-0.5, b=-1.0), row("b", a=-0.5, b=-1.0)])
    replaced = RawPosition(RawToken("\ufffd", -0.2), [RawToken("\ufffd", -3.0), RawToken("a", -1.0)])
    assert greedy([replaced])
    assert overwritten([replaced])
    assert not overwritten([row("a", a=-0.5, b=-1.0)])


def test_ids_and_wrong_bytes_need_a_vocabulary(models: dict[str, str]) -> None:
    vocabulary = from_pretrained(models["base"])
    index = vocabulary.id_of(b"e")
    spelling = Spelling()
    item = {"token": "e", "id": index, "bytes": [102], "logprob": -1e9}
    spelling.note({"logprobs": {"content": [{**item, "top_logprobs": [item]}]}}, vocabulary)
    assert (spelling.ids, spelling.wrong, spelling.checked) == (True, 1, 1)
    assert spelling.sentinels == {-1e9}
