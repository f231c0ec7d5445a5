"""Versions as a tar: the layout, ranges, conditions, real clients, changes on the way."""

import io
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from support.common import app_of, eventually, sha256
from support.tars import tar_with

from folders import version_tags
from folders.layout import Layout, Member, Part
from storage import Storage

ROOT = "/models/p/a/1.0.0"
FILES = {"config.json": b"{}", "empty": b"", "onnx/model.onnx": b"onnx" * 300, "onnx/sub/a": b"a" * 512,
         "weights": b"w" * 1000}


def upload(app, files, root=ROOT):
    for name, data in files.items():
        assert app.put(f"{root}/{name}", data).status_int in (200, 201)


@pytest.fixture
def folder(app):
    upload(app, FILES)
    return app


def members(body):
    """{name: bytes} of a tar, of which every member must be as they all are."""
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        assert all((m.isreg(), m.mode, m.uid, m.gid, m.uname, m.gname) == (True, 0o644, 0, 0, "", "") for m in tar)
        return {member.name: tar.extractfile(member).read() for member in tar}


# ---- the layout


NAMED = [Member("a", 0, 0), Member("b/c", 1, 1), Member("d" * 100, 512, 10**9), Member("e/" * 60 + "f", 513, 5),
         Member("/".join(["x" * 128] * 3), 1024, 2**31)]


def read(layout, contents, start, stop):
    return b"".join(contents[piece.number][piece.start:piece.stop] if isinstance(piece, Part) else piece
                    for piece in layout.pieces(start, stop))


def test_each_range_is_the_bytes_that_the_whole_has_there():
    contents = [os.urandom(member.size) for member in NAMED]
    layout = Layout(NAMED)
    expected = read(layout, contents, 0, layout.size)
    assert len(expected) == layout.size
    assert list(members(expected).values()) == contents
    for start in range(0, layout.size, 37):
        assert read(layout, contents, start, start + 1) == expected[start:start + 1]
        for stop in {start, start + 511, start + 1536, layout.size}:
            stop = min(stop, layout.size)
            assert read(layout, contents, start, stop) == expected[start:stop], (start, stop)


def test_what_no_plain_header_can_say_gets_one_that_can():
    huge = [Member("shard", (8 << 30) - 1, 0), Member("shard-2", 40 << 30, 0), Member("last", 1, 0)]
    layout = Layout(huge)
    pieces = list(layout.pieces(0, layout.size))
    assert layout.size == sum(piece.stop - piece.start if isinstance(piece, Part) else len(piece) for piece in pieces)
    headers = [pieces[0], pieces[3], pieces[6]]
    for member, header in zip(huge, headers, strict=True):
        with tarfile.open(fileobj=io.BytesIO(header)) as tar:
            assert tar.next().size == member.size
    assert list(map(len, headers)) == [512, 1536, 512]


# ---- what is in it


def test_a_version_is_one_tar_of_its_files(folder):
    got = folder.get(f"{ROOT}?format=tar")
    assert members(got.body) == FILES and list(members(got.body)) == list(FILES)
    assert (got.headers["Content-Type"], got.headers["Content-Length"], got.headers["Accept-Ranges"]) == (
        "application/x-tar", str(len(got.body)), "bytes")
    assert got.headers["Content-Disposition"] == 'attachment; filename="1.0.0.tar"' and got.headers["ETag"][0] == '"'
    assert "Last-Modified" not in got.headers
    assert folder.get(f"{ROOT}?format=tar").body == got.body
    head = folder.head(f"{ROOT}?format=tar")
    assert [head.headers[name] for name in ("Content-Length", "ETag")] == [str(len(got.body)), got.headers["ETag"]]
    moment = folder.get(f"{ROOT}/weights/info").json["uploaded_at"]
    with tarfile.open(fileobj=io.BytesIO(got.body)) as tar:
        assert time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(tar.getmember("weights").mtime)) == moment[:19]


