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
from contextlib import ExitStack, contextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self, TypeVar

from repository import filesystem, metadata
from repository.directories import Tree, mounted_at
from repository.errors import (
    MetadataUnreadable,
    ModelNotFound,
    ReadOnly,
    StorageFailed,
    StorageFull,
    StoreError,
)
from repository.model import Details, Inspection, Model, ModelKey, now
from repository.reading import ModelReader, OpenModel
from repository.replacement import Replacement
from repository.staging import Staging
from repository.tree_index import Batch, Index

log = logging.getLogger("model_server.storage")
T = TypeVar("T")
Check = Callable[[Model | None], None]  # raises to refuse a change, given what is stored now


class Published(NamedTuple):
    model: Model
    created: bool
    unchanged: bool


class Storage:
    """The models below `root`. Opening it claims a staging directory of its own and mends what a crash left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tree = Tree(root)
        self._staging = Staging(self._tree)
        self._replacement = Replacement(self._tree, self._staging)
        self.verdicts: dict[tuple[str, ...], metadata.Verdict] = {}     # that could not be written
        self._reader = ModelReader(self._tree, self._staging, self.verdicts)
        self.buffers = filesystem.Buffers()
        self._probed = -inf
        # a list asks for each model once, and would push out those in demand
        find = partial(self.find, keep=False)
        self.index = Index(self._reader.subdirectories, self._reader.changed, self._reader.sign, find)
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
                self._tree.check_names(*names)
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
        return self._reader.open(key)

    def info(self, key: ModelKey, keep: bool = True) -> Model:
        """What is known of one model; raises ModelNotFound. It may be kept in memory to answer faster again."""
        return self._reader.info(key, keep)

    def knows(self, key: ModelKey) -> bool:
        """Whether info() of this model may be expected to read no file."""
        return self._reader.knows(key)

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
                if self._reader.sign(found):
                    yield ModelKey(*found)

    def lines(self, names: tuple[str, ...], after: tuple[str, ...] = ()) -> Iterator[Batch]:
        """See Index.lines."""
        for key in self._reader.look_again():
            self.index.forget(key)
        with filesystem.own_words():
            yield from self.index.lines(names, after)

    def versions(self, project_id: str, app_name: str, model_name: str) -> Iterator[str]:
        """The versions that have this model, in no useful order."""
        with filesystem.own_words():
            for version in self._reader.subdirectories(project_id, app_name):
                place = (project_id, app_name, version)
                if model_name in self._reader.subdirectories(*place) and self._reader.sign((*place, model_name)):
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
        return self._reader.is_lost()

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
            self._replacement.restore(key)
            yield

    def _restore_replaced(self) -> None:
        for key in self._replacement.left_aside():
            with self._changing(key):
                pass    # which restores it
        self._replacement.clear()

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
                    self._store._replacement.place(self._name, key, replacing=current is not None)
                except (OSError, StoreError):
                    self._store._replacement.restore(key)   # which may be aside
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
