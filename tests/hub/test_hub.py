"""The API of the Hugging Face Hub: what is in its answers, as far as clients insist on it. No client is needed here."""

import json
import re
import shutil

import pytest
from support.common import ROOT, app_of, eventually, sha256
from support.credentials import bearer, line

from hub.room import HUB
from storage import Storage

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "onnx/model.onnx": b"onnx" * 500,
         "onnx/int8/model.onnx": b"int8" * 100, "tokenizer.json": b'{"version": "1.0"}'}
REPO, FILE = "/api/models/acme/tiny", "/acme/tiny/resolve/main/config.json"
COMMIT = re.compile("[0-9a-f]{40}")


def put(app, path, data):
    return app.request(f"/models/{path}", method="PUT", body=data, headers={"Content-Length": str(len(data))})


def fill(app, version="1.0.0", files=FILES, repo="acme/tiny"):
    for name, data in files.items():
        put(app, f"{repo}/{version}/{name}", data)


def sha_of(app, revision="main"):
    return app.get(f"{REPO}/revision/{revision}").json["sha"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A repository for tests that change nothing."""
    with Storage(tmp_path_factory.mktemp("hub") / "models") as store:
        app = app_of(store)
        fill(app)
        yield app


@pytest.fixture
def own(app):
    """A repository of the test's own."""
    fill(app)
    return app


# ---- files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["resolve/main", "resolve/1.0.0", "raw/HEAD", "resolve/latest"])
def test_a_file_comes_with_all_that_clients_insist_on(tiny, place, name):
    for answer in (tiny.head(f"/acme/tiny/{place}/{name}"), tiny.get(f"/acme/tiny/{place}/{name}")):
        assert answer.headers["X-Repo-Commit"] == sha_of(tiny)
        assert answer.headers["ETag"] == f'"{sha256(FILES[name])}"'
        assert answer.headers["Content-Length"] == str(len(FILES[name]))
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert not [header for header in answer.headers if "xet" in header.lower()]
    assert answer.body == FILES[name]


@pytest.mark.parametrize(("wanted", "told", "body"), [
    ("bytes=0-0", "bytes 0-0/7000", b"w"),              # Rust and JavaScript ask for the size so
    ("bytes=6993-", "bytes 6993-6999/7000", b"weights"),
    ("bytes=0-100000", "bytes 0-6999/7000", b"weights" * 1000),
])
def test_a_range_of_a_file_is_206_with_its_commit(tiny, wanted, told, body):
    answer = tiny.get("/acme/tiny/resolve/main/model.safetensors", headers={"Range": wanted})
    assert (answer.status_int, answer.headers["Content-Range"], answer.body) == (206, told, body)
    assert answer.headers["X-Repo-Commit"] == sha_of(tiny)


def test_a_file_put_there_by_hand_has_a_weak_tag_and_no_digest_to_compare_with(app, store):
    place = store.root / "acme/tiny/1.0.0/config.json"
    place.mkdir(parents=True)
    (place / "model").write_bytes(b"{}")
    answer, (shown,) = app.get(FILE), app.get(f"{REPO}/tree/main").json
    assert answer.headers["ETag"].startswith('W/"') and COMMIT.fullmatch(answer.headers["X-Repo-Commit"])
    assert (shown["size"], "lfs" in shown, bool(COMMIT.fullmatch(shown["oid"]))) == (2, False, True)


# ---- what there is


def test_an_info_has_the_files_and_with_blobs_what_to_compare_them_with(tiny):
    info = tiny.get(REPO).json
    assert (info["id"], info["sha"]) == ("acme/tiny", sha_of(tiny, "1.0.0"))
    assert info["siblings"] == [{"rfilename": name} for name in sorted(FILES)]
    for sibling in tiny.get(f"{REPO}?blobs=true").json["siblings"]:
        data = FILES[sibling["rfilename"]]
        assert sibling["size"] == sibling["lfs"]["size"] == len(data) and COMMIT.fullmatch(sibling["blobId"])
        assert sibling["lfs"]["sha256"] == sha256(data) and sibling["lfs"]["pointerSize"]


@pytest.mark.parametrize(("where", "shown"), [
    ("tree/main", ["config.json", "model.safetensors", "onnx", "tokenizer.json"]),
    ("tree/main?recursive=false&expand=True", ["config.json", "model.safetensors", "onnx", "tokenizer.json"]),
    ("tree/main?recursive=true", sorted([*FILES, "onnx", "onnx/int8"])),
    ("tree/main?recursive=True", sorted([*FILES, "onnx", "onnx/int8"])),
    ("tree/1.0.0/onnx", ["onnx/int8", "onnx/model.onnx"]),
    ("tree/1.0.0/onnx/int8", ["onnx/int8/model.onnx"]),
    ("tree/1.0.0/onnx%2Fint8", ["onnx/int8/model.onnx"]),      # as list_repo_tree quotes it
    ("tree/1.0.0/onnx%2fint8/", ["onnx/int8/model.onnx"]),
    ("tree/main/onnx?recursive=1", ["onnx/int8", "onnx/int8/model.onnx", "onnx/model.onnx"]),
])
def test_a_tree_shows_a_folder_or_all_below_it(tiny, where, shown):
    answer = tiny.get(f"{REPO}/{where}")
    assert [entry["path"] for entry in answer.json] == shown and "Link" not in answer.headers
    for entry in answer.json:
        assert COMMIT.fullmatch(entry["oid"]) and entry["type"] == ("file" if entry["path"] in FILES else "directory")
        if data := FILES.get(entry["path"]):
            assert (entry["size"], entry["lfs"]["oid"]) == (len(data), sha256(data))
            assert entry["lfs"].keys() >= {"oid", "size", "pointerSize"} and "xetHash" not in entry


def test_a_long_tree_comes_in_pages(tiny, monkeypatch):
    monkeypatch.setattr("hub.room.MAX_PAGE", 3)
    seen, url = [], f"{REPO}/tree/main?recursive=true&expand=false"
    for _ in range(3):
        answer = tiny.get(url)
        seen += [entry["path"] for entry in answer.json]
        link = answer.headers.get("Link")
        if not link:
            break
        url = re.fullmatch(r'<http://localhost:80(/.*)>; rel="next"', link)[1]
    assert seen == sorted([*FILES, "onnx", "onnx/int8"])


@pytest.mark.parametrize(("kind", "body"), [
    ("application/x-www-form-urlencoded", "paths=onnx&paths=config.json&paths=nothing&expand=False"),
    ("application/json", '{"paths": ["config.json", "nothing", "onnx"], "expand": false}'),
])
def test_paths_are_told_of_and_those_that_are_not_there_left_out(tiny, kind, body):
    answer = tiny.post(f"{REPO}/paths-info/main", body, headers={"Content-Type": kind})
    assert [(entry["path"], entry["type"]) for entry in answer.json] == [("config.json", "file"), ("onnx", "directory")]


@pytest.mark.parametrize("body", ["", "expand=False"])
def test_a_form_without_paths_asks_for_none(tiny, body):
    answer = tiny.post(f"{REPO}/paths-info/main", body, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.json == []


@pytest.mark.parametrize(("kind", "body", "status"), [
    ("application/json", b"{", 400), ("application/json", b"[]", 400), ("application/json", b'{"paths": 5}', 400),
    ("application/json", b'{"paths": "config.json"}', 400), ("application/json", b'{"paths": ["onnx", null]}', 400),
    ("application/json", b"[" * 100_000, 400), ("text/plain", b"\xff=\xff", 400), ("text/plain", b"x" * (3 << 20), 413),
])
def test_paths_that_cannot_be_read_are_refused(tiny, kind, body, status):
    answer = tiny.request(f"{REPO}/paths-info/main", method="POST", body=body, expect_errors=True,
                          headers={"Content-Type": kind, "Content-Length": str(len(body))})
    assert (answer.status_int, answer.json["error"]) == (status, answer.json["detail"])


def test_refs_begin_with_main_and_then_the_highest_version(app):
    for version in ("1.9.0", "1.10.0", "nightly"):
        fill(app, version, {"config.json": version.encode()})
    branches = app.get(f"{REPO}/refs").json["branches"]
    assert [branch["name"] for branch in branches] == ["main", "1.10.0", "1.9.0", "nightly"]
    assert [branch["targetCommit"] for branch in branches] == [sha_of(app, branch["name"]) for branch in branches]
    assert branches[0]["targetCommit"] == branches[1]["targetCommit"]
    assert {branch["ref"] for branch in branches} >= {"refs/heads/main", "refs/heads/nightly"}


@pytest.mark.parametrize(("versions", "main", "latest"), [
    (["1.9.0", "1.10.0"], "1.10.0", "1.10.0"), (["2.0.0-rc1", "1.0.0"], "1.0.0", "1.0.0"),
    (["9", "main"], "main", "main"), (["HEAD", "1"], "1", "1"), (["latest", "1"], "1", "latest"),
])
def test_main_is_the_version_called_so_or_else_the_highest(app, versions, main, latest):
    for version in versions:
        fill(app, version, {"f": version.encode()})
    answers = {revision: app.get(f"/acme/tiny/resolve/{revision}/f").text for revision in ("main", "HEAD", "latest")}
    assert answers == {"main": main, "HEAD": "HEAD" if "HEAD" in versions else main, "latest": latest}


@pytest.mark.parametrize(("query", "shown"), [
    ("", ["acme/base", "acme/tiny", "other/tiny"]), ("?author=acme", ["acme/base", "acme/tiny"]),
    ("?search=TINY&sort=downloads&expand=tags&expand=likes", ["acme/tiny", "other/tiny"]), ("?limit=1", ["acme/base"]),
    ("?author=../acme", []), ("?author=.staging", []), ("?filter=gguf", []), ("?limit=x", None),
    ("?pipeline_tag=text-generation", []), ("?limit=" + "9" * 5000, None),
])
def test_the_list_of_models_is_filtered(app, query, shown):
    for repo in ("acme/tiny", "acme/base", "other/tiny"):
        fill(app, files={"f": b"x"}, repo=repo)
    listed = [entry["id"] for entry in app.get(f"/api/models{query}").json]
    assert listed == (["acme/base", "acme/tiny", "other/tiny"] if shown is None else shown)


def test_an_alias_is_a_revision(own):
    fill(own, "2.0.0", {"config.json": b"new"})
    own.put("/models/acme/tiny/@production?version=1.0.0", status=201)
    for revision in ("@production", "%40production"):
        answer = own.get(f"/acme/tiny/resolve/{revision}/config.json")
        assert (answer.body, answer.headers["X-Repo-Commit"]) == (b"{}", sha_of(own, "1.0.0"))
        assert sha_of(own, revision) == sha_of(own, "1.0.0") != sha_of(own)
        assert len(own.get(f"{REPO}/tree/{revision}/onnx").json) == 2


# ---- commits


def test_paths_are_told_of_by_an_alias(own):
    own.put("/models/acme/tiny/@live?version=1.0.0")
    for alias in ("@live", "%40live"):
        (shown,) = own.post(f"{REPO}/paths-info/{alias}", {"paths": "config.json"}).json
        assert shown["lfs"]["oid"] == sha256(FILES["config.json"])
    assert own.post(f"{REPO}/paths-info/@none", status=404).headers["X-Error-Code"] == "RevisionNotFound"


def test_a_commit_depends_on_names_and_digests_alone(own, make_app):
    first = sha_of(own)
    assert COMMIT.fullmatch(first) and sha_of(make_app()) == first     # as after a restart
    own.patch_json("/models/acme/tiny/1.0.0/config.json/info", {"description": "new"})
    assert sha_of(own) == first
    seen = {first}
    for change in (lambda: put(own, "acme/tiny/1.0.0/config.json", b"{1}"),
                   lambda: put(own, "acme/tiny/1.0.0/onnx/new", b"{}"),
                   lambda: own.delete("/models/acme/tiny/1.0.0/tokenizer.json"),
                   lambda: own.delete("/models/acme/tiny/1.0.0/onnx/int8/model.onnx")):
        change()
        assert sha_of(own) not in seen
        seen.add(sha_of(own))
    fill(own, "2.0.0")
    fill(own, "1.0.0")
    assert sha_of(own, "2.0.0") not in seen       # with the same files: clients keep a folder for each
    own.delete("/models/acme/tiny/1.0.0/onnx/new")
    assert sha_of(own, "1.0.0") == first          # they are what they were


def test_a_commit_that_was_asked_for_is_repeated(own):
    commit = sha_of(own)
    fill(own, "2.0.0", {"config.json": b"[]"})
    assert sha_of(own, commit) == commit != sha_of(own)
    assert own.get(f"/acme/tiny/resolve/{commit}/config.json").headers["X-Repo-Commit"] == commit
    named = "0123456789abcdef" * 2 + "01234567"
    fill(own, named)
    assert sha_of(own, named) == named == own.head(f"/acme/tiny/resolve/{named}/config.json").headers["X-Repo-Commit"]


def test_a_download_goes_on_with_the_files_that_are_the_same_after_its_version_was_replaced(own):
    commit = sha_of(own)
    put(own, "acme/tiny/1.0.0/config.json", b"new")
    assert sha_of(own) != commit == sha_of(own, commit)
    same = own.get(f"/acme/tiny/resolve/{commit}/tokenizer.json")
    assert (same.body, same.headers["X-Repo-Commit"]) == (FILES["tokenizer.json"], commit)
    other = own.get(f"/acme/tiny/resolve/{commit}/config.json", status=404)
    assert other.headers["X-Error-Code"] == "RevisionNotFound" and "replaced" in other.json["error"]
    assert own.get(FILE).body == b"new"


def test_a_commit_of_another_repository_is_not_known(own):
    fill(own, repo="acme/other")
    commit = sha_of(own)
    put(own, "acme/other/1.0.0/config.json", b"new")
    missing = own.get(f"/acme/other/resolve/{commit}/config.json", status=404)
    assert missing.headers["X-Error-Code"] == "RevisionNotFound"
    own.delete("/models/acme/tiny?recursive=true")
    assert own.get(f"{REPO}/revision/{commit}", status=404).headers["X-Error-Code"] == "RepoNotFound"


def test_a_file_that_another_server_replaced_never_comes_under_the_old_commit(own, store):
    commit, place = sha_of(own), store.root / "acme/tiny/1.0.0/config.json"
    aside = place.with_name("aside")
    shutil.copytree(place, aside)
    (aside / "model").write_bytes(b"[]")
    described = json.loads((aside / "metadata.json").read_text())
    (aside / "metadata.json").write_text(json.dumps(described | {"sha256": sha256(b"[]")}))
    shutil.rmtree(place)
    aside.rename(place)     # which this server has not looked at since
    answer = own.get(FILE)
    assert (answer.body, answer.headers["ETag"]) == (b"[]", f'"{sha256(b"[]")}"')
    assert answer.headers["X-Repo-Commit"] == sha_of(own) != commit


def test_what_is_kept_of_old_commits_is_bounded(own, monkeypatch):
    monkeypatch.setattr("hub.snapshots.KEPT_FILES", 12)     # two versions of tiny
    commits = []
    for number in range(4):
        put(own, "acme/tiny/1.0.0/config.json", str(number).encode())
        commits.append(sha_of(own))
    found = [own.get(f"{REPO}/revision/{commit}", expect_errors=True).status_int for commit in commits]
    assert found == [404, 404, 200, 200]


# ---- errors


@pytest.mark.parametrize(("path", "code"), [
    ("/acme/tiny/resolve/main/nothing.json", "EntryNotFound"), ("/acme/tiny/resolve/main/onnx", "EntryNotFound"),
    ("/acme/tiny/resolve/main/.gitattributes", "EntryNotFound"), ("/acme/tiny/resolve/main/a%20b", "EntryNotFound"),
    ("/acme/tiny/resolve/main/..%2F..%2Fsecret", "EntryNotFound"), (f"{REPO}/tree/main/nothing", "EntryNotFound"),
    (f"{REPO}/tree/main/onnx/model.onnx", "EntryNotFound"), ("/acme/tiny/resolve/9/config.json", "RevisionNotFound"),
    ("/acme/tiny/resolve/refs%2Fpr%2F1/config.json", "RevisionNotFound"), (f"{REPO}/revision/9", "RevisionNotFound"),
    (f"{REPO}/revision/refs%2Fpr%2F1", "RevisionNotFound"), (f"{REPO}/tree/refs%2Fpr%2F1", "RevisionNotFound"),
    (f"{REPO}/revision/1.0.0%2Fx", "RevisionNotFound"), (f"{REPO}/revision/" + "0" * 40, "RevisionNotFound"),
    ("/acme/tiny/resolve/%40none/config.json", "RevisionNotFound"), ("/acme/none/resolve/main/f", "RepoNotFound"),
    ("/api/models/acme/none", "RepoNotFound"), ("/api/models/none/none/refs", "RepoNotFound"),
    ("/api/models/list/none", "RepoNotFound"), ("/api/models/acme/.none", "RepoNotFound"),
    ("/api/models/acme/none/tree/main", "RepoNotFound"), ("/.staging/locks/resolve/main/f", "RepoNotFound"),
    ("/api/models/gpt2", "RepoNotFound"), ("/api/models/gpt2/revision/main", "RepoNotFound"),
    ("/api/models/gpt2/revision/@live", "RepoNotFound"), ("/gpt2/resolve/@live/config.json", "RepoNotFound"),
    ("/acme/tiny/resolve/main/onnx//model.onnx", "EntryNotFound"), (f"{REPO}/tree/main/onnx//x", "EntryNotFound"),
    ("/acme/tiny/resolve/main/%2Fconfig.json", "EntryNotFound"), ("/acme/tiny/resolve/main//", "EntryNotFound"),
    ("/acme/tiny/resolve/main/onnx/info", "EntryNotFound"), ("/acme/tiny/resolve/main/upload", "EntryNotFound"),
    ("/acme/tiny/resolve/@live/.gitattributes", "EntryNotFound"), (f"{REPO}/tree/@live/a%20b", "EntryNotFound"),
    ("/acme/a%20b/resolve/main/onnx/model.onnx", "RepoNotFound"), ("/list/x/resolve/@live/x/y", "RepoNotFound"),
    ("/gpt2/resolve/main/config.json", "RepoNotFound"), ("/gpt2/resolve/main/onnx%2Fmodel.onnx", "RepoNotFound"),
])
def test_what_is_not_there_is_told_by_the_code_that_clients_go_by(tiny, path, code):
    for answer in (tiny.get(path, status=404), tiny.head(path, status=404)):
        assert answer.headers["X-Error-Code"] == code and answer.headers["X-Error-Message"]
    answer = tiny.get(path, status=404)
    assert answer.json["error"] == answer.json["detail"]


def test_a_file_that_is_not_there_is_told_with_the_commit_so_that_clients_need_not_ask_again(tiny):
    answer = tiny.head("/acme/tiny/resolve/main/nothing.json", status=404)
    assert answer.headers["X-Repo-Commit"] == sha_of(tiny)


def test_a_model_known_to_be_corrupt_is_refused_in_our_words(own, store):
    commit = sha_of(own)
    (store.root / "acme/tiny/1.0.0/config.json/model").write_bytes(b"[]")
    own.post("/verify/acme")
    eventually(lambda: not own.get("/verify").json["running"])
    for answer in (own.get(FILE, status=403), own.head(FILE, status=403)):
        assert answer.headers["X-Error-Code"] == "GatedRepo" and "is corrupt" in answer.headers["X-Error-Message"]
    assert own.get("/acme/tiny/resolve/main/tokenizer.json").body == FILES["tokenizer.json"]
    assert sha_of(own) == commit    # what it should be is known


@pytest.mark.parametrize(("method", "path"), [("PUT", FILE), ("POST", REPO), ("DELETE", f"{REPO}/refs")])
def test_nothing_can_be_written_this_way(tiny, method, path):
    answer = tiny.request(path, method=method, expect_errors=True, headers={"Content-Length": "0"})
    assert (answer.status_int, "GET" in answer.headers["Allow"]) == (405, True)


def test_a_message_fits_into_a_header_whatever_was_asked_for(tiny):
    answer = tiny.get("/acme/tiny/resolve/main/%E6%A8%A1%0d%0aX-Evil:%201", status=404)
    assert "X-Evil" not in answer.headers and answer.headers["X-Error-Message"].isascii()
    assert "\\u6a21" in answer.headers["X-Error-Message"]


# ---- tokens


TOKENS = [("reader", "read", "acme/tiny"), ("writer", "create,update", "*"), ("all", "read", "*")]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """guarded(name of a token or None, path): an answer from a server with tokens."""
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "tokens").write_text("".join(line(*token) for token in TOKENS))
    with Storage(directory / "models") as store:
        open_to_all = app_of(store)
        fill(open_to_all)
        fill(open_to_all, files={"f": b"x"}, repo="acme/secret")
        for repo in ("acme/tiny", "acme/secret"):
            open_to_all.put(f"/models/{repo}/@live?version=1.0.0")
        app = app_of(store, tokens_file=directory / "tokens")

        def get(name, path, **more):
            return app.get(path, headers=bearer(name) if name else {}, **more)
        yield get


PATHS = {"acme/tiny": [FILE, REPO, f"{REPO}/tree/main", f"{REPO}/tree/@live", f"{REPO}/refs"],
         "acme/secret": ["/acme/secret/resolve/main/f", "/api/models/acme/secret", "/api/models/acme/secret/refs",
                         "/acme/secret/resolve/@live/f", "/api/models/acme/secret/revision/%40live"]}


@pytest.mark.parametrize(("name", "repo", "status"), [
    ("reader", "acme/tiny", 200), ("all", "acme/secret", 200), ("reader", "acme/secret", 404),
    ("writer", "acme/tiny", 404), (None, "acme/tiny", 401), ("nobody", "acme/tiny", 401),
])
def test_a_token_opens_what_it_may_read(guarded, name, repo, status):
    for path in PATHS[repo]:
        answer = guarded(name, path, status=status)
        if status != 200:
            assert answer.headers["X-Error-Code"] == "RepoNotFound" and answer.headers["X-Error-Message"]


def test_a_token_learns_nothing_of_what_it_may_not_read(guarded):
    def told(path):
        answer = guarded("reader", path, status=404)
        return answer.status, answer.json["error"].replace("secret", "none"), answer.headers["X-Error-Code"]
    for path in PATHS["acme/secret"]:
        assert told(path) == told(path.replace("secret", "none"))
    assert [entry["id"] for entry in guarded("reader", "/api/models").json] == ["acme/tiny"]
    assert [entry["id"] for entry in guarded("all", "/api/models").json] == ["acme/secret", "acme/tiny"]


def test_whoami_tells_the_name_of_a_token(guarded, app):
    assert guarded("reader", "/api/whoami-v2").json == {"type": "user", "name": "reader", "orgs": [], "auth": {}}
    assert guarded("nobody", "/api/whoami-v2", status=401) and guarded(None, "/api/whoami-v2", status=401)
    assert app.get("/api/whoami-v2").json["name"] == "anonymous"


# ---- the documentation


def test_the_table_of_routes_in_the_documentation_is_that_of_the_room():
    page = (ROOT / "docs/hub.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z]+)` \| `(/\S+)` \|", page, re.MULTILINE)
    assert rows == [(route.method, route.path) for route in HUB.routes]
