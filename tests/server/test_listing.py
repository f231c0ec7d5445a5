"""Lists, their pages, filters and formats, what real tools make of them; and what holds for every answer there is."""

import io
import json
import re
import shutil
import subprocess
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from math import inf
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import requests
from support.common import app_of, eventually, sha256
from support.shelf import MODELS, names_of
from support.tars import tar_with

from repository import indexed, looking, tree_index
from repository.directories import Directory
from repository.errors import StorageFailed
from repository.indexed import Signature, State, size_of
from repository.model import MAX_PARTS, VERSION_DEPTH, Stamp
from repository.tree_index import BATCH_MODELS, Index
from server.listing import PAGE_BYTES
from storage import Storage

QUERIES = {     # what some of them are uploaded with
    MODELS[1]: "framework=pytorch&description=Great%20ResNet%20mod%C3%A8le&stage=prod",
    MODELS[2]: "framework=onnx&description=distilled&stage=test",
    MODELS[8]: "framework=pytorch&stage=prod&owner=ann",
}
LEVELS = [("list",), ("p1",), ("p1", "a"), ("p1", "a", "1.0.0"), ("p1", "a", "1.0.0+b"), ("p2",), ("P", "a")]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """The application with MODELS in it, uploaded last to first."""
    with Storage(tmp_path_factory.mktemp("lists") / "models") as store:
        app = app_of(store)
        for names in reversed(MODELS):
            app.put(f"/models/{'/'.join(names)}?{QUERIES.get(names, '')}", "/".join(names).encode(), status=201)
        yield app




def below(level):
    return [m for m in MODELS if level == ("list",) or m[:len(level)] == level]


@pytest.mark.parametrize("level", LEVELS, ids="/".join)
def test_a_list_names_its_level_and_every_model_below_as_info_does(shelf, level):
    got = shelf.get("/models/" + "/".join(level))
    given = {} if level == ("list",) else dict(zip(("project_id", "app_name", "version"), level, strict=False))
    given |= {"aliases": {}} if len(level) == 2 else {}
    assert got.json == {**given, "total_models": len(below(level)), "models": got.json["models"]}
    assert [names_of(entry) for entry in got.json["models"]] == below(level)
    for entry in got.json["models"]:
        assert entry == shelf.get(f"/models/{'/'.join(names_of(entry))}/info").json
    assert (got.headers["Content-Type"], got.headers["Cache-Control"]) == ("application/json", "no-cache")
    assert shelf.get("/models/" + "/".join(level) + "/").json == got.json


@pytest.mark.parametrize("path", ["none", "p1/none", "p1/a/none", "none/none/none", "p1/m", "p1/none/latest"])
def test_an_unknown_name_is_an_empty_list(shelf, path):
    got = shelf.get(f"/models/{path}", status=200).json
    assert (got["total_models"], got["models"]) == (0, [])
    assert shelf.get(f"/models/{path}?format=txt", status=200).body == b""


@pytest.mark.parametrize("path", [
    ".staging", "-p", "+p", "%20", "p%20q", "p%0A", "p%00", "caf%C3%A9", "%FF", "p%5Cq", "x" * 129, "p1/.a", "p1/a/-1",
    "p1/a/1%09",
    "list/a", "upload/a", "p*", "~p", "p:q",
])
def test_a_bad_name_is_400_and_the_answer_gives_the_rule(shelf, path):
    detail = shelf.get(f"/models/{path}", status=400).json["detail"]
    assert re.search("128|reserved", detail)


def test_an_encoded_slash_is_no_slash(live_server, http):
    for path in ("p1%2Fa", "p1%2fa/1", "..%2f..", "p/a/1/m%2finfo"):
        assert http.get(f"{live_server.url}/models/{path}").status_code == 400


# ---- pages


@pytest.mark.parametrize("limit", [1, 2, 5, len(MODELS), 1000])
@pytest.mark.parametrize("level", [("list",), ("p1",), ("p1", "a"), ("p1", "a", "1.0.0")], ids="/".join)
@pytest.mark.parametrize("by", ["link", "next"])
def test_walking_the_pages_gives_every_model_once(shelf, level, limit, by):
    path, parameters, found = "/models/" + "/".join(level), {"limit": str(limit)}, []
    while True:
        page = shelf.get(path, parameters)
        assert len(page.json["models"]) <= limit
        assert page.json["total_models"] == len(below(level))
        found += [names_of(entry) for entry in page.json["models"]]
        link = re.fullmatch(r'<http://[^/]+(/[^>]*)>; rel="next"', page.headers.get("Link", ""))
        assert bool(link) == ("next" in page.json)
        if not link:
            break
        path, parameters = (link[1], None) if by == "link" else (path, {"limit": limit, "after": page.json["next"]})
    assert found == below(level)


def test_a_version_with_more_models_than_are_read_at_once_is_whole_and_in_order(tmp_path):
    names = sorted(f"m{number}" for number in range(2 * BATCH_MODELS + 30))
    for name in names:
        (tmp_path / "p/a/1" / name).mkdir(parents=True)
        (tmp_path / "p/a/1" / name / "model").write_text(name)
    with Storage(tmp_path) as store:
        app = app_of(store)

        def listed(query=""):
            got = app.get(f"/models/list?format=ndjson{query}")
            return [json.loads(line)["model_name"] for line in got.text.splitlines()]

        for after in ("m100", names[BATCH_MODELS - 1], names[BATCH_MODELS], "m1000", names[-1]):
            assert listed(f"&limit=70&after=p/a/1/{after}") == [name for name in names if name > after][:70]
        assert listed() == names
        app.delete(f"/models/p/a/1/{names[BATCH_MODELS]}")
        app.put("/models/p/a/1/m1000000", b"new", status=201)
        names = sorted({*names, "m1000000"} - {names[BATCH_MODELS]})
        assert listed() == names
        (tmp_path / "p/a/1" / names[-1] / "metadata.json").write_text('{"framework": "edited"}')
        eventually(lambda: listed("&framework=edited") == [names[-1]])
        assert listed() == names


