"""What is known of the tree, kept for the next start: it saves reading, and is never believed over the files."""

import json
import os
import shutil
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from support.common import app_of, eventually, sha256, staged
from support.tars import tar_with

from repository import indexed, looking, recalled, tree_index
from storage import Storage

INDEX = ".staging/index"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """A tree of any size is kept, whenever something new is known; and in several blocks."""
    monkeypatch.setattr(tree_index, "REMEMBERED", 1)
    monkeypatch.setattr(tree_index, "REMEMBERED_EVERY", 0.0)
    monkeypatch.setattr(tree_index, "REMEMBERED_SHARE", 0)
    monkeypatch.setattr(recalled, "PACKED_BLOCK", 1000)
    monkeypatch.setattr(looking, "RACY", 0.0)    # else what has just changed is read again in any case


@pytest.fixture
def root(tmp_path):
    """Some models, one of them in a folder."""
    for place in ("p/a/1", "p/a/2", "p/b/1", "q/a/1", "q/a/1/folder"):
        for name in ("m1", "m2", "m3"):
            write(tmp_path / place / name, f"{place}/{name}")
    return tmp_path


def write(model, text):
    model.mkdir(parents=True)
    (model / "model").write_text(text)
    document = {"size": len(text), "sha256": sha256(text.encode()), "description": text}
    (model / "metadata.json").write_text(json.dumps(document))


@contextmanager
def started(root):
    """A store that has done what a server does in the background when it starts."""
    with Storage(root) as store:
        store.index.remember()
        store.index._refresh()
        yield store


def listed(store):
    return app_of(store).get("/models/list").json["models"]


def kept(root):
    """What is kept now, by the names of the directories."""
    with Storage(root) as store:
        blocks = list(store.staging.recall_index())[1:]
    assert len(blocks) > 1
    return {names: directory for block in blocks
            for names, directory in recalled.directories_in(recalled.unpacked(block))}


def keep(root):
    """Starts a server, lists everything and has that kept; returns the list."""
    with started(root) as store:
        models = listed(store)
        store.index._write()
    assert sum(len(directory.lines) for directory in kept(root).values()) == len(models)
    return models


def test_what_is_kept_is_told_without_reading_it_again(root):
    models = keep(root)
    assert len(models) == 15
    with started(root) as store:
        assert sum(len(directory.lines) for directory in store.index._directories.values()) == 15
        assert (store.index._reads, store.index._news) == (0, 0)
        assert listed(store) == models
        assert store.index._news == 0
    assert not staged(root)


def test_a_list_takes_over_what_is_kept_of_the_models_in_it(root):
    models = keep(root)
    with Storage(root) as store:
        store.index.remember()
        app = app_of(store)
        assert app.get("/models/p/b").json["models"] == [each for each in models if each["path"].startswith("p/b/")]
        few = len(store.index._directories)
        assert listed(store) == models
        assert few < len(store.index._directories) == len(kept(root))
        assert (store.index._reads, store.index._news) == (0, 0)


def in_place(root):
    (root / "p/a/1/m2/metadata.json").write_text('{"framework": "edited"}')


def other_bytes(root):
    (root / "p/a/1/m2/model").write_text("other")


def as_if_older(root):
    """Another file of the same size, with the time of the old one, as rsync -a would leave it."""
    metadata = root / "p/a/1/m2/metadata.json"
    was = metadata.stat()
    other = root / "other"
    other.write_text(metadata.read_text().replace("description", "Description"))
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    other.rename(metadata)


def outside(root):
    """A link out of the tree, to a copy of what was there."""
    shutil.move(root / "p/a/1/m2", root.parent / "elsewhere")
    (root / "p/a/1/m2").symlink_to(root.parent / "elsewhere")


def whole_version(root):
    write(root / "p/a/3/m9", "new")
    (root / "p/a/2").rename(root / "old")
    (root / "p/a/3").rename(root / "p/a/2")
    shutil.rmtree(root / "old")


@pytest.mark.parametrize("change", [
    lambda root: None, in_place, other_bytes, as_if_older, outside, whole_version,
    lambda root: write(root / "p/a/1/m4", "new"),
    lambda root: write(root / "r/a/1/m4", "new"),
    lambda root: write(root / "q/a/1/folder/in/m4", "new"),
    lambda root: shutil.rmtree(root / "p/a/1/m2"),
    lambda root: shutil.rmtree(root / "p/a/1"),
    lambda root: shutil.rmtree(root / "p"),
    lambda root: (root / "p/a/1/m2/model").unlink(),
    lambda root: (root / "p/a/1/m2/metadata.json").unlink(),
    lambda root: (root / "p/a/1/m2/metadata.json").write_text("{"),
    lambda root: write(root / "q/a/1/folder", "a model now") if shutil.rmtree(root / "q/a/1/folder") else None,
    lambda root: (root / "q/a/1/folder").rename(root / "q/a/1/moved"),
    lambda root: (root / "p/a/@production").symlink_to("1"),
])
def test_what_changed_while_no_server_ran_is_seen(root, change):
    keep(root)
    change(root)
    with started(root) as store:
        taken_over, total = listed(store), store.index.total()
    (root / INDEX).unlink()
    with Storage(root) as store:
        assert listed(store) == taken_over
        assert store.index.total() == total
    assert "elsewhere" not in json.dumps(taken_over)


