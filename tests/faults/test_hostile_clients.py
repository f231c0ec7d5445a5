"""Clients that are slow, many, or that try to hide a request in another: the others are served, and nothing gets in."""

import os
import random
import resource
import socket
import statistics
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from support.tracing import strace, threads_of
from support.witness import Version, assert_knows, assert_whole, attempt, delete, listed, perform, put, send

BIG = Version(bytes(1 << 20) * 20, "big")
PUT = "PUT /models/hidden/app/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
FORM = "Content-Type: multipart/form-data; boundary=cut\r\n"


@pytest.fixture(autouse=True, scope="module")
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(server, receive=None):
    sock = socket.socket()
    if receive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", server.port))
    return sock


class Trickle(threading.Thread):
    """Connections that send or read a byte ten times a second: a third each heads, bodies and downloads."""

    def __init__(self, server, connections):
        super().__init__(daemon=True)
        self.enough = threading.Event()
        self.socks, self.gone = [], 0
        for number in range(connections):
            sock = connect(server, 4096)
            self.socks.append((sock, number % 3))
            if number % 3 == 0:
                sock.send(b"GET /models/list HTTP/1.1\r\nX-Slow: ")
            elif number % 3 == 1:
                sock.send(f"PUT /models/slow/app/1/m{number} HTTP/1.1\r\nHost: x\r\n"
                          "Content-Length: 100000\r\n\r\n".encode())
            else:
                sock.send(b"GET /models/p/app/1/big HTTP/1.1\r\nHost: x\r\n\r\n")

    def run(self):
        while not self.enough.wait(0.1):
            for sock, kind in self.socks:
                try:
                    _ = sock.recv(1) if kind == 2 else sock.send(b"x")
                except OSError:
                    self.gone += 1

    def stop(self):
        self.enough.set()
        self.join()
        for sock, _ in self.socks:
            sock.close()


def latencies(server, number):
    """Milliseconds that each of the ordinary requests took."""
    found = []
    for n in range(number):
        key, version = f"quick/app/1/m{n}", Version(random.randbytes(10_000), f"of{n}")
        for request in (put(key, version), ("GET", f"/models/{key}", None), ("GET", "/models/list", None),
                        ("GET", "/health", None), delete(key)):
            begun = time.monotonic()
            answer = perform(server, request)
            found.append((time.monotonic() - begun) * 1000)
            assert answer and answer.status in (200, 201), answer
    return found


def test_500_clients_that_trickle_do_not_keep_others_waiting(server, count, say):
    assert perform(server, put("p/app/1/big", BIG)).status == 201
    alone = latencies(server, 20)
    slow = Trickle(server, 500)
    slow.start()
    try:
        time.sleep(0.5)
        beside = latencies(server, count(40, 400))
    finally:
        slow.stop()
    figures = "; ".join(
        f"{name}: median {statistics.median(values):.1f} ms, p99 {sorted(values)[len(values) * 99 // 100]:.1f} ms, "
        f"max {max(values):.1f} ms" for name, values in (("alone", alone), ("beside 500", beside)))
    say(f"latency {figures}")
    assert max(beside) < 5000, figures
    assert not slow.gone
    assert_whole(server)


def test_1200_open_connections_do_not_break_the_loop(server, say):
    socks = [connect(server) for _ in range(1200)]
    try:
        begun = time.monotonic()
        for sock in socks:
            sock.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        for sock in socks:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        say(f"{len(socks)} connections open at once, each answered, in {time.monotonic() - begun:.2f} s")
        assert perform(server, put("p/app/1/m", Version(b"x", "x"))).status == 201
    finally:
        for sock in socks:
            sock.close()
    assert "Traceback" not in server.log()


def is_closed(sock, data):
    """Whether the server has closed this connection, after sending it `data`."""
    try:
        sock.sendall(data)
        return sock.recv(65536) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_idle_connections_and_heads_in_drops_are_closed(start, say):
    server = start(SERVER_IDLE_SECONDS="2")
    said = {"nothing": b"", "half a head": b"GET / HT", "one request": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
            "half a body": b"PUT /models/i/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nxx",
            "drops": b"GET /health HTTP/1.1\r\nX-Slow: "}
    socks, took = {name: connect(server) for name in said}, {}
    try:
        begun = time.monotonic()
        for name, data in said.items():
            socks[name].send(data)
            socks[name].settimeout(0.05)
        while len(took) < len(said) and time.monotonic() - begun < 20:
            for name in said.keys() - took.keys():
                if is_closed(socks[name], b"x" if name == "drops" else b""):
                    took[name] = round(time.monotonic() - begun, 1)
    finally:
        for sock in socks.values():
            sock.close()
    assert took.keys() == said.keys(), f"still open: {said.keys() - took.keys()}"
    say(f"closed after seconds, the limit being 2: {took}")
    assert_whole(server)


