"""What requests hold while they are received: bounded for all of them together, and given back when they go."""

import gc
import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.common import eventually, staged
from support.live import Wire

from model_server import create_app
from server.settings import Settings
from server.turns import MEMORY, SHARE
from server.uploads import Body, Upload
from server.waitress_adapter.channel import StreamingChannel
from server.waitress_adapter.parser import StreamingParser
from server.waitress_adapter.server import Server

MIB = 1 << 20
HALF_A_PATCH = b"PATCH /models/p/a/1/m/info HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(999_000)
LONG_HEAD = b"GET /models/list HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: %b\r\n" % (n, b"y" * 300) for n in range(190))
MANY_FIELDS = b"GET /models/list HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 10_500
FIELD = b'--B\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n%b\r\n'
HALF_A_FORM = (b"POST /models/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=B\r\n"
               b"Content-Length: 10000000\r\n\r\n" + b"".join(FIELD % (n, b"z" * 8000) for n in range(100)))
BEHIND = (b"GET /models/p/a/1/big HTTP/1.1\r\nHost: x\r\n\r\n" + b"PUT /models/p/a/1/n HTTP/1.1\r\nHost: x\r\n"
          b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + bytes(100_000))
HALVES = [HALF_A_PATCH, LONG_HEAD, MANY_FIELDS, HALF_A_FORM, BEHIND]


def resident(server, which="VmRSS"):
    return int(Path(f"/proc/{server.process.pid}/status").read_text().split(f"{which}:")[1].split()[0]) << 10


def test_what_the_clients_that_left_held_is_given_back(start, say):
    server = start()
    warm_up(server)
    before = resident(server)
    for _ in range(12):
        with ExitStack() as wires:
            for n in range(40):
                wires.enter_context(server.connect()).send(HALVES[n % 3])
        eventually(lambda: settled(server))
    kept = resident(server) - before
    say(f"resident memory before {before >> 20} MiB, after {before + kept >> 20} MiB")
    assert kept < 32 * MIB, f"{kept >> 20} MiB are kept for nobody"


@pytest.mark.parametrize("half", HALVES, ids=["patch", "head", "fields", "form", "behind"])
def test_half_requests_take_no_more_than_their_budget_and_others_are_served(start, say, half):
    server = start()
    warm_up(server)
    before = resident(server)
    with ExitStack() as wires:
        for _ in range(300):
            with_all_its_bytes(wires.enter_context(server.connect()), half)
        for number in range(5):
            document = json.dumps({"description": "d" * 8000, "metadata": {f"f{n}": "v" * 8000 for n in range(40)}})
            with server.connect() as wire:
                wire.send(f"PATCH /models/p/a/1/m/info HTTP/1.1\r\nHost: x\r\nContent-Length: {len(document)}\r\n\r\n",
                          document)
                assert wire.response()[0] == 200, number
                wire.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert wire.response()[0] == 200
        most = resident(server, "VmHWM") - before
    say(f"300 half requests took {most >> 20} MiB at the most")
    assert most < MEMORY + 300 * 2 * SHARE + 48 * MIB, f"{most >> 20} MiB"
    eventually(lambda: staged(server.storage) == [])
    assert "Traceback" not in server.log() and " ERROR " not in server.log(), server.log()[-5000:]