def test_every_level_is_a_tar_relative_to_itself(folder):
    folder.put("/models/p/b/1/m", b"m", status=201)
    folder.put("/models/q/a/1/m", b"q", status=201)
    for path, prefix, more in (("p/a/1.0.0/onnx", "onnx/", {}), ("p/a", "", {}), ("p", "", {"b/1/m": b"m"})):
        got = members(folder.get(f"/models/{path}?format=tar").body)
        depth = {"p/a": "1.0.0/", "p": "a/1.0.0/"}.get(path, "")
        expected = {depth + name.removeprefix(prefix): data for name, data in FILES.items() if name.startswith(prefix)}
        assert got == {**expected, **more}
    assert list(members(folder.get("/models/list?format=tar&q=m").body)) == [
        "p/a/1.0.0/empty", "p/a/1.0.0/onnx/model.onnx", "p/b/1/m", "q/a/1/m"]
    latest = folder.get("/models/p/a/latest?format=tar")
    assert members(latest.body) == FILES and latest.headers["X-Model-Version"] == "1.0.0"
    assert folder.get(f"{ROOT}/weights?format=tar").body == FILES["weights"], "a model is a model"


@pytest.mark.parametrize(("path", "status"), [
    ("/models/none?format=tar", 404), ("/models/p/a/9?format=tar", 404), ("/models/p?format=tar&q=none", 404),
    (f"{ROOT}/none?format=tar", 404), (f"{ROOT}?format=tar&limit=1", 400), (f"{ROOT}?format=tar.gz", 400),
    (f"{ROOT}?format=tar&after=p/a/1/m", 400), ("/models/p/a/latest/none?format=tar", 404),
])
def test_what_cannot_be_a_tar_says_why(folder, path, status):
    assert folder.get(path, status=status).json["detail"]


def test_ranges_and_conditions_are_those_of_a_file(folder):
    url = f"{ROOT}?format=tar"
    whole = folder.get(url)
    body, etag = whole.body, whole.headers["ETag"]
    for start, stop in ((0, 1), (100, 700), (511, 514), (1030, 3000), (len(body) - 3, len(body))):
        got = folder.get(url, headers={"Range": f"bytes={start}-{stop - 1}"}, status=206)
        assert (got.body, got.headers["Content-Range"]) == (body[start:stop], f"bytes {start}-{stop - 1}/{len(body)}")
    beyond = folder.get(url, headers={"Range": f"bytes={len(body)}-"}, status=416)
    assert beyond.headers["Content-Range"] == f"bytes */{len(body)}"    # by which wget -c knows that it has all
    folder.get(url, headers={"If-None-Match": etag}, status=304)
    folder.get(url, headers={"If-Match": '"other"'}, status=412)
    assert folder.get(url, headers={"If-Range": etag, "Range": "bytes=5-"}, status=206).body == body[5:]
    assert folder.get(url, headers={"If-Range": '"other"', "Range": "bytes=5-"}, status=200).body == body


def test_an_unknown_format_is_answered_with_those_there_are(app):
    app.put(f"{ROOT}/m", b"model")
    detail = app.get(f"{ROOT}?format=zip", status=400).json["detail"]
    assert detail == "format 'zip' is not known: use json, ndjson, txt, urls, sha256sums, tar"


@pytest.mark.parametrize("change", ["replace", "add", "delete", "by hand"])
def test_the_etag_changes_when_a_file_does_and_only_then(folder, store, change):
    url = f"{ROOT}?format=tar"
    etag = folder.get(url).headers["ETag"]
    folder.patch_json(f"{ROOT}/weights/info", {"description": "says nothing of the bytes"})
    assert folder.get(url).headers["ETag"] == etag
    if change == "replace":
        folder.put(f"{ROOT}/weights", b"v" * 1000)
    elif change == "add":
        folder.put(f"{ROOT}/weights-2", b"")
    elif change == "delete":
        folder.delete(f"{ROOT}/empty")
    else:
        (store.root / "p/a/1.0.0/by/hand").mkdir(parents=True)
        (store.root / "p/a/1.0.0/by/hand/model").write_bytes(b"by hand")
    eventually(lambda: folder.head(url).headers["ETag"] != etag)
    if change == "by hand":
        assert folder.get(url).headers["ETag"].startswith("W/"), "of what nobody knows the digest"
        assert members(folder.get(url).body)["by/hand"] == b"by hand"


def test_a_corrupt_model_is_in_no_tar_unless_it_is_asked_for(folder, store):
    with (store.root / "p/a/1.0.0/weights/model").open("r+b") as file:
        file.write(b"?")
    folder.post("/verify/p", status=202)
    eventually(lambda: not folder.get("/verify").json["running"])
    assert "p/a/1.0.0/weights" in folder.get(f"{ROOT}?format=tar", status=409).json["detail"]
    assert members(folder.get(f"{ROOT}?format=tar&allow_corrupt=true").body)["weights"] == b"?" + b"w" * 999
    assert list(members(folder.get(f"{ROOT}/onnx?format=tar").body)) == ["model.onnx", "sub/a"]


