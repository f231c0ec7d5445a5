"""What a trusted proxy says of its client, and that every answer is the application's."""

import json

import pytest
from support.live import running

from server.forwarded import forward
from server.settings import networks_of

UPLOAD = "/models/p/a/1/m"


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    """A live server that trusts a network that its clients come from."""
    with running(tmp_path_factory.mktemp("behind") / "models", TRUSTED_PROXY="192.0.2.1, 127.0.0.0/8") as server:
        yield server


def forwarded(address, **headers):
    environ = {"REMOTE_ADDR": address, "wsgi.url_scheme": "http", "HTTP_HOST": "inside"}
    environ |= {f"HTTP_X_FORWARDED_{name.upper()}": value for name, value in headers.items()}
    forward(environ, networks_of("10.42.0.0/16, 192.0.2.1, fd00::/8"))
    return environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ["HTTP_HOST"]


@pytest.mark.parametrize("address", ["10.42.0.1", "10.42.255.255", "192.0.2.1", "fd00::1"])
def test_a_proxy_of_the_networks_is_believed(address):
    assert forwarded(address, **{"for": "6.6.6.6"}, proto="https", host="out") == ("6.6.6.6", "https", "out")


@pytest.mark.parametrize("address", ["10.43.0.1", "192.0.2.2", "::1", "", "somebody"])
def test_another_address_is_not_believed(address):
    assert forwarded(address, **{"for": "6.6.6.6"}, proto="https", host="out") == (address, "http", "inside")


@pytest.mark.parametrize(("value", "client"), [
    ("6.6.6.6, 7.7.7.7", "7.7.7.7"), ("6.6.6.6:1234", "6.6.6.6"), ('"[2001:db8::1]:80"', "2001:db8::1"),
    ("[2001:db8::1]", "2001:db8::1"), ("2001:db8::1", "2001:db8::1"), ("", "192.0.2.1"), ("6.6.6.6,", "192.0.2.1"),
    (" 6.6.6.6\t", "6.6.6.6"), ('"', '"'), ("unknown", "unknown"),
])
def test_the_last_client_counts(value, client):
    assert forwarded("192.0.2.1", **{"for": value})[0] == client


# ---- every answer is the application's


ODD = [     # headers of a trusted proxy, and the status
    (["X-Forwarded-Proto: http, https"], 201), (["X-Forwarded-Proto: http", "X-Forwarded-Proto: https"], 201),
    (["X-Forwarded-Proto: gopher, https"], 201), (["X-Forwarded-Proto: https,"], 201), (["X-Forwarded-Proto:"], 201),
    (["X-Forwarded-Proto: HTTPS"], 201), (["X-Forwarded-Proto: gopher"], 400), (['X-Forwarded-Proto: "'], 400),
    (['X-Forwarded-Proto: "https'], 400), (["X-Forwarded-Host: a, b"], 201), (['X-Forwarded-Host: "'], 400),
    (['X-Forwarded-Host: "a'], 400), (["X-Forwarded-Host: a/b"], 400), (['X-Forwarded-For: "'], 201),
    (["X-Forwarded-For: ,"], 201), (["X-Forwarded-For: []"], 201), (["X-Forwarded-Port: 1, 2"], 201),
    (["Forwarded: for"], 201), (['Forwarded: for=";;=,'], 201), (["X-Forwarded-By: ="], 201),
]


@pytest.mark.parametrize("request_line", ["GET /health", f"PUT {UPLOAD}", f"GET {UPLOAD}/info"])
@pytest.mark.parametrize(("headers", "status"), ODD)
def test_whatever_a_trusted_proxy_sends_the_answer_is_ours(behind, request_line, headers, status):
    with behind.connect() as wire:
        wire.send(f"PUT {UPLOAD} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        assert wire.response()[0] in (200, 201)
        length = ["Content-Length: 1"] if request_line.startswith("PUT") else []
        lines = [f"{request_line} HTTP/1.1", "Host: localhost", *headers, *length, "", "x" * len(length)]
        wire.send("\r\n".join(lines))
        got, answered, body = wire.response()
    assert answered["content-type"] == "application/json" and answered["x-request-id"]
    assert got == 400 if status == 400 else got in (200, 201)
    assert ("detail" in json.loads(body)) == (status == 400)
    behind.wait_for_log(f" {answered['x-request-id']} ")


def test_a_scheme_that_is_none_is_refused_before_the_body(behind):
    with behind.connect() as wire:
        wire.send(f"PUT {UPLOAD} HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: gopher\r\nContent-Length: 1000\r\n"
                  "Expect: 100-continue\r\n\r\n")
        assert wire.head()[0] == 400


@pytest.mark.parametrize("host", ['"', 'a"b', "a b"])
def test_a_host_that_is_none_is_refused_in_json_through_a_trusted_proxy(behind, host):
    with behind.connect() as wire:
        wire.send(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n")
        status, headers, body = wire.response()
    assert (status, headers["content-type"]) == (400, "application/json") and json.loads(body)["detail"]


@pytest.mark.parametrize("head", [
    "GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", "PUT /models/p/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: "
    f"{2 ** 63}\r\n\r\n", "PUT /models/p/a/1/m HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "PUT /models/p/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "GET /health HTTP/1.1\r\n\r\n",
    "PUT /models/p/a/1/m HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
    "GET /health HTTP/3.0\r\nHost: x\r\n\r\n", "GET /health HTTP/1.1\r\nHost: x\r\nNo colon\r\n\r\n",
])
def test_what_waitress_refuses_is_answered_by_us(behind, head):
    with behind.connect() as wire:
        wire.send(head)
        status, headers, body = wire.response()
    assert status >= 400 and headers["content-type"] == "application/json" and headers["x-request-id"]
    assert json.loads(body)["detail"]
    behind.wait_for_log(f" {headers['x-request-id']} ")
