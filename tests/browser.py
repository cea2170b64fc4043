"""Headless Chromium for the tests of the HTML report: Debian's packages chromium and chromium-driver.

``make browser`` installs them, where it may, and fetches axe-core. Without them the tests are skipped.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Screenshots are kept here, as artefacts; git ignores the folder.
SHOTS = ROOT / ".cache" / "screenshots"
AXE = ROOT / ".cache" / "browser" / "axe.min.js"

_ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking "
    "--disable-component-update --disable-sync --no-first-run --hide-scrollbars --lang=en-US"
).split()


class Browser:
    """One page at a time."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, scheme: str = "light", width: int = 1200) -> None:
        """Show a file and wait until its pictures are drawn."""
        self.size(width, 900)
        self._cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.complaints(), self.requests()
        self.driver.get(page.as_uri())
        self.wait("document.documentElement.dataset.ready === 'yes'")

    def wait(self, condition: str) -> None:
        """Until an expression of JavaScript is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, 60, poll_frequency=0.05)
        waiting.until(lambda driver: driver.execute_script(f"return {condition}"))

    def unfold(self, selector: str = "details") -> None:
        """Open what is folded, and wait until it is filled."""
        self.run("for (const d of document.querySelectorAll(arguments[0])) d.open = true", selector)
        folded = f"[...document.querySelectorAll({json.dumps(selector)})]"
        self.wait(f"{folded}.every((d) => !d.open || d.children.length > 1)")

    def size(self, width: int, height: int) -> None:
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def run(self, script: str, *arguments: object) -> Any:
        """What a script answers that is a function's body."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def complaints(self) -> list[str]:
        """What the console said since the last time: errors, and what the policy forbade."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last time."""
        messages = [json.loads(m["message"])["message"] for m in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def shot(self, name: str, selector: str | None = None, most: int = 15_000) -> Path:
        """A picture of the whole page, or of one element, its upper ``most`` pixels, kept as ``name``.png."""
        where = "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        where += "return [r.x + scrollX, r.y + scrollY, r.width, r.height]"
        x, y, width, height = self.run(where, selector or "html")
        clip = {"x": x, "y": y, "width": width, "height": min(height, most), "scale": 1}
        made = self._cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        SHOTS.mkdir(parents=True, exist_ok=True)
        (SHOTS / f"{name}.png").write_bytes(base64.b64decode(made["data"]))
        return SHOTS / f"{name}.png"

    def press(self, *keys: str) -> None:
        """Keys, to whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> Any:
        return self.driver.switch_to.active_element

    def _cdp(self, command: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)


@contextmanager
def started() -> Iterator[Browser]:
    """A browser; a test that has none is skipped, with the reason."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("no chromium and chromedriver on this machine (make browser)")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    quiet = {**os.environ, "no_proxy": "localhost,127.0.0.1"}
    driver = webdriver.Chrome(options=options, service=Service(chromedriver, env=quiet))
    try:
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        yield Browser(driver)
    finally:
        driver.quit()
