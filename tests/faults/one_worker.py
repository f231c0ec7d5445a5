"""Runs the server with one intake worker, so that the system calls of an operation come in the same order each time.

A prefix of its command line: what comes after this file's name is ignored.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import lanes
import model_server

assert lanes.WORKERS > 1
lanes.WORKERS = 1
model_server.main()
