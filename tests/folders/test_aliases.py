"""Aliases of versions: reading through them, moving them, what protects them, and links that are none."""

import json
import os
import re
import threading

import pytest
from support.common import sha256, staged

from repository.errors import NotEmpty
from repository.model import ModelKey

ONE, TWO = b"one", b"two!"
APP, ALIAS = "/models/p/a", "/models/p/a/@production"


@pytest.fixture
def versions(app):
    for version, data in (("1.0.0", ONE), ("2.0.0", TWO)):
        app.put(f"{APP}/{version}/m", data, status=201)
        app.put(f"{APP}/{version}/onnx/model", data * 2, status=201)
    return app


def aliases(app):
    return app.get(APP).json["aliases"]


def test_promotion_and_rollback_are_one_line_each(versions, store):
    got = versions.put(f"{ALIAS}?version=2.0.0", status=201)
    assert {name: got.json[name] for name in ("project_id", "app_name", "alias", "version")} == {
        "project_id": "p", "app_name": "a", "alias": "@production", "version": "2.0.0"}
    assert (got.headers["ETag"], got.json["url"].endswith(ALIAS)) == ('"2.0.0"', True)
    link = store.root / "p/a/@production"
    assert str(link.readlink()) == "2.0.0" and (link / "m/model").read_bytes() == TWO, "who mounts the tree has it, too"
    assert versions.get(f"{ALIAS}/m").body == TWO
    assert versions.put(f"{ALIAS}?version=1.0.0", status=200).headers["ETag"] == '"1.0.0"'
    assert versions.get(f"{ALIAS}/m").body == ONE and aliases(versions) == {"@production": "1.0.0"}
    assert versions.delete(ALIAS).json["version"] == "1.0.0"
    versions.get(f"{ALIAS}/m", status=404)
    versions.delete(ALIAS, status=404)
    assert not os.path.lexists(link) and aliases(versions) == {} and staged(store.root) == []


@pytest.mark.parametrize("path", ["", "/", "/m", "/m/info", "/m.sha256", "/onnx", "/onnx/model", "/onnx/model/info",
                                  "?format=tar", "?format=sha256sums", "/onnx?format=tar", "?limit=1"])
def test_every_way_to_read_a_version_works_through_an_alias(versions, path):
    versions.put(f"{ALIAS}?version=1.0.0", status=201)
    through, direct = versions.get(ALIAS + path), versions.get(f"{APP}/1.0.0{path}")
    assert through.body == direct.body
    headers = ("ETag", "Content-Type", "Content-Length", "Accept-Ranges", "Content-Disposition", "Link")
    assert [through.headers.get(name) for name in headers] == [direct.headers.get(name) for name in headers]
    assert through.headers["X-Model-Version"] == "1.0.0"
    assert through.headers["Content-Location"] == f"{APP}/1.0.0{path.partition('?')[0]}"
    assert "Last-Modified" not in through.headers, "it is no validator of what is another version tomorrow"
    head = versions.head(ALIAS + path).headers
    assert (head["X-Model-Version"], head["Content-Length"]) == ("1.0.0", through.headers["Content-Length"])


def test_ranges_and_conditions_work_through_an_alias(versions):
    versions.put(f"{ALIAS}?version=2.0.0")
    etag = f'"{sha256(TWO)}"'
    got = versions.get(f"{ALIAS}/m", headers={"Range": "bytes=1-", "If-Range": etag}, status=206)
    assert (got.body, got.headers["X-Model-Version"]) == (TWO[1:], "2.0.0")
    assert versions.get(f"{ALIAS}/m", headers={"If-None-Match": etag}, status=304).headers["X-Model-Version"] == "2.0.0"
    versions.get(f"{ALIAS}/m?sha256={sha256(ONE)}", status=412)


@pytest.mark.parametrize(("method", "path"), [
    *(("PUT", path) for path in ("", "?version=2.0.0", "/m", "/onnx/x")),
    ("DELETE", "/m"), ("DELETE", "/onnx?recursive=true"), ("PATCH", "/m/info"),
    *((method, "/m/upload") for method in ("GET", "PUT", "PATCH", "POST", "DELETE")),
])
def test_nothing_is_written_through_an_alias(versions, store, method, path):
    versions.put(f"{ALIAS}?version=1.0.0")
    before = sorted(store.root.rglob("*/model"))
    got = versions.request(ALIAS + path, method=method, body=b"{}", status=400)
    assert "name the version" in got.json["detail"] and sorted(store.root.rglob("*/model")) == before
    assert aliases(versions)["@production"] == "1.0.0"


