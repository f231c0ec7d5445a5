"""The tree of files: what is in it, what is planted in it, what a crash leaves in it; and what the modules may know."""

import ctypes
import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.common import ROOT, app_of, drafting, sha256, staged

from repository.errors import ModelExists, ModelNotFound, StorageFailed, StoreError
from repository.model import VERSION_DEPTH, Details, ModelKey
from storage import Storage

KEY = ModelKey("p", "a", "v", "m")


def anything(_):
    """The check of a change that is always welcome."""


def put(store, data=b"data", key=KEY, **details):
    with drafting(store) as draft:
        if data:
            draft.write([data])
        return draft.publish(key, sha256(data), Details(**details), anything)


def read(store, key=KEY):
    opened = store.open(key)
    with opened.file as file:
        return file.read(), opened.model


def plant(root, document=None, data=b"by hand", key=KEY):
    """A model as cp, rsync or an older server would leave it."""
    directory = root.joinpath(*key.names)
    directory.mkdir(parents=True)
    (directory / "model").write_bytes(data)
    if document is not None:
        (directory / "metadata.json").write_bytes(document)
    return directory


def app_on(store):
    return app_of(store)


# ---- what is there


def test_the_layout_is_a_model_and_its_metadata_and_nothing_else(store):
    put(store, description="d")
    put(store, b"other", description="e")
    tree = sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if ".staging" not in path.parts)
    assert tree == ["p", "p/a", "p/a/v", "p/a/v/m", "p/a/v/m/metadata.json", "p/a/v/m/model"]
    document = json.loads((store.root / "p/a/v/m/metadata.json").read_text())
    assert (document["sha256"], document["size"], document["description"]) == (sha256(b"other"), 5, "e")
    assert staged(store.root) == []


def test_a_copied_tree_is_a_storage(store, tmp_path):
    put(store, description="d")
    subprocess.run(["cp", "-r", str(store.root / "p"), str(tmp_path / "copy")], check=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "copy").rename(tmp_path / "new" / "p")
    with Storage(tmp_path / "new") as copy:
        assert read(copy)[0] == b"data"
        assert read(copy)[1].sha256 == sha256(b"data")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to any group")
@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("umask", [0o027, 0o002])
def test_the_group_of_a_project_can_read_what_is_uploaded_to_it(store, umask, level):
    place = store.root.joinpath(*KEY.names[:level])
    place.mkdir(parents=True)
    os.chown(place, -1, 4242)
    place.chmod(0o2770)
    before = os.umask(umask)
    try:
        for round_ in range(2):
            put(store, b"data %d" % round_)
            store.amend(KEY, lambda model: replace(model, updated_at="later"))
            made = list(place.rglob("*"))
            assert len(made) == 6 - level
            for path in made:
                status = path.stat()
                assert (status.st_gid, oct(status.st_mode & 0o7777)) == (
                    4242, oct(0o2777 & ~umask if path.is_dir() else 0o666 & ~umask)), path
    finally:
        os.umask(before)


def test_a_root_may_be_a_link_itself(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with Storage(tmp_path / "link") as store:
        put(store)
        assert read(store)[0] == b"data"
    assert (tmp_path / "real/p/a/v/m/model").exists()


BROKEN = [b"", b"{", b"not json", b"[]", b'"x"', b"null", b"\xff\xfe\x00", b"[" * 100_000, b"x" * (5 << 20),
          b'{"size": ' + b"9" * 5000 + b"}"]
FOREIGN = [b"{}", b'{"size": "x", "sha256": 5, "description": [], "framework": {}, "metadata": "x", "filename": 1}',
           b'{"sha256": "zz", "size": 7}', b'{"name": "other", "extra": {"a": 1}}',
           b'{"metadata": {"n": NaN}}', b'{"metadata": {"n": 1e999}}',
           b'{"description": "\\ud800", "filename": "\\udfff.pt", "metadata": {"\\ud800": "\\ud800"}}',
           b'{"filename": "a\\r\\nX-Evil: 1\\".pt"}', b'{"filename": ""}',
           b'{"metadata": {"a": ' + b'{"a":' * 940 + b"1" + b"}" * 942,
           b'{"metadata": {"a": ' + b"[" * 4000 + b"]" * 4000 + b"}}"]


@pytest.mark.parametrize("document", [None, *BROKEN, *FOREIGN], ids=lambda d: repr(d and d[:40]))
def test_a_model_put_there_by_hand_is_listed_served_and_deletable(store, caplog, document):
    def strictly(text):
        return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))

    put(store, b"good", ModelKey("p", "a", "v", "good"))
    plant(store.root, document)
    app = app_on(store)
    info = strictly(app.get("/models/p/a/v/m/info").body)
    assert (info["size"], info["sha256"], info["uploaded_at"]) == (7, None, None)
    assert info["framework"] is None
    assert [entry["model_name"] for entry in strictly(app.get("/models/list").body)["models"]] == ["good", "m"]
    assert len([strictly(line) for line in app.get("/models/p?format=ndjson").body.splitlines()]) == 2
    app.get("/models/p?format=sha256sums&q=o", status=200)
    got = app.get("/models/p/a/v/m")
    assert (got.body, got.headers["ETag"][:2], "X-Evil" in got.headers) == (b"by hand", "W/", False)
    assert "X-Checksum-Sha256" not in got.headers
    app.get("/models/p/a/v/m.sha256", status=404)
    app.get("/models/p/a/v/m?sha256=" + sha256(b"by hand"), status=412)     # nobody knows
    if document in BROKEN:
        assert "p/a/v/m/metadata.json" in caplog.text
    app.delete("/models/p/a/v/m", status=200)
    assert not (store.root / "p/a/v/m").exists()


