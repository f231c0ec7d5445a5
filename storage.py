"""The store: a tree of directories that is the truth, written by drafts and read without locks.

    {root}/{project_id}/{app_name}/{version}/{model_name}/model
    {root}/{project_id}/{app_name}/{version}/{model_name}/metadata.json
    {root}/.staging/                  drafts, locks, what is being removed; never listed

A model appears by one rename of a finished directory and is replaced by one exchange of two. Directories are
walked by descriptor and without following symbolic links, so no name and no planted link leads out of the root.
"""

import errno
import fcntl
import hashlib
import io
import itertools
import logging
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar

import files
import metadata
import models
from files import MODEL
from index import Batch, Index, Signature
from models import NAME_FIELDS, Details, Inspection, Model, ModelExists, ModelKey, ModelNotFound

log = logging.getLogger("model_server.storage")
T = TypeVar("T")

STAGING = ".staging"    # a name may not begin with a dot, so no model can be called this
CORRUPT = "corrupt"     # below STAGING: the marks of verification.py
RESCUE = "replaced"     # below STAGING: old versions while a file system without exchange replaces them
METADATA = "metadata.json"
LOCKS = 64              # stripes over all models: more than threads, few enough to be made at start
LOOKS = 50              # how often a reader looks again when a writer moved the directory under it
KNOWN = 4096            # models whose metadata is kept parsed, some MiB; an info a second time reads no file

Check = Callable[[Model | None], None]  # raises to refuse a change, given what is stored now


class Published(NamedTuple):
    model: Model
    created: bool
    unchanged: bool


def mark_of(key: ModelKey) -> str:
    """The name of its mark below STAGING/CORRUPT; four names may be too long for one."""
    return hashlib.sha256(str(key).encode()).hexdigest()


class OpenModel(NamedTuple):
    """A model with its bytes open for reading; close it, or hand the file over."""

    model: Model
    file: BinaryIO


