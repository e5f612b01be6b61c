"""A headless Chromium, driven through its DevTools protocol over a pipe: nothing to install besides the browser."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
FAR = 10  # descriptors from here on, away from 3 and 4, which the browser reads and writes


class Browser:
    """One page. `problems` lists errors and warnings of its console; `requested` the addresses that it asked for."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        assert PROGRAM is not None
        self.folder = tempfile.mkdtemp()
        (read, theirs_out), (theirs_in, write) = os.pipe(), os.pipe()
        far_in, far_out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FAR) for fd in (theirs_in, theirs_out))
        self.process = os.posix_spawn(
            PROGRAM,
            [PROGRAM, *OPTIONS, f"--user-data-dir={self.folder}", f"--window-size={width},{height}", "about:blank"],
            os.environ,
            setpgroup=0,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, far_in, 3),
                (os.POSIX_SPAWN_DUP2, far_out, 4),
            ],
        )
        for fd in (theirs_in, theirs_out, far_in, far_out):
            os.close(fd)
        self.input, self.output = os.fdopen(write, "wb", 0), os.fdopen(read, "rb")
        self.number, self.rest, self.session = 0, b"", ""
        self.problems: list[str] = []
        self.requested: list[str] = []
        self.events: list[str] = []
        page = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something, and wait for the answer."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.input.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        """The next message; what the page reports is kept."""
        while b"\0" not in self.rest:
            data = os.read(self.output.fileno(), 1 << 20)
            assert data, "the browser has ended"
            self.rest += data
        text, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(text)
        method, parameters = message.get("method", ""), message.get("params", {})
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(str(parameters["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"a dialog: {parameters['message']}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])
        return message

    def open(self, path: Path) -> None:
        """Show a file, and wait until it is loaded."""
        self.problems, self.requested, self.events = [], [], []
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._next()

    def js(self, expression: str) -> Any:
        """The value of an expression, or of its promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """A real click at a share of the width and height of an element."""
        self.mouse(selector, "mousePressed", x, y)
        self.mouse(selector, "mouseReleased", x, y)

    def mouse(self, selector: str, kind: str, x: float = 0.5, y: float = 0.5) -> None:
        quoted = json.dumps(selector)
        self.js(f"document.querySelector({quoted}).scrollIntoView({{block: 'center'}})")
        box = self.js(f"(() => {{ const b = document.querySelector({quoted}).getBoundingClientRect();"
                      " return [b.x, b.y, b.width, b.height]; })()")  # fmt: skip
        at = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
        buttons = 0 if kind == "mouseReleased" else 1
        self.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=buttons, clickCount=1, **at)

    def key(self, name: str, code: int, text: str = "") -> None:
        """A real key press of the element that has the focus."""
        same = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **same)
        self.call("Input.dispatchKeyEvent", type="keyUp", **same)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, whole: bool = False) -> bytes:
        """PNG of the window, or of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def pdf(self, pages: str = "") -> bytes:
        """The pages (all, or such as "1-2") as they are printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, pageRanges=pages)["data"])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        self.input.close()
        self.output.close()
        shutil.rmtree(self.folder, ignore_errors=True)
