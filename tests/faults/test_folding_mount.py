"""A storage, or a project, on a file system that folds case, as macOS, vfat and ext4 with casefold do."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import requests
from support.common import ROOT, eventually, sha256

pytestmark = pytest.mark.needs("a file system in user space")
PATHS = ["/models/SECRET/app/1/base", "/models/secret/App/1/base", "/models/secret/app/1/Base"]
MINE = "/models/secret/app/1/base"


@contextmanager
def folding(directory, point):
    """`directory` mounted at `point`, folded."""
    directory.mkdir(parents=True, exist_ok=True)
    point.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, ROOT / "tests/support/folding_mount.py", directory, point]) as process:
        try:
            eventually(lambda: os.path.ismount(point))
            yield point
        finally:
            subprocess.run(["umount", "--lazy", point], check=True)     # a test that failed has not ended its server
            process.terminate()


@pytest.fixture
def storage(tmp_path):
    with folding(tmp_path / "disk", tmp_path / "models") as point:
        yield point


@pytest.mark.parametrize("path", PATHS)
def test_another_spelling_is_404_to_read_and_409_to_write(start, storage, path):
    server = start(storage=storage)
    assert requests.put(server.url + MINE, data=b"mine").status_code == 201
    for suffix in ("", "/info", ".sha256"):
        assert requests.get(server.url + path + suffix).status_code == 404
    answers = [requests.put(server.url + path, data=b"other"), requests.delete(server.url + path),
               requests.patch(server.url + path + "/info", json={"description": "x"})]
    assert [(answer.status_code, "another spelling" in answer.json()["detail"]) for answer in answers] == [(409, True)] * 3
    assert requests.get(server.url + MINE).content == b"mine"
    assert requests.put(server.url + MINE, data=b"again").status_code == 200
    assert requests.get(server.url + "/models/list").json()["total_models"] == 1
    server.wait_for_log("differ only in case")
    server.stop()


def test_a_token_for_one_spelling_reads_no_other(start, storage, tokens):
    line = f"eve:{sha256(b'token')}:read,create,update,delete:SECRET\nann:{sha256(b'mine')}:create:secret\n"
    server = start(storage=storage, MODEL_TOKENS_FILE=str(tokens(line)))
    assert requests.put(server.url + MINE, data=b"mine", auth=("ann", "mine")).status_code == 201
    for path in (PATHS[0], PATHS[0] + "/info", PATHS[0] + ".sha256"):
        assert requests.get(server.url + path, auth=("eve", "token")).status_code == 404
    assert requests.put(server.url + PATHS[0], data=b"x", auth=("eve", "token")).status_code == 409
    assert requests.get(f"{server.url}/models/SECRET", auth=("eve", "token")).json()["total_models"] == 0
    server.stop()


def test_a_project_on_such_a_mount_is_read_by_its_own_names_alone(start, tmp_path):
    model = tmp_path / "disk" / "app" / "1" / "base"
    model.mkdir(parents=True)
    (model / "model").write_bytes(b"mine")
    with folding(tmp_path / "disk", tmp_path / "models" / "secret"):
        server = start()
        assert [requests.get(server.url + path).status_code for path in (MINE, *PATHS)] == [200, 404, 404, 404]
        server.wait_for_log("the file system of secret takes names")
        server.stop()
