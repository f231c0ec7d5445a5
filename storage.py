"""The store: a tree of directories that is the truth, written by drafts and read without locks.

    {root}/{project_id}/{app_name}/{version}/{model_name}/model
    {root}/{project_id}/{app_name}/{version}/{model_name}/metadata.json
    {root}/.staging/                  drafts, locks, what is being removed; never listed

A model appears by one rename of a finished directory and is replaced by one exchange of two. Directories are
walked by descriptor and without following symbolic links, so no name and no planted link leads out of the root.
"""

import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar

from repository import filesystem, metadata
from repository.directories import Directory, Tree, mounted_at
from repository.model import (
    NAME_FIELDS,
    RESERVED_PROJECTS,
    Details,
    Inspection,
    MetadataUnreadable,
    Model,
    ModelExists,
    ModelKey,
    ModelNotFound,
    ModelUnreadable,
    ReadOnly,
    StorageFailed,
    StorageFull,
    StoreError,
    Verdict,
    absent,
    described,
    now,
)
from repository.staging import REPLACED, STAGING, Staging
from repository.tree_index import Batch, Index, Signature

log = logging.getLogger("model_server.storage")
T = TypeVar("T")
LOOKS = 50              # how often a reader looks again when a writer moved the directory under it
Check = Callable[[Model | None], None]  # raises to refuse a change, given what is stored now


class Published(NamedTuple):
    model: Model
    created: bool
    unchanged: bool


class OpenModel(NamedTuple):
    """A model with its bytes open for reading; close it, or hand the file over."""

    model: Model
    file: BinaryIO