@pytest.fixture
def large(tmp_path):
    """A version with more models than one request looks at, in a storage whose index knows all of them."""
    for number in range(3 * BATCH_MODELS):
        (tmp_path / f"p/a/1/m{number:03}").mkdir(parents=True)
        (tmp_path / f"p/a/1/m{number:03}/model").write_text("old")
    with Storage(tmp_path) as store:
        app = app_of(store)
        assert app.get("/models/list").json["total_models"] == 3 * BATCH_MODELS
        yield store, app


def test_a_change_in_a_large_version_has_no_other_model_looked_at(large, monkeypatch):
    store, app = large
    monkeypatch.setattr(tree_index, "FRESH", 1e9)
    monkeypatch.setattr(tree_index, "FRESH_LINES", 1e9)
    signed, signature = set(), store._reader.signature
    monkeypatch.setattr(store._reader, "signature",
                        lambda place, names, inside="": signed.add(names[-1]) or signature(place, names, inside))
    count = 3 * BATCH_MODELS
    for name, change, more in (
        ("l", lambda path: app.put(path, b"first", status=201), 1),
        ("m005", lambda path: app.put(path, b"replaced", status=200), 0),
        ("m150", lambda path: app.patch_json(f"{path}/info", {"description": "patched"}), 0),
        ("m299", lambda path: app.delete(path), -1), ("l", lambda path: app.delete(path), -1),
        ("z", lambda path: app.put(path, b"the last", status=201), 1),
    ):
        fingerprint = store.index.fingerprint(("p", "a", "1"))
        change(f"/models/p/a/1/{name}")
        count += more
        models = app.get("/models/p/a/1").json["models"]
        assert len(models) == app.get("/models/list?limit=1").json["total_models"] == count
        found = [model for model in models if model["model_name"] == name]
        assert found == ([app.get(f"/models/p/a/1/{name}/info").json] if more >= 0 else [])
        assert store.index.fingerprint(("p", "a", "1")) != fingerprint
    assert signed <= {"l", "m005", "m150", "m299", "z"}
    total = store.index.total()
    store.index.forget(("p",), below=True)
    assert store.index.total() == total == (count, 3 * (count - 2) + len("replaced") + len("the last"))
    assert app.get("/models/p/a/1").json["models"] == models


def test_a_version_that_is_no_longer_large_is_in_order(tmp_path):
    names = [f"p/a/1/m{number:03}" for number in range(BATCH_MODELS + 1)]
    written(tmp_path, *names)
    with Storage(tmp_path) as store:
        app = app_of(store)
        assert app.get("/models/list?format=txt").text.split() == names
        app.put(f"/models/{names[0]}", b"new", status=200)      # the line of which is known last
        app.delete(f"/models/{names.pop()}")
        assert app.get("/models/list?format=txt").text.split() == names
        assert app.get("/models/list?format=txt&limit=2").text.split() == names[:2]


@pytest.mark.parametrize("change", [
    lambda version: (version / "m150/metadata.json").write_text('{"framework": "edited"}'),
    lambda version: (version / "m150/model").write_text("other bytes"),
    lambda version: (version / "m150/model").unlink(),
    lambda version: (version / "m150").rename(version / "m1500"),
    lambda version: shutil.rmtree(version / "m299"),
    lambda version: [version.rename(version.with_name("2")), shutil.copytree(version.with_name("2"), version)],
])
def test_what_others_change_in_a_large_version_is_seen(large, change, monkeypatch):
    store, app = large
    monkeypatch.setattr(tree_index, "FRESH", 0.1)
    monkeypatch.setattr(tree_index, "FRESH_LINES", 0.2)
    app.put("/models/p/a/1/new", b"new", status=201)
    app.get("/models/list")
    change(store.root / "p/a/1")

    def is_seen():
        with Storage(store.root) as other:
            return (app.get("/models/list").json == app_of(other).get(
                "/models/list").json)

    eventually(is_seen)


@pytest.mark.parametrize("told", [True, False], ids=["on ext4", "where no more than the inode is told"])
def test_a_large_version_that_has_the_inode_of_the_one_before_is_listed_as_it_is(large, monkeypatch, told):
    monkeypatch.setattr("repository.reading.state_of", lambda status: State(status.st_mtime_ns, 1))
    if not told:
        monkeypatch.setattr("repository.filesystem.generation", lambda directory: 0)
    monkeypatch.setattr(tree_index, "FRESH", 1e9)               # as if it had been looked at just now,
    monkeypatch.setattr(tree_index, "FRESH_LINES", -1.0)        # and its files long ago
    store, app = large
    store.index.forget(("p",), below=True)
    assert len(app.get("/models/list").json["models"]) == 3 * BATCH_MODELS
    names = sorted(["a", *(f"m{number:03}" for number in range(BATCH_MODELS))])
    with Storage(store.root) as other:
        app_of(other).put(
            "/models/p/a/1", tar_with(dict.fromkeys(names, b"new")), status=200)
    assert [model["model_name"] for model in app.get("/models/list").json["models"]] == names


