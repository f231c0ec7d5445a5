"""A version uploaded as one tar, under our own server and under WebTest: the same answers both ways."""

import hashlib
import json
import os
import pickle
import tarfile
from base64 import b64encode
from urllib.parse import urlencode

import pytest
from support.common import app_of, eventually, sha256, staged
from support.raw import chunks, head
from support.site import Live, UnderWebTest, stores_nothing
from support.tars import END, headed, member, tar_of, tar_with

FILES = {"config.json": b"{}", "onnx/model.onnx": bytes(range(256)) * 50, "empty": b"", "b/c/whole": b"x" * 512}
OTHER = {"config.json": b"{ }", "model.bin": b"weights" * 99_999}
TAR = tar_with(FILES)


@pytest.fixture
def version(project):
    return f"/models/{project}/app/1.0"


def stored(site, version):
    """{name: bytes} of what the server has in a version, which has to be what lies on its disk."""
    models = site.send("GET", version).json["models"]
    found = {model["model_name"]: (site.root / model["path"]).read_bytes() for model in models}
    below = site.root / version.removeprefix("/models/")
    assert sorted(str(path.parent.relative_to(below)) for path in below.rglob("model")
                  if path.is_file()) == sorted(found)
    assert all(sha256(found[model["model_name"]]) == model["sha256"] for model in models)
    return found


# ---- what is stored and answered


def test_a_tar_becomes_the_models_of_a_version_and_the_answer_lists_them(site, version):
    answer = site.put(version, TAR)
    assert (answer.status, answer.json["message"]) == (201, "Version uploaded successfully")
    assert stored(site, version) == FILES
    listed = site.send("GET", version).json
    assert {name: value for name, value in answer.json.items() if name != "message"} == listed
    assert answer.headers["Location"].endswith(version)
    assert [model["model_name"] for model in listed["models"]] == sorted(FILES)
    info = site.send("GET", f"{version}/onnx/model.onnx/info").json
    assert info == listed["models"][-1] and info["format"]
    assert site.send("GET", "/models/" + version.split("/")[2]).json["total_models"] == len(FILES)


def test_another_tar_replaces_the_whole_version_and_what_it_lacks_is_gone(site, version):
    assert site.put(version, TAR).status == 201
    assert site.put(f"{version}/alone", b"by itself").status == 201
    answer = site.put(version, tar_with(OTHER))
    assert (answer.status, answer.json["message"]) == (200, "Version replaced successfully")
    assert stored(site, version) == OTHER
    assert site.send("GET", version + "/onnx/model.onnx/info").status == 404
    assert site.put(version, TAR).status == 200
    assert stored(site, version) == FILES
    assert staged(site.root) == []


def test_a_model_may_become_a_folder_and_a_folder_a_model(site, version):
    assert site.put(version, tar_with({"a": b"1", "b/c": b"2"})).status == 201
    assert site.put(version, tar_with({"a/x": b"3", "b": b"4"})).status == 200
    assert stored(site, version) == {"a/x": b"3", "b": b"4"}


def test_fields_of_the_query_are_given_to_every_file(site, version):
    query = urlencode({"description": "a bért", "framework": "torch", "stage": "prod", "metadata": '{"n": 1}'})
    for model in site.put(f"{version}?{query}", TAR).json["models"]:
        assert (model["description"], model["framework"], model["metadata"]) == (
            "a bért", "torch", {"stage": "prod", "n": 1})
        assert model["filename"] is None


@pytest.mark.parametrize(("query", "why"), [
    ("version=2", "version"), ("model_name=m", "model_name"), ("stage=a&stage=b", "stage"), ("metadata=x", "metadata"),
    ("sha256=nonsense", "sha256"), ("description=" + "x" * 8193, "description"),
])
def test_a_query_that_cannot_be_is_refused(site, version, query, why):
    assert why in stores_nothing(site, lambda: site.put(f"{version}?{query}", TAR), 400).json["detail"]


