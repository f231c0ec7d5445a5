"""What others say goes into JSON, headers and the log encoded and cut: hosts, prefixes, methods, paths, file names."""

import json
import re
from urllib.parse import unquote

import pytest
from support.common import eventually

from repository.model import with_url

HOSTS = ['a"b', "a\\b", "a b", "a/b", "a@b", "<b>", "h\u00f6st", "a,b", "x" * 256, "a%22b", "a\tb",
         "a:b", "a:1:2", "::1", "[::1", "[g]", "a:123456"]
PATHS = ["/health", "/models/list", "/models/p/a/1/m/info", "/models/p/a/1/m", "/nowhere"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_is_none_is_400_and_nothing_is_stored(app, store, host):
    app.put("/models/p/a/1/m", b"x", status=201)
    for path in PATHS:
        got = app.get(path, headers={"Host": host.encode().decode("latin-1")}, status=400)
        assert "Host" in got.json["detail"]
    got = app.put("/models/p/a/2/m", b"x", headers={"Host": host.encode().decode("latin-1")}, status=400)
    assert got.json["detail"] and not (store.root / "p/a/2").exists()


@pytest.mark.parametrize("host", [
    "localhost", "localhost:80", "a.b-c.example", "[::1]:8000", "10.0.0.1", "my_host", "x" * 255, "a:"])
def test_a_host_is_in_every_url_as_it_was_sent(app, host):
    got = app.put("/models/p/a/1/m", b"x", headers={"Host": host}, status=201)
    url = f"http://{host}/models/p/a/1/m"
    assert got.json["url"] == got.headers["Location"] == url
    assert app.get("/models/p/a/1/m/info", headers={"Host": host}).json["url"] == url
    assert app.get("/models/list", headers={"Host": host}).json["models"][0]["url"] == url
    assert app.get("/models/list?format=urls", headers={"Host": host}).text == url + "\n"
    assert json.loads(app.get("/models/list?format=ndjson", headers={"Host": host}).text)["url"] == url


@pytest.mark.parametrize("host", ['a"b', "a\\b", 'a": "b', "a b"])
def test_the_host_that_a_trusted_proxy_names_is_looked_at_too(start, host):
    server = start(TRUSTED_PROXY="127.0.0.1")
    for request in ("PUT /models/p/a/1/m", "GET /models/list", "GET /health", "GET /models/p/a/1/m/info"):
        body = "x" if request.startswith("PUT") else ""
        for name in ("X-Forwarded-Host", "Host"):
            other = "Host: localhost\r\n" if name != "Host" else ""
            with server.connect() as wire:
                wire.send(f"{request} HTTP/1.1\r\n{other}{name}: {host}\r\nContent-Length: {len(body)}\r\n\r\n{body}")
                status, _, answer = wire.response()
            assert status == 400 and json.loads(answer)["detail"]
    assert not (server.storage / "p").exists()


@pytest.mark.parametrize("url", ['http://a"b', "http://a\\b", "http://\u00e9\x00\x1f", "http://localhost:8000/x"])
def test_a_url_is_encoded_where_json_takes_it(app, url):
    line = b'{"url": "\\u0000/models/p/a/1/m"}'.replace(b"\\u0000", b"\0")
    assert json.loads(with_url(line, url))["url"] == f"{url}/models/p/a/1/m"


@pytest.mark.parametrize(("script", "quoted"), [
    ("/models-eu", "/models-eu"), ('/a"b', "/a%22b"), ("/a\r\nX: y", "/a%0D%0AX:%20y"), ("/\xc3\xa9", "/%C3%A9")])
def test_the_path_that_the_application_is_below_is_encoded(app, script, quoted):
    below = {"SCRIPT_NAME": script}
    got = app.put("/models/p/a/1/m", b"x", extra_environ=below, status=201)
    assert got.json["url"] == got.headers["Location"] == f"http://localhost:80{quoted}/models/p/a/1/m"
    assert app.get("/models/list", extra_environ=below).json["models"][0]["url"] == got.json["url"]
    latest = app.get("/models/p/a/latest/m", extra_environ=below)
    assert latest.headers["Content-Location"] == f"{quoted}/models/p/a/1/m"
    assert app.post("/verify", extra_environ=below, status=202).headers["Location"] == f"{quoted}/verify"


# ---- the log


@pytest.mark.parametrize("request_line", [
    "X" * 60_000 + " /health", "GET /" + "a" * 60_000, "GET /" + "%ff" * 20_000, "GET /" + "%0a" * 20_000,
    "GET /a%0a2026-01-01T00:00:00+0000%20INFO%20access%20GET%20/%20200", "GET /%1b%5b31m%22%20%5c", "!#$%&'*+ /health",
    "GET /" + "%f0%9f%a7%a0" * 5_000])
def test_a_log_line_has_its_fields_and_an_end(start, request_line):
    server = start(TRUSTED_PROXY="127.0.0.1")
    with server.connect() as wire:
        wire.send(f"{request_line} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine\r\n"
                  "X-Forwarded-For: 10.0.0.1 200 1.0 forged-id 6.6.6.6 " + "9" * 1000 + "\r\nConnection: close\r\n\r\n")
        assert wire.response()[0] in (200, 400, 404, 405)
    server.wait_for_log(" mine ")
    [line] = eventually(lambda: [line for line in server.log().splitlines() if " mine " in line])
    assert len(line) < 1300 and line.isascii() and line.isprintable()
    assert len(fields := line.split(" ")) == 10, fields
    assert re.fullmatch(r"\d{3} \d+ [\d.]+ mine \S+", " ".join(fields[5:]))
    assert len(fields[3]) <= 35 and len(fields[4]) <= 1027 and len(fields[9]) <= 67


# ---- names of files


PLANTED = {     # in a metadata.json that somebody wrote: what a client is told
    "x" * 200_000:              "x" * 255,
    "\u00e9" * 200_000:         "\u00e9" * 255,
    "../../.ssh/id":            "id",
    "a\r\nSet-Cookie: x=y":     "aSet-Cookie: x=y",
    'a"; filename="b':         'a"; filename="b',
    "\x1b[31m\u202e":           "[31m",
    "":                         "m",
    "///":                      "m",
}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda name: repr(name[:20]))
def test_a_planted_file_name_breaks_no_header(start, http, planted):
    server = start()
    assert http.put(f"{server.url}/models/p/a/1/m", data=b"x").status_code == 201
    path = server.storage / "p/a/1/m/metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "filename": planted}))
    got = http.get(f"{server.url}/models/p/a/1/m")
    assert got.status_code == 200 and got.content == b"x" and "Set-Cookie" not in got.headers
    told = got.headers["Content-Disposition"]
    assert len(told) < 4096 and told.isascii() and told.startswith("attachment; filename=")
    encoded = re.search(r"filename\*=UTF-8''(\S+)$", told)
    assert (unquote(encoded[1]) if encoded else re.search('="(.*)"$', told)[1]) == PLANTED[planted]