def test_a_token_gets_what_it_may_read(store, make_app, tokens):
    line = "t:" + sha256(b"secret") + ":read,create:p/a\nu:" + sha256(b"all") + ":read,create,update,delete:*\n"
    app = make_app(tokens_file=tokens(line))
    auth = {name: {"Authorization": f"Bearer {name}"} for name in ("secret", "all")}
    for path in ("p/a/1/m", "p/b/1/m"):
        app.put(f"/models/{path}", b"x", headers=auth["all"], status=201)
    assert list(members(app.get("/models/p?format=tar", headers=auth["secret"]).body)) == ["a/1/m"]
    assert list(members(app.get("/models/p?format=tar", headers=auth["all"]).body)) == ["a/1/m", "b/1/m"]
    app.get("/models/p/b?format=tar", headers=auth["secret"], status=404)
    app.get("/models/p/b/1?format=tar", headers=auth["secret"], status=404)
    app.get("/models/p?format=tar", status=401)


# ---- on the wire


BIG = {"config.json": b"{}", "shards/1": os.urandom(3 << 20), "shards/2": os.urandom(2 << 20),
       "small": b"s" * 70_000, "vocab": b"v"}


@pytest.fixture
def shards(live_server, http, project):
    url = f"{live_server.url}/models/{project}/a/1"
    for name, data in BIG.items():
        assert http.put(f"{url}/{name}", data=data).status_code == 201
    return url


