"""The page of a server in Chromium: Debian's packages `chromium` and `chromium-driver`."""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

WAIT_S = 60  # at most, on a busy machine


class Page:
    """The page in a browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def script(self, expression: str, *arguments: Any) -> Any:
        return self.browser.execute_script(f"return {expression}", *arguments)

    def until(self, happened: Callable[[], bool]) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        stale = (StaleElementReferenceException,)
        wait = WebDriverWait(self.browser, WAIT_S, poll_frequency=0.02, ignored_exceptions=stale)
        wait.until(lambda _: happened())

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self.browser.switch_to.active_element.send_keys(*(getattr(Keys, key) for key in keys))

    def ask(self, question: str = "Where does it end?") -> None:
        self.one("#question").clear()
        self.one("#question").send_keys(question)
        self.one("#ask [type=submit]").click()

    def ask_to_the_end(self) -> None:
        self.script(
            "void document.querySelector('#ask').addEventListener("
            "'submit', () => { window.wasAsked = true; }, { once: true }), window.wasAsked = false"
        )
        self.ask()
        self.until(lambda: self.script("window.wasAsked"))  # a click may come late
        self.until(lambda: not self.one("#stop").is_enabled())

    def states(self, run: int = 1) -> dict[str, str | None]:
        """Role -> active, done or None; of the edges, the roles that have sent."""
        boxes = self.all(f".run:nth-child({run}) [data-role]")
        return {box.get_attribute("data-role"): box.get_attribute("data-state") for box in boxes}

    def sent(self) -> list[str]:
        return [path.get_attribute("data-from") for path in self.all("path[data-state=sent]")]

    def set(self, name: str, value: float, run: int = 1) -> None:
        """Moves a slider, as a user does with the arrow keys."""
        slider = self.one(f".run:nth-child({run}) [name={name}]")
        moved = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.browser.execute_script(moved, slider, value)

    def emulate(self, **features: str) -> None:
        """Media features, such as prefers_color_scheme="dark"."""
        listed = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": listed})

    def size(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def screenshot(self, path: Path) -> None:
        """The whole page, in 256 colours."""
        taken = self.browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
        )
        with Image.open(io.BytesIO(base64.b64decode(taken["data"]))) as picture:
            picture.convert("RGB").quantize(256).save(path, optimize=True)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window; a test is skipped where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        yield browser


def opened(browser: Any, address: str) -> Page:
    """The page at an address, in light and without motion, once it knows its team, or why not."""
    page = Page(browser)
    page.size(1000)
    page.emulate(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    browser.get(address)
    page.until(lambda: page.all(".run") or page.one("#notice").text)
    return page
