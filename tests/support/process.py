"""A server process that exits by itself."""

import os
import subprocess
import sys

from support.common import ROOT

# a prefix with which root, too, cannot enter every directory
NOT_ALMIGHTY = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def run_to_its_end(tmp_path, *prefix, **env):
    settings = {"MODEL_STORAGE_PATH": str(tmp_path / "models"), "SERVER_HOST": "127.0.0.1", "SERVER_PORT": "0", **env}
    return subprocess.run([*prefix, sys.executable, str(ROOT / "model_server.py")], env={**os.environ, **settings},
                          cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30)
