"""A server process that exits by itself."""

import os
import subprocess
import sys

from support.common import ROOT


def run_to_its_end(tmp_path, **env):
    settings = {"MODEL_STORAGE_PATH": str(tmp_path / "models"), "SERVER_HOST": "127.0.0.1", "SERVER_PORT": "0", **env}
    return subprocess.run([sys.executable, str(ROOT / "model_server.py")], env={**os.environ, **settings}, cwd=tmp_path,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30)
