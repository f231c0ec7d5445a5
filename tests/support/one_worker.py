"""Runs the server with one intake worker, so that the system calls of an operation come in the same order each time.

A prefix of its command line: what comes after this file's name is ignored.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from model_server import main
from server.uploads import WORKERS

assert WORKERS > 1
WORKERS = 1
main()
