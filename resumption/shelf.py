"""Unfinished uploads on the disk: drafts that outlive their connection and the process, up to what has been written.

    .staging/uploads/{id}/model     the bytes so far
    .staging/uploads/{id}.lock      held for each write; in it is the Record of the draft

The lock file grows with each claim, and its size when it was claimed tells a writer whether it is still the newest one,
which wins, also at another server. The size and not the contents, which network file systems cache: on two mounts of
GlusterFS they differ for a second, even when the file is opened again. So what is read here is first made fresh().

A draft takes the place of its model by an exchange, so that after a crash the old model may be here. That is told by
its inode, which is not the one in the record; it is never continued.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import BinaryIO, NamedTuple, TypeVar

from repository import filesystem, metadata
from repository.directories import Directory
from repository.drafts import StagedModel
from repository.errors import StorageFull, StoreError
from repository.model import Details, Inspection, ModelKey, Stamp
from storage import Check, Draft, Published, Storage

log = logging.getLogger("model_server.resumption")
T = TypeVar("T")
UPLOADS = "uploads"
IDENT = re.compile("[0-9a-f]{32}")
OWNER = 8           # digits of it that are the same for all drafts of a token
MOST = 1000         # drafts of a token: a client that begins one after the other must not use up all inodes
MAX_RECORD = metadata.MAX_METADATA
GAP = b"\0"         # before each record, and one byte of it for each claim
TYPES = {"model": str, "who": str, "sha256": str | None, "length": int | None, "fields": dict, "nonce": str,
         "inode": int, "done": bool}


class Superseded(StoreError):
    """Another client continues this upload."""

    status = 409


@dataclass(frozen=True)
class Record:
    """What a draft is: its model, the name of the token that began it, and what is known of the whole upload.

    `nonce` differs from that of every other draft, `inode` is that of its file. Of a draft that is `done`, only this is
    left.
    """

    model: str
    who: str
    sha256: str | None
    length: int | None = None
    fields: dict[str, str] = field(default_factory=dict)
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    inode: int = 0
    done: bool = False


class Known(NamedTuple):
    """A draft, and how many bytes of it are on the disk."""

    record: Record
    size: int


class KeptDraft(Draft):
    """A draft in `uploads`, which its writer has claimed, until somebody else does.

    `lock` is the descriptor of its lock file, which the draft closes.
    """

    def __init__(self, shelf: "Shelf", ident: str, record: Record, lock: int, model: StagedModel) -> None:
        super().__init__(shelf.store, ident, model)
        self.ident, self.record = ident, record
        self._shelf, self._lock, self._claimed = shelf, lock, os.fstat(lock).st_size
        self._torn = False

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Holds the lock; raises Superseded if somebody else has claimed the draft, or it is gone."""
        if self._lock < 0:
            raise Superseded("this upload is over")
        try:
            if not self._is_newest():
                raise Superseded("another client continues this upload, or has ended it")
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _is_newest(self) -> bool:
        """Takes the lock, and tells whether nobody else has claimed the draft, and it is not gone."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            return os.fstat(self._lock).st_size == self._claimed
        except OSError as error:
            if error.errno not in filesystem.GONE:
                raise
            return False

    def _close(self) -> None:
        self.model.close()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _home(self) -> Directory:
        return self._shelf.place()

    def write(self, blocks: Sequence[bytes | memoryview]) -> None:
        """Appends these blocks; raises Superseded, StorageFull or StorageFailed."""
        try:
            with self._held():
                super().write(blocks)
        except BaseException:
            self._torn = True   # what is in memory may not follow what is on the disk
            raise

    def reader(self) -> BinaryIO:
        """The bytes that are on disk, from the beginning."""
        with filesystem.as_store_errors(), self._home() as place, place.open(self.ident) as directory:
            file = filesystem.open_regular(filesystem.MODEL, directory.descriptor)
            fresh(file.fileno())
            return file

    def examine(self, inspect: Callable[[BinaryIO, int], T]) -> T:
        with self._held():      # the last bytes are written first
            return super().examine(inspect)

    def publish(self, key: ModelKey, sha256: str, details: Details, check: Check,
                inspection: Inspection | None = None) -> Published:
        with self._held():      # nobody else may find metadata.json beside it, or write to it
            return super().publish(key, sha256, details, check, inspection)

    def keep(self) -> bool:
        """Leaves it for others to continue; returns whether it was, and all of it is on disk. Raises StorageFailed."""
        try:
            if not self._torn:
                with suppress(Superseded), self._held():
                    self.model.finish()
                    return True
            return False
        finally:
            self._close()

    def discard(self, done: bool = False) -> None:
        """Removes it, or the old model that it replaced, unless another client has claimed it.

        That it is `done` is remembered, for a client that has not seen the answer.
        """
        try:
            with suppress(Superseded, FileNotFoundError), self._held(), self._home() as place:
                self._shelf.clear(place, self.ident, self._lock)
                if done:
                    write(self._lock, replace(self.record, length=self.size, done=True))
                else:
                    place.unlink(f"{self.ident}.lock")
        except (OSError, StoreError) as error:
            log.error("cannot remove the unfinished upload %s: %s", self.ident, error)
        finally:
            self._close()


class Shelf:
    """The drafts in `uploads`, by their names."""

    def __init__(self, store: Storage) -> None:
        self.store = store
        self._guard: int | None = None

    def place(self, create: bool = False) -> Directory:
        return self.store.staging.at(UPLOADS, create=create)

    def guard(self, create: bool) -> None:
        """Holds a lock for which servers of earlier versions leave `uploads` alone, as the drafts of a live process."""
        with (filesystem.as_store_errors(), suppress(FileNotFoundError), self.place(create),
              self.store.staging.at() as staging):
            if self._guard is None or not staging.has(f"{UPLOADS}.lock", self._guard):
                self.close()
                self._guard = staging.open_lock(f"{UPLOADS}.lock")
                fcntl.flock(self._guard, fcntl.LOCK_SH)

    def close(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            os.close(guard)

    @contextmanager
    def _locked(self, ident: str, how: int = fcntl.LOCK_EX) -> Iterator[tuple[Directory, int]]:
        """Holds the lock of a draft; gives the directory of all, and the descriptor of the lock. Raises OSError."""
        with self.place() as place, ExitStack() as undo:
            lock = place.lock(f"{ident}.lock", how, os.O_RDWR)
            undo.callback(os.close, lock)
            undo.callback(fcntl.flock, lock, fcntl.LOCK_UN)     # a copy of the descriptor may be kept
            yield place, lock

    def find(self, ident: str) -> Known | None:
        """The draft of this name; None if there is none, or none that can be read."""
        with (filesystem.as_store_errors(), suppress(FileNotFoundError), self.place() as place,
              filesystem.open_regular(f"{ident}.lock", place.descriptor) as lock):
            return known(place, ident, lock.fileno())
        return None

    def claim(self, ident: str) -> KeptDraft | None:
        """Takes a draft over from whoever writes to it; None if there is none."""
        self.store.check_writable()
        if self.find(ident) is None:
            return None
        with filesystem.as_store_errors(), self._locked(ident) as (place, lock):
            found = known(place, ident, lock)
            if found is None or found.record.done:
                return None
            model = staged(place.open(ident))
            supersede(lock)
            return KeptDraft(self, ident, found.record, os.dup(lock), model)

    def adopt(self, draft: Draft, ident: str, record: Record) -> KeptDraft | None:
        """Takes over a draft of this process; None if there is one of this name that is as long."""
        self.guard(create=True)
        with (filesystem.as_store_errors(), self._locked(ident) as (place, lock),
              self.store.staging.session() as session):
            found = known(place, ident, lock)
            if found and not found.record.done and found.size >= draft.size:
                return None
            self.clear(place, ident, lock)
            with session.open(draft.name) as directory:
                directory.sync()
                record = replace(record, inode=os.lstat(filesystem.MODEL, dir_fd=directory.descriptor).st_ino)
            write(lock, record)
            session.rename(draft.name, place, ident)
            place.sync()
            return KeptDraft(self, ident, record, os.dup(lock), draft.model)

    def begin(self, ident: str, record: Record) -> KeptDraft:
        """Claims the draft of this name, and creates it if there is none; raises StorageFull if there are too many."""
        while True:
            if kept := self.claim(ident):
                return kept
            if self.is_full(ident):
                raise StorageFull(f"{MOST} uploads of this token are unfinished: continue or delete some of them, or "
                                  "wait until they have expired (MODEL_UPLOAD_AGE)")
            with ExitStack() as undo:
                draft = self.store.draft()
                undo.callback(draft.discard)
                if kept := self.adopt(draft, ident, record):
                    undo.pop_all()
                    return kept

    def is_full(self, ident: str) -> bool:
        """Whether the token that this name belongs to has as many drafts as it may."""
        with filesystem.as_store_errors(), suppress(FileNotFoundError), self.place() as place:
            drafts = filter(IDENT.fullmatch, place.names())
            return sum(name[:OWNER] == ident[:OWNER] for name in drafts) >= MOST
        return False

    def remove(self, ident: str) -> None:
        """Removes a draft, whoever writes to it."""
        with filesystem.as_store_errors(), suppress(FileNotFoundError), self._locked(ident) as (place, lock):
            self.clear(place, ident, lock)
            place.unlink(f"{ident}.lock")

    def clear(self, place: Directory, ident: str, lock: int) -> None:
        """Removes what a draft has, but for its lock file. The caller holds the lock."""
        supersede(lock)
        name = self.store.staging.new_name()
        with suppress(FileNotFoundError), self.store.staging.session() as session:
            place.rename(ident, session, name)      # on NFS it is not empty while somebody has its file open
            session.remove(name)

    def idents(self) -> list[str]:
        """The names of all drafts."""
        with filesystem.as_store_errors(), suppress(FileNotFoundError), self.place() as place:
            return sorted({*filter(IDENT.fullmatch, (name.partition(".")[0] for name in place.names()))})
        return []

    def sweep(self, age: float) -> None:
        """Removes the drafts whose last byte came more than `age` seconds ago, and what a crash left of others."""
        moment = time.time() - age
        for ident in self.idents():
            try:
                # somebody who holds the lock writes to it
                with suppress(BlockingIOError), self._locked(ident, fcntl.LOCK_EX | fcntl.LOCK_NB) as (place, lock):
                    found = known(place, ident, lock)
                    if found is None or last_change(place, ident) <= moment:
                        self.clear(place, ident, lock)
                        place.unlink(f"{ident}.lock")
                        if found and not found.record.done:
                            log.info("the unfinished upload of %s has expired: %d bytes",
                                     found.record.model, found.size)
            except (OSError, StoreError) as error:      # the others have to go all the same
                log.error("cannot remove the unfinished upload %s: %s", ident, error)

    def total(self) -> tuple[int, int]:
        """How many drafts there are, and their bytes, without those that cannot be read."""
        sizes = list[int]()
        with suppress(StoreError):      # which is no reason to have no other figures
            for ident in self.idents():
                with suppress(StoreError):
                    if (found := self.find(ident)) and not found.record.done:
                        sizes.append(found.size)
        return len(sizes), sum(sizes)


def ident_of(who: str, *what: str) -> str:
    """The name of a token's draft of these bytes for this model: 32 hex digits. Without them, a random one."""
    texts = who, json.dumps(what or secrets.token_hex())
    owner, draft = (hashlib.sha256(text.encode()).hexdigest() for text in texts)
    return owner[:OWNER] + draft[OWNER:32]


