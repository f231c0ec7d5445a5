"""One request, whatever its megabyte is made of, does not keep the others waiting."""

import socket
import tarfile
import threading
import time
from contextlib import suppress

import pytest
from support.common import eventually
from support.live import running
from support.tars import headed

SIZE = 1 << 20
BOUND = 0.2     # seconds that /health may take beside any of them, on a machine that does nothing else
SLOWER = 5      # times longer than an idle server's, which needs the processor less: for a machine that is busy
LONG_ENOUGH = 1.5   # seconds of a row of requests: what the first of them does, the others do
ATTEMPTS = 4    # the machine is not ours alone: one good one shows that it is not the server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("fair") / "models") as server:
        with server.connect() as wire:
            wire.send(f"PUT /models/p/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: {len(MODEL)}\r\n\r\n", MODEL)
            assert wire.response()[0] == 201
        yield server


MODEL = bytes(1000)
FORM = "Content-Type: multipart/form-data; boundary=B\r\n"
FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n'
FIELD = b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
EXPECT = "Expect: 100-continue\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
END = b"0\r\n\r\n"


def head(line, *headers):
    return f"{line} HTTP/1.1\r\nHost: x\r\n{''.join(headers)}\r\n".encode()


def filled(piece, size=SIZE):
    return piece * (size // len(piece))


def body(data):
    return f"Content-Length: {len(data)}\r\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def form(data):
    return head("POST /models/upload", FORM, body(data)) + data


def tar(name):
    """The upload of a file of this name, which is in a header of its own."""
    data = headed("long", type=tarfile.GNUTYPE_LONGNAME, size=len(name)) + name + bytes(-len(name) % 512)
    data += headed("m") + bytes(1024)
    return head("PUT /models/hostile/b/1", body(data)) + data


def patch(data):
    return head("PATCH /models/p/a/1/m/info", body(data)) + data


ONE, GET, PUT = chunk(b"X"), "GET /health", "PUT /models/hostile/a/1/m"
REQUESTS = {
    "chunks of one byte":               head(PUT, CHUNKED) + filled(ONE) + END,
    "chunks of one byte, refused":      head("PUT /nowhere", CHUNKED) + filled(ONE) + END,
    "chunks of one byte of a document": head("PATCH /models/p/a/1/m/info", CHUNKED) + filled(ONE) + END,
    "chunks of one byte of a form":     head("POST /models/upload", FORM, CHUNKED) + b"".join(
        chunk(FILE[n:n + 1]) for n in range(len(FILE))) + filled(ONE) + END,
    "chunks with extensions":           head(PUT, CHUNKED) + filled(b"1;" + b"e" * 1000 + b"\r\nX\r\n") + END,
    "chunks with many extensions":      head(PUT, CHUNKED) + filled(b"1" + b";e=\"\"" * 100 + b"\r\nX\r\n") + END,
    "trailers":                         head(PUT, CHUNKED) + ONE + b"0\r\n" + filled(b"t: x\r\n"),
    "a trailer that never ends":        head(PUT, CHUNKED) + ONE + b"0\r\n" + filled(b"t"),
    "a size that never ends":           head(PUT, CHUNKED) + filled(b"0"),
    "requests in a row":                filled(head(GET)),
    "requests for nothing in a row":    filled(head("GET /")),
    "refused uploads in a row":         filled(head("PUT /", "Content-Length: 1\r\n") + b"x"),
    "Expect in a row":                  filled(head("PUT /", EXPECT, "Content-Length: 1\r\n") + b"x"),
    "Expect without a body in a row":   filled(head(GET, EXPECT)),
    "empty chunked bodies in a row":    filled(head("PATCH /models/p/a/1/m/info", CHUNKED) + END),
    "empty lines":                      filled(b"\r\n"),
    "white lines":                      filled(b" \r\n\r\n"),
    "heads of 200 fields":              filled(head(GET, *(f"X{n}: {'y' * 300}\r\n" for n in range(199)))),
    "heads of 10,000 fields":           filled(head(GET, "X: y\r\n" * 10_000)),
    "heads of folded lines":            filled(head(GET, "X: y\r\n" + " z\r\n" * 15_000)),
    "heads of white space":             filled(head(GET, f"X:{' ' * 60_000}y\r\n")),
    "heads of white space and NUL":     filled(head(GET, f"X:{' ' * 60_000}\0\r\n")),
    "heads of words":                   filled(head(GET, f"X: {'y ' * 30_000}\0\r\n")),
    "a target of digits":               b"GET a://" + filled(b"1", 60_000) + b" x\r\n\r\n",
    "targets of digits":                filled(b"GET a://" + filled(b"1", 60_000) + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "targets of slashes":               filled(head("GET " + "/" * 60_000)),
    "targets of escapes":               filled(head("GET /" + "%41" * 20_000)),
    "queries of fields":                filled(head("GET /models/list?" + "a&" * 30_000)),
    "ranges":                           filled(head("GET /models/p/a/1/m", f"Range: bytes={'0-0,' * 15_000}\r\n")),
    "tags":                             filled(head("GET /models/p/a/1/m", f"If-None-Match: {'W/,' * 20_000}\r\n")),
    "digests":                          filled(head("PUT /models/p/a/1/m", f"Repr-Digest: {', ' * 30_000}\r\n")),
    "a form of boundaries":             form(FILE + filled(b"\r\n--B")),
    "a form of half boundaries":        form(FILE + filled(b"\r\n--B-")),
    "a form of line ends":              form(FILE + filled(b"\r")),
    "a form of parts of one byte":      form(filled(FIELD)),
    "a form before its first boundary": form(filled(b"\r\n--")),
    "a form without an end":            form(FIELD + b"--B--\r\n" + filled(b"\r\n--B")),
    "a document of numbers":            patch(b"[" + filled(b"1,") + b"1]"),
    "a document of fields":             patch(b"{" + b",".join(b'"%d":1' % n for n in range(90_000)) + b"}"),
    "a document of brackets":           patch(filled(b"[")),
    "a tar of long names":              tar(filled(b"./", 256_000) + b"m") * 4,
    "a document of escapes":            patch(b'{"a":"' + filled(b"\\u0000") + b'"}'),
}


class Neighbour(threading.Thread):
    """Asks for /health again and again; `longest` is what one of the answers took."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.enough, self.longest, self.asked = threading.Event(), 0.0, 0
        self._wire = server.connect()
        self._wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self):
        while not self.enough.wait(0.002):
            begun = time.monotonic()
            self._wire.send(head(GET))
            assert self._wire.response()[0] == 200
            self.longest, self.asked = max(self.longest, time.monotonic() - begun), self.asked + 1

    def __enter__(self):
        self.start()
        eventually(lambda: self.asked)
        return self

    def __exit__(self, *_):
        asked = self.asked
        eventually(lambda: self.asked > asked + 1)  # the server may be at it still
        self.enough.set()
        self.join()
        self._wire.close()


def longest_beside(server, idle, data):
    """Seconds of the longest answer to another client while this is sent and its answers are read; of `idle` too."""
    with server.connect() as wire, Neighbour(server) as neighbour, Neighbour(idle) as baseline:
        threads = [threading.Thread(target=work, args=(wire.sock, data)) for work in (send_all, read_all)]
        for thread in threads:
            thread.start()
        threads[1].join(LONG_ENOUGH)
        with suppress(OSError):
            wire.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
    return neighbour.longest, baseline.longest


def send_all(sock, data):
    with suppress(OSError):     # refused and closed, or there was enough of it
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def read_all(sock, _):
    with suppress(OSError):
        while sock.recv(1 << 16):
            pass


@pytest.mark.parametrize("name", REQUESTS)
def test_no_request_of_a_megabyte_keeps_others_waiting(server, live_server, name):
    took = []
    for _ in range(ATTEMPTS):
        longest, idle = longest_beside(server, live_server, REQUESTS[name])
        if longest < BOUND + SLOWER * idle:
            break
        took.append((longest, idle))
    assert len(took) < ATTEMPTS, f"/health and that of an idle server took, in seconds beside {name}: {took}"
    assert "Traceback" not in server.log()