@pytest.mark.parametrize(("method", "path", "allow"), [
    *(("TRACE", path, "GET, HEAD, OPTIONS") for path in ("", "/m", "/m/info")),
    *((method, "", "DELETE, GET, HEAD, OPTIONS, PUT") for method in ("PATCH", "POST")),
])
def test_a_method_that_nothing_here_has_is_405_at_an_alias_too(versions, method, path, allow):
    assert allow in versions.request(ALIAS + path, method=method, status=405).headers["Allow"]


@pytest.mark.parametrize(("path", "query", "status"), [
    ("p/a/@production", "", 400), ("p/a/@production", "?version=", 400), ("p/a/@production", "?version=../b", 400),
    ("p/a/@production", "?version=@staging", 400), ("p/a/@production", "?version=9", 404),
    ("p/a/@production", "?version=README", 404), ("p/a/@production", "?version=empty", 404),
    ("p/a/@production", "?version=latest", 404), ("p/none/@production", "?version=1.0.0", 404),
    ("p/a/@", "?version=1.0.0", 400), ("p/a/@.x", "?version=1.0.0", 400), ("p/a/@@x", "?version=1.0.0", 400),
    (f"p/a/@{'x' * 129}", "?version=1.0.0", 400), ("p/@x", "?version=1.0.0", 405),
])
def test_an_alias_points_at_a_version_that_holds_something(versions, store, path, query, status):
    (store.root / "p/a/README").write_text("notes")
    (store.root / "p/a/empty").mkdir()
    before = sorted(os.listdir(store.root / "p/a"))
    assert versions.put(f"/models/{path}{query}", status=status).json["detail"]
    assert sorted(os.listdir(store.root / "p/a")) == before and staged(store.root) == []


@pytest.mark.parametrize(("header", "value", "status"), [
    ("If-Match", '"1.0.0"', 200), ("If-Match", '"2.0.0"', 412), ("If-Match", "*", 200), ("If-None-Match", "*", 412),
    ("If-None-Match", '"2.0.0"', 200),
])
def test_conditions_decide_whether_it_is_moved(versions, header, value, status):
    versions.put(f"{ALIAS}?version=1.0.0")
    versions.put(f"{ALIAS}?version=2.0.0", headers={header: value}, status=status)
    assert aliases(versions)["@production"] == ("2.0.0" if status == 200 else "1.0.0")
    versions.delete(ALIAS, headers={"If-Match": '"9"'}, status=412)
    versions.put(f"{APP}/@new?version=1.0.0", headers={"If-Match": "*"}, status=412)
    versions.put(f"{APP}/@new?version=1.0.0", headers={"If-None-Match": "*"}, status=201)


@pytest.mark.parametrize("path", ["p/a/1.0.0", "p/a", "p"])
def test_deleting_what_an_alias_points_at_names_the_alias(versions, store, path):
    versions.put(f"{ALIAS}?version=1.0.0")
    versions.put(f"{APP}/@staging?version=2.0.0")
    got = versions.delete(f"/models/{path}?recursive=true", status=409)
    assert re.search(r"@(production|staging)", got.json["detail"]) and "aliases=true" in got.json["detail"]
    assert versions.get(f"{ALIAS}/m").body == ONE
    versions.delete(f"/models/{path}?aliases=true", status=409)
    versions.delete(f"/models/{path}?recursive=true&aliases=true")
    left = {"@staging": "2.0.0"} if path.endswith("1.0.0") else {}
    assert aliases(versions) == left and (store.root / "p").exists() == bool(left)


