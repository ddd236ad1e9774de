"""The page at / in a real browser: Debian's Chromium, driven by its chromedriver. `pytest -m browser`.

With BLACKBOX_PROXY_SCREENSHOTS=FOLDER it leaves pictures of the page there: light, dark, and as wide as a phone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways import Gateway, Pairs, gateway

from blackbox_proxy import ProxyTuner
from blackbox_proxy.gateway.keys import Keys, new_key
from blackbox_proxy.screen.visible import piece

PROMPT = "The mayor of New York"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SIZES = {"light": (1280, 1000), "dark": (1280, 1000), "phone": (390, 844)}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium or no chromedriver on this machine"),
]


class Page:
    """The page, as a person uses it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.open(url)

    def open(self, url: str) -> None:
        self.driver.get(url + "/")

    def at(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def until(self, wanted: Callable[[], Any], seconds: float = 60.0) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: wanted())

    def run(self, prompt: str, tokens: int = 24) -> None:
        self.until(lambda: self.at("run").is_enabled())
        self.put("most", str(tokens))
        self.put("prompt", prompt)
        self.at("run").click()

    def put(self, name: str, text: str) -> None:
        self.at(name).clear()
        self.at(name).send_keys(text)

    def done(self) -> None:
        self.until(lambda: self.at("status").text == "Done.")

    def tokens(self, side: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", f"#{side}text .k"))

    def text(self, side: str) -> str:
        return str(self.at(f"{side}text").get_property("textContent"))

    def opened(self) -> bool:
        """Whether the candidates of a token are shown."""
        return "on" in self.at("why").get_attribute("class").split()

    def complaints(self) -> list[str]:
        """What the browser complained of."""
        return [line["message"] for line in self.driver.get_log("browser") if "favicon" not in line["message"]]

    def media(self, scheme: str, width: int, height: int) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    for flag in (*flags, "disable-component-update", "disable-sync", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield found
    found.quit()


@pytest.fixture
def page(driver: Any, running: Gateway) -> Page:
    found = Page(driver, running.url)
    found.media("light", 1280, 1000)
    return found


def test_both_texts_are_written_and_what_they_cost_is_counted(page: Page, tuner: ProxyTuner) -> None:
    page.run(PROMPT)
    page.done()
    wanted = tuner.generate(PROMPT, max_tokens=24)
    shown, waiting = "", b""
    for step in wanted.steps:
        text, waiting = piece(waiting + step.token)
        shown += text + ("‥" if waiting else "")
    assert page.text("right") == shown
    assert page.text("left").strip()
    assert page.text("left") != page.text("right")
    coloured = [t for t in page.tokens("right") if {"s1", "s2", "s3", "s4"} & set(t.get_attribute("class").split())]
    assert len(coloured) == sum(
        p >= 0.02 for p in (float(t.get_property("step")["shift"]) for t in page.tokens("right"))
    )
    assert coloured
    assert [t for t in page.tokens("left") if t.get_attribute("class") != "k"] == []
    assert int(page.at("calls").text) >= 2
    assert int(page.at("billed").text) > 24
    assert float(page.at("cost").text) > 0
    assert "24 tokens" in page.at("rightfigures").text
    assert page.complaints() == []


def test_candidates_are_shown_on_hover_and_by_keyboard(page: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    page.run(PROMPT, 12)
    page.done()
    tokens, why = page.tokens("right"), page.at("why")
    assert not page.opened()
    ActionChains(page.driver).move_to_element(tokens[2]).perform()
    page.until(page.opened)
    rows = why.find_elements("css selector", "tr")
    assert [cell.text for cell in rows[0].find_elements("css selector", "th")][1:] == ["q", "E", "A", "p"]
    assert 8 <= len(rows) - 1 <= 9
    assert len(why.find_elements("css selector", "tr.x")) == 1
    for side in ("left", "right"):  # one stop of the tab key for each text
        assert [t.get_attribute("tabindex") for t in page.tokens(side)].count("0") == 1
    page.driver.execute_script("arguments[0].focus()", tokens[0])
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert page.driver.switch_to.active_element == tokens[1]
    assert tokens[1].get_attribute("aria-current") == "true"
    page.driver.switch_to.active_element.send_keys(Keys.END)
    assert page.driver.switch_to.active_element == tokens[-1]
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.opened()
    assert page.complaints() == []


def test_the_slider_stays_within_the_operators_bounds(page: Page) -> None:
    from selenium.webdriver import Keys

    page.until(lambda: page.at("weight").is_displayed())
    alpha = page.at("alpha")
    assert (alpha.get_attribute("min"), alpha.get_attribute("max")) == ("0", "2")
    page.run(PROMPT)
    page.done()
    alpha.send_keys(Keys.HOME)
    assert page.at("alphasaid").text == "0"
    page.at("run").click()
    page.done()
    page.until(lambda: page.text("right") == page.text("left"))  # alpha 0 is the base
    from selenium.webdriver.support.ui import Select

    Select(page.at("right")).select_by_visible_text("half")  # its operator gives no bounds, nor steps
    assert not page.at("weight").is_displayed()
    page.run(PROMPT)
    page.done()
    assert page.text("right").strip()
    assert page.tokens("right") == []


def test_a_refusal_is_said_and_markup_stays_text(page: Page) -> None:
    page.run("<img src=x onerror=alert(1)><b>bold</b>", 100000)
    assert not page.at("most").get_property("validity")["valid"]
    page.run("word " * 3000, 12)
    page.until(lambda: page.at("status").get_attribute("class") == "say")
    assert "context" in page.at("status").text
    page.driver.execute_script(
        "write(document.getElementById('righttext'), {text: '<img src=x onerror=alert(1)>', shift: 0, candidates: []})"
    )
    assert page.text("right") == "<img src=x onerror=alert(1)>"
    assert page.driver.find_elements("css selector", "img") == []


def test_with_keys_the_page_asks_for_one(
    driver: Any, models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str], tmp_path: Path
) -> None:
    key = new_key("ada", tmp_path / "keys.toml")
    with gateway(models, pairs, hosted(5), keys=Keys.read(tmp_path / "keys.toml")) as found:
        page = Page(driver, found.url)
        page.until(lambda: page.at("key").is_displayed())
        assert not page.at("run").is_enabled()
        page.put("key", "wrong")
        page.at("unlock").click()
        page.until(lambda: page.at("status").text == "This key is not known here.")
        page.put("key", key)
        page.at("unlock").click()
        page.run(PROMPT, 8)
        page.done()
        assert len(page.tokens("right")) == 8
        page.driver.get("about:blank")  # closes its connections


@pytest.mark.parametrize("name", list(SIZES))
def test_nothing_is_cut_off(page: Page, name: str) -> None:
    width, height = SIZES[name]
    page.media("dark" if name == "dark" else "light", width, height)
    page.run(PROMPT)
    page.done()
    page.driver.execute_script("arguments[0].focus()", page.tokens("right")[2])
    page.until(page.opened)
    widest = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert widest <= width
    folder = os.environ.get("BLACKBOX_PROXY_SCREENSHOTS")
    if folder:
        page.driver.save_screenshot(str(Path(folder) / f"page-{name}.png"))
