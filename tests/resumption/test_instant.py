"""Uploads that need no bytes: of what the caller may read and is not corrupt, and as if the bytes had been sent."""

import os
import pickle

import pytest
from support.common import eventually, sha256, staged
from support.credentials import ALL, bearer, line
from support.witness import send

DATA = os.urandom(300_000)
SOURCE = "/models/source/app/1/dir/m"


def url(target, data=DATA):
    return f"{target}/upload?sha256={sha256(data)}"


def offset(server, target, data=DATA, **headers):
    return send(server, "GET", url(target, data), **headers).json


def end(server, target, data=DATA, **headers):
    return send(server, "PUT", url(target, data), b"", Upload_Offset=str(len(data)), **headers)


def store(server, target, data=DATA, **headers):
    """Uploads a model, and waits until its digest is known."""
    assert send(server, "PUT", target, data, **headers).status in (200, 201)
    eventually(lambda: offset(server, "/models/source/app/1/probe", data, **headers) == len(data))


def test_what_is_stored_under_another_name_is_here_at_once(start):
    server = start()
    store(server, SOURCE)
    state = send(server, "GET", url("/models/p/a/1/m"))
    assert (state.json, state.headers["upload-complete"]) == (len(DATA), "?0")
    answer = send(server, "PUT", url("/models/p/a/1/m") + "&stage=prod", b"", Upload_Offset=str(len(DATA)))
    assert (answer.status, answer.json["sha256"], answer.json["metadata"]) == (201, sha256(DATA), {"stage": "prod"})
    assert send(server, "GET", "/models/p/a/1/m").body == DATA
    assert send(server, "DELETE", SOURCE).status == 200
    assert send(server, "GET", "/models/p/a/1/m").body == DATA
    assert "uploads_instant_total 1" in send(server, "GET", "/metrics").body.decode()
    server.wait_for_log("verified source/app/1/dir/m: 1 model")
    assert eventually(lambda: staged(server.storage) == []), "the other one may be verified at this moment"
    assert "Traceback" not in server.log()


@pytest.mark.parametrize("headers", [{"Tus_Resumable": "1.0.0"}, {"Upload_Draft_Interop_Version": "5"}], ids=str)
def test_a_client_that_would_take_that_for_stored_sends_its_bytes(start, headers):
    """tus-js-client: where the offset is the length, it sends nothing, and tells of success."""
    server = start()
    store(server, SOURCE)
    assert send(server, "HEAD", url("/models/p/a/1/m"), **headers).headers["upload-offset"] == "0"
    created = send(server, "POST", url("/models/p/a/1/m"), Upload_Length=str(len(DATA)), **headers)
    where = created.headers["location"].removeprefix(server.url)
    assert send(server, "HEAD", where, **headers).headers["upload-offset"] == "0"
    answer = send(server, "PATCH", where, DATA, Upload_Offset="0", Upload_Complete="?1", **headers)
    assert answer.status in (201, 204) and send(server, "GET", "/models/p/a/1/m").body == DATA


def test_bytes_cannot_follow_what_is_complete(start):
    server = start()
    store(server, SOURCE)
    answer = send(server, "PUT", url("/models/p/a/1/m"), b"x", Upload_Offset=str(len(DATA)))
    assert answer.status == 400 and f"more than the {len(DATA)} bytes" in answer.json["detail"]
    assert send(server, "GET", "/models/p/a/1/m").status == 404 and staged(server.storage) == []


def test_an_upload_that_is_ended_once_more_is_no_further_one_and_not_verified(start):
    server = start()
    store(server, SOURCE)
    answer = end(server, SOURCE)
    assert (answer.status, answer.json["unchanged"]) == (200, True)
    assert end(server, "/models/p/a/1/m").status == 201
    server.wait_for_log("verified p/a/1/m: 1 model")
    assert server.log().count(" verified ") == 2, "the source and its copy, after the last one"
    assert "uploads_instant_total 1" in send(server, "GET", "/metrics").body.decode()


def test_what_needs_no_bytes_needs_no_free_space(start):
    server, size = start(), 1 << 43
    store(server, SOURCE)
    place = server.storage / SOURCE.removeprefix("/models/")
    os.truncate(place / "model", size)      # of which no block is on the disk
    told = place / "metadata.json"
    told.write_text(told.read_text().replace(str(len(DATA)), str(size)))
    eventually(lambda: offset(server, "/models/p/a/1/m") == size)
    answer = send(server, "PUT", url("/models/p/a/1/m"), b"", Upload_Offset=str(size))
    assert (answer.status, answer.json["size"]) == (201, size)
    assert send(server, "PUT", url("/models/p/a/2/m"), b"", Upload_Offset=str(size + 1)).status == 409
    for target in ("/models/p/a/1/m", SOURCE):      # before they are verified
        send(server, "DELETE", target)


