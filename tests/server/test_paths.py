"""Models whose name is a path: the folders of a version, what is at them and below, and what excludes what."""

import json
import re
import time

import pytest
from support.common import eventually, sha256, staged
from support.credentials import ALL, bearer, line

from repository.model import MAX_PARTS, MAX_PATH

FILES = {   # in the order of lists: by one name and the next, not by the text of the path
    "config.json": b"{}", "onnx/model.onnx": b"onnx", "onnx/sub/a": b"a", "onnx-2/b": b"bb",
    "variables/variables.index": b"i", "weights": b"w" * 1000,
}
ROOT = "/models/p/a/1.0.0"
LONGEST = "/".join(["x" * 128, "y" * 128, "z" * 128, "w" * (MAX_PATH - 387)])


@pytest.fixture
def folder(app):
    for name, data in FILES.items():
        app.put(f"{ROOT}/{name}", data, status=201)
    return app


def listed(app, path, query=""):
    return [model["model_name"] for model in app.get(f"{path}{query}", status=200).json["models"]]


def files(store):
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if ".staging" not in path.parts}


def test_a_file_in_a_folder_has_all_that_a_model_has(folder, store):
    url, digest = f"{ROOT}/onnx/model.onnx", sha256(b"onnx")
    known = folder.get(f"{url}/info").json
    assert (known["model_name"], known["path"], known["sha256"]) == (
        "onnx/model.onnx", "p/a/1.0.0/onnx/model.onnx/model", digest)
    assert known["url"].endswith(url)
    got = folder.get(url, headers={"Range": "bytes=1-2"}, status=206)
    assert (got.body, got.headers["Content-Disposition"]) == (b"nn", 'attachment; filename="model.onnx"')
    assert folder.get(f"{url}.sha256").body == f"{digest}  model.onnx\n".encode()
    assert folder.patch_json(f"{url}/info", {"framework": "onnx"}).json["framework"] == "onnx"
    assert folder.head(url).headers["ETag"] == f'"{digest}"'
    assert folder.put(url, b"new", status=200).json["message"].startswith("Model replaced")
    assert folder.delete(url).json["model_name"] == "onnx/model.onnx"
    folder.get(url, status=404)
    folder.get(f"{url}/info", status=404)
    assert "p/a/1.0.0/onnx/sub/a/model" in files(store) and "p/a/1.0.0/onnx/model.onnx" not in files(store)


def test_a_form_may_name_a_path(app):
    fields = {"project_id": "p", "app_name": "a", "version": "1", "model_name": "x/y"}
    got = app.post("/models/upload", fields, upload_files=[("file", "orig.bin", b"x")], status=201)
    assert got.headers["Location"].endswith("/models/p/a/1/x/y")
    assert app.get("/models/p/a/1/x/y").headers["Content-Disposition"] == 'attachment; filename="orig.bin"'


def test_a_version_and_a_folder_list_what_is_below_them(folder):
    assert listed(folder, ROOT) == list(FILES) == listed(folder, "/models/list")
    got = folder.get(f"{ROOT}/onnx/").json
    assert {name: got[name] for name in ("project_id", "app_name", "version", "model_name", "total_models")} == {
        "project_id": "p", "app_name": "a", "version": "1.0.0", "model_name": "onnx", "total_models": 2}
    assert [model["model_name"] for model in got["models"]] == ["onnx/model.onnx", "onnx/sub/a"]
    assert listed(folder, f"{ROOT}/onnx/sub") == ["onnx/sub/a"]
    assert folder.get(f"{ROOT}/onnx?format=sha256sums").text == (
        f"{sha256(b'onnx')}  model.onnx\n{sha256(b'a')}  sub/a\n")
    assert folder.get(f"{ROOT}/onnx?format=txt&q=sub").text == "p/a/1.0.0/onnx/sub/a\n"
    assert folder.head(f"{ROOT}/onnx").headers["Content-Type"] == "application/json"
    assert folder.get(f"{ROOT}/weights?format=json").body == FILES["weights"], "a model comes first"
    for path in ("none", "onnx/none", "config.json/x", "onnx/info", "onnx.sha256"):
        folder.get(f"{ROOT}/{path}", status=404)


@pytest.mark.parametrize("place", ["", "/onnx"])
def test_pages_go_through_folders(folder, place):
    expected, found, query = listed(folder, ROOT + place), [], "?limit=1"
    while query:
        page = folder.get(ROOT + place + query)
        assert page.json["total_models"] == len(expected)
        found += [model["model_name"] for model in page.json["models"]]
        query = f"?limit=1&after={page.json['next']}" if "next" in page.json else ""
        assert ("Link" in page.headers) == bool(query)
    assert found == expected


def test_a_cursor_whose_model_is_a_folder_now_goes_on_in_it(folder):
    folder.delete(f"{ROOT}/config.json")
    folder.put(f"{ROOT}/config.json/new", b"x", status=201)
    assert listed(folder, ROOT, "?limit=2&after=p/a/1.0.0/config.json") == ["config.json/new", "onnx/model.onnx"]
    assert listed(folder, ROOT, "?limit=1&after=p/a/1.0.0/weights/x") == []


