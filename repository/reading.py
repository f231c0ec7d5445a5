"""Reading models from the tree without locks, while others replace and remove them."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, NamedTuple, TypeVar

from repository import filesystem, metadata
from repository.directories import Directory, Tree
from repository.errors import ModelUnreadable, absent
from repository.model import NAME_FIELDS, RESERVED_PROJECTS, Model, ModelKey
from repository.staging import REPLACED, STAGING, Staging
from repository.tree_index import Signature

log = logging.getLogger("model_server.storage")
T = TypeVar("T")

MAX_TOLD = 100          # links that the log tells of; more were put there to fill it
LOOKS = 50              # how often a reader looks again when a writer moved the directory under it


class OpenModel(NamedTuple):
    """A model with its bytes open for reading; close it, or hand the file over."""

    model: Model
    file: BinaryIO


class ModelReader:
    """Reads models of a tree; `verdicts` are those of verifications that could not be written beside their models."""

    def __init__(self, tree: Tree, staging: Staging, verdicts: dict[tuple[str, ...], metadata.Verdict]) -> None:
        self._tree, self._staging, self._verdicts = tree, staging, verdicts
        self._recent = metadata.Recent()
        # models and directories that could not be read: nothing that the index compares tells when they can be
        self._unreadable: set[tuple[str, ...]] = set()
        tree.unreadable = self.cannot_read
        self._links: set[tuple[str, ...]] = set()
        tree.linked = self.passes_over

    def open(self, key: ModelKey) -> OpenModel:
        """Opens the bytes and the metadata of one version; raises ModelNotFound."""
        return self._seek(key, self._open_in)

    def info(self, key: ModelKey, keep: bool) -> Model:
        """What is known of one model, kept in memory if `keep` says so; raises ModelNotFound."""
        return self._seek(key, partial(self._model_in, keep=keep))

    def knows(self, key: ModelKey) -> bool:
        """Whether info() of this model may be expected to read no file."""
        return self._recent.get(key) is not None

    def look_again(self) -> Iterator[ModelKey]:
        """Forgets which directories could not be read; a key below each, so that an index forgets it too."""
        for place in [place for place in self._unreadable if len(place) < len(NAME_FIELDS)]:
            self._unreadable.discard(place)
            yield ModelKey(*place, *"____"[len(place):])

    def is_lost(self) -> bool:
        """Whether not even the top can be read, so that a fault is the storage's and not that of one model."""
        try:
            with os.scandir(self._tree.top) as entries:
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
        # Without RENAME_EXCHANGE the old version stands in the rescue place while it is replaced, see replacement.py.
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
        known, state = self._recent.get(key), (written, model, self._verdicts.get(key.names))
        if known and known[0] == state:
            return known[1]
        document = self._read_metadata(directory, key)
        if filesystem.stamp(filesystem.MODEL, directory.descriptor) != model:
            return None
        found = metadata.described(key, document or {}, model, self._verdicts.get(key.names))
        if document is None:    # it may have said that the model is corrupt, so its mark is believed
            found = replace(found, readable=False, corrupt=found.corrupt or self._staging.is_marked(key))
        if keep and key.names not in self._unreadable:
            self._recent.keep(key, state, found, written[1] if written else 0)
        return found

    def sign(self, names: tuple[str, ...]) -> Signature:
        """Changes with either file of a model; None when there is no model, or none that we may look at."""
        try:
            with self._tree.reach(*names) as directory:
                model = filesystem.stamp(filesystem.MODEL, directory.descriptor)
                written = filesystem.stamp(filesystem.METADATA, directory.descriptor)
        except PermissionError as error:
            self.cannot_read(names[:-1], error)
            return None
        except OSError as error:
            if error.errno in filesystem.ABSENT:
                return None
            raise
        again = time.monotonic() if names in self._unreadable else 0    # always another one
        return model and (hash((model, written, self._verdicts.get(names), again)), model[1])

    def cannot_read(self, names: tuple[str, ...], error: OSError) -> None:
        """Remembers to look again, and tells of it once."""
        if names not in self._unreadable:
            self._unreadable.add(names)
            log.warning("%s cannot be read: %s", "/".join(names), error)

    def passes_over(self, link: tuple[str, ...]) -> None:
        """Tells once of a symbolic link among the directories, which is not followed."""
        if link[0] != STAGING and link not in self._links and len(self._links) < MAX_TOLD:
            self._links.add(link)
            log.warning("%s is a symbolic link, which is never followed, so nothing behind it is served: mount the "
                        "directory there instead (mount --bind)", "/".join(link))

    def changed(self, names: tuple[str, ...]) -> int:
        """When a directory was changed last, in ns; -1 where there is none."""
        try:
            with self._tree.reach(*names) as directory:
                return os.fstat(directory.descriptor).st_mtime_ns
        except OSError as error:
            if error.errno in filesystem.ABSENT:
                return -1
            raise

    def subdirectories(self, *names: str) -> list[str]:
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
            self.cannot_read(key.names, error)
            return None
