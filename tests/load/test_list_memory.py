"""What lists cost: memory within a budget whatever is in them, and a buffer for a reader that stalls."""

import json
import re
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.common import eventually, sha256
from support.live import Wire, running

from repository import metadata

MIB = 1 << 20
MODELS = 60
BUDGET = 64     # MiB that a list may cost over what the index keeps
# Of an earlier version, whose limit was on the bytes before they were escaped; and the most that is taken today.
CUSTOM = {
    "of an earlier version": {f"k{number}": "\1" * 8192 for number in range(metadata.MAX_CUSTOM)},
    "of this version": {f"k{number}": "\1" * 1360 for number in range(metadata.MAX_CUSTOM)},
    "of nested objects": {f"k{number}": json.loads("[" + ",".join(['{"":{"":{"":{}}}}'] * 290) + "]")
                          for number in range(metadata.MAX_CUSTOM)},
    "that grows in ASCII": {f"k{number}": "я" * 4090 for number in range(metadata.MAX_CUSTOM)},
}


def plant(root, count, custom, indent=None):
    document = {"size": 4, "sha256": sha256(b"data"), "metadata": custom}
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    for number in range(count):
        directory = root / f"p{number:03}" / "a" / "1" / "m"
        directory.mkdir(parents=True)
        (directory / "model").write_bytes(b"data")
        (directory / "metadata.json").write_text(text)


def memory(server, what="VmRSS"):
    """MiB resident now, or (VmHWM) at the most since forget_peak()."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", status)[1]) / 1024


def forget_peak(server):
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def threads_of(server):
    return int(re.search(r"Threads:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1])


def stalled(server, path, stack):
    """A client that asks and takes next to nothing of the answer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", server.port))
    wire = stack.enter_context(Wire(sock))
    wire.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n")
    assert wire.head()[0] == 200
    return wire


def chunked_body(wire):
    """None where it ends before its last chunk."""
    pieces = []
    while line := wire.file.readline():
        if line == b"0\r\n":
            return b"".join(pieces)
        pieces.append(wire.file.read(int(line, 16)))
        wire.file.readline()
    return None


def temporary_bytes(directory):
    """Of all files in it, those included that have no name any more."""
    found = 0
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(descriptor.readlink())
            found += descriptor.stat().st_size if target.startswith(str(directory)) else 0
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("kind", "path"), [
    *((kind, "/models/list") for kind in CUSTOM),
    ("of an earlier version", "/models/list?limit=1000"), ("of this version", "/models/list?limit=1000"),
    ("of an earlier version", "/models/list?q=p0&format=ndjson"),
    ("that grows in ASCII", "/models/list?q=p0&limit=1000"),
])
def test_a_list_costs_no_more_than_its_budget_whatever_is_in_it(tmp_path, http, say, kind, path):
    count = MODELS // 3 if kind == "of nested objects" else MODELS      # of which each takes a while to parse
    plant(tmp_path / "models", count, CUSTOM[kind], indent=2)
    with running(tmp_path / "models") as server:
        assert http.get(f"{server.url}/models/none").status_code == 200
        before, total = memory(server), 0
        forget_peak(server)
        for _ in range(2):
            with http.get(server.url + path, stream=True) as got:
                assert got.status_code == 200
                total += sum(map(len, got.iter_content(MIB)))
        peak, after = memory(server, "VmHWM"), memory(server)
        say(f"{kind}, {path}: {total / 2 / MIB:.0f} MiB listed; memory {before:.0f} MiB before, {peak:.0f} at the "
            f"peak, {after:.0f} after")
        assert total > 2 * count * 400_000
        assert peak - before < BUDGET


