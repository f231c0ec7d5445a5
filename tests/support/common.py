"""What the tests of every kind share."""

import hashlib
import os
import time
import warnings
from pathlib import Path

with warnings.catch_warnings():     # WebOb imports cgi, which Python 3.11 calls deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from webtest import TestApp  # noqa: F401  for the tests to import from here

ROOT = Path(__file__).resolve().parents[2]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def staged(root):
    """What is left of drafts below .staging: everything but the locks and the sessions' own (empty) directories."""
    found = []
    for place, directories, names in os.walk(Path(root) / ".staging"):     # which takes what vanishes meanwhile
        inside = [str((Path(place) / name).relative_to(Path(root) / ".staging")) for name in directories + names]
        found += [path for path in inside if "/" in path and not path.startswith("locks/")]
    return found


def eventually(condition):
    """Waits until the condition holds, and gives what it gave; so many seconds mean never."""
    deadline = time.monotonic() + 30
    while not (given := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.003)
    return given
