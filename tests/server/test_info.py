"""Metadata, its changes, deletes, and health. Odd DELETE paths go to a server that can harm nothing but its sandbox."""

import itertools
import json
import os
import re
from datetime import datetime
from pathlib import Path

import pytest
from support.common import ROOT, eventually, sha256
from support.live import running
from support.needs import need, read_only_but

from repository import metadata
from repository.model import ModelKey
from server.settings import VERSION

BASE = "/models/p/a/1/m"
INFO = BASE + "/info"
IGNORED = {"locks", "replaced", "start.lock"}


@pytest.fixture
def model(app):
    app.put(f"{BASE}?description=d&framework=onnx&stage=dev", b"data", status=201)
    return app


# ---- info


def test_info_tells_all_that_is_known(model, store):
    got = model.get(INFO)
    info = got.json
    assert set(info) == {"project_id", "app_name", "version", "model_name", "filename", "size", "sha256", "description",
                         "format", "details", "framework", "metadata", "uploaded_at", "updated_at", "verified_at",
                         "corrupt", "path", "url"}
    assert (info["verified_at"], info["corrupt"]) == (None, False)
    assert (info["project_id"], info["app_name"], info["version"], info["model_name"]) == ("p", "a", "1", "m")
    assert (info["size"], info["sha256"]) == (4, sha256(b"data"))
    assert (info["description"], info["framework"], info["metadata"]) == ("d", "onnx", {"stage": "dev"})
    assert (store.root / info["path"]).read_bytes() == b"data"
    assert model.get(info["url"]).body == b"data"
    assert datetime.fromisoformat(info["uploaded_at"]).tzinfo
    assert info["uploaded_at"] == info["updated_at"]
    assert got.headers["Cache-Control"] == "no-cache"
    assert model.get(INFO + "/").json == info
    head = model.head(INFO)
    assert (head.body, head.headers["Content-Length"]) == (b"", str(len(got.body)))
    assert head.headers["ETag"] == got.headers["ETag"]


def test_the_entity_tag_of_info_changes_with_it_and_saves_a_transfer(model):
    etag = model.get(INFO).headers["ETag"]
    same = model.get(INFO, headers={"If-None-Match": f'"x", W/{etag}'}, status=304)
    assert (same.body, same.headers["ETag"]) == (b"", etag)
    assert same.headers["Cache-Control"] == "no-cache"      # RFC 9110 15.4.5: as the 200 would have it
    assert model.get(INFO, headers={"If-Match": '"x"'}, status=412).json["detail"]
    changed = model.patch(INFO, b'{"description": "new"}').headers["ETag"]
    assert changed == model.get(INFO, headers={"If-None-Match": etag}, status=200).headers["ETag"] != etag


def test_a_changed_info_is_not_not_modified_because_the_bytes_are_old(model, store):
    long_ago = datetime(2020, 1, 1).timestamp()
    os.utime(store.root / "p/a/1/m/model", (long_ago, long_ago))
    model.patch(INFO, b'{"description": "new"}', status=200)
    model.get(INFO, headers={"If-Modified-Since": "Fri, 01 Jan 2021 00:00:00 GMT"}, status=200)


def test_only_short_metadata_is_kept_in_memory_to_answer_at_once(model, store):
    key = ModelKey("p", "a", "1", "m")
    model.get(INFO)
    assert store.knows(key)
    model.patch(INFO, json.dumps({"metadata": {f"k{number}": "x" * 8000 for number in range(63)}}).encode(), status=200)
    long = model.get(INFO).json
    assert model.get(INFO).json == long and len(long["metadata"]) == 64
    assert not store.knows(key)     # and so a thread reads it, not the one that serves all
    assert store._reader._recent._bytes < 200_000
    model.patch(INFO, b'{"metadata": null}', status=200)
    assert model.get(INFO).json["metadata"] == {}
    for number in range(200):       # of which some 130 have room
        place = store.root / f"p/b/{number}/m"
        place.mkdir(parents=True)
        (place / "model").write_bytes(b"data")
        (place / "metadata.json").write_text(json.dumps({"description": "x" * 16_000}))
        assert model.get(f"/models/p/b/{number}/m/info").json["description"]
    assert store._reader._recent._bytes < metadata.RECENT_BYTES + (1 << 20)
    assert 0 < len(store._reader._recent._kept) < 140


