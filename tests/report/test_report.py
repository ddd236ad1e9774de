"""Traces and reports: what was kept is read back, what is counted is right, what a model wrote never runs."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackbox_proxy import ProxyTuner, TransformersPair, analysis
from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.prices import Prices
from blackbox_proxy.report import html
from blackbox_proxy.report.overview import overview
from blackbox_proxy.report.visible import visible
from blackbox_proxy.trace import Trace, TracedText, TracedTuner, TraceFile, read_trace, write_trace
from blackbox_proxy.types import Candidates, Generation, How, Step, Token, Usage

Run = Callable[..., tuple[int, str, str]]


def step(
    token: bytes,
    q: Sequence[float] = (0.6, 0.4),
    p: Sequence[float] = (0.3, 0.7),
    others: Sequence[bytes] = (b" other",),
    *,
    tail: Sequence[int] = (),
    how: Sequence[How] = (),
    **fields: Any,
) -> Step:
    """A step that chose its first candidate."""
    end = bool(fields.get("end"))
    tokens = (Token(7, token, token.decode("utf-8", "replace"), end), *(Token(8 + i, o) for i, o in enumerate(others)))
    with np.errstate(divide="ignore"):
        log_q, log_p = np.log(np.array(q)), np.log(np.array(p))
    count = len(tokens)
    columns = Candidates(
        tokens,
        log_q,
        log_q - 0.5,
        log_q - 1.0,
        log_p,
        np.isin(np.arange(count), list(tail)),
        tuple(how) or ("exact",) * count,
    )
    text = fields.pop("text", token.decode("utf-8", "ignore"))
    given = {"covered_mass": 1.0, "drafted": True, "changed": False} | fields
    return Step(token, text, 7, columns, **given)


def text_of(steps: Sequence[Step], prompt: Any = "Say: ", **fields: Any) -> TracedText:
    return TracedText(prompt, "".join(one.text for one in steps), tuple(steps), "length", **fields)


def page_of(*texts: TracedText, prices: Prices | None = None, **settings: Any) -> str:
    return html.page(overview([("trace.jsonl", Trace({"alpha": 1.0, **settings}, texts))], prices))


# -- analyses, by hand ------------------------------------------------------------------------------------------------

KINDS: list[tuple[bytes, bytes, analysis.Kind]] = [
    (b" London", b"in", "word start"),
    (b"The", b"", "word start"),
    (b"The", b". ", "word start"),
    (b"don", b"Lon", "continuation"),
    (b"'s", b"dog", "continuation"),
    ("’t".encode(), b"don", "continuation"),
    (b"'s", b"dog ", "punctuation"),
    ("é".encode(), b"caf", "continuation"),
    ("京".encode(), "東".encode(), "unspaced letter"),
    ("день".encode(), b" ", "word start"),
    (b" 1,024", b"of", "number"),
    ("½".encode(), b"", "number"),
    (b".\n", b"end", "punctuation"),
    (b" \xe2\x80\x9c", b"said", "punctuation"),
    (b"+", b"1", "symbol"),
    ("👍".encode(), b"", "symbol"),
    (b"\n\n", b".", "white space"),
    (b" ", b"a", "white space"),
    (b"\xe6\x9d", b"", "part of a character"),
    (b"\xb1", b"\xe6\x9d", "part of a character"),
    (b"", b"a", "other"),
    (b"\x00", b"a", "other"),
]


@pytest.mark.parametrize(("token", "before", "kind"), KINDS, ids=lambda value: repr(value))
def test_kinds(token: bytes, before: bytes, kind: str) -> None:
    assert analysis.kind_of(token, before) == kind
    assert analysis.kind_of(token, before, end=True) == "end"


def test_a_place_compares_p_with_q_over_the_same_candidates() -> None:
    # q is 0.3, 0.2 of a base that showed half: 0.6, 0.4 over these candidates
    (place,) = analysis.measure([step(b"a", (0.3, 0.2), (0.9, 0.1), tail=(1,), covered_mass=0.5)])
    assert (place.q, place.p, place.shift) == pytest.approx((0.6, 0.9, 0.3))
    assert (place.distance, place.tail_mass) == pytest.approx((0.3, 0.1))
    assert (place.beyond, place.covered_mass, place.chosen) == (False, 0.5, 0)
    (same,) = analysis.measure([step(b"a", (0.3, 0.2), (0.6, 0.4))])
    assert (same.shift, same.distance) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_groups_by_hand() -> None:
    steps = [
        step(b"The", (0.5, 0.5), (0.9, 0.1)),  # +0.4
        step(b" end", (0.5, 0.5), (0.7, 0.3), changed=True),  # +0.2
        step(b"ing", (0.5, 0.5), (0.4, 0.6)),  # -0.1
        step(b".", (0.5, 0.5), (0.5, 0.5)),
        step(b" 12", (0.9, 0.1), (0.5, 0.5), tail=(0,), changed=True),  # -0.4
    ]
    places = analysis.measure(steps)
    kinds = {one.name: one for one in analysis.by_kind(places)}
    assert list(kinds) == ["number", "word start", "continuation", "punctuation"]
    word = kinds["word start"]
    assert (word.tokens, word.changed) == (2, 0.5)
    assert (word.shift, word.distance) == pytest.approx((0.3, 0.3))
    assert kinds["number"].beyond == 1.0
    positions = analysis.by_position(places)
    assert [(one.name, one.tokens) for one in positions] == [("1", 1), ("2", 1), ("3–4", 2), ("5–8", 1)]
    assert [one.shift for one in positions] == pytest.approx([0.4, 0.2, -0.05, -0.4])


def test_sides_of_equations() -> None:
    tokens = [b"It", b" is", b" 3", b" *", b" 5", b" =", b" 15", b" eggs", b".", b" x", b" =", b" y"]
    places = analysis.measure([step(token) for token in tokens])
    assert [place.side for place in places[:9]] == ["", "", "left", "left", "left", "", "right", "", ""]
    assert all(place.side == "" for place in places[9:])
    assert [(one.name, one.tokens) for one in analysis.by_side(places)] == [("left of =", 3), ("right of =", 1)]


def test_most_moved_tokens_and_where_they_stand() -> None:
    up, flat = ((0.2, 0.8), (0.8, 0.2)), ((0.5, 0.5), (0.5, 0.5))
    steps = [step(b"a"), step(b" b", *up), step(b" c", *flat), step(b"a"), step(b" b", *up), step(b" c", *flat)]
    once = [step(b" rare", (0.1, 0.9), (1.0, 0.0))]
    moved = analysis.most_moved([analysis.measure(steps), analysis.measure(once)])
    assert [(one.token, one.count) for one in moved] == [
        (b" b", 2),
        (b" c", 2),
        (b"a", 2),
    ]  # what occurs once is no type
    assert moved[0].shift == pytest.approx(0.6)
    assert moved[0].context == (b"a", b" c")
    assert [one.token for one in analysis.most_moved([analysis.measure(once)])] == [b" rare"]


def test_calls_cost_and_acceptance_along_the_text() -> None:
    usages = [Usage(1, 100, 3), Usage(), Usage(1, 101, 2, cached_prompt_tokens=50)]
    steps = [step(b"a", usage=usage, drafted=i != 1) for i, usage in enumerate(usages)]
    prices = Prices(2.0, 1.0, 4.0)
    places = analysis.measure(steps)
    course = analysis.course(places, prices)
    assert course.calls == (1, 1, 2)
    assert course.cost == pytest.approx((212.0, 212.0, 212.0 + 102.0 + 50.0 + 8.0))
    assert course.accepted == pytest.approx((1.0, 0.5, 2 / 3))
    summary = analysis.summarise([places], prices)
    assert (summary.usage.api_calls, summary.calls_per_token, summary.cost) == (2, pytest.approx(2 / 3), 372.0)
    assert analysis.course(places).cost == ()


def test_sweep_by_hand() -> None:
    """q = 0.6, 0.4 and p / q = 0.5, 1.75: the first token leads while 0.6 * 0.5^s > 0.4 * 1.75^s, up to s = 0.324."""
    (low, high) = analysis.sweep([step(b"a")], (0.25, 0.5))
    assert (low.changed, low.kept, high.changed, high.kept) == (0.0, 1.0, 1.0, 0.0)
    (base, used, double) = analysis.sweep([step(b"a")], (0.0, 1.0, 2.0))
    assert (base.distance, used.distance) == pytest.approx((0.0, 0.3))
    assert double.distance == pytest.approx(0.6 - 0.6 * 0.25 / (0.6 * 0.25 + 0.4 * 1.75**2))


def test_a_sweep_from_alpha_0_takes_expert_and_antiexpert() -> None:
    one = step(b"a", (0.6, 0.4), (0.6, 0.4))
    columns = one.candidates
    columns.log_expert[:] = np.log([0.2, 0.8])
    columns.log_antiexpert[:] = np.log([0.5, 0.5])
    (point,) = analysis.sweep([one], (1.0,), alpha=0.0)
    p = 0.6 * 0.4 / (0.6 * 0.4 + 0.4 * 1.6)
    assert (point.changed, point.distance) == (1.0, pytest.approx(0.6 - p))
    assert analysis.sweep([], (1.0,)) == ()


def test_what_cannot_be_is_never_chosen_at_any_alpha() -> None:
    points = analysis.sweep([step(b"a", (0.6, 0.4), (1.0, 0.0))], (0.0, 1.0, 2.0))
    assert [point.changed for point in points] == [0.0, 0.0, 0.0]
    assert points[0].distance == pytest.approx(0.0)


def test_the_sweep_is_what_decoding_at_that_alpha_would_weigh(
    api_base: Callable[..., OpenAIBase], pairs: Callable[[str], TransformersPair]
) -> None:
    """At the first place, where no text has gone its own way yet: real models, several alphas from one trace."""
    prompts = ["The mayor of", "New York said", "There they", "On 12 March"]
    base, pair = api_base(), pairs("digits")
    first = [ProxyTuner(base, pair, alpha=1.0).generate(prompt, max_tokens=1).steps[0] for prompt in prompts]
    for alpha in (0.5, 2.0):
        really = [ProxyTuner(base, pair, alpha=alpha).generate(prompt, max_tokens=1).steps[0] for prompt in prompts]
        (point,) = analysis.sweep(first, (alpha,), alpha=1.0)
        assert point.changed == pytest.approx(np.mean([one.changed for one in really]))
        measured = [analysis.measure([one])[0].distance for one in really]
        assert point.distance == pytest.approx(np.mean(measured), abs=1e-6)  # six decimals are kept


def test_the_candidates_that_tell_most_and_what_is_left_of_the_others() -> None:
    q, p = (0.02, 0.5, 0.3, 0.1, 0.08), (0.01, 0.09, 0.1, 0.2, 0.6)
    found = analysis.telling(step(b"a", q, p, [b"b", b"c", b"d", b"e"], tail=(4,)), 2)
    assert [row.token for row in found.rows] == [b"e", b"b", b"a"]  # likeliest under p, likeliest under q, the chosen
    assert [row.chosen for row in found.rows] == [False, False, True]
    assert [row.estimated for row in found.rows] == [True, False, False]
    assert (found.others, found.others_q, found.others_p) == (2, pytest.approx(0.4), pytest.approx(0.3))


# -- traces -----------------------------------------------------------------------------------------------------------


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


ODD = [
    step(b"\xff\xfe", text=""),
    step(b"\x00"),
    step("\u202eabc".encode()),
    step(b"", end=True, text=""),
    step(b"a", (0.6, 0.4), (1.0, 0.0), how=("prefix", "neutral"), tail=(1,)),
    Step(
        b"", "", None, Candidates((), *[np.empty(0)] * 4, np.empty(0, dtype=bool), ()), 0.0, True, False, True, "stop"
    ),
]


def test_odd_steps_come_back(tmp_path: Path) -> None:
    unknown = Token(None, None, "\ufffd\ud800")
    columns = ODD[4].candidates
    strange = Candidates(
        (columns.tokens[0], unknown),
        columns.log_q,
        columns.log_expert,
        columns.log_antiexpert,
        columns.log_p,
        columns.tail,
        columns.how,
    )
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


def test_what_was_decoded_before_an_error_is_in_the_trace(tmp_path: Path) -> None:
    class Breaks:
        def stream(self, prompt: str, **_: Any) -> Any:
            yield step(b"a")
            raise InputError("broke off")

        async def agenerate(self, prompt: str, **_: Any) -> Generation:
            error = InputError("broke off")
            error.steps = (step(b"b"),)
            raise error

    with TraceFile(tmp_path / "t.jsonl") as file:
        tuner = TracedTuner(Breaks(), file)  # type: ignore[arg-type]
        with pytest.raises(InputError):
            list(tuner.stream("one"))
        with pytest.raises(BlackboxError):
            tuner.generate("two")
        stopped = tuner.stream("three")
        next(stopped)
        stopped.close()
    texts = read_trace(tmp_path / "t.jsonl").texts
    assert [(text.prompt, text.text) for text in texts] == [("one", "a"), ("two", "b"), ("three", "a")]
    assert [text.error for text in texts] == ["InputError: broke off", "InputError: broke off", "GeneratorExit"]
    assert "ended too early" in page_of(*texts)


# -- the page ---------------------------------------------------------------------------------------------------------

HOSTILE = [
    b"</script><script>document.title='owned'</script>",
    b"<img src=x onerror=\"document.title='owned'\">",
    b"<!--",
    b"-->",
    b"]]>",
    b"\"'`><svg/onload=document.title='owned'>",
    b"</style><style>body{display:none}</style>",
    b"</span></div></section>",
    b"&lt;b&gt; &amp; &#x3c;",
    b"<a href=\"javascript:document.title='owned'\">",
    b"<base href=//evil.example><link rel=stylesheet href=//evil.example/x.css>",
    b"\x00\x1b[31m\r",
    "\u202e\u2066rtl\u2028\u2029\ufeff".encode(),
    b"\xff\xc3\x28\xe2\x82",
    b"{{7*7}} ${7*7} %s {0}",
]

ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "nav", "script"),
    *("h1", "h2", "h3", "p", "ul", "ol", "li", "b", "i", "u", "em", "small", "sup", "bdi", "br", "a", "div", "span"),
    *("fieldset", "legend", "input", "label", "details", "summary", "table", "thead", "tbody", "tr", "th", "td"),
    *("figure", "figcaption", "svg", "path"),
}


class Elements(HTMLParser):
    """What a parser finds in a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.comments: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.words).append(data)


