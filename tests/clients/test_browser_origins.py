"""A page in a real browser: from another origin it replaces no model, by whatever a page can send without being asked.

Chromium needs no driver here: the page tells its own server when it is done, and then the browser is ended.
"""

import json
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

pytestmark = pytest.mark.needs("chromium")
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync"]
MODEL = "/models/p/a/1/m"
# each way in turn; what the page could read of the answers is sent to its own server in the end
PAGE = """<!doctype html><iframe name="frame"></iframe>
<form method="post" enctype="multipart/form-data" target="frame"
      action="SERVER/models/upload?project_id=p&app_name=a&version=1&model_name=m"><input type="file" name="file">
</form>
<script>
const upload = "SERVER/models/upload?project_id=p&app_name=a&version=1&model_name=m";
const read = answer => answer.text().then(text => answer.status + " " + text);
const form = () => { const data = new FormData(); data.append("file", new Blob(["the page's"]), "m"); return data; };
const ways = {
    "no-cors form": () => fetch(upload, {method: "POST", mode: "no-cors", body: form()}),
    "cors form": () => fetch(upload, {method: "POST", body: form()}),
    "put": () => fetch("SERVERMODEL", {method: "PUT", body: "the page's"}),
    "delete": () => fetch("SERVERMODEL", {method: "DELETE"}),
    "beacon": async () => { navigator.sendBeacon(upload, form()); return new Response("sent"); },
    "plain form": () => new Promise(loaded => {
        const files = new DataTransfer();
        files.items.add(new File(["the page's"], "m"));
        document.querySelector("input").files = files.files;
        document.querySelector("iframe").onload = () => loaded(new Response("loaded"));
        document.querySelector("form").submit();
    }),
};
(async () => {
    const told = {};
    for (const name of NAMES) told[name] = await ways[name]().then(read).catch(error => "failed: " + error);
    await fetch("/done", {method: "POST", body: JSON.stringify(told)});
})();
</script>"""
WAYS = ["no-cors form", "cors form", "put", "delete", "beacon", "plain form"]


@contextmanager
def page_server():
    """A server of one page on a port of its own; `page` is its text, `told` what the page sent when it was done."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = server.page.encode() if self.path == "/" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            server.told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()
            server.done.set()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.done, server.told = threading.Event(), None
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def page(tmp_path):
    """page(host, server_url, *ways) opens the page under this host; what it could read of each way's answer."""
    with page_server() as server:
        def visit(host, url, *ways):
            server.page = (PAGE.replace("SERVER", url).replace("MODEL", MODEL).replace("NAMES", json.dumps(ways)))
            with subprocess.Popen([*CHROMIUM, f"--user-data-dir={tmp_path}/profile", "--remote-debugging-port=0",
                                   f"http://{host}:{server.server_port}/"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
                done = server.done.wait(60)
                browser.terminate()
            assert done, "the page was not done in 60 s"
            return server.told

        visit.port = server.server_port
        yield visit


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])    # same-site and cross-site to 127.0.0.1
def test_a_page_on_another_port_replaces_and_deletes_no_model(start, page, host):
    server = start()
    assert requests.put(server.url + MODEL, data=b"mine").status_code == 201
    told = page(host, server.url, *WAYS)
    assert told["plain form"] == "200 loaded"       # the form was sent
    assert all(told[name].startswith("failed: ") for name in ("cors form", "put", "delete"))    # it may not read either
    refused = [line for line in server.lines if " access POST /models/upload 403 " in line]
    assert len(refused) == 4    # nothing but its origin was wrong with them: the next test
    assert requests.get(server.url + MODEL).content == b"mine"


@pytest.mark.parametrize("way", WAYS)
def test_a_page_of_an_origin_that_is_listed_does_each_of_them(start, page, way):
    server = start(MODEL_ALLOWED_ORIGINS=f"http://localhost:{page.port}")
    assert requests.put(server.url + MODEL, data=b"mine").status_code == 201
    told = page("localhost", server.url, way)
    if way == "delete":
        assert requests.get(server.url + MODEL).status_code == 404
    elif way == "beacon":       # of which the page hears nothing
        server.wait_for_log(" access POST /models/upload 200 ")
    else:
        assert requests.get(server.url + MODEL).content == b"the page's"
    if way in ("cors form", "put"):
        status, _, text = told[way].partition(" ")
        assert (status, json.loads(text)["message"]) == ("200", "Model replaced successfully")