def test_a_list_of_a_large_version_goes_on_while_models_change_and_ends_when_all_are_others(large, monkeypatch):
    store, app = large
    monkeypatch.setattr(tree_index, "HELD_BYTES", 1000)
    monkeypatch.setattr(indexed, "KEPT_LARGEST", 0)     # all is read while it is listed
    store.index.forget(("p",), below=True)
    batches = store.lines(("p", "a", "1"))
    names = [*next(batches).lines]
    for name in ("m100", "m299"):
        app.put(f"/models/p/a/1/{name}", b"another one")
    names += [name for batch in batches for name in batch.lines]
    assert names == [f"m{number:03}" for number in range(3 * BATCH_MODELS)]
    batches = store.lines(("p", "a", "1"))
    next(batches)
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w") as tar:
        tar.addfile(tarfile.TarInfo("m"))
    app.put("/models/p/a/1", packed.getvalue(), status=200)
    with pytest.raises(StorageFailed, match="ask again"):
        list(batches)


def test_a_change_of_one_model_has_no_other_one_read_again(tmp_path, monkeypatch):
    with Storage(tmp_path) as store:
        app = app_of(store)
        names = ["a", "b", "f/a", "f/b", "g/h/a", "g/h/b"]
        for name in names:
            app.put(f"/models/p/a/1/{name}", b"old", status=201)
        read, described = [], store._reader.described
        monkeypatch.setattr(store._reader, "described",
                            lambda place, key, stamp: read.append(key.model_name) or described(place, key, stamp))
        for change in (lambda name: app.put(f"/models/p/a/1/{name}", name.encode(), status=200),
                       lambda name: app.patch_json(f"/models/p/a/1/{name}/info", {"description": name})):
            for name in names:
                app.get("/models/list")
                change(name)
                read.clear()
                assert app.get("/models/list").json["total_models"] == len(names)
                assert read == [name]
        read.clear()
        (tmp_path / "p/a/1/f/a/metadata.json").write_text("{}")
        (tmp_path / "p/a/1/g/h").rename(tmp_path / "p/a/1/i")
        eventually(lambda: app.get("/models/list?format=txt").text.split()[2:] == [
            f"p/a/1/{name}" for name in ("f/a", "f/b", "i/a", "i/b")])
        eventually(lambda: app.get("/models/list") and sorted(read) == ["f/a", "i/a", "i/b"])


def written(root, *places):
    """Models put there by hand, one of this name in each of these directories."""
    for place in places:
        (root / place).mkdir(parents=True)
        (root / place / "model").write_text(place)


def test_the_very_first_list_looks_at_each_model_once(tmp_path, monkeypatch):
    names = [f"p/a/{version}/m{number}" for version in (1, 2) for number in range(5)]
    written(tmp_path, *names)
    with Storage(tmp_path) as store:
        looked, signature = [], store._reader.signature
        monkeypatch.setattr(store._reader, "signature", lambda directory, names, inside="":
                            looked.append("/".join(names)) or signature(directory, names, inside))
        assert [f"{'/'.join(place)}/{name}" for place, lines in store.lines(()) for name in lines] == names
        assert sorted(looked) == names


def test_the_very_first_list_never_mixes_a_version_with_the_one_that_replaces_it(tmp_path, monkeypatch):
    written(tmp_path, "p/a/1/m1", "p/a/1/m2", "new/m1", "new/m2", "new/m3")
    with Storage(tmp_path) as store:
        models_in = store._reader.models_in

        def replaces(place):
            if (tmp_path / "new").exists():     # after the names in it were read, and before the models are
                (tmp_path / "p/a/1").rename(tmp_path / "old")
                (tmp_path / "new").rename(tmp_path / "p/a/1")
            return models_in(place)

        monkeypatch.setattr(store._reader, "models_in", replaces)
        lists = [[name for _, lines in store.lines(("p", "a", "1")) for name in lines] for _ in range(2)]
    assert lists == [["m1", "m2", "m3"]] * 2


def test_no_list_mixes_what_another_one_has_just_read_of_the_next_version_with_this_one(tmp_path, monkeypatch):
    written(tmp_path, "p/a/1/m", "p/a/1/folder/m")
    with Storage(tmp_path) as store, Storage(tmp_path) as other:
        app, place = app_of(store), ("p", "a", "1", "folder")

        def listed():
            return {model["description"] for model in app.get("/models/list").json["models"]}

        assert listed() == {None}
        app_of(other).put(
            "/models/p/a/1?description=new", tar_with({"m": b"new", "folder/m": b"new"}), status=200)
        index, is_still, seen = store.index, store.index._is_still, []

        def meanwhile(*given):      # once the first list has read something and is about to compare the version
            if index._lock.acquire(blocking=False) and not seen:
                seen.append(None)
                seen.append(listed())
            return is_still(*given)

        index._directories[place].checked = 0.0     # as if it were looked at sooner than the version around it
        monkeypatch.setattr(index, "_is_still", meanwhile)
        assert listed() == {"new"}
        assert seen[1] in ({None}, {"new"})