def test_a_reader_that_stalls_is_closed_and_a_slow_one_is_not(start):
    """The slow one takes some of what the kernel holds for it, megabytes, and so seems to the server to stand still."""
    server = start(SERVER_IDLE_SECONDS="2")
    requests.put(f"{server.url}/models/p/a/1/m", data=os.urandom(1 << 20) * 30, timeout=60)
    with ExitStack() as stack:
        stalled, slow = (stack.enter_context(server.connect()) for _ in range(2))
        for wire, name in ((stalled, "stalled"), (slow, "slow")):
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.send(f"GET /models/p/a/1/m HTTP/1.1\r\nHost: x\r\nX-Request-Id: {name}\r\n\r\n")
            assert wire.head()[0] == 200
        until = time.monotonic() + 8
        while time.monotonic() < until:
            assert slow.sock.recv(4096)
            time.sleep(0.02)
        assert " 200 " in server.line_of("stalled")
        assert " slow " not in server.log()


def test_a_slow_body_that_goes_on_is_not_closed(start):
    server = start(SERVER_IDLE_SECONDS="2")
    with server.connect() as wire:
        wire.send("PUT /models/slow/app/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n")
        for _ in range(20):
            wire.send(b"x")
            time.sleep(0.3)
        assert wire.response()[0] == 201


def test_a_disk_that_stalls_longer_than_a_client_may_is_not_held_against_the_client(tmp_path, single):
    server = single(tmp_path / "models", SERVER_IDLE_SECONDS="2")
    data = random.randbytes(40 << 20)
    threads = threads_of(server)
    with strace(tmp_path / "log", [threads["intake"]], "trace=write", "inject=write:delay_enter=6s:when=2"):
        answer = attempt(server, "PUT", "/models/p/app/1/m", data)
    assert answer and answer.status == 201
    assert send(server, "GET", "/models/p/app/1/m").body == data


