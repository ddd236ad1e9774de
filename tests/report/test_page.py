"""The page shows every byte that a model wrote, and what a model wrote never runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from steps import HOSTILE, Elements, hostile_page, page_of, step, text_of

from blackbox_proxy import analysis
from blackbox_proxy.prices import Prices
from blackbox_proxy.report import html
from blackbox_proxy.report.overview import overview
from blackbox_proxy.screen.visible import visible
from blackbox_proxy.trace import Trace
from blackbox_proxy.types import Usage

ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "nav", "script"),
    *("h1", "h2", "h3", "p", "ul", "ol", "li", "b", "i", "u", "em", "small", "sup", "bdi", "br", "a", "div", "span"),
    *("fieldset", "legend", "input", "label", "details", "summary", "table", "thead", "tbody", "tr", "th", "td"),
    *("figure", "figcaption", "svg", "path"),
}


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
        q, p = rng.dirichlet(np.ones(52)).tolist(), rng.dirichlet(np.ones(52)).tolist()
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