@pytest.mark.parametrize("name", ["m", "folder/m"])
def test_a_model_that_is_replaced_without_an_exchange_is_listed_all_the_time(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Directory, "exchange", lambda *_: False)
    written(tmp_path, f"p/a/1/{name}", f"p/a/1/{name}n")
    with Storage(tmp_path) as store, Storage(tmp_path) as other:
        index, sync, subdirectories = other.index, Directory.sync, other._tree.subdirectories
        home, aside, lists = tmp_path / "p/a/1" / name, tmp_path / ".staging/replaced/p/a/1" / name, []

        def listed():
            index.forget(("p",), below=True)
            lists.append([key for place, lines in other.lines(()) for key in lines])

        def sync_meanwhile(directory):
            listed()
            sync(directory)

        def read_while_it_is_aside(*names):
            if names != home.parent.relative_to(tmp_path).parts:
                return subdirectories(*names)
            monkeypatch.setattr(other._tree, "subdirectories", subdirectories)      # once
            aside.parent.mkdir(parents=True)
            home.rename(aside)
            found = subdirectories(*names)
            aside.rename(home)
            shutil.rmtree(tmp_path / ".staging/replaced")
            return found

        monkeypatch.setattr(Directory, "sync", sync_meanwhile)
        app_of(store).put(f"/models/p/a/1/{name}", b"new", status=200)
        assert len(lists) == 2      # once while it was set aside
        monkeypatch.setattr(other._tree, "subdirectories", read_while_it_is_aside)
        listed()
        assert {tuple(each) for each in lists} == {("m", "mn")}


def test_a_total_is_not_kept_if_another_thread_has_looked_later(tmp_path, monkeypatch):
    written(tmp_path, "p/a/1/m1")
    with Storage(tmp_path) as store:
        look, looks = store.index._look, []

        def meanwhile(names, *given):
            found = look(names, *given)
            if len(names) == VERSION_DEPTH and not looks:
                looks.append(names)
                written(tmp_path, "p/a/1/m2")       # by hand
                assert [name for _, lines in store.lines(names) for name in lines] == ["m1", "m2"]
            return found

        monkeypatch.setattr(store.index, "_look", meanwhile)
        assert store.index.total(("p",), at_most=inf).models == 1   # of the look that has just begun
        assert store.index.total(("p",), at_most=inf).models == 2


def disk(changed, sign, **others):
    """What an index asks, from functions for single directories and models."""
    def models_in(place):
        return nullcontext(SimpleNamespace(sign=lambda name: sign((*place, name)), read=lambda name: None))

    return SimpleNamespace(changed=changed, is_unchanged=lambda names, state: changed(names) == state, sign=sign,
                           models_in=models_in, **others)


def test_a_change_while_a_list_reads_shows_in_the_next_one(tmp_path):
    (tmp_path / "p/a/1/m").mkdir(parents=True)
    said = ["old"]

    def children(*names):
        return sorted(path.name for path in tmp_path.joinpath(*names).iterdir())

    def find(key):
        found = SimpleNamespace(line=said[-1].encode())
        if len(said) == 1:      # after it was read, another request changes it, and a third one lists it
            said.append("new")
            index.forget(key.names)
            assert listed() == [b"new"]
        return found

    def listed():
        return [line for _, lines in index.lines(()) for line in lines.values()]

    def changed(names):
        return State(tmp_path.joinpath(*names).stat().st_mtime_ns)

    def sign(_):
        return Signature(hash(said[-1]), Stamp(1, 1, 1))

    def unchanged(place, states):
        return [name for name, state in states.items() if sign((*place, name)).state == state]

    index = Index(disk(subdirectories=children, changed=changed, unchanged=unchanged, sign=sign), find)
    assert listed() == [b"old"]
    assert listed() == [b"new"]


BATCHES_OF = {      # how many times some of 2,000 models are compared with the disk for a list, and what is in it
    "limit=100": (2, slice(0, 100)), "limit=100&after=p/a/1/m0050": (2, slice(51, 151)),
    "limit=250": (3, slice(0, 250)), "limit=250&after=p/a/1/m1950": (1, slice(1951, 2000)),
    "limit=1000": (11, slice(0, 1000)), "": (20, slice(0, 2000)),
}


def test_a_page_of_a_large_version_compares_no_more_models_than_it_needs(tmp_path, monkeypatch):
    for number in range(20 * BATCH_MODELS):
        (tmp_path / f"p/a/1/m{number:04}").mkdir(parents=True)
        (tmp_path / f"p/a/1/m{number:04}/model").write_text("m")
    monkeypatch.setattr("repository.tree_index.FRESH_LINES", -1.0)      # as if it were long ago each time
    with Storage(tmp_path) as store:
        app, unchanged, asked = app_of(store), store.index._disk.unchanged, []
        everything = app.get("/models/list").json["models"]
        monkeypatch.setattr(store.index._disk, "unchanged", lambda *some: asked.append(some) or unchanged(*some))
        for query, (compared, part) in BATCHES_OF.items():
            asked.clear()
            assert app.get(f"/models/list?{query}").json["models"] == everything[part]
            assert len(asked) == compared, query


