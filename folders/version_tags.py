"""The ETag of a version as each of its files tells it, so that a client can ask for all of them under one condition."""

import threading
from math import inf
from typing import NamedTuple

from folders.download import Entry, entries_of, entry_of, etag_of_all
from repository.model import VERSION_DEPTH, Model, Names
from server.request import Request
from storage import Storage

LARGE = 1000        # files; with more, it is computed only if a client asks for it, which takes 10 ms or longer
KEPT = 100_000      # files of all versions whose ETags are kept, some 40 MiB


class Tagged(NamedTuple):
    """The ETag of a version with these files; the index had this fingerprint of it before."""

    fingerprint: int
    etag: str
    entries: dict[Names, Entry]


class VersionTags:
    """The ETags of versions in one server, kept while the index says that no file has changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Names, Tagged] = {}

    def of(self, store: Storage, version: Names) -> Tagged:
        fingerprint = store.index.fingerprint(version)
        kept = self._kept.get(version)
        if kept and kept.fingerprint == fingerprint:
            return kept
        entries = list(entries_of(store, store.lines(version), corrupt_too=True))
        tagged = Tagged(fingerprint, etag_of_all(entries, VERSION_DEPTH), {entry.names: entry for entry in entries})
        with self._lock:
            if sum(len(each.entries) for each in self._kept.values()) + len(entries) > KEPT:
                self._kept.clear()
            self._kept[version] = tagged
        return tagged

    def forget(self, version: Names) -> None:
        with self._lock:
            self._kept.pop(version, None)


def version_tag(request: Request, store: Storage, model: Model) -> str | None:
    """The ETag of the tar of a version that has this very model; None for large versions, unless If-Match is there.

    The index may not know yet what another server did. So the model has to be one of the files that the ETag is made
    of, or it is weak and no condition: two files with one ETag are never of two states of a version.
    """
    version = model.key.names[:VERSION_DEPTH]
    if store.index.total(version, at_most=inf).models > LARGE and not request.header("If-Match"):
        return None
    tags = request.services.of(VersionTags)
    for _ in range(2):
        tagged = tags.of(store, version)
        if tagged.entries.get(model.key.names) == entry_of(model):
            return tagged.etag
        store.index.forget(model.key.names)
        tags.forget(version)
    return f'W/{tagged.etag.removeprefix("W/")}'    # it was replaced since the model was opened
