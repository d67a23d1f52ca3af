"""A browser without a window, driven by its DevTools protocol, and a JupyterLab in it.

Needs JupyterLab, which brings the client of websockets, and Chromium.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

#: Settings of JupyterLab: all cells are drawn, and nothing is looked up on the web.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none", "recordTiming": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
_SECONDS = 120.0


class Browser:
    """A page of Chromium."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=_SECONDS, suppress_origin=True)
        self._number = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def run(self, script: str) -> Any:
        """Run JavaScript and return its value; a promise is awaited."""
        ran = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in ran:
            raise RuntimeError(f"{script}: {ran['exceptionDetails']}")
        return ran["result"].get("value")

    def wait(self, condition: str, seconds: float = _SECONDS) -> Any:
        """Wait until JavaScript has a value that is true, and return it."""
        until = time.monotonic() + seconds
        while not (value := self.run(condition)):
            if time.monotonic() > until:
                raise TimeoutError(condition)
            time.sleep(0.1)
        return value

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )  # fmt: skip

    def picture(self, path: Path) -> None:
        """Write a PNG of the page."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Start Chromium, with its files in a folder."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.exit("there is no Chromium: install the package chromium")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [program, *options, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = _eventually(lambda: (folder / "DevToolsActivePort").read_text().split()[0])
        pages = _eventually(lambda: json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list")))
        yield Browser(next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"))
    finally:
        _stop(process)


class Lab:
    """A JupyterLab in a browser that shows one notebook at a time."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self._address = browser, address

    def open(self, name: str, theme: str, *, kernel: bool = False) -> None:
        """Open a notebook; with `kernel`, wait for its kernel."""
        # The page asks whether to leave it if a notebook is not saved.
        self.browser.run("window.addEventListener('beforeunload', event => event.stopImmediatePropagation(), true)")
        self.browser.call("Page.navigate", url=f"{self._address}/doc/tree/{name}?reset")
        self.browser.wait(f"!!(window.jupyterapp && {_WIDGET} && document.querySelector('.jp-Notebook .jp-Cell'))")
        self.browser.run(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{THEMES[theme]}'}})")
        self.browser.run(f"jupyterapp.shell.activateById({_WIDGET}.id)")
        ready = "w.sessionContext.ready" if kernel else "1"
        self.browser.run(f"(async () => {{ const w = {_WIDGET}; await w.context.ready; await {ready} }})()")
        self.browser.wait(f"document.body.dataset.jpThemeName == '{THEMES[theme]}'")
        time.sleep(1.0)

    def start(self, number: int) -> None:
        """Start a cell."""
        self.browser.run(f"{_WIDGET}.content.activeCellIndex = {number}; void {_COMMAND}('notebook:run-cell'); true")

    def interrupt(self) -> None:
        """Press the interrupt button."""
        self.browser.run(f"{_COMMAND}('notebook:interrupt-kernel')")

    def cell(self, number: int) -> str:
        """A cell, in JavaScript."""
        return f"{_WIDGET}.content.widgets[{number}]"

    def await_idle(self) -> None:
        """Wait until nothing runs."""
        self.browser.wait(f"{_WIDGET}.content.widgets.every(cell => cell.prompt !== '*')")
        self.browser.wait(f"{_WIDGET}.sessionContext.session?.kernel?.status == 'idle'")
        time.sleep(0.5)

    def save(self) -> None:
        """Save the notebook."""
        self.browser.run(f"{_WIDGET}.context.save()")

    def picture(self, path: Path) -> None:
        """Write a PNG of the whole notebook."""
        self.browser.resize(1100, 1000)
        height = self.browser.run("document.querySelector('.jp-WindowedPanel-viewport').scrollHeight")
        self.browser.resize(1100, min(int(height) + 120, 16_000))
        time.sleep(0.5)
        self.browser.picture(path)


_WIDGET = "[...jupyterapp.shell.widgets('main')].find(one => one.context)"
_COMMAND = "jupyterapp.commands.execute"


@contextmanager
def jupyterlab(folder: Path, scratch: Path) -> Iterator[Lab]:
    """Start JupyterLab in a folder, with its own files elsewhere, and open it in a browser."""
    for name, settings in SETTINGS.items():
        file = scratch / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    folders = {f"JUPYTER_{name}_DIR": str(scratch / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    log = scratch / "log.txt"
    options = [
        "--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=", "--expose-app-in-browser",
        f"--ServerApp.root_dir={folder}", f"--LabApp.user_settings_dir={scratch / 'settings'}",
    ]  # fmt: skip
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env={**os.environ, **folders}, stdout=stream, stderr=stream
        )
    try:
        port = _eventually(lambda: re.search(r"http://localhost:(\d+)/lab", log.read_text())[1])  # type: ignore[index]
        with chromium(scratch / "chromium") as browser:
            yield Lab(browser, f"http://localhost:{port}")
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _eventually(get: Any, seconds: float = _SECONDS) -> Any:
    """The value of a function that raises until something has started."""
    until = time.monotonic() + seconds
    while True:
        try:
            return get()
        except (OSError, TypeError, IndexError, ValueError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
