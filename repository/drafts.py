"""Models that are being written in `.staging`: a single one, and all those of a version."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import BinaryIO, TypeVar

from repository import filesystem, metadata
from repository.directories import Directory, Tree
from repository.errors import StorageFailed
from repository.model import Details, Inspection, Model, ModelKey, Names, now
from repository.staging import Staging

log = logging.getLogger("model_server.storage")
T = TypeVar("T")
REMOVED = "it was removed from .staging during the upload: send it again"


class StagedModel:
    """The files of a model, in an open directory that nobody else uses. Used by one thread at a time.

    `file` is the file of the model, if it exists already.
    """

    def __init__(self, directory: Directory, file: filesystem.NewFile | None = None) -> None:
        self._directory, self._closed = directory, False
        self._file = file or filesystem.NewFile(directory.create(filesystem.MODEL))
        self._model: Model | None = None        # both None until it is complete
        self._metadata: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the model so far."""
        return self._file.size

    def write(self, blocks: Sequence[bytes | memoryview]) -> None:
        """Appends these blocks to the model; raises StorageFull or StorageFailed."""
        with filesystem.as_store_errors():
            self._file.write(blocks)

    def examine(self, inspect: Callable[[BinaryIO, int], T]) -> T:
        """Calls `inspect` with the bytes, as an open file, and their number; nothing can be written after this."""
        with filesystem.as_store_errors():
            return inspect(self._file.written(), self._file.size)

    def complete(self, key: ModelKey, sha256: str, details: Details, inspection: Inspection | None,
                 group: int | None = None) -> None:
        """Writes the rest of the model and metadata.json beside it, which sync() brings to the disk.

        They are given to `group`, see filesystem.give(). Raises InvalidMetadata, StorageFull and StorageFailed.
        """
        with filesystem.as_store_errors():
            filesystem.give(group, self._file.descriptor)
            self._file.written()
            moment = now()
            self._model = Model(key, self.size, sha256, details, moment, moment, inspection=inspection)
            document = metadata.encoded(self._model.as_document())
            try:
                self._metadata = self._directory.create(filesystem.METADATA)
            except OSError as error:
                if error.errno not in filesystem.GONE:
                    raise
                raise StorageFailed(f"{key}: {REMOVED}") from error
            filesystem.give(group, self._metadata, self._directory.descriptor)
            filesystem.write_all(self._metadata, document)

    def begin_sync(self) -> None:
        """Makes the kernel begin to write what complete() wrote, before sync() of many models; does not wait."""
        assert self._metadata is not None
        with filesystem.as_store_errors():
            for descriptor in (self._file.descriptor, self._metadata):
                filesystem.begin_sync(descriptor)

    def sync(self, inspected: bool = True) -> Model:
        """Syncs what complete() wrote, and the directory; closes them. Raises StorageFull and StorageFailed.

        Returns the model; without its inspection, which may be long, unless `inspected` is true.
        """
        with filesystem.as_store_errors():
            assert self._model and self._metadata is not None
            stat = self._file.finish()
            os.fsync(self._metadata)
            os.fsync(self._directory.descriptor)
            self.close()
            inspection = self._model.inspection if inspected else None
            return replace(self._model, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino, inspection=inspection)

    def seal(self, key: ModelKey, sha256: str, details: Details, inspection: Inspection | None,
             group: int | None = None) -> Model:
        """complete() and sync() in one."""
        self.complete(key, sha256, details, inspection, group)
        return self.sync()

    def finish(self) -> None:
        """Writes and syncs all of the model; nothing can be written after this. Raises StorageFull, StorageFailed."""
        with filesystem.as_store_errors():
            if not self._closed:
                self._file.finish()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._file.descriptor)
            if self._metadata is not None:
                os.close(self._metadata)
            self._directory.close()


class VersionDraft:
    """All models of a version, in a directory of `.staging` that has the structure of the version.

    One thread at a time calls add() and writes to what that returned; others may complete and sync what was written
    before. Call discard() in the end, when no thread uses it any more, even if it was published.
    """

    def __init__(self, tree: Tree, staging: Staging, version: Names) -> None:
        self._staging = staging
        self.version, self.name = version, staging.new_name()
        self.models: list[Model] = []       # those that are synced, without their inspection
        self._open = set[StagedModel]()
        self._folders: set[Names] = {()}    # by their path in the version
        with staging.session() as session:
            session.mkdir(self.name)
            self._top: Directory | None = session.open(self.name)
            # what is created in it inherits the group
            filesystem.give(tree.of_nearest(version, Directory.group), self._top.descriptor)

    def add(self, key: ModelKey) -> StagedModel:
        """A new model of the version, empty. Raises ModelExists, StorageFull and StorageFailed."""
        path = key.names[len(self.version):]
        with filesystem.as_store_errors(), self._directory() as directory:
            self._staging.check_names(self.name, *path)     # files of one tar may differ in case alone
            for name in path:
                directory.descend(name, create=True)
            model = StagedModel(Directory(directory.place, os.dup(directory.descriptor)))
        self._folders |= {path[:depth] for depth in range(len(path))}
        self._open.add(model)
        return model

    def sync_model(self, model: StagedModel) -> None:
        """Ends what add() began, when the model is complete: see StagedModel.sync()."""
        self.models.append(model.sync(inspected=False))
        self._open.discard(model)

    def sync(self) -> None:
        """Syncs the folders, from the innermost to the top; all models have to be synced already. Raises OSError."""
        for folder in sorted(self._folders, key=len, reverse=True):
            with self._directory() as directory:
                for name in folder:
                    directory.descend(name, create=False)
                os.fsync(directory.descriptor)

    def _directory(self) -> Directory:
        assert self._top    # it is not discarded
        return Directory(self._top.place, os.dup(self._top.descriptor))

    def discard(self) -> None:
        """Removes what is left: the whole draft, or the old version that it replaced. Logs what cannot be removed."""
        if self._top:
            while self._open:
                self._open.pop().close()
            self._top.close()
            self._top = None
            remove(self._staging, self.name)


def remove(staging: Staging, name: str) -> None:
    """Removes a draft, or what it replaced; logs what cannot be removed."""
    try:
        with staging.session() as session:
            session.remove(name)
    except FileNotFoundError:
        pass
    except (OSError, StorageFailed) as error:
        log.error("cannot remove %s: %s", name, error)
