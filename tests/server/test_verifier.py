"""Damage on the disk: reading again finds it, everything shows it, a restart does not forget it, an upload mends it."""

import json
import os
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.common import app_of, eventually, sha256
from support.needs import unshared

from storage import Storage

DATA = random.Random(6).randbytes(200_000)     # the same in each worker, for the names of tests
GOOD, BAD = "/models/p/a/1.0.0/good", "/models/p/a/1.1.0/bad"
READ_ONLY = (*unshared(), "sh", "-ec", 'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec "$@"')


def verified(app, below=""):
    """The progress at the end of a verification."""
    assert app.post(f"/verify{below}", status=202).headers["Location"] == "/verify"
    return eventually(lambda: not (now := app.get("/verify").json)["running"] and now)


def file_of(store, path):
    return store.root / path.removeprefix("/models/") / "model"


def flip(path, at=100_000):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def health(app):
    got = app.get("/health", status=200).json
    return got["status"], got.get("corrupt_models", 0)


@pytest.fixture
def shelf(app):
    """Two models, of which one is to be damaged."""
    app.put(GOOD + "?framework=onnx", DATA, status=201)
    app.put(BAD + "?framework=onnx", DATA, status=201)
    return app


@pytest.fixture
def damaged(shelf, store):
    """The same when it was found."""
    flip(file_of(store, BAD))
    assert verified(shelf)["corrupt"] == ["p/a/1.1.0/bad"]
    return shelf


# ---- what is found


def test_what_is_right_is_verified_and_nothing_else_about_it_changes(shelf):
    before = shelf.get(GOOD + "/info").json
    assert (before["verified_at"], before["corrupt"]) == (None, False)
    progress = verified(shelf)
    after = shelf.get(GOOD + "/info").json
    assert progress["started_at"] <= after["verified_at"] <= progress["finished_at"]
    assert after == {**before, "verified_at": after["verified_at"]}
    assert progress == {
        "running": False, "below": "", "total_models": 2, "total_bytes": 2 * len(DATA), "done_models": 2,
        "done_bytes": 2 * len(DATA), "skipped_models": 0, "corrupt_models": 0, "corrupt": [],
        "started_at": progress["started_at"], "finished_at": progress["finished_at"], "error": None, "waiting": []}
    assert shelf.get(GOOD).body == DATA
    assert health(shelf) == ("healthy", 0)
    assert verified(shelf) and shelf.get(GOOD + "/info").json["verified_at"] > after["verified_at"]