def flipped(at):
    def flip(file):
        data = bytearray(file.read_bytes())
        data[at % len(data)] ^= 0x55
        file.write_bytes(data)
    return flip


def blocks(*texts):
    packed = [zlib.compress(text) for text in texts]
    return lambda file: file.write_bytes(b"".join(len(each).to_bytes(4, "big") + each for each in packed))


HEADING = recalled.heading(7, indexed.State(1, 1))


@pytest.mark.parametrize("damage", [
    *map(flipped, (0, 3, 5, 30, 200, 600, -300, -1)),
    *(lambda file, size=size: os.truncate(file, size) for size in (0, 3, 50, 400)),
    lambda file: file.write_bytes(b"\0" * 5000),       # as after a power cut
    lambda file: file.write_bytes(b"\xff" * 5000),
    lambda file: file.unlink(),
    lambda file: file.unlink() or file.mkdir(),
    lambda file: file.unlink() or os.mkfifo(file),
    lambda file: file.rename(file.with_name("moved")) and file.symlink_to("moved"),
    blocks(b'["another version", 7, [1, 1]]'),
    blocks(b"{}"),
    blocks(HEADING, b"[]"),
    blocks(HEADING, b"[" * 100_000),
    blocks(HEADING, b'[["p", "a", "1"], [1, 1], 1, ["m1"], null, 4, 5, [["m1", 6], ["m2", 6]]]\n{}'),
    blocks(HEADING, b'[["p", "a", ".."], [1, 1], 1, ["m1"], null, 4, 5, []]'),
    blocks(HEADING, b'[["p"], [1, 1], 1, ["../../etc"], null, 4, 5, []]'),
    blocks(HEADING, b'[["p"], ["x", 1], 1, ["a"], [], 4, 5, []]'),
])
def test_what_is_kept_may_be_damaged(root, damage):
    models = keep(root)
    damage(root / INDEX)
    with started(root) as store:
        assert listed(store) == models
        assert store.index.total().models == 15
        store.index._write()
    assert (root / INDEX).is_dir() or set(kept(root)) > {("p", "a", "1"), ("q", "a", "1", "folder")}


def test_of_what_another_version_of_the_server_kept_the_number_of_models_is_told_until_one_changes(root, monkeypatch):
    models = keep(root)
    monkeypatch.setattr(recalled, "written_by", lambda: "another version")
    with Storage(root) as store, ThreadPoolExecutor(1) as pool:
        store.index.remember()
        app = app_of(store)
        with store.index._passing:      # as during the first pass
            page = pool.submit(app.get, "/models/list?limit=2").result(30).json
            assert (page["models"], page["total_models"]) == (models[:2], 15)
        app.put("/models/p/a/1/m1", b"m", status=200)
        assert app.get("/models/list?limit=2").json["total_models"] == 15
        assert store.index._reads > 2, "nothing else was taken over"


def test_of_two_servers_the_last_one_is_taken_over(root):
    with started(root) as one, started(root) as other:
        for number, store in enumerate((one, other, one)):
            app_of(store).put(f"/models/p/a/1/new{number}", b"new", status=201)
            models = eventually(lambda: (now := listed(one)) == listed(other) and now)
            assert len(models) == 16 + number
            other.index._refresh()
            other.index._write()
            one.index._write()
    with started(root) as store:
        assert listed(store) == models


def test_a_count_is_told_until_the_next_one_is_there(root):
    keep(root)
    shutil.rmtree(root / "p/a/1")
    with Storage(root) as store:
        store.index.remember()
        app = app_of(store)
        page = app.get("/models/list?limit=1").json
        assert page["total_models"] == 15 and page["next"] == "p/a/2/m1"
        assert app.get("/models/p?limit=1").json["total_models"] == 6
        store.index._refresh()
        assert app.get("/models/list?limit=1").json["total_models"] == 15, "until all of them have been told"
        assert store.index.total().models == 12
    shutil.rmtree(root / "q")               # a project that went while no server ran: nothing is told
    with Storage(root) as store:
        store.index.remember()
        assert store.index.count(()) == 6


