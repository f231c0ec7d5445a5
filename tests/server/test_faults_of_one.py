"""Whose fault an error is: that of one model, or of one request, takes neither a server nor a list from the others."""

import hashlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from support.common import ROOT, app_of, eventually
from support.process import NOT_ALMIGHTY

from repository import indexed
from repository.errors import ModelCorrupt, ModelUnreadable, StorageFailed, StorageFull, StorageLost
from repository.model import NAME_FIELDS
from repository.tree_index import BATCH_MODELS
from server.access import Forbidden, Unauthorized
from server.application import error_response
from server.errors import STATUS_OF, RangeNotSatisfiable
from storage import Storage

PASSED_OVER = {int(status) for status in re.findall(r"http_(\d{3})", re.search(
    r"^ +proxy_next_upstream (.*);", (ROOT / "deploy/nginx.conf").read_text(encoding="utf-8"), re.MULTILINE)[1])}
NOBODY = 65534
OF_SERVER = {       # the answers that are 5xx, and whether another server may do better
    StorageLost: (503, True),
    StorageFailed: (500, False),     # for this request; its root can be read
    StorageFull: (507, False),       # and what there is can be read
    ZeroDivisionError: (500, False),        # a fault of ours that this request has found
}


ARGUMENTS = {Unauthorized: ("x", "read", ()), Forbidden: ("x", "read", ()), RangeNotSatisfiable: (1,)}


@pytest.mark.parametrize("kind", [*STATUS_OF, ZeroDivisionError])
def test_only_a_lost_storage_is_answered_as_a_failing_server_would(kind):
    status = error_response(kind(*ARGUMENTS.get(kind, ("x",)))).status
    expected, to_blame = OF_SERVER.get(kind, (None, False))
    assert status == expected if expected else 400 <= status < 500
    assert (status in PASSED_OVER) == to_blame


@pytest.mark.parametrize("kind", [ModelCorrupt, ModelUnreadable])
def test_what_is_wrong_with_one_model_is_neither_cached_nor_asked_for_again(kind):
    status = error_response(kind("x")).status
    assert status not in {404, 405, 410, 414, 501}                  # RFC 9110 15.1: which a cache may keep
    assert status not in {408, 425, 429} and status < 500           # after which curl, wget and urllib3 try again


# ---- what this user may not read


@pytest.fixture
def nobody_s():
    """(application, storage root) of a user who may not do everything, whoever runs the tests."""
    root = Path(tempfile.mkdtemp()) / "models"
    root.parent.chmod(0o777)
    root.mkdir()
    with Storage(root) as warm:     # so that all modules are imported
        for path in ("/models/list", "/metrics"):
            app_of(warm).get(path)
    shutil.rmtree(root)
    root.mkdir()
    os.chown(root, NOBODY if os.geteuid() == 0 else -1, -1)
    was = os.geteuid()
    try:
        if was == 0:
            os.seteuid(NOBODY)
        with Storage(root) as store:
            app = app_of(store)
            for name in "abc":
                app.put(f"/models/p/a/1/{name}", name.encode(), status=201)
            app.put("/models/q/a/1/m", b"m", status=201)
            yield app, root
    finally:
        os.seteuid(was)
        shutil.rmtree(root.parent)


def names_in(app, path="/models/list"):
    return ["/".join(model[name] for name in NAME_FIELDS) for model in app.get(path, status=200).json["models"]]


EVERYTHING = ["p/a/1/a", "p/a/1/b", "p/a/1/c", "q/a/1/m"]
WITHOUT_B = ["p/a/1/a", "p/a/1/c", "q/a/1/m"]


@pytest.mark.parametrize(("unreadable", "listed", "download", "info"), [
    ("p/a/1/b/model",           EVERYTHING,     409, 200),
    ("p/a/1/b/metadata.json",   EVERYTHING,     200, 200),  # as if put there by hand: what is not known is null
    ("p/a/1/b",                 WITHOUT_B,      409, 409),
    ("p/a/1",                   ["q/a/1/m"],    409, 409),
    ("p",                       ["q/a/1/m"],    409, 409),
])
def test_what_cannot_be_read_of_one_model_leaves_the_others_alone(nobody_s, unreadable, listed, download, info):
    app, root = nobody_s
    (root / unreadable).chmod(0)
    time.sleep(2)       # after which the index looks at files again
    for _ in range(2):
        assert names_in(app) == listed
        assert app.get("/models/p/a/1/b", status=download).body
        assert app.get("/models/p/a/1/b/info", status=info).body
        assert app.get("/models/q/a/1/m").body == b"m"
        app.get("/metrics", status=200)
        assert app.get("/health").json["status"] == "healthy"
    for form in ("txt", "sha256sums", "ndjson"):
        app.get(f"/models/list?format={form}", status=200)
    app.post("/verify", status=202)
    eventually(lambda: not app.get("/verify").json["running"])
    (root / unreadable).chmod(0o700)
    eventually(lambda: names_in(app) == EVERYTHING)     # although no mtime has changed
    assert app.get("/models/p/a/1/b").body == b"b"
    assert app.get("/models/p/a/1/b/info").json["sha256"]