HEAD, TE, END = "PUT /models/s/app/1/m HTTP/1.1\r\nHost: x\r\n", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n"
SMUGGLING = {   # what is sent before a second request, which is hidden for whoever reads the first in another way
    "CL and TE": f"{HEAD}Content-Length: 5\r\n{TE}\r\n{END}",
    "TE and CL": f"{HEAD}{TE}Content-Length: 5\r\n\r\n{END}",
    "two CLs": f"{HEAD}Content-Length: 1\r\nContent-Length: {len(PUT) + 1}\r\n\r\nx",
    "a list of CLs": f"{HEAD}Content-Length: 1, {len(PUT) + 1}\r\n\r\nx",
    "CL with a sign": f"{HEAD}Content-Length: +1\r\n\r\nx",
    "CL in hex": f"{HEAD}Content-Length: 0x1\r\n\r\nx",
    "CL below zero": f"{HEAD}Content-Length: -1\r\n\r\n",
    "CL with an underscore": f"{HEAD}Content-Length: 1_0\r\n\r\n",
    "CL of 5,000 digits": f"{HEAD}Content-Length: {'9' * 5000}\r\n\r\n",
    "two TEs": f"{HEAD}{TE}Transfer-Encoding: x\r\n\r\n{END}",
    "TE: identity": f"{HEAD}Transfer-Encoding: identity\r\n\r\n",
    "TE: gzip, chunked": f"{HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n{END}",
    "TE: xchunked": f"{HEAD}Transfer-Encoding: xchunked\r\n\r\n{END}",
    "TE with a vertical tab": f"{HEAD}Transfer-Encoding: \x0bchunked\r\n\r\n{END}",
    "TE in HTTP/1.0": f"{HEAD}{TE}\r\n{END}".replace("HTTP/1.1", "HTTP/1.0"),
    "space before the colon": f"{HEAD}Content-Length : 1\r\n\r\nx",
    "obs-fold of a TE": f"{HEAD}Transfer-Encoding:\r\n chunked\r\n\r\n{END}",
    "obs-fold before a TE": f"{HEAD}X: y\r\n Content-Length: 1\r\n{TE}\r\n{END}",
    "obs-fold at the start": f"{HEAD} X: y\r\nContent-Length: 1\r\n\r\nx",
    "bare LF in the head": f"{HEAD}Content-Length: 1\r\n\r\nx".replace("\r\n", "\n"),
    "bare LF in a header": f"{HEAD}X: y\nContent-Length: 1\r\n\r\nx",
    "bare CR in a header": f"{HEAD}X: y\rContent-Length: 1\r\n\r\nx",
    "NUL in a header": f"{HEAD}X: y\0z\r\nContent-Length: 1\r\n\r\nx",
    "chunk size with a sign": f"{HEAD}{TE}\r\n+1\r\nx\r\n{END}",
    "chunk size 0x1": f"{HEAD}{TE}\r\n0x1\r\nx\r\n{END}",
    "chunk size of 40 digits": f"{HEAD}{TE}\r\n{'f' * 40}\r\nx\r\n{END}",
    "chunk size below zero": f"{HEAD}{TE}\r\n-1\r\nx\r\n{END}",
    "chunk without its CRLF": f"{HEAD}{TE}\r\n1\r\nxx{END}",
    "chunk size with a bare LF": f"{HEAD}{TE}\r\n1\nx\r\n{END}",
    "huge chunk extension": f"{HEAD}{TE}\r\n1;{'e' * (1 << 20)}\r\nx\r\n{END}",
    "endless trailer": f"{HEAD}{TE}\r\n0\r\n" + "t: x\r\n" * 100_000 + "\r\n",
    "a header of 1 MiB": f"GET /health HTTP/1.1\r\nHost: x\r\nX: {'y' * (1 << 20)}\r\n\r\n",
    "a target of 1 MiB": f"GET /{'y' * (1 << 20)} HTTP/1.1\r\nHost: x\r\n\r\n",
    "100,000 headers": "GET /health HTTP/1.1\r\nHost: x\r\n" + "X: y\r\n" * 100_000 + "\r\n",
    "no request line": "\0\x01\x02\r\n\r\n",
}


@pytest.mark.parametrize("shape", SMUGGLING)
def test_no_request_hides_in_another(server, shape):
    kept = Version(b"kept", "kept")
    assert perform(server, put("kept/app/1/m", kept)).status == 201
    data = (SMUGGLING[shape] + PUT).encode("latin-1")
    for step in (len(data), 7 if len(data) < 5000 else 100_000):     # at once, and in pieces
        with server.connect(5) as wire:
            try:
                for at in range(0, len(data), step):
                    wire.send(data[at:at + step])
            except OSError:
                pass    # refused and closed in the middle of it
            status, headers, body = wire.response()
            assert 400 <= status < 502 and status not in (500, 404), (shape, status, body)
            assert headers["content-type"] == "application/json" and b'"detail"' in body
            assert wire.at_end(), "the connection must not go on"
    assert attempt(server, "GET", "/models/hidden/app/1/m").status == 404, "the hidden request was executed"
    assert listed(server) == {"kept/app/1/m"}
    assert_knows(server, "kept/app/1/m", kept)
    assert "Traceback" not in server.log() and " ERROR " not in server.log(), server.log()[-3000:]


@pytest.mark.parametrize("head", ["", FORM], ids=["raw", "form"])
def test_a_body_that_never_ends_takes_no_memory(server, head):
    """As fast as it takes it, for a second; what was written is gone when the client is."""
    line = "POST /models/upload" if head else "PUT /models/endless/app/1/m"
    with server.connect() as wire:
        wire.send(f"{line} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {1 << 33}\r\n\r\n")
        if head:
            wire.send('--cut\r\nContent-Disposition: form-data; name="file"\r\n\r\n')
        until = time.monotonic() + 1
        while time.monotonic() < until:
            wire.send(bytes(1 << 20))
        peak = int(Path(f"/proc/{server.process.pid}/status").read_text().split("VmHWM:")[1].split()[0])
    assert peak < 200_000, f"{peak} kB"
    assert_whole(server)
