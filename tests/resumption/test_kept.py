"""What is kept of an upload: over breaks and restarts, for whom and how long; and of two writers the newest wins."""

import fcntl
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.common import eventually, sha256, staged
from support.credentials import ALL, bearer, line
from support.raw import chunks, head
from support.witness import send

MIB = 1 << 20
DATA = os.urandom(20 * MIB + 1234)
URL = f"/models/p/a/1/m/upload?sha256={sha256(DATA)}"


@pytest.fixture
def begin():
    """Begins a request: begin(server, target, *headers, body); all of them are closed in the end."""
    wires = []

    def beginner(server, target, *headers, body=b""):
        wires.append(server.connect())
        wires[-1].send(head(f"PUT {target}", *headers), body)
        return wires[-1]

    yield beginner
    for wire in wires:
        wire.close()


def offset(server, url=URL, **headers):
    return send(server, "GET", url, **headers).json


def put(server, data, where, url=URL, **headers):
    return send(server, "PUT", url, data, Upload_Offset=str(where), **headers)


LENGTH = f"Content-Length: {len(DATA)}"


@pytest.mark.parametrize("broken", [8 * MIB - 1, 8 * MIB + 70_001])
def test_an_ordinary_upload_is_kept_from_8_mib_on_if_its_url_has_the_digest(start, broken, begin):
    server = start()
    begin(server, URL.replace("/upload", "") + "&description=x", LENGTH, body=DATA[:broken]).close()
    eventually(lambda: "uploads_in_flight 0" in send(server, "GET", "/metrics").body.decode())
    assert eventually(lambda: offset(server) == broken if broken > 8 * MIB else staged(server.storage) == [])
    answer = put(server, DATA[offset(server):], offset(server))
    assert (answer.status, answer.json["sha256"]) == (201, sha256(DATA))
    assert answer.json["description"] == ("x" if broken > 8 * MIB else None)
    assert staged(server.storage) == []


def test_an_ordinary_upload_that_is_sent_again_leaves_nothing_of_the_one_that_broke_off(start, begin):
    server, target = start(), URL.replace("/upload", "")
    begin(server, target, LENGTH, body=DATA[:-1]).close()
    eventually(lambda: offset(server) == len(DATA) - 1)
    assert send(server, "PUT", target, DATA).status == 201
    assert staged(server.storage) == []
    assert send(server, "DELETE", "/models/p/a/1/m").status == 200 and offset(server) == 0


def test_of_an_ordinary_upload_that_is_refused_nothing_is_kept(start):
    server = start()
    wrong = os.urandom(9 * MIB)
    assert send(server, "PUT", URL.replace("/upload", ""), wrong).status == 400
    assert staged(server.storage) == []


@pytest.mark.parametrize("cut", [0, MIB, 17 * MIB])
def test_of_an_upload_whose_name_was_never_told_nothing_is_kept(start, cut):
    server = start()
    with server.connect() as wire:
        wire.send(head(f"POST {URL.partition('?')[0]}", LENGTH, f"Upload-Length: {len(DATA)}"), DATA[:cut])
        eventually(lambda: "uploads_in_flight 1" in send(server, "GET", "/metrics").body.decode())
    eventually(lambda: "uploads_in_flight 0" in send(server, "GET", "/metrics").body.decode())
    eventually(lambda: staged(server.storage) == [])


def test_of_an_upload_that_is_begun_with_its_first_bytes_these_are_kept(start):
    server = start()
    begun = send(server, "POST", URL.partition("?")[0], DATA[:MIB], Upload_Length=str(len(DATA)))
    where = begun.headers["location"].removeprefix(server.url)
    assert (begun.status, offset(server, where)) == (201, MIB)
    assert put(server, DATA[MIB:], MIB, where).json["sha256"] == sha256(DATA)


def test_it_survives_kills_and_its_digest_is_made_again(start, begin):
    server, sent = start(), 0
    for part in (5 * MIB + 17, 7 * MIB):
        wire = begin(server, URL, f"Upload-Offset: {sent}", "Transfer-Encoding: chunked",
                     body=chunks(DATA[sent:sent + part])[:-5])
        eventually(lambda server=server, least=sent + part - (2 << 20): offset(server) > least)
        server.stop(signal.SIGKILL)
        wire.close()
        server = start()
        sent = offset(server)
        assert sent > 0
    answer = put(server, DATA[sent:], sent)
    assert (answer.status, answer.json["sha256"]) == (201, sha256(DATA))
    assert (server.storage / "p/a/1/m/model").read_bytes() == DATA
    assert staged(server.storage) == [] and "Traceback" not in server.log()


def test_a_server_that_stops_does_not_wait_for_it(start, begin):
    server = start(SERVER_GRACE_SECONDS="60")
    wire = begin(server, URL, "Upload-Offset: 0", LENGTH, body=DATA[:3 * MIB + 5])
    eventually(lambda: offset(server) == 3 * MIB + 5)
    begun = time.monotonic()
    assert server.stop() == 0 and time.monotonic() - begun < 30
    wire.close()
    assert offset(start()) == 3 * MIB + 5


