"""A real browser, driven: Debian's Chromium through Playwright, with pictures of what it showed."""

import os
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.common import eventually

CHROMIUM = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]}
SHOTS = "PAGE_SCREENSHOTS"      # the directory in which pictures are kept; .ci/run names one
# Refused on purpose by what is tested; anything else that a page complains of fails its test.
EXPECTED = re.compile(r"status of (400|401|403|404|409|412|503)|net::ERR_|Failed to load resource: net")


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright  # not there in a plain run, which has no tests that need it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**CHROMIUM)
        yield browser
        browser.close()


class Tab:
    """A tab of its own profile at a server's root; whatever it complains of is in `complaints`."""

    def __init__(self, page, url, shots):
        self.page, self.url, self._shots, self.complaints = page, url, shots, []
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.set_default_timeout(60_000)

    def _hear(self, kind, text):
        if kind == "error" and not EXPECTED.search(text):
            self.complaints.append(text)

    def open(self, path="/"):
        self.page.goto(self.url + path)
        return self.settled()

    def settled(self):
        self.page.wait_for_selector("#view[aria-busy=false]", state="attached")
        return self

    def go(self, name):
        """Clicks a link in the lists by its text."""
        self.page.locator("#view a.go").get_by_text(name, exact=True).click()
        return self.settled()

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def rows(self):
        return self.page.locator("tbody a").all_inner_texts()

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def until(self, expression):
        """Waits until an expression holds in the page."""
        eventually(lambda: self.page.evaluate(expression))

    def shot(self, name):
        self.page.screenshot(path=self._shots / f"{name}.png")

    def wait_for(self, selector, text):
        self.page.locator(selector).filter(has_text=text).first.wait_for()


@contextmanager
def tab_of(chromium, url, shots, **options):
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, "accept_downloads": True, **options})
    try:
        yield Tab(context.new_page(), url, shots)
    finally:
        context.close()


@pytest.fixture
def shots(tmp_path):
    directory = Path(os.environ.get(SHOTS) or tmp_path / "shots")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture
def tab(chromium, shots, request):
    """tab(server, **options of the context) opens one; a page that complained of anything fails its test."""
    opened = []

    def opener(server, path="/", **options):
        context = tab_of(chromium, server.url, shots, **options)
        tab = context.__enter__()
        opened.append((context, tab))
        return tab.open(path) if path else tab

    yield opener
    for context, tab in opened:
        context.__exit__(None, None, None)
        assert tab.complaints == []