@pytest.mark.parametrize("damage", [
    lambda path: flip(path, 0), lambda path: flip(path, len(DATA) - 1),
    lambda path: os.truncate(path, len(DATA) // 2), lambda path: os.truncate(path, 0),
    lambda path: os.truncate(path, len(DATA) + 1),
    lambda path: path.write_bytes(os.urandom(len(DATA))),
    lambda path: [flip(path), os.utime(path, (1, 1))],
], ids=["first bit", "last bit", "truncated", "emptied", "longer", "other bytes", "old"])
def test_damage_is_found_and_shown_everywhere(shelf, store, caplog, damage):
    before = {path: shelf.get(path + "/info").json for path in (GOOD, BAD)}
    damage(file_of(store, BAD))
    progress = verified(shelf)
    assert (progress["done_models"], progress["corrupt_models"], progress["corrupt"]) == (2, 1, ["p/a/1.1.0/bad"])
    assert "p/a/1.1.0/bad is corrupt: it" in caplog.text
    good, bad = (shelf.get(path + "/info").json for path in (GOOD, BAD))
    assert (good["corrupt"], bad["corrupt"]) == (False, True)
    assert good["verified_at"] and bad["verified_at"] and bad["updated_at"] == before[BAD]["updated_at"]
    assert shelf.get("/models/list").json["models"] == [good, bad]
    for query, expected in (("true", [bad]), ("false", [good]), ("true&framework=onnx", [bad]), ("true&q=good", [])):
        assert shelf.get(f"/models/p?corrupt={query}").json["models"] == expected
        assert shelf.get(f"/models/p?corrupt={query}&limit=1").json["total_models"] == len(expected)
    document = json.loads(file_of(store, BAD).with_name("metadata.json").read_text())
    assert (document["corrupt"], document["sha256"], document["size"]) == (True, sha256(DATA), len(DATA))
    assert health(shelf) == ("degraded", 1)
    assert "\nmodel_repository_corrupt_models 1\n" in shelf.get("/metrics").text
    shelf.get(BAD, status=409)
    shelf.get(GOOD, status=200)


@pytest.mark.parametrize("value", ["True", "1", "", "yes"])
def test_a_filter_that_is_neither_true_nor_false_is_400(shelf, value):
    assert "true nor false" in shelf.get(f"/models/list?corrupt={value}", status=400).json["detail"]


@pytest.mark.parametrize("document", [None, "", "{}", '{"sha256": "zz", "size": 7}', '{"sha256": "%s"}' % ("0" * 64),
                                      '{"sha256": "%s", "size": "7"}' % ("0" * 64)])
def test_a_model_whose_digest_nobody_knows_is_skipped(app, store, document):
    path = file_of(store, GOOD)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"by hand")
    if document is not None:
        path.with_name("metadata.json").write_text(document)
    progress = verified(app)
    assert (progress["done_models"], progress["skipped_models"], progress["corrupt_models"]) == (1, 1, 0)
    assert app.get(GOOD).body == b"by hand"
    assert app.get(GOOD + "/info").json["verified_at"] is None


@pytest.mark.parametrize(("below", "status", "done"), [
    ("", 202, 4), ("/p", 202, 3), ("/p/a", 202, 2), ("/p/a/1", 202, 2), ("/p/a/1/m", 202, 1),
    ("/none", 404, None), ("/p/none", 404, None), ("/p/a/none", 404, None), ("/p/a/1/none", 404, None),
    ("/empty", 404, None), ("/empty/a", 404, None), ("/linked", 404, None), ("/p/a/latest", 404, None),
    ("/-p", 400, None), ("/list", 400, None), ("/p/a/1/m/x", 404, None), ("/p/a/latest/m", 404, None),
])
def test_each_level_verifies_what_is_below_it(app, store, below, status, done):
    for names in ("p/a/1/m", "p/a/1/n", "p/b/1/m", "q/a/1/m"):
        app.put(f"/models/{names}", b"12345", status=201)
    (store.root / "empty/a").mkdir(parents=True)
    (store.root / "linked").symlink_to("p")
    if status == 202:
        progress = verified(app, below)
        assert (progress["below"], progress["done_models"], progress["total_models"]) == (below[1:], done, done)
        assert progress["done_bytes"] == progress["total_bytes"] == 5 * done
        assert app.get("/models/list?format=ndjson").text.count('"verified_at": null') == 4 - done
    else:
        assert app.post(f"/verify{below}", status=status).json["detail"]
    assert "uploads_refused_total{" not in app.get("/metrics").text


def test_before_the_first_verification_there_is_nothing_to_tell(app):
    progress = app.get("/verify").json
    assert (progress["running"], progress["started_at"], progress["total_models"]) == (False, None, 0)
    assert app.head("/verify", status=200).body == b""
    assert app.options("/verify", status=204).headers["Allow"] == "GET, HEAD, OPTIONS, POST"
    assert app.get("/verify/p", status=405).headers["Allow"] == "OPTIONS, POST"


# ---- what becomes of downloads


@pytest.mark.parametrize("path", [BAD, BAD.replace("1.1.0", "latest")])
@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-9"}, {"Range": f"bytes={len(DATA)}-"},
                                     {"If-None-Match": f'"{sha256(DATA)}"'}, {"If-Match": '"x"'}], ids=str)
