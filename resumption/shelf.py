"""Unfinished uploads on the disk: drafts that outlive their connection and the process, up to what has been written.

    .staging/uploads/{id}/model     the bytes so far
    .staging/uploads/{id}.json      what they are: see Record
    .staging/uploads/{id}.lock      held for each write, with the writer's mark in it: the newest writer wins, also if
                                    it is another server
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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import BinaryIO, NamedTuple, TypeVar

from repository import filesystem, metadata
from repository.directories import Directory
from repository.drafts import StagedModel
from repository.errors import StorageFailed, StoreError
from repository.model import Details, Inspection, ModelKey
from storage import Check, Draft, Published, Storage

log = logging.getLogger("model_server.resumption")
T = TypeVar("T")
UPLOADS = "uploads"
IDENT = re.compile("[0-9a-f]{32}")
MARK = 16           # random bytes that tell the writer
MAX_RECORD = metadata.MAX_METADATA
TYPES = {"model": str, "who": str, "sha256": str | None, "length": int | None, "fields": dict, "nonce": str,
         "done": bool}


class Superseded(StoreError):
    """Another client continues this upload."""

    status = 409


@dataclass(frozen=True)
class Record:
    """What a draft is: its model, the name of the token that began it, and what is known of the whole upload.

    `nonce` differs from that of every other draft. Of a draft that is `done`, only this is left.
    """

    model: str
    who: str
    sha256: str | None
    length: int | None = None
    fields: dict[str, str] = field(default_factory=dict)
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    done: bool = False


class Known(NamedTuple):
    """A draft, and how many bytes of it are on the disk."""

    record: Record
    size: int


class Claim:
    """The right to write to a draft, until somebody else claims it. It holds the lock until release()."""

    def __init__(self, place: Directory, ident: str) -> None:
        self._lock = place.lock(f"{ident}.lock", access=os.O_RDWR)
        self._mark = secrets.token_bytes(MARK)
        try:
            os.pwrite(self._lock, self._mark, 0)
        except OSError:
            os.close(self._lock)
            raise

    def release(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock; raises Superseded if somebody else has claimed the draft, or it is gone."""
        if self._lock < 0:
            raise Superseded("this upload is over")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            if os.pread(self._lock, MARK, 0) != self._mark:
                raise Superseded("another client continues this upload, or has ended it")
            yield
        finally:
            self.release()

    def end(self) -> None:
        """Makes every claim on this draft void; call it with the lock held."""
        os.ftruncate(self._lock, 0)

    def close(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


class KeptDraft(Draft):
    """A draft in `uploads`. It is moved to the session just before it takes the place of its model.

    So a crash after that leaves no old model in `uploads`, which would be continued as if it were a draft.
    """

    def __init__(self, shelf: "Shelf", ident: str, record: Record, claim: Claim, model: StagedModel) -> None:
        super().__init__(shelf.store, shelf.store.staging.new_name(), model)
        self.ident, self.record = ident, record
        self._shelf, self._claim = shelf, claim
        self._brought = self._torn = False

    def write(self, blocks: Sequence[bytes | memoryview]) -> None:
        """Appends these blocks; raises Superseded, StorageFull or StorageFailed."""
        try:
            with self._claim.held():
                super().write(blocks)
        except BaseException:
            self._torn = True   # what is in memory may not follow what is on the disk
            raise

    def keep(self) -> bool:
        """Leaves it for others to continue; returns whether it was, and all of it is on disk. Raises StorageFailed."""
        try:
            if not self._torn:
                with suppress(Superseded), self._claim.held():
                    self._model.finish()
                    return True
            return False
        finally:
            if self._brought:
                super().discard()
            self._model.close()
            self._claim.close()

    def reader(self) -> BinaryIO:
        """The bytes that are on disk, from the beginning."""
        with filesystem.as_store_errors(), self._shelf.place() as place, place.open(self.ident) as directory:
            return filesystem.open_regular(filesystem.MODEL, directory.descriptor)

    def discard(self) -> None:
        """Removes it, unless another client has claimed it."""
        self._model.close()
        try:
            if self._brought:
                super().discard()
            else:
                with suppress(Superseded, FileNotFoundError), self._claim.held(), self._shelf.place() as place:
                    self._claim.end()
                    self._shelf.clear(place, self.ident)
                    place.unlink(f"{self.ident}.lock")
        except (OSError, StorageFailed) as error:
            log.error("cannot remove the unfinished upload %s: %s", self.ident, error)
        finally:
            self._claim.close()

    def mark_done(self) -> None:
        """Remembers that it has become a model, for a client that has not seen the answer."""
        with filesystem.as_store_errors(), self._shelf.place() as place:
            self._shelf.write(place, self.ident, replace(self.record, length=self.size, done=True))

    def examine(self, inspect: Callable[[BinaryIO, int], T]) -> T:
        with self._claim.held():    # the last bytes are written first
            return super().examine(inspect)

    def publish(self, key: ModelKey, sha256: str, details: Details, check: Check,
                inspection: Inspection | None = None) -> Published:
        with self._claim.held():    # nobody else may find metadata.json beside it, or write to it
            return super().publish(key, sha256, details, check, inspection)

    def _bring(self) -> None:
        with self._shelf.place() as place, self._staging.session() as session:
            place.rename(self.ident, session, self._name)
            self._brought = True
            self._claim.end()
            self._shelf.clear(place, self.ident)
            place.unlink(f"{self.ident}.lock")


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

    def find(self, ident: str) -> Known | None:
        """The draft of this name; None if there is none, or none that can be read."""
        with filesystem.as_store_errors(), suppress(FileNotFoundError), self.place() as place:
            return self._known(place, ident)
        return None

    def _known(self, place: Directory, ident: str) -> Known | None:
        try:
            with filesystem.open_regular(f"{ident}.json", place.descriptor) as file:
                document = metadata.parse_json(file.read(MAX_RECORD))
            if not all(isinstance(document[name], kind) for name, kind in TYPES.items()):
                return None
            record = Record(**document)
            if record.done:
                return Known(record, record.length or 0)
            with place.open(ident) as directory:
                stamp = filesystem.stamp(filesystem.MODEL, directory.descriptor)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        except OSError as error:
            if error.errno not in filesystem.ABSENT:    # a link or a file where its directory was
                raise
            return None
        return Known(record, stamp.size) if stamp else None

    def claim(self, ident: str, new: Record | None = None) -> KeptDraft | None:
        """Takes a draft over from whoever writes to it; if there is none, creates it with this record, or is None."""
        self.store.check_writable()
        if new:
            self.guard(create=True)
        elif self.find(ident) is None:
            return None
        with filesystem.as_store_errors(), self.place() as place:
            claim = Claim(place, ident)
            try:
                known = self._known(place, ident)
                if new and (known is None or known.record.done):
                    known = Known(new, 0)
                    self._create(place, ident, new)
                if known is None or known.record.done:
                    claim.close()
                    return None
                model = staged(place.open(ident))
                claim.release()
                return KeptDraft(self, ident, known.record, claim, model)
            except BaseException:
                claim.close()
                raise

    def _create(self, place: Directory, ident: str, record: Record) -> None:
        self.clear(place, ident)
        self.write(place, ident, record)
        place.mkdir(ident)
        with place.open(ident) as directory:
            os.close(directory.create(filesystem.MODEL))
            directory.sync()
        place.sync()

    def adopt(self, draft: Draft, ident: str, record: Record) -> KeptDraft | None:
        """Takes over a draft of this process; None if there is one of this name that is longer."""
        self.guard(create=True)
        with filesystem.as_store_errors(), self.place() as place, self.store.staging.session() as session:
            known = self._known(place, ident)
            if known and not known.record.done and known.size >= draft.size:
                return None
            claim = Claim(place, ident)
            try:
                self.clear(place, ident)
                self.write(place, ident, record)
                session.rename(draft._name, place, ident)
                place.sync()
            except BaseException:
                claim.close()
                raise
            claim.release()
            return KeptDraft(self, ident, record, claim, draft._model)

    def write(self, place: Directory, ident: str, record: Record) -> None:
        place.unlink(f"{ident}.json")
        filesystem.write_new(place.create(f"{ident}.json"), json.dumps(asdict(record)).encode())

    def clear(self, place: Directory, ident: str) -> None:
        """Removes a draft but for its lock, which the caller must hold."""
        place.remove(ident)
        place.unlink(f"{ident}.json")

    def remove(self, ident: str, how: int = fcntl.LOCK_EX, unless_after: float | None = None) -> bool:
        """Removes a draft, whoever writes to it, unless its last byte came after this moment; whether it did."""
        with filesystem.as_store_errors(), suppress(FileNotFoundError, BlockingIOError), self.place() as place:
            lock = place.lock(f"{ident}.lock", how, os.O_RDWR)
            try:
                if unless_after is not None and last_change(place, ident) > unless_after:
                    return False
                os.ftruncate(lock, 0)
                self.clear(place, ident)
                place.unlink(f"{ident}.lock")
                return True
            finally:
                os.close(lock)
        return False

    def idents(self) -> list[str]:
        """The names of all drafts."""
        with filesystem.as_store_errors(), suppress(FileNotFoundError), self.place() as place:
            return sorted({*filter(IDENT.fullmatch, (name.partition(".")[0] for name in place.names()))})
        return []

    def sweep(self, age: float) -> int:
        """Removes the drafts whose last byte came more than `age` seconds ago; returns how many."""
        moment, removed = time.time() - age, 0
        with suppress(FileNotFoundError), self.place() as place:
            for ident in self.idents():
                try:
                    if last_change(place, ident) <= moment:
                        removed += self.remove(ident, fcntl.LOCK_EX | fcntl.LOCK_NB, moment)
                except (OSError, StoreError) as error:      # the others have to go all the same
                    log.error("cannot remove the unfinished upload %s: %s", ident, error)
        return removed

    def total(self) -> tuple[int, int]:
        """How many drafts there are, and their bytes, without those that cannot be read."""
        sizes = list[int]()
        with suppress(StoreError):      # which is no reason to have no other figures
            for ident in self.idents():
                with suppress(StoreError):
                    if (known := self.find(ident)) and not known.record.done:
                        sizes.append(known.size)
        return len(sizes), sum(sizes)


def ident_of(key: ModelKey, sha256: str, who: str) -> str:
    """The name of the draft of these bytes for this model by this token: 32 hex digits."""
    return hashlib.sha256(json.dumps([str(key), sha256, who]).encode()).hexdigest()[:32]


def staged(directory: Directory) -> StagedModel:
    """What is in the directory of a draft, to be continued; raises OSError."""
    try:
        directory.unlink(filesystem.METADATA)   # of a publication that was refused
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(filesystem.MODEL, flags, dir_fd=directory.descriptor)
        return StagedModel(directory, filesystem.NewFile(descriptor))
    except OSError:
        directory.close()
        raise


def last_change(place: Directory, ident: str) -> float:
    """When a draft was written to last, in seconds since 1970; 0 if it is gone."""
    moments = [0.0]
    for name in (f"{ident}/{filesystem.MODEL}", f"{ident}.json", f"{ident}.lock"):
        try:
            moments.append(os.lstat(name, dir_fd=place.descriptor).st_mtime)
        except OSError as error:
            if error.errno not in filesystem.ABSENT:
                raise
    return max(moments)
