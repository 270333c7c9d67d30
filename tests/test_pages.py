"""The rendered pages in a real browser, at phone and desktop width; skipped where there is none."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from stages.report import names
from tests.miniature import rendered

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=10000", "--dump-dom",
)  # fmt: skip
FRAME = """<!doctype html><iframe id=page src="reports/%s.html" style="width:%dpx;height:900px;border:0"></iframe>
<pre id=measured></pre>
<script>document.getElementById("page").onload = event => {
  const page = event.target.contentDocument, root = page.documentElement
  const beyond = e => !e.closest(".scroll") && e.getBoundingClientRect().right > root.clientWidth + 1
  document.getElementById("measured").textContent = JSON.stringify({
    width: root.clientWidth,
    wide: root.scrollWidth,
    beyond: [...page.querySelectorAll("main *")].filter(beyond).map(e => e.tagName + "." + e.className),
    broken: [...page.images].filter(i => !i.naturalWidth).length,
    pictures: page.images.length,
    heading: page.querySelector("h1").getBoundingClientRect().height,
    letters: parseFloat(getComputedStyle(page.querySelector("main")).fontSize),
  })
}</script>"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder of rendered pages and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Tests print nothing."""

    with rendered(tmp_path_factory.mktemp("pages")) as root:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield root, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", [*names.REPORTS, "index"])
def test_a_page_fits_the_screen(served: tuple[Path, str], tmp_path: Path, name: str, width: int) -> None:
    root, address = served
    frame = root / f"{name}-{width}.html"
    frame.write_text(FRAME % (name, width))
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path}", f"--window-size={width + 40},1000", f"{address}/{frame.name}"]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    measured = json.loads(unescape(re.search(r'<pre id="measured">(.*?)</pre>', dumped, re.S).group(1)))
    assert measured["wide"] <= measured["width"] and measured["beyond"] == [], (
        measured
    )  # wide tables scroll inside their own frame
    assert measured["broken"] == 0 and (measured["pictures"] > 0) == (name not in ("claims", "cost"))
    assert measured["heading"] > 0 and measured["letters"] >= 14