def test_a_corrupt_model_is_not_served_unless_that_is_wanted(damaged, store, caplog, path, headers):
    caplog.clear()
    refused = damaged.get(path, headers=headers, status=409)
    assert "corrupt" in refused.json["detail"] and "allow_corrupt=true" in refused.json["detail"]
    assert damaged.head(path, headers=headers, status=409).body == b""
    damaged.get(path + "?allow_corrupt=false", status=409)
    assert caplog.records == []     # no fault of the server

    got = damaged.get(path + "?allow_corrupt=true", status=200)
    assert got.body == file_of(store, BAD).read_bytes() != DATA
    assert got.headers["ETag"].startswith("W/")     # nobody vouches for these bytes
    assert not {"X-Checksum-Sha256", "Digest", "Repr-Digest"} & set(got.headers)
    part = damaged.get(path + "?allow_corrupt=true", headers={"Range": "bytes=-3"}, status=206)
    assert part.body == DATA[-3:]
    assert damaged.get(BAD + ".sha256").text == f"{sha256(DATA)}  bad\n"


def test_a_live_server_answers_the_same_and_goes_on(start, http, tmp_path):
    server = start()
    http.put(server.url + BAD, data=DATA)
    flip(tmp_path / BAD.removeprefix("/") / "model")
    http.post(server.url + "/verify")
    eventually(lambda: http.get(server.url + "/verify").json()["corrupt"])
    before = server.descriptors()
    for _ in range(5):
        assert http.get(server.url + BAD).status_code == http.head(server.url + BAD).status_code == 409
    assert http.get(server.url + BAD + "?allow_corrupt=true", headers={"Range": "bytes=0-9"}).content == DATA[:10]
    eventually(lambda: server.descriptors() <= before)     # the last file is closed behind its last byte
    assert server.stop() == 0
    assert "Traceback" not in server.log()


# ---- what mends it


def test_an_upload_of_the_same_mends_it(damaged, store):
    got = damaged.put(BAD + "?framework=onnx", DATA, status=200).json
    assert (got["message"], got["corrupt"], got["verified_at"]) == ("Model replaced successfully", False, None)
    assert damaged.get(BAD).body == DATA
    assert health(damaged) == ("healthy", 0)
    assert not (store.root / ".staging/corrupt").exists()
    assert damaged.put(BAD + "?framework=onnx", DATA, status=200).json["unchanged"]


def test_a_change_of_metadata_does_not(damaged):
    got = damaged.patch(BAD + "/info", b'{"description": "new"}', status=200).json
    assert (got["description"], got["corrupt"]) == ("new", True)
    assert got == damaged.get(BAD + "/info").json
    damaged.get(BAD, status=409)


@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 5)], ids=["flipped", "truncated"])
@pytest.mark.parametrize("metadata", [False, True], ids=["the model alone", "with its old metadata"])
def test_a_model_that_was_brought_back_is_found_right_again(shelf, store, tmp_path, damage, metadata):
    place = file_of(store, BAD).parent
    shutil.copytree(place, tmp_path / "backup")
    damage(place / "model")
    assert verified(shelf)["corrupt_models"] == 1
    for name in ("model", "metadata.json") if metadata else ("model",):
        shutil.copy2(tmp_path / "backup" / name, place / name)
    if metadata:
        assert health(shelf) == ("healthy", 0)
    assert verified(shelf)["corrupt_models"] == 0
    info = shelf.get(BAD + "/info").json
    assert (info["corrupt"], info["sha256"], info["size"]) == (False, sha256(DATA), len(DATA))
    assert shelf.get(BAD).body == DATA
    assert health(shelf) == ("healthy", 0)


