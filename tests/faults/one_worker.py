"""Runs the server with one intake worker, so that the system calls of an operation come in the same order each time.

A prefix of its command line: what comes after this file's name is ignored.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import model_server
import uploads

assert uploads.WORKERS > 1
uploads.WORKERS = 1
model_server.main()