def test_a_tar_of_ten_thousand_small_files_goes_in_pieces_through_the_queues(site, version):
    files = {f"d{n % 7}/f{n}": b"%d" % n for n in range(300)}
    assert site.put(version, tar_with(files)).json["total_models"] == 300
    assert stored(site, version) == files


@pytest.mark.parametrize("size", [1, 511, 512, 513, 4096, 1_048_576, 3_000_001])
def test_files_of_any_size_arrive_whole(site, version, size):
    files = {"a": os.urandom(size), "b": os.urandom(7), "c": os.urandom(size)}
    assert site.put(version, tar_with(files)).status == 201
    assert stored(site, version) == files


@pytest.mark.parametrize("reserved", ["latest"])
def test_an_alias_is_never_written_to(site, version, reserved):
    where = version.replace("/1.0", f"/{reserved}")
    assert "version" in stores_nothing(site, lambda: site.put(where, TAR), 400).json["detail"]


# ---- what is refused


@pytest.mark.parametrize(("tar", "status", "why"), [
    (headed("m") + headed("l", type=tarfile.SYMTYPE, linkname="m") + END,   400, "'l' in the tar is a link"),
    (tar_with({"a": b"1" * 9999, "._a": b"2"}),                             400, "--exclude='._*'"),
    (tar_with({"a": b"1" * 9999, "../a": b"2"}),                            400, "not a plain path"),
    (tar_with({"a": b"1" * 9999, "b/info": b"2"}),                          400, "'b/info' in the tar cannot"),
    (tar_with({"x": b"1", "/".join("abcdefghi"): b"2"}),                    400, "--exclude=a/b/c/d/e/f/g/h/i"),
    (tar_with({"a": b"1", "/".join(["x" * 120] * 5): b"2"}),                400, "512 characters"),
    (tar_of(member("a", b"1"), member("a", b"2")),                          400, "'a' comes twice"),
    (tar_of(member("a", b"1"), member("a/b", b"2")),                        400, "'a' in the tar is a file"),
    (END,                                                                   400, "no file"),
    (TAR[:5000],                                                            400, "ends early"),
    (TAR[:10752],                                                           400, "ends early"),
    (b"",                                                                   400, "this path is a version"),
    (b"weights" * 999,                                                      400, "this path is a version"),
    (b"\x1f\x8b" + bytes(9999),                                             415, "gzip -dc"),
])
def test_what_cannot_be_a_version_stores_nothing(site, version, tar, status, why):
    for _ in range(2):
        assert why in stores_nothing(site, lambda: site.put(version, tar), status).json["detail"]
        site.put(version, TAR)      # the second time the version exists, and stays
    assert stored(site, version) == FILES


@pytest.mark.parametrize("headers", [{"Content_Encoding": "gzip"}, {"Content_Range": "bytes 0-1/2"},
                                     {"Content_Type": "multipart/form-data; boundary=x"}, {"Upload_Offset": "5"}])
def test_a_part_or_an_envelope_is_refused_like_that_of_a_model(site, version, headers):
    answer = site.put(version, TAR, **headers)
    assert answer.status in (400, 415) and site.send("GET", version).json["total_models"] == 0


def test_a_limit_counts_for_each_model_and_not_for_the_tar(tmp_path, make_app, store):
    site = UnderWebTest(make_app(max_size=1000), store.root)
    assert site.put("/models/p/a/1", tar_with({f"m{n}": bytes(1000) for n in range(20)})).status == 201
    answer = stores_nothing(site, lambda: site.put("/models/p/a/2", tar_with({"m": b"", "n": bytes(1001)})), 413)
    assert "'n' in the tar has 1001 bytes" in answer.json["detail"] and "MODEL_MAX_SIZE" in answer.json["detail"]


PICKLE = b"cposix\nsystem\n(S'id'\ntR."


