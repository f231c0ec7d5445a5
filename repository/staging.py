"""The server's own directory, `.staging`: drafts, locks, and marks of corrupt models.

    .staging/{session}/, {session}.lock     the drafts of one process, and a lock that it holds while it lives
    .staging/uploads/, uploads.lock         unfinished uploads that outlive a process: see resumption/shelf.py
    .staging/index                          what was known of the tree: see repository/indexed.py; it may be missing
    .staging/start.lock, locks/             allow one start, one change of a model, one of an alias, at a time
    .staging/replaced/{p}/{a}/{v}/{m…}/     old models, while they are replaced without an atomic exchange
    .staging/replaced-versions/{p}/{a}/{v}/ the same for whole versions
    .staging/corrupt/{p}/{a}/{v}/{m…}/      an empty directory for each model that is known to be corrupt

Other programs can write there, too. So it is walked like the tree of models, and a link or a file in place of a
directory is refused.
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
from contextlib import ExitStack, contextmanager, suppress

from repository import filesystem
from repository.directories import DIRECTORY, Directory, Tree
from repository.errors import InvalidName, Obstructed
from repository.model import NAME, VERSION_DEPTH, ModelKey, Names

log = logging.getLogger("model_server.staging")
STAGING = ".staging"    # names cannot begin with a dot, so no project has this name
LOCKED, REPLACED, REPLACED_VERSIONS, CORRUPT = "locks", "replaced", "replaced-versions", "corrupt"
START = "start.lock"
SESSION = re.compile("[0-9a-f]{16}")
ALIASES = "aliases"     # their lock
INDEX = "index"
MAX_BLOCK = 64 << 20    # bytes of a block of it, which is longer only if it is damaged
LOCKS = 64              # lock files that all models share: more than threads, few enough to be created at startup
VERSION_LOCKS = 16      # lock files that all versions share: they matter only where a whole version is replaced
LOCK_NAMES = [f"{stripe:02}" for stripe in range(LOCKS)]
VERSION_LOCK_NAMES = [f"version-{stripe:02}" for stripe in range(VERSION_LOCKS)]
MAX_TOLD = 100          # foreign entries among the marks that are logged; more would only fill the log


class Staging:
    """The server's own directory in a tree. What is missing in it is created when it is needed."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._session = secrets.token_hex(8)
        self._lock: int | None = None   # the descriptor of the session's lock
        self._claiming = threading.Lock()
        self._numbers = itertools.count()
        self._told: set[str] = set()

    def at(self, *names: str, create: bool = False) -> Directory:
        """Opens one of its directories; raises FileNotFoundError, or Obstructed if it is something else."""
        with as_obstructed():
            return self._tree.walk(STAGING, *names, create=create)

    def session(self, *names: str) -> Directory:
        """Opens the directory of this process's drafts, or one in it."""
        self.claim()
        return self.at(self._session, *names)

    def claim(self) -> bool:
        """Creates a session unless this process has one; returns whether it did, so that repairs may be needed."""
        with self._claiming:
            missing = not self._is_claimed()
            if missing:
                self._claim()
        return missing

    def new_name(self) -> str:
        """An unused name in session()."""
        return str(next(self._numbers))

    def _is_claimed(self) -> bool:
        """Whether the session still exists, and its lock is the one that this process holds."""
        try:
            with self.at() as staging:
                there = staging.kind(self._session) is not None
                return there and self._lock is not None and staging.has(f"{self._session}.lock", self._lock)
        except FileNotFoundError:
            return False

    def _claim(self) -> None:
        """Creates what is missing, removes what dead processes left behind, and creates a session."""
        with self.at(LOCKED, create=True) as locks, as_obstructed():
            # all of them now, because deleting must work on a full disk
            for name in (*LOCK_NAMES, *VERSION_LOCK_NAMES, ALIASES):
                os.close(locks.open_lock(name))
        with self.at() as staging, self._tree.reach() as top, as_obstructed():
            if staging.mount() != top.mount():
                raise Obstructed(f"{staging.place} is a mount of its own: unmount it, models cannot be moved from it")
            starting = staging.lock(START)
            try:
                self._remove_orphans(staging)
                if self._lock is None or not staging.has(f"{self._session}.lock", self._lock):
                    # flock, not a pid file: after a restart, a container has the same pid
                    lock = staging.lock(f"{self._session}.lock")
                    self._release()
                    self._lock = lock
                if staging.kind(self._session) is None:
                    staging.mkdir(self._session)
            finally:
                os.close(starting)
        self._take_over_marks()
        self._tree.clear(STAGING, CORRUPT, levels=VERSION_DEPTH)     # left by a mark that was not completed

    def close(self) -> None:
        """Removes the session, with any drafts still open."""
        if self._lock is not None:
            with suppress(OSError, Obstructed), self.at() as staging:   # otherwise the next start removes it
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
            with suppress(BlockingIOError):     # its process is alive
                lock = staging.lock(f"{session}.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
                staging.remove(session)
                staging.unlink(f"{session}.lock")
                os.close(lock)

    def probe(self) -> None:
        """Raises Obstructed or OSError unless a file can be written and nothing is in the way of a change."""
        with self.session() as session, self.at() as staging:
            for name in (LOCKED, REPLACED, REPLACED_VERSIONS, CORRUPT):
                if staging.kind(name) not in (None, DIRECTORY):
                    self.at(name)   # raises, naming what it is
            name = f"probe-{self.new_name()}"
            try:
                with open(session.create(name), "wb") as file:
                    file.write(b"x")
            finally:
                session.unlink(name)

    def check_names(self, *names: str) -> None:
        """Raises OtherName if what is found at these names in session() is spelled differently."""
        self._tree.check_names(STAGING, self._session, *names)

    @contextmanager
    def locked(self, names: Names) -> Iterator[None]:
        """Holds the lock of a model or of a whole version, which excludes other threads and other processes.

        Models share a lock if one of them may be where the other needs a folder: all below one name in a version. So do
        a model and one named like its digest. Whether one may be created depends on whether the other exists.
        """
        version, first = "/".join(names[:VERSION_DEPTH]), "/".join(names[: VERSION_DEPTH + 1])
        whole = len(names) == VERSION_DEPTH     # changes of single models exclude only that of the whole version
        with ExitStack() as held, self.at(LOCKED, create=True) as locks, as_obstructed():
            name = VERSION_LOCK_NAMES[zlib.crc32(version.encode()) % VERSION_LOCKS]
            held.callback(os.close, locks.lock(name, fcntl.LOCK_EX if whole else fcntl.LOCK_SH))
            if not whole:
                name = LOCK_NAMES[zlib.crc32(re.sub(r"(\.sha256)+$", "", first).encode()) % LOCKS]
                held.callback(os.close, locks.lock(name))
            kept = held.pop_all()
        with kept:
            yield

    @contextmanager
    def locked_aliases(self) -> Iterator[int]:
        """Holds the lock of all aliases; yields its descriptor. The holder must not wait for the lock of a model."""
        with self.at(LOCKED, create=True) as locks, as_obstructed():
            lock = locks.lock(ALIASES, access=os.O_RDWR)
        try:
            yield lock
        finally:
            os.close(lock)

    # ---- what the index knew

    def recall_index(self) -> Iterator[bytes]:
        """The blocks that keep_index() was given last, by whichever process, up to the first that is not complete."""
        with suppress(OSError, Obstructed), self.at() as staging, \
                filesystem.open_regular(INDEX, staging.descriptor) as file:
            while 0 < (size := int.from_bytes(file.read(4), "big")) <= MAX_BLOCK and \
                    len(block := file.read(size)) == size:
                yield block

    def keep_index(self, blocks: Iterator[bytes]) -> None:
        """Replaces them; logs what is in the way. They are not synced, because all of them can be made again."""
        try:
            # not session(), which would create one, after which Storage has repairs to do
            with self.at(self._session) as session, self.at() as staging:
                name = self.new_name()
                try:
                    with open(session.create(name), "wb") as file:
                        for block in blocks:
                            file.write(len(block).to_bytes(4, "big") + block)
                    session.rename(name, staging, INDEX)
                finally:
                    session.unlink(name)
        except (OSError, Obstructed) as error:
            log.info("the index is not kept for the next start: %s", error)

    # ---- marks of corrupt models

    def mark(self, key: ModelKey) -> None:
        """Marks a model as corrupt; the mark is on disk when this returns. The caller holds its lock."""
        for name in self._tree.subdirectories(STAGING, CORRUPT, *key.names):
            self._tree.clear(STAGING, CORRUPT, *key.names, name)    # marks of what was a folder once
        with self.at(CORRUPT, *key.names, create=True) as mark:
            mark.sync()

    def is_marked(self, key: ModelKey) -> bool:
        """Whether the model is marked. Marks can be out of date: metadata.json is right where it can be read."""
        try:
            self.at(CORRUPT, *key.names).close()
        except FileNotFoundError:
            return False
        return self._is_mark((STAGING, CORRUPT, *key.names))

    def _is_mark(self, names: Names) -> bool:
        return not self._tree.subdirectories(*names)

    def unmark(self, key: ModelKey) -> None:
        """Removes the mark of a model, if there is one."""
        self._tree.prune(STAGING, CORRUPT, *key.names)

    def marked(self) -> Iterator[ModelKey]:
        """The models that are marked, in order. Foreign entries are skipped, and logged once."""
        with suppress(FileNotFoundError, Obstructed), self.at(CORRUPT) as marks:     # probe() reports the latter
            for name in marks.names():
                if name not in self._told and len(self._told) < MAX_TOLD and not (
                        NAME.fullmatch(name) and marks.kind(name) in (None, DIRECTORY)):
                    self._told.add(name)
                    log.warning("%s/%s is %s, not a mark of a corrupt model: remove it", marks.place, name,
                                marks.kind(name))
        yield from self._tree.scan((STAGING, CORRUPT), self._is_mark)

    def _take_over_marks(self) -> None:
        """Converts the marks of earlier versions: dangling links to the names of a model, named after their digest."""
        with suppress(FileNotFoundError), self.at(CORRUPT) as marks:
            for name in marks.names():
                with suppress(OSError, InvalidName):    # not a link, or not to a model: marked() logs it
                    names = os.readlink(name, dir_fd=marks.descriptor).split("/")
                    if len(names) == VERSION_DEPTH + 1:
                        self.mark(ModelKey(*names))
                        marks.unlink(name)


@contextmanager
def as_obstructed() -> Iterator[None]:
    """Turns InTheWay into Obstructed, for the server's own files."""
    try:
        yield
    except filesystem.InTheWay as error:
        raise Obstructed(f"{error.strerror}. This server keeps its own files there and follows no links: "
                         "find out what created it, and remove it") from error