def unpacked(directory):
    files = [path for path in Path(directory).rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.parametrize("unpack", [
    "tar x", pytest.param("bsdtar x", marks=pytest.mark.needs("bsdtar")),
    pytest.param("busybox tar x", marks=pytest.mark.needs("busybox")),
    "python3 -c 'import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode=\"r|\").extractall()'",
])
def test_programs_unpack_it_from_a_pipe(shards, tmp_path, unpack):
    line = f"set -o pipefail; curl -fsS '{shards}?format=tar' | {unpack}"
    subprocess.run(["bash", "-ec", line], cwd=tmp_path, check=True, timeout=60)
    assert unpacked(tmp_path) == BIG


@pytest.mark.parametrize("resume", ["curl -fsS -C - -o got.tar", "wget -q -c -O got.tar"])
@pytest.mark.parametrize("have", [1, 511, 512, 2000, 3 << 20, (3 << 20) + 1600, (5 << 20) + 10_000])
def test_a_download_that_broke_off_goes_on(shards, tmp_path, http, resume, have):
    url = f"{shards}?format=tar"
    whole = http.get(url).content
    (tmp_path / "got.tar").write_bytes(whole[:have])
    subprocess.run([*resume.split(), url], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "got.tar").read_bytes() == whole


def test_a_model_that_is_replaced_on_the_way_breaks_the_connection(start, http):
    server = start()
    url = f"{server.url}/models/p/a/1"
    for name in ("1", "2", "3"):
        http.put(f"{url}/{name}", data=os.urandom(8 << 20))
    with server.connect() as wire:
        wire.send("GET /models/p/a/1?format=tar HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers = wire.head()
        first = wire.file.read(1 << 20)
        assert http.put(f"{url}/3", data=b"another").status_code == 200
        rest = wire.file.read()
        assert status == 200 and len(first) + len(rest) < int(headers["content-length"])
    server.wait_for_log("was changed while a tar with it was sent")
    assert "Traceback" not in server.log()
    again = http.get(f"{url}?format=tar", headers={"Range": "bytes=1000-", "If-Range": headers["etag"]})
    assert again.status_code == 200 and members(again.content)["3"] == b"another"
    eventually(lambda: server.descriptors() < 40)


def test_a_tar_is_of_what_another_server_has_just_stored(start, http):
    """It would begin with the files that the index knew, and break off at the first one that has changed since."""
    ours, other = start().url, start().url
    for place, files in (("p/a/1", {"m": b"1", "d/x": b"1"}), ("p/a/1", {"m": b"2", "d/y": b"2"}),
                         ("p/a/2", {"d/e/x": b"3"}), ("p/a/2", {"d/e/x": b"4"})):
        stored = http.put(f"{other}/models/{place}", data=tar_with(files))
        got = http.get(f"{ours}/models/{place}?format=tar")
        assert (members(got.content), got.headers["ETag"]) == (files, stored.headers["ETag"])
    http.put(f"{other}/models/p/a/2/d/e/x", data=b"5")
    assert members(http.get(f"{ours}/models/p/a?format=tar").content)["2/d/e/x"] == b"5"


def test_readers_that_leave_leave_nothing_open(start, http):
    server = start()
    for name in range(20):
        http.put(f"{server.url}/models/p/a/1/{name}", data=bytes(1 << 20))
    before = server.descriptors()
    wires = [server.connect() for _ in range(10)]
    for wire in wires:
        wire.send("GET /models/p/a/1?format=tar HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.head()[0] == 200
    assert server.descriptors() <= before + 3 * len(wires), "files are opened when their turn comes"
    assert http.get(f"{server.url}/health").status_code == 200
    for wire in wires:
        wire.close()
    eventually(lambda: server.descriptors() <= before)


# ---- one condition for all files of a version


def test_each_file_tells_the_etag_of_its_version_and_takes_it_as_a_condition(folder, store):
    etag = folder.get(f"{ROOT}?format=tar").headers["ETag"]
    for name in FILES:
        assert folder.get(f"{ROOT}/{name}").headers["X-Version-ETag"] == etag
        assert folder.head(f"{ROOT}/{name}", headers={"If-Match": etag}, status=200).headers["X-Version-ETag"] == etag
        own = folder.get(f"{ROOT}/{name}").headers["ETag"]
        folder.get(f"{ROOT}/{name}", headers={"If-Match": f'"none", {own}'}, status=200)
        folder.get(f"{ROOT}/{name}", headers={"If-Match": f'"none", {etag}'}, status=200)
        folder.get(f"{ROOT}/{name}", headers={"If-None-Match": etag}, status=200)
    assert folder.get("/models/p/a/latest/weights", headers={"If-Match": etag}).headers["X-Version-ETag"] == etag
    folder.patch_json(f"{ROOT}/empty/info", {"description": "changes no bytes"})
    folder.get(f"{ROOT}/weights", headers={"If-Match": etag}, status=200)
    folder.put(f"{ROOT}/config.json", b"{ }")
    for name in FILES:
        folder.get(f"{ROOT}/{name}", headers={"If-Match": etag}, status=412)
        tag = folder.get(f"{ROOT}/{name}").headers["X-Version-ETag"]
        assert tag == folder.head(f"{ROOT}?format=tar").headers["ETag"]


def test_a_change_that_the_index_has_not_noticed_fulfils_no_condition(folder, store, tmp_path):
    """As by another server: the file that is asked for is one of those that the ETag is made of, or there is none."""
    etag = folder.get(f"{ROOT}/weights").headers["X-Version-ETag"]
    with Storage(store.root) as other:
        upload(app_of(other), {"weights": b"other", "onnx/sub/a": b"other"})
    for name in ("weights", "onnx/sub/a"):
        got = folder.get(f"{ROOT}/{name}", headers={"If-Match": etag}, status=412)
        assert "it is" in got.json["detail"]
    assert folder.get(f"{ROOT}/weights").headers["X-Version-ETag"] != etag
    eventually(lambda: folder.get(f"{ROOT}/weights").headers["X-Version-ETag"]
               == folder.get(f"{ROOT}?format=tar").headers["ETag"])


def test_a_file_that_is_replaced_while_it_is_opened_tells_an_etag_that_never_holds(folder, store):
    """None at all would make an empty If-Match of it, which curl leaves out."""
    opened = store.open

    def open_too_early(key):
        found, store.open = opened(key), opened
        folder.put(ROOT, tar_with({"weights": b"new", "more": b"new"}))
        return found

    store.open = open_too_early
    got = folder.get(f"{ROOT}/weights")
    assert got.body == FILES["weights"]
    folder.get(f"{ROOT}/more", headers={"If-Match": got.headers["X-Version-ETag"]}, status=412)
    again = folder.get(f"{ROOT}/more").headers["X-Version-ETag"]
    folder.get(f"{ROOT}/weights", headers={"If-Match": again}, status=200)


def test_a_large_version_tells_its_etag_to_those_who_ask(app, monkeypatch):
    monkeypatch.setattr(version_tags, "LARGE", 2)
    upload(app, FILES)
    etag = app.get(f"{ROOT}?format=tar").headers["ETag"]
    assert "X-Version-ETag" not in app.get(f"{ROOT}/weights").headers
    assert app.get(f"{ROOT}/weights", headers={"If-Match": etag}, status=200).headers["X-Version-ETag"] == etag
    app.get(f"{ROOT}/weights", headers={"If-Match": '"other"'}, status=412)