def test_a_wrong_offset_is_answered_with_the_size(start):
    server = start()
    store(server, SOURCE)
    for wrong in (len(DATA) - 1, len(DATA) + 1):
        answer = send(server, "PUT", url("/models/p/a/1/m"), b"", Upload_Offset=str(wrong))
        assert (answer.status, answer.headers["upload-offset"]) == (409, str(len(DATA)))


def test_what_is_corrupt_is_repaired_with_bytes_and_not_with_another_name_of_its_file(start):
    server, (one, two) = start(), (f"/models/p/a/1/{name}" for name in "mn")
    store(server, one)
    assert end(server, two).status == 201
    eventually(lambda: not send(server, "GET", "/verify").json["running"])
    path = server.storage / "p/a/1/m/model"
    path.write_bytes(bytes(len(DATA)))
    (server.storage / "p/a/1/n/model").write_bytes(bytes(len(DATA)))     # where it was cloned
    assert send(server, "POST", one.replace("/models/", "/verify/")).status == 202
    eventually(lambda: send(server, "GET", f"{one}/info").json["corrupt"])
    assert offset(server, one) == 0 and end(server, one).status == 409
    assert send(server, "PUT", url(one), DATA, Upload_Offset="0").status == 200
    assert send(server, "GET", one).body == DATA


def test_a_damage_that_is_found_after_the_file_was_shared_is_told_of_both(start):
    server = start()
    store(server, SOURCE)
    (server.storage / SOURCE.removeprefix("/models/") / "model").write_bytes(bytes(len(DATA)))
    assert end(server, "/models/p/a/1/m").status == 201
    for target in (SOURCE, "/models/p/a/1/m"):
        eventually(lambda target=target: send(server, "GET", f"{target}/info").json["corrupt"])


def test_a_token_learns_nothing_of_what_it_may_not_read(start, tokens):
    server = start(MODEL_TOKENS_FILE=str(tokens(line("ann", ALL, "*"), line("bob", ALL, "p"))))
    store(server, SOURCE, **bearer("ann"))
    assert [offset(server, "/models/p/a/1/m", **bearer(name)) for name in ("ann", "bob")] == [len(DATA), 0]
    refused = end(server, "/models/p/a/1/m", **bearer("bob"))
    assert (refused.status, refused.headers["upload-offset"]) == (409, "0")
    assert end(server, "/models/p/a/1/m", **bearer("ann")).status == 201


def test_what_is_corrupt_or_was_changed_is_never_used(start):
    server = start()
    store(server, SOURCE)
    path = server.storage / SOURCE.removeprefix("/models/") / "model"
    path.write_bytes(DATA[:-1] + b"x" if DATA[-1:] != b"x" else DATA[:-1] + b"y")
    assert send(server, "POST", SOURCE.replace("/models/", "/verify/")).status == 202
    eventually(lambda: send(server, "GET", f"{SOURCE}/info").json["corrupt"])
    assert offset(server, "/models/p/a/1/m") == 0
    assert end(server, "/models/p/a/1/m").status == 409
    path.write_bytes(DATA[:-1])     # of another size: its metadata does not belong to it any more
    assert offset(server, "/models/p/a/1/m") == 0
    assert all(name.startswith("corrupt/") for name in staged(server.storage))


def test_the_date_of_a_name_never_goes_back(start):
    """A link has the date of the older file; where no clone can be made, the bytes have to be sent."""
    server = start()
    store(server, SOURCE)
    path = server.storage / SOURCE.removeprefix("/models/") / "model"
    os.utime(path, (10**9, 10**9))
    assert send(server, "PUT", "/models/p/a/1/m", b"newer").status == 201
    here = offset(server, "/models/p/a/1/m")
    newer = server.storage / "p/a/1/m/model"
    before = newer.stat().st_mtime_ns
    answer = send(server, "PUT", url("/models/p/a/1/m"), DATA[here:], Upload_Offset=str(here))
    assert answer.status == 200 and newer.stat().st_mtime_ns >= before and newer.read_bytes() == DATA
    assert offset(server, "/models/p/a/2/m") == len(DATA), "there is nothing yet that could be newer"


def test_what_an_inspection_refuses_is_refused_under_the_next_name_too(start):
    data = pickle.dumps({"weights": [0.5] * 10_000}, 2)
    server = start()
    store(server, SOURCE, data)
    server.stop()
    server = start(MODEL_PICKLE="deny")
    eventually(lambda: offset(server, "/models/p/a/1/m", data) == len(data))
    assert end(server, "/models/p/a/1/m", data).status == 422
    assert send(server, "GET", "/models/p/a/1/m").status == 404 and staged(server.storage) == []


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_what_is_replaced_or_deleted_is_not_offered(start, method):
    server = start()
    store(server, SOURCE)
    assert send(server, method, SOURCE, b"other").status == 200
    assert offset(server, "/models/p/a/1/m") == 0 and end(server, "/models/p/a/1/m").status == 409