class Storage:
    """The models below `root`. Opening it claims a staging directory of its own and mends what a crash left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tree = Tree(root, self._cannot_read)
        self._staging = Staging(self._tree)
        self._recent = metadata.Recent()
        # what a verification found and could not write
        self.verdicts: dict[tuple[str, ...], Verdict] = {}
        # models and directories that could not be read: nothing that the index compares tells when they can be
        self._unreadable: set[tuple[str, ...]] = set()
        self.buffers = filesystem.Buffers()
        self._probed = -inf
        # a list asks for each model once, and would push out those in demand
        find = partial(self.find, keep=False)
        self.index = Index(self._subdirectories, self._changed, self._sign, find)
        # the mount is asked, not an attempt: who may not write there anyway would see that first
        if root.is_dir() and self.read_only:
            log.warning("%s is mounted read-only: models are served, not taken", root)
            return
        with filesystem.own_words():
            root.mkdir(parents=True, exist_ok=True)
        try:
            self.probe()
        except StorageFull as error:    # to serve and to delete is what is needed now
            log.warning("%s", error)
        except BaseException:
            self._staging.close()
            raise

    def _claim(self) -> None:
        """Takes a session where there is none, and mends what a crash left; locks models, so none may be locked."""
        with filesystem.own_words():
            if self._staging.claim():
                self._restore_replaced()

    @property
    def read_only(self) -> bool:
        """Whether the storage is mounted read-only, which may change at any time."""
        try:
            return bool(os.statvfs(self.root).f_flag & os.ST_RDONLY)
        except OSError:
            return False    # it shows where it is written to

    def close(self) -> None:
        """Gives the staging directory back; drafts still open are gone."""
        self.index.close()
        self._staging.close()

    def check_writable(self, *names: str) -> None:
        """Raises ReadOnly unless models below these names can be changed: moved there from the staging directory."""
        if self.read_only:
            raise ReadOnly(filesystem.READ_ONLY)
        if names:
            self._claim()
            with filesystem.own_words(), self._staging.session() as session, self._tree.nearest(*names) as place:
                if (mount := place.mount()) != session.mount():
                    raise ReadOnly(
                        f"{'/'.join(names)} is on a file system of its own ({mounted_at(mount[1])}), to which no model "
                        "can be moved from the storage's: what is there is served and not changed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- reading

    def open(self, key: ModelKey) -> OpenModel:
        """Opens the bytes and the metadata of one version; raises ModelNotFound."""
        return self._seek(key, self._open_in)

    def info(self, key: ModelKey, keep: bool = True) -> Model:
        """What is known of one model; raises ModelNotFound. It may be kept in memory to answer faster again."""
        return self._seek(key, partial(self._model_in, keep=keep))

    def knows(self, key: ModelKey) -> bool:
        """Whether info() of this model may be expected to read no file."""
        return self._recent.get(key) is not None

    def peek(self, key: ModelKey) -> OpenModel:
        """The same as open() for who needs no bytes."""
        return OpenModel(self.info(key), io.BytesIO())

    def find(self, key: ModelKey, keep: bool = True) -> Model | None:
        """What is known of one model, None when it is not there; see info()."""
        try:
            return self.info(key, keep)
        except ModelNotFound:
            return None

    def keys(self, *names: str) -> Iterator[ModelKey]:
        """The models below the given names, in order."""
        with filesystem.own_words():
            for found in self._tree.scan((), names):
                if self._sign(found):
                    yield ModelKey(*found)

    def lines(self, names: tuple[str, ...], after: tuple[str, ...] = ()) -> Iterator[Batch]:
        """See Index.lines."""
        for place in [place for place in self._unreadable if len(place) < len(NAME_FIELDS)]:
            self._unreadable.discard(place)
            self.index.forget(ModelKey(*place, *"____"[len(place):]))
        with filesystem.own_words():
            yield from self.index.lines(names, after)

    def versions(self, project_id: str, app_name: str, model_name: str) -> Iterator[str]:
        """The versions that have this model, in no useful order."""
        with filesystem.own_words():
            for version in self._subdirectories(project_id, app_name):
                place = (project_id, app_name, version)
                if model_name in self._subdirectories(*place) and self._sign((*place, model_name)):
                    yield version

    def free_bytes(self) -> int:
        with filesystem.own_words():
            disk = os.statvfs(self.root)
            return disk.f_bavail * disk.f_frsize

    def probe(self, at_most: float = 0.0) -> None:
        """Raises StorageFull or StorageFailed unless a file can be written, or could `at_most` seconds ago.

        Never on a read-only storage.
        """
        if self.read_only or self.probed_within(at_most):
            return
        try:
            self._claim()
            with filesystem.own_words():
                self._staging.probe()
        except StorageFull as error:
            disk = os.statvfs(self.root)
            if disk.f_files and not disk.f_favail:      # some file systems count none
                raise StorageFull("the storage has no inode left for another file (df -i): delete models, "
                                         "or remove other files") from error.__cause__
            raise
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

    def _seek(self, key: ModelKey, read: Callable[[Directory, ModelKey], T | None]) -> T:
        """What `read` makes of the model's directory; None says that it was taken away meanwhile: look again."""
        with filesystem.own_words():
            for _ in range(LOOKS):
                try:
                    if found := self._look(key, read):
                        return found
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno not in filesystem.OF_ONE or self.is_lost():
                        raise
                    log.error("%s cannot be read: %s", key, error)
                    raise ModelUnreadable(
                        f"{key} cannot be read on the server's disk ({error.strerror}): have its permissions or the "
                        "disk mended, or delete it and upload it again") from error
        raise absent(key.names)

    def _look(self, key: ModelKey, read: Callable[[Directory, ModelKey], T | None]) -> T | None:
        # Without RENAME_EXCHANGE the old version stands in the rescue place while it is replaced, see _set_aside.
        for place in ((), (STAGING, REPLACED)) * 2:
            try:
                with self._tree.reach(*place, *key.names) as directory:
                    return read(directory, key)
            except OSError as error:
                if error.errno not in filesystem.ABSENT:
                    raise
        raise FileNotFoundError

    def _open_in(self, directory: Directory, key: ModelKey) -> OpenModel | None:
        try:
            file = filesystem.open_regular(filesystem.MODEL, directory.descriptor)
        except FileNotFoundError:
            return None
        status = os.fstat(file.fileno())
        model = self._model_in(directory, key)
        if model is None or model.stamp != filesystem.stamp_of(status):
            file.close()    # somebody changed it under our hands
            return None
        return OpenModel(model, file)

    def _model_in(self, directory: Directory, key: ModelKey, keep: bool = True) -> Model | None:
        # The model last: a directory on its way out loses it before its metadata, so a pair is never torn.
        written = filesystem.stamp(filesystem.METADATA, directory.descriptor)
        model = filesystem.stamp(filesystem.MODEL, directory.descriptor)
        if model is None:
            return None
        known, state = self._recent.get(key), (written, model, self.verdicts.get(key.names))
        if known and known[0] == state:
            return known[1]
        document = self._read_metadata(directory, key)
        if filesystem.stamp(filesystem.MODEL, directory.descriptor) != model:
            return None
        found = described(key, document or {}, model, self.verdicts.get(key.names))
        if document is None:    # it may have said that the model is corrupt, so its mark is believed
            found = replace(found, readable=False, corrupt=found.corrupt or self._staging.is_marked(key))
        if keep and key.names not in self._unreadable:
            self._recent.keep(key, state, found, written[1] if written else 0)
        return found

    def _sign(self, names: tuple[str, ...]) -> Signature:
        """Changes with either file of a model; None when there is no model, or none that we may look at."""
        try:
            with self._tree.reach(*names) as directory:
                model = filesystem.stamp(filesystem.MODEL, directory.descriptor)
                written = filesystem.stamp(filesystem.METADATA, directory.descriptor)
        except PermissionError as error:
            self._cannot_read(names[:-1], error)
            return None
        except OSError as error:
            if error.errno in filesystem.ABSENT:
                return None
            raise
        again = time.monotonic() if names in self._unreadable else 0    # always another one
        return model and (hash((model, written, self.verdicts.get(names), again)), model[1])

    def _cannot_read(self, names: tuple[str, ...], error: OSError) -> None:
        """Remembers to look again, and tells of it once."""
        if names not in self._unreadable:
            self._unreadable.add(names)
            log.warning("%s cannot be read: %s", "/".join(names), error)

    def _changed(self, names: tuple[str, ...]) -> int:
        """When a directory was changed last, in ns; -1 where there is none."""
        try:
            with self._tree.reach(*names) as directory:
                return os.fstat(directory.descriptor).st_mtime_ns
        except OSError as error:
            if error.errno in filesystem.ABSENT:
                return -1
            raise

    def _subdirectories(self, *names: str) -> list[str]:
        found = self._tree.subdirectories(*names)
        return found if names else [name for name in found if name not in RESERVED_PROJECTS]

    def _read_metadata(self, directory: Directory, key: ModelKey) -> dict[str, Any] | None:
        """{} where there is none, None where there is one that cannot be read."""
        self._unreadable.discard(key.names)
        try:
            return metadata.read(directory.descriptor, key)
        except OSError as error:
            if error.errno not in filesystem.OF_ONE:
                raise
            self._cannot_read(key.names, error)
            return None

    # ---- changing

    def draft(self) -> "Draft":
        """A place to write a model to; leaves no trace unless published."""
        self.check_writable()
        with filesystem.own_words():
            return Draft(self, self._staging)

    def delete(self, key: ModelKey, check: Check) -> Model:
        """Removes one model for good when `check` lets it; raises ModelNotFound."""
        grave = self._staging.new_name()
        with filesystem.own_words(), ExitStack() as undo:
            with self._changing(key):
                model = self.info(key)
                check(model)
                session = undo.enter_context(self._staging.session())
                with self._tree.walk(*key.names[:3]) as parent:
                    parent.rename(key.model_name, session, grave)
                    undo.callback(session.remove, grave)
                    self.index.forget(key)
                    parent.sync()
            self._tree.prune(*key.names[:3])
            return model

    def amend(self, key: ModelKey, change: Callable[[Model], Model]) -> Model:
        """Replaces what metadata.json tells of a model by what `change` makes of it.

        Raises ModelNotFound; InvalidMetadata for what could not be read back; MetadataUnreadable where what is there
        cannot be read, for a change would be the end of it.
        """
        scratch = f"{self._staging.new_name()}.json"
        with filesystem.own_words(), self._changing(key), ExitStack() as undo:
            current = self.info(key)
            if (model := change(current)) == current:
                return current
            if not current.readable:
                raise MetadataUnreadable(f"{filesystem.METADATA} of {key} cannot be read, the log says why, and a "
                                         "change would replace it: mend it on the disk, or upload the model again")
            document = metadata.encoded(model.as_document())
            session = undo.enter_context(self._staging.session())
            undo.callback(session.unlink, scratch)
            directory = undo.enter_context(self._tree.walk(*key.names))
            descriptor = session.create(scratch)
            filesystem.give(directory.group(), descriptor)
            filesystem.write_new(descriptor, document)
            session.rename(scratch, directory, filesystem.METADATA)
            self.verdicts.pop(key.names, None)
            self.index.forget(key)
            directory.sync()
            return model

    @contextmanager
    def _changing(self, key: ModelKey) -> Iterator[None]:
        """One change of a model at a time, among all processes on this storage."""
        self.check_writable(*key.names)
        with self._staging.locked(key):
            self._restore(key)
            yield

    def _place(self, draft: str, key: ModelKey, replacing: bool) -> None:
        """Puts a finished draft in place; what it replaces stands at `draft` afterwards."""
        aside, name = False, key.model_name
        with self._staging.session() as session:
            for _ in range(LOOKS):
                # a delete may prune the parents between our making them and our rename
                with suppress(FileNotFoundError), self._tree.walk(*key.names[:3], create=True) as parent:
                    if not session.rename_new(draft, parent, name):
                        if not replacing:
                            raise ModelExists(f"{key} is taken by something that appeared just now or is no model")
                        if not session.exchange(draft, parent, name):
                            self._set_aside(parent, key)
                            aside = True
                            continue
                    parent.sync()
                    if aside:
                        with self._staging.at(REPLACED, *key.names[:3]) as replaced:
                            replaced.rename(name, session, draft)
                        self._tree.prune(STAGING, REPLACED, *key.names[:3])
                    return
        raise StorageFailed(f"the directories of {key} vanish as fast as they are made")

    def _set_aside(self, parent: Directory, key: ModelKey) -> None:
        """Without an atomic exchange a replacement is three renames, this one the first.

        The old version is at a place named after its key in between, where readers look for it and where the next
        start, or the next change of this model, finds it after a crash.
        """
        with self._staging.at(REPLACED, *key.names[:3], create=True) as replaced:
            parent.rename(key.model_name, replaced, key.model_name)
            replaced.sync()

    def _restore(self, key: ModelKey) -> None:
        """Brings back the old version that a replacement left aside, in a crash or by a fault."""
        try:
            self._staging.at(REPLACED, *key.names).close()
        except FileNotFoundError:
            return
        place = key.names[:3]
        with self._staging.at(REPLACED, *place) as replaced, self._tree.walk(*place, create=True) as parent:
            if not replaced.rename_new(key.model_name, parent, key.model_name):
                replaced.remove(key.model_name)     # the new version had arrived
            parent.sync()
        self._tree.prune(STAGING, REPLACED, *key.names[:3])

    def _restore_replaced(self) -> None:
        for names in list(self._tree.scan((STAGING, REPLACED))):
            with self._changing(ModelKey(*names)):
                pass    # which restores it
        self._tree.clear(STAGING, REPLACED)

    # ---- marks of corrupt models, see verification.py

    def mark(self, key: ModelKey) -> None:
        """Marks a model as corrupt, on disk when this returns; before its metadata tells it, as a crash may come."""
        with filesystem.own_words():
            self._staging.mark(key)

    def unmark(self, key: ModelKey) -> None:
        """Takes the mark of a model away, unless it turns out to be corrupt after all."""
        with filesystem.own_words(), self._changing(key):    # nobody marks and writes meanwhile
            model = self.find(key)
            if model is None or not model.corrupt:
                self._staging.unmark(key)

    def marked(self) -> Iterator[ModelKey]:
        """The models that are marked as corrupt; a mark may be wrong and is never believed."""
        with filesystem.own_words():
            yield from self._staging.marked()


