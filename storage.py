"""The store: models in a tree of directories, which is the only record of them, written by drafts, read without locks.

    {root}/{project_id}/{app_name}/{version}/{model_name}/model
    {root}/{project_id}/{app_name}/{version}/{model_name}/metadata.json
    {root}/{project_id}/{app_name}/{version}/onnx/model.onnx/…      a model whose name is the path onnx/model.onnx
    {root}/{project_id}/{app_name}/@production -> {version}         an alias: see repository/aliases.py
    {root}/.staging/                  drafts, locks, what is being removed: see repository/staging.py; never listed

A directory in a version is a model if its `model` is a regular file, and otherwise a folder; nothing in a model is one.
A model appears by one rename of a finished directory, and is replaced by exchanging two directories; so is a whole
version that is uploaded at once, with all that was in it. Directories are walked by descriptor and without following
symbolic links, so no name and no planted link can lead out of the root.
"""

import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self, TypeVar

from repository import filesystem, metadata
from repository.aliases import Aliases
from repository.directories import Directory, Tree, mounted_at, mounts_below
from repository.drafts import StagedModel, VersionDraft, remove
from repository.errors import (
    MetadataUnreadable,
    ModelExists,
    ModelNotFound,
    ReadOnly,
    StorageFull,
    StoreError,
)
from repository.indexed import Batch
from repository.model import VERSION_DEPTH, Details, Inspection, Model, ModelKey, Names
from repository.reading import ModelReader, OpenModel
from repository.replacement import Replacement
from repository.staging import Staging
from repository.tree_index import Index

log = logging.getLogger("model_server.storage")
T = TypeVar("T")
Check = Callable[[Model | None], None]  # given the stored model, raises to refuse a change


class Disk(NamedTuple):
    """The file system of a storage: whether it is mounted read-only, and the bytes that can still be written."""

    read_only: bool
    free_bytes: int


class Published(NamedTuple):
    """What became of a draft. `created`: there was no such model; `unchanged`: the same one was stored already."""

    model: Model
    created: bool
    unchanged: bool