def test_lists_follow_what_others_change(folder, store):
    assert listed(folder, ROOT) == list(FILES)
    base = store.root / "p/a/1.0.0"
    (base / "onnx").rename(base / "moved")
    (base / "late/deep").mkdir(parents=True)
    eventually(lambda: "onnx/model.onnx" not in listed(folder, ROOT) and "moved/model.onnx" in listed(folder, ROOT))
    time.sleep(1.0)     # longer than a look at a directory is good for
    (base / "late/deep/model").write_bytes(b"by hand")      # which changes no directory above it
    eventually(lambda: "late/deep" in listed(folder, ROOT))
    assert folder.get("/models/list?limit=1").json["total_models"] == len(FILES) + 1


@pytest.mark.parametrize("name", [
    "/".join("x" * MAX_PARTS), LONGEST, "model", "metadata.json", "x/model", "model/model", "metadata.json/x",
    "x/metadata.json", "info/x", "upload/x", "info", "upload", "x/y.sha256", "latest/x",
])
def test_paths_that_are_names(app, store, name):
    url = f"/models/p/a/1/{name}"
    assert app.put(url, name.encode(), status=201).json["model_name"] == name
    assert app.get(url).body == name.encode() and listed(app, "/models/p/a/1") == [name]
    assert (store.root / "p/a/1" / name / "model").is_file()
    assert app.get(f"{url}/info").json["model_name"] == name
    app.delete(url)
    assert files(store) == staged(store.root) or files(store) == set()


@pytest.mark.parametrize("name", [
    "/".join("x" * (MAX_PARTS + 1)), LONGEST + "w", "x/.y", ".x/y", "x/../y",
    "x/-y", "x/" + "y" * 129, "x//y", "x/", "/x", "x/info", "x/upload", "x/y/info", "info/info",
])
def test_paths_that_are_no_names(app, store, name):
    fields = {"project_id": "p", "app_name": "a", "version": "1", "model_name": name}
    got = app.post("/models/upload", fields, upload_files=[("file", "m", b"x")], status=400)
    assert "model_name" in got.json["detail"]
    assert app.put(f"/models/p/a/1/{name}", b"x", expect_errors=True).status_int in (400, 404, 405)
    assert files(store) == set()


@pytest.mark.parametrize(("there", "new"), [
    ("x", "x/y"), ("x", "x/y/z"), ("x/y", "x"), ("x/y/z", "x"), ("x/y/z", "x/y"), ("x", "x/model"),
    ("x", "x/metadata.json"), ("x/model", "x"),
])
def test_a_model_and_a_folder_exclude_each_other(app, store, there, new):
    app.put(f"/models/p/a/1/{there}", b"there", status=201)
    before = files(store)
    got = app.put(f"/models/p/a/1/{new}", b"new", status=409)
    assert f"p/a/1/{there}" in got.json["detail"] and "delete it" in got.json["detail"]
    assert files(store) == before and staged(store.root) == []
    app.delete(f"/models/p/a/1/{there}")
    app.put(f"/models/p/a/1/{new}", b"new", status=201)
    assert listed(app, "/models/p/a/1") == [new]


def test_deleting_a_folder_says_first_what_it_takes(folder, store):
    got = folder.delete(f"{ROOT}/onnx", status=409)
    assert "2 models below p/a/1.0.0/onnx" in got.json["detail"] and "recursive=true" in got.json["detail"]
    got = folder.delete(f"{ROOT}/onnx?recursive=true").json
    assert (got["model_name"], got["deleted_models"]) == ("onnx", 2)
    assert not (store.root / "p/a/1.0.0/onnx").exists() and (store.root / "p/a/1.0.0/onnx-2").exists()
    folder.delete(f"{ROOT}/onnx?recursive=true", status=404)
    folder.delete(f"{ROOT}?recursive=true")
    assert files(store) == set()


def test_what_an_upload_left_that_was_cut_off_is_in_nobodys_way(app, store):
    (store.root / "p/a/1/x/y/z").mkdir(parents=True)
    app.put("/models/p/a/1/x", b"x", status=201)
    assert files(store) == {"p", "p/a", "p/a/1", "p/a/1/x", "p/a/1/x/model", "p/a/1/x/metadata.json"}


@pytest.mark.parametrize(("place", "status"), [
    ("x/info", 404), ("x/upload", 400), ("/".join("x" * (MAX_PARTS + 1)), 400), ("x/.y", 400), ("m/inner", 404),
])
def test_what_is_put_where_no_model_can_be_is_none(app, store, place, status):
    app.put("/models/p/a/1/m", b"m", status=201)
    directory = store.root / "p/a/1" / place
    directory.mkdir(parents=True)
    (directory / "model").write_bytes(b"by hand")
    assert listed(app, "/models/p/a/1") == ["m"] == [key.model_name for key in store.keys("p")]
    app.get(f"/models/p/a/1/{place}", status=status)
    app.delete(f"/models/p/a/1/{place}?recursive=true", status=(status, 405)[place == "x/info"])
    assert (directory / "model").read_bytes() == b"by hand"