@pytest.mark.parametrize(("count", "custom", "each"), [
    (1500, {"k": "x" * 8000, "l": "x" * 8000}, 1.5), (30, CUSTOM["of this version"], 4),
], ids=["many models", "long metadata"])
def test_readers_that_stall_cost_a_buffer_each_and_no_thread(tmp_path, http, say, count, custom, each):
    readers = 8     # as many as the server has threads
    plant(tmp_path / "models", count, custom)
    (tmp_path / "tmp").mkdir()
    with running(tmp_path / "models", TMPDIR=str(tmp_path / "tmp")) as server, ExitStack() as stack:
        whole = http.get(f"{server.url}/models/list").content
        assert len(whole) > 12 * MIB
        before, threads = memory(server), threads_of(server)
        wires = [stalled(server, "/models/list", stack) for _ in range(readers)]
        for _ in range(200):    # meanwhile the others are served
            assert http.get(f"{server.url}/models/p001/a/1?format=txt", timeout=10).text == "p001/a/1/m\n"
        held = memory(server) - before
        say(f"{readers} stalled readers of a list of {len(whole) / MIB:.0f} MiB: {held:.1f} MiB of memory, "
            f"{temporary_bytes(tmp_path / 'tmp')} bytes in TMPDIR")
        assert temporary_bytes(tmp_path / "tmp") == 0
        assert held < each * readers
        assert threads_of(server) <= threads
        for wire in wires[:4]:
            wire.close()
        for wire in wires[4:]:      # they get all of it when they go on
            assert chunked_body(wire) == whole
        eventually(lambda: sum(' GET /models/list 200 ' in line for line in server.lines) == 1 + readers)
        assert "Traceback" not in server.log()


def test_a_slow_reader_never_makes_the_server_keep_what_was_sent(tmp_path, http, say):
    plant(tmp_path / "models", 60, CUSTOM["of this version"])
    with running(tmp_path / "models") as server, ExitStack() as stack:
        whole = http.get(f"{server.url}/models/list").content
        before = memory(server)
        forget_peak(server)
        wire = stalled(server, "/models/list", stack)
        assert chunked_body(wire) == whole
        peak = memory(server, "VmHWM") - before
        say(f"a reader with a window of 4 KiB: {peak:.1f} MiB for {len(whole) / MIB:.0f}")
        assert peak < 16


def test_a_reader_that_stalls_for_longer_than_a_client_may_is_closed(tmp_path, http):
    plant(tmp_path / "models", 30, CUSTOM["of this version"])
    with running(tmp_path / "models", SERVER_IDLE_SECONDS="1") as server, ExitStack() as stack:
        assert http.get(f"{server.url}/models/none").status_code == 200
        http.close()
        wire = stalled(server, "/models/list", stack)
        server.wait_for_log("GET /models/list 200")     # the line comes when it is over
        assert chunked_body(wire) is None      # and the client sees that something is missing


def test_a_server_that_stops_gives_a_stalled_reader_up(tmp_path, http):
    plant(tmp_path / "models", 30, CUSTOM["of this version"])
    with running(tmp_path / "models") as server, ExitStack() as stack:
        stalled(server, "/models/list", stack)
        assert server.stop() == 0
        assert "GET /models/list 200" in server.log()


def test_a_head_of_a_list_counts_it_and_keeps_nothing(tmp_path, http, say):
    plant(tmp_path / "models", MODELS, CUSTOM["of this version"])
    with running(tmp_path / "models") as server:
        assert http.get(f"{server.url}/models/none").status_code == 200
        before = memory(server)
        forget_peak(server)
        with server.connect() as wire:
            wire.send("HEAD /models/list HTTP/1.1\r\nHost: x\r\n\r\n")
            assert wire.head()[0] == 200
        peak = memory(server, "VmHWM") - before
        url = f"{server.url}/models/list"       # which is in the list, so the length depends on it
        assert int(http.head(url).headers["Content-Length"]) == len(http.get(url).content)
        say(f"HEAD of a list of {MODELS / 2:.0f} MiB: {peak:.1f} MiB")
        assert peak < 16
        with server.connect() as wire:
            for _ in range(2):      # the connection goes on
                wire.send("HEAD /models/none HTTP/1.1\r\nHost: x\r\n\r\n")
                assert wire.head()[1]["content-length"] == str(len(http.get(f"{server.url}/models/none").content))
