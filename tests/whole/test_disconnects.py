"""Clients that leave, or pause, in the middle of an upload: nothing of them is left, and nobody else waits."""

import random
import socket
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.common import eventually, sha256, staged
from support.live import running

CONTENT = random.Random(1).randbytes(700_000)


def gone(server, quiet):
    """Waits until nothing is left of those who left."""
    eventually(lambda: not connections(server))
    try:
        eventually(lambda: staged(server.storage) == [] and server.descriptors() <= quiet)
    except AssertionError:
        pytest.fail(f"left behind: {staged(server.storage)} and {server.descriptors() - quiet} descriptors")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A live server of our own: the descriptors it has open are ours to count."""
    with running(tmp_path_factory.mktemp("leaving") / "models") as server:
        with server.connect() as wire:      # what is opened once is open now
            wire.send(messages("warm")["form"])
            assert wire.response()[0] == 201
        yield server


@pytest.fixture
def quiet(server):
    """How many descriptors the server has when nobody is connected."""
    eventually(lambda: not connections(server) and not staged(server.storage))
    return server.descriptors()


def connections(server):
    """The server's side of its established connections, as the kernel knows them."""
    port = f":{server.port:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row for row in rows if row[1].endswith(port) and row[3] in ("01", "08")]    # ESTABLISHED, CLOSE_WAIT


def messages(project):
    """The same upload as a form, raw, and chunked."""
    fields = {"project_id": project, "app_name": "a", "version": "1", "model_name": "m"}
    form = b"".join(b'--XX\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (k.encode(), v.encode())
                    for k, v in fields.items())
    form += b'--XX\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n' + CONTENT + b"\r\n--XX--\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (CONTENT[:300_000], CONTENT[300_000:])) + b"0\r\n\r\n"
    kind = "Content-Type: multipart/form-data; boundary=XX"

    def message(line, *headers, body):
        return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body

    put = f"PUT /models/{project}/a/1/m"
    return {
        "form": message("POST /models/upload", kind, f"Content-Length: {len(form)}", body=form),
        "raw": message(put, f"Content-Length: {len(CONTENT)}", body=CONTENT),
        "chunked": message(put, "Transfer-Encoding: chunked", body=chunks),
    }


def head_end(message):
    return message.index(b"\r\n\r\n") + 4


STAGES = [  # (way, stage, where it is in the message)
    *((way, stage, where) for way in ("form", "raw", "chunked") for stage, where in {
        "in the request line":      lambda m: 9,
        "in the headers":           lambda m: head_end(m) - 9,
        "before the last LF":       lambda m: head_end(m) - 1,
        "after the headers":        head_end,
        "after the first byte":     lambda m: head_end(m) + 1,
        "in the content":           lambda m: m.index(CONTENT[:50]) + 5,
        "far in the content":       lambda m: m.index(CONTENT[:50]) + 290_000,
        "before the last byte":     lambda m: len(m) - 1,
    }.items()),
    ("form", "in the first boundary",   lambda m: m.index(b"--XX\r\n") + 3),
    ("form", "in a field",              lambda m: m.index(b"\r\n\r\na\r\n--XX") + 5),
    ("form", "in the part's headers",   lambda m: m.index(b"filename=") + 3),
    ("form", "after the part's headers", lambda m: m.index(CONTENT[:50])),
    *(("form", f"{n} into the last boundary", lambda m, n=n: m.index(b"\r\n--XX--") + n) for n in range(8)),
    ("chunked", "in a chunk's size",    lambda m: head_end(m) + 3),
    ("chunked", "in a later size",      lambda m: m.index(CONTENT[300_000:300_050]) - 4),
    ("chunked", "between two chunks",   lambda m: m.index(CONTENT[300_000:300_050]) - 7),
    ("chunked", "before the last chunk", lambda m: len(m) - 5),
    ("chunked", "in the last chunk",    lambda m: len(m) - 3),
]


def leave(wire, how):
    if how == "reset":      # what a killed process with unread data, or a broken line, looks like
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half-closed":
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.file.read()[9:10] in (b"", b"4")    # no answer, or a refusal
    wire.close()


@pytest.mark.parametrize("how", ["closed", "reset", "half-closed"])
@pytest.mark.parametrize(("way", "where"), [(way, where) for way, _, where in STAGES],
                         ids=[f"{way}, {stage}" for way, stage, _ in STAGES])
