"""Steps, texts and pages made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from blackbox_proxy.prices import Prices
from blackbox_proxy.report import html
from blackbox_proxy.report.overview import overview
from blackbox_proxy.trace import Trace, TracedText
from blackbox_proxy.types import Candidates, How, Step, Token

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
    exact: How = "exact"
    hows = tuple(how) or (exact,) * count
    columns = Candidates(
        tokens,
        log_q,
        log_q - 0.5,
        log_q - 1.0,
        log_p,
        np.isin(np.arange(count), list(tail)),
        hows,
    )
    text = fields.pop("text", token.decode("utf-8", "ignore"))
    given = {"covered_mass": 1.0, "drafted": True, "changed": False} | fields
    return Step(token, text, 7, columns, **given)


def text_of(steps: Sequence[Step], prompt: Any = "Say: ", **fields: Any) -> TracedText:
    return TracedText(prompt, "".join(one.text for one in steps), tuple(steps), "length", **fields)


def page_of(*texts: TracedText, prices: Prices | None = None, **settings: Any) -> str:
    return html.page(overview([("trace.jsonl", Trace({"alpha": 1.0, **settings}, texts))], prices))


def with_second(columns: Candidates, token: Token) -> Candidates:
    """These two candidates with another one for the second."""
    return replace(columns, tokens=(columns.tokens[0], token))


NONE = np.empty(0)
UNSEEN = Candidates((), NONE, NONE, NONE, NONE, np.empty(0, dtype=bool), ())
ODD = [
    step(b"\xff\xfe", text=""),
    step(b"\x00"),
    step("\u202eabc".encode()),
    step(b"", end=True, text=""),
    step(b"a", (0.6, 0.4), (1.0, 0.0), how=("prefix", "neutral"), tail=(1,)),
    Step(b"", "", None, UNSEEN, 0.0, True, False, True, "stop"),
]

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
    unknown = with_second(evil[0].candidates, printed)
    evil.append(Step(HOSTILE[0], "", 7, unknown, 0.2, False, True))
    words = [token.decode("utf-8", "replace") for token in HOSTILE]
    texts = [
        text_of(evil, prompt="".join(words), id=words[0], error=words[1]),
        text_of(evil[:3], prompt=[{"role": words[0], "content": words[1]}]),
        text_of(evil[:3], prompt=[1, 2, 3]),
    ]
    names = ("base", "expert", "antiexpert", "tail", "top_logprobs", "temperature")
    return page_of(*texts, prices=Prices(), **dict(zip(names, words, strict=False))), texts
