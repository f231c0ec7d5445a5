"""Where the page is answered, to whom, and with which headers. What it does is tried in a browser: tests/clients."""

import re

import pytest
from support.common import ROOT
from support.rooms import works_without

from server.conditional import asks_for

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
LISTS = ["/models/list", "/models/p", "/models/p/", "/models/p/a", "/models/p/a/1"]
FILES = sorted(path.name for path in (ROOT / "page").iterdir() if path.suffix in (".css", ".js"))


def test_a_browser_gets_the_page_and_everybody_else_the_list(app):
    for path in LISTS:
        page, listed = app.get(path, headers={"Accept": BROWSER}), app.get(path, headers={"Accept": "*/*"})
        assert page.content_type == "text/html" and "<title>" in page.text
        assert listed.json["total_models"] == 0 and app.get(path).body == listed.body
        assert [answer.headers["Vary"] for answer in (page, listed)] == ["Accept", "Accept"]
        assert app.head(path, headers={"Accept": BROWSER}).headers["Content-Length"] == str(len(page.body))


def test_the_root_is_the_page_for_browsers_alone(app):
    assert "<title>" in app.get("/", headers={"Accept": BROWSER}).text
    answer = app.get("/", status=404)
    assert answer.json["detail"] == "there is nothing at /: see the README for the routes"
    assert answer.headers["Vary"] == "Accept"
    assert app.post("/", status=405).headers["Allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(("accept", "wanted"), [
    (BROWSER, True), ("text/html", True), ("TEXT/HTML; charset=utf-8", True),
    ("application/json;q=0.5, text/html", True), ("text/html;level=1;q=0.4,", True),
    ("", False), ("*/*", False), ("text/*", False), ("application/json", False), ("text/html;q=0", False),
    ("application/json, text/html;q=0.9", False), ("text/html;q=2", False), ("text/html;q=.5", False),
    ("text/htmlx", False),
    ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", False),     # Java's HttpURLConnection, which wants JSON
])
def test_who_asks_for_a_page_names_it(accept, wanted):
    assert asks_for("text/html", accept) is wanted


@pytest.mark.parametrize("path", ["/models/p/a/1/m", "/models/p/a/1/m/info", "/models/p/a/1/m.sha256", "/health",
                                  "/verify", "/models/p?format=txt", "/models/p/a/1?format=tar"])
def test_a_browser_gets_files_and_the_other_answers_as_they_are(app, path):
    app.request("/models/p/a/1/m", method="PUT", body=b"model", headers={"Content-Length": "5"})
    answer = app.get(path, headers={"Accept": BROWSER})
    assert answer.content_type != "text/html" and "Vary" not in answer.headers


@pytest.mark.parametrize("path", ["/", *LISTS, *(f"/page/{name}" for name in FILES)])
def test_nothing_of_others_runs_in_it_and_no_other_page_frames_it(app, path):
    headers = app.get(path, headers={"Accept": BROWSER}).headers
    policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert policy == {**dict.fromkeys(("default-src", "frame-ancestors", "base-uri", "form-action"), "'none'"),
                      **dict.fromkeys(("script-src", "style-src", "connect-src"), "'self'"),
                      "img-src": "'self' data:"}
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/models/p", *(f"/page/{name}" for name in FILES)])
def test_a_browser_that_has_it_does_not_get_it_again(app, path):
    first = app.get(path, headers={"Accept": BROWSER})
    again = app.get(path, headers={"Accept": BROWSER, "If-None-Match": first.headers["ETag"]}, status=304)
    assert again.body == b"" and again.headers["ETag"] == first.headers["ETag"]
    assert first.headers["Cache-Control"] == again.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(("prefix", "path", "root"), [
    ("", "/", "./"), ("", "/models/list", "../"), ("", "/models/p/a/1", "../../../"),
    ("", "/models/p/a/1/", "../../../../"), ("", "/models/p/a/@live", "../../../"),
    ("/b'&c", "/models/p", "/b&#x27;&amp;c/"), ("/b", "", "/b/"),
])
def test_its_addresses_hold_below_whatever_a_proxy_puts_it(app, prefix, path, root):
    page = app.get(prefix + path, headers={"Accept": BROWSER}, extra_environ={"SCRIPT_NAME": prefix})
    assert set(re.findall(r'(?:href|src)="([^"]*?)page/\w+\.', page.text)) == {root}
    assert "{root}" not in page.text


@pytest.mark.parametrize("name", ["page.html", "room.py", "none.js", "..", "page.js%00"])
def test_only_its_own_files_are_answered(app, name):
    assert app.get(f"/page/{name}", headers={"Accept": BROWSER}, expect_errors=True).status_int in (400, 404)


def test_it_holds_no_data_and_needs_no_token(make_app, tokens):
    app = make_app(tokens_file=tokens(f"ann:{'0' * 64}:read:*\n"))
    for path in ("/", *LISTS, "/page/page.js"):
        app.get(path, headers={"Accept": BROWSER})
    assert app.get("/models/p", status=401).headers["Vary"] == "Accept"


def test_it_stays_small(app):
    files = [path for path in (ROOT / "page").iterdir() if path.suffix in (".html", ".css", ".js")]
    assert sum(path.stat().st_size for path in files) < 60_000
    assert sum(len(path.read_text().splitlines()) for path in files) <= 700
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "page").glob("*.py")) <= 80


WITHOUT = """
    listed = app.get("/models/list", headers={"Accept": "text/html"})
    assert listed.json["total_models"] == 0 and "Vary" not in listed.headers
    assert app.get("/", headers={"Accept": "text/html"}, status=404)
"""


def test_without_the_room_and_its_lines_all_the_rest_works(tmp_path):
    works_without(tmp_path, WITHOUT, "page")
