"""Web pages of other origins, and other names for this server: what a browser tells decides what is taken."""

import json
import time

import pytest

PATH = "/models/p/a/1/m"
OWN = "http://localhost:80"     # as WebTest calls the server
ELSEWHERE = "https://elsewhere.example"
WRITES = [("PUT", PATH), ("POST", "/models/upload?project_id=p&app_name=a&version=1&model_name=m"),
          ("PATCH", f"{PATH}/info"), ("DELETE", PATH), ("DELETE", "/models/p?recursive=true"), ("POST", "/verify")]


def asked(app, method, path, body=b"", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return app.request(path, method=method, body=body, headers=headers, expect_errors=True)


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("headers", [
    {"Origin": ELSEWHERE}, {"Origin": "null"}, {"Origin": "http://localhost:8001"}, {"Origin": "https://localhost"},
    {"Origin": "http://localhost.example"}, {"Origin": "http://localhost:80@elsewhere.example"}, {"Origin": ""},
    {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "Same-Origin"},
    {"Origin": OWN, "Sec_Fetch_Site": "cross-site"}, {"Origin": ELSEWHERE, "Sec_Fetch_Site": "same-origin"},
], ids=str)
def test_a_page_of_another_origin_changes_nothing(app, store, method, path, headers):
    assert asked(app, "PUT", PATH, b"mine").status_int == 201
    before = asked(app, "GET", f"{PATH}/info").body
    answer = asked(app, method, path, b"{}", **headers)
    assert (answer.status_int, answer.headers["X-Content-Type-Options"]) == (403, "nosniff")
    assert "MODEL_ALLOWED_ORIGINS" in answer.json["detail"]
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert asked(app, "GET", f"{PATH}/info").body == before


@pytest.mark.parametrize("headers", [
    {}, {"Origin": OWN}, {"Origin": "http://localhost"}, {"Origin": "HTTP://LOCALHOST"},
    {"Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"},
    {"Origin": "http://localhost", "Sec_Fetch_Site": "same-origin"},
    {"Host": "models.example:8443", "Origin": "http://models.example:8443"},
    {"Host": "[::1]:80", "Origin": "http://[::1]"},
], ids=str)
def test_pages_of_this_server_and_clients_that_are_no_browsers_write(app, headers):
    assert asked(app, "PUT", PATH, b"model", **headers).status_int == 201
    assert asked(app, "DELETE", PATH, **headers).status_int == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", [PATH, f"{PATH}/info", f"{PATH}.sha256", "/models/list", "/health", "/metrics",
                                  "/nothing"])
def test_every_answer_says_to_believe_its_content_type(app, method, path):
    asked(app, "PUT", PATH, b"<script>")
    answer = asked(app, method, path, Origin=ELSEWHERE, Sec_Fetch_Site="cross-site")
    assert answer.status_int == (404 if path == "/nothing" else 200)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in answer.headers and "Origin" not in answer.headers.get("Vary", "")


# ---- exceptions


@pytest.fixture
def open_app(make_app):
    return make_app(allowed_origins=frozenset({"https://ml.example", "http://localhost:3000"}))


@pytest.mark.parametrize("origin", ["https://ml.example", "http://localhost:3000"])
def test_an_origin_that_is_listed_writes_and_reads_the_answers(open_app, origin):
    for method, status in (("PUT", 201), ("GET", 200), ("DELETE", 200), ("GET", 404)):
        answer = asked(open_app, method, PATH, b"model", Origin=origin, Sec_Fetch_Site="cross-site")
        assert (answer.status_int, answer.headers["Access-Control-Allow-Origin"]) == (status, origin)
        assert (answer.headers["Vary"], answer.headers["Access-Control-Expose-Headers"]) == ("Origin", "*")


def test_a_preflight_of_an_origin_that_is_listed_is_answered(open_app):
    answer = asked(open_app, "OPTIONS", PATH, Origin="https://ml.example", Access_Control_Request_Method="PUT",
                   Access_Control_Request_Headers="authorization,x-checksum-sha256")
    assert (answer.status_int, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == "https://ml.example"
    assert "PUT" in answer.headers["Access-Control-Allow-Methods"].split(", ")
    assert answer.headers["Access-Control-Allow-Headers"] == "*, Authorization"
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://ml.example.evil", "http://ml.example", "https://ml.example:8443", "null",
                                    ""])