def test_each_route_that_tells_of_aliases_takes_them(versions):
    versions.put(f"{ALIAS}?version=1.0.0")
    names, tried = {"project_id": "p", "app_name": "a", "version": "@production"}, 0
    for path, operations in versions.get("/openapi.json").json["paths"].items():
        for method, operation in operations.items():
            fields = {each["name"]: each["schema"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            if "@" in fields.get("version", {}).get("pattern", "") and path.startswith(("/models/", "/verify/")):
                tried += 1
                name = "onnx" if "/tree/" in path else "m"      # the tree is that of a folder
                versions.request(path.format(**names, model_name=name), method=method.upper(), status=200)
    assert tried > 4


def test_aliases_are_looked_for_once_in_an_application_and_not_for_each_version(versions, store, monkeypatch):
    """Thousands of versions would each list thousands of names."""
    looks, look = [], store.aliases._listed
    monkeypatch.setattr(store.aliases, "_listed", lambda names: looks.append(names) or look(names))
    versions.delete(f"{APP}?recursive=true")
    assert looks == [("p", "a")] * 2    # before the first delete, and in it, when no alias can be made any more


def test_an_alias_that_is_made_while_its_version_is_deleted_keeps_the_last_file(versions, store):
    last = ModelKey("p", "a", "1.0.0", "onnx/model")
    versions.delete(f"{APP}/1.0.0/m")

    def meanwhile(model):
        store.aliases.point("p", "a", "@production", "1.0.0", lambda before: None)

    for _ in range(2):      # the second one knows the aliases of the application from before
        with pytest.raises(NotEmpty, match="the alias @production of p/a points at"):
            store.delete(last, meanwhile)
        assert versions.get(f"{ALIAS}/onnx/model").body == ONE * 2
        versions.delete(ALIAS)
        versions.put(f"{APP}/@other?version=2.0.0")
    versions.put(f"{APP}/1.0.0/m", ONE)
    assert store.delete(last, meanwhile).key == last, "it is not the last one any more"
    assert versions.get(f"{ALIAS}/m").body == ONE
    (store.root / "p/a/@production").unlink()       # by hand
    versions.delete(f"{APP}/1.0.0/m", status=200)


def test_the_last_file_of_a_version_is_the_version(versions):
    versions.put(f"{ALIAS}?version=1.0.0")
    versions.delete(f"{APP}/1.0.0/m")
    assert "@production" in versions.delete(f"{APP}/1.0.0/onnx/model", status=409).json["detail"]
    assert "@production" in versions.delete(f"{APP}/1.0.0/onnx?recursive=true", status=409).json["detail"]
    versions.delete(f"{APP}/1.0.0/onnx/model?aliases=true")
    assert aliases(versions) == {}


@pytest.mark.parametrize("target", ["../b/1", "/etc", "1.0.0/onnx", ".", "..", "./1.0.0", "@other", ".staging",
                                    "1.0.0/", "x" * 129, "é"])
def test_a_link_that_was_put_there_and_leads_elsewhere_is_no_alias(versions, store, target, caplog):
    (store.root / "p/a/@planted").symlink_to(target)
    for _ in range(3):
        versions.get(f"{APP}/@planted/m", status=404)
        versions.get(f"{APP}/@planted", status=404)
        versions.get(f"{APP}/@planted?format=tar", status=404)
        assert aliases(versions) == {}
    assert sum("p/a/@planted is not a link to the name" in line for line in caplog.messages) == 1
    versions.put(f"{APP}/@planted?version=1.0.0", status=201)      # which replaces it, and not what it leads to
    assert versions.get(f"{APP}/@planted/m").body == ONE


@pytest.mark.parametrize("what", ["directory", "file", "fifo"])
def test_what_is_no_link_is_no_alias(versions, store, what):
    place = store.root / "p/a/@planted"
    place.mkdir() if what == "directory" else place.write_text("1.0.0") if what == "file" else os.mkfifo(place)
    versions.get(f"{APP}/@planted/m", status=404)
    assert aliases(versions) == {}
    versions.put(f"{APP}/@planted?version=1.0.0", status=409 if what == "directory" else 201)


def test_an_alias_that_points_at_nothing_says_so(versions, store):
    (store.root / "p/a/@gone").symlink_to("3.0.0")
    assert aliases(versions) == {"@gone": "3.0.0"}
    for path in ("", "/m", "/m/info", "?format=tar"):
        assert "3.0.0, which holds nothing" in versions.get(f"{APP}/@gone{path}", status=404).json["detail"]
    versions.delete(f"{APP}/@gone")
    assert not os.path.lexists(store.root / "p/a/@gone")


def test_the_last_alias_takes_an_empty_application_with_it(versions, store):
    (store.root / "p/a/@gone").symlink_to("3.0.0")
    versions.delete("/models/p?recursive=true")
    assert os.listdir(store.root / "p/a") == ["@gone"]
    versions.delete(f"{APP}/@gone")
    assert not (store.root / "p").exists()


def test_aliases_take_the_right_to_update(store, make_app, tokens):
    lines = [f"{name}:{sha256(name.encode())}:{verbs}:{prefix}\n" for name, verbs, prefix in (
        ("all", "read,create,update,delete", "*"), ("reader", "read", "p/a"), ("mover", "update", "p/a"),
        ("creator", "create", "p/a"), ("other", "read,update", "p/b"), ("deleter", "delete,read", "p/a"))]
    app = make_app(tokens_file=tokens(*lines))
    auth = {line.partition(":")[0]: {"Authorization": f"Bearer {line.partition(':')[0]}"} for line in lines}
    app.put(f"{APP}/1/m", ONE, headers=auth["all"], status=201)
    for name, status in (("reader", 403), ("creator", 403), ("other", 403), ("deleter", 403), ("mover", 201)):
        app.put(f"{ALIAS}?version=1", headers=auth[name], status=status)
    app.put(f"{ALIAS}?version=1", status=401)
    assert app.get(f"{ALIAS}/m", headers=auth["reader"]).body == ONE
    for path in ("", "/m", "?format=tar"):
        got = app.get(ALIAS + path, headers=auth["other"], status=404)
        assert "X-Model-Version" not in got.headers
    app.delete(f"{APP}/1?recursive=true&aliases=true", headers=auth["deleter"], status=403)
    app.delete(ALIAS, headers=auth["deleter"], status=403)
    app.delete(ALIAS, headers=auth["mover"])


def test_each_change_has_a_line_in_the_audit(versions, caplog):
    caplog.set_level("INFO", "audit")
    versions.put(f"{ALIAS}?version=1.0.0")
    versions.put(f"{ALIAS}?version=2.0.0")
    versions.delete(ALIAS)
    told = [json.loads(record.getMessage()) for record in caplog.records if record.name == "audit"]
    assert [(line["verb"], line["model"], line["version"], line["status"]) for line in told] == [
        ("update", "p/a/@production", "1.0.0", 201), ("update", "p/a/@production", "2.0.0", 200),
        ("delete", "p/a/@production", "2.0.0", 200)]


@pytest.mark.parametrize(("method", "query"), [("PUT", "?version=1"), ("DELETE", "")])
def test_a_refusal_names_the_alias_and_not_a_version_of_that_name(make_app, tokens, caplog, method, query):
    caplog.set_level("INFO", "audit")
    app = make_app(tokens_file=tokens(f"reader:{sha256(b'reader')}:read:p/a\n"))
    for headers, status in (({"Authorization": "Bearer reader"}, 403), ({}, 401)):
        got = app.request(ALIAS + query, method=method, headers=headers, status=status)
        assert "p/a/@production" in got.json["detail"]
    told = [json.loads(record.getMessage()) for record in caplog.records if record.name == "audit"]
    assert [(line["model"], line["status"]) for line in told] == [("p/a/@production", 403), ("p/a/@production", 401)]


def test_of_16_clients_that_move_it_from_one_version_one_wins(versions):
    for version in range(16):
        versions.put(f"{APP}/{version}/m", b"x", status=201)
    versions.put(f"{ALIAS}?version=1.0.0")
    barrier, answers = threading.Barrier(16), []

    def move(version):
        barrier.wait()
        got = versions.put(f"{ALIAS}?version={version}", headers={"If-Match": '"1.0.0"'}, expect_errors=True)
        answers.append((got.status_int, str(version)))

    threads = [threading.Thread(target=move, args=(version,)) for version in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    winners = [version for status, version in answers if status == 200]
    assert len(winners) == 1 and sorted(status for status, _ in answers) == [200] + [412] * 15
    assert aliases(versions) == {"@production": winners[0]}


def test_options_and_other_methods_know_the_path(versions):
    assert versions.options(ALIAS, status=204).headers["Allow"] == "DELETE, GET, HEAD, OPTIONS, PUT"
    assert "aliases" not in versions.get("/models/p").json and "aliases" not in versions.get(f"{APP}/1.0.0").json