def test_no_list_waits_for_the_look_of_another_one():
    reached, stalled = threading.Event(), threading.Event()

    def changed(names):
        if names == ("p", "slow"):
            reached.set()
            assert stalled.wait(30)
        return State(1)

    def children(*names):
        return [["p", "q"], ["quick", "slow"], ["1"], ["m"]][len(names)]

    def sign(names):
        return Signature(1, Stamp(1, 1, 1))

    tree = disk(subdirectories=children, changed=changed, unchanged=lambda place, states: list(states), sign=sign)
    index = Index(tree, lambda key: SimpleNamespace(line=str(key).encode()))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(list, index.lines(("p",)))
        assert reached.wait(30)
        assert [lines for _, lines in index.lines(("p", "quick"))] == [{"m": b"p/quick/1/m"}]
        assert [lines for _, lines in index.lines(("q",))] == [{"m": b"q/quick/1/m"}, {"m": b"q/slow/1/m"}]
        index.forget(("p", "quick", "1", "m"))
        stalled.set()
        assert [lines for _, lines in slow.result(30)] == [{"m": b"p/quick/1/m"}, {"m": b"p/slow/1/m"}]


def test_what_the_index_has_no_room_for_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("repository.indexed.KEPT_BYTES", 100_000)
    sizes = {f"m{number:03}": 10 + number % 7 * 6000 for number in range(2 * BATCH_MODELS)}    # some too long to keep
    for place in ("p/a/1", "p/a/2", "q/a/1"):
        for name, size in sizes.items():
            (tmp_path / place / name).mkdir(parents=True)
            (tmp_path / place / name / "model").write_text(name)
            (tmp_path / place / name / "metadata.json").write_text(json.dumps({"description": "x" * size}))
    (tmp_path / "r/a/1/m000").mkdir(parents=True)
    (tmp_path / "r/a/1/m000/model").write_text("m000")
    with Storage(tmp_path) as store:
        app = app_of(store)

        def kept():
            directories = store.index._directories.values()
            assert all(directory.lines.keys() == directory.states.keys() for directory in directories)
            assert sum(map(size_of, (directory.lines for directory in directories))) == store.index._directories.held
            return store.index._directories.held

        whole = app.get("/models/list").json
        assert len(whole["models"]) == 3 * len(sizes) + 1
        for _ in range(2):
            assert 50_000 < kept() <= 100_000
            assert app.get("/models/list").json == whole
        monkeypatch.setattr("repository.indexed.WATCHED", 0.0)      # now it is long ago that a list needed them
        store.index._directories.make_room(store.index._lock)
        assert kept() == 0
        assert app.get("/models/list").json == whole
        for place in ("p/a/1", "p/a/2"):
            app.delete(f"/models/{place}?recursive=true", status=200)
        app.get("/models/list", status=200)
        app.delete("/models/q?recursive=true", status=200)
        assert [names_of(entry) for entry in app.get("/models/list").json["models"]] == [("r", "a", "1", "m000")]
        assert 0 < kept() < 1000


def test_a_model_whose_file_alone_was_deleted_by_hand_is_not_counted_once_a_list_has_missed_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_index, "FRESH", 0.01)
    monkeypatch.setattr(looking, "RACY", 0.0)
    monkeypatch.setattr(indexed, "KEPT_LARGEST", 0)     # all is read for each list
    written(tmp_path, "p/a/1/m1", "p/a/1/m2")
    with Storage(tmp_path) as store:
        app = app_of(store)
        assert app.get("/models/p?limit=1").json["total_models"] == 2
        (tmp_path / "p/a/1/m2/model").unlink()
        assert app.get("/models/p").json["total_models"] == 1
        eventually(lambda: app.get("/models/p?limit=1").json["total_models"] == 1)
        written(tmp_path, "p/a/1/m2/in")
        eventually(lambda: app.get("/models/p?format=txt").text.split() == ["p/a/1/m1", "p/a/1/m2/in"])


@pytest.mark.parametrize(("module", "limit"), [
    (indexed, "BATCH_BYTES"), (indexed, "KEPT_LARGEST"), (indexed, "BATCH_MODELS")], ids=["kept", "not kept", "large"])
def test_a_folder_that_was_a_model_is_shown_by_the_list_that_misses_the_model(tmp_path, monkeypatch, module, limit):
    monkeypatch.setattr(module, limit, 0)
    monkeypatch.setattr(tree_index, "FRESH_LINES", -1.0)        # as if it were long ago
    monkeypatch.setattr(looking, "RACY", 0.0)
    written(tmp_path, "p/a/1/m", "p/a/1/m2")
    with Storage(tmp_path) as store:
        app = app_of(store)
        assert app.get("/models/list?format=txt").text.split() == ["p/a/1/m", "p/a/1/m2"]
        (tmp_path / "p/a/1/m/model").unlink()       # by hand
        written(tmp_path, "p/a/1/m/in")
        assert app.get("/models/list?format=txt").text.split() == ["p/a/1/m/in", "p/a/1/m2"]


def test_what_is_uploaded_into_a_folder_that_was_a_model_is_shown_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "RACY", 0.0)
    written(tmp_path, "p/a/1/m")
    with Storage(tmp_path) as store:
        app = app_of(store)
        assert app.get("/models/list?format=txt").text.split() == ["p/a/1/m"]
        (tmp_path / "p/a/1/m/model").unlink()       # by hand
        app.put("/models/p/a/1/m/in", b"new", status=201)
        assert app.get("/models/list?format=txt").text.split() == ["p/a/1/m/in"]


def test_a_model_at_the_greatest_depth_may_come_later_than_its_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_index, "FRESH", 0.01)
    monkeypatch.setattr(looking, "RACY", 0.0)
    deep = "p/a/1/" + "/".join("abcdefgh"[:MAX_PARTS])
    (tmp_path / deep).mkdir(parents=True)
    with Storage(tmp_path) as store:
        app = app_of(store)
        assert app.get("/models/list").json["total_models"] == 0
        (tmp_path / deep / "model").write_text("by hand")
        eventually(lambda: app.get("/models/list?format=txt").text.split() == [deep])