@pytest.mark.parametrize("place", ["p", "p/a", "p/a/1"])
def test_a_directory_in_which_nothing_can_be_reached_leaves_the_others_alone(nobody_s, place):
    """As chmod -R 644 leaves it: the names in it can be read, but not what they stand for."""
    app, root = nobody_s
    (root / place).chmod(0o400)
    time.sleep(1)       # after which the index looks at directories again
    for path in ("/models/list", "/models/list?limit=1", "/models/list?format=txt", "/models/p") * 2:
        app.get(path, status=200)
    assert names_in(app) == ["q/a/1/m"]
    assert app.get("/models/list?limit=1").json["total_models"] == 1
    app.get("/models/p/a/1/b", status=409)
    (root / place).chmod(0o700)
    eventually(lambda: names_in(app) == EVERYTHING)


def test_a_model_that_was_closed_after_the_last_look_refuses_no_list(nobody_s, monkeypatch):
    monkeypatch.setattr(indexed, "KEPT_BYTES", 0)
    app, root = nobody_s
    assert names_in(app) == EVERYTHING
    (root / "p/a/1/b").chmod(0)
    assert names_in(app) == WITHOUT_B
    (root / "p/a/1/b").chmod(0o700)


def test_the_lost_and_found_of_a_disk_hides_no_list(nobody_s):
    app, root = nobody_s
    (root / "lost+found").mkdir(mode=0)
    assert names_in(app) == EVERYTHING
    assert names_in(app, "/models/p?limit=2&q=b") == ["p/a/1/b"]
    app.get("/metrics", status=200)
    app.get("/models/lost+found", status=200)
    (root / "lost+found").rmdir()


def test_closed_directories_beside_many_others_hide_no_list(nobody_s):
    app, root = nobody_s
    closed = ["lost+found", "p/closed", "p/a/closed", "p/a/1/closed", "p/a/1/folder/closed"]
    for place in closed:
        beside = [f"x{number}" for number in range(BATCH_MODELS + 1)]
        for name in (root / place).name, *beside:
            model = root.joinpath(Path(place).parent, name, *["m"] * (3 - place.count("/")))
            model.mkdir(parents=True)
            (model / "model").write_bytes(b"x")
        (root / place).chmod(0)
    others = len(EVERYTHING) + len(closed) * (BATCH_MODELS + 1)
    time.sleep(1)       # after which the index looks at directories again
    for path in ("/models/list?limit=1", "/models/list", "/models/p?q=x1") * 2:
        app.get(path, status=200)
    assert len(names_in(app)) == others
    assert app.get("/models/p/a/1/b").headers["X-Version-ETag"]
    for place in closed:
        (root / place).chmod(0o700)
    eventually(lambda: len(names_in(app)) == others + len(closed))


def test_a_directory_of_another_owner_is_named_as_the_cause_of_the_failure(nobody_s):
    app, root = nobody_s
    (root / "p/a/1").chmod(0o500)
    detail = app.put("/models/p/a/1/new", b"x", status=500).json["detail"]
    (root / "p/a/1").chmod(0o700)
    assert "Permission denied: the server's user must own the directories" in detail


def test_the_lost_and_found_of_a_disk_is_logged_once_and_fails_no_thread(start, http):
    server = start(*NOT_ALMIGHTY)
    (server.storage / "lost+found").mkdir(mode=0)
    for number in range(4):
        http.put(f"{server.url}/models/p{number}/a/1/m", data=b"x").raise_for_status()
        assert http.get(f"{server.url}/models/list").json()["total_models"] == number + 1
    # what the thread learns when it has passed over the directory
    found = f"{server.url}/models/p/a/2/m/upload?sha256={hashlib.sha256(b'x').hexdigest()}"
    eventually(lambda: http.get(found).text == "1\n")
    health = http.get(f"{server.url}/health").json()
    (server.storage / "lost+found").rmdir()
    assert (health["status"], "faults" in health) == ("healthy", False)
    assert server.stop() == 0
    assert server.log().count("lost+found cannot be read") == 1


@pytest.mark.parametrize(("lose", "find"), [
    (lambda root: root.chmod(0), lambda root: root.chmod(0o700)),
    (lambda root: root.chmod(0o400), lambda root: root.chmod(0o700)),
    (lambda root: root.rename(f"{root}.away"), lambda root: Path(f"{root}.away").rename(root)),
], ids=["closed", "not to be entered", "gone"])
def test_a_storage_that_is_lost_is_503_until_it_is_back(nobody_s, lose, find):
    app, root = nobody_s
    lose(root)
    time.sleep(2)       # after which everything is looked at again
    for method, path in (("GET", "/models/p/a/1/b"), ("GET", "/models/p/a/1/b/info"), ("PUT", "/models/p/a/2/b"),
                         ("GET", "/models/list"), ("GET", "/models/list?limit=1"), ("GET", "/models/p?format=txt"),
                         ("GET", "/models/p/a/latest/b"), ("GET", "/models/p?format=tar"), ("GET", "/api/models/p/a"),
                         ("GET", "/p/a/resolve/main/b"), ("POST", "/verify/p"), ("DELETE", "/models/p?recursive=true")):
        got = app.request(path, method=method, body=b"b" if method == "PUT" else b"", status=503)
        assert "nothing of the storage can be read" in got.json["detail"] and got.headers["Retry-After"]
    find(root)
    assert app.get("/models/p/a/1/b").body == b"b"
    assert names_in(app) == EVERYTHING
