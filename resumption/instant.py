"""Uploads that need no bytes, because the store has them under another name: a clone of the file, or a hard link."""

import fcntl
import os
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

from repository import filesystem
from repository.directories import Directory
from repository.drafts import StagedModel
from repository.errors import StoreError
from repository.model import ModelKey, Names
from storage import Draft, Storage

FICLONE = 0x40049409    # ioctl_ficlone(2)
SHARE = 4               # seconds of rest for each second of work, when many models are learnt at once
LISTED = 0.05           # seconds of rest in addition while a long list is made, which would take twice as long
STALE = 1000            # hints that may be out of date, beside as many as there are models
CANDIDATES = 100        # models with the same digest that are looked at for one that the caller may read
BUCKETS = 1024          # an insertion moves what is behind it: 0.4 ms among a million, next to nothing among a thousand


class Bucket:
    """Models by a part of their digests, 24 bytes for each."""

    def __init__(self) -> None:
        self._digests = array("Q")      # in order; the model of each is at the same place in these
        self._places: list[Names] = []
        self._names: list[str] = []

    def models(self, digest: int) -> list[tuple[Names, str]]:
        """At most CANDIDATES of those that have this one."""
        first = bisect_left(self._digests, digest)
        end = bisect_right(self._digests, digest, first, min(len(self._digests), first + CANDIDATES))
        return list(zip(self._places[first:end], self._names[first:end], strict=True))

    def add(self, digest: int, place: Names, name: str) -> None:
        number = bisect_left(self._digests, digest)
        self._digests.insert(number, digest)
        self._places.insert(number, place)
        self._names.insert(number, name)


class Hints:
    """Where models of a digest probably are. What it says has to be checked."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._clear()
        self._new = deque[tuple[Names, list[str]]]()
        self.changed = threading.Event()
        store.index.seen = self.note

    def _clear(self) -> None:
        self._buckets, self._count = [Bucket() for _ in range(BUCKETS)], 0

    def note(self, place: Names, names: list[str]) -> None:
        """Models that may be new, or have changed; learn() looks at them."""
        if names:
            self._new.append((place, names))
            self.changed.set()

    def learn(self, stopping: Callable[[], bool]) -> None:
        """Looks at what is new, at a low rate if that is much."""
        self.changed.clear()
        while self._new and not stopping():
            place, names = self._new.popleft()
            for name in names:
                begun = time.monotonic()
                with suppress(StoreError):
                    model = self._store.find(ModelKey.at((*place, name)), keep=False)
                    if model and model.sha256:
                        self._add(model.sha256, place, name)
                if len(names) > 1 or self._new:
                    time.sleep(SHARE * (time.monotonic() - begun) + LISTED * self._store.index.is_listed())
        # the first comparison spares the index a look at the whole tree right after the start
        if self._count > STALE and self._count > 2 * self._store.index.total(at_most=3600).models + STALE:
            with self._lock:
                self._clear()
            for place, names in self._store.index.known():
                self.note(place, names)

    def _add(self, sha256: str, place: Names, name: str) -> None:
        digest = int(sha256[:16], 16)
        with self._lock:
            bucket = self._buckets[digest % BUCKETS]
            if (place, name) not in bucket.models(digest):
                bucket.add(digest, place, name)
                self._count += 1

    def find(self, sha256: str) -> Iterator[ModelKey]:
        """Models that may have this digest."""
        digest = int(sha256[:16], 16)
        with self._lock:
            found = self._buckets[digest % BUCKETS].models(digest)
        for place, name in found:
            yield ModelKey.at((*place, name))


def borrow(store: Storage, source: ModelKey, sha256: str, target: ModelKey) -> Draft | None:
    """A draft for `target` with the bytes of another model, or of the same one.

    None if that is corrupt or has other bytes by now, or if the file system can neither clone nor link its file.
    """
    with suppress(StoreError, OSError):
        opened, name = store.open(source), store.staging.new_name()
        with opened.file as file, store.staging.session() as session, ExitStack() as undo:
            if opened.model.sha256 != sha256 or opened.model.corrupt:
                return None
            session.mkdir(name)
            undo.callback(session.remove, name)
            directory = session.open(name)
            undo.callback(directory.close)
            shared = filesystem.NewFile(share(file.fileno(), directory, store.group_at(target)))
            undo.callback(os.close, shared.descriptor)
            unchanged = filesystem.stamp_of(os.fstat(file.fileno())) == opened.model.stamp
            if unchanged and may_become(store, target, os.fstat(shared.descriptor).st_mtime_ns):
                undo.pop_all()
                return Draft(store, name, StagedModel(directory, shared))
    return None


def may_become(store: Storage, target: ModelKey, mtime_ns: int) -> bool:
    """Whether a shared file of this time may replace what is there.

    Last-Modified must not go back, which that of a link may. What is corrupt needs bytes from elsewhere: the other
    model may share its damaged file.
    """
    current = store.find(target)
    return current is None or (current.mtime_ns <= mtime_ns and not current.corrupt)


def share(file: int, directory: Directory, group: int | None) -> int:
    """The descriptor of a clone of an open file in this directory, or of a link to it; raises OSError."""
    descriptor = directory.create(filesystem.MODEL)
    try:
        fcntl.ioctl(descriptor, FICLONE, file)
        return descriptor
    except OSError:
        os.close(descriptor)
        directory.unlink(filesystem.MODEL)
    if group not in (None, os.fstat(file).st_gid):
        raise PermissionError("both names of a file have one group, and the other project needs another")
    os.link(f"/proc/self/fd/{file}", filesystem.MODEL, dst_dir_fd=directory.descriptor)
    return os.open(filesystem.MODEL, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.descriptor)