def test_a_path_that_is_too_long_for_a_model_hides_no_others(tmp_path):
    for place in ("p/a/1/m", "p/a/1/" + "/".join(["x" * 100] * 6)):
        written(tmp_path, place)
    with Storage(tmp_path) as store:
        app = app_of(store)
        for query in ("", "?limit=1"):
            page = app.get(f"/models/list{query}", status=200).json
            assert (page["total_models"], [model["model_name"] for model in page["models"]]) == (1, ["m"])
        assert list(map(str, store.keys("p"))) == ["p/a/1/m"]


def test_a_page_too_large_to_be_held_is_read_again_while_it_is_sent(tmp_path):
    names = [f"m{number:03}" for number in range(BATCH_MODELS + 1)]
    for name in names:
        (tmp_path / "p/a/1" / name).mkdir(parents=True)
        (tmp_path / "p/a/1" / name / "model").write_text(name)
        (tmp_path / "p/a/1" / name / "metadata.json").write_text(json.dumps({"description": "x" * PAGE_BYTES}))
    with Storage(tmp_path) as store:
        app = app_of(store)
        page = app.get("/models/p?limit=5&after=p/a/1/m001").json
        assert [entry["model_name"] for entry in page["models"]] == names[2:7]
        assert (page["total_models"], page["next"]) == (len(names), "p/a/1/m006")
        assert page["models"] == [app.get(f"/models/p/a/1/{name}/info").json for name in names[2:7]]


def test_a_link_keeps_the_filter_and_the_format(shelf):
    page = shelf.get("/models/list?limit=1&framework=pytorch&format=txt")
    assert page.text == "p1/a/1.0.0/m\n"
    after = shelf.get(re.search("<http://[^/]+(/[^>]*)>", page.headers["Link"])[1])
    assert after.text == "p1/b/10/x\n"
    assert "Link" not in after.headers


@pytest.mark.parametrize(("after", "expected"), [
    ("p1/b/10/x", MODELS[9:]), ("p1/a/1.0.0/m-1", MODELS[2:]), ("zzz/a/1/m", []), ("A/a/1/m", MODELS),
], ids=["a model", "none any more", "behind all", "before all"])
def test_a_cursor_need_not_exist(shelf, after, expected):
    assert [names_of(entry) for entry in shelf.get("/models/list", {"after": after}).json["models"]] == expected


@pytest.mark.parametrize("query", [
    *(f"limit={limit}" for limit in ("0", "-1", "1001", "x", "1.5", "%C2%B2", "9" * 5000, "+1", "1_0")),
    *(f"after={after}" for after in ("x", "p/a/1", "p/a/1/m/.x", "../a/1/m", "p/a/1/m%0A", "p//1/m", "%FF/a/1/m",
    "/p/a/1/m")),
    "format=xml", "format=", "limit=1&limit=2",
])
def test_a_bad_parameter_is_400(shelf, query):
    assert shelf.get(f"/models/list?{query}", status=400).json["detail"]


# ---- filters


@pytest.mark.parametrize(("query", "expected"), [
    ("framework=pytorch", [1, 8]), ("framework=onnx", [2]), ("framework=none", []), ("q=resnet", [1]),
    ("q=MODÈLE", [1]),
    ("q=1.0.0", [0, 1, 2, 3, 4, 5]), ("q=p2", [11, 12]), ("q=m-2", [2]), ("q=nothing", []), ("q=", range(len(MODELS))),
    ("metadata.stage=prod", [1, 8]), ("metadata.stage=prod&metadata.owner=ann", [8]), ("metadata.stage=", []),
    ("framework=pytorch&q=resnet&metadata.stage=prod", [1]), ("framework=onnx&metadata.stage=prod", []),
])
def test_filters_choose_and_combine(shelf, query, expected):
    got = shelf.get(f"/models/list?{quote(query, safe='=&.')}").json
    assert [names_of(entry) for entry in got["models"]] == [MODELS[i] for i in expected]
    assert got["total_models"] == len(expected)


ODD = [     # documents in which filters may find what they look for in a wrong place, or not in the right one
    {"framework": "pytorch", "description": '"framework": "onnx"', "metadata": {"framework": "onnx", "format": "gguf"}},
    {"framework": "onnx", "metadata": {"corrupt": "true", "none": None}, "description": "LONG Straße \u017f\u212a"},
    {"framework": None, "metadata": {"é": "ü", "n": 1.5, "yes": True, "list": [1, "ü"],
                                       "of": {"stage": "x", "at": 1}}},
    {"framework": "", "metadata": {"stage": '"quoted" \\'}, "description": "Long and\nbroken, in ASCII"},
    {"framework": 'é "\\ 😀', "metadata": {'odd" \\ key': "x"}},
]


