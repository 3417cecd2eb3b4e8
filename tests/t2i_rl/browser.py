"""A real browser without a window, where there is one: it opens a page, a script acts on it, the page is read back."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"there is no browser: none of {', '.join(NAMES)}")

# Runs when the page's own script has; what `act` returns is written where the dumped page shows it.
DRIVER = """
<script>
"use strict";
const point = (element, x, y) => {  // a pointer over the element, as shares of its sides
  const box = element.getBoundingClientRect();
  const at = {clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true};
  element.dispatchEvent(new PointerEvent("pointermove", at));
};
const slide = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
window.addEventListener("load", () => {
  const seen = (() => { ACT })();
  const told = document.createElement("pre");
  told.id = "told-by-the-driver";
  told.textContent = JSON.stringify(seen);
  document.body.append(told);
});
</script>
"""


def chromium(*flags: str) -> str:
    assert BROWSER is not None
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,2500"]
    # No network: a page that asked for something would go without.
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=2000", *flags]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout


def act(page: Path, script: str) -> Any:
    """What the script returns, run in the loaded page with `point` and `slide`; errors of the page fail."""
    errors = '<script>const errors = []; window.addEventListener("error", e => errors.push(e.message));</script>'
    html = page.read_text(encoding="utf-8").replace("<head>", f"<head>{errors}", 1)
    driven = page.with_name(f"driven-{page.name}")
    driver = DRIVER.replace("ACT", f"const seen = (() => {{ {script} }})(); return {{seen, errors}};")
    head, end = html.rsplit("</body>", 1)
    driven.write_text(f"{head}{driver}</body>{end}", encoding="utf-8")
    found = re.search(r'<pre id="told-by-the-driver">(.*?)</pre>', chromium("--dump-dom", driven.as_uri()), re.DOTALL)
    assert found, "the page's script did not run to its end"
    told = json.loads(unescape(found[1]))
    assert told["errors"] == []
    return told["seen"]


def screenshot(page: Path, path: Path) -> None:
    chromium(f"--screenshot={path}", page.as_uri())