def test_a_truncated_model_is_found_though_somebody_described_it_anew(shelf, store):
    os.truncate(file_of(store, BAD), 5)
    got = shelf.patch(BAD + "/info", b'{"description": "new"}', status=200).json
    assert (got["size"], got["sha256"], got["corrupt"]) == (5, None, False)
    assert verified(shelf)["corrupt"] == ["p/a/1.1.0/bad"]


# ---- how many there are


def test_a_restart_and_another_server_know_of_it_without_verifying(damaged, store):
    with Storage(store.root) as other:
        app = app_of(other)
        assert health(app) == ("degraded", 1)
        assert app.get(BAD + "/info").json == damaged.get(BAD + "/info").json
        app.get(BAD, status=409)
        app.put(BAD, DATA, status=200)
        assert health(app) == health(damaged) == ("healthy", 0)


@pytest.mark.parametrize("remove", [
    lambda app, store: app.delete(BAD, status=200),
    lambda app, store: app.delete("/models/p?recursive=true", status=200),
    lambda app, store: shutil.rmtree(store.root / "p"),
], ids=["deleted", "deleted with its project", "removed by hand"])
def test_a_model_that_is_gone_is_not_counted(damaged, store, remove):
    remove(damaged, store)
    assert health(damaged) == ("healthy", 0)
    assert not (store.root / ".staging/corrupt").exists()


def test_marks_are_made_again_and_a_false_one_counts_for_nothing(damaged, store):
    marks = store.root / ".staging/corrupt"
    marks.joinpath("p/a/1.0.0/good").mkdir(parents=True)
    marks.joinpath("p/a/1.0.0/none").mkdir()
    assert health(damaged) == ("degraded", 1)
    shutil.rmtree(marks)    # as in a copy of the tree
    assert damaged.get(BAD + "/info").json["corrupt"]
    assert verified(damaged)["corrupt_models"] == 1
    assert health(damaged) == ("degraded", 1)


def test_a_bad_mark_is_skipped_with_one_line_of_the_log(damaged, store, caplog):
    marks = store.root / ".staging/corrupt"
    marks.joinpath("file").touch()
    marks.joinpath("link").symlink_to("p/a")
    marks.joinpath(".hidden/a/1/m").mkdir(parents=True)
    marks.joinpath("list/a/1/m").mkdir(parents=True)     # which no project may be called
    marks.joinpath("p/a/1.1.0/file").touch()
    os.mkfifo(marks / "fifo")
    for _ in range(2):
        assert health(damaged) == ("degraded", 1)
        assert "\nmodel_repository_corrupt_models 1\n" in damaged.get("/metrics", status=200).text
    told = [record.getMessage() for record in caplog.records if "not a mark" in record.getMessage()]
    assert sorted(line.partition(", not ")[0].removeprefix(f"{marks}/") for line in told) == [
        ".hidden is a directory", "fifo is a special file", "file is a file", "link is a symbolic link"]


def test_the_marks_of_earlier_versions_are_taken_over(damaged, store):
    """They were dangling links, each under the digest of the names it led to."""
    marks = store.root / ".staging/corrupt"
    shutil.rmtree(marks)
    marks.mkdir()
    for names in ("p/a/1.1.0/bad", "p/a/1.0.0/good", "two/parts", "../../../outside", "list/a/1/m"):
        marks.joinpath(sha256(names.encode())).symlink_to(names)
    with Storage(store.root) as other:
        app = app_of(other)
        assert health(app) == ("degraded", 1)
        assert sorted(path.name for path in marks.iterdir() if not path.is_symlink()) == ["p"]
        assert len([path for path in marks.iterdir() if path.is_symlink()]) == 3


