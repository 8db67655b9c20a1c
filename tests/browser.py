"""A headless Chromium, spoken to over two pipes: what a page shows, says and asks for."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


def needs_browser(test: Test) -> Test:
    """Skip a test where no Chromium is."""
    there = pytest.mark.skipif(not CHROMIUM, reason="no Chromium to open the page")
    return pytest.mark.optional(there(test))


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One tab. `complaints` gathers errors and warnings of the console, `requests` every address that is asked for.

    Args:
        width: of the screen in CSS pixels.
        dark: whether the user prefers a dark page.
    """

    def __init__(self, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        self.width, self.height, self.dark = width, height, dark
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.number, self.loaded = 0, False

    def __enter__(self) -> "Browser":
        self.profile = tempfile.mkdtemp()
        there, self.out = os.pipe()
        self.answers, back = os.pipe()
        words = [CHROMIUM, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(  # Chromium reads from 3 and writes to 4
            ["bash", "-c", f'exec "$@" 3<&{there} 4>&{back}', "bash", *words], pass_fds=(there, back),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": self.profile},
        )  # fmt: skip
        os.close(there), os.close(back)
        self.inbox, self.session = os.fdopen(self.answers, "rb"), ""
        self.rest = b""
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        self("Emulation.setDeviceMetricsOverride", width=self.width, height=self.height, deviceScaleFactor=1,
             mobile=self.width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self.out)
        self.process.terminate()
        self.process.wait(30)
        self.inbox.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    def __call__(self, method: str, **params: Any) -> Any:
        """One command of the DevTools protocol, and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self.rest:
            read = self.inbox.read1(1 << 20)  # type: ignore[attr-defined]
            assert read, "Chromium has gone"
            self.rest += read
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(params["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Page.loadEventFired":
                self.loaded = True
        return message

    def open(self, path: Path) -> None:
        """Load a file, and wait until it and its scripts are done."""
        self.loaded = False
        self("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._next()
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        done = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        height = self.run("document.documentElement.scrollHeight")
        self("Emulation.setDeviceMetricsOverride", width=self.width, height=height, deviceScaleFactor=1,
             mobile=self.width < 600)  # fmt: skip
        self.run("new Promise(done => setTimeout(() => done(1), 500))")
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it is printed."""
        path.write_bytes(base64.b64decode(self("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]))