@pytest.mark.parametrize("kind", ["directory", "fifo", "fifo with a writer", "link", "dangling link", "socket"])
def test_metadata_that_is_no_file_does_not_hide_the_model(store, tmp_path, caplog, kind):
    path = plant(store.root) / "metadata.json"
    (tmp_path / "secret").write_text('{"description": "secret"}')
    held = []
    if kind == "directory":
        path.mkdir()
    elif kind.startswith("fifo"):
        os.mkfifo(path)
        held += [os.open(path, os.O_RDWR)] if "writer" in kind else []
    elif kind == "socket":
        os.mknod(path, 0o140644)
    else:
        path.symlink_to(tmp_path / ("secret" if kind == "link" else "nothing"))
    gc.collect()    # else what earlier tests left open may be closed in between
    before = len(os.listdir("/proc/self/fd"))
    data, model = read(store)
    assert (data, model.details.description, model.sha256) == (b"by hand", None, None)
    app = app_on(store)
    assert app.get("/models/list").json["total_models"] == 1
    assert "p/a/v/m/metadata.json" in caplog.text
    app.delete("/models/p/a/v/m", status=200)
    assert len(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / "secret").exists()
    for descriptor in held:
        os.close(descriptor)


def test_metadata_that_tells_of_another_size_vouches_for_nothing(store, caplog):
    put(store, description="kept")
    (store.root / "p/a/v/m/model").write_bytes(b"replaced by hand")
    data, model = read(store)
    assert (data, model.size, model.sha256) == (b"replaced by hand", 16, None)
    assert model.details.description == "kept"
    assert "p/a/v/m/metadata.json" in caplog.text
    assert not put(store, description="kept").unchanged


# ---- what is planted


@pytest.mark.parametrize("level", range(5))
def test_a_planted_link_is_not_followed(store, tmp_path, level):
    outside = plant(tmp_path / "outside", json.dumps({"description": "secret"}).encode())
    source = [*KEY.names, "model"][:level + 1]
    link = store.root.joinpath(*source)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to((tmp_path / "outside").joinpath(*source))
    before = sorted(str(path) for path in (tmp_path / "outside").rglob("*"))
    assert list(store.keys()) == list(store.keys(*KEY.names[:1])) == list(store.keys(*KEY.names[:3])) == []
    assert store.versions("p", "a") == ([KEY.version] if level >= VERSION_DEPTH else [])
    with pytest.raises(ModelNotFound):
        store.open(KEY)
    with pytest.raises(ModelNotFound):
        store.delete(KEY, anything)
    with pytest.raises(StoreError):
        put(store, b"through the link")
    with pytest.raises(StoreError):
        store.amend(KEY, lambda model: replace(model, updated_at="through the link"))
    app = app_on(store)
    app.get("/models/p/a/v/m", status=404)
    app.delete("/models/p?recursive=true", status=404)
    assert sorted(str(path) for path in (tmp_path / "outside").rglob("*")) == before
    assert (outside / "model").read_bytes() == b"by hand"
    assert staged(store.root) == []
    assert link.is_symlink()


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket"])
def test_what_is_no_file_is_no_model(store, kind):
    path = store.root.joinpath(*KEY.names, "model")
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "directory" else os.mkfifo(path) if kind == "fifo" else os.mknod(path, 0o140644)
    if kind == "directory":     # an empty one is what an upload leaves that is cut off
        (path / "notes").write_text("somebody's")
    with pytest.raises(ModelNotFound):      # and at once: no writer will ever come
        store.open(KEY)
    assert list(store.keys()) == []
    with pytest.raises(ModelExists):
        put(store)
    assert path.exists()


def test_what_lies_around_in_the_tree_is_not_listed(store):
    put(store)
    for path in (".hidden/a/v/m", "p/.git/v/m", "p/a b/v/m", "list/a/v/m", "p/a/v/empty", "p/a/v/-x"):
        (store.root / path).mkdir(parents=True)
        if "empty" not in path:
            (store.root / path / "model").write_bytes(b"x")
    (store.root / "p/a/README").write_text("a file")
    assert list(store.keys()) == [KEY]
    assert list(store.keys("p", "a", "README")) == []


# ---- drafts, and processes that die


def test_a_discarded_draft_leaves_nothing(store):
    with drafting(store) as draft:
        draft.write([b"x" * 1000])
        assert staged(store.root) != []
    assert staged(store.root) == []
    with pytest.raises(ZeroDivisionError), drafting(store) as draft:
        draft.publish(KEY, sha256(b""), Details(), lambda current: 1 / 0)
    assert (staged(store.root), list(store.keys())) == ([], [])
    assert sorted(path.name for path in store.root.iterdir()) == [".staging"]