@pytest.mark.parametrize(("settings", "status"), [({"pickle": "deny"}, 422),
                                                  ({"allowed_formats": frozenset({"safetensors"})}, 415)])
def test_each_file_is_inspected_and_a_refusal_names_it(make_app, store, settings, status):
    site = UnderWebTest(make_app(**settings), store.root)
    tensors = b"\x08\0\0\0\0\0\0\0{}      "
    files = {"first": tensors, "deep/bad.pkl": PICKLE, **{f"m{n}": tensors for n in range(30)}}
    answer = stores_nothing(site, lambda: site.put("/models/p/a/1", tar_with(files)), status)
    assert answer.json["detail"].startswith("'deep/bad.pkl' in the tar: ")
    del files["deep/bad.pkl"]
    assert site.put("/models/p/a/1", tar_with(files)).status == 201


# ---- digests of the tar itself


def claims(tar):
    digest = hashlib.sha256(tar)
    return [{"X_Checksum_Sha256": digest.hexdigest()},
            {"Repr_Digest": f"sha-256=:{b64encode(digest.digest()).decode()}:"},
            {"X_Checksum_Md5": hashlib.md5(tar).hexdigest()}]


def test_a_digest_that_is_claimed_is_that_of_the_whole_tar(site, version):
    for right, wrong in zip(claims(TAR), claims(TAR[:-1]), strict=True):
        refused = stores_nothing(site, lambda wrong=wrong: site.put(version, TAR, **wrong), 400)
        assert "arrived with" in refused.json["detail"]
        assert site.put(version, TAR, **right).status in (200, 201)
    assert site.put(f"{version}?sha256={sha256(TAR)}", TAR).status == 200
    stores_nothing(site, lambda: site.put(f"{version}?sha256={sha256(b'')}", TAR), 400)


# ---- conditions and rights


def test_deny_keeps_a_version_that_exists(denying, version):
    assert denying.put(version, TAR).status == 201
    refused = stores_nothing(denying, lambda: denying.put(version, tar_with(OTHER)), 409)
    assert "keeps what it has" in refused.json["detail"]
    one = version.replace("1.0", "2.0")
    assert denying.put(f"{one}/alone", b"x").status == 201
    stores_nothing(denying, lambda: denying.put(one, TAR), 409)


def test_conditions_are_those_of_the_version_as_a_whole(site, version):
    stores_nothing(site, lambda: site.put(version, TAR, If_Match="*"), 412)
    first = site.put(version, TAR, If_None_Match="*")
    assert first.status == 201
    etag = first.headers["ETag"]
    stores_nothing(site, lambda: site.put(version, TAR, If_None_Match="*"), 412)
    stores_nothing(site, lambda: site.put(version, TAR, If_Match='"other"'), 412)
    stores_nothing(site, lambda: site.put(version, TAR, If_Match=""), 412)     # as of a script that found no ETag
    second = site.put(version, tar_with(OTHER), If_Match=etag)
    assert second.status == 200 and second.headers["ETag"] != etag
    stores_nothing(site, lambda: site.put(version, TAR, If_Match=etag), 412)
    assert site.put(f"{version}/alone", b"x").status == 201
    stores_nothing(site, lambda: site.put(version, TAR, If_Match=second.headers["ETag"]), 412)


def test_the_etag_is_that_of_the_tar_that_is_downloaded(site, version):
    etag = site.put(version, TAR).headers["ETag"]
    assert site.send("HEAD", version + "?format=tar").headers["ETag"] == etag
    site.send("PATCH", f"{version}/empty/info", json.dumps({"description": "x"}).encode())
    assert site.put(version, TAR, If_Match=etag).status == 200


RIGHTS = [("create", 201, 403, 403), ("create,update", 201, 200, 403), ("create,update,delete", 201, 200, 200),
          ("update,delete", 403, 403, 403)]