class Draft:
    """A model on its way in, in a directory of its own; gone at the end of its `with` unless published."""

    def __init__(self, store: Storage, staging: Staging) -> None:
        self._store, self._staging = store, staging
        self._name = staging.new_name()
        with staging.session() as session:
            session.mkdir(self._name)
            try:
                with session.open(self._name) as directory:
                    self._file = filesystem.NewFile(directory.create(filesystem.MODEL), store.buffers)
            except OSError:
                session.remove(self._name)
                raise
        self._open = True

    def write(self, blocks: Sequence[bytes | memoryview]) -> None:
        """Appends blocks; raises StorageFull."""
        with filesystem.own_words():
            self._file.write(blocks)

    def examine(self, look: Callable[[BinaryIO, int], T]) -> T:
        """What `look` says of the bytes written and of their number."""
        with filesystem.own_words():
            return look(self._file.written(), self._file.size)

    def publish(self, key: ModelKey, sha256: str, details: Details, check: Check,
                inspection: Inspection | None = None) -> Published:
        """Makes the draft the model `key` when `check` lets it; on disk when this returns."""
        with filesystem.own_words():
            model = self._seal(key, sha256, details, inspection)
            with self._store._changing(key):
                current = self._store.find(key)
                check(current)
                if current and (current.sha256, current.details, current.corrupt) == (sha256, details, False):
                    with self._store._tree.walk(*key.names[:3]) as parent:
                        parent.sync()   # it may be another's, not yet acknowledged
                    return Published(current, created=False, unchanged=True)
                try:
                    self._store._place(self._name, key, replacing=current is not None)
                except (OSError, StoreError):
                    self._store._restore(key)   # which may be aside
                    raise
                finally:
                    self._store.index.forget(key)
            return Published(model, created=current is None, unchanged=False)

    def _seal(self, key: ModelKey, sha256: str, details: Details, inspection: Inspection | None) -> Model:
        with self._store._tree.nearest(*key.names[:3]) as place:
            group = place.group()
        filesystem.give(group, self._file.descriptor)
        stat = self._file.finish()
        self._close()
        moment = now()
        model = Model(key, stat.st_size, sha256, details, moment, moment, stat.st_mtime_ns, stat.st_ino, inspection)
        document = metadata.encoded(model.as_document())
        try:
            directory = self._staging.session(self._name)
        except FileNotFoundError as error:
            raise StorageFailed("somebody removed the model from .staging while it arrived: "
                                       "send it again") from error
        with directory:
            descriptor = directory.create(filesystem.METADATA)
            filesystem.give(group, descriptor, directory.descriptor)
            filesystem.write_new(descriptor, document)
            os.fsync(directory.descriptor)
        return model

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file.descriptor)

    def discard(self) -> None:
        """Removes what is left of the draft: all of it, or the old version that it replaced."""
        self._close()
        try:
            with self._staging.session() as session:
                session.remove(self._name)
        except FileNotFoundError:
            pass
        except (OSError, StorageFailed) as error:
            log.error("cannot remove %s: %s", self._name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()