def test_a_client_that_leaves_leaves_nothing(server, quiet, project, way, where, how):
    message = messages(project)[way]
    cut = where(message)
    wire = server.connect()
    wire.send(message[:cut])
    begun = cut > message.index(CONTENT[:50])
    eventually(lambda: staged(server.storage) if begun else server.descriptors() > quiet)   # it has come that far
    leave(wire, how)
    gone(server, quiet)
    assert not (server.storage / project).exists()


def test_many_clients_that_leave_at_once_leave_nothing(server, quiet, project):
    dice = random.Random(project)
    ways = list(messages(project).values())
    with ExitStack() as wires:
        for n in range(120):
            message = ways[n % 3]
            wire = server.connect()
            wires.callback(leave, wire, dice.choice(["closed", "reset"]))
            wire.send(message[: dice.randrange(1, len(message) - 1)])
    gone(server, quiet)
    assert not (server.storage / project).exists()


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_client_that_leaves_while_its_bytes_are_being_written_leaves_nothing(server, quiet, project, how):
    for _ in range(40):     # no waiting in between: the worker is at it when the connection ends
        wire = server.connect()
        wire.send(messages(project)["raw"][:-1])
        leave(wire, how)
    gone(server, quiet)
    assert not (server.storage / project).exists()


def test_a_client_that_leaves_before_the_answer_has_stored_all_or_nothing(server, quiet, project):
    for message in messages(project).values():
        wire = server.connect()
        wire.send(message)
        leave(wire, "reset")
    gone(server, quiet)
    stored = server.storage / project / "a/1/m"
    assert not stored.exists() or sha256((stored / "model").read_bytes()) == sha256(CONTENT)


def test_a_client_that_leaves_does_not_touch_the_model_it_would_have_replaced(server, quiet, project):
    with server.connect() as wire:
        wire.send(f"PUT /models/{project}/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nold")
        assert wire.response()[0] == 201
    for message in messages(project).values():
        with server.connect() as wire:
            wire.send(message[:-1])
            eventually(lambda: staged(server.storage))
    gone(server, quiet)
    assert (server.storage / project / "a/1/m/model").read_bytes() == b"old"


def test_a_form_that_ends_without_its_last_boundary_stores_nothing(server, project):
    message = messages(project)["form"]
    short = message.replace(b"\r\n--XX--\r\n", b"\r\n--XX--x\n")     # of the same length
    with server.connect() as wire:
        wire.send(short)
        assert wire.response()[0] == 400
    assert staged(server.storage) == [] and not (server.storage / project).exists()


@pytest.mark.parametrize("way", ["form", "raw", "chunked"])
def test_paused_uploads_keep_nobody_waiting_and_end_well(server, project, http, way):
    paused = []
    with ExitStack() as wires:
        for n in range(24):     # three times the threads of the server
            message = messages(f"{project}{n}")[way]
            wire = wires.enter_context(server.connect())
            cut = (message.index(CONTENT[:50]) + n * 1000) if n else head_end(message) + 2
            wire.send(message[:cut])
            paused.append((wire, message[cut:]))
        for n in range(20):
            url = f"{server.url}/models/{project}_other/a/{n}/m"
            assert http.put(url, data=CONTENT).status_code == 201
            assert http.get(url).content == CONTENT
            assert http.get(f"{server.url}/models/{project}_other").json()["total_models"] == n + 1
            assert not any((server.storage / f"{project}{k}").exists() for k in range(24))
        for wire, rest in paused:
            wire.send(rest)
        for wire, _ in paused:
            status, _, body = wire.response()
            assert status == 201 and sha256(CONTENT).encode() in body
    http.close()


@pytest.mark.parametrize("request_line", ["GET /models/list HTTP/1.0\r\n", "GET /models/list HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_leaves_before_a_thread_is_free_is_logged_and_counted_once(start, http, request_line):
    """More requests at once than there are threads: of some, the connection has ended when it is their turn."""
    server, ids = start(SERVER_THREADS="1"), {f"left-{number}" for number in range(100)}
    with ExitStack() as wires:
        for each in ids:
            wire = wires.enter_context(server.connect())
            wire.send(f"{request_line}X-Request-Id: {each}\r\n\r\n")
            leave(wire, "reset")

    def logged():
        return [line.split() for line in server.lines if " left-" in line]

    eventually(lambda: len(logged()) >= len(ids), "a line for each")
    assert {line[8] for line in logged()} == ids and len(logged()) == len(ids)
    assert {line[5] for line in logged()} <= {"200", "499"}
    counted = [line.split() for line in http.get(f"{server.url}/metrics").text.splitlines()
               if line.startswith("model_repository_requests_total{") and "/models/list" in line]
    assert sum(int(line[-1]) for line in counted) == len(ids)
    assert "Traceback" not in server.log()
