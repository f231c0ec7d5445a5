"""The server's own directory, `.staging`: what is under way, locks, and marks of corrupt models.

    .staging/{session}/, {session}.lock     drafts of one process, and the lock that it holds while it lives
    .staging/start.lock, locks/             one start at a time, one change of a model at a time
    .staging/replaced/{p}/{a}/{v}/{m}/      old versions while a file system without exchange replaces them
    .staging/corrupt/{p}/{a}/{v}/{m}/       an empty directory for each model that is known to be corrupt

Others may write there too, so it is walked like the models: a link or a file in place of a directory is refused.
"""

import fcntl
import itertools
import logging
import os
import re
import secrets
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from repository import filesystem
from repository.directories import DIRECTORY, Directory, Tree
from repository.errors import InvalidName, Obstructed
from repository.model import NAME, NAME_FIELDS, ModelKey

log = logging.getLogger("model_server.staging")
STAGING = ".staging"    # a name may not begin with a dot, so no model can be called this
LOCKED, REPLACED, CORRUPT = "locks", "replaced", "corrupt"
START = "start.lock"
SESSION = re.compile("[0-9a-f]{16}")
LOCKS = 64              # stripes over all models: more than threads, few enough to be made at start
MAX_TOLD = 100          # things among the marks that the log tells of; more were put there to fill it


class Staging:
    """The server's own directory in a tree; what is missing in it is made when it is needed, also a second time."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._session = secrets.token_hex(8)
        self._lock: int | None = None   # of the session
        self._claiming = threading.Lock()
        self._numbers = itertools.count()
        self._told: set[str] = set()

    def at(self, *names: str, create: bool = False) -> Directory:
        """One of its directories; raises Obstructed where something else stands there or on the way."""
        with own_place():
            return self._tree.walk(STAGING, *names, create=create)

    def session(self, *names: str) -> Directory:
        """The directory of what this process has under way, or one in it."""
        self.claim()
        return self.at(self._session, *names)

    def claim(self) -> bool:
        """Takes a session unless this process has one; whether it did, so that there may be something to mend."""
        with self._claiming:
            missing = not self._is_claimed()
            if missing:
                self._claim()
        return missing

    def new_name(self) -> str:
        """A name in session() that was never used."""
        return str(next(self._numbers))

    def _is_claimed(self) -> bool:
        """Whether the session is there, with the lock that this process holds: somebody may have tidied up."""
        try:
            with self.at() as staging:
                there = staging.kind(self._session) is not None
                return there and self._lock is not None and staging.has(f"{self._session}.lock", self._lock)
        except FileNotFoundError:
            return False

    def _claim(self) -> None:
        """Makes what is missing, removes what the dead left, and takes a session."""
        with self.at(LOCKED, create=True) as locks, own_place():
            for stripe in range(LOCKS):     # all now: a delete must find its lock on a full disk
                os.close(locks.open_lock(f"{stripe:02}"))
        with self.at() as staging, self._tree.reach() as top, own_place():
            if staging.mount() != top.mount():
                raise Obstructed(f"{staging.place} is a mount of its own, from which no model can be moved: unmount it")
            starting = staging.lock(START)
            try:
                self._remove_orphans(staging)
                if self._lock is None or not staging.has(f"{self._session}.lock", self._lock):
                    # flock, not a pid file: a container restarts with the same pid
                    lock = staging.lock(f"{self._session}.lock")
                    self._release()
                    self._lock = lock
                if staging.kind(self._session) is None:
                    staging.mkdir(self._session)
            finally:
                os.close(starting)
        self._take_over_marks()
        self._tree.clear(STAGING, CORRUPT, levels=len(NAME_FIELDS) - 1)     # of a mark that was not finished

    def close(self) -> None:
        """Gives the session back; drafts still open are gone."""
        if self._lock is not None:
            with suppress(OSError, Obstructed), self.at() as staging:   # or else the next start removes it
                staging.unlink(f"{self._session}.lock")
                staging.remove(self._session)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _remove_orphans(self, staging: Directory) -> None:
        sessions = {name.removesuffix(".lock") for name in staging.names()} - {self._session}
        for session in filter(SESSION.fullmatch, sessions):
            with suppress(BlockingIOError):     # its process lives
                lock = staging.lock(f"{session}.lock", fcntl.LOCK_NB)
                staging.remove(session)
                staging.unlink(f"{session}.lock")
                os.close(lock)

    def probe(self) -> None:
        """Raises StorageFailed or OSError unless changes find what they need and a file can be written."""
        with self.session() as session, self.at() as staging:
            for name in (LOCKED, REPLACED, CORRUPT):
                if staging.kind(name) not in (None, DIRECTORY):
                    self.at(name)   # which tells what it is
            name = f"probe-{self.new_name()}"
            try:
                with open(session.create(name), "wb") as file:
                    file.write(b"x")
            finally:
                session.unlink(name)

    @contextmanager
    def locked(self, key: ModelKey) -> Iterator[None]:
        """Excludes all others, in every process, that change this model."""
        # a model and the one at the URL of its digest share theirs: each is made only after a look for the other
        stripe = zlib.crc32(re.sub(r"(\.sha256)+$", "", str(key)).encode()) % LOCKS
        with self.at(LOCKED, create=True) as locks, own_place():
            lock = locks.lock(f"{stripe:02}")
        try:
            yield
        finally:
            os.close(lock)

    # ---- marks of corrupt models

    def mark(self, key: ModelKey) -> None:
        """Marks a model as corrupt, on disk when this returns."""
        with self.at(CORRUPT, *key.names, create=True) as mark:
            mark.sync()

    def is_marked(self, key: ModelKey) -> bool:
        """Whether there is a mark, which may be wrong: for where nothing else tells."""
        try:
            self.at(CORRUPT, *key.names).close()
        except FileNotFoundError:
            return False
        return True

    def unmark(self, key: ModelKey) -> None:
        self._tree.prune(STAGING, CORRUPT, *key.names)

    def marked(self) -> Iterator[ModelKey]:
        """The models that are marked, in order; what is no mark is skipped, and told of once."""
        with suppress(FileNotFoundError, Obstructed), self.at(CORRUPT) as marks:     # the latter is for probe()
            for name in marks.names():
                if name not in self._told and len(self._told) < MAX_TOLD and not (
                        NAME.fullmatch(name) and marks.kind(name) in (None, DIRECTORY)):
                    self._told.add(name)
                    log.warning("%s/%s is %s and no mark of a corrupt model: remove it", marks.place, name,
                                marks.kind(name))
        for names in self._tree.scan((STAGING, CORRUPT)):
            yield ModelKey(*names)

    def _take_over_marks(self) -> None:
        """Makes marks of what they were before: dangling links to the names of a model, each under a digest of them."""
        with suppress(FileNotFoundError), self.at(CORRUPT) as marks:
            for name in marks.names():
                with suppress(OSError, InvalidName):    # it is no link, or not to a model: marked() tells of it
                    names = os.readlink(name, dir_fd=marks.descriptor).split("/")
                    if len(names) == len(NAME_FIELDS):
                        self.mark(ModelKey(*names))
                        marks.unlink(name)


@contextmanager
def own_place() -> Iterator[None]:
    """Turns what stands in the way of the server's own files into the store's words."""
    try:
        yield
    except filesystem.InTheWay as error:
        raise Obstructed(f"{error.strerror}. This server keeps its own files there and follows no link: "
                         "find out what put it there, and remove it") from error
