"""Two browsers without a driver: Chromium over its debugging pipe, Firefox over Marionette. Standard library only.

Both open a page from disk, run JavaScript in it, press keys, set the window's size, take pictures, and keep what the
page's console complained of.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

WAIT = 60  # seconds for an answer; two cores may be busy

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)

# Keys by name: in Chromium's protocol, and in Firefox's
CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Tab": 9, "Home": 36, "End": 35, "Escape": 27}
VALUES = {"ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Enter": "\ue007", "Tab": "\ue004", "Escape": "\ue00c"}

LISTEN = """(() => {
  window.complaints = [];
  const hear = (e) => complaints.push(String(e.message || e.reason || `cannot load ${e.target.src || e.target.href}`));
  addEventListener("error", hear, true);
  addEventListener("unhandledrejection", hear);
})()"""


class Chromium:
    """Speaks the DevTools protocol: JSON closed by a zero byte, over file descriptors 3 and 4."""

    def __init__(self, profile: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        far = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (theirs_in, theirs_out)]  # clear of 3 and 4

        def wire() -> None:
            os.dup2(far[0], 3)
            os.dup2(far[1], 4)

        self.process = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-sandbox",
                "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--mute-audio", "about:blank",
            ],
            preexec_fn=wire, close_fds=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (theirs_in, theirs_out, *far):
            os.close(fd)
        self._out, self._in, self._number = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb"), 0
        self._rest, self._session = b"", None
        self.complaints: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._hear()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not (more := os.read(self._in.fileno(), 1 << 16)):
                raise RuntimeError("Chromium has gone")
            self._rest += more
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.complaints.append(str([each.get("value", each.get("description")) for each in params["args"]]))

    def open(self, page: Path | str) -> None:
        self._ask("Page.navigate", url="about:blank")  # another address of the same page would not load it again
        self._ask("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        wait_for(self, "document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "exception"))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        code = CODES.get(key) or ord(key.upper())
        said = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self._ask("Input.dispatchKeyEvent", type="keyDown" if said else "rawKeyDown", **about, **said)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def prefer(self, **media: str) -> None:
        """`color_scheme="dark"`, `reduced_motion="reduce"`."""
        features = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in media.items()]
        self._ask("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._out.close()  # Chromium leaves when its pipe closes
        _end(self.process)
        self._in.close()


class Firefox:
    """Speaks Marionette: `length:[type, id, command, parameters]` over a socket of this machine."""

    def __init__(self, profile: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        profile.mkdir(parents=True, exist_ok=True)
        prefs = {"marionette.port": port, "media.autoplay.default": 0, "app.update.enabled": False}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in prefs.items()]
        (profile / "user.js").write_text("\n".join(lines))
        self.process = subprocess.Popen(
            [FIREFOX, "--headless", "--marionette", "--no-remote", "--profile", str(profile)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile), "MOZ_REMOTE_SETTINGS_DEVTOOLS": "1"},
        )  # fmt: skip
        self._socket, self._number = _connect(port), 0
        self._file = self._socket.makefile("rb")
        self._hear()
        self._ask("WebDriver:NewSession", capabilities={"alwaysMatch": {"acceptInsecureCerts": True}})
        self._ask("WebDriver:SetTimeouts", script=WAIT * 1000, pageLoad=WAIT * 1000)

    def _hear(self) -> Any:
        length = b""
        while not length.endswith(b":"):
            if not (more := self._file.read(1)):
                raise RuntimeError("Firefox has gone")
            length += more
        return json.loads(self._file.read(int(length[:-1])))

    def _ask(self, command: str, **params: Any) -> Any:
        self._number += 1
        text = json.dumps([0, self._number, command, params]).encode()
        self._socket.sendall(b"%d:%s" % (len(text), text))
        _, _, error, result = self._hear()
        if error:
            raise RuntimeError(f"{command}: {error['message']}")
        return result["value"] if isinstance(result, dict) and set(result) == {"value"} else result

    @property
    def complaints(self) -> list[str]:
        """What the window's listener heard since `open`."""
        return self.run("window.complaints")

    def open(self, page: Path | str) -> None:
        self._ask("WebDriver:Navigate", url="about:blank")  # another address of the same page would not load it again
        self._ask("WebDriver:Navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self.run(LISTEN)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        # through eval, which sees the page's own top-level names
        inner = json.dumps(f"(async () => ({script}))()")
        body = f"const [done] = arguments; window.eval({inner}).then(done, e => done('! ' + e));"
        value = self._ask("WebDriver:ExecuteAsyncScript", script=body, args=[], sandbox=None)
        if isinstance(value, str) and value.startswith("! "):
            raise RuntimeError(value[2:])
        return value

    def press(self, key: str) -> None:
        special = {
            "ArrowLeft": "\ue012",
            "ArrowRight": "\ue014",
            "Enter": "\ue007",
            "Tab": "\ue004",
            "Escape": "\ue00c",
        }
        moves = [{"type": kind, "value": special.get(key, key)} for kind in ("keyDown", "keyUp")]
        self._ask("WebDriver:PerformActions", actions=[{"type": "key", "id": "keyboard", "actions": moves}])

    def resize(self, width: int, height: int) -> None:
        self._ask("WebDriver:SetWindowRect", width=width, height=height)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("WebDriver:TakeScreenshot", full=False)))

    def close(self) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self._ask("Marionette:Quit", flags=["eForceQuit"])
        self._file.close()
        self._socket.close()
        _end(self.process)


def _connect(port: int) -> socket.socket:
    until = time.monotonic() + WAIT
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=WAIT)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _end(process: subprocess.Popen) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(browser: Chromium | Firefox, condition: str, seconds: float = WAIT) -> None:
    """Until a JavaScript expression is true; AssertionError if it never is."""
    until = time.monotonic() + seconds
    while not browser.run(condition):
        assert time.monotonic() < until, f"never true: {condition}"
        time.sleep(0.02)
