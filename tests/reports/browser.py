"""A headless Chromium, asked by its DevTools protocol over a pipe: no port, no other program."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
_PATIENCE = 60


class Browser:
    """One page of a browser. `errors` are what its console, its scripts and its network reported."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders, self._answers, self._read, self._number = orders, answers, b"", 0
        self.errors: list[str] = []
        self._session = ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.ask(f"{domain}.enable")
        self._loaded = False

    def ask(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], until - time.monotonic())
            assert ready, f"no answer within {_PATIENCE} s"
            data = os.read(self._answers, 1 << 16)
            assert data, "the browser ended"
            self._read += data
        line, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        match message.get("method"):
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded":
                self.errors.append(json.dumps(message["params"]))
            case "Network.requestWillBeSent" if not message["params"]["request"]["url"].startswith("file://"):
                self.errors.append(f"loads {message['params']['request']['url']}")
            case "Page.loadEventFired":
                self._loaded = True
        return message

    def open(self, page: Path, *, width: int = 1100, dark: bool = False) -> None:
        """Load a page, and wait until it has loaded."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self._loaded = False
        self.ask("Page.navigate", url=page.absolute().as_uri())
        while not self._loaded:
            self._next()

    def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key, as a user does."""
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def names(self, role: str) -> list[str]:
        """Return what a screen reader reads of all elements of a role."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        return [one["name"]["value"] for one in nodes if one.get("role", {}).get("value") == role and "name" in one]

    def picture(self, file: Path) -> None:
        """Save all of the page as it is seen."""
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


# Puts the ends of the pipes where the browser wants them, whatever numbers they have.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for number, end in zip((3, 4), ends):
    os.dup2(end, number)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def browser(directory: Path) -> Generator[Browser, None, None]:
    """Yield a browser with a profile of its own; it has ended afterwards."""
    assert CHROMIUM is not None
    theirs_in, orders = os.pipe()
    answers, theirs_out = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
    command = [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), CHROMIUM, *options]
    with (directory / "stderr").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--user-data-dir={directory / 'profile'}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(theirs_in, theirs_out),
        )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(orders, answers)
    finally:
        # It ends with its pipe.
        os.close(orders)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(answers)