@pytest.mark.parametrize("number", [1, 2])
def test_the_newest_writer_wins_and_the_connection_of_the_other_one_is_closed(start, number, begin):
    servers = [start() for _ in range(number)]
    old, new = servers[0], servers[-1]
    first = begin(old, URL, "Upload-Offset: 0", LENGTH, body=DATA[:6 * MIB])
    eventually(lambda: offset(new) >= 4 * MIB)
    here = offset(new)
    second = begin(new, URL, f"Upload-Offset: {here}", f"Content-Length: {len(DATA) - here}", body=DATA[here:7 * MIB])
    eventually(lambda: offset(new) > here)
    if number == 2:     # the other server learns it when it writes the next block
        first.send(os.urandom(MIB))
    assert first.file.read() == b"", "the connection is closed"
    second.send(DATA[7 * MIB:])
    status, _, _ = second.response()
    assert status == 201 and (new.storage / "p/a/1/m/model").read_bytes() == DATA
    assert staged(new.storage) == []


def test_each_token_has_uploads_of_its_own(start, tokens):
    server = start(MODEL_TOKENS_FILE=str(tokens(*(line(*who, "*") for who in (
        ("ann", ALL), ("bob", ALL), ("eve", "read"))))))
    assert put(server, DATA[:MIB], 0, Upload_Complete="?0", **bearer("ann")).status == 204
    assert [offset(server, **bearer(name)) for name in ("ann", "bob")] == [MIB, 0]
    assert put(server, DATA[MIB:], MIB, **bearer("bob")).status == 409
    assert [send(server, "GET", URL, **headers).status for headers in ({}, bearer("eve"))] == [401, 403]
    answer = send(server, "POST", URL.partition("?")[0], Upload_Length=str(len(DATA)), **bearer("ann"))
    where = answer.headers["location"].removeprefix(server.url)
    assert (answer.status, offset(server, where, **bearer("ann"))) == (201, 0)
    assert send(server, "GET", where, **bearer("bob")).status == 404
    assert send(server, "GET", where.replace("/1/", "/2/"), **bearer("ann")).status == 404
    assert send(server, "DELETE", URL, **bearer("bob")).status == 204
    assert offset(server, **bearer("ann")) == MIB


def test_it_expires_some_time_after_its_last_byte(start):
    server = start()
    assert put(server, DATA[:MIB], 0, Upload_Complete="?0").status == 204
    server.stop()
    server = start(MODEL_UPLOAD_AGE="1h")
    assert offset(server) == MIB
    for path in (server.storage / ".staging/uploads").rglob("*"):
        os.utime(path, (0, time.time() - 7200))
    server.stop()
    server = start(MODEL_UPLOAD_AGE="1h")
    assert eventually(lambda: staged(server.storage) == [])
    server.wait_for_log(f"the unfinished upload of p/a/1/m has expired: {MIB} bytes")
    assert offset(server) == 0


def test_its_space_counts_as_taken_and_its_bytes_as_received(start, begin):
    server = start()

    def figures():
        page = send(server, "GET", "/metrics").body.decode()
        return {name: float(value) for name, value in re.findall(r"^model_repository_(\w+) (\S+)$", page, re.MULTILINE)}

    free = send(server, "GET", "/health").json["free_bytes"]
    begin(server, URL, "Upload-Offset: 0", LENGTH, body=DATA[:12 * MIB + 5]).close()
    eventually(lambda: offset(server) == 12 * MIB + 5)
    taken = free - send(server, "GET", "/health").json["free_bytes"]
    assert taken > 8 * MIB      # others use the disk meanwhile, too
    seen = figures()
    assert (seen["kept_uploads"], seen["kept_upload_bytes"]) == (1, 12 * MIB + 5)
    assert seen["received_bytes_total"] == 12 * MIB + 5
    server.wait_for_log(f"access PUT /models/p/a/1/m/upload 499 {12 * MIB + 5} ")
    assert put(server, DATA[12 * MIB + 5:], 12 * MIB + 5).status == 201
    assert figures()["uploads_resumed_total"] == 1