class Storage:
    """The models below `root`. Opening it creates a staging directory for this process and repairs what a crash left.

    Raises StorageFailed or Obstructed if it cannot be written; a full or read-only storage is opened all the same.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tree = Tree(root)
        self.staging = Staging(self._tree)
        self._replacement = Replacement(self._tree, self.staging)
        self.aliases = Aliases(self._tree, self.staging)
        self.verdicts: dict[Names, metadata.Verdict] = {}   # those that could not be written to metadata.json
        self._reader = ModelReader(self._tree, self.staging, self.verdicts)
        self._probed = -inf
        # keep=False: a list reads each model once, and would push popular ones out of the cache
        self.index = Index(self._reader, partial(self.find, keep=False))
        self.index.recall, self.index.keep = self.staging.recall_index, self._keep_index
        # ask the mount instead of trying to write: missing permissions would be reported first
        if self.read_only and root.is_dir():    # in this order: is_dir() raises where it may not look
            log.warning("%s is mounted read-only: models are served, but no changes are accepted", root)
            return
        with filesystem.as_store_errors():
            root.mkdir(parents=True, exist_ok=True)
        try:
            self.probe()
        except StorageFull as error:    # serving and deleting models is what is needed now
            log.warning("%s", error)
        except BaseException:
            self.staging.close()
            raise

    def _claim(self) -> None:
        """Creates a session if there is none, and repairs what a crash left. The caller must hold no model's lock."""
        with filesystem.as_store_errors():
            if self.staging.claim():
                self._restore_replaced()

    @property
    def read_only(self) -> bool:
        """Whether the storage is mounted read-only; this can change at any time."""
        try:
            return self.disk().read_only
        except StoreError:
            return False    # the next write will raise the error

    def close(self) -> None:
        """Removes the staging directory of this process, with any drafts still open."""
        self.index.close()
        self.staging.close()

    def check_writable(self, *names: str) -> None:
        """Raises ReadOnly unless models below these names can be changed: moved there from the staging directory."""
        if self.read_only:
            raise ReadOnly(filesystem.READ_ONLY)
        if names:
            self._claim()
            with filesystem.as_store_errors(), self.staging.session() as session:
                self._tree.check_names(*names)
                if (mount := self._tree.of_nearest(names, Directory.mount)) != session.mount():
                    raise ReadOnly(
                        f"{'/'.join(names)} is on a file system of its own ({mounted_at(mount[1])}), and models cannot "
                        "be moved there from the storage's: they are served but cannot be changed")

    def check_replaceable(self, version: Names) -> None:
        """Raises ReadOnly if something is mounted in a version: it would be moved away with the old one."""
        with filesystem.as_store_errors(), suppress(FileNotFoundError), self._tree.walk(*version) as directory:
            if mounted := mounts_below(directory):
                raise ReadOnly(f"{', '.join(mounted)} is mounted in {'/'.join(version)}, so that cannot be replaced as "
                               "a whole: unmount it, or upload the models one by one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- reading

    def open(self, key: ModelKey) -> OpenModel:
        """Opens a model; bytes and metadata belong to the same upload.

        Raises ModelNotFound, ModelUnreadable, StorageFailed.
        """
        return self._reader.open(key)

    def info(self, key: ModelKey, keep: bool = True) -> Model:
        """The info of one model; raises what open() raises. If `keep` is true, the model enters a cache in memory."""
        return self._reader.info(key, keep)

    def knows(self, key: ModelKey) -> bool:
        """Whether info() will probably answer without reading a file."""
        return self._reader.is_cached(key)

    def peek(self, key: ModelKey) -> OpenModel:
        """open() without the contents, for HEAD."""
        return OpenModel(self.info(key), io.BytesIO())

    def group_at(self, key: ModelKey) -> int | None:
        """The group that new files of this model inherit from its directory; None for that of the process."""
        return self._tree.of_nearest(key.names[:-1], Directory.group)

    def find(self, key: ModelKey, keep: bool = True) -> Model | None:
        """info(), but None if there is no such model."""
        try:
            return self.info(key, keep)
        except ModelNotFound:
            return None

    def keys(self, *names: str) -> Iterator[ModelKey]:
        """The models at these names and below them, in order, read from the disk and not from the index."""
        with filesystem.as_store_errors():
            if not self._reader.model_above(names):
                yield from self._tree.scan((), lambda names: self._reader.sign(names) is not None, names)

    def lines(self, names: Names, after: Names = (), enough: float = inf) -> Iterator[Batch]:
        """The models below `names` that come after `after`, in order: batches of Model.line. Raises StorageFailed.

        If `enough` models are all that is needed, these come sooner where a version has thousands.
        """
        for place in self._reader.retry_unreadable():
            self.index.forget(place)
        with filesystem.as_store_errors():
            yield from self.index.lines(names, after, enough)

    def _keep_index(self, blocks: Iterator[bytes]) -> None:
        for place in self._reader.retry_unreadable():   # no stamp changes when a directory becomes readable
            self.index.forget(place)
        self.staging.keep_index(blocks)

    def versions(self, project_id: str, app_name: str) -> list[str]:
        """The versions of an application, in the order of their names as text; there may be nothing in them."""
        with filesystem.as_store_errors():
            return self._reader.subdirectories(project_id, app_name)

    def disk(self) -> Disk:
        """The state of the file system; raises StorageFailed."""
        with filesystem.as_store_errors():
            status = os.statvfs(self.root)
            return Disk(bool(status.f_flag & os.ST_RDONLY), status.f_bavail * status.f_frsize)

    def free_bytes(self) -> int:
        """Bytes that this process can still write; raises StorageFailed."""
        return self.disk().free_bytes

    def probe(self, at_most: float = 0.0) -> None:
        """Raises StorageFull or StorageFailed unless a file can be written, or could at most `at_most` seconds ago.

        Does nothing on a read-only storage.
        """
        if self.probed_within(at_most) or self.read_only:
            return
        try:
            self._claim()
            with filesystem.as_store_errors():
                self.staging.probe()
        except StorageFull as error:
            disk = os.statvfs(self.root)
            if disk.f_files and not disk.f_favail:      # some file systems do not count inodes
                raise StorageFull("the storage has no inode left for another file (df -i): delete models or other "
                                  "files") from error.__cause__
            raise
        self._probed = time.monotonic()

    def probed_within(self, seconds: float) -> bool:
        """Whether a probe has succeeded in the last `seconds`."""
        return time.monotonic() - self._probed < seconds

    def is_lost(self) -> bool:
        """Whether even the root cannot be read, so that the whole storage has failed and not just one model."""
        return self._reader.is_lost()

    # ---- changing

    def check_place(self, key: ModelKey) -> None:
        """Raises ModelExists if a new model cannot be there: below another one, or in place of a folder of models."""
        with filesystem.as_store_errors():
            if above := self._reader.model_above(key.names):
                raise ModelExists(f"{'/'.join(above)} is a model, so nothing can be stored below it: delete it, or "
                                  "choose another name")
            inside = next(self.keys(*key.names), key)
            if inside != key:   # otherwise the model was stored just now, and the caller decides
                raise ModelExists(f"{key} is a folder, with {inside} in it: delete it, or choose another name")

    def draft(self) -> "Draft":
        """A new draft, to be published or discarded. Raises ReadOnly, StorageFull, StorageFailed."""
        self.check_writable()
        name = self.staging.new_name()
        with filesystem.as_store_errors(), self.staging.session() as session, ExitStack() as undo:
            session.mkdir(name)
            undo.callback(session.remove, name)
            model = StagedModel(session.open(name))
            undo.pop_all()
            return Draft(self, name, model)

    def version_draft(self, version: Names) -> VersionDraft:
        """A new draft of a whole version, for publish_version() or to be discarded. Raises what draft() raises."""
        self.check_writable()
        with filesystem.as_store_errors():
            return VersionDraft(self._tree, self.staging, version)

    def publish_version(self, draft: VersionDraft, check: Callable[[list[ModelKey]], None]) -> bool:
        """Makes a draft of which all models are synced the whole version; returns whether there was none.

        `check` may raise to refuse the change, given the models that are stored; those that are not in the draft will
        be gone. Readers see the old or the new version, complete; the new one is on disk when this returns. Raises
        ModelExists, ReadOnly, StorageFull and StorageFailed; then the old version is still in place.
        """
        version = draft.version
        with filesystem.as_store_errors():
            draft.sync()
            with self._changing(version):
                current = list(self.keys(*version))
                check(current)
                self.check_replaceable(version)
                try:
                    with self.staging.session() as drafts:
                        self._replacement.place(drafts, draft.name, version, replacing=bool(current))
                except (OSError, StoreError):
                    self._replacement.restore(version)  # if it was set aside
                    raise
                finally:
                    self.index.forget(version, below=True)
            return not current

    def delete(self, key: ModelKey, check: Check) -> Model:
        """Deletes one model, and returns what it was; the deletion is on disk when this returns.

        `check` may raise to refuse it. Raises ModelNotFound, NotEmpty if an alias would point at nothing, ReadOnly,
        StorageFailed. Works on a full disk.
        """
        grave = self.staging.new_name()
        with filesystem.as_store_errors(), ExitStack() as undo:
            with self._changing(key.names):
                model = self.info(key)
                check(model)
                session = undo.enter_context(self.staging.session())
                with self._tree.walk(*key.names[:-1]) as parent:
                    version = key.names[:VERSION_DEPTH]
                    with self.aliases.followed(version, lambda: all(other == key for other in self.keys(*version))):
                        parent.rename(key.name, session, grave)
                    undo.callback(session.remove, grave)
                    self.index.forget(key.names)
                    parent.sync()
            self._tree.prune(*key.names[:-1])
            return model

    def amend(self, key: ModelKey, change: Callable[[Model], Model]) -> Model:
        """Replaces the metadata of a model by that of the model that `change` returns, which may raise to refuse it.

        The change is on disk when this returns. Raises ModelNotFound; InvalidMetadata if the result could not be read
        back; MetadataUnreadable if the current metadata cannot be read, and the change would destroy it.
        """
        scratch = f"{self.staging.new_name()}.json"
        with filesystem.as_store_errors(), self._changing(key.names), ExitStack() as undo:
            current = self.info(key)
            if (model := change(current)) == current:
                return current
            if not current.readable:
                raise MetadataUnreadable(f"{filesystem.METADATA} of {key} cannot be read (the log says why), and a "
                                         "change would replace it: repair the file, or upload the model again")
            document = metadata.encoded(model.as_document())
            session = undo.enter_context(self.staging.session())
            undo.callback(session.unlink, scratch)
            directory = undo.enter_context(self._tree.walk(*key.names))
            descriptor = session.create(scratch)
            filesystem.give(directory.group(), descriptor)
            filesystem.write_new(descriptor, document)
            session.rename(scratch, directory, filesystem.METADATA)
            self.verdicts.pop(key.names, None)
            self.index.forget(key.names)
            directory.sync()
            return model

    @contextmanager
    def _changing(self, names: Names) -> Iterator[None]:
        """Holds the lock of a model or a version, so that all processes on this storage change it one at a time."""
        self.check_writable(*names)
        with self.staging.locked(names):
            self._replacement.restore(names)
            yield

    def _restore_replaced(self) -> None:
        """Restores what interrupted replacements set aside."""
        for names in self._replacement.left_aside():
            with self._changing(names):
                pass    # entering restores it
        self._replacement.clear()

    # ---- marks of corrupt models, see server/verifier.py

    def mark(self, key: ModelKey) -> None:
        """Marks a model as corrupt; the mark is on disk when this returns. Call it before the metadata says so."""
        with filesystem.as_store_errors():
            self.staging.mark(key)

    def unmark(self, key: ModelKey) -> None:
        """Removes the mark of a model, unless the model is corrupt after all."""
        with filesystem.as_store_errors(), self._changing(key.names):    # so that nobody else marks it meanwhile
            model = self.find(key)
            if model is None or not model.corrupt:
                self.staging.unmark(key)

    def marked(self) -> Iterator[ModelKey]:
        """The models that are marked as corrupt. Marks can be out of date: check the info of each."""
        with filesystem.as_store_errors():
            yield from self.staging.marked()


class Draft:
    """A model that is being written, in a directory of its own in `.staging`. Used by one thread at a time.

    `name` is that of its directory, in the session of this process, `model` what is in it. Call discard() in the end,
    after publish(), too.
    """

    def __init__(self, store: Storage, name: str, model: StagedModel) -> None:
        self._store, self._staging = store, store.staging
        self.name, self.model = name, model

    @property
    def size(self) -> int:
        """Bytes of the model so far."""
        return self.model.size

    def write(self, blocks: Sequence[bytes | memoryview]) -> None:
        """Appends these blocks to the model; raises StorageFull or StorageFailed."""
        self.model.write(blocks)

    def examine(self, inspect: Callable[[BinaryIO, int], T]) -> T:
        """Calls `inspect` with the bytes, as an open file, and their number; nothing can be written after this."""
        return self.model.examine(inspect)

    def _home(self) -> Directory:
        """The directory in which its own is."""
        return self._staging.session()

    def publish(self, key: ModelKey, sha256: str, details: Details, check: Check,
                inspection: Inspection | None = None) -> Published:
        """Makes the draft the model `key`, creating or replacing it; bytes and metadata are on disk when this returns.

        `sha256` is the hex digest of the bytes. `check` may raise to refuse the change, given the model that is stored.
        Readers see the old or the new model, complete. Raises InvalidMetadata, ModelExists, ReadOnly, StorageFull and
        StorageFailed; then the old model is still in place.
        """
        with filesystem.as_store_errors():
            model = self.model.seal(key, sha256, details, inspection, self._store.group_at(key))
            with self._store._changing(key.names):
                current = self._store.find(key)
                check(current)
                if not current:
                    self._store.check_place(key)
                if current and (current.sha256, current.details, current.corrupt) == (sha256, details, False):
                    with self._store._tree.walk(*key.names[:-1]) as parent:
                        parent.sync()   # another request may have stored it and not have synced it yet
                    return Published(current, created=False, unchanged=True)
                try:
                    with self._home() as drafts:
                        self._store._replacement.place(drafts, self.name, key.names, replacing=current is not None)
                except (OSError, StoreError):
                    self._store._replacement.restore(key.names)   # if it was set aside
                    raise
                finally:
                    self._store.index.forget(key.names)
            return Published(model, created=current is None, unchanged=False)

    def discard(self) -> None:
        """Removes what is left: the whole draft, or the old model that it replaced. Logs what cannot be removed."""
        self.model.close()
        remove(self._staging, self.name)
