"""Takes the picture of the page for README.md: starts a server, uploads models, looks at one in Chromium.

Wants what tests/clients/requirements.txt installs, and Chromium.
"""

import sys
import tempfile
from pathlib import Path

import requests
from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from support.browser import CHROMIUM, Tab  # noqa: E402
from support.live import running  # noqa: E402
from support.sample_models import team  # noqa: E402

MODEL = "/models/search/reviews-encoder/1.2.0#model.safetensors"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, running(Path(directory) / "models") as server:
        for path, data, fields in team():
            requests.put(f"{server.url}/models/{path}", data=data, params=fields, timeout=60).raise_for_status()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(**CHROMIUM)
            page = browser.new_page(viewport={"width": 1200, "height": 760})
            tab = Tab(page, server.url, HERE)
            tab.open(MODEL)
            tab.button("Verify").click()
            tab.wait_for("dd", "✓ intact")
            page.evaluate("for (const line of document.querySelectorAll('code'))"
                          " line.textContent = line.textContent.replaceAll(location.host, 'localhost:8000')")
            tab.shot("page")
            browser.close()


if __name__ == "__main__":
    main()