def hostile_page() -> tuple[str, list[TracedText]]:
    """Hostile text wherever text comes from: tokens, candidates, prompts, settings, errors, ids, finish reasons."""
    evil = [step(token, (0.1, 0.9), (0.9, 0.1), [token + b"!"], changed=True) for token in HOSTILE for _ in (0, 1)]
    printed = Token(None, None, HOSTILE[0].decode())
    columns = evil[0].candidates
    unknown = Candidates(
        (columns.tokens[0], printed),
        columns.log_q,
        columns.log_expert,
        columns.log_antiexpert,
        columns.log_p,
        columns.tail,
        columns.how,
    )
    evil.append(Step(HOSTILE[0], "", 7, unknown, 0.2, False, True))
    words = [token.decode("utf-8", "replace") for token in HOSTILE]
    texts = [
        text_of(evil, prompt="".join(words), id=words[0], error=words[1]),
        text_of(evil[:3], prompt=[{"role": words[0], "content": words[1]}]),
        text_of(evil[:3], prompt=[1, 2, 3]),
    ]
    names = ("base", "expert", "antiexpert", "tail", "top_logprobs", "temperature")
    return page_of(*texts, prices=Prices(), **dict(zip(names, words, strict=False))), texts


def test_hostile_text_is_shown_and_makes_no_element() -> None:
    page, _ = hostile_page()
    plain = Elements(page_of(text_of([step(b"plain")] * 31), text_of([step(b"a")] * 3), text_of([step(b"a")] * 3)))
    found = Elements(page)
    assert {tag for tag, _ in found.tags} <= ALLOWED
    assert found.comments == []
    assert [tag for tag, _ in found.tags if tag in ("script", "style", "base", "link", "img")] == ["style", "script"]
    assert found.scripts == plain.scripts
    attributes = {name for _, given in found.tags for name in given}
    assert not [name for name in attributes if name.startswith("on")]
    assert [given["href"] for tag, given in found.tags if tag == "a" and not str(given["href"]).startswith("#")] == []
    shown = "".join(found.words)
    for token in HOSTILE:
        assert visible(token, breaks=True) in shown, token
    for raw in "\x00\x1b\r\u202e\u2066\u2028\u2029\ufeff":
        assert raw not in page, hex(ord(raw))