def switch(root):
    """The link at the top leads to a copy without .staging, as after a restore."""
    target = root.resolve()
    copy = target.with_name(f"{target.name}_")
    shutil.copytree(target, copy, ignore=shutil.ignore_patterns(".staging"))
    root.unlink()
    root.symlink_to(copy)


@pytest.mark.parametrize("tidy", [
    lambda root: shutil.rmtree(root / ".staging"),
    lambda root: subprocess.run(["find", str(root), "-mindepth", "1", "-type", "d", "-empty", "-delete"], check=True),
    lambda root: [lock.unlink() for lock in root.glob(".staging/*.lock")],
    lambda root: shutil.rmtree(root / ".staging/locks"),
    switch,
], ids=["all of it", "empty directories", "the locks of sessions", "the locks of models", "a switched link"])
def test_what_was_made_at_start_is_made_again(tmp_path, tidy):
    (tmp_path / "real").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "real")
    with Storage(tmp_path / "models") as store:
        for number in range(3):
            put(store, b"data %d" % number)
            tidy(store.root)
            assert read(store)[0] == b"data %d" % number
            store.probe()
            with Storage(store.root):   # another start sees that this one lives
                assert put(store, b"data %d" % number, description="again").created is False
            tidy(store.root) if tidy is not switch else None
            store.delete(KEY, anything)
            assert list(store.keys()) == []
        with drafting(store) as draft:
            draft.write([b"lost"])
            shutil.rmtree(store.root / ".staging")
            with pytest.raises(StorageFailed, match="send it again"):
                draft.publish(KEY, sha256(b"lost"), Details(), anything)
        put(store, b"data")
    assert not list((tmp_path / "models/.staging").glob("????????????????*"))


ABANDON = """
import sys
from pathlib import Path
from storage import Storage
draft = Storage(Path(sys.argv[1])).draft()
draft.write([b"x" * 1000])
print(flush=True)
sys.stdin.read()
"""


def test_a_start_removes_what_the_dead_left_and_not_what_the_living_write(store):
    killed = subprocess.Popen([sys.executable, "-c", ABANDON, str(store.root)], cwd=ROOT,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    killed.stdout.readline()
    with drafting(store) as mine:
        mine.write([b"mine"])
        with Storage(store.root):
            assert len({Path(path).parts[0] for path in staged(store.root)}) == 2     # both live
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with Storage(store.root) as third:
            assert len({Path(path).parts[0] for path in staged(store.root)}) == 1
            put(third, b"third", ModelKey("p", "a", "v", "third"))
        assert mine.publish(KEY, sha256(b"mine"), Details(), anything).created
    killed.stdin.close()
    killed.stdout.close()
    assert read(store)[0] == b"mine"
    assert staged(store.root) == []


@pytest.fixture(params=[errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, None])
def no_exchange(monkeypatch, request):
    """A file system, or a C library, that cannot exchange two directories; tells how often it was asked to."""
    asked = []

    class Library:
        def __init__(self, *_, **__):
            asked.append(1)
            if request.param:
                self.renameat2 = self.refuse

        def refuse(self, *_):
            ctypes.set_errno(request.param)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    return asked


def test_replacing_works_without_an_exchange(store, no_exchange):
    put(store, description="one")
    for round_ in range(3):
        data = f"round {round_}".encode()
        published = put(store, data, description="two")
        assert (published.created, published.unchanged) == (False, False)
        got, model = read(store)
        assert (got, model.sha256) == (data, sha256(data))
    assert len(no_exchange) == 3
    assert staged(store.root) == []
    store.delete(KEY, anything)
    assert [path.name for path in store.root.iterdir()] == [".staging"]


@pytest.mark.parametrize("newer", [False, True], ids=["before the new version", "after the new version"])
def test_a_crash_between_the_renames_of_a_replacement_is_mended(store, newer):
    put(store, b"old", description="old")
    rescued = store.root.joinpath(".staging", "replaced", *KEY.names)
    rescued.parent.mkdir(parents=True)
    store.root.joinpath(*KEY.names).rename(rescued)
    if newer:
        plant(store.root, json.dumps({"sha256": sha256(b"new"), "size": 3}).encode(), b"new")
    expected = b"new" if newer else b"old"
    got, model = read(store)      # before anybody repaired it
    assert (got, model.sha256) == (expected, sha256(expected))
    with Storage(store.root) as restarted:
        assert read(restarted)[0] == expected
        assert list(restarted.keys()) == [KEY]
    assert store.root.joinpath(*KEY.names, "model").read_bytes() == expected
    assert not rescued.exists()
    assert staged(store.root) == []


def test_the_next_change_mends_it_too(store):
    put(store, b"old")
    rescued = store.root.joinpath(".staging", "replaced", *KEY.names)
    rescued.parent.mkdir(parents=True)
    store.root.joinpath(*KEY.names).rename(rescued)
    assert not put(store, b"new").created       # the old version was there all the time
    assert read(store)[0] == b"new"
    assert staged(store.root) == []
