"""A headless Chromium, spoken to in its own protocol over a pipe: real keys, widths and themes."""

import base64
import json
import os
import select
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
MISSING = "needs chromium in the PATH: pages are opened in a real browser"
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe"),
)
PATIENCE = 60.0  # seconds for one answer
KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " ")}
KEYS |= {f"Arrow{way}": (37 + n, "") for n, way in enumerate(("Left", "Up", "Right", "Down"))}


class Browser:
    """One page of one browser; a context manager."""

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        to_browser, self.writes = os.pipe()
        self.reads, from_browser = os.pipe()
        # The protocol's descriptors are 3 and 4; copies far from them are not in each other's way.
        high = [os.dup2(end, 60 + n) for n, end in enumerate((to_browser, from_browser))]
        null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        actions = [(os.POSIX_SPAWN_DUP2, end, 3 + n) for n, end in enumerate(high)]
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={self.profile}", "about:blank"]
        self.pid = os.posix_spawn(CHROMIUM, command, os.environ, file_actions=[null, *actions])
        for end in (to_browser, from_browser, *high):
            os.close(end)
        self.number, self.left, self.session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        targets = self.ask("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        found = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.ask("Browser.close")
        finally:
            os.waitpid(self.pid, 0)
            os.close(self.reads)
            os.close(self.writes)
            shutil.rmtree(self.profile, ignore_errors=True)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one request; return its answer, keeping events that come before it."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.left:
            ready, _, _ = select.select([self.reads], [], [], max(0.0, end - time.monotonic()))
            found = os.read(self.reads, 1 << 20) if ready else b""
            assert found, "the browser is gone or does not answer"
            self.left += found
        message, _, self.left = self.left.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, *, width: int = 1280, dark: bool = False, media: str = "") -> None:
        """Open a file and wait until it is loaded and painted."""
        self.shape(width=width, dark=dark, media=media)
        self.events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(each.get("method") == "Page.loadEventFired" for each in self.events):
            self.events.append(self._next())
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def shape(self, *, width: int, dark: bool = False, media: str = "") -> None:
        """Set the width of the window, the theme that its user prefers, screen or print."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[theme])

    def run(self, script: str) -> Any:
        """Return the value of an expression; it runs beside the page's policy, not under it."""
        found = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and let go of a key."""
        code, text = KEYS[key]
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **given)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **{**given, "text": ""})

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.ask("Input.insertText", text=text)

    def complaints(self) -> list[str]:
        """Return what the browser logged since the page was opened: errors, blocked scripts."""
        self.run("0")
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening")
        return [json.dumps(each) for each in self.events if each.get("method") in kinds]

    def picture(self, file: Path) -> None:
        """Keep what the window shows as png; for looking, no test compares it."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))
