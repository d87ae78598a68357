"""A page in headless Chromium, over its DevTools protocol on two pipes: no driver to install."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
PATIENCE = 60  # seconds that an answer may take on a busy machine


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """`requests`: every URL that the page opened last asked for, its own first."""

    def __init__(self, read: int, write: int):
        self._read, self._write, self._rest = read, write, b""
        self._ids, self._session = itertools.count(1), None
        self._events: list[dict] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        """The answer; events that come before it are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._event(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, path: Path, **size) -> None:
        """As on a phone of PHONE's size, or of another; returns when all is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", **(PHONE | size))
        self._events.clear(), self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(each["method"] == "Page.loadEventFired" for each in self._events):
            self._event(self._next())

    def value(self, expression: str):
        """What a JavaScript expression is on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def screenshot(self, path: Path, *, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _event(self, message: dict) -> None:
        self._events.append(message)
        if message["method"] == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])

    def _next(self) -> dict:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"the browser said nothing for {PATIENCE} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page in a browser of its own, `profile` being a folder for what it writes."""
    (child_reads, write), (read, child_writes) = os.pipe(), os.pipe()
    # The protocol is on descriptors 3 and 4. No name is resolved: nothing is ever fetched.
    command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-dev-shm-usage", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
    pipes = f"3</proc/self/fd/{child_reads} 4>/proc/self/fd/{child_writes}"
    with (profile / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" {pipes}', "sh", *command],
            pass_fds=(child_reads, child_writes),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        )
    os.close(child_reads), os.close(child_writes)
    try:
        yield Page(read, write)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(read), os.close(write)
