"""Helpers for tests of every kind."""

import hashlib
import os
import time
from contextlib import contextmanager
from pathlib import Path

from support.told import TestApp

from model_server import create_app
from server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def app_of(store, **settings):
    """The application under WebTest, with settings of the test's choice."""
    return TestApp(create_app(store, Settings(**settings)), lint=False)


@contextmanager
def drafting(store):
    """A draft of the store, discarded at the end of the `with`."""
    draft = store.draft()
    try:
        yield draft
    finally:
        draft.discard()


def staged(root):
    """What drafts left below .staging: everything except the locks and the sessions' own (empty) directories."""
    found = []
    for place, directories, names in os.walk(Path(root) / ".staging"):     # entries may vanish meanwhile
        inside = [str((Path(place) / name).relative_to(Path(root) / ".staging")) for name in directories + names]
        found += [path for path in inside if "/" in path and not path.startswith("locks/")]
    return found


def eventually(condition, what="it"):
    """Waits until the condition holds, and returns its value; fails after 30 seconds, naming `what` it waited for."""
    deadline = time.monotonic() + 30
    while not (given := condition()):
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.003)
    return given


def sparse(path, size):
    """A file of this size that takes no room and of which no two MiB are the same."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, 1 << 20):
            file.seek(offset)
            file.write(offset.to_bytes(8, "big") + b"mark")
    return path