@pytest.mark.needs("a mount namespace")
def test_what_cannot_be_written_is_known_to_this_process_alone(start, http, tmp_path):
    root = tmp_path / "models"
    with Storage(root) as store:
        app = app_of(store)
        app.put(GOOD, DATA, status=201)
        app.put(BAD, DATA, status=201)
    flip(root / BAD.removeprefix("/models/") / "model")
    before = {path: path.read_bytes() for path in root.rglob("metadata.json")}
    for _ in range(2):      # a restart knows nothing of it
        server = start(*READ_ONLY, str(root))
        assert http.get(server.url + "/health").json()["status"] == "healthy"
        assert http.get(server.url + BAD).status_code == 200
        assert [x["corrupt"] for x in http.get(server.url + "/models/list").json()["models"]] == [False, False]
        assert http.post(server.url + "/verify").status_code == 202
        eventually(lambda url=server.url: not http.get(url + "/verify").json()["running"])
        listed = http.get(server.url + "/models/list").json()["models"]
        assert [(x["corrupt"], bool(x["verified_at"])) for x in listed] == [(False, True), (True, True)]
        assert listed == [http.get(f"{server.url}{path}/info").json() for path in (GOOD, BAD)]
        assert http.get(server.url + BAD).status_code == 409
        health = http.get(server.url + "/health").json()
        assert (health["status"], health["corrupt_models"], health["read_only"]) == ("degraded", 1, True)
        assert server.stop() == 0
        assert "Traceback" not in server.log()
    assert before == {path: path.read_bytes() for path in root.rglob("metadata.json")}


# ---- while it is under way


def replaced_by_hand(app, store):
    path = file_of(store, BAD)
    path.with_name("new").write_bytes(b"x" * path.stat().st_size)
    path.with_name("new").replace(path)


@pytest.mark.parametrize(("change", "expected"), [
    (lambda app, store: app.put(BAD, b"new", status=200), (False, False)),
    (lambda app, store: (app.delete(BAD, status=200), app.put(BAD, b"new", status=201)), (False, False)),
    (lambda app, store: app.delete(BAD, status=200), None),
    (replaced_by_hand, (False, False)),
    (lambda app, store: app.patch(BAD + "/info", b'{"description": "new"}', status=200), (True, True)),
], ids=["replaced", "deleted and made again", "deleted", "replaced by hand", "described anew"])
def test_a_model_does_not_get_the_result_of_another(make_app, store, change, expected):
    app = make_app(verify_rate=1 << 20)
    app.put(BAD, bytes(2 << 20), status=201)
    flip(file_of(store, BAD), 1)
    app.post("/verify", status=202)
    eventually(lambda: app.get("/verify").json["done_bytes"])
    change(app, store)
    progress = app.get("/verify").json
    assert progress["running"] and 0 < progress["done_bytes"] < progress["total_bytes"], "it was not under way"
    progress = eventually(lambda: (now := app.get("/verify").json)["finished_at"] and now)
    known = expected == (True, True)
    assert (progress["done_models"], progress["corrupt_models"], progress["skipped_models"]) == (1, known, not known)
    if expected is None:
        app.get(BAD + "/info", status=404)
        assert not file_of(store, BAD).parent.exists()
    else:
        info = app.get(BAD + "/info").json
        assert (info["corrupt"], info["verified_at"] is not None) == expected
        assert info["description"] == ("new" if known else None)
    assert health(app) == (("degraded", 1) if known else ("healthy", 0))


def test_it_reads_no_faster_than_it_may(make_app, store):
    rate = 2 << 20
    app = make_app(verify_rate=rate)
    for number in range(20):
        app.put(f"/models/p/a/1/m{number}", bytes(100_000), status=201)
    begun = time.monotonic()
    app.post("/verify", status=202)
    running = True
    while running:
        progress = app.get("/verify").json
        assert progress["done_bytes"] <= rate * (time.monotonic() - begun) + rate // 10
        running = progress["running"]
    assert progress["done_bytes"] == 2_000_000


def test_an_endless_one_keeps_nobody_waiting(start, http):
    server = start(MODEL_VERIFY_RATE="1")   # which would take two days
    http.put(server.url + GOOD, data=DATA)
    http.post(server.url + "/verify")
    progress = eventually(lambda: (now := http.get(server.url + "/verify").json())["done_bytes"] and now)
    assert progress["running"] and progress["finished_at"] is None
    assert http.get(server.url + GOOD).content == DATA
    assert server.stop() == 0
    assert "Traceback" not in server.log()


