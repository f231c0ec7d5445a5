"""The room of inspection: what its settings may be; and that the server works without it, and without the others."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from support.common import ROOT

from model_server import create_app
from server.settings import Settings


@pytest.mark.parametrize("value", [",", "onnx,", "ONNX", "onnx;gguf", "safe", " "])
def test_a_format_that_is_not_known_is_named_with_those_that_are(store, value):
    with pytest.raises(ValueError, match=r"^MODEL_ALLOWED_FORMATS has '.*': use safetensors, gguf"):
        create_app(store, Settings.from_env({"MODEL_ALLOWED_FORMATS": value}))


# What a user does in a tree without the rooms: run there by a Python of its own.
SCRIPT = """
import hashlib, sys
from pathlib import Path
import model_server
from server.settings import Settings
from storage import Storage
from webtest import TestApp

with Storage(Path(sys.argv[1])) as store:
    app = TestApp(model_server.create_app(store, Settings()), lint=False)
    url = "/models/p/a/1/m"
    put = app.request(url, method="PUT", body=b"bytes", headers={"Content-Length": "5"})
    assert put.status_int == 201 and put.json["format"] is None, put
    assert app.get(url).body == b"bytes"
    assert app.get(url + ".sha256").text.split()[0] == hashlib.sha256(b"bytes").hexdigest()
    assert app.get("/models/list").json["total_models"] == 1
    assert app.get("/models/p?format=tar", status=400).json["detail"].startswith("format 'tar' is not known")
    assert app.delete(url).json["message"] == "Model deleted successfully"
    assert app.get(url, status=404)
    for setting in ({"MODEL_PICKLE": "deny"}, {"MODEL_ALLOWED_FORMATS": "onnx"}):
        try:
            model_server.create_app(store, Settings.from_env(setting))
        except ValueError as error:
            assert "need the package inspection" in str(error)
        else:
            raise AssertionError("a setting that nobody carries out was taken")
"""


def test_without_the_rooms_and_their_lines_all_the_rest_works(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for package in ("repository", "server"):
        shutil.copytree(ROOT / package, tree / package)
    shutil.copy(ROOT / "storage.py", tree)
    door = (ROOT / "model_server.py").read_text(encoding="utf-8")
    kept = re.sub(r"^.*(inspection|folders).*\n", "", door, flags=re.MULTILINE | re.IGNORECASE)
    (tree / "model_server.py").write_text(kept)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "models")], cwd=tree,
                          env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
