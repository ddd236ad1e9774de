"""A trace as one page that needs nothing else: no network, no library, and for all that matters no JavaScript.

Every token of the text is an element that carries its candidates; style sheets alone show them on hover, tap and
keyboard focus. What models wrote is made visible (`visible`) and escaped before it enters the page; a content security
policy lets no script run but the page's own, whatever a token says, and nothing be loaded from anywhere.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from blackbox_proxy.analysis import Factors, Place, Telling, telling
from blackbox_proxy.report import sections
from blackbox_proxy.report.numbers import num, signed
from blackbox_proxy.report.overview import Overview, View
from blackbox_proxy.screen.styles import token_styles
from blackbox_proxy.screen.visible import piece, quoted
from blackbox_proxy.types import Step
from blackbox_proxy.version import __version__

_SHIFTS = (0.02, 0.1, 0.3, 0.6)
_COVERED = (0.9, 0.75, 0.5, 0.25)
_VIEWS = ("shift", "distance", "hidden mass", "drafts")
_MARKS = {"exact": "", "estimated": "≈", "prefix": "†", "neutral": "‡"}


def page(overview: Overview, *, candidates: int = 8, tokens: int = 3000) -> str:
    """The whole page. candidates: those shown of each token; tokens: texts are shown while they have no more than so
    many tokens together, the first one always.
    """
    style, script = token_styles() + _resource("page.css"), _resource("page.js")
    allowed = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; "
        "base-uri 'none'; form-action 'none'"
    )
    shown = _shown(overview.views, tokens)
    factors = Factors.of(overview.settings)
    body = "".join(
        (
            sections.head(overview),
            sections.index(overview.views, shown),
            '<main><div class="bar">',
            _controls(),
            "</div>",
            *(_text(view, candidates, factors) for view in overview.views[:shown]),
            "</main>",
            sections.influence(overview),
            sections.alphas(overview),
            sections.reading(candidates),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">\n'
        f"<title>Proxy-tuning report</title>\n<style>{style}</style></head>\n<body>\n{body}"
        f"<footer><small>Made by blackbox-proxy {escape(__version__)}. This page holds the prompts and the texts; it "
        f"loads nothing and sends nothing.</small></footer>\n<script>{script}</script></body></html>\n"
    )


def _resource(name: str) -> str:
    return (files("blackbox_proxy.report") / name).read_text(encoding="utf-8")


def _shown(views: Sequence[View], most: int) -> int:
    count = 0
    for shown, view in enumerate(views):
        count += len(view.places)
        if shown and count > most:
            return shown
    return len(views)


def _controls() -> str:
    radios = "".join(
        f'<input type="radio" name="v" id="v{i}"{" checked" if i == 1 else ""}><label for="v{i}">{name}</label>'
        for i, name in enumerate(_VIEWS, 1)
    )
    marks = '<span class="k w">likeliest token changed</span> <span class="k y">not among those the base showed</span>'
    up = " ".join(f'<span class="k s{i}">{low:g}</span>' for i, low in enumerate(_SHIFTS, 1))
    down = " ".join(f'<span class="k l{i}">−{low:g}</span>' for i, low in enumerate(_SHIFTS, 1))
    far = " ".join(f'<span class="k t{i}">{low:g}</span>' for i, low in enumerate(_SHIFTS, 1))
    low = " ".join(f'<span class="k c{i}">&lt; {high:g}</span>' for i, high in enumerate(_COVERED, 1))
    keys = (
        f"p − q of the chosen token, from {up} raised, {down} lowered. {marks}",
        f"total variation between q and p, from {far}. {marks}",
        f"share of the base’s probability that it showed, {low}. {marks}",
        '<span class="k r">not drafted: put in by the proxy</span> '
        '<span class="k q">\u00a0a request was paid for here</span>',
    )
    shown = "".join(f'<div class="key key{i}">{key}</div>' for i, key in enumerate(keys, 1))
    return f'<fieldset class="views"><legend>Colour by</legend>{radios}</fieldset>{shown}\n'


# -- one text ---------------------------------------------------------------------------------------------------------


def _text(view: View, candidates: int, factors: Factors | None) -> str:
    name = f"t{view.number}"
    tokens = "".join(_tokens(view, candidates, factors))
    return (
        f'<section id="s{view.number}"><h2>Text {view.number}</h2>{sections.text_head(view)}'
        f'<a class="skip" href="#a{view.number}">Skip the tokens</a>'
        f'<div class="read"><div class="text" id="{name}" dir="auto">{tokens}</div>'
        '<div class="hint">Point at a token, tap it, or reach it by Tab and the arrow keys: its candidates are shown '
        "here, with q (base), E (expert), A (anti-expert), and p (after the proxy).</div></div>"
        f'<div id="a{view.number}">{sections.along(view, name)}</div></section>\n'
    )


def _tokens(view: View, candidates: int, factors: Factors | None) -> Iterator[str]:
    unfinished = b""
    for place, step in zip(view.places, view.steps, strict=True):
        unfinished += place.token
        shown, unfinished = _piece(place, unfinished)
        inspector = _inspector(place, telling(step, candidates, factors), step)
        yield f'<span class="{_classes(place)}" tabindex=0>{shown}{inspector}</span>'


def _piece(place: Place, text: bytes) -> tuple[str, bytes]:
    """What stands in the text for a token, and the bytes that wait for the rest of their character."""
    if place.end:
        return '<i class="g e">⏹\u00a0end</i>', b""
    if not place.token:
        return '<i class="g">∅</i>', text
    signs, waiting = piece(text)
    written = escape(signs).replace("⏎\n", '<i class="g">⏎</i>\n')
    return (written + '<i class="h">‥</i>' if waiting else written), waiting


def _classes(place: Place) -> str:
    names = ["k"]
    if place.chosen is not None:
        level = _level(abs(place.shift))
        names += [f"{'s' if place.shift > 0 else 'l'}{level}"] if level else []
        far = _level(place.distance)
        names += [f"t{far}"] if far else []
        low = sum(place.covered_mass < bound for bound in _COVERED)
        names += [f"c{low}"] if low else []
        if place.beyond:
            names.append("y")
        elif place.changed:
            names.append("w")
    if not place.drafted:
        names.append("r")
    if place.usage.api_calls:
        names.append("q")
    if not place.in_text:
        names.append("o")
    return " ".join(names)


def _level(value: float) -> int:
    return sum(value >= low for low in _SHIFTS)


def _inspector(place: Place, found: Telling, step: Step) -> str:
    number = "" if step.token_id is None else f" · id {step.token_id}"
    whose = "the expert’s draft" if place.local else "the base’s draft"
    drafted = f"kept from {whose}" if place.drafted else "put in place of the draft"
    head = (
        f"<b>{escape(quoted(place.token, end=place.end))}</b> <em>token {place.index + 1} · {place.kind}{number}</em>"
    )
    cut = "" if place.in_text else " · not in the text (stop string)"
    if place.chosen is None:
        return f'<div class="i">{head}<u>The base ended the text here without showing candidates.</u></div>'
    moved = (
        f"q {num(place.q)} → p {num(place.p)} · shift {signed(place.shift)} · distance {num(place.distance)}"
        f"<br>base showed {num(place.covered_mass)} · {drafted}{cut}"
    )
    rows = "".join(
        f"<tr{' class=x' if row.chosen else ''} style=--q:{100 * row.q:.0f};--p:{100 * row.p:.0f}>"
        f"<td>{escape(_name(row.token, row.printed, row.end))}<td>{'~' if row.estimated else ''}{num(row.q)}"
        f"<td>{num(row.expert)}{_MARKS[row.how]}<td>{num(row.antiexpert)}<td>{num(row.p)}{_terms(row.terms)}"
        for row in found.rows
    )
    heads = "".join(f"<th>+{name}" for name in Factors.names) if any(row.terms for row in found.rows) else ""
    rest = f"<em>{found.others} others: q {num(found.others_q)}, p {num(found.others_p)}</em>" if found.others else ""
    return f'<div class="i">{head}<u>{moved}</u><table><tr><th><th>q<th>E<th>A<th>p{heads}{rows}</table>{rest}</div>'


def _terms(terms: tuple[float, ...]) -> str:
    """What each term adds to log p, where weights are learned."""
    return "".join(f"<td>{signed(term)}" for term in terms)


def _name(token: bytes, printed: str, end: bool) -> str:
    if token or end or not printed:
        return quoted(token, end=end)
    return quoted(printed.encode("utf-8", "replace"))