def test_requests_wait_for_their_turn_each_once_and_not_too_many(make_app, store):
    app = make_app(verify_rate=1)
    for number in range(17):
        app.put(f"/models/p{number}/a/1/m", DATA, status=201)
    assert app.post("/verify", status=202).json["waiting"] == []
    for number in range(16):
        for _ in range(3):
            waiting = app.post(f"/verify/p{number}", status=202).json["waiting"]
            assert waiting == [f"p{i}" for i in range(number + 1)]
    assert "waiting" in app.post("/verify/p16", status=429).json["detail"]
    app.app.services.verifier.stop()
    assert not app.get("/verify").json["running"]


def test_no_token_fills_the_queue_for_another_and_they_take_turns(make_app, store, tokens):
    lines = [f"{name}:{sha256(name.encode())}:read:*\n" for name in ("greedy", "modest", "late")]
    app = make_app(tokens_file=tokens(*lines), anonymous="all", verify_rate=1)
    for number in range(20):
        app.put(f"/models/p{number}/a/1/m", DATA, status=201)

    def ask(name, number, status=202):
        headers = {"Authorization": f"Bearer {name}"} if name else {}
        return app.post(f"/verify/p{number}", headers=headers, status=status).json

    for number in range(17):    # one is under way
        ask("greedy", number)
    refused = ask("greedy", 17, status=429)["detail"]
    assert "16 verifications that greedy asked for are waiting" in refused
    assert ask("greedy", 5)["waiting"].count("p5") == 1     # which waits already
    ask("modest", 17)
    ask("modest", 18)
    assert ask(None, 19)["waiting"][:6] == ["p17", "p19", "p1", "p18", "p2", "p3"]
    assert len(ask("late", 0)["waiting"]) == 20
    app.app.services.verifier.stop()


class Faulty(Storage):
    """A store with a fault of its own, for one project."""

    def keys(self, *names):
        if names == ("bad",):
            return self.broken()
        return super().keys(*names)

    def broken(self):
        yield from super().keys("bad")
        raise RecursionError("nobody has thought of this")


def test_a_fault_ends_its_verification_and_no_other(tmp_path, caplog):
    with Faulty(tmp_path / "models") as store:
        app = app_of(store, verify_rate=1 << 20)
        for project in ("bad", "good"):
            app.put(f"/models/{project}/a/1/m", DATA, status=201)
        now = verified(app, "/bad")
        assert now["finished_at"] and now["error"] == "internal error: see the server's log"
        for _ in range(2):
            app.post("/verify/bad", status=202)
            now = verified(app, "/good")
            assert (now["below"], now["done_models"], now["error"]) == ("good", 1, None)
        health = app.get("/health", status=200).json
        assert (health["status"], health["faults"]) == ("degraded", {"verification": 3})
        assert '\nmodel_repository_thread_faults_total{thread="verification"} 3\n' in app.get("/metrics").text
        assert caplog.text.count("Traceback") == 1, "the others are only counted"


def test_requests_at_once_are_all_done(make_app, store):
    app = make_app()
    for number in range(12):
        app.put(f"/models/p{number}/a/1/m", DATA, status=201)
        flip(store.root / f"p{number}/a/1/m/model", number)
    gate = threading.Barrier(12)

    def ask(number):
        gate.wait()
        return app.post(f"/verify/p{number}").status_int

    with ThreadPoolExecutor(12) as threads:
        assert set(threads.map(ask, range(12))) == {202}
    eventually(lambda: not app.get("/verify").json["running"])
    assert app.get("/models/list?corrupt=true").json["total_models"] == 12
    assert health(app) == ("degraded", 12)