def known(place: Directory, ident: str, lock: int) -> Known | None:
    """What the lock file of a draft and its directory tell; None if that is no draft, or none any more."""
    try:
        end = os.pread(fresh(lock), MAX_RECORD, max(0, os.fstat(lock).st_size - MAX_RECORD))
        document = metadata.parse_json(end.rstrip(GAP).rpartition(GAP)[2])
        if not all(isinstance(document[name], kind) for name, kind in TYPES.items()):
            return None
    except (ValueError, TypeError, KeyError):
        return None
    except OSError as error:
        if error.errno not in filesystem.GONE:
            raise
        return None
    record = Record(**{name: document[name] for name in TYPES})
    if record.done:
        return Known(record, record.length or 0)
    stamp = stamp_of(place, ident)
    return Known(record, stamp.size) if stamp and stamp.inode == record.inode else None


def fresh(descriptor: int) -> int:
    """The same descriptor, of a file of which this machine's cache is dropped: another one may have written to it."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor


def stamp_of(place: Directory, name: str) -> Stamp | None:
    """The state of the model in a directory; None if there is none."""
    try:
        with place.open(name) as directory:
            return filesystem.stamp(filesystem.MODEL, directory.descriptor)
    except OSError as error:
        if error.errno not in filesystem.ABSENT:    # a link or a file where its directory was
            raise
        return None


def write(lock: int, record: Record) -> None:
    """Makes this the record of a draft; it is on disk when this returns. The caller holds the lock."""
    os.lseek(lock, 0, os.SEEK_END)
    filesystem.write_new(os.dup(lock), GAP + json.dumps(asdict(record)).encode())


def supersede(lock: int) -> None:
    """Makes every claim on a draft void. The caller holds the lock."""
    filesystem.lengthen(lock)


def staged(directory: Directory) -> StagedModel:
    """What is in the directory of a draft, to be continued; raises OSError."""
    try:
        directory.unlink(filesystem.METADATA)   # of a publication that was refused
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(filesystem.MODEL, flags, dir_fd=directory.descriptor)
        return StagedModel(directory, filesystem.NewFile(fresh(descriptor)))
    except OSError:
        directory.close()
        raise


def last_change(place: Directory, ident: str) -> float:
    """When a draft was written to last, in seconds since 1970."""
    stamp = stamp_of(place, ident)
    return max(os.lstat(f"{ident}.lock", dir_fd=place.descriptor).st_mtime, stamp.mtime_ns / 1e9 if stamp else 0)
