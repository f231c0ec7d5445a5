"""Models that are being written in `.staging`: the two files of one, and all those of a version."""

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
    """The files of a model, in an open directory that nobody else knows. Used by one thread at a time.

    `file` is that of the model where there is one already.
    """

    def __init__(self, directory: Directory, file: filesystem.NewFile | None = None) -> None:
        self._directory, self._closed = directory, False
        self._file = file or filesystem.NewFile(directory.create(filesystem.MODEL))

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

    def seal(self, key: ModelKey, sha256: str, details: Details, inspection: Inspection | None,
             group: int | None = None) -> Model:
        """Finishes the file, writes metadata.json beside it, and syncs both and their directory; closes them.

        They are given to `group`, see filesystem.give(). Raises InvalidMetadata, StorageFull and StorageFailed.
        """
        with filesystem.as_store_errors():
            filesystem.give(group, self._file.descriptor)
            stat, moment = self._file.finish(), now()
            model = Model(key, stat.st_size, sha256, details, moment, moment, stat.st_mtime_ns, stat.st_ino, inspection)
            document = metadata.encoded(model.as_document())
            try:
                descriptor = self._directory.create(filesystem.METADATA)
            except OSError as error:
                if error.errno not in filesystem.GONE:
                    raise
                raise StorageFailed(f"{key}: {REMOVED}") from error
            filesystem.give(group, descriptor, self._directory.descriptor)
            filesystem.write_new(descriptor, document)
            os.fsync(self._directory.descriptor)
            self.close()
            return model

    def finish(self) -> None:
        """Writes and syncs all of the model; nothing can be written after this. Raises StorageFull, StorageFailed."""
        with filesystem.as_store_errors():
            if not self._closed:
                self._file.finish()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._file.descriptor)
            self._directory.close()


class VersionDraft:
    """All models of a version, in a directory of `.staging` that has the shape of the version.

    One thread at a time calls add() and writes to what that returned; others may seal() what is written meanwhile. Call
    discard() in the end, when no thread uses it any more, after it was published too.
    """

    def __init__(self, tree: Tree, staging: Staging, version: Names) -> None:
        self._staging = staging
        self.version, self.name = version, staging.new_name()
        self.models: list[Model] = []       # that are sealed, without their inspection
        self._open = set[StagedModel]()
        self._folders: set[Names] = {()}    # by their path in the version
        with staging.session() as session:
            session.mkdir(self.name)
            self._top: Directory | None = session.open(self.name)
            # what is made in it inherits the group
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

    def seal(self, model: StagedModel, key: ModelKey, sha256: str, details: Details,
             inspection: Inspection | None) -> None:
        """Ends what add() began: see StagedModel.seal()."""
        sealed = model.seal(key, sha256, details, inspection)
        self.models.append(replace(sealed, inspection=None))    # which may be long
        self._open.discard(model)

    def sync(self) -> None:
        """Syncs the folders, from the innermost to the top: all models are sealed, and so synced. Raises OSError."""
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
