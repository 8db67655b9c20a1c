"""A headless Chromium, driven by Selenium: what a page shows, says and asks for."""

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest

try:
    from selenium import webdriver
except ImportError:
    webdriver = None  # type: ignore[assignment]

Test = TypeVar("Test")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", NO_NETWORK)


def needs_browser(test: Test) -> Test:
    """Skip a test where Chromium, its driver or Selenium is missing."""
    there = pytest.mark.skipif(None in (webdriver, CHROMIUM, DRIVER), reason="no Chromium with its driver and Selenium")
    return pytest.mark.optional(there(test))


class Browser:
    """One tab of so many CSS pixels, whose user likes it dark or light, on a screen or on paper (media="print")."""

    def __init__(self, width: int = 1200, dark: bool = False, media: str = "screen") -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        options.set_capability("goog:loggingPrefs", {"browser": "WARNING", "performance": "ALL"})
        for flag in FLAGS:
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.driver.quit()

    def open(self, path: Path) -> None:
        """Load a file; it asks for nothing but itself, and its console stays empty."""
        self.driver.get_log("performance")
        self.driver.get(path.resolve().as_uri())
        log = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [entry["params"]["request"]["url"] for entry in log if entry["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith("data:")] == [path.resolve().as_uri()]
        assert self.driver.get_log("browser") == []

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.driver.execute_script(f"return {expression}")