def test_the_rest_of_a_request_that_was_given_up_is_not_taken_for_one(start):
    server = start(SERVER_THREADS="1")
    hidden = b"PUT /models/hidden/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
    row = (b"\r\n" * 4000 + hidden) * 110    # wherever it is cut, a request begins with empty lines
    with ExitStack() as wires:
        threads = []
        for _ in range(100):
            wire = wires.enter_context(server.connect())
            data = HALF_A_PATCH[:HALF_A_PATCH.index(b"\r\n\r\n") + 4] + row
            threads.append(threading.Thread(target=with_all_its_bytes, args=(wire, data)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        eventually(lambda: server.log().count(" 429 ") > 10)
    eventually(lambda: server.descriptors() < 100)
    assert not (server.storage / "hidden").exists()
    assert "Traceback" not in server.log() and " ERROR " not in server.log(), server.log()[-5000:]


def with_all_its_bytes(wire, half):
    with suppress(OSError):     # it was given up already
        wire.send(half)


def test_the_request_that_is_half_received_for_longest_is_told_to_come_again(start):
    server = start()
    with ExitStack() as wires:
        first, *more = (wires.enter_context(server.connect()) for _ in range(2 * MEMORY // 999_000))
        for wire in (first, *more):
            wire.send(HALF_A_PATCH)
        status, headers, body = first.response()
        assert (status, headers["content-type"], headers["retry-after"]) == (429, "application/json", "1")
        assert json.loads(body)["detail"] and headers["x-request-id"]
        assert first.at_end()
        more[-1].send(b" " * 1000)      # which is a document of zeros
        assert more[-1].response()[0] in (400, 404)


def warm_up(server):
    with server.connect() as wire:
        for name, size in (("m", 10), ("big", 20 * MIB)):
            wire.send(f"PUT /models/p/a/1/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n", bytes(size))
            assert wire.response()[0] == 201
    with ExitStack() as wires:      # threads, modules, caches
        for n in range(40):
            with_all_its_bytes(wires.enter_context(server.connect()), HALVES[n % len(HALVES)])
    eventually(lambda: settled(server))


def settled(server):
    """Whether nobody is connected any more; asked over a connection of its own."""
    return server.descriptors() <= quiet_descriptors(server)


def quiet_descriptors(server):
    return server.__dict__.setdefault("quiet", server.descriptors())


# ---- without the collector of cycles

@contextmanager
def serving(store):
    """Our server in this process: its address, for those who count its objects."""
    server = Server(create_app(store, Settings()), "127.0.0.1", 0, 4, 4096, idle=60, grace=10, proxies=(), prefix="")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield SimpleNamespace(port=int(server.addresses[0].rpartition(":")[2]))
    finally:
        server.stop()
        thread.join(30)
        for entry in [*server._map.values()]:   # otherwise the process ends then
            entry.close()


def objects():
    kinds = (StreamingChannel, StreamingParser, Body, Upload)
    return [type(entry).__name__ for entry in gc.get_objects() if isinstance(entry, kinds)]


PUT = b"PUT /models/p/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
LEAVING = {
    "in a head":                LONG_HEAD,
    "in a document":            HALF_A_PATCH[:50_000],
    "in a model":               PUT + b"\r\n" + bytes(50_000),
    "in a model by chunks":     PUT.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked") + b"\r\n1\r\nx",
    "in a form":                HALF_A_FORM[:50_000],
    "in a form that is none":   HALF_A_FORM.replace(b"--B\r\nC", b"--B\r\nX", 2)[:50_000],
    "in a refused body":        PUT.replace(b"PUT /models", b"PUT /nowhere") + b"\r\n" + bytes(50_000),
    "before 100 Continue":      PUT + b"Expect: 100-continue\r\n\r\n",
    "after an answer":          b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "after a row":              b"GET /models/list HTTP/1.1\r\nHost: x\r\n\r\n" * 100,
    "after a refusal":          b"GET /health HTTP/1.1\r\n\r\n",
    "after an upload":          PUT + b"\r\n" + bytes(100_000),
    "after a broken upload":    PUT.replace(b"/m ", b"/.m ") + b"\r\n" + bytes(100_000),
}


@pytest.mark.parametrize("where", LEAVING)
def test_a_client_that_leaves_leaves_no_object_for_the_collector(store, where):
    gc.collect()
    gc.disable()
    try:
        with serving(store) as server:
            before = objects()
            for _ in range(10 if where == "after an upload" else 100):     # which waits for the disk
                with ExitStack() as wires:
                    for _ in range(10):
                        wire = wires.enter_context(connect(server))
                        wire.send(LEAVING[where])
                        if where.startswith("after"):
                            assert wire.sock.recv(1000)
            deadline = time.monotonic() + 20
            while len(left := objects()) > len(before) + 5 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(left) <= len(before) + 5, {name: left.count(name) for name in set(left)}
    finally:
        gc.enable()


def connect(server):
    return Wire(socket.create_connection(("127.0.0.1", server.port), 20))