TWO = tar_with({"x": b"x", "folder/y": b"y"})
CHANGES = {     # a request, and how many models there are after it, of 15
    "into a version": ("PUT", "p/a/1/m", b"m", 16), "into a new version": ("PUT", "p/a/3/m", b"m", 16),
    "into a new project": ("PUT", "new/a/1/m", b"m", 16), "into a folder": ("PUT", "q/a/1/folder/m", b"m", 16),
    "into a new folder": ("PUT", "q/a/1/new/m", b"m", 16), "in place of one": ("PUT", "p/a/1/m1", b"m", 15),
    "a delete": ("DELETE", "q/a/1/m1", b"", 14), "a delete in a folder": ("DELETE", "q/a/1/folder/m1", b"", 14),
    "a tar": ("PUT", "p/a/3", TWO, 17), "a tar in place of a version with a folder": ("PUT", "q/a/1", TWO, 11),
    "a delete of a version": ("DELETE", "q/a/1?recursive=true", b"", 9),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nobody_waits_for_the_first_pass_after_a_change_or_for_another_project(root, change):
    keep(root)
    method, path, body, total = CHANGES[change]
    with Storage(root) as store, ThreadPoolExecutor(1) as pool:
        store.index.remember()
        app = app_of(store)
        with store.index._passing:      # as during the first pass
            pool.submit(app.request, f"/models/{path}", method=method, body=body).result(30)
            assert pool.submit(app.get, "/models/list?limit=1").result(30).json["total_models"] == total
            assert pool.submit(app.get, "/models/p/b?limit=1").result(30).json["total_models"] == 3
        store.index._refresh()
        assert store.index.total().models == total


def test_a_change_is_counted_once_whatever_lists_have_seen_of_it_before_it_was_told(root, monkeypatch):
    keep(root)
    write(root / "q/a/1/folder/m4", "while no server ran")
    with Storage(root) as store:
        store.index.remember()
        app, forget, seen = app_of(store), store.index.forget, []

        def later(names, below=False):
            store.index._directories.doubt(())      # as if a list came that long after the one before
            seen.append(len(listed(store)))
            forget(names, below)

        monkeypatch.setattr(store.index, "forget", later)
        with ThreadPoolExecutor(1) as pool, store.index._passing:
            store._reader._closed.update([("p",), ("p", "a")])      # which are also told to be forgotten
            for method, path, body, total in (
                ("PUT", "p/a/1/m", b"m", 16), ("PUT", "p/a/2", TWO, 15), ("DELETE", "p/a/1/m", b"", 14),
                ("PUT", "q/a/1/folder/m", b"m", 16),    # and with it what was put there by hand
            ):
                pool.submit(app.request, f"/models/{path}", method=method, body=body).result(30)
                page = pool.submit(app.get, "/models/list?limit=1").result(30).json
                assert page["total_models"] == total
        assert len(listed(store)) == 16 and len(seen) > 4


def test_a_change_before_a_list_has_taken_over_its_version_is_shown_at_once(root, monkeypatch):
    for module in (indexed, tree_index):
        monkeypatch.setattr(module, "BATCH_MODELS", 2)      # so all versions are large ones
    keep(root)
    (root / "p/a/1/m1/model").unlink()      # by hand
    with Storage(root) as store:
        store.index.remember()
        app_of(store).put("/models/p/a/1/m1/in", b"new", status=201)
        assert [model["model_name"] for model in listed(store)][:3] == ["m1/in", "m2", "m3"]


def test_the_tree_is_passed_over_while_it_is_written_for_which_no_page_waits_then(root, monkeypatch):
    monkeypatch.setattr(recalled, "PACKED_BLOCK", 1)
    with started(root) as store:
        listed(store)
        store.index._refreshed = before = time.monotonic() - 60     # as if writing took that long
        store.index._write()
        assert store.index._refreshed > before


def test_a_directory_that_could_not_be_read_is_read_again_after_the_next_start(root):
    keep(root)
    with started(root) as store:
        write(root / "p/a/2/m4", "new")
        eventually(lambda: len(listed(store)) == 16)
        store._reader._closed.add(("p", "a", "1"))      # as root, the tests can read everything
        store.index._write()
    directories = kept(root)
    assert directories["p", "a", "1"].stamp == 0 and directories["p", "a", "2"].stamp != 0


def test_the_thread_of_the_index_keeps_it(root):
    with Storage(root) as store:
        thread = threading.Thread(target=store.index.watch, daemon=True)
        thread.start()
        eventually((root / INDEX).exists)
    thread.join(10)
    assert not staged(root)
    assert sum(len(directory.models) for directory in kept(root).values()) == 15


def test_a_small_storage_keeps_nothing(root, monkeypatch):
    monkeypatch.setattr(tree_index, "REMEMBERED", 16)
    with started(root) as store:
        assert len(listed(store)) == 15
        store.index._write()
    assert not (root / INDEX).exists()