def test_an_origin_that_is_not_listed_gets_no_leave(open_app, origin):
    answer = asked(open_app, "OPTIONS", PATH, Origin=origin, Access_Control_Request_Method="PUT")
    assert not [name for name in answer.headers if name.startswith("Access-Control")]
    assert answer.headers["Vary"] == "Origin"
    assert asked(open_app, "PUT", PATH, b"model", Origin=origin).status_int == 403


# ---- names of this server


@pytest.mark.parametrize(("host", "status"), [
    ("models.example", 200), ("MODELS.example:8000", 200), ("10.0.0.1:8000", 200), ("[::1]:1", 200),
    ("10.0.0.1", 421), ("10.0.0.1:80", 421), ("elsewhere.example", 421), ("models.example.evil", 421),
    ("amodels.example", 421), ("[::2]", 421), ("localhost:8000", 421),
])
def test_another_name_than_those_listed_is_421(make_app, host, status):
    app = make_app(allowed_hosts=frozenset({"models.example", "10.0.0.1:8000", "[::1]"}))
    for method, path in (("GET", "/models/list"), ("GET", "/metrics"), ("HEAD", "/models/p")):
        answer = asked(app, method, path, Host=host)
        assert answer.status_int == status
    assert asked(app, "PUT", PATH, b"model", Host=host).status_int == (421 if status == 421 else 201)
    assert asked(app, "GET", "/health", Host=host).status_int == 200     # probes ask by address


# ---- before the body travels


@pytest.mark.parametrize(("headers", "settings", "status"), [
    ("Origin: https://elsewhere.example\r\n", {}, 403),
    ("Sec-Fetch-Site: cross-site\r\n", {}, 403),
    ("", {"MODEL_ALLOWED_HOSTS": "models.example"}, 421),
])
def test_it_is_answered_before_the_body(start, headers, settings, status):
    server = start(**settings)
    head = f"PUT {PATH} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 1000000000\r\n"
    with server.connect() as wire:
        wire.send(head, "Expect: 100-continue\r\n\r\n")
        begun = time.monotonic()
        assert wire.head()[0] == status     # and not 100
        assert time.monotonic() - begun < 5
    with server.connect() as wire:      # without Expect the body is read, and thrown away
        wire.send(head.replace("1000000000", "3000000"), "\r\n", b"x" * 3_000_000)
        got, _, body = wire.response()
        assert (got, list(json.loads(body))) == (status, ["detail"])
    assert not (server.storage / "p").exists()


@pytest.mark.parametrize(("forwarded", "origin", "status"), [
    ("X-Forwarded-Proto: https\r\nX-Forwarded-Host: models.example\r\n", "https://models.example", 201),
    ("X-Forwarded-Proto: https\r\nX-Forwarded-Host: models.example:8443\r\n", "https://models.example:8443", 201),
    ("X-Forwarded-Proto: https\r\n", "https://x", 201),
    ("X-Forwarded-Proto: https\r\nX-Forwarded-Host: models.example\r\n", "http://models.example", 403),
    ("X-Forwarded-Proto: https\r\nX-Forwarded-Host: elsewhere.example, models.example\r\n", "https://elsewhere.example",
     403),
])
@pytest.mark.parametrize("trusted", [True, False])
def test_the_origin_is_the_one_that_the_client_of_a_trusted_proxy_sees(start, trusted, forwarded, origin, status):
    server = start(TRUSTED_PROXY="127.0.0.1" if trusted else "127.0.0.9")
    with server.connect() as wire:
        wire.send(f"PUT {PATH} HTTP/1.1\r\nHost: x\r\n{forwarded}Origin: {origin}\r\nContent-Length: 5\r\n\r\nmodel")
        assert wire.response()[0] == (status if trusted else 403)
