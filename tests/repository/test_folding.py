"""File systems that fold case, by a stand-in: what is planted under one name is listed in another spelling.

tests/faults/test_folding_mount.py has a real one.
"""

import os

import pytest
from support.common import app_of, sha256

from repository.folding import Folding

MINE = "/models/secret/app/1.0.0/baseline"
# what is on the disk as on the left is found under the names on the right, and called otherwise
SPELLINGS = ["/models/SECRET/app/1.0.0/baseline", "/models/secret/App/1.0.0/baseline",
             "/models/secret/app/1.0.0/Baseline"]


class Lowered(Folding):
    """Lists all names in lower case, and so finds each under a spelling that no directory lists."""

    def listed(self, directory):
        return [name.lower() for name in super().listed(directory)]

    def evidence(self, directory):
        return True


@pytest.fixture
def folded(store):
    """folded(path) plants a model there, which is in lower case to all that list it."""
    app = app_of(store)

    def plant(path):
        assert app.put(path, b"mine").status_int == 201
        store._tree.folding = Lowered()
        return app

    return plant


@pytest.mark.parametrize("path", SPELLINGS)
def test_what_is_there_in_another_spelling_is_404_to_read_and_409_to_write(folded, path):
    app = folded(path)
    for suffix in ("", "/info", ".sha256"):
        assert app.get(path + suffix, status=404).json["detail"].startswith("there is no model")
    for send in (lambda: app.put(path, b"other", status=409), lambda: app.delete(path, status=409),
                 lambda: app.patch_json(path + "/info", {"description": "x"}, status=409)):
        assert "another spelling" in send().json["detail"]


@pytest.mark.parametrize("path", [MINE, "/models/secret/app/1.0.0/other", "/models/new/App/1.0.0/m"])
def test_names_as_they_are_listed_are_as_everywhere(folded, path):
    app = folded(MINE)
    if path == "/models/new/App/1.0.0/m":
        path = path.lower()
    assert app.put(path, b"again").status_int in (200, 201)
    assert app.get(path).body == b"again"
    assert app.delete(path).status_int == 200


def test_a_token_for_one_spelling_reads_no_other(store, tokens):
    token = "amr_token"
    digest = sha256(token.encode())
    plain = app_of(store)
    plain.put(SPELLINGS[0], b"mine")
    store._tree.folding = Lowered()
    app = app_of(store, tokens_file=tokens(f"eve:{digest}:read,delete:SECRET\n"))
    eve = {"Authorization": f"Bearer {token}"}
    for path in (SPELLINGS[0], SPELLINGS[0] + "/info", SPELLINGS[0] + ".sha256"):
        app.get(path, headers=eve, status=404)
    assert app.get("/models/SECRET", headers=eve).json["total_models"] == 0
    app.delete("/models/SECRET?recursive=true", headers=eve, status=404)


def test_where_nothing_folds_a_directory_is_tried_once_and_no_names_are_compared(store, tmp_path):
    class Counted(Folding):
        asked = 0

        def listed(self, directory):
            self.asked += 1
            return super().listed(directory)

    app = app_of(store)
    app.put(MINE, b"mine")
    store._tree.folding = counted = Counted()
    for _ in range(50):
        app.get(MINE)
        app.get(MINE + "/info")
    assert counted.asked <= 4       # the top, the project, and .staging with what is in it
    assert counted._known and not any(folds for _, folds in counted._known.values())


def test_it_is_told_at_the_first_look(folded, caplog):
    folded(SPELLINGS[0]).get(SPELLINGS[0], status=404)
    lines = [record.getMessage() for record in caplog.records if record.name == "model_server.folding"]
    assert lines == ["the file system of the storage takes names that differ only in case for the same: of two such "
                     "names the second is refused"]


# ---- links


def test_a_project_that_is_a_link_is_told_of_once(app, store, tmp_path, caplog):
    (tmp_path / "elsewhere" / "app" / "1" / "m").mkdir(parents=True)
    (tmp_path / "elsewhere" / "app" / "1" / "m" / "model").write_bytes(b"x")
    app.put(MINE, b"mine")
    (store.root / "linked").symlink_to(tmp_path / "elsewhere")
    (store.root / "secret" / "link").symlink_to(tmp_path / "elsewhere")
    (store.root / ".hidden").symlink_to(tmp_path)
    for _ in range(3):
        os.utime(store.root)
        store.index.forget(("secret", "app", "1.0.0", "baseline"))
        assert app.get("/models/list").json["total_models"] == 1
        assert len(list(store.keys())) == 1
    told = [record.getMessage() for record in caplog.records if "symbolic link" in record.getMessage()]
    assert [line.partition(" ")[0] for line in told] == ["linked", "secret/link"]
    assert "mount" in told[0]
