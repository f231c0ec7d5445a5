"""Runs the server with one intake worker, so that the system calls of an operation always come in the same order.

It is put in front of the server's command line, and ignores its arguments.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from model_server import main
from server import uploads

assert uploads.WORKERS > 1
uploads.WORKERS = 1
main()
