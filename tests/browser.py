"""What tests of reports share: a page's elements and seen text, and a headless Chromium driven over a pipe.

The browser needs no package; it opens a file, tells what its console said, and prints.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pypdf import PdfReader

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


#: True in a page whose pictures are all there and that is no wider than its window.
WHOLE = (
    "[...document.images].every(i => i.complete && i.naturalWidth > 100)"
    " && document.documentElement.scrollWidth <= document.documentElement.clientWidth"
)


class Page(HTMLParser):
    """Attributes of all elements, and the text that is seen."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.seen, self._hidden = "", False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.seen += data


def tight(text: str) -> str:
    """Text without the blanks and ligatures that differ between a page and its print."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))


def printed(path: Path) -> list[tuple[str, int]]:
    """Text (:func:`tight`) and number of bitmaps of each page of a PDF that :meth:`Browser.pdf` wrote.

    Letters and bitmaps that lie beyond a page or a box that cuts them off are not there.
    """
    return [(tight(page.extract_text()), len(page.images)) for page in PdfReader(path).pages]


class Browser:
    """Context manager; ``messages`` collects errors and warnings of the console and refused loads."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 1000):
        self.profile, self.size = profile, (width, height)
        self.messages: list[str] = []
        self._number, self._buffer = 0, b""

    def __enter__(self) -> Browser:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        words = [CHROMIUM, *_FLAGS, f"--user-data-dir={self.profile}", f"--window-size={self.size[0]},{self.size[1]}"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, *words, "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        self._session = None
        self._session = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, address: str, until: str = "document.readyState === 'complete'", seconds: float = 120) -> None:
        """Go to an address and wait until an expression is true."""
        self._call("Page.navigate", url=address)
        self.wait(until, seconds)

    def wait(self, until: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not self.value(until):
            assert time.monotonic() < end, f"{until} did not come true; the console said {self.messages}"
            time.sleep(0.2)

    def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        done = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return done["result"].get("value")

    def picture(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        data = self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """The page as it is printed on A4."""
        data = self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        text, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.messages.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in about["args"]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(about["exceptionDetails"]["exception"].get("description", "exception"))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.messages.append(about["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            address = about["request"]["url"]
            if not address.startswith(("file:", "data:", "blob:", "about:")):
                self.messages.append(f"asked the network for {address}")