def test_latest_resolves_for_versions_and_folders(folder):
    folder.put("/models/p/a/2.0.0/other", b"x", status=201)
    for path, version, names in (("", "2.0.0", ["other"]), ("/onnx", "1.0.0", ["onnx/model.onnx", "onnx/sub/a"])):
        got = folder.get(f"/models/p/a/latest{path}")
        assert [model["model_name"] for model in got.json["models"]] == names
        where = got.headers["X-Model-Version"], got.headers["Content-Location"]
        assert where == (version, f"/models/p/a/{version}{path}")
    assert folder.get("/models/p/a/latest/onnx/model.onnx").headers["X-Model-Version"] == "1.0.0"
    folder.get("/models/p/a/latest/none/x", status=404)
    folder.delete("/models/p/a/latest/onnx?recursive=true", status=404)


def test_a_folder_is_verified_as_a_whole(folder, store):
    with (store.root / "p/a/1.0.0/onnx/sub/a/model").open("r+b") as file:
        file.write(b"?")
    assert folder.post("/verify/p/a/1.0.0/onnx", status=202).json["total_models"] == 2
    done = eventually(lambda: not (got := folder.get("/verify").json)["running"] and got)
    assert (done["below"], done["done_models"], done["corrupt"]) == ("p/a/1.0.0/onnx", 2, ["p/a/1.0.0/onnx/sub/a"])
    assert folder.get("/health").json["corrupt_models"] == 1
    assert listed(folder, ROOT, "?corrupt=true") == ["onnx/sub/a"]
    folder.post("/verify/p/a/1.0.0/none", status=404)
    # the folder becomes a model that is corrupt, too: its mark stands where that of the file did
    folder.delete(f"{ROOT}/onnx?recursive=true")
    folder.put(f"{ROOT}/onnx", b"model", status=201)
    (store.root / "p/a/1.0.0/onnx/model").write_bytes(b"ledom")
    folder.post("/verify/p/a/1.0.0/onnx", status=202)
    eventually(lambda: not folder.get("/verify").json["running"])
    assert folder.get("/health").json["corrupt_models"] == 1
    assert [str(key) for key in store.marked()] == ["p/a/1.0.0/onnx"]
    folder.delete(f"{ROOT}/onnx")
    assert "corrupt_models" not in folder.get("/health").json


@pytest.mark.parametrize(("method", "path", "allow"), [
    ("PUT", "/models/p/a/1/x/y/info", "GET, HEAD, OPTIONS, PATCH"),
    ("POST", "/models/p/a/1/x/y", "DELETE, GET, HEAD, OPTIONS, PUT"),
    ("PUT", "/models/upload", "OPTIONS, POST"),
])
def test_another_method_is_answered_with_those_of_the_path(app, method, path, allow):
    assert app.request(path, method=method, status=405).headers["Allow"] == allow


@pytest.mark.parametrize("many", ["/models/p/a/1/{}//", "/models/p/a/1/{}a/info/", "/p/a/resolve/1/{}info"])
def test_a_path_of_many_names_takes_hardly_longer_than_one_long_name(app, many):
    """Routes are looked for in the network thread, where all others wait meanwhile."""
    def seconds(path):
        took = []
        for _ in range(5):
            start = time.perf_counter()
            assert app.get(path, expect_errors=True).status_int in (400, 404)
            took.append(time.perf_counter() - start)
        return min(took)

    assert seconds(many.format("a/" * 30_000)) < 20 * seconds("/models/p/a/1/" + "a" * 60_000)


@pytest.mark.parametrize(("names", "status"), [(8, 201), (9, 400), (64, 400), (1000, 404)])
def test_a_path_of_too_many_names_is_refused(app, names, status):
    path = "/models/p/a/1" + "/a" * names
    assert app.put(path, b"model", expect_errors=True).status_int == status


def test_the_log_and_the_metrics_name_the_path(start, http):
    server = start()
    assert http.put(f"{server.url}/models/p/a/1/x/y", data=b"x").status_code == 201
    server.wait_for_log("PUT /models/p/a/1/x/y 201")
    assert re.search(r'audit \{.*"model": "p/a/1/x/y"', server.log())
    label = 'route="/models/{project_id}/{app_name}/{version}/{model_name}",method="PUT"'
    assert label in http.get(f"{server.url}/metrics").text
    assert json.loads(http.get(f"{server.url}/models/list").content)["total_models"] == 1


@pytest.mark.parametrize(("there", "new"), [("folder/secret", "folder"), ("a/b/c", "a/b")])
def test_who_may_not_read_learns_no_name_from_what_is_in_the_way(make_app, tokens, there, new):
    app = make_app(tokens_file=tokens(line("ann", ALL, "*"), line("ci", "create", "p")))
    app.put(f"/models/p/a/1/{there}", b"x", headers=bearer("ann"), status=201)
    for name, told in (("ann", True), ("ci", False)):
        detail = app.put(f"/models/p/a/1/{new}", b"x", headers=bearer(name), status=409).json["detail"]
        assert (f"p/a/1/{there}" in detail) == told and "choose another name" in detail