# ---- PATCH


@pytest.mark.parametrize(("before", "patch", "after"), [      # RFC 7396, appendix A
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": "b"}, {"none": None}, {"a": "b"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"a": ["a", "b"]}, {"a": ["c", None]}, {"a": ["c", None]}),
    ({"a": "foo"}, {"a": {"b": {"c": None}}}, {"a": {"b": {}}}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": None}}}, {"a": {"b": {"d": 2}}}),
    ({"a": 1}, {"n": 1.5, "t": True, "é": "ü", "": 0}, {"a": 1, "n": 1.5, "t": True, "é": "ü", "": 0}),
    ({"a": 1}, None, {}),
    ({"a": 1}, {}, {"a": 1}),
])
def test_custom_metadata_is_merged_as_rfc_7396_says(app, before, patch, after):
    app.put(BASE, b"data", status=201)
    assert app.patch(INFO, json.dumps({"metadata": before}).encode(), status=200).json["metadata"] == before
    got = app.patch(INFO, json.dumps({"metadata": patch}).encode(), status=200)
    assert got.json["metadata"] == after
    assert app.get(INFO).json == got.json
    assert app.get(INFO).headers["ETag"] == got.headers["ETag"]


def test_a_patch_changes_what_it_names_and_nothing_else(model):
    before = model.get(INFO).json
    after = model.patch(INFO, b'{"description": null, "framework": "tf"}', status=200).json
    assert after["updated_at"] >= before["updated_at"]
    assert after == {**before, "description": None, "framework": "tf", "updated_at": after["updated_at"]}
    assert model.get(BASE).body == b"data"
    assert model.get("/models/p").json["models"] == [after]


DEPTHS = (100, *range(300, 1001, 60), 1300, 4000, 20_000)     # Python versions differ in where they give up
DEEP = [*(b'{"metadata": {"a": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}}" for depth in DEPTHS),
        *(b'{"metadata": {"a": ' + b"[" * depth + b"]" * depth + b"}}" for depth in DEPTHS)]


@pytest.mark.parametrize("body", [
    *(json.dumps({field: value}).encode() for field, value in (
        ("sha256", "0" * 64), ("size", 1), ("project_id", "p"), ("version", "2"), ("path", "x"), ("url", "x"),
        ("uploaded_at", "now"), ("updated_at", "now"), ("etag", "x"), ("description", 1), ("framework", []),
        ("metadata", "x"),
        ("metadata", [1]))),
    b"[]", b'"x"', b"null", b"1", b"true", b"", b" ", b"{", b'{"description": "x"', b"{'description': 'x'}",
    b"\xff\xfe", b'{"a"',
    b'{"description": "\xff"}', b'{"metadata": {"n": NaN}}', b'{"metadata": {"n": Infinity}}',
    b'{"metadata": {"n": -Infinity}}',
    b'{"metadata": {"n": 1e999}}', b'{"metadata": {"n": -1e999}}', b'{"metadata": {"n": ' + b"9" * 5000 + b"}}",
    b'{"metadata": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", b"[" * 500_000, b'{"a":' * 100_000,
    json.dumps({"metadata": {f"k{i}": 1 for i in range(65)}}).encode(),
    json.dumps({"metadata": {"k": "x" * 8193}}).encode(), json.dumps({"description": "x" * 8193}).encode(),
], ids=lambda body: repr(body[:40]))
def test_a_patch_that_cannot_be_taken_is_400_and_changes_nothing(model, body):
    before = model.get(INFO).json
    assert model.patch(INFO, body, status=400).json["detail"]
    assert model.get(INFO).json == before


@pytest.mark.parametrize("body", [
    b'{"description": "\\ud800"}', b'{"metadata": {"\\udfff": 1}}', b'{"metadata": {"k": ["\\ud800"]}}',
], ids=["description", "key", "value"])
def test_half_a_character_is_taken_or_refused_but_breaks_nothing(model, body):
    status = model.patch(INFO, body, expect_errors=True).status_int
    assert status in (200, 400)
    for path in (INFO, BASE, "/models/list", "/models/list?format=ndjson", "/models/list?q=x"):
        model.get(path, status=200)


def test_nesting_of_any_depth_is_taken_or_refused_but_breaks_nothing(model):
    for body in DEEP:
        status = model.patch(INFO, body, expect_errors=True).status_int
        assert status in (200, 400), f"{status} for {body.count(b'{') + body.count(b'[')} levels"
        assert model.get("/models/list").json["total_models"] == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_patch_may_have_the_length_that_the_reference_says_and_no_more(live_server, http, project, chunked):
    url = f"{live_server.url}/models/{project}/a/1/m"
    http.put(url, data=b"x")
    [most] = re.findall(r"RFC 7396\) of at most ([0-9.]+) MiB", (ROOT / "docs/api.md").read_text(encoding="utf-8"))
    body = b'{"description": "d"}'.ljust(int(float(most) * 2**20))
    for more, description in ((b" ", None), (b"", "d")):
        sent = body + more
        got = http.patch(url + "/info", data=iter([sent[:1 << 20], sent[1 << 20:]]) if chunked else sent)
        assert (got.status_code, "detail" in got.json()) == ((413, True) if more else (200, False))
        assert http.get(url + "/info").json()["description"] == description


def test_a_patch_and_a_delete_keep_to_if_match(model):
    etag, info_etag = model.get(BASE).headers["ETag"], model.get(INFO).headers["ETag"]
    for condition in ('"x"', f"W/{etag}", f"W/{info_etag}"):
        model.patch(INFO, b'{"description": "x"}', headers={"If-Match": condition}, status=412)
        model.delete(BASE, headers={"If-Match": condition}, status=412)
    model.patch(INFO, b'{"description": "x"}', headers={"If-Match": info_etag}, status=200)
    model.patch(INFO, b'{"description": "y"}', headers={"If-Match": info_etag}, status=412)     # somebody was faster
    model.patch(INFO, b'{"description": "z"}', headers={"If-Match": f'"x", {etag}'}, status=200)
    model.delete(BASE, headers={"If-Match": f'"x", {etag}'}, status=200)
    for missing in (model.delete(BASE, headers={"If-Match": etag}, expect_errors=True),
                    model.patch(INFO, b"{}", headers={"If-Match": "*"}, expect_errors=True)):
        assert missing.status_int in (404, 412)     # RFC 9110 13.2.1 lets 404 come first


def test_nothing_is_changed_that_was_modified_after_the_date_of_a_condition(model):
    long_ago, later = "Sun, 06 Nov 1994 08:49:37 GMT", "Sat, 06 Nov 2094 08:49:37 GMT"
    change = {"description": "another"}
    for condition, status in (
        ({"If-Unmodified-Since": long_ago}, 412), ({"If-Unmodified-Since": later}, 200),
        ({"If-Unmodified-Since": "no date"}, 200),                      # RFC 9110 13.1.4: ignored
        ({"If-Unmodified-Since": long_ago, "If-Match": "*"}, 200),      # RFC 9110 13.2.2: If-Match alone counts
    ):
        model.put(BASE, b"data", headers=condition, status=status)
        model.patch_json(INFO, change, headers=condition, status=status)
        model.delete(BASE, headers=condition, status=status)
        model.put(BASE, b"data", headers={"If-Unmodified-Since": long_ago}, status=412 if status == 412 else 201)


def test_a_patch_of_nothing_is_404(app):
    app.patch(INFO, b"{}", status=404)


# ---- DELETE


def test_a_delete_prunes_what_is_empty_and_keeps_the_rest(model, store):
    model.put("/models/p/b/1/m", b"x", status=201)
    assert model.delete(BASE, status=200).json["sha256"] == sha256(b"data")
    assert sorted(path.name for path in (store.root / "p").iterdir()) == ["b"]
    model.delete(BASE, status=404)
    model.get(BASE, status=404)
    model.delete("/models/p/b/1/m", status=200)
    assert [path.name for path in store.root.iterdir()] == [".staging"]
    assert model.get("/models/list").json["total_models"] == 0
    model.put(BASE, b"again", status=201)


@pytest.mark.parametrize(("where", "count"), [("p/b", 1), ("p/a/1", 2), ("p/a", 3), ("p", 4)])
def test_many_models_are_deleted_only_on_purpose(app, store, where, count):
    every = ["p/a/1/m", "p/a/1/m.sha256", "p/a/2/m", "p/b/1/m", "p-q/a/1/m"]
    for names in every:
        app.put(f"/models/{names}", b"x", status=201)
    for query in ("", "?recursive=false"):
        detail = app.delete(f"/models/{where}{query}", status=409).json["detail"]
        assert f"delete {count} {'model' if count == 1 else 'models'} below" in detail
    for value, place in itertools.product(("", "1", "True", "yes"), (where, "p/a/1/m")):
        for name, rest in (("recursive", ""), ("aliases", "&recursive=true")):
            detail = app.delete(f"/models/{place}?{name}={value}{rest}", status=400).json["detail"]
            assert detail == f"{name} {value!r} is neither true nor false"
    assert len(app.get("/models/list").json["models"]) == 5
    told = app.delete(f"/models/{where}?recursive=true", status=200).json["message"]
    assert told == f"{count} {'model' if count == 1 else 'models'} deleted"
    left = [names for names in every if not names.startswith(where + "/")]
    assert sorted(app.get("/models/list?format=txt").text.split()) == sorted(left)
    assert not (store.root / where).exists()
    assert store.root.exists()
    app.delete(f"/models/{where}?recursive=true", status=404)


@pytest.mark.parametrize("where", ["p/a/1/folder", "p/a/1", "p/a", "p"])
@pytest.mark.parametrize("condition", [
    {"If-Match": '"of another state"'}, {"If-None-Match": "*"}, {"If-Match": ""}, {"If-None-Match": ""},
    {"If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"}], ids=str)
def test_many_models_are_not_deleted_under_a_condition_for_one(app, where, condition):
    app.put("/models/p/a/1/folder/m", b"x", status=201)
    got = app.delete(f"/models/{where}?recursive=true&aliases=true", headers=condition, status=412)
    assert "nothing was deleted" in got.json["detail"]
    assert app.get("/models/list").json["total_models"] == 1


@pytest.fixture(scope="module")
def sandboxed(tmp_path_factory):
    """A live server that can write nowhere but below its sandbox, which has the models and a file beside them."""
    sandbox = tmp_path_factory.mktemp("sandbox").resolve()
    need("a mount namespace")
    prefix = read_only_but(sandbox)
    (sandbox / "beside").write_text("precious")
    with running(sandbox / "models", *prefix) as server:
        writable = set()
        for line in Path(f"/proc/{server.process.pid}/mountinfo").read_text().splitlines():
            where, options = line.split()[4:6]
            (writable.add if "rw" in options.split(",") else writable.discard)(where)
        assert writable == {str(sandbox)}, "this is no sandbox: nothing is sent"
        with server.connect() as wire:
            for names in ("p/a/v/m", "p/a/v/m2", "p/a/v2/m", "p/a2/v/m", "p2/a/v/m"):
                wire.send(f"PUT /models/{names} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
                assert wire.response()[0] == 201
        yield server


def tree_of(root):
    return sorted(str(path) for path in root.rglob("*") if ".staging" not in path.parts)


@pytest.mark.parametrize("query", ["", "?recursive=true"])
@pytest.mark.parametrize("path", [
    "p/a/v/.", "p/a/v/..", "p/a/v/m/..", "p/a/v/m/.", "p/a/v/m/../..", "p/a//m", "p/a/v//", "p//v/m", "/a/v/m",
    "p/a/v/m/", "p/a/v/",
    "p/a/", "p/", "", "/", ".", "..", "../..", "../beside", "./p", "p/..", "p/../..", "p/../../beside", "p/a/../../..",
    "p/./a", ".staging",
    ".staging/locks", "p/a/v/%2e", "p/a/v/%2e%2e", "%2e%2e", "%2e%2e/beside", "p%2f..%2f..", "p%2Fa", "p%2fa%2fv%2fm",
    "..%2f..",
    "p/a/v/m%00", "%00", "p%00", "p/a/v/m%0a", "p/a/v/m\t", ".\t.", "p/.\t./..", "p/a/v/*", "*", "p*", "p/a/v/m#",
    "p%20", "~", "p/a/v/m%2f",
    "p\\a", "..\\..", "p/a/v/m;x", "p/a/v/\uff4d", "list", "upload", "list?recursive=true", "p/a/v/m/info",
    "p/a/v/m/info/..", "p/a/v/m.sha256",
    "p/a/v/latest", "p/a/latest/m", "p/a/v/m/model", "p/a/v/m/metadata.json", "%70%2f", "p/a/v/m%252f..",
])
def test_an_odd_delete_path_never_removes_anything(sandboxed, path, query):
    before = tree_of(sandboxed.storage.parent)
    for prefix in ("/models/", "//models//", "/models/../models/"):
        with sandboxed.connect() as wire:
            wire.send(f"DELETE {prefix}{path}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            status = wire.response()[0]
            assert 400 <= status < 500
            assert tree_of(sandboxed.storage.parent) == before


@pytest.mark.parametrize("path", [
    "..", ".", "../beside", "../models", "../models/p", "../models/p/a", "p/..", "p/a/..", "p/../p", "-p",
    ".staging", "%00", "p%00", "p/%00", "p/a/%0a", "list/a", "caf%C3%A9", "x" * 129,
])
def test_a_delete_below_a_bad_name_is_400_and_looks_nowhere(sandboxed, path):
    for query in ("", "?recursive=true"):
        with sandboxed.connect() as wire:
            wire.send(f"DELETE /models/{path}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert wire.response()[0] == 400


# ---- health


def test_health_tells_how_it_is(app, store):
    got = app.get("/health")
    assert set(got.json) == {"status", "version", "timestamp", "storage_path", "free_bytes"}
    assert (got.json["status"], got.json["storage_path"]) == ("healthy", str(store.root))
    assert got.json["free_bytes"] > 0
    assert datetime.fromisoformat(got.json["timestamp"]).tzinfo
    assert app.head("/health").body == b""


def test_health_is_503_with_a_reason_when_the_storage_cannot_be_written(app, store):
    own = [path for path in (store.root / ".staging").iterdir() if path.is_dir() and path.name not in IGNORED]
    assert len(own) == 1
    own[0].rmdir()
    own[0].write_text("")
    # a write that worked counts for a second
    eventually(lambda: app.get("/health", expect_errors=True).status_int == 503)
    got = app.get("/health", status=503)
    assert got.json["status"] == "unhealthy"
    assert f"{own[0]} is a file" in got.json["reason"] and got.json["version"] == VERSION
    assert app.head("/health", status=503).body == b""
    own[0].unlink()
    app.get("/health", status=200)      # the directory is made again
