"""Bytes that are not HTTP: answered or closed at once, and logged with what they look like."""

import json
import socket
import subprocess
import sys
import time

import pytest
from support.live import Wire
from waitress.adjustments import Adjustments

from server.waitress_adapter.parser import StreamingParser

SOON = 10   # seconds; a silent connection is kept for 120
FOREIGN = {     # what is sent, and what the log calls it; the client then waits
    "SSH":                  (b"SSH-2.0-OpenSSH_9.2p1\r\n", "the banner of SSH"),
    "PROXY 1":              (b"PROXY TCP4 192.0.2.1 192.0.2.2 5 80\r\nGET / HTTP/1.1\r\n\r\n", "the PROXY protocol"),
    "PROXY 2":              (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), "the PROXY protocol"),
    "bare LF":              (b"GET /health HTTP/1.1\nHost: x\n\n", "a line that ends with LF and not with CRLF"),
    "one line, bare LF":    (b"GET /health HTTP/1.1\n", "a line that ends with LF and not with CRLF"),
    "HTTP/0.9":             (b"GET /health\r\n", "a line that is no request"),
    "Redis":                (b"*1\r\n$4\r\nPING\r\n", "a line that is no request"),
    "SMTP":                 (b"EHLO example.org\r\n", "a line that is no request"),
    "RDP":                  (b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0", "binary data"),
    "PostgreSQL":           (b"\0\0\0\x08\x04\xd2\x16\x2f", "binary data"),
    "SOCKS":                (b"\x05\x01\0", "binary data"),
    "UTF-8":                ("é".encode(), "binary data"),
}


@pytest.mark.parametrize("drops", [False, True], ids=["at once", "in drops"])
@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_http_is_answered_at_once_and_logged(start, case, drops):
    data, called = FOREIGN[case]
    server = start()
    with server.connect(SOON) as wire:
        if drops:   # it may know earlier, and answer then
            wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for number in range(len(data)):
                    wire.send(data[number : number + 1])
            except ConnectionError:
                pass
        else:
            wire.send(data)
        status, headers, body = wire.response()
        assert (status, headers["connection"]) == (400, "close")
        assert headers["x-request-id"] and json.loads(body)["detail"]
    server.wait_for_log(f" 127.0.0.1 sent {called}, not HTTP\n" if not drops else ", not HTTP\n")


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_http_is_known_wherever_the_network_cuts_it(case):
    data = FOREIGN[case][0].lstrip(b"\r\n")     # RFC 9112 2.2: these are ignored before a request
    for cut in range(1, len(data) + 1):
        parser = StreamingParser(Adjustments(max_request_body_size=sys.maxsize))
        for piece in (*(data[number : number + 1] for number in range(cut)), data[cut:]):
            if not parser.completed:
                parser.received(piece)
        assert parser.completed and parser.error, f"nothing is said after {cut} single bytes and the rest"


def test_a_tls_handshake_ends_at_once_and_is_logged(start):
    server, started = start(), time.monotonic()
    curl = subprocess.run(["curl", "-q", "-sS", "--noproxy", "*", f"https://127.0.0.1:{server.port}/health"],
                          capture_output=True, text=True, timeout=60)
    assert curl.returncode == 35 and time.monotonic() - started < SOON      # CURLE_SSL_CONNECT_ERROR
    server.wait_for_log(" 127.0.0.1 sent a TLS handshake, not HTTP\n")
    with server.connect(SOON) as wire:
        wire.send(b"\x16\x03\x01")
        assert wire.at_end()


def test_a_head_that_comes_in_drops_is_http_all_the_same(start):
    server = start()
    for request in (b"\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"P /health HTTP/1.1\r\nHost: x\r\n\r\n",
                    b"S /health HTTP/1.1\r\nHost: x\r\n\r\n"):
        with server.connect() as wire:
            for number in range(len(request)):
                wire.send(request[number : number + 1])
            assert wire.response()[0] == (200 if b"GET" in request else 405)
    assert "not HTTP" not in server.log()


def test_one_that_speaks_something_else_disturbs_nobody(start):
    server = start()
    with server.connect() as before, Wire(socket.create_connection(("127.0.0.1", server.port), SOON)) as foreign:
        foreign.send(b"\x16\x03\x01")
        assert foreign.at_end()
        before.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert before.response()[0] == 200