@pytest.mark.parametrize(("parameters", "expected"), [
    ({"framework": "onnx"}, [1]), ({"framework": ""}, [2, 3]), ({"framework": ODD[4]["framework"]}, [4]),
    ({"framework": "é"}, []), ({"model_format": "gguf"}, []), ({"model_format": ""}, range(5)),
    ({"corrupt": "true"}, []), ({"corrupt": "false"}, range(5)), ({"metadata.framework": "onnx"}, [0]),
    ({"metadata.corrupt": "true"}, [1]), ({"metadata.none": ""}, []), ({"metadata.none": "null"}, []),
    ({"metadata.é": "ü"}, [2]), ({"metadata.n": "1.5"}, [2]), ({"metadata.yes": "true"}, [2]),
    ({"metadata.list": '[1, "ü"]'}, [2]), ({"metadata.list": r'[1,"\u00fc"]'}, [2]),
    ({"metadata.list": '["ü", 1]'}, []), ({"metadata.of": '{"at":1,"stage":"x"}'}, [2]), ({"metadata.n": "1.50"}, [2]),
    ({"metadata.yes": "1"}, []), ({"metadata.n": "1" * 5000}, []), ({"metadata.list": "[" * 99_999}, []),
    ({"metadata.list": "[1,"}, []),
    ({"metadata.stage": "x"}, []), ({"metadata.stage": '"quoted" \\'}, [3]),
    ({'metadata.odd" \\ key': "x"}, [4]), ({"metadata.framework": "onnx", "framework": "pytorch"}, [0]),
    ({"q": "long"}, [1, 3]), ({"q": "LONG", "framework": "onnx"}, [1]), ({"q": "STRASSE sk"}, [1]),
    ({"q": "\u017f\u212a"}, [1]),
    ({"q": "AND\nBroken"}, [3]), ({"q": "a\n1\nm4"}, [4]), ({"q": '"FRAMEWORK": "onnx"'}, [0]), ({"q": "\\"}, []),
    ({"q": "quoted"}, []), ({"q": "M4"}, [4]), ({"q": '", "'}, []), ({"q": "u00df"}, []),
], ids=str)
def test_a_filter_finds_a_value_in_its_own_field_and_nowhere_else(tmp_path, parameters, expected):
    for number, document in enumerate(ODD):
        (tmp_path / f"p/a/1/m{number}").mkdir(parents=True)
        (tmp_path / f"p/a/1/m{number}/model").write_text("m")
        (tmp_path / f"p/a/1/m{number}/metadata.json").write_text(json.dumps(document))
    with Storage(tmp_path) as store:
        app = app_of(store)
        paths = [f"p/a/1/m{number}/model" for number in expected]
        assert [model["path"] for model in app.get("/models/list", parameters).json["models"]] == paths
        after = {}
        for path in paths:
            page = app.get("/models/list", {**parameters, "limit": "1", **after}).json
            assert ([model["path"] for model in page["models"]], page["total_models"]) == ([path], len(paths))
            after = {"after": page["next"]} if "next" in page else {}
        assert not after


# ---- formats


@pytest.mark.parametrize("level", LEVELS, ids="/".join)
def test_the_formats_tell_of_the_same_models(shelf, level):
    path, expected = "/models/" + "/".join(level), below(level)
    entries = shelf.get(path + "?format=json").json["models"]
    assert entries == [json.loads(line) for line in shelf.get(path + "?format=ndjson").text.splitlines()]
    assert shelf.get(path + "?format=txt").text == "".join("/".join(m) + "\n" for m in expected)
    assert shelf.get(path + "?format=urls").text == "".join(entry["url"] + "\n" for entry in entries)
    sums = [line.split("  ") for line in shelf.get(path + "?format=sha256sums").text.splitlines()]
    depth = 0 if level == ("list",) else len(level)
    assert sums == [[sha256("/".join(m).encode()), "/".join(m[depth:])] for m in expected]


@pytest.mark.parametrize("form", ["json", "ndjson", "txt", "urls", "sha256sums"])
def test_head_of_a_list_has_the_headers_of_its_get(shelf, form):
    def headers(got):
        own = ("content-length", "transfer-encoding", "x-request-id", "date")
        return {name.lower(): value for name, value in got.headers.items() if name.lower() not in own}

    path = f"/models/p1?format={form}"
    assert shelf.head(path).body == b""
    assert headers(shelf.head(path)) == headers(shelf.get(path))
    assert shelf.get(path).headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("query", [
    "", "?limit=2", "?format=ndjson", "?format=txt", "?format=urls", "?format=sha256sums"])
def test_a_connection_goes_on_after_a_short_list(live_server, http, project, query):
    for name in "abc":
        http.put(f"{live_server.url}/models/{project}/a/1/{name}", data=b"x")
    got = http.get(f"{live_server.url}/models/{project}{query}")
    assert (got.headers["Content-Length"], got.headers.get("Connection")) == (str(len(got.content)), None)


def test_wget_and_sha256sum_take_a_version_home(live_server, http, project, tmp_path):
    base = f"{live_server.url}/models/{project}"
    files = {f"model-{i}+x.bin": f"bytes {i}".encode() * 1000 for i in range(3)}
    for name, data in files.items():
        assert http.put(f"{base}/app/1.0.0/{name}", data=data).status_code == 201

    def shell(line):
        return subprocess.run(["sh", "-ec", line], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, timeout=30,
                              capture_output=True, text=True)

    one = shell(f"wget -qO- '{base}/app/1.0.0?format=urls' | wget -q -i - && "
                f"wget -qO- '{base}/app/1.0.0?format=sha256sums' | sha256sum -c --strict")
    assert (one.returncode, one.stdout.count(": OK")) == (0, 3), one
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    tree = shell(f"mkdir tree && cd tree && wget -qO- '{base}?format=urls' | wget -q -x -nH --cut-dirs=2 -i - && "
                 f"wget -qO- '{base}?format=sha256sums' | sha256sum -c --strict")
    assert (tree.returncode, tree.stdout.count(": OK")) == (0, 3), tree
    broken = shell(f"echo x >> 'model-0+x.bin'; wget -qO- '{base}/app/1.0.0?format=sha256sums' | sha256sum -c --strict")
    assert broken.returncode == 1