@pytest.mark.parametrize(("verbs", "new", "more", "less"), RIGHTS)
def test_a_token_needs_create_update_and_delete_for_what_becomes_of_models(store, tokens, verbs, new, more, less):
    secret = "amr_secret"
    path = tokens(f"ci:{sha256(secret.encode())}:{verbs}:p\n")
    site = UnderWebTest(app_of(store, tokens_file=path, anonymous="all"), store.root)
    ours = UnderWebTest(app_of(store), store.root)
    closed = UnderWebTest(app_of(store, tokens_file=path), store.root)
    assert site.root and ours.root
    auth = {"Authorization": f"Bearer {secret}"}
    assert closed.put("/models/p/a/1", TAR, **auth).status == new
    ours.put("/models/p/a/1", TAR)
    assert closed.put("/models/p/a/1", tar_with({**FILES, "more": b"1"}), **auth).status == more
    ours.put("/models/p/a/1", TAR)
    before = closed.files()
    answer = closed.put("/models/p/a/1", tar_with(OTHER), **auth)
    assert answer.status == less and (answer.status == 200 or closed.files() == before)
    assert closed.put("/models/q/a/1", TAR, **auth).status == 403
    assert closed.put("/models/p/a/2", TAR).status == 401
    assert staged(store.root) == []


# ---- while it arrives


def test_what_the_head_tells_is_refused_before_a_byte_of_the_tar_travels(live_server, project, start):
    denying = start(MODEL_OVERWRITE="deny")
    assert Live(denying, denying.storage).put("/models/p/a/1", TAR).status == 201
    for server, path, headers, status in (
        (live_server, f"{project}/a/1", ["Content-Length: 1000000000000000"], 507),
        (live_server, f"{project}/a/.v", ["Content-Length: 9"], 400),
        (live_server, f"{project}/a/latest", ["Content-Length: 9"], 400),
        (live_server, f"{project}/a/1", ["Content-Length: 9", "If-Match: *"], 412),
        (live_server, f"{project}/a/1", ["Content-Length: 9", "Content-Encoding: gzip"], 415),
        (denying, "p/a/1", ["Transfer-Encoding: chunked"], 409),
    ):
        with server.connect() as wire:
            wire.send(head(f"PUT /models/{path}", *headers, "Expect: 100-continue"))
            assert wire.response()[0] == status


def test_a_tar_of_many_files_that_is_refused_in_the_middle_is_read_to_its_end(start):
    """Its client hears of it only then; files that wait for others once kept the server from reading on."""
    server = start(MODEL_PICKLE="deny")
    files = {f"{n:04d}": pickle.dumps(os.system) if n == 150 else b"%d" % n for n in range(800)}
    answer = Live(server, server.storage).put("/models/p/a/1", tar_with(files))
    assert answer.status == 422 and "'0150' in the tar" in answer.json["detail"]
    assert staged(server.storage) == []


def test_a_tar_arrives_in_chunks_and_after_expect(live_server, project):
    site = Live(live_server, live_server.storage)
    with live_server.connect() as wire:
        wire.send(head(f"PUT /models/{project}/a/1", "Transfer-Encoding: chunked", "Expect: 100-continue"))
        assert wire.head()[0] == 100
        wire.send(chunks(TAR, 700))
        assert wire.response()[0] == 201
    assert stored(site, f"/models/{project}/a/1") == FILES


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(live_server, project):
    site = Live(live_server, live_server.storage)
    assert site.put(f"/models/{project}/a/1", TAR).status == 201
    before = site.files()
    tar = tar_with({f"m{n}": os.urandom(70_000) for n in range(40)})
    for length in (0, 1, 512, 600, 100_000, len(tar) - 600):
        with live_server.connect() as wire:
            wire.send(head(f"PUT /models/{project}/a/1", f"Content-Length: {len(tar)}"), tar[:length])
    eventually(lambda: staged(live_server.storage) == [])
    assert site.files() == before and live_server.descriptors() < 100