def test_every_byte_is_seen() -> None:
    """No two single bytes look alike, none is dropped and none is a character that does something."""
    signs = [visible(bytes([byte])) for byte in range(256)]
    assert len(set(signs)) == 256
    assert all(sign.isprintable() and sign for sign in signs)
    assert visible(b"ok\xff\xe6\x9d\xb1\xe6") == "ok\\xff東\\xe6"
    assert visible("שלום 👩\u200d💻".encode()) == "שלום 👩\u200d💻"
    assert visible(b"a\nb", breaks=True) == "a⏎\nb"


def test_a_character_over_several_tokens_stands_where_it_ends() -> None:
    first, second, third = step(b"\xe6\x9d", text=""), step(b"\xb1", text="東"), step(b"\xff!", text="!")
    page = page_of(text_of([first, second, third]))
    pieces = re.findall(r'class="k[^"]*" tabindex=0>(.*?)<div class="i">', page)
    assert pieces == ['<i class="h">‥</i>', "東", "\\xff!"]


def test_the_page_loads_nothing_and_lets_only_its_own_script_run() -> None:
    page, _ = hostile_page()
    found = Elements(page)
    policy = next(str(given["content"]) for tag, given in found.tags if given.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
    for _, given in found.tags:
        assert not {"src", "srcset", "action", "data", "poster", "background"} & given.keys()
    own = page_of(text_of([step(b"plain")]))
    assert not re.search(r"https?://|url\(|@import|//[a-z]", own.replace("// ", ""))
    assert 'name="viewport"' in page


def test_a_page_of_500_tokens_is_under_a_megabyte() -> None:
    """20 candidates of the base and 32 of the tail for each token, all of them far from certain."""
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(500):
        q, p = rng.dirichlet(np.ones(52)), rng.dirichlet(np.ones(52))
        others = [b" candidate" + bytes([65 + i % 26]) for i in range(51)]
        one = step(b" chosen", q, p, others, tail=range(20, 52), changed=True, drafted=False, usage=Usage(1, 100, 1))
        steps.append(one)
    page = page_of(text_of(steps), prices=Prices())
    assert len(page.encode()) < 1_000_000
    assert page.count('<div class="i">') == 500
    assert "43 others" in page or "44 others" in page


def test_many_texts_are_listed_and_only_the_first_ones_shown() -> None:
    texts = [text_of([step(b"a")] * 5, prompt=f"prompt {i}") for i in range(4)]
    page = html.page(overview([("t", Trace({"alpha": 1.0}, tuple(texts)))]), tokens=11)
    assert [
        given["href"] for tag, given in Elements(page).tags if tag == "a" and str(given["href"]).startswith("#s")
    ] == [
        "#s1",
        "#s2",
    ]
    assert all(f"prompt {i}" in page for i in range(4))
    assert "The first 2 are shown" in page


def test_the_page_says_when_k_was_too_small() -> None:
    low = [step(b"a", covered_mass=0.3)] * 3 + [step(b"a")] * 2
    assert "At 3 of 5 places the base showed less than 50%" in page_of(text_of(low))
    assert "showed less than" not in page_of(text_of([step(b"a")]))


def test_tokens_that_a_stop_string_cut_are_faint() -> None:
    steps = [step(b"one"), step(b"STOP", text="")]
    assert [place.in_text for place in analysis.measure(steps, text="one")] == [True, False]
    assert re.search(r'class="k [^"]* o" tabindex=0>STOP', page_of(text_of(steps)))
    lone = [step(b"\xff", text=""), step(b"\xe6", text=""), step(b"a"), step(b"b"), step(b"", end=True)]
    assert all(place.in_text for place in analysis.measure(lone, text="ab"))


# -- the command ------------------------------------------------------------------------------------------------------


def test_generate_keeps_a_trace_and_report_shows_it(
    run: Run, tmp_path: Path, models: dict[str, str], hosted: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key")
    pair = ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"]
    api = ["--base", "big", "--base-url", hosted(5), "--dialect", "vllm", "--tokenizer", models["base"]]
    traces = []
    for alpha in ("1", "0.5"):
        traces.append(str(tmp_path / f"{alpha}.jsonl"))
        asked = ["generate", "The mayor of", *api, *pair, "-n", "24", "--alpha", alpha, "--trace", traces[-1]]
        status, out, _ = run(*asked, "--prices", "1,1,2")
        assert status == 0
        (text,) = read_trace(traces[-1]).texts
        assert (text.prompt, text.text.rstrip("\n"), len(text.steps)) == ("The mayor of", out.rstrip("\n"), 24)
        kept = Path(traces[-1]).read_text()
        assert "sk-secret-key" not in kept
        assert hosted(5) not in kept
    status, _, err = run(*asked)
    assert (status, "exists already" in err) == (2, True)

    status, out, err = run("report", traces[0])
    assert status == 0
    assert "24 tokens" in out
    assert "By kind of token" in out
    assert "cost" in out

    page = tmp_path / "report.html"
    status, out, err = run("report", *traces, "-o", str(page))
    assert (status, out) == (0, "")
    assert f"{page}: " in err.replace("\n", "")
    found = Elements(page.read_text("utf-8"))
    assert sum(tag == "span" and "tabindex" in given for tag, given in found.tags) == 24
    assert len([1 for tag, given in found.tags if tag == "path" and "dot" in str(given.get("class"))]) == 2
    status, out, _ = run("report", *traces, "--json")
    figures = json.loads(out)
    assert figures["summary"]["tokens"] == 24
    assert [one["alpha"] for one in figures["runs"]] == [1.0, 0.5]
    used = next(point for point in figures["sweep"] if point["scale"] == 1.0)
    assert used["changed"] == pytest.approx(figures["summary"]["overall"]["changed"])


def test_a_json_generation_is_traced_too_and_a_failed_one_leaves_no_file(
    run: Run, tmp_path: Path, models: dict[str, str]
) -> None:
    pair = ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"]
    path = tmp_path / "t.jsonl"
    status, _, _ = run("generate", "a", "--local", "--base", "./nowhere", *pair, "--trace", str(path))
    assert (status, path.exists()) == (1, False)
    options = ["--local", "--base", models["base"], *pair, "-n", "4", "--json", "--trace", str(path)]
    status, out, _ = run("generate", "New York", *options)
    assert (status, read_trace(path).texts[0].text) == (0, json.loads(out)["text"])


def test_a_bulk_run_keeps_a_trace_and_goes_on_with_it(run: Run, tmp_path: Path, models: dict[str, str]) -> None:
    pair = ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"]
    rows, out, trace = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "t.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"New York {i}"}) + "\n" for i in range(3)))
    asked = ["run", str(rows), "-o", str(out), "--local", "--base", models["base"], *pair, "-n", "4", "--trace"]
    assert run(*asked, str(trace), "--limit", "2")[0] == 0
    assert run(*asked, str(trace), "--resume")[0] == 0
    assert {text.prompt for text in read_trace(trace).texts} == {f"New York {i}" for i in range(3)}
    assert "3 texts" in run("report", str(trace), "-o", str(tmp_path / "r.html"))[2]


BAD: dict[str, tuple[list[str], str]] = {
    "nowhere": (["nowhere.jsonl"], "nowhere.jsonl"),
    "prices": (["TRACE", "--prices", "much"], "--prices"),
    "candidates": (["TRACE", "--candidates", "0"], "at least 1"),
    "no folder": (["TRACE", "-o", "nowhere/r.html"], "cannot be written"),
    "no texts": (["EMPTY"], "has no texts"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_what_goes_wrong_is_said_with_a_hint(arguments: list[str], said: str, run: Run, tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl") as file:
        file.add("a", ODD)
    (tmp_path / "e.jsonl").write_text('{"format": "blackbox-proxy trace", "version": 1}\n')
    named = {"TRACE": str(tmp_path / "t.jsonl"), "EMPTY": str(tmp_path / "e.jsonl")}
    status, _, err = run("report", *(named.get(one, one) for one in arguments))
    assert (status, said in err, "Hint:" in err, "Traceback" in err) == (2, True, True, False)


def test_the_terminal_obeys_no_token(run: Run, tmp_path: Path) -> None:
    _, texts = hostile_page()
    with TraceFile(tmp_path / "t.jsonl", {"alpha": 1.0}) as file:
        for text in texts:
            file.add(text.prompt, text.steps)
    status, out, _ = run("report", str(tmp_path / "t.jsonl"))
    assert status == 0
    assert not set("\x00\x1b\r\u202e\u2066\u2028") & set(out)
    assert "[31m" in out  # as text, after a sign for what began it


def test_a_text_that_ended_unseen_at_once_can_be_looked_at(run: Run, tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl") as file:
        file.add("a", ODD[-1:])
    assert run("report", str(tmp_path / "t.jsonl"))[0] == 0
    _, out, _ = run("report", str(tmp_path / "t.jsonl"), "--json")
    assert json.loads(out, parse_constant=pytest.fail)["summary"]["covered_mass"] is None
    page = page_of(text_of(ODD[-1:]))
    assert "without showing candidates" in page
    assert not re.search(r"\bnan\b", page)
    assert math.isnan(analysis.summarise([analysis.measure(ODD[-1:])]).covered_mass)


# -- in a browser -----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
@pytest.mark.parametrize("policy", [True, False], ids=["as it is", "without its policy"])
def test_a_browser_runs_nothing_that_a_token_says(policy: bool, tmp_path: Path) -> None:
    page, _ = hostile_page()
    if not policy:  # escaping alone must be enough
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (tmp_path / "r.html").write_text(page, "utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options = [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [*command, *options, (tmp_path / "r.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "<title>Proxy-tuning report</title>" in done.stdout
    assert "<img" not in done.stdout
    assert done.stdout.count("<script>") == 1
    assert re.search(r'tabindex="-1"', done.stdout), "the page's own script did not run"