# ---- what holds for every answer


MODEL = "/models/p1/a/1.0.0/m"
LIST, FILE, TREE = "GET, HEAD, OPTIONS", "DELETE, GET, HEAD, OPTIONS, PUT", "DELETE, GET, HEAD, OPTIONS"


@pytest.mark.parametrize(("path", "allow", "others"), [
    ("/health", LIST, ("POST", "PUT", "DELETE", "PATCH", "BREW")),
    ("/models/upload", "OPTIONS, POST", ("GET", "HEAD", "PUT", "DELETE")),
    ("/models/list", LIST, ("DELETE", "POST", "PUT")),
    ("/models/p1", TREE, ("PUT", "POST", "PATCH")), ("/models/p1/a", TREE, ("PUT",)),
    ("/models/p1/a/1.0.0", FILE, ("POST", "PATCH")),
    (MODEL, FILE, ("POST", "PATCH", "BREW")),
    (MODEL + "/info", "GET, HEAD, OPTIONS, PATCH", ("PUT", "DELETE", "POST")),
    # with a slash at the end, where they are for reading alone
    ("/models/list/", LIST, ("DELETE", "PUT")), (MODEL + "/", LIST, ("PUT", "DELETE")), ("/verify/", LIST, ("POST",)),
])
def test_options_and_405_say_what_is_allowed(shelf, path, allow, others):
    asked = shelf.options(path, status=204)
    assert (", ".join(sorted(asked.headers["Allow"].split(", "))), asked.body) == (allow, b"")
    for method in others:
        refused = shelf.request(path, method=method, status=405)
        assert (", ".join(sorted(refused.headers["Allow"].split(", ")))) == allow
        assert method == "HEAD" or refused.json["detail"]


@pytest.mark.parametrize("path", ["/", "/models", "/models/", "/nothing", "/health/x", "/healthy", "/models/p/a/1/m/x",
                                  "/models/p/a/1/m/info/x", "/models//a/1/m", "/models/p1//", "/models/p1/a/1.0.0/m//",
                                  "/Models/list", "/models/p1/a/1.0.0/none", "/models/p1/a/1.0.0/none/info"])
def test_anything_else_is_404(shelf, path):
    got = shelf.get(path, status=404)
    assert (got.json["detail"] != "", got.headers["Content-Type"]) == (True, "application/json")
    assert shelf.head(path, status=404).body == b""


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/health", 200), ("HEAD", "/health", 200), ("GET", "/models/list", 200),
    ("GET", "/models/list?format=txt", 200),
    ("HEAD", "/models/list", 200), ("PUT", "/models/{}/a/1/m", 201), ("GET", "/models/{}/a/1/m", 200),
    ("HEAD", "/models/{}/a/1/m", 200), ("GET", "/models/{}/a/1/m.sha256", 200), ("GET", "/models/{}/a/1/m/info", 200),
    ("PATCH", "/models/{}/a/1/m/info", 400), ("GET", "/models/{}/a/1/none", 404), ("GET", "/nothing", 404),
    ("GET", "/models/-bad", 400), ("DELETE", "/health", 405), ("OPTIONS", "/models/list", 204),
    ("POST", "/models/upload", 400),
    ("DELETE", "/models/{}/a", 409), ("DELETE", "/models/{}/a/1/m", 200),
])
def test_every_answer_has_the_request_id_of_its_log_line(live_server, http, method, path, status):
    path = path.format(f"every_answer_{method}_{status}")
    if path.startswith("/models/every_answer") and method != "PUT":
        http.put(f"{live_server.url}/models/{path.split('/')[2]}/a/1/m", data=b"x")
    got = http.request(method, live_server.url + path, data=b"x" if method in ("PUT", "POST", "PATCH") else None)
    assert got.status_code == status
    fields = live_server.line_of(got.headers["X-Request-Id"]).split()
    assert fields[3:6] == [method, path.partition("?")[0], str(status)]


@pytest.mark.parametrize("request_line", ["GARBAGE", "GET /x HTTP/9.9", "GET /models/a\tb HTTP/1.1",
                                          "PUT /models/p/a/1/m HTTP/1.1\r\nContent-Length: x"])
def test_even_a_broken_request_has_an_id_and_a_line(live_server, request_line):
    with live_server.connect() as wire:
        wire.send(request_line, "\r\nHost: x\r\n\r\n")
        status, headers, body = wire.response()
    assert 400 <= status <= 505
    assert json.loads(body)["detail"]
    assert f" {status} " in live_server.line_of(headers["x-request-id"])


@pytest.mark.parametrize(("given", "echoed"), [
    ("abc-123_X.y", True), ("x" * 64, True), ("x" * 5000, False), ("a b", False), ('a"b', False), ("é", False),
    ("", False),
    ("a;b", False), ("%0a", False),
])
def test_a_sane_request_id_is_kept_any_other_replaced(live_server, given, echoed):
    got = requests.get(f"{live_server.url}/health", headers={"X-Request-Id": given.encode("latin-1")}, timeout=10)
    assert (got.headers["X-Request-Id"] == given) == echoed
    assert re.fullmatch("[A-Za-z0-9._-]+", got.headers["X-Request-Id"])
    assert live_server.line_of(got.headers["X-Request-Id"])
