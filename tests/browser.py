"""A real browser that tests speak to: Chromium without a window, by its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import signal
import time
from pathlib import Path
from typing import Any


class Browser:
    """One page. What is run in it does not count as the page's own script: its policy (CSP) stays as it is."""

    def __init__(self, program: str, folder: Path, *, width: int = 1400, height: int = 900, phone: bool = False) -> None:
        pipes = [*os.pipe(), *os.pipe()]
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in pipes]  # 3 and 4 are for the browser
        for fd in pipes:
            os.close(fd)
        theirs_in, self.out, self.into, theirs_out = ends
        argv = [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", f"--user-data-dir={folder}/devtools", f"--window-size={width},{height}",
                "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4),
                   (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]  # fmt: skip
        self.pid = os.posix_spawn(program, argv, os.environ, file_actions=actions, setsid=True)
        for fd in (theirs_in, theirs_out):
            os.close(fd)
        self.number, self.rest, self.session = 0, b"", ""
        pages = [one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self.session = self.ask("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone
        )

    def ask(self, method: str, *, seconds: float = 60.0, **parameters: Any) -> Any:
        """One request and its result; what the browser says unasked is dropped."""
        self.number += 1
        request = {"id": self.number, "method": method, "params": parameters}
        request |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + seconds
        while True:
            while b"\0" not in self.rest:
                left = deadline - time.monotonic()
                assert select.select([self.into], [], [], max(0.0, left))[0], f"{method}: no answer in {seconds:g} s"
                block = os.read(self.into, 1 << 20)
                assert block, "the browser has ended"
                self.rest += block
            text, _, self.rest = self.rest.partition(b"\0")
            said = json.loads(text)
            if said.get("id") == self.number:
                assert "error" not in said, said["error"]
                return said["result"]

    def run(self, script: str, seconds: float = 60.0) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, seconds=seconds)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, url: str, seconds: float = 60.0) -> None:
        """Load a page, and wait until it has been shown."""
        self.ask("Page.navigate", url=url)
        deadline = time.monotonic() + seconds
        while not self.run(
            f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url.partition('#')[0])})"
        ):
            assert time.monotonic() < deadline, f"{url} was not loaded in {seconds:g} s"
            time.sleep(0.02)
        self.picture()

    def picture(self) -> None:
        """Wait until what was asked for is on the screen."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def mouse(self, kind: str, x: float, y: float, buttons: int = 0) -> None:
        """A real event of the mouse: "mousePressed", "mouseMoved", "mouseReleased"."""
        button = "left" if kind != "mouseMoved" else "none"
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)

    def click(self, x: float, y: float) -> None:
        self.mouse("mousePressed", x, y, 1)
        self.mouse("mouseReleased", x, y)
        self.picture()

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser with all of its processes: they are a session of their own."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        for fd in (self.into, self.out):
            os.close(fd)