class Storage:
    """The models below `root`. Opening it claims a staging directory of its own and mends what a crash left."""

    def __init__(self, root: Path) -> None:
        self.root, self._root = root, str(root)
        self._staging = root / STAGING
        self._session = self._staging / secrets.token_hex(8)
        self._numbers = itertools.count()
        self._known: dict[ModelKey, tuple[tuple[Any, ...], Model]] = {}
        # what a verification found and could not write
        self.verdicts: dict[tuple[str, ...], models.Verdict] = {}
        # models and directories that could not be read: nothing that the index compares tells when they can be
        self._unreadable: set[tuple[str, ...]] = set()
        self.buffers = files.Buffers()
        self._probed = -inf
        self.index = Index(os.fspath(root), self._subdirectories, self._sign, self.find)
        with files.own_words():
            # the mount is asked, not an attempt: who may not write there anyway would see that first
            self.read_only = root.is_dir() and bool(os.statvfs(root).f_flag & os.ST_RDONLY)
            if self.read_only:
                log.warning("%s is mounted read-only: models are served, not taken", root)
            else:
                self._claim()

    def _claim(self) -> None:
        with ExitStack() as undo:
            (self._staging / "locks").mkdir(parents=True, exist_ok=True)
            for stripe in range(LOCKS):     # all now: a delete must find its lock on a full disk
                (self._staging / "locks" / f"{stripe:02}").touch()
            with files.flock(self._staging / "start.lock"):
                self._remove_orphans()
                self._session_lock = os.open(f"{self._session}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                undo.callback(os.close, self._session_lock)
                # flock, not a pid file: a container restarts with the same pid
                fcntl.flock(self._session_lock, fcntl.LOCK_EX)
                self._session.mkdir()
            self._restore_replaced()
            try:
                self.probe()
            except models.StorageFull as error:    # to serve and to delete is what is needed now
                log.warning("%s", error)
            undo.pop_all()

    def close(self) -> None:
        """Gives the staging directory back; drafts still open are gone."""
        self.index.close()
        if not self.read_only:
            files.remove(self._session)
            with suppress(FileNotFoundError):
                os.unlink(f"{self._session}.lock")
            os.close(self._session_lock)

    def check_writable(self) -> None:
        if self.read_only:
            raise models.ReadOnly(files.READ_ONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- reading

    def open(self, key: ModelKey) -> OpenModel:
        """Opens the bytes and the metadata of one version; raises ModelNotFound."""
        return self._seek(key, self._open_in)

    def info(self, key: ModelKey) -> Model:
        """What is known of one model; raises ModelNotFound."""
        known, place = self._known.get(key), f"{self._root}/{key}"
        with files.own_words():
            # the index says that no link is on the way, two stats say that nothing changed
            if known and self.index.reaches(key.names) and known[0] == (
                    files.stamp(f"{place}/{METADATA}"), files.stamp(f"{place}/{MODEL}"), self.verdicts.get(key.names)):
                return known[1]
        return self._seek(key, self._model_in)

    def knows(self, key: ModelKey) -> bool:
        """Whether info() of this model may be expected to read no file."""
        return key in self._known

    def peek(self, key: ModelKey) -> OpenModel:
        """The same as open() for who needs no bytes."""
        return OpenModel(self.info(key), io.BytesIO())

    def find(self, key: ModelKey) -> Model | None:
        """What is known of one model, None when it is not there."""
        try:
            return self.info(key)
        except ModelNotFound:
            return None

    def keys(self, *names: str) -> Iterator[ModelKey]:
        """The models below the given names, in order."""
        with files.own_words():
            for found in self._scan((), names):
                if self._sign(found):
                    yield ModelKey(*found)

    def lines(self, names: tuple[str, ...], after: tuple[str, ...] = ()) -> Iterator[Batch]:
        """See Index.lines."""
        for place in [place for place in self._unreadable if len(place) < len(NAME_FIELDS)]:
            self._unreadable.discard(place)
            self.index.forget(ModelKey(*place, *"____"[len(place):]))
        with files.own_words():
            yield from self.index.lines(names, after)

    def versions(self, project_id: str, app_name: str, model_name: str) -> Iterator[str]:
        """The versions that have this model, in no useful order."""
        with files.own_words():
            for version in self._subdirectories(project_id, app_name):
                place = (project_id, app_name, version)
                if model_name in self._subdirectories(*place) and self._sign((*place, model_name)):
                    yield version

    def free_bytes(self) -> int:
        with files.own_words():
            disk = os.statvfs(self.root)
            return disk.f_bavail * disk.f_frsize

    def probe(self, at_most: float = 0.0) -> None:
        """Raises StorageFull or StorageFailed unless a file can be written, or could `at_most` seconds ago.

        Never on a read-only storage.
        """
        if self.read_only or self.probed_within(at_most):
            return
        path = self._session / f"probe-{next(self._numbers)}"
        with files.own_words():
            try:
                path.write_bytes(b"x")
            finally:
                path.unlink(missing_ok=True)
        self._probed = time.monotonic()

    def probed_within(self, seconds: float) -> bool:
        """Whether a probe has succeeded so lately."""
        return time.monotonic() - self._probed < seconds

    def is_lost(self) -> bool:
        """Whether not even the root can be read, so that a fault is the server's and not that of one model."""
        try:
            with os.scandir(self.root) as entries:
                next(entries, None)
        except OSError:
            return True
        return False

    def _seek(self, key: ModelKey, read: Callable[[int, ModelKey], T | None]) -> T:
        """What `read` makes of the model's directory; None says that it was taken away meanwhile: look again."""
        with files.own_words():
            for _ in range(LOOKS):
                try:
                    if found := self._look(key, read):
                        return found
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno not in files.OF_ONE or self.is_lost():
                        raise
                    log.error("%s cannot be read: %s", key, error)
                    raise models.ModelUnreadable(
                        f"{key} cannot be read on the server's disk ({error.strerror}): have its permissions or the "
                        "disk mended, or delete it and upload it again") from error
        raise models.absent(key.names)

    def _look(self, key: ModelKey, read: Callable[[int, ModelKey], T | None]) -> T | None:
        # Without RENAME_EXCHANGE the old version stands in the rescue place while it is replaced, see _set_aside.
        for place in ((), (STAGING, RESCUE)) * 2:
            try:
                with self._walk(*place, *key.names) as descriptors:
                    return read(descriptors[-1], key)
            except OSError as error:
                if error.errno not in files.ABSENT:
                    raise
        raise FileNotFoundError

    def _open_in(self, directory: int, key: ModelKey) -> OpenModel | None:
        try:
            file = files.open_regular(MODEL, directory)
        except FileNotFoundError:
            return None
        status = os.fstat(file.fileno())
        model = self._model_in(directory, key)
        if model is None or model.stamp != files.stamp_of(status):
            file.close()    # somebody changed it under our hands
            return None
        return OpenModel(model, file)

    def _model_in(self, directory: int, key: ModelKey) -> Model | None:
        # The model last: a directory on its way out loses it before its metadata, so a pair is never torn.
        described = files.stamp(METADATA, directory)
        model = files.stamp(MODEL, directory)
        if model is None:
            return None
        known, state = self._known.get(key), (described, model, self.verdicts.get(key.names))
        if known is None or known[0] != state:
            document = self._read_metadata(directory, key)
            if files.stamp(MODEL, directory) != model:
                return None
            found = models.described(key, document or {}, model, self.verdicts.get(key.names))
            if document is None:    # it may have said that the model is corrupt, so its mark is believed
                found = replace(found, readable=False, corrupt=found.corrupt or self._is_marked(key))
            known = state, found
            if len(self._known) > KNOWN:
                self._known.clear()
            if key.names not in self._unreadable:
                self._known[key] = known
        return known[1]

    def _sign(self, names: tuple[str, ...]) -> Signature:
        """Changes with either file of a model; None when there is no model, or none that we may look at."""
        place = "/".join((self._root, *names, ""))
        try:
            model, described = files.stamp(place + MODEL), files.stamp(place + METADATA)
        except PermissionError as error:
            self._cannot_read(names[:-1], error)
            return None
        again = time.monotonic() if names in self._unreadable else 0    # always another one
        return model and (hash((model, described, self.verdicts.get(names), again)), model[1])

    def _cannot_read(self, names: tuple[str, ...], error: OSError) -> None:
        """Remembers to look again, and tells of it once."""
        if names not in self._unreadable:
            self._unreadable.add(names)
            log.warning("%s cannot be read: %s", "/".join(names), error)

    def _read_metadata(self, directory: int, key: ModelKey) -> dict[str, Any] | None:
        """{} where there is none, None where there is one that cannot be read."""
        self._unreadable.discard(key.names)
        try:
            with files.open_regular(METADATA, directory) as file:
                return metadata.read(file)
        except (files.NotRegular, ValueError) as error:
            log.warning("%s/%s is broken: %s", key, METADATA, error)
            return None
        except FileNotFoundError:
            return {}
        except OSError as error:
            if error.errno not in files.OF_ONE:
                raise
            self._cannot_read(key.names, error)
            return None

    def _is_marked(self, key: ModelKey) -> bool:
        try:
            os.lstat(self._staging / CORRUPT / mark_of(key))
        except OSError as error:
            if error.errno in files.ABSENT:
                return False
            raise
        return True

    # ---- changing

    def draft(self) -> "Draft":
        """A place to write a model to; leaves no trace unless published."""
        self.check_writable()
        with files.own_words():
            return Draft(self, self._session / str(next(self._numbers)))

    def delete(self, key: ModelKey, check: Check) -> Model:
        """Removes one model for good when `check` lets it; raises ModelNotFound."""
        grave = self._session / str(next(self._numbers))
        with files.own_words(), ExitStack() as undo:
            with self._changing(key):
                model = self.info(key)
                check(model)
                with self._walk(*key.names[:3]) as descriptors:
                    os.rename(key.model_name, grave, src_dir_fd=descriptors[-1])
                    undo.callback(files.remove, grave)
                    self.index.forget(key)
                    files.sync(descriptors)
            self._prune(*key.names[:3])
            return model

    def amend(self, key: ModelKey, change: Callable[[Model], Model]) -> Model:
        """Replaces what metadata.json tells of a model by what `change` makes of it.

        Raises ModelNotFound; InvalidMetadata for what could not be read back; MetadataUnreadable where what is there
        cannot be read, for a change would be the end of it.
        """
        scratch = self._session / f"{next(self._numbers)}.json"
        with files.own_words(), self._changing(key), ExitStack() as undo:
            current = self.info(key)
            if (model := change(current)) == current:
                return current
            if not current.readable:
                raise models.MetadataUnreadable(f"{METADATA} of {key} cannot be read, the log says why, and a change "
                                                "would replace it: mend it on the disk, or upload the model again")
            document = metadata.encoded(model.as_document())
            undo.callback(scratch.unlink, missing_ok=True)
            files.write_new(scratch, document)
            descriptors = undo.enter_context(self._walk(*key.names))
            os.rename(scratch, METADATA, dst_dir_fd=descriptors[-1])
            self.verdicts.pop(key.names, None)
            self.index.forget(key)
            files.sync(descriptors)
            return model

    @contextmanager
    def _changing(self, key: ModelKey) -> Iterator[None]:
        """One change of a model at a time, among all processes on this storage."""
        self.check_writable()
        # a model and the one at the URL of its digest share theirs: each is made only after a look for the other
        stripe = zlib.crc32(re.sub(r"(\.sha256)+$", "", str(key)).encode()) % LOCKS
        with files.flock(self._staging / "locks" / f"{stripe:02}"):
            self._restore(key)
            yield

    def _place(self, draft: Path, key: ModelKey, replacing: bool) -> None:
        """Puts a finished draft in place; what it replaces stands at `draft` afterwards."""
        aside = False
        for _ in range(LOOKS):
            # a delete may prune the parents between our making them and our rename
            with suppress(FileNotFoundError), self._walk(*key.names[:3], create=True) as descriptors:
                if not files.rename_new(draft, descriptors[-1], key.model_name):
                    if not replacing:
                        raise ModelExists(f"{key} is taken by something that appeared just now or is no model")
                    if not files.rename_exchange(draft, descriptors[-1], key.model_name):
                        self._set_aside(descriptors[-1], key)
                        aside = True
                        continue
                files.sync(descriptors)
                if aside:
                    os.rename(self._rescue_of(key), draft)
                    self._prune(STAGING, RESCUE, *key.names[:3])
                return
        raise models.StorageFailed(f"the directories of {key} vanish as fast as they are made")

    def _set_aside(self, parent: int, key: ModelKey) -> None:
        """Without an atomic exchange a replacement is three renames, this one the first.

        The old version is at a place named after its key in between, where readers look for it and where the next
        start, or the next change of this model, finds it after a crash.
        """
        with self._walk(STAGING, RESCUE, *key.names[:3], create=True) as descriptors:
            os.rename(key.model_name, key.model_name, src_dir_fd=parent, dst_dir_fd=descriptors[-1])
            files.sync(descriptors)

    def _rescue_of(self, key: ModelKey) -> Path:
        return self._staging.joinpath(RESCUE, *key.names)

    def _restore(self, key: ModelKey) -> None:
        """Brings back the old version that a replacement left aside, in a crash or by a fault."""
        rescued = self._rescue_of(key)
        if not os.path.lexists(rescued):
            return
        with self._walk(*key.names[:3], create=True) as descriptors:
            if not files.rename_new(rescued, descriptors[-1], key.model_name):
                files.remove(rescued)   # the new version had arrived
            files.sync(descriptors)
        self._prune(STAGING, RESCUE, *key.names[:3])

    def _restore_replaced(self) -> None:
        for names in list(self._scan((STAGING, RESCUE), ())):
            with self._changing(ModelKey(*names)):
                pass    # which restores it
        for directory, _, _ in os.walk(self._staging / RESCUE, topdown=False):
            with suppress(OSError):     # not empty: another process is replacing there
                os.rmdir(directory)

    def _remove_orphans(self) -> None:
        kept = {"locks", RESCUE, CORRUPT, "start.lock"}
        for session in {path.name.removesuffix(".lock") for path in self._staging.iterdir() if path.name not in kept}:
            lock = self._staging / f"{session}.lock"
            with suppress(BlockingIOError), files.flock(lock, fcntl.LOCK_NB):
                files.remove(self._staging / session)
                lock.unlink()

    # ---- directories

    @contextmanager
    def _walk(self, *names: str, create: bool = False) -> Iterator[list[int]]:
        """Descriptors of the root and of each directory below it on the way down, no symbolic link followed."""
        descriptors = [os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        try:
            for name in names:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=descriptors[-1])
                descriptors.append(os.open(name, files.DIRECTORY, dir_fd=descriptors[-1]))
            yield descriptors
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            raise FileNotFoundError(errno.ENOENT, "removed through another mount") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _subdirectories(self, *names: str) -> list[str]:
        try:
            with self._walk(*names) as descriptors, os.scandir(descriptors[-1]) as entries:
                found = [e.name for e in entries if models.NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        except OSError as error:
            if isinstance(error, PermissionError) and names:    # like lost+found, where the root is that of a disk
                self._cannot_read(names, error)
            elif error.errno not in files.ABSENT:
                raise
            return []
        return sorted(found if names else set(found) - models.RESERVED_PROJECTS)

    def _scan(self, base: tuple[str, ...], names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The four names of each directory at a model's depth below `base`, in order."""
        if len(names) == len(NAME_FIELDS):
            yield names
            return
        for name in self._subdirectories(*base, *names):
            yield from self._scan(base, (*names, name))

    def _prune(self, *names: str) -> None:
        """Removes these nested directories from the innermost outwards as far as they are empty."""
        for depth in range(len(names), 0, -1):
            try:
                with self._walk(*names[: depth - 1]) as descriptors:
                    os.rmdir(names[depth - 1], dir_fd=descriptors[-1])
            except OSError as error:
                if error.errno in files.OCCUPIED:
                    return
                if error.errno not in files.ABSENT:
                    log.warning("cannot remove the empty directory of %s: %s", "/".join(names[:depth]), error)
                    return


class Draft:
    """A model on its way in, in a directory of its own; gone at the end of its `with` unless published."""

    def __init__(self, store: Storage, path: Path) -> None:
        self._store = store
        self._path = path
        path.mkdir()
        try:
            self._file = files.NewFile(path / MODEL, store.buffers)
        except OSError:
            files.remove(path)
            raise
        self._open = True

    def write(self, blocks: Sequence[bytes | memoryview]) -> None:
        """Appends blocks; raises StorageFull."""
        with files.own_words():
            self._file.write(blocks)

    def examine(self, look: Callable[[BinaryIO, int], T]) -> T:
        """What `look` says of the bytes written and of their number."""
        with files.own_words():
            return look(self._file.written(), self._file.size)

    def publish(self, key: ModelKey, sha256: str, details: Details, check: Check,
                inspection: Inspection | None = None) -> Published:
        """Makes the draft the model `key` when `check` lets it; on disk when this returns."""
        with files.own_words():
            model = self._seal(key, sha256, details, inspection)
            with self._store._changing(key):
                current = self._store.find(key)
                check(current)
                if current and (current.sha256, current.details, current.corrupt) == (sha256, details, False):
                    with self._store._walk(*key.names[:3]) as descriptors:
                        files.sync(descriptors)  # it may be another's, not yet acknowledged
                    return Published(current, created=False, unchanged=True)
                try:
                    self._store._place(self._path, key, replacing=current is not None)
                finally:
                    self._store._restore(key)   # after a fault in the middle of it
                    self._store.index.forget(key)
            return Published(model, created=current is None, unchanged=False)

    def _seal(self, key: ModelKey, sha256: str, details: Details, inspection: Inspection | None) -> Model:
        stat = self._file.finish()
        self._close()
        moment = models.now()
        model = Model(key, stat.st_size, sha256, details, moment, moment, stat.st_mtime_ns, stat.st_ino, inspection)
        files.write_new(self._path / METADATA, metadata.encoded(model.as_document()))
        files.sync_directory(self._path)
        return model

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file.descriptor)

    def discard(self) -> None:
        """Removes what is left of the draft: all of it, or the old version that it replaced."""
        self._close()
        files.remove(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()
