"""The product without some of its optional rooms, and what a user does there."""

import os
import re
import shutil
import subprocess
import sys

from support.common import ROOT

# Run there by a Python of its own; what is to be seen of the rooms that are missing follows it.
BEGIN = """
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
    assert put.status_int == 201, put
    assert app.get(url).body == b"bytes"
    assert app.get(url + ".sha256").text.split()[0] == hashlib.sha256(b"bytes").hexdigest()
    assert app.get("/models/list").json["total_models"] == 1
    assert app.delete(url).json["message"] == "Model deleted successfully"
    assert app.get(url, status=404)
"""


def works_without(directory, script, *rooms):
    """Copies the product without these packages and without the lines of model_server.py that name them; uses that."""
    tree = directory / "tree"
    for package in {path.parent.name for path in ROOT.glob("*/__init__.py")}.difference({"tests"}, rooms):
        shutil.copytree(ROOT / package, tree / package)
    shutil.copy(ROOT / "storage.py", tree)
    named = rf"^(from ({'|'.join(rooms)})\..*|    ({'|'.join(rooms)}),)\n"
    door = (ROOT / "model_server.py").read_text(encoding="utf-8")
    (tree / "model_server.py").write_text(re.sub(named, "", door, flags=re.MULTILINE | re.IGNORECASE))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BEGIN + script, str(directory / "models")], cwd=tree,
                          env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