def test_a_server_of_an_earlier_version_takes_it_for_the_draft_of_a_living_one(start):
    server = start()
    assert put(server, DATA[:MIB], 0, Upload_Complete="?0").status == 204
    with (server.storage / ".staging/uploads.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_conditions_are_checked_again_at_the_end_and_what_is_here_stays(start, begin):
    server = start()
    wire = begin(server, URL, "Upload-Offset: 0", LENGTH, "If-None-Match: *", body=DATA[:MIB])
    eventually(lambda: offset(server))
    assert send(server, "PUT", "/models/p/a/1/m", b"faster").status == 201
    wire.send(DATA[MIB:])
    assert wire.response()[0] == 412
    assert offset(server) == len(DATA)
    assert put(server, b"", len(DATA), If_Match="*").status == 200
    assert staged(server.storage) == []


def waits_for(path):
    """Whether somebody waits for the lock of this file."""
    locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return any("->" in line and f":{path.stat().st_ino} " in line for line in locks)


@pytest.mark.parametrize(("stored", "told"), [(True, (200, str(len(DATA)))), (False, (409, "0"))])
def test_a_part_that_waits_while_the_upload_is_stored_or_removed_is_told_of_that(start, begin, stored, told):
    """As after a break while the model takes its place, which may take seconds."""
    server = start()
    assert put(server, DATA, 0, Upload_Complete="?0").status == 204
    lock, = (server.storage / ".staging/uploads").glob("*.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        wire = begin(server, URL, f"Upload-Offset: {len(DATA)}", "Content-Length: 0")
        eventually(lambda: waits_for(lock))
        if stored:
            assert send(server, "PUT", "/models/p/a/1/m", DATA).status == 201
        shutil.rmtree(lock.with_suffix(""))
    status, headers, _ = wire.response()
    assert (status, headers["upload-offset"]) == told
    assert [path for path in staged(server.storage) if not path.endswith(".lock")] == []


def test_an_upload_that_was_not_stored_never_looks_complete_to_a_client_that_stops_at_its_length(start, begin):
    """tus-js-client takes an offset that equals the length for success, whatever else the answer says."""
    server = start(MODEL_OVERWRITE="deny")
    created = send(server, "POST", URL.partition("?")[0], Upload_Length=str(len(DATA)), Tus_Resumable="1.0.0")
    where = created.headers["location"].removeprefix(server.url)
    wire = begin(server, where, "Upload-Offset: 0", LENGTH, "Tus-Resumable: 1.0.0", body=DATA[:MIB])
    eventually(lambda: offset(server, where))
    assert send(server, "PUT", "/models/p/a/1/m", b"faster").status == 201
    wire.send(DATA[MIB:])
    assert wire.response()[0] == 403
    state = send(server, "HEAD", where, Tus_Resumable="1.0.0").headers
    assert (state["upload-offset"], state["upload-length"]) == (str(len(DATA) - 1), str(len(DATA)))
    assert send(server, "DELETE", "/models/p/a/1/m").status == 200
    assert put(server, DATA[-1:], len(DATA) - 1, where).status == 201
    assert send(server, "GET", "/models/p/a/1/m").body == DATA
    state = send(server, "HEAD", where, Tus_Resumable="1.0.0").headers
    assert (state["upload-offset"], state["upload-complete"]) == (str(len(DATA)), "?1")


def test_a_model_that_turns_out_to_be_too_large_is_removed(start):
    server = start(MODEL_MAX_SIZE="19M")
    assert put(server, DATA[:MIB], 0, Upload_Complete="?0").status == 204
    answer = put(server, chunks(DATA[MIB:]), MIB, Transfer_Encoding="chunked")
    assert answer.status == 413 and f"larger than the {19 * MIB} bytes" in answer.json["detail"]
    assert staged(server.storage) == []


def test_of_a_token_that_has_1000_unfinished_uploads_no_further_one_is_kept(start, tokens, begin):
    server = start(MODEL_TOKENS_FILE=str(tokens(line("ann", ALL, "*"), line("bob", ALL, "*"))))
    assert put(server, DATA[:MIB], 0, Upload_Complete="?0", **bearer("ann")).status == 204
    uploads = server.storage / ".staging/uploads"
    first, = (path.name for path in uploads.iterdir() if path.is_dir())
    for number in range(999):
        (uploads / f"{first[:8]}{number:024x}").mkdir()
    other = URL.replace("/m/", "/other/")
    for answer in (put(server, DATA[:MIB], 0, other, **bearer("ann")),
                   send(server, "POST", other.partition("?")[0], Upload_Length="5", **bearer("ann"))):
        assert answer.status == 507 and "1000 uploads of this token are unfinished" in answer.json["detail"]
    assert put(server, DATA[MIB:], MIB, **bearer("ann")).status == 201, "this one had begun"
    (uploads / f"{first[:8]}{999:024x}").mkdir()
    whole = other.replace("/upload", "")
    begin(server, whole, LENGTH, f"Authorization: {bearer('ann')['Authorization']}", body=DATA[:-1]).close()
    eventually(lambda: "uploads_in_flight 0" in send(server, "GET", "/metrics", **bearer("ann")).body.decode())
    assert offset(server, other, **bearer("ann")) in (0, len(DATA)), "it was not kept, or is stored under another name"
    assert send(server, "PUT", whole, DATA, **bearer("ann")).status == 201
    assert put(server, DATA[:MIB], 0, URL.replace("/m/", "/bobs/"), Upload_Complete="?0", **bearer("bob")).status == 204
